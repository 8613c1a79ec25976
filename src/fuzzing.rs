//! Entry points for `fuzz/`: everything that comes from Redis or from a stranger. Each must come to
//! an end, and keep what is asserted here.
//!
//! It is compiled only with `--cfg fuzzing`, which `cargo fuzz` sets.

#![allow(missing_docs)]

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request};

use crate::http::grpc;
use crate::idempotency::{StoredResponse, parse_key, seal};
use crate::key;
use crate::key::LockKey;
use crate::store::fuzzing::manifest;
pub use crate::store::fuzzing::{push, reply};

/// Reads bytes that stand in Redis as a stored response, or as the manifest of a long one.
pub fn record(bytes: &[u8]) {
    let check = |bytes: Bytes| {
        if let Ok(stored) = StoredResponse::decode(bytes) {
            assert_eq!(StoredResponse::decode(stored.encode()), Ok(stored));
        }
    };
    check(Bytes::copy_from_slice(bytes));
    // Between the right beginning and the right checksum, which the fuzzer would find by chance
    // only after a long time.
    check(seal([b"TDLR\x01", bytes].concat()[..].into()));
    manifest(bytes);
    manifest(&[b"TDLM\x01", bytes].concat());
}

/// Reads the value of a header in all the ways in which this crate reads headers.
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
    if let Ok(key) = key::header("x-key")(&request.into_parts().0) {
        check(&key);
    }
}

/// Makes keys of a request's path.
pub fn path(path: &str) {
    let Ok(request) = Request::get(path).body(()) else {
        return;
    };
    let (parts, ()) = request.into_parts();
    for found in [
        key::path("/accounts/{id}/**")(&parts),
        key::path("/{a}/{b}")(&parts),
        key::path("/{a}/b/{*rest}")(&parts),
        key::method_and_path()(&parts),
        key::scope("a:b", key::method_and_path())(&parts),
    ] {
        if let Ok(key) = found {
            check(&key);
        }
    }
}

fn check(key: &LockKey) {
    let text = key.as_str();
    assert!(!text.is_empty() && text.len() <= LockKey::MAX_LEN);
    // A short key may stand in the hash by chance.
    assert!(text.len() < 24 || !format!("{key:?}").contains(text));
}
