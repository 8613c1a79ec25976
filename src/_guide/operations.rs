//! In production: Redis' version and settings, ACLs, failover, alerts, sizing, shutting down.
//!
//! # Redis
//!
//! Redis 6.2 or newer, or Valkey: one server, a primary that sentinels watch, or a Cluster (of
//! Redis 7.0 or newer). Which to choose is in [topologies](super::topologies).
//!
//! The address is a URL, `redis://user:password@host:port/database`, or [something
//! else](crate::RedisServer); with the feature `tls` also `rediss://`, checked against the
//! operating system's authorities or against [`tls_root_certificate`](crate::LockManagerBuilder).
//! Passwords appear in no error and no log.
//!
//! [`connect`](crate::LockManagerBuilder::connect) tries a lock, and fails if Redis is not there,
//! is a replica or a node of a cluster, or if the user lacks a right: it says where, why and what
//! to do. [`connect_lazy`](crate::LockManagerBuilder::connect_lazy) lets the service start all the
//! same. Requests that need a lock are answered with 503 until Redis is there.
//!
//! # ACL
//!
//! With the prefix `lock:`, a user needs these keys, channels and commands:
//!
//! ```text
//! ~lock:* ~{* resetchannels &lock:inbox:*
//! +@connection +@scripting +@string +@list +@keyspace +subscribe +publish +pubsub +time +client
//! ```
//!
//! With another [prefix](crate::LockManagerBuilder::prefix), put it in the place of `lock:`. Where
//! requests [share](crate::LockManager::acquire_shared) locks, add `+@sortedset`; with
//! [`quarantine`](crate::LockManagerBuilder::quarantine), and with Sentinel, add `+info`; with a
//! Cluster, `+cluster|info +cluster|slots`. A user of
//! the sentinels needs `+sentinel|get-master-addr-by-name +subscribe &+switch-master +@connection`.
//! Processes that share a prefix trust each other: any of them can release or overwrite what
//! belongs to another.
//!
//! # Memory and eviction
//!
//! Set `maxmemory-policy noeviction`. A Redis that evicts keys may evict a lock, and then there are
//! two holders; or a stored response, and then its duplicate runs. With `noeviction`, a Redis
//! without memory refuses (`OOM`), and requests are answered with 503.
//!
//! Locks take little memory. Stored responses take their length and their headers, for as long as
//! they are [retained](crate::IdempotencyLayer::retention).
//!
//! # Failover, and quarantine
//!
//! A promoted replica may lack the last writes, and so may a server that restarts. For up to a time
//! to live there can then be two holders of a lock. Fencing tokens keep their writes apart.
//! [`quarantine(true)`](crate::LockManagerBuilder::quarantine) prevents the second holder:
//! the manager recognises the new server, and no lock is given there for one
//! [`ttl`](crate::LockManagerBuilder::ttl) (503 meanwhile). It does not help against an old primary
//! that processes can still reach: take it away before another is promoted. With
//! [Sentinel](super::topologies#sentinel), it is on, and lasts longer for that reason.
//!
//! # RESP2
//!
//! Where a server or a proxy refuses RESP3, a second connection does what RESP3 does on one, with
//! two differences. A grant is confirmed, which costs a round trip. And Redis does not tell when
//! another client deletes a lock: the holder notices at its next renewal. (A lock that a client of
//! another kind holds is looked at every 100 ms.)
//!
//! # Events, and what to alert on
//!
//! With the feature `tracing`, all events have the target `tower_distributed_lock`. Their levels,
//! messages and fields change only with a major version. Keys appear as
//! [fingerprints](crate::LockKey::fingerprint) only, times are in milliseconds.
//!
//! | Level | Event | Fields | What it means |
//! |---|---|---|---|
//! | error | `no key can be made for a request…` | `error` | a layer is on a route that it is not for, or a middleware is missing: 500, see [keys](super::keys#requests-without-a-key) |
//! | error | `the answer to an idempotency key could not be recorded…` | `key`, `error` | the work was done, and a duplicate may do it again |
//! | error | `the record of an idempotency key cannot be read…` | `key`, `reason` | damaged, partly evicted, or written by a newer version: 500 for that key |
//! | error | `the state of a lock was given up after a panic…` | `key` | a panic, kept to one key: a mistake in this crate, or in a waker or subscriber of the service. Please report it |
//! | error | `the background task of a lock manager panicked…` | | the same, mended by starting again |
//! | error | `the background task of a lock manager cannot be started` | `why` | the system gives no thread; it is tried again with the next request |
//! | warn | `Redis gives no locks` | `server`, `why` | an outage begins: requests are answered with 503. `why` tells a connection that failed from a server that refuses, such as a replica |
//! | debug | `Redis still gives no locks` | `server`, `why` | another attempt of the same outage has failed |
//! | info | `Redis gives locks again` | `server`, `down_ms` | the outage is over |
//! | warn | `Redis does not tell when a lock is deleted by someone else` | `server`, `why` | once for a manager: `CLIENT TRACKING` is refused, see RESP2 above |
//! | warn | `the primary has no min-replicas-to-write…` | | see [Sentinel](super::topologies#settings). Told once by a manager |
//! | warn | `credentials for Redis could not be renewed` | `why` | the callback failed, or Redis refused what it returned. The connection ends when the old credentials expire |
//! | warn | `lock lost` | `key`, `fencing_token`, `held_ms`, `reason` | `Expired`: Redis was away or the process stood still; `Taken`: another client wrote to the lock; `MaxHold`: the request took too long |
//! | warn | `the answer to an idempotency key could not be kept whole…` | `key`, `error` | its duplicates get the head only |
//! | debug | `lock acquired` | `key`, `fencing_token`, `waited_ms` | |
//! | debug | `lock not acquired` | `key`, `waited_ms`, `reason`, `error` | `reason` is an [`ErrorKind`](crate::ErrorKind) |
//! | debug | `lock released` | `key`, `fencing_token`, `held_ms` | |
//! | debug | `record found` | `key`, `waited_ms` | a duplicate, or a job that is done already |
//!
//! A span `lock` (level info) with `key` and `fencing_token` is around each piece of a request's
//! work under its lock.
//!
//! Errors and warnings are rare when all is well. Without `tracing`, count what a layer outside
//! finds in the response's extensions: a [`Rejection`](crate::lock::Rejection) in every response by
//! which these layers say that a request did not run.
//!
//! # Sizing
//!
//! - **Connections.** One per process, whatever the load; a second one for stored responses of
//!   more than 16 KiB; one more for the inbox where there is no RESP3; one for
//!   [`min_replicas`](crate::LockManagerBuilder::min_replicas); and one to each of two sentinels.
//! - **Waiting requests.** Less than 1 KiB each, the task included. At most 10 000 wait for one
//!   lock and 100 000 in a process; more are answered with 503
//!   ([`max_waiters_per_key`](crate::LockManagerBuilder::max_waiters_per_key),
//!   [`max_waiters`](crate::LockManagerBuilder::max_waiters)).
//! - **Many locks at once.** Each one that is held is renewed three times per time to live. A
//!   process has up to 2048 renewals in flight. It was seen to keep 250 000 locks with the default
//!   settings, at a round trip of 10 ms; 400 000 were more than Redis and the process could do on
//!   two cores. A longer time to live allows for more.
//! - **CPU.** To keep 100 000 locks held takes a tenth of a core. What a request costs is in
//!   `benches/README.md` in the repository.
//!
//! # Rolling out a new version
//!
//! Processes with different settings share locks correctly (the [guarantees](super::guarantees) say
//! by whose time to live a lease counts). The prefix must stay the same: a process with another one
//! takes other locks. `quarantine` needs the same `ttl` everywhere.
//!
//! # Shutting down
//!
//! Before the process ends, stop the server gracefully, and then await
//! [`LockManager::close`](crate::LockManager::close). It waits until all guards are dropped and
//! Redis has the releases. Without it, a lock whose release was on its way stays taken until its
//! time to live is over.
//!
//! ```no_run
//! # use std::time::Duration;
//! # use tower_distributed_lock::LockManager;
//! # async fn shut_down(listener: tokio::net::TcpListener, app: axum::Router, locks: LockManager,
//! #     ctrl_c: impl Future<Output = ()> + Send + 'static) -> std::io::Result<()> {
//! axum::serve(listener, app).with_graceful_shutdown(ctrl_c).await?;
//! // Detached requests may still run. Do not wait for them for ever.
//! let _ = tokio::time::timeout(Duration::from_secs(10), locks.close()).await;
//! # Ok(()) }
//! ```
