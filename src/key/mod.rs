//! [`LockKey`], the name of a lock, and functions that make one from a request.
//!
//! The functions of this module return closures for
//! [`DistributedLockLayer::new`](crate::DistributedLockLayer::new) and
//! [`IdempotencyLayer::scope`](crate::IdempotencyLayer::scope):
//!
//! | Function | The key |
//! |---|---|
//! | [`path`] | the part of the path that a pattern names |
//! | [`method_and_path`] | `POST:/accounts/7` |
//! | [`header`] | the value of a request header |
//! | [`scope`] | that of another closure, kept apart from the keys of other scopes |
//! | [`join`] | those of two other closures, joined |
//!
//! ```
//! use tower_distributed_lock::{DistributedLockLayer, LockManager, key};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! let locks = LockManager::in_memory();
//! // One lock per account, whatever is done to it: /accounts/7, /accounts/7/transfer, …
//! let layer = DistributedLockLayer::new(locks, key::path("/accounts/{id}/{*rest}"));
//! # }
//! ```
//!
//! # A closure of your own
//!
//! A closure that takes the request's head does as well. It returns whatever [`IntoLockKey`] is
//! implemented for: a key, `None` (no lock), or an error (400). [`LockKey::join`] makes a key of
//! several parts:
//!
//! ```
//! use tower_distributed_lock::{DistributedLockLayer, LockKey, LockManager};
//!
//! # fn layer(locks: LockManager) -> DistributedLockLayer {
//! DistributedLockLayer::new(locks, |req| {
//!     let order = req.headers.get("x-order")?.to_str().ok()?;
//!     Some(LockKey::join(["order", order]))
//! })
//! # }
//! ```
//!
//! A key that needs the body, the router's path parameters or something asynchronous is made by an
//! outer middleware: see
//! [`DistributedLockLayer::from_extension`](crate::DistributedLockLayer::from_extension).
//!
//! # Keys come from strangers
//!
//! A client often chooses the text that becomes a key. Three rules keep that safe:
//!
//! - **Parts do not run together.** [`LockKey::join`] escapes its separator, so `("a:b", "c")` and
//!   `("a", "b:c")` are two locks.
//! - **Size is bounded.** A key longer than [`LockKey::MAX_LEN`] bytes (512) is replaced by its
//!   SHA-256.
//! - **Keys are not printed.** `Debug` and the crate's `tracing` events show a short hash.
//!
//! Three more are up to you:
//!
//! - **A key is text.** If the handler parses `7`, `07` and `+7` to the same number, make the key of
//!   the number: parse it in a middleware, and use
//!   [`from_extension`](crate::DistributedLockLayer::from_extension).
//! - **Clients can block each other** through keys that they choose. Put the caller's identity into
//!   the key where they should not.
//! - **A [`header`] is the whole key.** Give it a [`scope`], unless every key comes from that
//!   header.

mod extract;
mod into_lock_key;
mod lock_key;
mod pattern;

pub use self::extract::{header, join, method_and_path, path, scope};
pub use self::into_lock_key::{IntoLockKey, KeyResult};
pub(crate) use self::lock_key::Kind;
pub use self::lock_key::LockKey;

#[cfg(test)]
mod tests {
    use http::request::Parts;
    use proptest::prelude::*;

    use super::pattern::PathPattern;
    use super::*;
    use crate::error::ErrorKind;

    fn parts(uri: &str) -> Parts {
        let (parts, ()) = http::Request::post(uri).body(()).unwrap().into_parts();
        parts
    }

    fn key(parts: &[&str]) -> Option<LockKey> {
        Some(LockKey::join(parts).unwrap())
    }

    #[test]
    fn an_empty_key_and_an_empty_part_are_refused() {
        assert_eq!(LockKey::new("").unwrap_err().kind(), ErrorKind::InvalidKey);
        assert!(LockKey::join(["a", ""]).is_err());
        assert!(LockKey::join([] as [&str; 0]).is_err());
    }

    #[test]
    fn a_long_key_is_hashed_and_differs_from_its_neighbours() {
        let long = "k".repeat(LockKey::MAX_LEN + 1);
        let hashed = LockKey::new(&long).unwrap();
        assert_eq!(hashed.as_str().len(), "sha256:".len() + 64);
        assert_ne!(hashed, LockKey::new(long + "k").unwrap());
        let whole = LockKey::new("k".repeat(LockKey::MAX_LEN)).unwrap();
        assert_eq!(whole.as_str().len(), LockKey::MAX_LEN);
    }

    #[test]
    fn a_short_key_cannot_pose_as_the_hash_of_a_long_one() {
        let hashed = LockKey::new("k".repeat(4000)).unwrap();
        assert_ne!(LockKey::new(hashed.as_str()).unwrap(), hashed);
    }

    #[test]
    fn line_breaks_and_braces_in_parts_are_escaped() {
        let key = LockKey::join(["a\r\nb", "{c}"]).unwrap();
        assert_eq!(key.as_str(), "a%0D%0Ab:%7Bc%7D");
    }

    #[test]
    fn debug_does_not_show_the_key() {
        let key = LockKey::new("customer@example.com").unwrap();
        assert!(!format!("{key:?}").contains("customer"));
    }

    #[test]
    fn a_pattern_takes_its_parameters_and_leaves_the_rest() {
        let account = path("/accounts/{id}/{*rest}");
        assert_eq!(
            account(&parts("/accounts/7")).unwrap(),
            key(&["accounts", "7"])
        );
        assert_eq!(
            account(&parts("/accounts/7/")).unwrap(),
            key(&["accounts", "7"])
        );
        assert_eq!(
            account(&parts("/accounts/7/transfer?x=1")).unwrap(),
            key(&["accounts", "7"])
        );
        assert_eq!(account(&parts("/accounts")).unwrap(), None);
        assert_eq!(account(&parts("/users/7")).unwrap(), None);
        let exact = path("/accounts/{id}");
        assert_eq!(exact(&parts("/accounts/7/transfer")).unwrap(), None);
        assert_eq!(path("/")(&parts("/")).unwrap(), key(&["/"]));
    }

    #[test]
    fn another_spelling_of_a_path_is_the_same_lock() {
        let account = path("/accounts/{id}");
        assert_eq!(
            account(&parts("/%61ccounts/%37")).unwrap(),
            account(&parts("/accounts/7")).unwrap()
        );
        assert_eq!(
            method_and_path()(&parts("/a/%37")).unwrap(),
            method_and_path()(&parts("/a/7")).unwrap()
        );
    }

    #[test]
    fn a_slash_inside_a_parameter_stays_inside() {
        let nested = path("/a/{x}/{y}");
        assert_ne!(
            nested(&parts("/a/b%2Fc/d")).unwrap(),
            nested(&parts("/a/b/c%2Fd")).unwrap()
        );
    }

    #[test]
    fn an_empty_parameter_and_broken_utf8_are_invalid() {
        let account = path("/accounts/{id}");
        for uri in ["/accounts/", "/accounts/%ff"] {
            let error = account(&parts(uri)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidKey, "{uri}");
        }
    }

    #[test]
    fn wrong_patterns_are_refused() {
        for pattern in ["accounts", "/a{id}", "/{}", "/{*}", "/{*rest}/a", "/a/{id"] {
            assert!(PathPattern::parse(pattern).is_err(), "{pattern}");
        }
    }

    #[test]
    fn a_header_is_a_key_only_if_it_is_one_readable_value() {
        let account = header("x-account");
        let mut request = parts("/");
        assert_eq!(account(&request).unwrap(), None);
        request.headers.insert("x-account", "7".parse().unwrap());
        assert_eq!(account(&request).unwrap(), Some(LockKey::new("7").unwrap()));
        request.headers.append("x-account", "8".parse().unwrap());
        assert!(account(&request).is_err());
        let raw = http::HeaderValue::from_bytes(b"\xff").unwrap();
        request.headers.insert("x-account", raw);
        assert_eq!(account(&request).unwrap_err().kind(), ErrorKind::InvalidKey);
    }

    #[test]
    fn scopes_and_joins_keep_keys_apart() {
        let mut request = parts("/accounts/7");
        request.headers.insert("x-tenant", "a:b".parse().unwrap());
        let by_tenant = scope("t", header("x-tenant"));
        assert_eq!(by_tenant(&request).unwrap().unwrap().as_str(), "t:a:b");
        let both = join(header("x-tenant"), path("/accounts/{id}"));
        assert_eq!(
            both(&request).unwrap().unwrap().as_str(),
            "a%3Ab:accounts%3A7"
        );
    }

    proptest! {
        #[test]
        fn joined_keys_are_equal_only_if_their_parts_are(
            a in prop::collection::vec("[ab:%{}\r]{1,3}", 1..4),
            b in prop::collection::vec("[ab:%{}\r]{1,3}", 1..4),
        ) {
            let equal = LockKey::join(&a).unwrap() == LockKey::join(&b).unwrap();
            prop_assert_eq!(equal, a == b);
        }
    }
}
