//! How to test a service that uses these layers.
//!
//! [`LockManager::in_memory`](crate::LockManager::in_memory) follows the same rules as one on
//! Redis: order, time to live, loss, fencing tokens, stored responses. Its time is that of the
//! tokio runtime, so a test can hold it still: `#[tokio::test(start_paused = true)]`, with tokio's
//! feature `test-util`. Such a test does not sleep, and does not depend on how fast the machine is.
//!
//! # Two at once
//!
//! Build the router as your service does, with the manager as an argument, and send it requests
//! with tower's `oneshot`.
//!
//! ```
//! use std::time::Duration;
//! use axum::{Router, body::Body, http::Request, routing::post};
//! use tower::ServiceExt;
//! use tower_distributed_lock::{DistributedLockLayer, LockManager, key};
//!
//! fn app(locks: &LockManager) -> Router {
//!     let transfer = || tokio::time::sleep(Duration::from_secs(2));
//!     let lock = DistributedLockLayer::new(locks.clone(), key::path("/accounts/{id}"));
//!     Router::new().route("/accounts/{id}", post(transfer).route_layer(lock))
//! }
//!
//! // In your tests: #[tokio::test(start_paused = true)]
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() {
//! let app = app(&LockManager::in_memory());
//! let send = |path| app.clone().oneshot(Request::post(path).body(Body::empty()).unwrap());
//! let (first, second, other) =
//!     tokio::join!(send("/accounts/7"), send("/accounts/7"), send("/accounts/8"));
//! assert_eq!(first.unwrap().status(), 200);
//! assert_eq!(second.unwrap().status(), 409);
//! assert_eq!(other.unwrap().status(), 200);
//! # }
//! ```
//!
//! # A response that is still held
//!
//! A response holds its lock until its body has been read or dropped. A test that keeps the first
//! response in a variable finds the next request refused:
//!
//! ```
//! # use axum::{Router, body::Body, http::Request, routing::post};
//! # use http_body_util::BodyExt;
//! # use tower::ServiceExt;
//! # use tower_distributed_lock::{DistributedLockLayer, LockManager, key};
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() {
//! # let lock = DistributedLockLayer::new(LockManager::in_memory(), key::path("/accounts/{id}"));
//! # let done = post(|| async { "done" }).route_layer(lock);
//! # let app: Router = Router::new().route("/accounts/{id}", done);
//! # let send = |path| app.clone().oneshot(Request::post(path).body(Body::empty()).unwrap());
//! let first = send("/accounts/7").await.unwrap();
//! assert_eq!(send("/accounts/7").await.unwrap().status(), 409);
//! assert_eq!(first.into_body().collect().await.unwrap().to_bytes(), "done"); // or drop(first)
//! assert_eq!(send("/accounts/7").await.unwrap().status(), 200);
//! # }
//! ```
//!
//! # A lock that is lost
//!
//! In memory no Redis can be away: it is [`max_hold`](crate::LockManagerBuilder::max_hold) that
//! takes a lock from a handler. Set it below what the handler takes, and see what the handler
//! leaves behind when it is stopped.
//!
//! ```
//! # use std::time::Duration;
//! # use axum::{Router, body::Body, http::Request, routing::post};
//! # use tower::ServiceExt;
//! # use tower_distributed_lock::{DistributedLockLayer, LockManager, key};
//! # fn app(locks: &LockManager) -> Router {
//! #     let transfer = || tokio::time::sleep(Duration::from_secs(2));
//! #     let lock = DistributedLockLayer::new(locks.clone(), key::path("/accounts/{id}"));
//! #     Router::new().route("/accounts/{id}", post(transfer).route_layer(lock))
//! # }
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() {
//! let locks = LockManager::builder().max_hold(Duration::from_secs(1)).in_memory().unwrap();
//! let request = Request::post("/accounts/7").body(Body::empty()).unwrap();
//! let response = app(&locks).oneshot(request).await.unwrap();
//! assert_eq!(response.status(), 503);
//! # }
//! ```
//!
//! # Redis away
//!
//! A manager that can reach nothing is one of
//! [`connect_lazy`](crate::LockManagerBuilder::connect_lazy) with a port at which nothing listens.
//!
//! ```
//! # use tower_distributed_lock::{ErrorKind, LockManager};
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let locks = LockManager::builder().connect_lazy("redis://127.0.0.1:1").unwrap();
//! let error = locks.try_acquire("accounts:7").await.unwrap_err();
//! assert_eq!(error.kind(), ErrorKind::Unavailable);
//! # }
//! ```
//!
//! # A duplicate
//!
//! Send one request twice. The handler must have run once, and the second response must say so.
//! Send two at once as well, and one whose handler fails.
//!
//! ```
//! use std::sync::{Arc, atomic::{AtomicU32, Ordering}};
//! use axum::{Router, body::Body, http::Request, routing::post};
//! use tower::ServiceExt;
//! use tower_distributed_lock::{IdempotencyLayer, LockManager};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() {
//! let runs = Arc::new(AtomicU32::new(0));
//! let handler = {
//!     let runs = Arc::clone(&runs);
//!     move || async move { runs.fetch_add(1, Ordering::Relaxed).to_string() }
//! };
//! let once = IdempotencyLayer::webhook(LockManager::in_memory(), "webhook-id");
//! let app: Router = Router::new().route("/webhooks", post(handler).route_layer(once));
//! let deliver = || {
//!     let request = Request::post("/webhooks").header("webhook-id", "evt_1");
//!     app.clone().oneshot(request.body(Body::empty()).unwrap())
//! };
//! assert!(!deliver().await.unwrap().headers().contains_key("idempotent-replayed"));
//! assert_eq!(deliver().await.unwrap().headers()["idempotent-replayed"], "true");
//! assert_eq!(runs.load(Ordering::Relaxed), 1);
//! # }
//! ```
//!
//! # With a real Redis
//!
//! A few tests should run against one, as locks that cross processes do. Give every test a
//! [prefix](crate::LockManagerBuilder::prefix) of its own, so that tests on one server do not meet,
//! and a short [time to live](crate::LockManagerBuilder::ttl), so that a test that is killed leaves
//! nothing behind for long. Time cannot be held still there.
//!
//! Worth testing in your service, besides the above: that the storage refuses a write with an older
//! [fencing token](crate::Lease::fencing_token), that the key is the same for all spellings of a
//! resource, and that a request without a key gets what you intend.
