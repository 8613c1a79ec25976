//! The same locks outside of HTTP, and in other clients of Redis.
//!
//! # Background jobs
//!
//! A job takes the same lock as a request, from the same [`LockManager`](crate::LockManager):
//!
//! ```
//! use std::time::Duration;
//! use tower_distributed_lock::{Error, LockManager};
//!
//! async fn job(locks: &LockManager) -> Result<(), Error> {
//!     locks
//!         .with_lock("accounts:7", Duration::from_secs(30), |lease| async move {
//!             pay_interest(lease.fencing_token()).await;
//!         })
//!         .await
//! }
//! # async fn pay_interest(_: u64) {}
//! ```
//!
//! [`with_lock`] stops the work when the lock is lost. [`acquire`] returns a guard instead, which
//! nothing stops: watch [`LockGuard::lost`], or look at [`Lease::is_held`] before each step that
//! matters. Before the process ends, `locks.close().await` waits until all guards are dropped and
//! Redis has the releases.
//!
//! A job that every node starts, and one is to do, is [`once`]: the others learn that it is done.
//!
//! [`with_lock`]: crate::LockManager::with_lock
//! [`acquire`]: crate::LockManager::acquire
//! [`once`]: crate::LockManager::once
//!
//! The key `accounts:7` is the one that [`key::path("/accounts/{id}/**")`](crate::key::path)
//! makes of a request for `/accounts/7/…`.
//!
//! # Other clients
//!
//! The lock of the key `accounts:7` is the string `lock:accounts:7` in Redis, set with `NX` and
//! `PX`. redis-py's `Lock`, node-redlock, redsync, or a `SET … NX PX` by hand and this crate
//! respect each other's locks:
//!
//! ```python
//! import redis
//!
//! client = redis.Redis()
//! with client.lock("lock:accounts:7", timeout=10, blocking_timeout=30):
//!     ...  # alone with the account, also on the nodes that use this crate
//! ```
//!
//! A key of several parts has its parts [escaped](crate::LockKey::join): that of the street
//! `zürich` is `lock:streets:z%C3%BCrich`.
//!
//! While processes of this crate wait for a lock that one of them holds, its value ends with `!`.
//! The value of a lock that several of them share is `shared`; it expires with the last of their
//! leases.
//!
//! Such a client cannot stand in line: it gets the lock when it happens to ask while the lock is
//! free. A process of this crate whose requests keep a lock busy passes it on among them without
//! ever freeing it, so a client that tries again every so often may not get its turn until that
//! load pauses. Nor does it get a fencing token.
//!
//! Requests that wait for a lock of another client are told by Redis when it is free. Over RESP2,
//! Redis does not tell: then this crate looks every 100 ms.
//!
//! A lock's value is the id of a process, a colon, and a number. `CLIENT LIST` has the connection
//! of that process under the name `tower-distributed-lock:ID:NAME`, with its
//! [name](crate::LockManagerBuilder::instance_name) percent-encoded.
//!
//! The records of an [`IdempotencyLayer`](crate::IdempotencyLayer) are for this crate alone.
//!
//! [`LockGuard::lost`]: crate::LockGuard::lost
//! [`Lease::is_held`]: crate::Lease::is_held
