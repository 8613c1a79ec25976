//! [`LockKey`], the name of a lock, and functions that make one from a request.
//!
//! The functions of this module return closures for
//! [`DistributedLockLayer::new`](crate::DistributedLockLayer::new) and
//! [`IdempotencyLayer::scope`](crate::IdempotencyLayer::scope):
//!
//! | Function | The key of `POST /accounts/7/transfer` with `x-account: 7` |
//! |---|---|
//! | [`path("/accounts/{id}/transfer")`](path()) | `accounts:7`, the part of the path up to the last parameter |
//! | [`method_and_path()`] | `POST:/accounts/7/transfer` |
//! | [`header("x-account")`](header()) | `7` |
//! | [`scope("transfers", header("x-account"))`](scope()) | `transfers:7`, kept apart from the keys of other scopes |
//! | [`join(header("x-account"), path("/accounts/{id}/**"))`](join()) | `7:accounts%3A7`, both, each escaped as one part |
//!
//! ```
//! use tower_distributed_lock::{DistributedLockLayer, LockManager, key};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! let locks = LockManager::in_memory();
//! // One lock per account, whatever is done to it: /accounts/7, /accounts/7/transfer, …
//! let layer = DistributedLockLayer::new(locks, key::path("/accounts/{id}/**"));
//! # }
//! ```
//!
//! # A closure of your own
//!
//! A closure that takes the request's head does as well. It returns whatever [`IntoLockKey`] is
//! implemented for: text, a number, a tuple of these, `None` (no key), or an error. A tuple becomes
//! a key of several parts, as [`LockKey::join`] makes it:
//!
//! ```
//! use tower_distributed_lock::{DistributedLockLayer, LockManager};
//!
//! # fn layer(locks: LockManager) -> DistributedLockLayer {
//! DistributedLockLayer::new(locks, |req| {
//!     let order: u64 = req.headers.get("x-order")?.to_str().ok()?.parse().ok()?;
//!     Some(("order", order)) // the key order:7
//! })
//! # }
//! ```
//!
//! An array or a `Vec` is several keys, all of which the request then holds: see [`IntoLockKeys`],
//! and [several locks](crate::lock#several-locks) for why that is better than several layers.
//!
//! Other ways to make a key:
//!
//! | The key needs | |
//! |---|---|
//! | what an axum extractor returns, `Path<u64>` above all (feature `axum`) | [`from_extractor`](crate::DistributedLockLayer::from_extractor) |
//! | something asynchronous | [`new_async`](crate::DistributedLockLayer::new_async) |
//! | the body, or something that only an outer middleware knows | [`from_extension`] |
//!
//! # Requests without a key
//!
//! No request runs unlocked by mistake: where no key is found, the request is refused.
//!
//! | | Response | With [`optional_key()`] |
//! |---|---|---|
//! | the client left out what the key is made of: a header is missing, a closure returns `None` | 400 | runs without a lock |
//! | the service cannot have a key: the path does not match the pattern of [`path`](path()), or there is no [`LockKey`] in the extensions for [`from_extension`] | 500, and an error event (feature `tracing`) | runs without a lock |
//! | what is there cannot be a key: it is empty, or not text | 400 | 400 |
//!
//! [`optional_key()`]: crate::DistributedLockLayer::optional_key
//! [`from_extension`]: crate::DistributedLockLayer::from_extension
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
//!   of the number: parse it in the closure, or use
//!   [`from_extractor`](crate::DistributedLockLayer::from_extractor).
//! - **Clients can block each other** through keys that they choose. Put the caller's identity into
//!   the key where they should not.
//! - **A [`header`] is the whole key.** Give it a [`scope`], unless every key comes from that
//!   header.

mod extract;
mod into_lock_key;
mod key_map;
mod lock_key;
mod lock_keys;
mod pattern;

pub use self::extract::{header, join, method_and_path, path, scope};
pub use self::into_lock_key::{IntoLockKey, KeyResult};
pub(crate) use self::key_map::KeyMap;
pub(crate) use self::lock_key::Kind;
pub use self::lock_key::LockKey;
pub use self::lock_keys::{IntoLockKeys, KeysResult, LockKeys};
