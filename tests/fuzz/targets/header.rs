//! Whatever a client sends is a key of visible ASCII, the same if it is quoted, or no key.
#![no_main]
#![allow(dead_code)]

#[path = "../../../src/idempotency/header.rs"]
mod header;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Some(key) = header::parse(data) {
        assert!((1..=header::MAX_LEN).contains(&key.len()));
        assert!(key.bytes().all(|byte| byte.is_ascii_graphic()));
        let escaped = key.replace('\\', r"\\").replace('"', r#"\""#);
        let quoted = format!("\"{escaped}\"");
        assert_eq!(header::parse(quoted.as_bytes()), Some(key));
    }
});
