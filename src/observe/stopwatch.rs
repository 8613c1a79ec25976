//! [`Stopwatch`]: measures how long a request waits for a lock, or holds it.

#[cfg(any(feature = "tracing", feature = "metrics", feature = "inspector"))]
use std::time::Duration;

use super::{ManagerMeters, Meter};
#[cfg(any(feature = "tracing", feature = "metrics", feature = "inspector"))]
use crate::clock::Time;

/// Reads the clock only if an event, a metric or the journal may need it.
pub(crate) struct Stopwatch {
    #[cfg(any(feature = "tracing", feature = "metrics", feature = "inspector"))]
    started: Option<Time>,
}

#[cfg_attr(
    not(any(feature = "tracing", feature = "metrics", feature = "inspector")),
    allow(unused_variables, clippy::missing_const_for_fn)
)]
impl Stopwatch {
    /// Measures how long a request waits.
    pub(crate) fn of_wait(meters: &ManagerMeters, meter: &Meter) -> Self {
        Self {
            #[cfg(any(feature = "tracing", feature = "metrics", feature = "inspector"))]
            started: (meters.has_journal() || may_be_told(meter)).then(Time::now),
        }
    }

    /// Measures how long a request holds its lock.
    pub(crate) fn of_hold(meter: &Meter) -> Self {
        Self {
            #[cfg(any(feature = "tracing", feature = "metrics", feature = "inspector"))]
            started: may_be_told(meter).then(Time::now),
        }
    }

    #[cfg(any(feature = "tracing", feature = "metrics", feature = "inspector"))]
    pub(super) fn elapsed(&self) -> Duration {
        self.started
            .map_or(Duration::ZERO, |started| Time::now().since(started))
    }
}

/// A subscriber may come at any time, a recorder is there from the beginning.
#[cfg(feature = "tracing")]
fn may_be_told(_meter: &Meter) -> bool {
    true
}

#[cfg(all(feature = "metrics", not(feature = "tracing")))]
fn may_be_told(meter: &Meter) -> bool {
    meter.is_on()
}

/// The journal takes the times of holders by itself.
#[cfg(all(
    feature = "inspector",
    not(any(feature = "tracing", feature = "metrics"))
))]
fn may_be_told(_meter: &Meter) -> bool {
    false
}
