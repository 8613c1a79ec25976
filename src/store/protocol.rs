//! What a manager and its store say to each other, key by key.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::clock::Time;
use crate::error::Error;

/// What the manager asks of a store, for one key.
///
/// A token names a holder of the lock, and is never used for two. The manager gives it a number,
/// to which a store that others share adds the manager's UUID.
///
/// `R` is a record, and `S` is told how the end of a hold went. Both are `()` where a command is
/// only spoken of: see [`bare`](Self::bare).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Command<R = Record, S = Option<ReplySender>> {
    /// Takes the lock if it is free or is this token's already. Reply: [`Reply::Acquired`],
    /// [`Reply::HeldElsewhere`] or [`Reply::Recorded`].
    Acquire {
        token: u64,
        /// If the lock is held, puts the token into the key's queue (once), and tells the holder.
        queue: bool,
        /// If the lock is held, sends [`Notice::Changed`] when that changes: for a holder whose
        /// release is not announced.
        watch: bool,
        /// The token was asked for before, and may be in the queue.
        again: bool,
    },
    /// Gives up whatever this token has: the lock, or its place in the queue. A lock that is free
    /// then goes to the next in the queue. Reply: [`Reply::Released`].
    Release {
        token: u64,
        /// Another process is known to wait for the lock: not to be kept back.
        contended: bool,
        reply: S,
    },
    /// If the lock still is this token's, puts the record in its place, and tells all in the queue,
    /// which is no more. Reply: [`Reply::Completed`] or [`Reply::Gone`].
    Complete { token: u64, record: R, reply: S },
    /// Lets the lease last for a whole time to live again, if it still is this token's; never
    /// creates one. Reply: [`Reply::Renewed`] or [`Reply::Gone`].
    Renew { token: u64 },
    /// Reads whether the lock still is this token's. It writes nothing: what is written may be told
    /// to another process as a change, which would check in its turn.
    /// Reply: [`Reply::Intact`] or [`Reply::Gone`].
    Check { token: u64 },
}

/// Is told how a release or a completion went.
pub(crate) type ReplySender = oneshot::Sender<Result<(), Error>>;

/// What takes the place of a lock.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) content: Bytes,
    /// How long it stays there.
    pub(crate) retention: Duration,
}

impl<R, S> Command<R, S> {
    /// Returns the command without what it carries.
    pub(crate) fn bare(&self) -> Command<(), ()> {
        self.carrying(|_| (), ())
    }

    /// Returns the command with another record and another reply sender.
    pub(crate) fn carrying<Q, T>(
        &self,
        record_of: impl FnOnce(&R) -> Q,
        reply: T,
    ) -> Command<Q, T> {
        match *self {
            Self::Acquire {
                token,
                queue,
                watch,
                again,
            } => Command::Acquire {
                token,
                queue,
                watch,
                again,
            },
            Self::Release {
                token, contended, ..
            } => Command::Release {
                token,
                contended,
                reply,
            },
            Self::Complete {
                token, ref record, ..
            } => Command::Complete {
                token,
                record: record_of(record),
                reply,
            },
            Self::Renew { token } => Command::Renew { token },
            Self::Check { token } => Command::Check { token },
        }
    }

    /// Whether the command is worth trying for as long as there may be a lock.
    pub(crate) fn ends_hold(&self) -> bool {
        matches!(self, Self::Release { .. } | Self::Complete { .. })
    }
}

/// What a store replies to a command.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Reply {
    Acquired {
        /// Larger than every fence the store gave out for this key before.
        fence: u64,
        /// Whether other processes are known to wait for this key.
        contended: bool,
    },
    /// Another token, or a client of another kind, has the lock.
    HeldElsewhere {
        /// When to ask again at the latest: the holder's remaining time to live, `None` if it has
        /// no limit.
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
        contended: bool,
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
    Contended { token: u64 },
    /// Another client changed or deleted the lock, or a record took its place.
    Changed,
}

/// A lock that was given to a token in the queue, for a while: it is to be renewed before that is
/// over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Granted {
    pub(crate) token: u64,
    /// See [`Reply::Acquired`].
    pub(crate) fence: u64,
    /// How long the store keeps it, as the process that gave it has set: another's settings may
    /// differ.
    pub(crate) ttl: Duration,
    /// Whether other processes wait for this key.
    pub(crate) contended: bool,
    /// A time at which the lock had certainly not been given yet: the lease counts from here.
    /// Without one, it has to be confirmed by an acquire.
    pub(crate) after: Option<Time>,
}

/// How a command ended.
pub(crate) struct Outcome {
    /// Taken before the command was sent: a lease counts from here.
    pub(crate) sent_at: Time,
    pub(crate) result: Result<Reply, Failure>,
}

/// A command without a reply.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) error: Error,
    /// Whether the command may have been carried out all the same.
    pub(crate) unknown: bool,
}
