//! Messages that Redis pushes.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tower_distributed_lock::fuzzing::push(data));
