//! [`AcquireAttempt`]: one acquire, from its submission to its reply.

use crate::store::Command;

/// An acquire that is in flight. See [`Command::Acquire`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct AcquireAttempt {
    pub(super) token: u64,
    pub(super) queue: bool,
    pub(super) watch: bool,
    again: bool,
    /// No request has been told to wait yet: they have just come.
    pub(super) first: bool,
    /// The store has not said anything since the requests came, or since it failed them: the lock
    /// may well be free.
    pub(super) unanswered: bool,
}

impl AcquireAttempt {
    /// For requests that have just come.
    pub(super) fn first(token: u64, queue: bool) -> Self {
        Self {
            token,
            queue,
            watch: false,
            again: false,
            first: true,
            unanswered: true,
        }
    }

    /// For requests that wait already, with a token that the store has not seen yet.
    pub(super) fn anew(token: u64) -> Self {
        Self {
            first: false,
            unanswered: false,
            ..Self::first(token, true)
        }
    }

    /// Like [`anew`](Self::anew), after the store has failed to answer.
    pub(super) fn after_failure(token: u64) -> Self {
        Self {
            unanswered: true,
            ..Self::anew(token)
        }
    }

    /// For requests that wait already, with a token that may be in the store's queue.
    pub(super) fn again(token: u64, watch: bool) -> Self {
        Self {
            token,
            queue: true,
            watch,
            again: true,
            first: false,
            unanswered: false,
        }
    }

    pub(super) fn command<R, S>(self) -> Command<R, S> {
        Command::Acquire {
            token: self.token,
            queue: self.queue,
            watch: self.watch,
            again: self.again,
        }
    }
}
