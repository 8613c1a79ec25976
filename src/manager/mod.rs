//! [`LockManager`]: takes locks for the requests of this process.

mod background;
mod builder;
mod core;
mod guard;
mod guards;
mod inspect;
mod instance;
mod intervene;
mod once;
mod several;
pub(crate) mod slot;
mod waiters;
mod with_lock;

use std::fmt;
use std::slice;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::consume_budget;
use tokio::time::timeout;

pub use self::builder::LockManagerBuilder;
pub(crate) use self::core::Core;
#[cfg(feature = "inspector")]
pub(crate) use self::core::LocalLock;
use self::core::{Request, Taken};
pub use self::guard::LockGuard;
pub use self::guards::LockGuards;
pub use self::once::Once;
use crate::error::{Error, ErrorKind};
use crate::key::{IntoLockKey, LockKey};
use crate::mode::Mode;
use crate::observe::{self, Meter, Stopwatch};
use crate::store::{Damage, RedisServer};

/// How long a decision may take from the slot to its request.
const A_MOMENT: Duration = Duration::from_millis(10);

/// Takes locks. A process needs one: it owns the connection to Redis, the queues of waiting
/// requests, and the renewals. A clone is cheap and shares everything.
///
/// The layers take their locks from it. It needs no HTTP: a background job takes the same lock as a
/// request.
///
/// # Example
///
/// ```
/// use std::time::Duration;
/// use tower_distributed_lock::LockManager;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), tower_distributed_lock::Error> {
/// let locks = LockManager::in_memory(); // or connect("redis://127.0.0.1:6379").await?
///
/// let guard = locks.acquire("account:7", Duration::from_secs(5)).await?;
/// println!("holding {:?} with fencing token {}", guard.key(), guard.fencing_token());
/// drop(guard); // released in the background
///
/// let error = locks.try_acquire("").await.unwrap_err();
/// assert_eq!(error.kind(), tower_distributed_lock::ErrorKind::InvalidKey);
///
/// locks.close().await; // waits until all is released, then disconnects
/// # Ok(()) }
/// ```
///
/// # The background task
///
/// With Redis, one background task renews all leases and moves all commands. It runs on the
/// multi-threaded runtime that the manager was first used in. If that runtime has one thread only,
/// the task runs on a thread of its own: one handler may block such a runtime, and perhaps nothing
/// drives it at all. (To and from a thread of its own, a reply takes one more change of threads.)
///
/// In memory, the task runs on the runtime that the manager was first used in, whatever its kind,
/// so that a test can hold its time still. Where nothing drives that runtime, locks expire.
///
/// # The end
///
/// When the last clone and the last guard are gone, what is still to be released is released, and
/// the connection is closed. Before the process exits, await [`close`](Self::close), which waits
/// for that.
pub struct LockManager {
    core: Arc<Core>,
}

impl LockManager {
    /// Connects to Redis, `redis://user:password@host:port/database`, with the default settings:
    /// see [`LockManagerBuilder`], also for Redis Sentinel, and [`RedisServer`] for all that this
    /// takes besides a URL.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] if the URL is not one of a Redis server, [`ErrorKind::Unavailable`],
    /// with the address and the cause, if the server cannot be used.
    /// [`LockManagerBuilder::connect_lazy`] starts without it.
    ///
    /// # Example
    ///
    /// ```no_run
    /// # use tower_distributed_lock::{Error, LockManager};
    /// # async fn connect() -> Result<LockManager, Error> {
    /// let locks = LockManager::connect("redis://127.0.0.1:6379").await?;
    /// # Ok(locks) }
    /// ```
    pub async fn connect(server: impl Into<RedisServer>) -> Result<Self, Error> {
        Self::builder().connect(server).await
    }

    /// Connects to the primary that Redis Sentinel watches under a name, with the default settings:
    /// see [`LockManagerBuilder::connect_sentinel`].
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] if a URL is not valid, or the sentinels know no primary of that name,
    /// [`ErrorKind::Unavailable`], with the cause, if no sentinel tells where it is, or it cannot
    /// be used.
    ///
    /// # Example
    ///
    /// ```no_run
    /// # use tower_distributed_lock::{Error, LockManager};
    /// # async fn connect() -> Result<LockManager, Error> {
    /// let sentinels = ["redis://10.0.0.1:26379", "redis://10.0.0.2:26379"];
    /// let locks = LockManager::connect_sentinel(sentinels, "mymaster").await?;
    /// # Ok(locks) }
    /// ```
    pub async fn connect_sentinel<S: Into<RedisServer>>(
        sentinels: impl IntoIterator<Item = S>,
        primary: impl Into<RedisServer>,
    ) -> Result<Self, Error> {
        Self::builder().connect_sentinel(sentinels, primary).await
    }

    /// Connects to a Redis Cluster with the default settings: see
    /// [`LockManagerBuilder::connect_cluster`].
    ///
    /// # Errors
    ///
    /// Like [`LockManagerBuilder::connect_cluster`].
    ///
    /// # Example
    ///
    /// ```no_run
    /// # use tower_distributed_lock::{Error, LockManager};
    /// # async fn connect() -> Result<LockManager, Error> {
    /// let locks = LockManager::connect_cluster(["redis://redis-0.internal:6379"]).await?;
    /// # Ok(locks) }
    /// ```
    pub async fn connect_cluster<S: Into<RedisServer>>(
        servers: impl IntoIterator<Item = S>,
    ) -> Result<Self, Error> {
        Self::builder().connect_cluster(servers).await
    }

    /// Returns a builder, for other settings than the default ones.
    pub fn builder() -> LockManagerBuilder {
        LockManagerBuilder::default()
    }

    /// Keeps the locks in this process, with the default settings: for tests, examples, and
    /// services of one node. They follow the same rules as locks in Redis.
    pub fn in_memory() -> Self {
        Self::builder()
            .in_memory()
            .expect("the default settings are valid")
    }

    pub(crate) fn from_core(core: Arc<Core>) -> Self {
        core.handles.fetch_add(1, Ordering::Relaxed);
        Self { core }
    }

    /// Takes the lock if it is free.
    ///
    /// # Example
    ///
    /// ```
    /// # use tower_distributed_lock::{Error, ErrorKind, LockManager};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Error> {
    /// # let locks = LockManager::in_memory();
    /// let guard = locks.try_acquire("report").await?;
    /// let second = locks.try_acquire("report").await;
    /// assert_eq!(second.unwrap_err().kind(), ErrorKind::Held);
    /// # drop(guard);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// - [`ErrorKind::Held`] if another request or process holds it.
    /// - [`ErrorKind::Unavailable`] if Redis cannot be reached, refuses, or does not reply within
    ///   the [command timeout](LockManagerBuilder::command_timeout).
    /// - [`ErrorKind::InvalidKey`] if the key is empty, [`ErrorKind::Closed`] if the manager is.
    pub async fn try_acquire<K>(&self, key: K) -> Result<LockGuard, Error>
    where
        K: IntoLockKey,
    {
        let key = key.into_lock_key()?;
        self.take(&self.core.meter, key, None, Mode::Exclusive)
            .await
    }

    /// Takes the lock as soon as it is free, within `wait`. Requests of one process get it in order
    /// of arrival, processes in the order in which they began to wait. With a `wait` of zero, it
    /// does what [`try_acquire`](Self::try_acquire) does.
    ///
    /// A caller that gives up, by dropping the future, leaves the queue.
    ///
    /// A task that has the lock already, or a handler inside of a layer that has it, waits for
    /// itself until `wait` is over. The layers see that for themselves, a call does not.
    ///
    /// # Example
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_distributed_lock::{Error, LockManager};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Error> {
    /// # let locks = LockManager::in_memory();
    /// let first = locks.acquire("account:7", Duration::from_secs(5)).await?;
    /// let fencing_token = first.fencing_token();
    /// drop(first);
    /// let second = locks.acquire("account:7", Duration::from_secs(5)).await?;
    /// assert!(second.fencing_token() > fencing_token);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// - [`ErrorKind::TimedOut`] if it did not become free within `wait`. If Redis did not say so
    ///   in that time, and the lock may well be free, it is [`ErrorKind::Unavailable`].
    /// - [`ErrorKind::QueueFull`] if [too many](LockManagerBuilder::max_waiters) wait already.
    /// - [`ErrorKind::Unavailable`] if Redis cannot be reached, refuses, or does not reply within
    ///   the [command timeout](LockManagerBuilder::command_timeout). A caller that is in the queue
    ///   already when Redis goes away stays there: it goes on when Redis is back, or is told so
    ///   when its wait is over.
    /// - [`ErrorKind::InvalidKey`] if the key is empty, [`ErrorKind::Closed`] if the manager is.
    pub async fn acquire<K>(&self, key: K, wait: Duration) -> Result<LockGuard, Error>
    where
        K: IntoLockKey,
    {
        let key = key.into_lock_key()?;
        self.take(&self.core.meter, key, Some(wait), Mode::Exclusive)
            .await
    }

    /// Shares the lock if no request has it alone, or waits to have it alone.
    ///
    /// Like [`try_acquire`](Self::try_acquire), for work that only reads what the lock protects:
    /// see [`acquire_shared`](Self::acquire_shared).
    ///
    /// # Example
    ///
    /// ```
    /// # use tower_distributed_lock::{Error, ErrorKind, LockManager};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Error> {
    /// # let locks = LockManager::in_memory();
    /// let reader = locks.try_acquire_shared("report").await?;
    /// let another = locks.try_acquire_shared("report").await?;
    /// let writer = locks.try_acquire("report").await;
    /// assert_eq!(writer.unwrap_err().kind(), ErrorKind::Held);
    /// # drop((reader, another));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// Like [`try_acquire`](Self::try_acquire).
    pub async fn try_acquire_shared<K>(&self, key: K) -> Result<LockGuard, Error>
    where
        K: IntoLockKey,
    {
        let key = key.into_lock_key()?;
        self.take(&self.core.meter, key, None, Mode::Shared).await
    }

    /// Shares the lock with all others that share it, on all nodes, as soon as no request has it
    /// alone, within `wait`.
    ///
    /// The order is that of [`acquire`](Self::acquire): a request that waits to have the lock alone
    /// lets no later one share it before. (If its own node shares the lock, the others learn that
    /// it waits when that is over.) So neither kind starves the other.
    ///
    /// In Redis, it is the process that shares the lock, whatever the number of its requests. It
    /// keeps its share for a moment when the last of their guards is dropped (a fiftieth of the
    /// [time to live](LockManagerBuilder::ttl), at most 100 ms), so that a lock that is mostly
    /// shared costs Redis next to nothing. A request that waits for the lock is given it at once;
    /// one that does not wait may be refused in that moment, if another node sends it. To release
    /// it in Redis before going on, use [`LockGuard::release`].
    ///
    /// The [fencing token](LockGuard::fencing_token) is larger than those of all that had the lock
    /// alone before, and smaller than those of all that will. Requests that share the lock may have
    /// the same one.
    ///
    /// # Deadlocks
    ///
    /// A guard is not upgraded. While it lives, the same task must not [`acquire`](Self::acquire)
    /// the same key: it would wait for itself, until `wait` is over. Release the guard first, and
    /// look again at what was read under it.
    ///
    /// # Example
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_distributed_lock::{Error, LockManager};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Error> {
    /// # let locks = LockManager::in_memory();
    /// let wait = Duration::from_secs(5);
    /// let one = locks.acquire_shared("account:7", wait).await?;
    /// let two = locks.acquire_shared("account:7", wait).await?; // does not wait for the first
    /// # drop((one, two));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// Like [`acquire`](Self::acquire).
    pub async fn acquire_shared<K>(&self, key: K, wait: Duration) -> Result<LockGuard, Error>
    where
        K: IntoLockKey,
    {
        let key = key.into_lock_key()?;
        self.take(&self.core.meter, key, Some(wait), Mode::Shared)
            .await
    }

    pub(crate) async fn take(
        &self,
        meter: &Meter,
        key: LockKey,
        wait: Option<Duration>,
        mode: Mode,
    ) -> Result<LockGuard, Error> {
        let attempt = async {
            let waited = Stopwatch::of_wait(&self.core.meters, meter);
            let result = self.request(meter, &key, wait, mode).await.and_then(lock);
            self.tell_result(meter, &key, result.as_ref(), &waited);
            result
        };
        observe::acquiring(slice::from_ref(&key), meter, attempt).await
    }

    /// Takes the lock of a record, or returns the record that is in its place.
    pub(crate) async fn claim(
        &self,
        meter: &Meter,
        key: &LockKey,
        wait: Option<Duration>,
    ) -> Result<Claimed, Error> {
        let attempt = async {
            let waited = Stopwatch::of_wait(&self.core.meters, meter);
            let record = match self.request(meter, key, wait, Mode::Exclusive).await {
                Ok(Taken::Record(found)) => self.core.store.fetch(key, found).await,
                Ok(Taken::Lock(guard)) => {
                    self.tell_result(meter, key, Ok(&guard), &waited);
                    return Ok(Claimed::Lock(guard));
                }
                Err(error) => Err(error),
            };
            match &record {
                Ok(_) => observe::recorded(key, meter, &waited),
                Err(error) => self.tell_result(meter, key, Err(error), &waited),
            }
            record.map(|record| record.map_or_else(Claimed::Damaged, Claimed::Record))
        };
        observe::acquiring(slice::from_ref(key), meter, attempt).await
    }

    async fn request(
        &self,
        meter: &Meter,
        key: &LockKey,
        wait: Option<Duration>,
        mode: Mode,
    ) -> Result<Taken, Error> {
        let wait = wait.filter(|wait| !wait.is_zero());
        let mut request = self.core.request(key, wait.is_some(), mode, meter)?;
        if let Some(decided) = request.decided() {
            // As after any wait: a task that takes free locks in a loop lets others run.
            consume_budget().await;
            return decided;
        }
        let limit = wait.or_else(|| self.core.store.replies_within());
        decision(request, limit).await
    }

    fn tell_result(
        &self,
        meter: &Meter,
        key: &LockKey,
        result: Result<&LockGuard, &Error>,
        waited: &Stopwatch,
    ) {
        let meters = &self.core.meters;
        match result {
            Ok(guard) => observe::acquired(meters, guard.lease(), waited),
            Err(error) => observe::refused(meters, key, meter, error, waited),
        }
    }

    /// Ends the manager gracefully, and returns when all its locks are released.
    ///
    /// No lock is given out any more ([`ErrorKind::Closed`]), and waiting requests are told so.
    /// Locks that are held stay held, and are renewed, until their guards are dropped.
    ///
    /// It waits for as long as a guard lives. To wait no longer than some time, put it into a
    /// [`tokio::time::timeout`]: closing goes on all the same.
    ///
    /// # Example
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_distributed_lock::{ErrorKind, LockManager};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// # let locks = LockManager::in_memory();
    /// if tokio::time::timeout(Duration::from_secs(10), locks.close()).await.is_err() {
    ///     eprintln!("some locks are still held after 10 s: they will expire");
    /// }
    /// let refused = locks.try_acquire("account:7").await;
    /// assert_eq!(refused.unwrap_err().kind(), ErrorKind::Closed);
    /// # }
    /// ```
    pub async fn close(&self) {
        self.core.close().await;
    }

    /// Tells this manager, and its clones, from others in the process.
    pub(crate) fn id(&self) -> u64 {
        self.core.id
    }
}

/// Waits for the decision on a request. Gives it up when the `limit` is over.
async fn decision(mut request: Request<'_>, limit: Option<Duration>) -> Result<Taken, Error> {
    let decision = match limit {
        Some(limit) => timeout(limit, &mut request.decision).await,
        None => Ok((&mut request.decision).await),
    };
    let decision = match decision {
        Ok(decision) => Some(decision),
        // A process that was stopped sees that the time is over before it sees the decision.
        Err(_) if !request.is_patient => timeout(A_MOMENT, &mut request.decision).await.ok(),
        Err(_) => None,
    };
    // The decision may have come at the last moment, and would be lost with the request.
    let decision = decision.map(Result::ok).or_else(|| {
        request.decision.close();
        request.decision.try_recv().ok().map(Some)
    });
    match decision {
        Some(decision) => {
            request.is_decided = true;
            // The sender is gone: the slot was given up after a panic.
            decision.unwrap_or_else(|| Err(Error::of(ErrorKind::Unavailable)))
        }
        None => {
            let is_patient = request.is_patient;
            let overdue = request.give_up();
            Err(Error::of(match is_patient {
                true => overdue,
                false => ErrorKind::Unavailable,
            }))
        }
    }
}

/// Returns the lock that a request got for a key that has no records.
fn lock(taken: Taken) -> Result<LockGuard, Error> {
    match taken {
        Taken::Lock(guard) => Ok(guard),
        Taken::Record(_) => Err(Error::new(
            ErrorKind::Unavailable,
            "the store replied with a record where only a lock can be",
        )),
    }
}

/// What a request gets for the key of a record.
pub(crate) enum Claimed {
    Lock(LockGuard),
    Record(Bytes),
    /// There is a record, and it cannot be read.
    Damaged(Damage),
}

impl Clone for LockManager {
    fn clone(&self) -> Self {
        Self::from_core(Arc::clone(&self.core))
    }
}

impl Drop for LockManager {
    fn drop(&mut self) {
        if self.core.handles.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.core.wake();
        }
    }
}

impl fmt::Debug for LockManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockManager").finish_non_exhaustive()
    }
}
