//! Whatever stands in Redis is a record that can be written again, or an error.
#![no_main]
#![allow(dead_code)]

#[path = "../../../src/idempotency/record.rs"]
mod record;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use record::Record;

fn check(bytes: Bytes) {
    if let Ok(record) = Record::decode(bytes) {
        let again = record.encode();
        assert_eq!(Record::decode(again), Ok(record));
    }
}

fuzz_target!(|data: &[u8]| {
    check(Bytes::copy_from_slice(data));
    // Behind what a record begins with, which is found by chance only after a long time.
    check([b"TDLR\x01", data].concat().into());
});
