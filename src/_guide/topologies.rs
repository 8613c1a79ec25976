//! Which Redis to use: one server, Sentinel, a managed service; what each can lose, and how to
//! connect to it.
//!
//! # Which one
//!
//! | | When the server fails | What it can lose | |
//! |---|---|---|---|
//! | one server | no new locks until it is back (503) | nothing if it comes back with its data; else see [quarantine](#quarantine) | [`connect`](crate::LockManager::connect) |
//! | Sentinel: a primary, replicas, sentinels | another server takes over, in seconds | the writes that no replica had yet | [`connect_sentinel`](crate::LockManager::connect_sentinel) |
//! | Cluster: several primaries, each with replicas | a replica takes over its slots, in seconds | as with Sentinel, in the shard that fails | [`connect_cluster`](crate::LockManager::connect_cluster) |
//! | a managed service with failover behind one address | as with Sentinel | as with Sentinel | `connect`, and [`quarantine(true)`](crate::LockManagerBuilder::quarantine) |
//! | a proxy that speaks RESP2 only | what is behind it decides | what is behind it decides | `connect`; [RESP2](super::operations#resp2) says what differs |
//! | several independent servers (Redlock) | | | [not built](#redlock) |
//!
//! One server is the simplest, and the only one that never gives a lock to two as long as it keeps
//! its data. Restarting takes it away for a second or two: holders keep their locks if that is less
//! than their [time to live](crate::LockManagerBuilder::ttl), and those who wait stay in line. Take
//! Sentinel if the service must go on when a machine is gone.
//!
//! Redis replicates in the background, whatever its topology. A promoted replica may lack the last
//! locks, and an old primary does not know at once that it was replaced. Fencing tokens
//! [still rise](super::guarantees#what-can-still-go-wrong) then.
//!
//! # What to connect to
//!
//! [`RedisServer`](crate::RedisServer) lists it: `redis://`, `rediss://` (TLS), `redis+unix://` (a
//! Unix socket), or a `redis::Client` or `redis::ConnectionInfo` that the service has anyway.
//!
//! If a cluster or the sentinels tell of servers by addresses that are not those of this process
//! (containers, port forwarding), say where they are:
//! [`address_map`](crate::LockManagerBuilder::address_map).
//!
//! Passwords that are rotated, and tokens that expire, come from
//! [a callback](crate::LockManagerBuilder::credentials), which is asked at every connect. Rotate in
//! three steps, so that no connection is refused meanwhile: add the new password
//! (`ACL SETUSER worker >new`), have the callback return it, and remove the old one
//! (`ACL SETUSER worker <old`). Connections that live stay logged in.
//!
//! ```no_run
//! use std::time::Duration;
//! use tower_distributed_lock::{Credentials, LockManager};
//! # use std::io::Error;
//! # async fn token() -> Result<String, Error> { Ok(String::new()) }
//! # async fn connect() -> Result<LockManager, tower_distributed_lock::Error> {
//!
//! LockManager::builder()
//!     .credentials(async || {
//!         let token = token().await?; // of the cloud's identity service, kept at hand
//!         let quarter = Duration::from_secs(15 * 60);
//!         Ok::<_, Error>(Credentials::new("worker", token).valid_for(quarter))
//!     })
//!     .connect("redis://cache.internal:6379")
//!     .await
//! # }
//! ```
//!
//! # Who holds a lock
//!
//! The connections of a manager are called `tower-distributed-lock:` and the number of the manager,
//! with which the value of each of its locks begins:
//!
//! ```text
//! > GET lock:accounts:7
//! "0e9a4c1b54de4a6f9c1c4c3f3f8e5a01:42"
//! > CLIENT LIST
//! id=9 addr=10.0.0.17:51234 … name=tower-distributed-lock:0e9a4c1b54de4a6f9c1c4c3f3f8e5a01 …
//! ```
//!
//! # Sentinel
//!
//! ```no_run
//! # use tower_distributed_lock::{Error, LockManager};
//! # async fn connect() -> Result<LockManager, Error> {
//! LockManager::connect_sentinel(
//!     ["redis://10.0.0.1:26379", "redis://10.0.0.2:26379", "redis://10.0.0.3:26379"],
//!     "redis://worker:secret@mymaster", // or just "mymaster"
//! )
//! .await
//! # }
//! ```
//!
//! - At every connect, all sentinels are asked. The address that most of them tell is tried first,
//!   and the server must say itself that it is the primary.
//! - Up to two sentinels are listened to, and asked each second. When another server is the
//!   primary, the manager goes there at once. A holder whose lock was replicated keeps it; one
//!   whose lock was not is told that it is lost.
//! - The sentinels are needed at a connect only. While the primary lives, they may all be down.
//!
//! ## Settings
//!
//! | Of the servers | | |
//! |---|---|---|
//! | `min-replicas-to-write` | 1 | an old primary that has lost its replicas takes no locks. Without it, it gave locks for ten seconds after another was promoted, also in a planned failover. With it, keep two replicas: with the last one gone, no lock is given |
//! | `min-replicas-max-lag` | below `down-after-milliseconds` | so that a primary which is cut off stops before another is promoted |
//! | `appendonly`, or `save` | on | a primary that restarts empty, faster than the sentinels notice, empties its replicas as well |
//!
//! | Of the sentinels | | |
//! |---|---|---|
//! | their number | 3 or 5, on machines of their own | a majority is needed for a failover |
//! | `down-after-milliseconds` | 5000 | less than the time to live lets holders keep their locks through a failover |
//!
//! The user of the [ACL](super::operations#acl) also needs `+info`. A manager that finds no
//! `min-replicas-to-write` says so once, by a warning (feature `tracing`).
//!
//! # Quarantine
//!
//! With Sentinel and with a Cluster, [`quarantine`](crate::LockManagerBuilder::quarantine) is on.
//! After a failover, no new lock is given in the new primary until every lease that the old one may
//! have given has run out: for one time to live, and without `min-replicas-to-write` for 12 s more.
//! Requests get 503 meanwhile; locks that are held and were replicated are kept, renewed and
//! released. In a Cluster, that holds for the locks of this primary alone. If rather two holders
//! for a moment than no new lock for that long, turn it off, and rely on fencing tokens.
//!
//! It also begins when a prefix is used for the first time, and when the primary was restarted,
//! with its data or without. Redis does not say whether it lost the last of them: a server that was
//! stopped by `SHUTDOWN SAVE` and one that died a minute after its last snapshot come back with the
//! same epoch and the same answers, though the second lacks the locks of that minute. Nor can a
//! mark in the data tell them apart, as the snapshot keeps the mark. The 12 s are left out there,
//! as long as the server has not been promoted since it was started.
//!
//! [`min_replicas`](crate::LockManagerBuilder::min_replicas) makes it rarer that a failover loses a
//! lock: one that fewer replicas have is not given. It is not a replacement: another replica may be
//! promoted, and renewals are not waited for.
//!
//! What the quarantine cannot stop is a holder whose process can reach the old primary, and no
//! sentinel: it renews its lock there, for as long as that server takes writes.
//!
//! # Cluster
//!
//! Take a Cluster if your service has one, or if one core of Redis is too little for its locks:
//! [`connect_cluster`](crate::LockManager::connect_cluster). Each lock lies in the slot of its
//! name, with its queue, its readers and a counter of fences for that slot; a `{tag}` in a
//! [key](crate::LockKey::new) puts locks together. The manager has a connection to each primary.
//!
//! - **A slot that moves** takes its locks, its queues and its fences along. While it is moved key
//!   by key, locks in it that one process wants go on: they are taken, renewed and released where
//!   their keys are (the primary says `ASK`), with a round trip or two more. What is about several
//!   keys is late until the slot has arrived, as no server has them all: a lock that another
//!   process waits for, one that is shared, and a response that is to be remembered. So are locks
//!   for which [replicas](crate::LockManagerBuilder::min_replicas) are counted, and those of the
//!   first slot that an empty primary gets, and a take that is sent again on a new connection.
//!   Requests that do not wait are answered with 503 then, and to
//!   [`inspect`](crate::LockManager::inspect) such a lock, or to read a response that is longer
//!   than 16 KiB, may fail.
//!   If a move has stopped half-way, finish it (`redis-cli --cluster fix`). Never end it by
//!   `CLUSTER SETSLOT … STABLE` alone: the primary forgets the locks that have left, and gives them
//!   again. Nor move slots away from a primary in [quarantine](#quarantine): the server that gets
//!   them gives their locks at once. Where a server moves a slot with all its keys at once
//!   (`CLUSTER MIGRATESLOTS`, Valkey 9.0), nothing is late for longer than that moment.
//! - **A failover** loses what the replica did not have, and starts a [quarantine](#quarantine) for
//!   the locks of that primary. An old primary that is cut off goes on for at most half of
//!   `cluster-node-timeout` after another was promoted (by default 7.5 s), which the 12 s outlast.
//! - **The epoch** of a primary, by which the quarantine is known, lies in one of its slots. If
//!   that slot moves, the managers that are connected write it anew. Only a manager that connects
//!   before they have heard of the move, and finds none, starts a quarantine for nothing. One that
//!   connects while that very slot is on its way gets no lock there until it has arrived. A slot
//!   that an operator gives to another primary by force, without its keys, starts none.
//! - **What it costs**: a lock that no other process wants is taken and released at its primary
//!   alone, with one command more than without a cluster, which raises the slot's counter to the
//!   clock. A hand-off is one `PUBLISH`, which the cluster passes on to all its servers.
//!
//! For a try, `examples/cluster.sh` in the repository starts three servers on this machine, and
//! says how to run the examples on them.
//!
//! # Managed services
//!
//! What is needed: `EVAL`, `SUBSCRIBE`, `CLIENT TRACKING` if other clients delete locks, one
//! endpoint for the primary, and `noeviction`. Where failover is behind one address, the connection
//! ends, and the manager connects again to whatever answers there. Set `quarantine(true)`: 12 s of
//! an old primary are not covered there, so ask the vendor how soon an old primary stops.
//!
//! Services with shards (ElastiCache in cluster mode) are Clusters: use `connect_cluster` there.
//! Azure Managed Redis with the cluster policy "Enterprise" has one endpoint: use `connect`.
//!
//! # Redlock
//!
//! [Redlock](https://redis.io/docs/latest/develop/use/patterns/distributed-locks/) takes a lock
//! from the majority of several independent servers. It is not built, for three reasons. It has no
//! counter that all servers agree on, so it [gives no fencing
//! token](https://martin.kleppmann.com/2016/02/08/how-to-do-distributed-locking.html), without
//! which no lock with a time to live is safe. It has no queue: contended locks are polled for. And
//! it needs as many servers as Sentinel does, with delayed restarts that are set up by hand.
//!
//! If a failover may not lose a lock: use fencing tokens and the quarantine, which keep writes
//! apart and holders alone at the price of a pause. If there may be no pause either, use a
//! consensus system (etcd, ZooKeeper), whose sessions and revisions are made for that.
