//! [`AcquireAttempt`]: one acquire, from its submission to its outcome.

use crate::mode::Mode;
use crate::store::Command;

/// An acquire that is in flight. See [`Command::Acquire`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct AcquireAttempt {
    pub(super) token: u64,
    pub(super) queue: bool,
    pub(super) watch: bool,
    again: bool,
    /// The requests have just come: before the reply, it is not known whether they must wait.
    pub(super) for_new_requests: bool,
    /// The requests have just come, and are in no queue yet: they are told of a failure.
    pub(super) fresh: bool,
    /// The store has not replied since the requests came, or since the last acquire failed: the
    /// lock may well be free.
    pub(super) unanswered: bool,
}

impl AcquireAttempt {
    /// Returns an acquire for requests that have just come. It does not queue: the lock is free, as
    /// a rule.
    pub(super) fn first(token: u64) -> Self {
        Self {
            token,
            queue: false,
            watch: false,
            again: false,
            for_new_requests: true,
            fresh: true,
            unanswered: true,
        }
    }

    /// Returns an acquire for requests that wait already, with a token that the store has not seen
    /// yet.
    pub(super) fn anew(token: u64) -> Self {
        Self {
            queue: true,
            for_new_requests: false,
            fresh: false,
            unanswered: false,
            ..Self::first(token)
        }
    }

    /// Returns the acquire that follows the [`first`](Self::first), if the lock is held elsewhere:
    /// it queues.
    pub(super) fn queue_up(token: u64, watch: bool) -> Self {
        Self {
            watch,
            fresh: true,
            ..Self::anew(token)
        }
    }

    /// Like [`anew`](Self::anew), after an acquire that failed.
    pub(super) fn after_failure(token: u64) -> Self {
        Self {
            unanswered: true,
            ..Self::anew(token)
        }
    }

    /// Returns an acquire for requests that wait already, with a token that may be in the store's
    /// queue.
    pub(super) fn again(token: u64, watch: bool) -> Self {
        Self {
            token,
            queue: true,
            watch,
            again: true,
            for_new_requests: false,
            fresh: false,
            unanswered: false,
        }
    }

    pub(super) fn command<R, S>(self) -> Command<R, S> {
        Command::Acquire {
            token: self.token,
            mode: Mode::Exclusive,
            queue: self.queue,
            watch: self.watch,
            again: self.again,
        }
    }
}
