//! What stands in Redis as a record.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tower_distributed_lock::fuzzing::record(data));
