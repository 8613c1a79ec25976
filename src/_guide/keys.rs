//! What a request locks: how to choose keys, and how to keep clients from misusing them.
//!
//! A [`LockKey`](crate::LockKey) is the name of a lock. Requests with equal keys run one at a time;
//! requests with different keys have nothing to do with each other. So make the key of what must
//! not be changed by two at once, and of nothing more: a key that also holds the method, say, lets
//! a `POST` and a `DELETE` of one account overlap.
//!
//! # Keys from a request's head
//!
//! The functions of [`key`](crate::key) return closures for
//! [`DistributedLockLayer::new`](crate::DistributedLockLayer::new):
//!
//! | | Key of `POST /accounts/7/transfer` with `x-account: 7` |
//! |---|---|
//! | [`key::path("/accounts/{id}/transfer")`](crate::key::path) | `accounts:7`: the path up to the last parameter, so that all routes to one account share its lock |
//! | [`key::path("/accounts/{id}/**")`](crate::key::path) | `accounts:7`: for one layer over many routes |
//! | [`key::header("x-account")`](crate::key::header) | `7` |
//! | [`key::method_and_path()`](crate::key::method_and_path) | `POST:/accounts/7/transfer` |
//! | [`key::scope("transfers", key::header("x-account"))`](crate::key::scope) | `transfers:7` |
//! | [`key::join(key::header("x-account"), key::method_and_path())`](crate::key::join) | both, escaped, so that they cannot run into each other |
//! | a closure, `\|req\| Some(("account", number_in(req)?))` | `account:7`: what it returns, a text, a number, or a tuple of these |
//!
//! Paths are percent-decoded first, as routers do: `/accounts/%37` is `/accounts/7`. Keys longer
//! than 512 bytes are replaced by their SHA-256.
//!
//! To make a key of several parts, return a tuple, or use [`LockKey::join`](crate::LockKey::join),
//! and not `format!`. The separator is escaped, so a client that sends `a:b` as one part does not
//! name the lock of the parts `a` and `b`.
//!
//! # A key is text
//!
//! If the handler parses `7`, `07` and `+7` to the same number, these are three locks on one
//! account. Make the key of the number. With axum and the feature `axum`, key and handler use the
//! same extractor:
//!
//! ```
//! use axum::{Router, extract::Path, routing::post};
//! use tower_distributed_lock::{DistributedLockLayer, LockManager};
//!
//! # #[cfg(feature = "axum")]
//! # fn app() -> Router {
//! let lock = DistributedLockLayer::from_extractor(
//!     LockManager::in_memory(),
//!     |Path(id): Path<u64>| ("account", id), // the key account:7
//! );
//! Router::new().route("/accounts/{id}", post(|| async {}).route_layer(lock))
//! # }
//! ```
//!
//! Without axum, parse the text in the closure, and return the number.
//!
//! # Keys from elsewhere
//!
//! A closure sees the head of a request only, and returns at once.
//!
//! - Something asynchronous (a session, a database) goes into the future of
//!   [`DistributedLockLayer::new_async`](crate::DistributedLockLayer::new_async), or into an
//!   extractor of your own.
//! - If the key depends on the body, have a middleware read it and put a
//!   [`LockKey`](crate::LockKey) into the request's extensions. The layer takes it from there with
//!   [`DistributedLockLayer::from_extension`](crate::DistributedLockLayer::from_extension).
//!
//! ```
//! use axum::{Router, body::{Body, to_bytes}, extract::Request, http::StatusCode};
//! use axum::{middleware::{Next, from_fn}, response::Response, routing::post};
//! use tower_distributed_lock::{DistributedLockLayer, LockManager, key::IntoLockKey};
//!
//! async fn key_in_the_body(request: Request, next: Next) -> Result<Response, StatusCode> {
//!     let (mut head, body) = request.into_parts();
//!     let body = to_bytes(body, 64 * 1024).await.map_err(|_| StatusCode::PAYLOAD_TOO_LARGE)?;
//!     let id: u64 = std::str::from_utf8(&body).ok().and_then(|text| text.parse().ok())
//!         .ok_or(StatusCode::UNPROCESSABLE_ENTITY)?;
//!     let key = ("account", id).into_lock_key().expect("neither part is empty");
//!     head.extensions.insert(key);
//!     Ok(next.run(Request::from_parts(head, Body::from(body))).await)
//! }
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! let lock = DistributedLockLayer::from_extension(LockManager::in_memory());
//! let app: Router = Router::new()
//!     .route("/transfers", post(|| async {}))
//!     .route_layer(lock)
//!     .route_layer(from_fn(key_in_the_body)); // the last layer is the outermost
//! # let _ = app;
//! # }
//! ```
//!
//! # Several keys
//!
//! A request that changes two things locks both, in one layer: its closure returns an array or a
//! `Vec` of keys. A tuple is one key.
//!
//! ```
//! use tower_distributed_lock::{DistributedLockLayer, LockManager};
//!
//! # fn layer(locks: LockManager) -> DistributedLockLayer {
//! DistributedLockLayer::new(locks, |req| {
//!     let account = |name| req.headers.get(name)?.to_str().ok()?.parse::<u64>().ok();
//!     Some([("account", account("x-from")?), ("account", account("x-to")?)])
//! })
//! # }
//! ```
//!
//! It holds all of them or none, and cannot deadlock with requests that name the same keys the
//! other way round. Two layers, one for each key, can: see [several
//! locks](crate::lock#several-locks). Without HTTP, it is
//! [`LockManager::acquire_all`](crate::LockManager::acquire_all). In the repository,
//! `examples/transfer.rs` moves money between accounts in SQLite.
//!
//! An [`IdempotencyLayer`](crate::IdempotencyLayer) has one key for each request.
//!
//! # Requests without a key
//!
//! A request whose key is not found does not run: 400 if its client left out a header, say, and 500
//! if the service is put together in such a way that there can be no key. The feature `tracing`
//! tells of the latter at the level error. The [table in `key`](crate::key#requests-without-a-key)
//! has all cases. Put the layer on the routes that it is for, or say that the others need no lock:
//! [`optional_key`](crate::DistributedLockLayer::optional_key).
//!
//! # Keys that clients choose
//!
//! Keys often come from a stranger's request. Assume that they are chosen to do harm.
//!
//! - **Clients can block each other** through keys that they choose. Put the caller's identity, as
//!   the authentication outside has verified it, into the key where they should not.
//! - **A list of keys has a limit**: [`max_keys`](crate::LockManagerBuilder::max_keys), by default
//!   16. A request with more is answered with 400.
//! - **[`key::header`](crate::key::header) uses the value as the whole key.** Give it a
//!   [scope](crate::key::scope), unless every key of this manager comes from that header. Otherwise
//!   a client that sends `accounts:7` takes the lock of an account.
//! - **In a nested axum router** the path is what is left of it there. Two routers at `/a` and `/b`
//!   share their keys, unless each has a scope.
//!
//! No key appears in an error, a response or a log. Events of the feature `tracing` show
//! [fingerprints](crate::LockKey::fingerprint).
