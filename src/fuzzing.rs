//! Ways in for `fuzz/`: all that Redis or a stranger may hand in. Each must come to an end, and to what is asserted here.
//!
//! Only there with `--cfg fuzzing`, which `cargo fuzz` sets.

#![allow(missing_docs)]

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request};

use crate::http::grpc;
use crate::idempotency::{Record, parse_key, seal};
use crate::key;
use crate::key::LockKey;

use crate::store::fuzzing::manifest;
pub use crate::store::fuzzing::{push, reply};

/// What stands in Redis as a record.
pub fn record(bytes: &[u8]) {
    let check = |bytes: Bytes| {
        if let Ok(record) = Record::decode(bytes) {
            assert_eq!(Record::decode(record.encode()), Ok(record));
        }
    };
    check(Bytes::copy_from_slice(bytes));
    // Between a record's beginning and its checksum, which are found by chance only after a long
    // time.
    check(seal([b"TDLR\x01", bytes].concat()[..].into()));
    manifest(bytes);
    manifest(&[b"TDLM\x01", bytes].concat());
}

/// A request's headers, and what is made of them.
pub fn header(bytes: &[u8]) {
    if let Some(key) = parse_key(bytes) {
        assert!((1..=255).contains(&key.len()));
        assert!(key.bytes().all(|byte| byte.is_ascii_graphic()));
        let escaped = key.replace('\\', r"\\").replace('"', r#"\""#);
        assert_eq!(parse_key(format!("\"{escaped}\"").as_bytes()), Some(key));
    }
    let Ok(value) = HeaderValue::from_bytes(bytes) else {
        return;
    };
    let mut headers = HeaderMap::new();
    headers.insert("grpc-timeout", value.clone());
    headers.insert("grpc-status", value.clone());
    headers.insert("content-type", value.clone());
    let _ = (grpc::timeout(&headers), grpc::status(&headers));
    let _ = grpc::is_grpc(&headers);
    headers.insert("content-type", HeaderValue::from_static("application/grpc"));
    let _ = grpc::timeout(&headers);
    let request = Request::get("/").header("x-key", value).body(()).unwrap();
    if let Ok(Some(key)) = key::header("x-key")(&request.into_parts().0) {
        check(&key);
    }
}

/// A request's path.
pub fn path(path: &str) {
    let Ok(request) = Request::get(path).body(()) else {
        return;
    };
    let (parts, ()) = request.into_parts();
    for found in [
        key::path("/accounts/{id}/{*rest}")(&parts),
        key::path("/{a}/{b}")(&parts),
        key::method_and_path()(&parts),
        key::scope("a:b", key::method_and_path())(&parts),
    ] {
        if let Ok(Some(key)) = found {
            check(&key);
        }
    }
}

fn check(key: &LockKey) {
    let text = key.as_str();
    assert!(!text.is_empty() && text.len() <= LockKey::MAX_LEN);
    // A short one may stand in any text.
    assert!(text.len() < 24 || !format!("{key:?}").contains(text));
}
