//! Replies of Redis to the lock's script.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tower_distributed_lock::fuzzing::reply(data));
