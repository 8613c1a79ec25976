//! What to do when something is wrong: what each metric and event means, and where to look.
//!
//! `examples/grafana` in the repository has a dashboard and alert rules for Prometheus. Each rule
//! names the section of this page that belongs to it. The metrics are in a table in
//! [operations](super::operations#metrics), the events in [another](super::operations#events).
//!
//! # Where to look
//!
//! The [inspector](super::operations#the-inspector), if the service has one, shows all of this on a
//! page.
//!
//! From within a process, [`LockManager::inspect`](crate::LockManager::inspect) tells who has a
//! lock and who waits, [`list`](crate::LockManager::list) tells of all, and
//! [`stats`](crate::LockManager::stats) of the process itself. From outside, with the prefix
//! `lock:` and the key `account:7`:
//!
//! ```text
//! redis-cli GET lock:account:7                   # the holder: PROCESS:NUMBER, ! if contended
//! redis-cli PTTL lock:account:7                  # ms until it expires, unless it is renewed
//! redis-cli LRANGE {lock:account:7}:queue 0 -1   # the processes that wait, the next one first
//! redis-cli PUBSUB NUMSUB lock:inbox:PROCESS     # 1: the process is connected, 0: it is gone
//! redis-cli CLIENT LIST | grep PROCESS           # its name, percent-encoded, and its address
//! redis-cli --scan --pattern 'lock:*'            # all locks
//! ```
//!
//! In a Cluster, ask the primary that has the key's slot; the inbox is `lock:inbox:PRIMARY:PROCESS`
//! there, with the id that `CLUSTER MYID` tells. A key with braces has its queue elsewhere:
//! [`inspect`](crate::LockManager::inspect) finds it. Logs and traces show a key by its
//! [fingerprint](crate::LockKey::fingerprint), the first 16 digits of its SHA-256:
//!
//! ```text
//! printf %s account:7 | sha256sum | cut -c 1-16
//! ```
//!
//! # Locks are lost
//!
//! `lock.lost`, the event `lock lost`, 503 with the reason `lost`. What such a holder wrote after
//! the loss may have overlapped with the next holder, unless the storage checks the [fencing
//! token](crate::Lease::fencing_token): look there for what was refused.
//!
//! - `expired`: the lease could not be renewed in time. If `lock.store.up` was 0 or
//!   `lock.renewals{outcome="failed"}` rose, Redis or the network was away: see [Redis is
//!   away](#redis-is-away). If not, the process stood still: look at its CPU limits (throttling),
//!   at handlers that block their thread, and at machines that were suspended. A longer
//!   [`ttl`](crate::LockManagerBuilder::ttl) rides out longer pauses.
//! - `taken`: another client deleted or overwrote the lock: an operator with
//!   [`force_release`](crate::LockManager::force_release) or `redis-cli DEL`, a job with the same
//!   key and another rule, `FLUSHALL`, eviction (`INFO stats`, `evicted_keys`: set `noeviction`),
//!   or a [failover](#redis-fails-over).
//! - `max_hold`: the request took longer than
//!   [`max_hold`](crate::LockManagerBuilder::max_hold). `lock.hold.duration` of that name shows
//!   whether all have become slow, or a few hang.
//!
//! # Redis is away
//!
//! `lock.store.up` is 0, the event `Redis gives no locks` says why, and requests are answered with
//! 503 (`unavailable`). Holders go on until their leases run out, and lose them then.
//!
//! ```text
//! redis-cli PING
//! redis-cli INFO clients         # connected_clients near maxclients?
//! redis-cli INFO memory          # used_memory near maxmemory: OOM refuses every lock
//! redis-cli INFO replication     # role:slave: the address leads to a replica (READONLY)
//! ```
//!
//! Nothing has to be done here when it is back: processes connect by themselves within a second,
//! and requests that still wait go on. If only one process is affected, look at its network, and
//! restart it. A readiness probe with [`ping`](crate::LockManager::ping) keeps requests away
//! meanwhile.
//!
//! # Redis fails over
//!
//! A promoted replica may lack the last locks. For up to one time to live, two holders may have one
//! lock: then `lock.lost{reason="taken"}` rises by those that find out. With
//! [`quarantine`](crate::LockManagerBuilder::quarantine), `lock.quarantine` is 1 for one time to
//! live instead, requests are answered with 503, and it ends by itself. Do not delete the epoch to
//! shorten it: that starts it anew.
//!
//! ```text
//! redis-cli GET {lock:}:epoch     # the server's id, and the time in ms at which it ends
//! redis-cli --scan --pattern '{*}:lock:epoch:*'   # in a Cluster: the names of the epochs
//! redis-cli INFO replication | grep master_replid
//! ```
//!
//! Make sure that the old primary is gone: a process that can still reach it goes on there.
//!
//! # Redis is slow
//!
//! `lock.store.command.duration` rises for all commands. Each request waits for one command at
//! least, so all of it is added to requests. This crate's commands take some µs each; something
//! else keeps Redis busy, or the network is slow.
//!
//! ```text
//! redis-cli --latency
//! redis-cli SLOWLOG GET 10
//! redis-cli INFO commandstats     # usec_per_call
//! ```
//!
//! # One key is hot
//!
//! `lock.waiters` is high, `lock.acquire.duration` of one name has grown, or requests are refused
//! (`queue_full`). The holders of one key run one after the other: at a mean hold of 50 ms, no more
//! than 20 a second. Compare the rate of `lock.acquire.duration{outcome="acquired"}` with the mean
//! of `lock.hold.duration`.
//!
//! - Find the key: the events `lock acquired` with a large `waited_ms` have its fingerprint, and
//!   `LLEN` of the queues tells how many processes wait.
//! - If `lock.hold.duration` has grown, the work under the lock has become slow: look at what it
//!   calls. Take what needs no lock out of it, or hold it for the head of the response only
//!   ([`Hold::Head`](crate::lock::Hold::Head)).
//! - If one holder hangs, `inspect` tells which process it is; there, also since when. Restart it,
//!   or take the lock from it with [`force_release`](crate::LockManager::force_release).
//! - If there are simply more requests, lock something smaller (an order, not a customer), or let
//!   requests wait for less time, so that they are answered with 409 sooner.
//!
//! # A stored response cannot be read
//!
//! `idempotency.requests{outcome="failed"}`. If `lock.store.up` is 0 as well, Redis is away. If
//! not, the event `the record of an idempotency key cannot be read` says why: a part was evicted,
//! or a newer version of this crate wrote it. Requests with that key are answered with 500 until
//! the record expires. To let it run again, delete the record, whose handler has had its effect
//! once:
//!
//! ```text
//! redis-cli --scan --pattern '{lock:*}:record'
//! redis-cli DEL '{lock:POST%3A/payments:KEY}:record'
//! ```
//!
//! # Before a process shuts down
//!
//! [`drain`](crate::LockManager::drain), stop the server, [`close`](crate::LockManager::close). A
//! process that was killed keeps its locks for one time to live; those who wait then go on.
