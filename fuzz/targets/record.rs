//! Records that are read from Redis.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tower_distributed_lock::fuzzing::record(data));
