//! Points in time that the state machine can compare, print and be tested with.

use std::sync::OnceLock;
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

impl Time {
    pub(crate) fn now() -> Self {
        let epoch = epoch();
        Self(Instant::now().saturating_duration_since(epoch).as_nanos() as u64)
    }

    pub(crate) fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    pub(crate) fn as_nanos(self) -> u64 {
        self.0
    }

    pub(crate) fn instant(self) -> Instant {
        epoch() + Duration::from_nanos(self.0)
    }

    /// How long after `earlier` this is, zero if it is not.
    pub(crate) fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
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
