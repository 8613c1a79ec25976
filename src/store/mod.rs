//! Where locks are kept, and what a store must do.
//!
//! The manager submits [`Command`]s to its [`Store`], which reports the [`Outcome`] of each to the
//! manager's [`Events`], and sends [`Notice`]s of its own accord. A store knows nothing of requests
//! or of HTTP, and the manager does not know which kind of store it has.
//!
//! # Writing another store
//!
//! Another store is a folder here and a variant of [`Store`]. It does what the comments of
//! [`Command`] say, and keeps these rules, on which the [slot](crate::manager::slot) relies:
//!
//! - **Order.** The commands for one key are carried out in the order in which they were submitted,
//!   with two exceptions.
//!   - After a connection broke, what was sent there without a reply may be sent again, and so be
//!     carried out twice. The copy on the old connection may even be carried out late, behind later
//!     commands for its key. The manager submits no later acquire with the token of one that
//!     failed. If a late copy gets something for a token that was given up, the manager releases it
//!     as soon as a notice tells of it. Without a notice, it expires.
//!   - A release or a completion that the store refused is tried again. Later commands for its key
//!     may be carried out before it. It can end no other hold, as its token has no later one.
//! - **Repetition.** A completion that is carried out twice has the reply [`Reply::Completed`] both
//!   times. A release that was sent twice and finds nothing is
//!   [unavailable](ErrorKind::Unavailable) to its caller, not lost: the first copy may have
//!   released the lock. So is one that had to wait for its server, as the manager may have released
//!   the token once more after a notice.
//! - **Outcomes.** Every command has one outcome. Its `sent_at` is taken before the command is
//!   sent: the lease counts from there. An acquire that may have been carried out, or may still be,
//!   fails as `unknown`: the manager then releases its token. A command that [ends a
//!   hold](Command::ends_hold) is tried again for as long as there may be a lock.
//! - **Renewals and checks** never create a lock. A renewal prolongs the one that is there. A check
//!   writes nothing.
//! - **Fences** rise for each key, also after the store has lost its data.
//! - **Notices.** The store tells a process that the lock went to its token in the queue, that
//!   another process began to wait for the lock that it holds, and that a record took the place of
//!   the lock for which it queues. After each check, renewal and watching acquire, it tells of the
//!   next change that another client makes to the lock. A store that cannot watch a lock says
//!   `foreign` of it only with a short `remaining`, after which the manager acquires again.
//! - **Lost notices.** When notices may have been missed, the store calls
//!   [`reconnected`](Events::reconnected).
//! - **Time.** As long as the store runs, a command that does not end a hold has its outcome within
//!   [`replies_within`](Store::replies_within). A grant that its process does not renew expires
//!   after its time to live. Then the next in the queue gets the lock, unless an acquire comes
//!   first: without a notice, waiting processes acquire again when `remaining` is over.
//!
//! `tests/it/manager` runs over every store. `manager::core::tests` puts a fake server behind the
//! manager, and everything that may go wrong in between.

#[cfg(all(test, feature = "properties"))]
pub(crate) mod fake;
mod memory;
mod protocol;
mod redis;

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;

pub(crate) use self::protocol::{
    Command, Failure, Granted, Notice, Outcome, Record, Reply, ReplySender,
};
#[cfg(fuzzing)]
pub(crate) use self::redis::fuzzing;
pub(crate) use self::redis::{AddressMap, CredentialsCallback, Damage, HeldBack, Manifest, Tls};
pub use self::redis::{Credentials, RedisServer};
use crate::clock::Time;
use crate::error::{Error, ErrorKind};
use crate::inspect::{LockCursor, LockPage, LockReport};
use crate::key::LockKey;

/// The most bytes of a record that may go with its completion. A longer one is [put
/// aside](Store::put_aside) first.
pub(crate) const LONG_RECORD: usize = 16 << 10;

/// The settings of the manager that a store needs.
#[derive(Debug)]
pub(crate) struct Options {
    /// What this process is called.
    pub(crate) instance: String,
    pub(crate) prefix: String,
    pub(crate) ttl: Duration,
    pub(crate) grant_ttl: Duration,
    pub(crate) command_timeout: Duration,
    /// Whether no lock is given for a time to live after data was lost.
    pub(crate) quarantine: bool,
    /// How many replicas must have a lock before it is given.
    pub(crate) min_replicas: u32,
    pub(crate) tls: Tls,
    /// Asked at each login, in place of what the URL says.
    pub(crate) credentials: Option<CredentialsCallback>,
    /// Where the servers are of which others tell.
    pub(crate) address_map: Option<AddressMap>,
}

/// Where the locks are kept in Redis.
#[derive(Debug)]
pub(crate) enum Servers {
    One(RedisServer),
    /// In the primary of that name, which the sentinels know.
    Sentinel {
        sentinels: Vec<RedisServer>,
        primary: RedisServer,
    },
    /// In the cluster to which these belong.
    Cluster(Vec<RedisServer>),
}

/// The calls that a store makes to its manager.
pub(crate) trait Events {
    /// A command has ended: `command` is what it was, without what it carried.
    fn replied(&self, key: &LockKey, command: Command<(), ()>, outcome: Outcome);
    fn notice(&self, key: &LockKey, notice: Notice);
    /// The store may have missed notices, and is ready again.
    fn reconnected(&self);
    /// Any lock may have been changed by another client.
    fn all_changed(&self);
    /// Returns whether the slot still keeps the lock for this token: for as long, its completion is
    /// worth trying.
    fn is_held(&self, key: &LockKey, token: u64) -> bool;
    /// Returns whether this manager waits for a grant of any key.
    fn awaits_grants(&self) -> bool;
}

/// Tells a caller when the store is connected for the first time, or why it cannot be.
pub(crate) type Connected = oneshot::Sender<Result<(), Error>>;

/// The outcome of a command that a store carried out at once.
pub(crate) struct Done {
    pub(crate) outcome: Outcome,
    /// A notice about the same key.
    pub(crate) notice: Option<Notice>,
    /// The caller of a release or a completion, and its result.
    pub(crate) settled: Option<(ReplySender, Result<(), Error>)>,
}

impl Done {
    fn new(outcome: Outcome) -> Self {
        Self {
            outcome,
            notice: None,
            settled: None,
        }
    }
}

#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // One to a manager.
pub(crate) enum Store {
    Memory(memory::MemoryStore),
    Redis(redis::RedisStore),
    Cluster(redis::ClusterStore),
    #[cfg(all(test, feature = "properties"))]
    Fake(fake::FakeStore),
}

impl Store {
    /// Returns a store in this process.
    pub(crate) fn in_memory(options: &Options) -> Self {
        Self::Memory(memory::MemoryStore::new(
            options.ttl,
            options.instance.clone(),
        ))
    }

    /// Returns what this process is called.
    #[cfg(feature = "inspector")]
    pub(crate) fn instance(&self) -> &str {
        match self {
            Self::Memory(store) => store.instance(),
            Self::Redis(store) => store.instance(),
            Self::Cluster(store) => store.instance(),
            #[cfg(all(test, feature = "properties"))]
            Self::Fake(_) => "fake",
        }
    }

    /// Returns the store in these servers, to which [`run`](Self::run) connects.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] if a URL is not valid. The error does not repeat it.
    pub(crate) fn at(servers: Servers, options: &Options) -> Result<Self, Error> {
        Ok(match servers {
            Servers::Cluster(servers) => Self::Cluster(redis::ClusterStore::new(servers, options)?),
            servers => Self::Redis(redis::RedisStore::new(servers, options)?),
        })
    }

    /// Takes over a command. Returns its outcome if there is one at once. Otherwise, the store
    /// calls its [`Events`] later.
    pub(crate) fn submit(&self, now: Time, key: &LockKey, command: Command) -> Option<Done> {
        match self {
            Self::Memory(memory) => Some(memory.execute(now, key, command)),
            Self::Redis(redis) => redis.submit(now, key, command).map(Done::new),
            Self::Cluster(cluster) => cluster.submit(now, key, command).map(Done::new),
            #[cfg(all(test, feature = "properties"))]
            Self::Fake(fake) => {
                fake.submit(now, key, command);
                None
            }
        }
    }

    /// Keeps back the commands that are submitted until the returned value is dropped, so that they
    /// go out together. Those for a cluster mostly go to several servers, and are not kept back.
    pub(crate) fn hold_back(&self) -> Option<HeldBack<'_>> {
        match self {
            Self::Redis(redis) => Some(redis.hold_back()),
            Self::Memory(_) | Self::Cluster(_) => None,
            #[cfg(all(test, feature = "properties"))]
            Self::Fake(_) => None,
        }
    }

    /// Does the store's work in the background, until `is_finished`. If the future is dropped
    /// before then, the store can be run again. If a caller waits for `connected`, the future also
    /// ends when the first attempt to connect fails.
    pub(crate) async fn run(
        &self,
        connected: Option<Connected>,
        events: &impl Events,
        is_finished: impl Fn() -> bool,
    ) {
        match self {
            Self::Redis(redis) => redis.run(connected, events, is_finished).await,
            Self::Cluster(cluster) => cluster.run(connected, events, is_finished).await,
            Self::Memory(_) => std::future::pending().await,
            #[cfg(all(test, feature = "properties"))]
            Self::Fake(_) => std::future::pending().await,
        }
    }

    /// Closes the connections that [`run`](Self::run) has not made, now that it is finished.
    pub(crate) fn disconnect(&self) {
        match self {
            Self::Redis(redis) => redis.disconnect(),
            Self::Cluster(cluster) => cluster.disconnect(),
            Self::Memory(_) => {}
            #[cfg(all(test, feature = "properties"))]
            Self::Fake(_) => {}
        }
    }

    /// Makes [`run`](Self::run) ask whether it is finished.
    pub(crate) fn wake(&self) {
        match self {
            Self::Redis(redis) => redis.wake(),
            Self::Cluster(cluster) => cluster.wake(),
            Self::Memory(_) => {}
            #[cfg(all(test, feature = "properties"))]
            Self::Fake(_) => {}
        }
    }

    /// Returns whether commands make progress only while [`run`](Self::run) is polled. If they do
    /// not need that, as in memory, the background task may run on any runtime, and a test can hold
    /// its time still.
    pub(crate) fn needs_to_run(&self) -> bool {
        match self {
            Self::Redis(_) | Self::Cluster(_) => true,
            Self::Memory(_) => false,
            #[cfg(all(test, feature = "properties"))]
            Self::Fake(_) => false,
        }
    }

    /// Returns how long it may take until an acquire has its outcome, as long as the store runs.
    /// `None`: it has it at once.
    pub(crate) fn replies_within(&self) -> Option<Duration> {
        match self {
            Self::Redis(redis) => Some(redis.replies_within()),
            Self::Cluster(cluster) => Some(cluster.replies_within()),
            Self::Memory(_) => None,
            #[cfg(all(test, feature = "properties"))]
            Self::Fake(fake) => Some(fake.replies_within()),
        }
    }

    /// Returns how long it may take to put this record aside, `None` if it is short enough to go
    /// with its completion.
    pub(crate) fn time_to_put_aside(&self, record: &Record) -> Option<Duration> {
        match self {
            _ if record.content.len() <= LONG_RECORD => None,
            Self::Redis(redis) => Some(redis.time_to_put_aside()),
            Self::Cluster(cluster) => Some(cluster.time_to_put_aside()),
            Self::Memory(_) => None,
            #[cfg(all(test, feature = "properties"))]
            Self::Fake(_) => None,
        }
    }

    /// Writes a record that is too long to go with its completion. Returns the manifest that is to
    /// take the lock's place in its stead.
    ///
    /// `hold` is how much longer the lock can be held at most. Gives up when the lock is `lost`.
    pub(crate) async fn put_aside(
        &self,
        key: &LockKey,
        record: &Record,
        hold: Duration,
        lost: impl Future,
    ) -> Result<Manifest, Error> {
        match self {
            Self::Redis(redis) => redis.put_aside(key, record, hold, lost).await,
            Self::Cluster(cluster) => cluster.put_aside(key, record, hold, lost).await,
            Self::Memory(_) => unreachable!("this store takes records of any length"),
            #[cfg(all(test, feature = "properties"))]
            Self::Fake(_) => unreachable!("this store takes records of any length"),
        }
    }

    /// Deletes a record that was put aside, if its manifest did not take the lock's place.
    pub(crate) async fn discard(&self, key: &LockKey, manifest: Manifest) {
        match self {
            Self::Redis(redis) => redis.discard(key, manifest.parts()).await,
            Self::Cluster(cluster) => cluster.discard(key, manifest).await,
            Self::Memory(_) => {}
            #[cfg(all(test, feature = "properties"))]
            Self::Fake(_) => {}
        }
    }

    /// Deletes the record in a lock's place. A lock stays. Returns whether there was a record.
    pub(crate) async fn forget(&self, key: &LockKey) -> Result<bool, Error> {
        match self {
            Self::Memory(memory) => Ok(memory.forget(key)),
            Self::Redis(redis) => redis.forget(key).await,
            Self::Cluster(cluster) => cluster.forget(key).await,
            #[cfg(all(test, feature = "properties"))]
            Self::Fake(_) => unreachable!("programs forget nothing"),
        }
    }

    /// Returns the record for what was `found` in the lock's place: the record itself, or its
    /// manifest.
    pub(crate) async fn fetch(
        &self,
        key: &LockKey,
        found: Bytes,
    ) -> Result<Result<Bytes, Damage>, Error> {
        match self {
            Self::Memory(_) => Ok(Ok(found)),
            Self::Redis(redis) => redis.fetch(key, found).await,
            Self::Cluster(cluster) => cluster.fetch(key, found).await,
            #[cfg(all(test, feature = "properties"))]
            Self::Fake(_) => Ok(Ok(found)),
        }
    }

    /// Waits until the store has shown that locks can be taken.
    pub(crate) async fn ping(&self) -> Result<(), Error> {
        match self {
            Self::Redis(redis) => redis.ping().await,
            Self::Cluster(cluster) => cluster.ping().await,
            Self::Memory(_) => Ok(()),
            #[cfg(all(test, feature = "properties"))]
            Self::Fake(_) => Ok(()),
        }
    }

    /// Returns what the store knows of a lock.
    pub(crate) async fn inspect(&self, key: &LockKey) -> Result<LockReport, Error> {
        match self {
            Self::Redis(redis) => redis.inspect(key).await,
            Self::Cluster(cluster) => cluster.inspect(key).await,
            Self::Memory(memory) => Ok(memory.inspect(Time::now(), key)),
            #[cfg(all(test, feature = "properties"))]
            Self::Fake(_) => unreachable!("no test asks"),
        }
    }

    /// Returns what the store knows of some locks or records, and where the next ones are.
    pub(crate) async fn list(&self, cursor: LockCursor) -> Result<LockPage, Error> {
        match self {
            Self::Redis(redis) => redis.list(cursor).await,
            Self::Cluster(cluster) => cluster.list(cursor).await,
            Self::Memory(memory) => Ok(memory.list(Time::now(), cursor)),
            #[cfg(all(test, feature = "properties"))]
            Self::Fake(_) => unreachable!("no test asks"),
        }
    }

    /// Takes a lock from its holder, and gives it to the next in the queue. Returns whether there
    /// was a holder. If it is of this crate, it is told that its lock has
    /// [changed](Notice::Changed).
    pub(crate) async fn force_release(&self, key: &LockKey) -> Result<bool, Error> {
        match self {
            Self::Redis(redis) => redis.force_release(key).await,
            Self::Cluster(cluster) => cluster.force_release(key).await,
            Self::Memory(memory) => memory.force_release(key),
            #[cfg(all(test, feature = "properties"))]
            Self::Fake(_) => unreachable!("no test asks"),
        }
    }

    /// Returns whether commands can get to the store at this moment, as far as is known.
    pub(crate) fn is_available(&self) -> bool {
        match self {
            Self::Memory(_) => true,
            Self::Redis(redis) => redis.is_connected(),
            Self::Cluster(cluster) => cluster.is_connected(),
            #[cfg(all(test, feature = "properties"))]
            Self::Fake(fake) => fake.is_connected(),
        }
    }

    /// Returns whether every command that was submitted has its outcome.
    pub(crate) fn is_drained(&self) -> bool {
        match self {
            Self::Memory(_) => true,
            Self::Redis(redis) => redis.is_drained(),
            Self::Cluster(cluster) => cluster.is_drained(),
            #[cfg(all(test, feature = "properties"))]
            Self::Fake(fake) => fake.is_drained(),
        }
    }
}

/// Returns what the outcome of a release or a completion means for its caller.
fn settled(result: &Result<Reply, Failure>) -> Result<(), Error> {
    match result {
        Ok(Reply::Released { had_it: true, .. } | Reply::Completed) => Ok(()),
        Ok(_) => Err(Error::of(ErrorKind::Lost)),
        Err(failure) => Err(failure.error.clone()),
    }
}
