//! [`AcquireAttempt`]: one acquire, from its submission to its outcome.

use crate::mode::Mode;
use crate::store::Command;

/// An acquire that is in flight. See [`Command::Acquire`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct AcquireAttempt {
    pub(super) token: u64,
    /// That of the request which is first in line.
    pub(super) mode: Mode,
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
    pub(super) fn first(token: u64, mode: Mode) -> Self {
        Self {
            token,
            mode,
            queue: false,
            watch: false,
            again: false,
            for_new_requests: true,
            fresh: true,
            unanswered: true,
        }
    }

    /// Like [`first`](Self::first), for a lock that is likely held by another process: it queues,
    /// which saves a round trip.
    pub(super) fn first_in_queue(token: u64, mode: Mode) -> Self {
        Self {
            queue: true,
            ..Self::first(token, mode)
        }
    }

    /// Returns an acquire for requests that wait already, with a token that the store has not seen
    /// yet.
    pub(super) fn anew(token: u64, mode: Mode) -> Self {
        Self {
            queue: true,
            for_new_requests: false,
            fresh: false,
            unanswered: false,
            ..Self::first(token, mode)
        }
    }

    /// Returns the acquire that follows the [`first`](Self::first), if the lock is held elsewhere:
    /// it queues.
    pub(super) fn queue_up(token: u64, mode: Mode, watch: bool) -> Self {
        Self {
            watch,
            fresh: true,
            ..Self::anew(token, mode)
        }
    }

    /// Like [`anew`](Self::anew), after an acquire that failed.
    pub(super) fn after_failure(token: u64, mode: Mode) -> Self {
        Self {
            unanswered: true,
            ..Self::anew(token, mode)
        }
    }

    /// Returns an acquire for requests that wait already, with a token that may be in the store's
    /// queue.
    pub(super) fn again(token: u64, mode: Mode, watch: bool) -> Self {
        Self {
            token,
            mode,
            queue: true,
            watch,
            again: true,
            for_new_requests: false,
            fresh: false,
            unanswered: false,
        }
    }

    /// Returns this acquire in another mode: another request is first in line now. The token must
    /// be new, as one stands for holds in one mode.
    pub(super) fn in_mode(self, mode: Mode, token: u64) -> Self {
        Self {
            token,
            mode,
            watch: false,
            again: false,
            ..self
        }
    }

    /// Returns whether the token may have more than a lock of its own: a place in the queue, or a
    /// share.
    pub(super) fn queued(self) -> bool {
        self.queue || self.mode.is_shared()
    }

    pub(super) fn command<R, S>(self) -> Command<R, S> {
        Command::Acquire {
            token: self.token,
            mode: self.mode,
            queue: self.queue,
            watch: self.watch,
            again: self.again,
        }
    }
}
