//! Short answers to what is asked again and again, with the lines to copy.
//!
//! # Stop work when the lock is lost
//!
//! A handler under a layer is stopped by the layer. Work of your own is not, unless it runs in
//! [`LockManager::with_lock`](crate::LockManager::with_lock). With a guard, it is one `select!`:
//! the work is dropped where it awaits, before another holder can have the lock.
//!
//! ```
//! use tower_distributed_lock::{Error, LockGuard};
//!
//! async fn under(guard: LockGuard) -> Result<(), Error> {
//!     tokio::select! {
//!         biased; // the loss goes first
//!         reason = guard.lost() => eprintln!("stopped: the lock was lost ({reason:?})"),
//!         () = work() => {}
//!     }
//!     guard.release().await // says whether the lock was held until here
//! }
//! # async fn work() {}
//! ```
//!
//! # Read first, then write
//!
//! A lock that is shared is not upgraded: two readers that waited for each other to leave would
//! wait for ever. Release it, take it again alone, and look again at what was read:
//!
//! ```
//! use std::time::Duration;
//! use tower_distributed_lock::{Error, LockManager};
//!
//! async fn fill(locks: &LockManager) -> Result<(), Error> {
//!     let wait = Duration::from_secs(5);
//!     let reading = locks.acquire_shared("cache:7", wait).await?;
//!     if is_filled().await {
//!         return Ok(());
//!     }
//!     reading.release().await?;
//!     let writing = locks.acquire("cache:7", wait).await?;
//!     if !is_filled().await { // another may have been faster
//!         compute_and_store(writing.fencing_token()).await;
//!     }
//!     Ok(())
//! }
//! # async fn is_filled() -> bool { true }
//! # async fn compute_and_store(_: u64) {}
//! ```
//!
//! # A WebSocket, or work after the response
//!
//! The lock ends with the response, and that of a WebSocket is its 101. The handler [takes the lock
//! over](crate::Lease::take_over), and hands the guard to the task that goes on:
//!
//! ```
//! use axum::{Extension, http::StatusCode};
//! use tower_distributed_lock::{Lease, LockGuard};
//!
//! async fn start(Extension(lease): Extension<Lease>) -> StatusCode {
//!     let Some(guard) = lease.take_over() else {
//!         return StatusCode::SERVICE_UNAVAILABLE; // lost just now
//!     };
//!     tokio::spawn(go_on(guard));
//!     StatusCode::ACCEPTED
//! }
//!
//! async fn go_on(guard: LockGuard) { /* select on guard.lost(), as above */ }
//! # let _ = start;
//! ```
//!
//! In the repository, `examples/websocket.rs` does so with axum. A lock is lost when it has been
//! held for [`max_hold`](crate::LockManagerBuilder::max_hold): five minutes, unless that is set.
//!
//! # A lock inside its own lock
//!
//! Locks are not re-entrant. A handler that acquires the key which its layer holds waits for
//! itself, until its time is over (`TimedOut`, or `Held` without a wait). Pass the
//! [`Lease`](crate::Lease) down to the code that needs to know that the lock is held, and have that
//! code take none:
//!
//! ```
//! use tower_distributed_lock::Lease;
//!
//! async fn book(under: &Lease, amount: u64) {
//!     debug_assert!(under.is_held());
//!     // …and the fencing token goes along with the write.
//! #   let _ = (amount, under.fencing_token());
//! }
//! ```
//!
//! A layer inside a layer with the same manager and key takes the lock once.
//!
//! # Two locks for one request
//!
//! Two *different* locks inside each other, by two layers or two calls, can wait for each other.
//! Take them together: by one layer whose closure returns [several
//! keys](crate::lock#several-locks), or by one call. Where that cannot be, take them in one order
//! everywhere.
//!
//! ```
//! use std::time::Duration;
//! use tower_distributed_lock::{Error, LockManager};
//!
//! async fn merge(locks: &LockManager, one: u64, other: u64) -> Result<(), Error> {
//!     let keys = [("account", one), ("account", other)];
//!     let guards = locks.acquire_all(keys, Duration::from_secs(5)).await?;
//!     tokio::select! {
//!         biased; // the loss of either goes first
//!         reason = guards.lost() => eprintln!("stopped: a lock was lost ({reason:?})"),
//!         () = work() => {}
//!     }
//!     guards.release().await
//! }
//! # async fn work() {}
//! ```
//!
//! # A key from the claims of a JWT
//!
//! The layer that verifies the token leaves the claims in the request's extensions, and the lock is
//! inside it. Never make a key of a token that is not verified: anyone could block another's key.
//!
//! ```
//! use tower_distributed_lock::{DistributedLockLayer, LockKey, LockManager};
//!
//! #[derive(Clone)]
//! struct Claims {
//!     sub: String,
//! }
//!
//! fn one_at_a_time_for_each_user(locks: LockManager) -> DistributedLockLayer {
//!     DistributedLockLayer::new(locks, |req| {
//!         let claims = req.extensions.get::<Claims>()?; // without claims: 400
//!         Some(LockKey::join(["user", &claims.sub]))
//!     })
//! }
//! # let _ = one_at_a_time_for_each_user;
//! ```
//!
//! # Fencing tokens in JSON
//!
//! A token has more than 53 bits. JavaScript reads a JSON number as a double, and two tokens that
//! follow each other may be one number there: send them as strings, and compare them as `BigInt`.
//! The same holds for other parsers that read numbers as floating-point.
//!
//! ```
//! # use tower_distributed_lock::Lease;
//! fn to_json(lease: &Lease) -> String {
//!     format!(r#"{{"fencing_token":"{}"}}"#, lease.fencing_token())
//! }
//! ```
//!
//! A column for it is a signed 64-bit integer (`BIGINT`).
//!
//! # Unix sockets
//!
//! The URL of a Redis behind a Unix socket has the path, and the database behind it:
//!
//! ```
//! # use tower_distributed_lock::LockManager;
//! let locks = LockManager::builder().connect_lazy("redis+unix:///run/redis/redis.sock?db=1")?;
//! # let _ = locks;
//! # Ok::<(), tower_distributed_lock::Error>(())
//! ```
//!
//! The service itself may listen on one, too: the layers know nothing of sockets.
//!
//! # A service that is not `Clone`
//!
//! Both layers need a service that is `Clone`, as each request waits with one of its own. Put
//! tower's buffer between: its handle is `Clone`, and the service runs in a task of its own.
//!
//! ```
//! use std::convert::Infallible;
//! use http::{Request, Response};
//! use tower::{ServiceBuilder, service_fn};
//! use tower_distributed_lock::{DistributedLockLayer, LockManager};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! # let not_clone = service_fn(|_: Request<String>| async {
//! #     Ok::<_, Infallible>(Response::new(String::new()))
//! # });
//! let service = ServiceBuilder::new()
//!     .layer(DistributedLockLayer::new(LockManager::in_memory(), |_| "a"))
//!     .buffer(64)
//!     .service(not_clone);
//! # tower::ServiceExt::<Request<String>>::oneshot(service, Request::default()).await.unwrap();
//! # }
//! ```
//!
//! Its errors are those of the buffer then (`BoxError`). With axum, put a `HandleErrorLayer`
//! outside.
//!
//! # One service of a tonic server
//!
//! `Server::builder().layer(…)` applies to all services of a server. For one of them, tonic's
//! `LayerExt` keeps the name by which the router finds the service:
//!
//! ```text
//! use tonic::service::LayerExt;
//!
//! let accounts = lock.named_layer(AccountsServer::new(accounts));
//! Server::builder().add_service(accounts).add_service(health)
//! ```
