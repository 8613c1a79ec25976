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
//! - **A key is text.** If the handler parses `7`, `07` and `+7` to the same number, make the key
//!   of the number: parse it in a middleware, and use
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
