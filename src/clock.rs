//! Points in time that the state machine can compare, print and be tested with.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// Nanoseconds on this process's monotonic clock, counted from its first use.
///
/// A plain number rather than an `Instant`: it fits an atomic, and a test can make any.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Time(u64);

fn epoch() -> Instant {
    static EPOCH: OnceLock<Instant> = OnceLock::new();
    *EPOCH.get_or_init(Instant::now)
}

/// For how long the machine has been suspended since then, as far as that was [noticed](Time::now_for_certain).
static SUSPENDED: AtomicU64 = AtomicU64::new(0);

/// Readings of two clocks that are not taken at once differ by this, even though nothing was suspended.
const JITTER: u64 = 50_000_000;

impl Time {
    pub(crate) fn now() -> Self {
        let epoch = epoch();
        let running = Instant::now().saturating_duration_since(epoch).as_nanos() as u64;
        Self(running + SUSPENDED.load(Ordering::Relaxed))
    }

    /// The same, even if the machine was suspended just now: an `Instant` stands still meanwhile, and the server's clock does
    /// not. Costs more, and is for whoever acts on a lease.
    pub(crate) fn now_for_certain() -> Self {
        static BEFORE: OnceLock<u64> = OnceLock::new();
        let total = suspended();
        let noticed = SUSPENDED.load(Ordering::Relaxed);
        let since = newly_suspended(*BEFORE.get_or_init(|| total), total, noticed);
        SUSPENDED.fetch_max(noticed + since, Ordering::Relaxed);
        Self::now()
    }

    pub(crate) fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    pub(crate) fn as_nanos(self) -> u64 {
        self.0
    }

    pub(crate) fn instant(self) -> Instant {
        let running = self.0.saturating_sub(SUSPENDED.load(Ordering::Relaxed));
        epoch() + Duration::from_nanos(running)
    }

    /// How long after `earlier` this is, zero if it is not.
    pub(crate) fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// How much of the time for which the machine was suspended, in all and before the first look, was not noticed yet.
fn newly_suspended(before: u64, total: u64, noticed: u64) -> u64 {
    let new = total.saturating_sub(before).saturating_sub(noticed);
    if new > JITTER { new } else { 0 }
}

/// For how long this machine has been suspended since it was started, in nanoseconds.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn suspended() -> u64 {
    use rustix::time::{ClockId, clock_gettime};
    let nanos = |clock| {
        let time = clock_gettime(clock);
        time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
    };
    let running = nanos(ClockId::Monotonic);
    nanos(ClockId::Boottime).saturating_sub(running)
}

/// Elsewhere, the clock that tells is not known to this crate.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn suspended() -> u64 {
    0
}

/// Saturates a century from now, so that a caller's `Duration::MAX` is harmless.
impl std::ops::Add<Duration> for Time {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        const CENTURY: u64 = 100 * 365 * 24 * 3600 * 1_000_000_000;
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(CENTURY);
        Self(self.0.saturating_add(nanos.min(CENTURY)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_that_a_machine_was_suspended_counts_once() {
        let second = 1_000_000_000;
        // It was for an hour, long before.
        let before = 3600 * second;
        assert_eq!(newly_suspended(before, before, 0), 0);
        assert_eq!(newly_suspended(before, before + JITTER, 0), 0);
        assert_eq!(newly_suspended(before, before + 2 * second, 0), 2 * second);
        assert_eq!(newly_suspended(before, before + 2 * second, 2 * second), 0);
        let (total, noticed) = (before + 5 * second, 2 * second);
        assert_eq!(newly_suspended(before, total, noticed), 3 * second);
        // The clocks are not read at once.
        assert_eq!(newly_suspended(before, before - 1, 0), 0);
    }

    #[test]
    fn a_machine_that_runs_has_one_time() {
        let first = Time::now();
        let second = Time::now_for_certain();
        assert!(first <= second && second.since(first) < Duration::from_secs(1));
    }
}
