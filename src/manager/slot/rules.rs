//! [`Rules`]: the settings that decide what a slot does, and the times that follow from them.

use std::time::Duration;

use crate::clock::Time;
use crate::mode::Mode;

/// How long waiters back off at most after an acquire that failed: the lock may be free.
const MAX_BACKOFF: Duration = Duration::from_secs(1);
/// How long a slot keeps at most what only the next request may need.
const MAX_MOMENT: Duration = Duration::from_millis(100);

/// The settings that decide what a slot does.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    /// Time to live of a lease in the store.
    pub(crate) ttl: Duration,
    /// Time between renewals.
    pub(crate) renewal: Duration,
    /// How long one holder may hold.
    pub(crate) max_hold: Duration,
    /// Time to live of a grant in the store, until its process renews it.
    pub(crate) grant_ttl: Duration,
    /// Waiters of this process for one key.
    pub(crate) max_waiters: usize,
    /// How many hand-offs in this process may go before another process that waits…
    pub(crate) burst: u32,
    /// …and for how long.
    pub(crate) burst_time: Duration,
}

impl Rules {
    /// Returns how long a lease with that time to live is valid, counted from before the command
    /// that got it was sent.
    ///
    /// That is less than the time to live by the rate at which two clocks may drift apart (1 % and
    /// 2 ms, the figures of the Redlock description) and by the time that a holder may take to act
    /// upon the signal of a loss.
    pub(crate) fn validity(ttl: Duration) -> Duration {
        let drift = ttl / 100 + Duration::from_millis(2);
        ttl.saturating_sub(drift + Self::margin(ttl))
    }

    /// Returns how long it may take until a holder acts upon the signal of a loss.
    pub(super) fn margin(ttl: Duration) -> Duration {
        (ttl / 20).min(Duration::from_millis(100))
    }

    /// Returns when a holder that may hold until `limit` knows from the clock that its hold is
    /// over, and when the lock can then go to another.
    pub(super) fn ends_of_hold(&self, limit: Time) -> (Time, Time) {
        (limit, limit + Self::margin(self.ttl))
    }

    /// Returns how long after a fresh lease its first renewal comes. Soon: from then on, the store
    /// tells at once when another client changes the lock. It does not for one that is shared.
    pub(super) fn first_renewal(&self, mode: Mode) -> Duration {
        match mode {
            Mode::Exclusive => self.renewal.min(Duration::from_millis(100)),
            Mode::Shared => self.renewal,
        }
    }

    /// Returns how long a shared hold is kept when no request holds it. The next one is then served
    /// from memory. A moment only, as others find the lock held: a process that waits is given it
    /// at once, but one that does not wait is refused.
    pub(super) fn linger(&self) -> Duration {
        self.moment()
    }

    /// Returns for how long a slot expects other processes, after one wanted the lock. Short: a
    /// round trip matters little to requests that come seldom.
    pub(super) fn memory(&self) -> Duration {
        self.moment()
    }

    fn moment(&self) -> Duration {
        (self.ttl / 50).min(MAX_MOMENT)
    }

    /// Returns how long after a grant its first renewal comes. Soon, as little of the grant may be
    /// left. Most holders of a contended lock have passed it on before then.
    pub(super) fn first_renewal_of_grant(ttl: Duration) -> Duration {
        ttl / 40
    }

    /// Returns how long a grant must still be valid to be acted upon without an acquire that
    /// confirms it.
    pub(super) fn worth_acting_upon(ttl: Duration) -> Duration {
        ttl / 2
    }

    /// Returns how long a lease must still be valid to be handed on.
    pub(super) fn worth_handing_on(&self) -> Duration {
        self.grant_ttl / 4
    }

    /// Returns how long until a command that failed is tried again.
    pub(super) fn soon(&self) -> Duration {
        self.renewal / 8
    }

    /// Returns how long waiters back off after an acquire that failed.
    pub(super) fn backoff(&self) -> Duration {
        self.soon().min(MAX_BACKOFF)
    }
}
