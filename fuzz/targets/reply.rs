//! Replies of Redis to commands and to scripts.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tower_distributed_lock::fuzzing::reply(data));
