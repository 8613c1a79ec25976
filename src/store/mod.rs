//! Where locks are kept, and what a store must do.
//!
//! The manager hands [`Command`]s to its store, which answers with [`Answer`]s and, unasked, sends [`Notice`]s. A store
//! carries out the commands for one key in the order in which it got them. It knows nothing of requests or waiters.

#[cfg(test)]
pub(crate) mod fake;
pub(crate) mod memory;
mod protocol;
pub(crate) mod redis;

#[cfg(fuzzing)]
pub(crate) use self::redis::fuzzing;

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
    #[cfg(test)]
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
            #[cfg(test)]
            Self::Fake(fake) => {
                fake.submit(now, key, command, farewell);
                None
            }
        }
    }

    /// A record that is too long to come with an answer.
    pub(crate) async fn fetch(&self, key: &LockKey) -> Result<Bytes, Error> {
        match self {
            Self::Memory(_) => unreachable!("all of its records come with the answer"),
            Self::Redis(redis) => redis.fetch(key).await,
            #[cfg(test)]
            Self::Fake(_) => Ok(Bytes::from_static(fake::LONG)),
        }
    }

    /// Whether the store can be asked at this moment, as far as is known.
    pub(crate) fn is_available(&self) -> bool {
        match self {
            Self::Memory(_) => true,
            Self::Redis(redis) => redis.is_connected(),
            #[cfg(test)]
            Self::Fake(fake) => fake.is_connected(),
        }
    }

    /// Whether nothing that was submitted is still on its way.
    pub(crate) fn is_drained(&self) -> bool {
        match self {
            Self::Memory(_) => true,
            Self::Redis(redis) => redis.is_drained(),
            #[cfg(test)]
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
