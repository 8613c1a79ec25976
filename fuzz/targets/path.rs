//! The path of a request.
#![no_main]

libfuzzer_sys::fuzz_target!(|path: &str| tower_distributed_lock::fuzzing::path(path));
