//! [`IdempotencyLayer`]: handled once, answered every time.
//!
//! Webhooks and payments arrive more than once: tried again after a timeout, delivered to two nodes at the same moment, sent
//! once more an hour later. This layer runs the service inside once for each idempotency key, keeps the answer, and gives it
//! to every duplicate.
//!
//! ```
//! use axum::{Router, routing::post};
//! use tower_distributed_lock::{IdempotencyLayer, LockManager, key};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! let locks = LockManager::in_memory(); // or LockManager::connect("redis://127.0.0.1:6379").await?
//! let app: Router = Router::new()
//!     // Whoever sends the same event again gets the same answer.
//!     .route(
//!         "/webhooks",
//!         post(|| async { "handled" })
//!             .route_layer(IdempotencyLayer::webhook(locks.clone(), "webhook-id")),
//!     )
//!     // Clients choose the keys of their payments: within the scope of each client.
//!     .route(
//!         "/payments",
//!         post(|| async { "paid" }).route_layer(
//!             IdempotencyLayer::new(locks)
//!                 .require_key(true)
//!                 .scope(key::join(key::header("x-user"), key::method_and_path())),
//!         ),
//!     );
//! # let _ = app;
//! # }
//! ```
//!
//! # What a request gets
//!
//! | A request whose key | gets | gRPC |
//! |---|---|---|
//! | is new | the answer of the service | the same |
//! | belongs to a request that still runs | 409; with [`wait`](IdempotencyLayer::wait), that one's answer | `ABORTED` |
//! | was completed, with the same payload | the same answer, marked `Idempotent-Replayed: true` | the same |
//! | was completed, with another payload | 422 | `INVALID_ARGUMENT` |
//! | was completed with an answer too long to keep | its status and headers, `Idempotent-Body: not-kept` | `ALREADY_EXISTS` |
//! | has a record that cannot be read | 500, and it does not run | `DATA_LOSS` |
//! | is not valid, or missing where it is required | 400 | `INVALID_ARGUMENT` |
//!
//! A body above [`max_request_body`](IdempotencyLayer::max_request_body) is 413, Redis out of reach 503: then nothing runs.
//!
//! # How it works
//!
//! The lock of a key and the record of its answer are one string in Redis. One command takes the lock, or returns the answer
//! that stands in its place. It is renewed while the service runs; the answer is put there in one step, if the lock is still
//! this run's. A run that lost the lock can never overwrite the answer of a later one. Whoever waits, on whatever node, is told
//! at once. An answer of more than 16 KiB is written beside it first, in parts; what is put there
//! in one step then leads to them.
//!
//! The request's body is read before the service is called, and the service runs in a task of its own: a client that leaves
//! stops neither the work nor the recording. An error, a panic, an answer that is not to be
//! [remembered](IdempotencyLayer::remember): the key is free again, and the next request runs. So it is when the process
//! dies, once the lock's [time to live](crate::LockManagerBuilder::ttl) has passed.
//!
//! # Which layer for what
//!
//! A [`DistributedLockLayer`](crate::DistributedLockLayer) runs *every* request, those for one resource one after the other. This
//! layer runs *one* request for each key. Together, each event is handled once, and the events of one account one at a time:
//! put this layer outside, so that a duplicate does not wait for the account. The other order works as well. An answer by which
//! a lock inside says that the request did not run is not kept.
//!
//! # Guarantees and limits
//!
//! "Exactly once" is more than any such layer can promise. What it promises: two runs for one key are never
//! under way at the same time, as long as Redis keeps its data and a run stops when it is told that its lock is lost; and
//! once an answer is recorded, none begins until its [retention](IdempotencyLayer::retention) is over.
//!
//! - **A process that dies** after its work and before the recording leaves the work done and no answer: the next delivery runs. So
//!   does one when Redis is lost at that moment; the client has its answer then, and the log an error.
//! - **A process that is stopped** for longer than the time to live may go on before it has looked, beside a second run.
//! - **Redis without its data**, after a restart, a failover or an eviction, knows no answers.
//!   Where only a part of a long one is gone, it cannot be read: 500, for as long as the rest is
//!   kept.
//!
//! Where twice would be a catastrophe, have the database refuse it: write the event's id, in a column that is unique, in the
//! transaction that does the work. This layer keeps the duplicates away from it, and gives them their answer.
//!
//! Keys come from strangers. Put the caller's identity into the [scope](IdempotencyLayer::scope), and this layer inside of
//! authentication, or of what verifies a webhook's signature: else a stranger can use up a key, or read another's answer.
//!
//! What is kept is kept in Redis' memory, headers and cookies included, as it was sent.

mod body;
mod header;
mod layer;
mod read;
mod record;
mod replay;
mod run;
mod service;

#[cfg(fuzzing)]
pub(crate) use self::{
    header::parse as parse_key,
    record::{Record, seal},
};

pub use self::body::IdempotencyBody;
pub use self::layer::IdempotencyLayer;
pub use self::service::{Idempotency, IdempotencyFuture};
pub use crate::http::{OnLost, Rejection, RejectionKind};
