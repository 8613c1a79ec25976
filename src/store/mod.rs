//! Where locks are kept, and what a store must do.
//!
//! The manager submits [`Command`]s to its [`Store`], which tells the [`Outcome`] of each to the
//! manager's [`Events`], and, unasked, sends [`Notice`]s. A store knows nothing of requests or of
//! HTTP, and the manager does not know which kind of store it has.
//!
//! # Writing another store
//!
//! Another store is a folder here and a variant of [`Store`]. It does what the comments of
//! [`Command`] say, and keeps these rules, on which the [slot](crate::manager::slot) relies:
//!
//! - **Order.** It carries out the commands for one key in the order in which they were submitted.
//!   A command may be carried out twice, as after a reply that was lost, but not after a later one
//!   for its key; only a release may be late, as its token is never used again.
//! - **Outcomes.** It tells one outcome for every command, and `sent_at` is taken before the
//!   command is sent: the lease counts from there. A command that may have been carried out fails
//!   as `unknown`. A command that [ends a hold](Command::ends_hold) is tried again for as long as
//!   there may be a lock.
//! - **Nothing comes into being by accident.** A renewal prolongs what is there and never creates a
//!   lock. A check writes nothing.
//! - **Fences** rise for each key, also when the store has lost its data.
//! - **What it tells unasked.** That the lock went to a token in the queue, that another process
//!   waits for a lock held here, and, from the first check or renewal on, that another client has
//!   changed a lock; [`reconnected`](Events::reconnected) when such notices may have been missed.
//!   A store that cannot watch a lock says `foreign` of it only with a `remaining` that is short.
//! - **Time.** Without a reply, a command that does not end a hold fails within
//!   [`answers_within`](Store::answers_within). A grant expires by itself after its time to live,
//!   and then goes to the next in the queue.
//!
//! `tests/it/manager` runs over every store; the [fake](fake) store shows all that may go wrong.

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
pub(crate) use self::redis::{Damage, Manifest};
use crate::clock::Time;
use crate::error::{Error, ErrorKind};
use crate::key::LockKey;

/// A record of more bytes may not go with its completion: see [`Store::put_aside`].
pub(crate) const LONG: usize = 16 << 10;

/// What a store needs to know of its manager's settings.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) prefix: String,
    pub(crate) ttl: Duration,
    pub(crate) grant_ttl: Duration,
    pub(crate) command_timeout: Duration,
    /// Whether no lock is given for a while after data was lost.
    pub(crate) quarantine: bool,
    /// The authority to trust in place of the system's, in PEM form.
    pub(crate) root_certificate: Option<Vec<u8>>,
}

/// What a store calls back.
pub(crate) trait Events {
    /// A command has ended. It is told without what it carried.
    fn replied(&self, key: &LockKey, command: Command<(), ()>, outcome: Outcome);
    fn notice(&self, key: &LockKey, notice: Notice);
    /// The store may have missed notices, and is ready again.
    fn reconnected(&self);
    /// Any lock may have been changed by another client.
    fn all_changed(&self);
    /// Whether this token's lease goes on: its completion is worth trying for as long.
    fn is_held(&self, key: &LockKey, token: u64) -> bool;
    /// Whether a key of this manager is in a queue of the store.
    fn awaits_grants(&self) -> bool;
}

/// Is told when the store is connected for the first time, or why it is not.
pub(crate) type Connected = oneshot::Sender<Result<(), Error>>;

/// A command that a store was done with at once.
pub(crate) struct Done {
    pub(crate) outcome: Outcome,
    /// What else there is to tell of the key.
    pub(crate) notice: Option<Notice>,
    /// Who is to be told what of the end of a hold.
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
    #[cfg(all(test, feature = "properties"))]
    Fake(fake::FakeStore),
}

impl Store {
    /// Returns a store in this process.
    pub(crate) fn in_memory(options: &Options) -> Self {
        Self::Memory(memory::MemoryStore::new(options.ttl))
    }

    /// Returns the store at that URL. [`run`](Self::run) connects to it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] if the URL is not valid. The error does not repeat it.
    pub(crate) fn at(url: &str, options: Options) -> Result<Self, Error> {
        Ok(Self::Redis(redis::RedisStore::new(url, options)?))
    }

    /// Takes over a command. If the store is done with it at once, it says so here; otherwise it
    /// calls its [`Events`] later.
    pub(crate) fn submit(&self, now: Time, key: &LockKey, command: Command) -> Option<Done> {
        match self {
            Self::Memory(memory) => Some(memory.execute(now, key, command)),
            Self::Redis(redis) => redis.submit(now, key, command).map(Done::new),
            #[cfg(all(test, feature = "properties"))]
            Self::Fake(fake) => {
                fake.submit(now, key, command);
                None
            }
        }
    }

    /// Does what the store has to do in the background, until `is_finished`. If it is dropped
    /// before, it can be run again. Where a caller waits to be told that the store is `connected`,
    /// it ends if it cannot connect.
    pub(crate) async fn run(
        &self,
        connected: Option<Connected>,
        events: &impl Events,
        is_finished: impl Fn() -> bool,
    ) {
        match self {
            Self::Redis(redis) => redis.run(connected, events, is_finished).await,
            Self::Memory(_) => std::future::pending().await,
            #[cfg(all(test, feature = "properties"))]
            Self::Fake(_) => std::future::pending().await,
        }
    }

    /// Makes [`run`](Self::run) see whether it is finished.
    pub(crate) fn wake(&self) {
        if let Self::Redis(redis) = self {
            redis.wake();
        }
    }

    /// Whether nothing goes on while [`run`](Self::run) is not polled. The time of a store in
    /// memory is that of the runtime, which a test may hold still.
    pub(crate) fn needs_to_run(&self) -> bool {
        match self {
            Self::Redis(_) => true,
            Self::Memory(_) => false,
            #[cfg(all(test, feature = "properties"))]
            Self::Fake(_) => false,
        }
    }

    /// Returns how long it may take until an acquire is answered, as long as the store runs.
    /// `None`: it is answered at once.
    pub(crate) fn answers_within(&self) -> Option<Duration> {
        match self {
            Self::Redis(redis) => Some(redis.answers_within()),
            Self::Memory(_) => None,
            #[cfg(all(test, feature = "properties"))]
            Self::Fake(fake) => Some(fake.answers_within()),
        }
    }

    /// Returns how long it may take to put a record aside, if that is to be done.
    pub(crate) fn time_to_put_aside(&self, record: &Record) -> Option<Duration> {
        match self {
            Self::Redis(redis) if record.content.len() > LONG => Some(redis.patience()),
            Self::Redis(_) | Self::Memory(_) => None,
            #[cfg(all(test, feature = "properties"))]
            Self::Fake(_) => None,
        }
    }

    /// Puts a record aside that is too long to go with its completion. Returns what is to take the
    /// lock's place instead.
    ///
    /// `hold` is how much longer the lock can be held at most. Gives up when it is `lost`.
    pub(crate) async fn put_aside(
        &self,
        key: &LockKey,
        record: &Record,
        hold: Duration,
        lost: impl Future,
    ) -> Result<Manifest, Error> {
        match self {
            Self::Redis(redis) => redis.put_aside(key, record, hold, lost).await,
            Self::Memory(_) => unreachable!("it takes records of any length"),
            #[cfg(all(test, feature = "properties"))]
            Self::Fake(_) => unreachable!("it takes records of any length"),
        }
    }

    /// Deletes what was put aside, where the manifest did not take the lock's place.
    pub(crate) async fn discard(&self, key: &LockKey, manifest: Manifest) {
        if let Self::Redis(redis) = self {
            redis.discard(key, manifest.parts()).await;
        }
    }

    /// Returns the record that was put in the lock's place, for what was `found` there.
    pub(crate) async fn fetch(
        &self,
        key: &LockKey,
        found: Bytes,
    ) -> Result<Result<Bytes, Damage>, Error> {
        match self {
            Self::Memory(_) => Ok(Ok(found)),
            Self::Redis(redis) => redis.fetch(key, found).await,
            #[cfg(all(test, feature = "properties"))]
            Self::Fake(_) => Ok(Ok(found)),
        }
    }

    /// Whether the store can be asked at this moment, as far as is known.
    pub(crate) fn is_available(&self) -> bool {
        match self {
            Self::Memory(_) => true,
            Self::Redis(redis) => redis.is_connected(),
            #[cfg(all(test, feature = "properties"))]
            Self::Fake(fake) => fake.is_connected(),
        }
    }

    /// Whether no command that was submitted is still in flight.
    pub(crate) fn is_drained(&self) -> bool {
        match self {
            Self::Memory(_) => true,
            Self::Redis(redis) => redis.is_drained(),
            #[cfg(all(test, feature = "properties"))]
            Self::Fake(fake) => fake.is_drained(),
        }
    }
}

/// Returns what the end of a release or a completion means for who waits for it.
fn settled(result: &Result<Reply, Failure>) -> Result<(), Error> {
    match result {
        Ok(Reply::Released { had_it: true, .. } | Reply::Completed) => Ok(()),
        Ok(_) => Err(Error::of(ErrorKind::Lost)),
        Err(failure) => Err(failure.error.clone()),
    }
}
