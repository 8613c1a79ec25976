//! Commands, replies and notices between a manager and its store. Each is about one key.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::clock::Time;
use crate::error::Error;
use crate::mode::Mode;

/// A command of the manager to its store, for one key.
///
/// A token stands for one hold of a lock in the store, and is never used for another. For the
/// manager, it is a number. A store that several processes share adds the manager's UUID.
///
/// `R` is a record, and `S` tells a caller how its release or completion went. Both are `()` where
/// a command only names what was sent: see [`bare`](Self::bare).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Command<R = Record, S = Option<ReplySender>> {
    /// Takes the lock if it is free or is this token's already, or shares it if it is shared and
    /// no other process waits. Reply: [`Reply::Acquired`], [`Reply::HeldElsewhere`] or
    /// [`Reply::Recorded`].
    Acquire {
        token: u64,
        /// The same for all acquires of a token. Records are not shared.
        mode: Mode,
        /// If the lock is held, puts the token into the key's queue (once). If it is the first
        /// there, tells every holder by [`Notice::Contended`].
        queue: bool,
        /// If the lock is held, sends [`Notice::Changed`] when that changes: for a lock of a client
        /// of another kind, whose release grants it to no token.
        watch: bool,
        /// An earlier acquire had the same token, which may be in the queue.
        again: bool,
    },
    /// Gives up whatever this token has: the lock, its share of it, or its place in the queue. If
    /// the lock is free then, it goes to the next in the queue, or to all at its head that share.
    /// Reply: [`Reply::Released`].
    Release {
        token: u64,
        /// Another process is known to wait for the lock: this release must not let other commands
        /// go first.
        contended: bool,
        /// The token may be in the queue, or share the lock, or others may wait for a lock that it
        /// has lost.
        queued: bool,
        reply: S,
    },
    /// If the lock still is this token's, puts the record in its place, sends [`Notice::Changed`]
    /// to all in the queue, and deletes the queue. Reply: [`Reply::Completed`] or [`Reply::Gone`].
    Complete { token: u64, record: R, reply: S },
    /// If the lock still is this token's, lets its lease last for a whole time to live again. Never
    /// creates a lock. Reply: [`Reply::Renewed`] or [`Reply::Gone`].
    Renew { token: u64, mode: Mode },
    /// Reads whether the lock still is this token's. Writes nothing: a write might be told to
    /// another process as a change, which would check in its turn. A share of a lock is renewed
    /// instead. Reply: [`Reply::Intact`] or [`Reply::Gone`].
    Check { token: u64 },
}

/// Tells a caller how its release or completion went.
pub(crate) type ReplySender = oneshot::Sender<Result<(), Error>>;

/// A record, which takes the place of a lock.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) content: Bytes,
    /// How long the record stays there.
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
                mode,
                queue,
                watch,
                again,
            } => Command::Acquire {
                token,
                mode,
                queue,
                watch,
                again,
            },
            Self::Release {
                token,
                contended,
                queued,
                ..
            } => Command::Release {
                token,
                contended,
                queued,
                reply,
            },
            Self::Complete {
                token, ref record, ..
            } => Command::Complete {
                token,
                record: record_of(record),
                reply,
            },
            Self::Renew { token, mode } => Command::Renew { token, mode },
            Self::Check { token } => Command::Check { token },
        }
    }

    /// Returns whether the command ends a hold, and so is worth trying for as long as there may be
    /// a lock.
    pub(crate) fn ends_hold(&self) -> bool {
        matches!(self, Self::Release { .. } | Self::Complete { .. })
    }
}

/// The reply of a store to a command.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Reply {
    Acquired {
        /// Larger than every fence the store gave out for this key before. Of two that share the
        /// lock, either may have the larger one.
        fence: u64,
        /// Whether other processes are known to wait for this key.
        contended: bool,
    },
    /// Another token, or a client of another kind, has the lock.
    HeldElsewhere {
        /// The holder's remaining time to live, after which to acquire again. `None`: it has no
        /// limit.
        remaining: Option<Duration>,
        /// Whether the holder is a client of another kind, whose release is not announced.
        foreign: bool,
    },
    /// This record was put in the lock's place.
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

/// What a store tells of a key of its own accord.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Notice {
    /// The lock went to the token that was first in the queue, or among those that share at its
    /// head.
    Granted(Granted),
    /// Another process began to wait for the lock that this token holds, or shares.
    Contended { token: u64 },
    /// Another client changed or deleted the lock, or a record took its place.
    Changed,
}

/// A lock that was given to a token in the queue, for a short time to live: its process must renew
/// it before that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Granted {
    pub(crate) token: u64,
    /// See [`Reply::Acquired`].
    pub(crate) fence: u64,
    /// How long the store keeps the grant. It is a setting of the process that released the lock,
    /// which may differ from this one's.
    pub(crate) ttl: Duration,
    /// Whether other processes wait for this key.
    pub(crate) contended: bool,
    /// A time at which the lock had certainly not been granted yet: the lease counts from here.
    /// Without such a time, an acquire has to confirm the grant.
    pub(crate) after: Option<Time>,
}

/// How a command ended.
pub(crate) struct Outcome {
    /// A time before the command was sent: a lease counts from here.
    pub(crate) sent_at: Time,
    pub(crate) result: Result<Reply, Failure>,
}

/// A command that failed.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) error: Error,
    /// Whether the command may have been carried out all the same, or may still be.
    pub(crate) unknown: bool,
}
