//! What a manager and its store say to each other, key by key.

use std::time::Duration;

use bytes::Bytes;

use crate::clock::Time;
use crate::error::Error;

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
    /// Give up whatever this token has: the lock, or its place in the queue. A lock that is free then goes to the next
    /// in the queue. Answer: [`Answer::Released`].
    Release {
        token: u64,
        /// Another process is known to wait for it: not to be kept back.
        wanted: bool,
    },
    /// If the lock still is this token's, put the record that goes along in its place, and tell all in the queue, which is
    /// no more. Answer: [`Answer::Completed`] or [`Answer::Gone`].
    Complete { token: u64 },
    /// Let the lease last for a whole time to live again, if it still is this token's; never create one.
    /// Answer: [`Answer::Renewed`] or [`Answer::Gone`].
    Renew { token: u64 },
    /// Read whether the lock still is this token's. It writes nothing: what is written may be told to
    /// another process as a change, which would look in its turn.
    /// Answer: [`Answer::Intact`] or [`Answer::Gone`].
    Check { token: u64 },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Answer {
    Acquired {
        /// Larger than every fence the store gave out for this key before.
        fence: u64,
        /// Whether other processes are known to wait for this key.
        wanted: bool,
    },
    Held {
        /// When to ask again at the latest: the holder's remaining time to live, `None` if it has no limit.
        remaining: Option<Duration>,
        /// Whether the holder is a client of another kind, whose release is not announced.
        foreign: bool,
    },
    /// The lock of a record cannot be had any more, for this was put in its place.
    Recorded(Bytes),
    Completed,
    Released {
        /// Whether the token had the lock.
        had_it: bool,
        /// Whether the lock went to the next in the queue.
        granted: bool,
    },
    Renewed {
        wanted: bool,
    },
    /// The lock still is this token's.
    Intact,
    /// The lock is not this token's.
    Gone,
}

/// What a store tells of a key unasked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Notice {
    /// The lock went to a token that was first in the queue.
    Granted(Granted),
    /// Another process began to wait for the lock that this token holds.
    Wanted { token: u64 },
    /// Somebody else changed or deleted the lock, or put a record in its place.
    Changed,
}

/// A lock that was given to a token in the queue, for a while: it is to be renewed before that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Granted {
    pub(crate) token: u64,
    /// See [`Answer::Acquired`].
    pub(crate) fence: u64,
    /// How long the store keeps it, as the process that gave it has set: another's settings may differ.
    pub(crate) ttl: Duration,
    /// Whether other processes wait for this key.
    pub(crate) wanted: bool,
    /// A time at which the lock had certainly not been given yet: the lease counts from here. Without one, it has to be
    /// confirmed by an acquire.
    pub(crate) after: Option<Time>,
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
