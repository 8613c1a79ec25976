//! Where locks are kept, and what a store must do.
//!
//! The manager hands [`Command`]s to its store, which answers with [`Answer`]s and, unasked, sends [`Notice`]s. A store
//! carries out the commands for one key in the order in which it got them. It knows nothing of requests or waiters.

pub(crate) mod memory;
pub(crate) mod redis;

use std::time::Duration;

use tokio::sync::oneshot;

use crate::clock::Time;
use crate::error::Error;
use crate::key::LockKey;

/// What the manager asks of a store, for one key. A token names an owner of the lock, and is never used for two: the
/// manager gives it a number, to which a store that others share adds the manager's UUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Command {
    /// Take the lock if it is free or is this token's already. Answer: [`Answer::Acquired`] or [`Answer::Held`].
    Acquire {
        token: u64,
        /// If it is held, put the token into the key's queue (once), and tell the holder.
        queue: bool,
        /// If it is held, send [`Notice::Changed`] when that changes: for a holder whose release is not announced.
        watch: bool,
        /// The token was asked for before, and may be in the queue.
        again: bool,
    },
    /// Give up whatever this token has: the lock, which goes to the next in the queue, or its place there.
    /// Answer: [`Answer::Released`] if it had the lock, else [`Answer::Gone`].
    Release {
        token: u64,
        /// Another process is known to wait for it: not to be kept back.
        wanted: bool,
    },
    /// Let the lease last for a whole time to live again, if it still is this token's; never create one.
    /// Answer: [`Answer::Renewed`] or [`Answer::Gone`].
    Renew { token: u64 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Answer {
    Acquired {
        /// Larger than every fence the store gave out for this key before.
        fence: u64,
        /// Whether other processes wait for this key.
        wanted: bool,
    },
    Held {
        /// The holder's remaining time to live, `None` if it has no limit.
        remaining: Option<Duration>,
        /// Whether the holder is a client of another kind, whose release is not announced.
        foreign: bool,
    },
    Released,
    Renewed {
        wanted: bool,
    },
    Gone,
}

/// What a store tells of a key unasked. All are hints: acting on one that is stale does no harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Notice {
    /// The lock now belongs to this token, which was first in the queue.
    Granted { token: u64 },
    /// Another process began to wait for the lock that this token holds.
    Wanted { token: u64 },
    /// This token is next in line, behind a process that may not take up its grant.
    Next { token: u64 },
    /// Somebody else changed or deleted the lock.
    Changed,
}

/// How a command ended.
pub(crate) struct Outcome {
    /// Taken before the command was sent: a lease counts from here.
    pub(crate) sent_at: Time,
    pub(crate) result: Result<Answer, Failure>,
}

/// A command without an answer.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) error: Error,
    /// Whether the command may have been carried out all the same.
    pub(crate) unknown: bool,
}

/// Tells whoever released a lock how that went.
pub(crate) type Receipt = oneshot::Sender<Result<(), Error>>;

/// What a store calls back.
pub(crate) trait Events {
    fn answered(&self, key: &LockKey, command: Command, outcome: Outcome);
    fn notice(&self, key: &LockKey, notice: Notice);
    /// The store may have missed notices, and is ready again.
    fn reconnected(&self);
}

#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // One to a manager.
pub(crate) enum Store {
    Memory(memory::MemoryStore),
    Redis(redis::RedisStore),
}

impl Store {
    /// Hands over a command. A store that can tell the outcome at once returns it, with what else there is to tell,
    /// another calls its [`Events`].
    pub(crate) fn submit(
        &self,
        now: Time,
        key: &LockKey,
        command: Command,
        receipt: Option<Receipt>,
    ) -> Option<(Outcome, Option<Notice>)> {
        match self {
            Self::Memory(memory) => {
                let answered = memory.execute(now, key, command);
                if let Some(receipt) = receipt {
                    let _ = receipt.send(settled(&answered.0.result));
                }
                Some(answered)
            }
            Self::Redis(redis) => {
                redis.submit(now, key, command, receipt);
                None
            }
        }
    }

    /// Whether the store can be asked at this moment, as far as is known.
    pub(crate) fn is_available(&self) -> bool {
        match self {
            Self::Memory(_) => true,
            Self::Redis(redis) => redis.is_connected(),
        }
    }

    /// Whether nothing that was submitted is still on its way.
    pub(crate) fn is_drained(&self) -> bool {
        match self {
            Self::Memory(_) => true,
            Self::Redis(redis) => redis.is_drained(),
        }
    }
}

/// What a release's answer means for whoever waits for it.
fn settled(result: &Result<Answer, Failure>) -> Result<(), Error> {
    match result {
        Ok(Answer::Released) => Ok(()),
        Ok(_) => Err(Error::of(crate::error::ErrorKind::Lost)),
        Err(failure) => Err(failure.error.clone()),
    }
}
