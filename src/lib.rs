//! A [Tower](tower) layer that runs every request under a lock kept in Redis, so that requests to one resource run one at
//! a time, on all nodes of a service.
//!
//! From the top: a [`LockManager`] takes locks. One for each process, cheap to clone, it owns the connection to Redis,
//! the queues of waiting requests and the renewals. A [`DistributedLockLayer`] has it lock what a closure finds in a
//! request, a [`LockKey`], before the service inside sees that request, and keeps the lock until the response
//! has been sent. The handler finds a [`Lease`] in the request's extensions: its view of the lock, with a fencing token.
//!
//! ```
//! use std::time::Duration;
//! use axum::{Extension, Router, routing::post};
//! use tower_distributed_lock::{DistributedLockLayer, Lease, LockManager, key};
//!
//! async fn transfer(Extension(lease): Extension<Lease>) -> String {
//!     format!("alone with this account, fencing token {}", lease.fencing_token())
//! }
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! let locks = LockManager::in_memory(); // or LockManager::connect("redis://127.0.0.1:6379").await?
//! let app: Router = Router::new()
//!     .route("/accounts/{id}/transfer", post(transfer))
//!     .route_layer(
//!         DistributedLockLayer::new(locks, key::path("/accounts/{id}/{*rest}"))
//!             .wait(Duration::from_secs(5)),
//!     );
//! # let _ = app;
//! # }
//! ```
//!
//! An [`IdempotencyLayer`] goes one step further: it runs the service once for each idempotency key or webhook, and gives
//! every duplicate the same answer.
//!
//! # What to read for what you want
//!
//! - Answer 409 instead of waiting, wait, keep the lock for the head of the response only, run without Redis: the settings
//!   of [`DistributedLockLayer`].
//! - Lock an account, an order, a header's value, what the body says: [`key`], [`DistributedLockLayer::from_extension`].
//! - Handle a webhook or a payment once, however often it arrives: [`idempotency`].
//! - Let a request run to its end when its client leaves: [`DetachLayer`].
//! - Take a lock without HTTP: [`LockManager::acquire`], [`LockGuard`].
//! - Change the time to live, the prefix, the timeouts: [`LockManagerBuilder`].
//! - Answer otherwise than with problem+json: [`DistributedLockLayer::rejection`], [`Rejection`](lock::Rejection).
//!
//! # Guarantees and limits
//!
//! As long as one Redis server keeps its data, and its clock is not set forward, no two holders have a lock at the same time, if they stop when they are
//! told that it is [lost](Lease::lost); and that is told before the server can have expired it. With the default
//! settings, the request is stopped and answered with 503.
//!
//! A lock with a time to live cannot promise more. A process may be stopped for longer than the time to live, and go on before
//! it has looked; a promoted replica, or a server restarted without its data, may not know of the last locks (unless
//! [`quarantine`](LockManagerBuilder::quarantine) is on). Then there can be two holders for a while. What still keeps their writes apart is the [fencing token](Lease::fencing_token), which
//! is larger for every later holder: send it along with every write, and have the storage refuse a lower one than it has seen.
//! [Martin Kleppmann describes why](https://martin.kleppmann.com/2016/02/08/how-to-do-distributed-locking.html).
//!
//! The README has the whole list, and when not to use this crate; `SECURITY.md` says what is trusted.
//!
//! # How it works
//!
//! The lock of a key is a string in Redis, set with `NX` and `PX` to a token that is used once. All that is done to it is done by
//! one Lua script, which carries out what has queued up in the process since its last call, in one round trip:
//!
//! - *acquire* takes a free lock; or puts the process, not the request, into the key's queue, and tells the holder that it is wanted;
//! - *release* gives the lock to the first living process of the queue, and publishes that to its inbox; or deletes it;
//! - *renew* prolongs what is still ours, and never creates anything;
//! - *complete* puts the answer to an idempotency key in the place of its lock, and tells all who wait.
//!
//! Inside of a process, requests for one key form a line of their own, and the lease passes from one to the next in memory, with
//! the next fencing token.
//!
//! # Features
//!
//! None is on by default. `tls`: `rediss://`, by rustls. `tracing`: events when a lock is acquired, refused, released or
//! lost, and a span `lock` around the handler. Keys appear there as [fingerprints](LockKey::fingerprint) only.
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod _guide;
mod clock;
pub mod detach;
mod error;
#[cfg(fuzzing)]
pub mod fuzzing;
mod http;
pub mod idempotency;
pub mod key;
mod lease;
pub mod lock;
mod manager;
mod shield;
mod store;
mod sync;
mod trace;

pub use self::detach::DetachLayer;
pub use self::error::{Error, ErrorKind};
pub use self::idempotency::IdempotencyLayer;
pub use self::key::LockKey;
pub use self::lease::{Lease, LostReason};
pub use self::lock::DistributedLockLayer;
pub use self::manager::{LockGuard, LockManager, LockManagerBuilder};

/// Runs the examples of the README as tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
