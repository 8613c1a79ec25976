//! In production: Redis' version and settings, ACLs, failover, metrics, sizing, shutting down.
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
//! +@connection +@scripting +@string +@list +@sortedset +@keyspace
//! +subscribe +publish +pubsub +time +client
//! ```
//!
//! With another [prefix](crate::LockManagerBuilder::prefix), put it in the place of `lock:`. With
//! [`quarantine`](crate::LockManagerBuilder::quarantine), and with Sentinel, add `+info`; with a
//! Cluster, `+cluster|info +cluster|slots`. A user of the sentinels needs
//! `+sentinel|get-master-addr-by-name +subscribe &+switch-master +@connection`. Where dangerous
//! commands are taken away (`-@dangerous`), `+client|list` lets
//! [`inspect`](crate::LockManager::inspect) tell the names of processes. Redis 6.2 takes all of
//! `client` away then: give `+client|setname +client|tracking +client|caching` back. Processes that
//! share a prefix trust each other: any of them can release or overwrite what belongs to another.
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
//! # Metrics
//!
//! With the feature `metrics`, locks are counted by the [`metrics`](https://docs.rs/metrics)
//! facade, in whatever recorder the program has installed. Install it before the first manager is
//! made: a name that finds none when it is first used counts nothing from then on. Without a
//! recorder, nothing is counted, and no clock is read.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use metrics_exporter_prometheus::PrometheusBuilder;
//!
//! let exporter = PrometheusBuilder::new()
//!     .with_recommended_naming(true) // lock_acquire_duration_seconds, lock_lost_total
//!     .set_buckets(&[0.0001, 0.001, 0.005, 0.025, 0.1, 0.5, 2.0, 10.0, 60.0])?
//!     .install_recorder()?;
//! println!("{}", exporter.render()); // what GET /metrics answers
//! # Ok(()) }
//! ```
//!
//! Names and units follow the conventions of OpenTelemetry: durations are in seconds, and dots
//! become underscores in Prometheus. The label `name` is what the layer is called
//! ([`DistributedLockLayer::name`](crate::DistributedLockLayer::name),
//! [`IdempotencyLayer::name`](crate::IdempotencyLayer::name)), `default` without one and for locks
//! that are taken without a layer. No key is ever a label.
//!
//! | Metric | Kind | Labels | What it is |
//! |---|---|---|---|
//! | `lock.acquire.duration` | histogram, s | `name`, `outcome`, `path` | from the request for a lock to its end. `outcome`: `acquired`, `recorded` (a stored response was found), `held`, `timed_out`, `queue_full`, `unavailable`, `closed`. `path` of acquired ones: `uncontended` (it was free), `local` (from a request of this process), `granted` (from another process), `polled` (it was asked for again; over RESP2, every grant) |
//! | `lock.hold.duration` | histogram, s | `name` | how long locks were held, until they were released or lost |
//! | `lock.waiters` | gauge | | requests of this process that wait |
//! | `lock.held` | gauge | `name` | locks that requests of this process hold |
//! | `lock.lost` | counter | `name`, `reason` | locks that their holders lost: `expired`, `taken`, `max_hold` |
//! | `lock.rejections` | counter | `name`, `reason` | requests that a layer answered instead of the service: one reason for each [`RejectionKind`](crate::lock::RejectionKind) |
//! | `lock.renewals` | counter | `outcome` | `renewed`, `gone` (the lock is lost), `failed` (tried again) |
//! | `lock.handoffs` | counter | `to` | locks that this process passed on: `local` to its own next request, `remote` to another process |
//! | `lock.store.command.duration` | histogram, s | `command`, `outcome` | from a command to the reply of Redis; `acquire`, `release`, `renew`, `check`, `complete`; `ok`, `failed` |
//! | `lock.store.up` | gauge | `server` | 1 while Redis gives locks, 0 from the first event of an outage to its last; not a number when the server is no primary of its cluster any more |
//! | `lock.quarantine` | gauge | `server` | 1 while no lock is given, as Redis lost data |
//! | `idempotency.requests` | counter | `name`, `outcome` | requests with a key: `first` (it ran), `replayed` (also a gRPC call whose response is not kept), `in_progress` (409), `mismatch` (422), `failed` |
//!
//! A dashboard for Grafana and alert rules for Prometheus are in `examples/grafana` in the
//! repository. What to do when one fires is in the [runbook](super::runbook).
//!
//! With all of it on, a request costs four histogram entries and two changes of a gauge more.
//!
//! # Traces
//!
//! With the feature `tracing`, each request has a span `lock.acquire` while it asks and waits (with
//! `outcome`, `path` and `fencing_token`), and a span `lock` while it holds. Both have the layer's
//! `name` and the key's fingerprint. `tracing-opentelemetry` exports them.
//!
//! # Events
//!
//! With the feature `tracing`, all events have the target `tower_distributed_lock`. Their levels,
//! messages and fields change only with a major version. Keys appear as
//! [fingerprints](crate::LockKey::fingerprint) only, times are in milliseconds, and `name` is that
//! of the layer.
//!
//! | Level | Event | Fields | What it means |
//! |---|---|---|---|
//! | error | `no key can be made for a request…` | `name`, `error` | a layer is on a route that it is not for, or a middleware is missing: 500, see [keys](super::keys#requests-without-a-key). Once a minute for a layer, as strangers can cause it; the others are of the level debug |
//! | error | `a layer wants a lock alone that a layer outside of it shares…` | `name`, `error` | both are around one service, with different [modes](crate::DistributedLockLayer::mode): 500. As often as the one before |
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
//! | warn | `lock lost` | `key`, `name`, `fencing_token`, `held_ms`, `reason` | `Expired`: Redis was away or the process stood still; `Taken`: another client wrote to the lock; `MaxHold`: the request took too long |
//! | warn | `the answer to an idempotency key could not be kept whole…` | `key`, `error` | its duplicates get the head only |
//! | warn | `a lock is taken from its holder, by the inspector` | `key` | an operator has pressed the button |
//! | debug | `lock acquired` | `key`, `name`, `fencing_token`, `waited_ms` | |
//! | debug | `lock not acquired` | `key`, `name`, `waited_ms`, `reason`, `error` | `reason` is an [`ErrorKind`](crate::ErrorKind) |
//! | debug | `lock released` | `key`, `name`, `fencing_token`, `held_ms` | |
//! | debug | `record found` | `key`, `name`, `waited_ms` | a duplicate, or a job that is done already |
//!
//! A span around the work under [several keys](crate::lock#several-locks) has `keys`, with commas
//! between them, and each of them has its events. `lock not acquired` tells of the one that was
//! refused.
//!
//! Errors and warnings are rare when all is well. Without `metrics`, count what a layer outside
//! finds in the response's extensions: a [`Rejection`](crate::lock::Rejection) in every response by
//! which these layers say that a request did not run.
//!
//! # The inspector
//!
//! With the feature `inspector`, a Tower service shows the locks of a process on a page, live: the
//! hottest ones with their holders on a timeline, who waits, percentiles of the waits, refusals and
//! losses. On demand, it asks Redis who has a lock, in any process, and who stands in its queue.
//! The same can be had as JSON.
//!
//! ```
//! # #[cfg(feature = "inspector")]
//! fn internal(locks: tower_distributed_lock::LockManager) -> axum::Router {
//!     use tower_distributed_lock::inspector;
//!     axum::Router::new().nest_service("/locks", inspector(locks))
//! }
//! ```
//!
//! - **Put authentication outside.** It does not ask who is there. Serve it on an internal port, or
//!   inside a layer that lets operators in alone.
//! - Keys are shown by their [fingerprints](crate::LockKey::fingerprint), unless
//!   `.show_keys(true)` is set. Whoever has a key can look it up there all the same.
//! - `.allow_force_release(true)` adds a button that takes a lock from its holder
//!   ([`force_release`](crate::LockManager::force_release)). Requests from other sites are refused.
//! - It is of one process. Behind a load balancer, each process needs an address of its own.
//! - Until it is made, it costs nothing. Then it keeps some megabytes at most of what happened of
//!   late, to up to 256 locks, and a request takes a mutex four times more.
//! - A page that is open keeps a server from shutting down gracefully for no more than a minute;
//!   after [`drain`](crate::LockManager::drain), for no more than a second.
//!
//! `cargo run --example inspector` in the repository shows it, with traffic that is made up.
//!
//! # Readiness
//!
//! [`LockManager::ping`](crate::LockManager::ping) tells whether locks can be taken now: for a
//! readiness probe, not for one of liveness. A restart does not bring Redis back.
//!
//! # Sizing
//!
//! - **Connections.** One per process, whatever the load; a second one for stored responses of
//!   more than 16 KiB, and for [questions](crate::inspect); one more for the inbox where there is
//!   no RESP3; one for [`min_replicas`](crate::LockManagerBuilder::min_replicas); and one to each
//!   of two sentinels.
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
//! Before the process ends, [drain](crate::LockManager::drain) the manager, so that a load balancer
//! sends requests elsewhere and those that wait are let go, stop the server gracefully, and then
//! await [`LockManager::close`](crate::LockManager::close). It waits until all guards are dropped
//! and Redis has the releases. Without it, a lock whose release was on its way stays taken until
//! its time to live is over.
//!
//! ```no_run
//! # use std::time::Duration;
//! # use tower_distributed_lock::LockManager;
//! # async fn shut_down(listener: tokio::net::TcpListener, app: axum::Router, locks: LockManager,
//! #     ctrl_c: impl Future<Output = ()> + Send + 'static) -> std::io::Result<()> {
//! let draining = locks.clone();
//! let shutdown = async move {
//!     ctrl_c.await;
//!     draining.drain();
//! };
//! axum::serve(listener, app).with_graceful_shutdown(shutdown).await?;
//! // Detached requests may still run. Do not wait for them for ever.
//! let _ = tokio::time::timeout(Duration::from_secs(10), locks.close()).await;
//! # Ok(()) }
//! ```
