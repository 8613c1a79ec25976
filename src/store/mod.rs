//! Where locks are kept, and what a store must do.
//!
//! The manager hands [`Command`]s to its store, which answers with [`Answer`]s and, unasked, sends [`Notice`]s. A store
//! carries out the commands for one key in the order in which it got them. It knows nothing of requests or waiters.

#[cfg(all(test, feature = "properties"))]
pub(crate) mod fake;
pub(crate) mod memory;
mod protocol;
pub(crate) mod redis;

#[cfg(fuzzing)]
pub(crate) use self::redis::fuzzing;
pub(crate) use self::redis::{Damage, Manifest};

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;

pub(crate) use self::protocol::{Answer, Command, Failure, Granted, Notice, Outcome};
use crate::clock::Time;
use crate::error::Error;
use crate::key::LockKey;
use crate::shield::shielded;

/// Tells whoever released a lock how that went.
pub(crate) type Receipt = oneshot::Sender<Result<(), Error>>;

/// A record of more bytes does not go with its completion: see [`Store::put_aside`].
pub(crate) const LONG: usize = 16 << 10;

/// What takes the place of a lock.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) content: Bytes,
    /// For how long.
    pub(crate) retention: Duration,
}

/// What goes along with the command that ends a hold.
#[derive(Debug, Default)]
pub(crate) struct Farewell {
    pub(crate) receipt: Option<Receipt>,
    /// For a [`Command::Complete`].
    pub(crate) record: Option<Record>,
}

/// What a store calls back.
pub(crate) trait Events {
    fn answered(&self, key: &LockKey, command: Command, outcome: Outcome);
    fn notice(&self, key: &LockKey, notice: Notice);
    /// The store may have missed notices, and is ready again.
    fn reconnected(&self);
    /// Any lock may have been changed by another.
    fn all_changed(&self);
    /// Whether this token's lease goes on: what it has completed is worth trying for as long.
    fn is_held(&self, key: &LockKey, token: u64) -> bool;
    /// Whether a key of this manager is in a queue of the store.
    fn awaits_grants(&self) -> bool;
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
    /// Hands over a command. A store that can tell the outcome at once returns it, with what else there is to tell,
    /// another calls its [`Events`].
    pub(crate) fn submit(
        &self,
        now: Time,
        key: &LockKey,
        command: Command,
        farewell: Farewell,
    ) -> Option<(Outcome, Option<Notice>)> {
        match self {
            Self::Memory(memory) => {
                let answered = memory.execute(now, key, command, farewell.record);
                if let Some(receipt) = farewell.receipt {
                    shielded(|| receipt.send(settled(&answered.0.result)));
                }
                Some(answered)
            }
            Self::Redis(redis) => {
                let outcome = redis.submit(now, key, command, farewell)?;
                Some((outcome, None))
            }
            #[cfg(all(test, feature = "properties"))]
            Self::Fake(fake) => {
                fake.submit(now, key, command, farewell);
                None
            }
        }
    }

    /// How long it may take to put a record aside, if that is to be done.
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

    /// Whether nothing that was submitted is still on its way.
    pub(crate) fn is_drained(&self) -> bool {
        match self {
            Self::Memory(_) => true,
            Self::Redis(redis) => redis.is_drained(),
            #[cfg(all(test, feature = "properties"))]
            Self::Fake(fake) => fake.is_drained(),
        }
    }
}

/// What the answer to a release, or to a completion, means for whoever waits for it.
fn settled(result: &Result<Answer, Failure>) -> Result<(), Error> {
    match result {
        Ok(Answer::Released { had_it: true, .. } | Answer::Completed) => Ok(()),
        Ok(_) => Err(Error::of(crate::error::ErrorKind::Lost)),
        Err(failure) => Err(failure.error.clone()),
    }
}
