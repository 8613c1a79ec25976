//! What a lock of this crate promises, and what no lock of its kind can promise.
//!
//! # The promise
//!
//! As long as one Redis server keeps its data, and its clock is not set forward (then locks expire
//! too early), no two holders have a lock at the same time, *if they stop when they are told that
//! it is lost*.
//!
//! A lease is counted from before its command was sent. 1 %, 2 ms and a margin (a twentieth of the
//! time to live, at most 100 ms) are kept back. So the loss is told before the server can have
//! expired the lock. With the default settings, the request is then stopped and answered with 503.
//!
//! Besides:
//!
//! - **Release.** The lock is held until the response has been sent, and released however the
//!   request ends: an error, a panic, a timeout, a client that leaves while it waits, while the
//!   handler runs or in the middle of the body.
//! - **Renewal.** One task keeps all locks of a process alive.
//! - **Order.** The process that releases a lock makes the next one the holder, in the same script,
//!   and tells it. Waiters of one process are served in order of arrival, processes in the order in
//!   which they began to wait. A process that holds the lock while others wait passes it on among
//!   its own requests at most 16 times, and for at most 50 ms
//!   ([`burst`](crate::LockManagerBuilder::burst)), before it grants it to the next. After an
//!   accident (an expired or deleted lock), the process that asks first gets it.
//! - **Several keys.** A request holds all its keys or none, and no two that name the same keys
//!   deadlock, whatever the order in which each names them. If all are free, they cost one round
//!   trip together. To lose one is to lose all.
//! - **Readers.** Those that [share](crate::LockManager::acquire_shared) a lock hold it together,
//!   on all nodes, and never at the same time as one that has it alone. A request that waits to
//!   have it alone lets no later one share it before, and one that waits to share it has its turn
//!   among those that do not, in the order above. Where its own process shares the lock, the other
//!   processes learn that it waits when that share ends. Each process that shares a lock has a
//!   lease of its own in Redis: that of one that died expires, whatever the others do.
//! - **Fencing.** Every holder gets a token that is larger than any before for this key; one that
//!   shares the lock, larger than those of all that had it alone before, and smaller than those of
//!   all that will.
//! - **Cost.** One round trip before the handler, and none after it that the response waits for,
//!   over one connection per process. A lock that is free is taken by `SET NX GET PX`, with an
//!   `INCRBY` for the fencing token, and released by a script, which goes out with the next take of
//!   the process. None of it for a lock that passes from one request to the next in the same
//!   process.
//! - **Trouble.** If Redis is in trouble, a request is answered with 503, within the
//!   [`command_timeout`](crate::LockManagerBuilder::command_timeout) (twice that, if a connection
//!   has to be made first), and at once when that has passed several times in a row. It never
//!   hangs, and never runs unlocked unless you [ask for it](crate::lock::OnUnavailable::Proceed). A
//!   request that was waiting already goes on when Redis is back, or is told when its wait is over.
//!
//! # What can still go wrong
//!
//! No lock with a time to live can promise more. You should know what that means.
//!
//! **A process can be stopped** while it holds a lock (a long pause of the scheduler, a suspended
//! machine). It may go on when the lock already belongs to another process, before it has had a
//! chance to look. That is what [fencing tokens](crate::Lease::fencing_token) are for. Send the
//! token along with every write, and have the storage refuse a write whose token is lower than one
//! that it has seen:
//!
//! ```sql
//! UPDATE accounts SET balance = $1, fence = $2 WHERE id = $3 AND fence <= $2
//! ```
//!
//! [Martin Kleppmann describes
//! why](https://martin.kleppmann.com/2016/02/08/how-to-do-distributed-locking.html).
//!
//! **Redis replicates in the background.** After a failover, the promoted replica may not know of
//! the last locks: for up to a time to live there can be two holders. The same holds for a server
//! that restarts without its data. [`quarantine`](crate::LockManagerBuilder::quarantine) closes
//! that gap, if the old server can be reached no longer. With
//! [Sentinel](super::topologies#sentinel) and a Cluster, it is on, and outlasts an old primary.
//! Fencing tokens still rise, because they follow the server's clock, to 2 ms. They stay in order
//! unless that clock is set back *and* the data lost in one go, or the clocks of two servers differ
//! by more than the failover takes, less those 2 ms.
//!
//! **A lost lock stops the handler where it awaits.** What it had already sent (a query, a mail) is
//! not called back. Code that does not await is not stopped at all; what it returns is not passed
//! on as a success.
//!
//! **An upgraded connection** (WebSocket) runs without the lock, which ends with the 101.
//!
//! **A machine that is suspended** loses its locks like a process that is stopped. On Linux, the
//! time counts, and the loss is told within a second after it goes on. On other systems the clock
//! that this crate reads stands still meanwhile.
//!
//! **A killed process** leaves its locks until their time to live has passed. So does one that
//! exits without [`close`](crate::LockManager::close), if releases were still on their way to
//! Redis.
//!
//! **A waiting process that dies** is passed over at once if Redis has noticed, which it does when
//! a process ends or is killed. A process that is stopped, or cut off without a word, costs those
//! behind it two seconds (the time to live of a grant; or of a lease, if that is shorter). Where a
//! lock is shared, one that waited to have it alone is passed over when a reader of another process
//! comes; without that, those behind it wait until the lock is free.
//!
//! **A lock that another client deletes or overwrites, or that Redis evicts**, can have two holders
//! for a moment. Its holder is told at once where Redis watches the key, and at the next
//! renewal at the latest. Redis watches from the first check on, which comes 100 ms after the lock
//! was taken. A process that holds tens of thousands of locks looks at them less often, and then
//! the check may come an eighth of the renewal interval later (0.4 s). A lock that is shared is not
//! watched: its holders learn it at their next renewal, a third of the time to live later at most.
//!
//! **Settings may differ between processes**, as they do while a new version is rolled out. Each
//! lease counts by the `ttl` of the process that has it. A lock that is handed over counts by the
//! smaller of the two processes' settings. Only `quarantine` needs the same `ttl` everywhere: it
//! lasts for that of the process that finds the data lost first.
//!
//! **A share outlives its request** by a moment: when the last request of a process is done with
//! it, the process keeps it for a fiftieth of the time to live, at most 100 ms, unless another
//! process is known to wait. A request of another node that wants the lock alone and does not wait
//! may be refused in that moment, and so may a client of another kind.
//!
//! # When not to use it
//!
//! - If the work is one transaction in one database, let the database do it: row locks, unique
//!   constraints, `SELECT … FOR UPDATE`.
//! - If two at a time would be a catastrophe rather than a nuisance and the storage cannot check a
//!   fencing token, use a consensus system (etcd, ZooKeeper), and mind that its locks have the
//!   first limit above as well.
//! - If only one process ever runs: [`LockManager::in_memory`](crate::LockManager::in_memory), or a
//!   `tokio::sync::Mutex`.
//! - To do something once, remember that it was done: [`IdempotencyLayer`](crate::IdempotencyLayer)
//!   does that for requests. A lock only keeps two from doing it at the same time.
//!
//! How all this is tested is in `tests/README.md` in the repository.
