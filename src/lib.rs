//! A [Tower](tower) layer that runs every request under a lock kept in Redis: requests for one
//! resource run one at a time, on all nodes of a service.
//!
//! From the top: a [`LockManager`] takes locks. A process needs one; it is cheap to clone, and owns
//! the connection to Redis, the queues of waiting requests and the renewals. A
//! [`DistributedLockLayer`] finds a [`LockKey`] in each request, takes that lock before the service
//! inside sees the request, and keeps it until the response has been sent. The handler finds a
//! [`Lease`] in the request's extensions: its view of the lock, with a fencing token.
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
//! let locks = LockManager::in_memory(); // or connect("redis://127.0.0.1:6379").await?
//! let app: Router = Router::new()
//!     .route("/accounts/{id}/transfer", post(transfer))
//!     .route_layer(
//!         DistributedLockLayer::new(locks, key::path("/accounts/{id}/transfer"))
//!             .wait(Duration::from_secs(5)), // without it: 409 at once
//!     );
//! # let _ = app;
//! # }
//! ```
//!
//! An [`IdempotencyLayer`] goes one step further: it runs the service once for each idempotency key
//! or webhook, and gives every duplicate the same response.
//!
//! # Where to find what
//!
//! | To | read |
//! |---|---|
//! | answer 409, wait, hold the lock for the head of the response only, run without Redis | [`DistributedLockLayer`] |
//! | let requests that only read share a lock | [`DistributedLockLayer::mode`], [`LockManager::acquire_shared`] |
//! | lock an account, an order, a header's value, what the body says | [`key`], [`DistributedLockLayer::from_extension`] |
//! | make the key of what axum parses (feature `axum`), or of something asynchronous | [`DistributedLockLayer::from_extractor`], [`DistributedLockLayer::new_async`] |
//! | lock two accounts at once, without a deadlock | [several locks](lock#several-locks), [`LockManager::acquire_all`] |
//! | let requests run that name nothing to lock | [`DistributedLockLayer::optional_key`] |
//! | handle a webhook or a payment once, however often it arrives | [`IdempotencyLayer`] |
//! | let a request run to its end when its client leaves | [`DetachLayer`] |
//! | keep the lock for a WebSocket, or for work after the response | [`Lease::take_over`] |
//! | take a lock without HTTP | [`LockManager::with_lock`], [`LockManager::acquire`], [`LockGuard`] |
//! | do a job once on all nodes, forget that it was done | [`LockManager::once`], [`LockManager::forget`] |
//! | use Sentinel, a Cluster, a Unix socket, a `redis::Client`, passwords that are rotated | [topologies](_guide::topologies), [`RedisServer`] |
//! | see who holds a lock and who waits, take one away, drain before a shutdown | [`inspect`], [`LockManager::force_release`], [`LockManager::drain`] |
//! | look at all that on a page, live (feature `inspector`) | [the inspector](_guide::operations#the-inspector) |
//! | count, trace, alert | [`_guide::operations`], [`_guide::runbook`] |
//! | change the time to live, the prefix, the timeouts | [`LockManagerBuilder`] |
//! | answer otherwise than with problem+json | [`DistributedLockLayer::rejection`], [`Rejection`](lock::Rejection) |
//! | read from the beginning: keys, "once", guarantees, operations, testing, other clients | [the guide](_guide) |
//! | find the lines for a WebSocket, a JWT, a Unix socket, a service that is not `Clone` | [recipes](_guide::recipes) |
//!
//! # Guarantees and limits
//!
//! As long as one Redis server keeps its data, and its clock is not set forward, no two holders
//! have a lock at the same time, if they stop when they are told that it is [lost](Lease::lost).
//! They are told before the server can have expired it. With the default settings, the request is
//! stopped and answered with 503.
//!
//! A lock with a time to live cannot promise more. A process may be stopped for longer than the
//! time to live, and go on before it has looked. A promoted replica, or a server restarted without
//! its data, may not know of the last locks (unless [`quarantine`](LockManagerBuilder::quarantine)
//! is on, as it is with Sentinel). Then there can be two holders for a while. What still keeps
//! their writes apart is the [fencing token](Lease::fencing_token), which is larger for every later
//! holder: send it along with every write, and have the storage refuse a lower one than it has
//! seen.
//!
//! The guide has the [whole list](_guide::guarantees), and when not to use this crate.
//! `SECURITY.md` in the repository says what is trusted.
//!
//! # How it works
//!
//! The lock of a key is a string in Redis, set by `SET … NX PX` to a token that is used once. Where
//! no other process wants it, that one command takes it, and a script that compares and deletes
//! releases it. A counter gives the fencing tokens. Whatever has queued up in the process goes out
//! in one write, whatever its keys. Scripts for one lock each do the rest:
//!
//! - *acquire* puts the process, not the request, into the queue of a lock that is held, marks the
//!   lock as contended, and tells the holder;
//! - *grant* gives a contended lock, when it is released, to the first living process of the queue,
//!   and publishes that to its inbox;
//! - *share* joins the processes that share a lock, unless one waits to have it alone;
//! - *renew* prolongs a lock that the process still holds, and never creates one;
//! - *complete* puts the response to an idempotency key in the place of its lock, and tells all who
//!   wait.
//!
//! Inside a process, requests for one key form a line of their own, and the lease passes from one
//! to the next in memory, with the next fencing token.
//!
//! # Features
//!
//! None is on by default.
//!
//! - `axum`: [`Lease`] and [`Leases`] as extractors, and [`DistributedLockLayer::from_extractor`].
//! - `inspector`: [a web page](_guide::operations#the-inspector) that shows the locks of a process.
//! - `metrics`: [counters, gauges and histograms](_guide::operations#metrics), for the recorder
//!   that the program has installed.
//! - `tls`: `rediss://`, by rustls.
//! - `tracing`: [events](_guide::operations#events) when a lock is acquired, refused, released or
//!   lost, and spans while a request waits and while it holds. Keys appear there as
//!   [fingerprints](LockKey::fingerprint) only.
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod _guide;
mod clock;
pub mod detach;
mod error;
#[cfg(fuzzing)]
pub mod fuzzing;
mod http;
pub mod idempotency;
pub mod inspect;
#[cfg(feature = "inspector")]
#[cfg_attr(docsrs, doc(cfg(feature = "inspector")))]
pub mod inspector;
pub mod key;
mod lease;
pub mod lock;
mod manager;
mod mode;
mod observe;
mod shield;
mod store;
mod sync;

pub use self::detach::DetachLayer;
pub use self::error::{Error, ErrorKind};
pub use self::idempotency::IdempotencyLayer;
#[cfg(feature = "inspector")]
#[cfg_attr(docsrs, doc(cfg(feature = "inspector")))]
pub use self::inspector::inspector;
pub use self::key::LockKey;
pub use self::lease::{Lease, Leases, LostReason};
pub use self::lock::DistributedLockLayer;
pub use self::manager::{LockGuard, LockGuards, LockManager, LockManagerBuilder, Once};
pub use self::mode::Mode;
pub use self::store::{Credentials, RedisServer};

/// An idempotency key is one key. Several are refused by the compiler:
///
/// ```compile_fail,E0277
/// # use tower_distributed_lock::{IdempotencyLayer, LockManager};
/// IdempotencyLayer::webhook_by(LockManager::in_memory(), |_, _| ["a", "b"]);
/// ```
///
/// ```
/// # use tower_distributed_lock::{IdempotencyLayer, LockManager};
/// let _ = IdempotencyLayer::webhook_by(LockManager::in_memory(), |_, _| ("a", "b"));
/// ```
#[cfg(doctest)]
struct OneIdempotencyKey;

/// Runs the examples of the README as tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
