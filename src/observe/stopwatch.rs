//! [`Stopwatch`]: measures how long a request waits for a lock, or holds it.

#[cfg(any(feature = "tracing", feature = "metrics"))]
use std::time::Duration;

use super::Meter;
#[cfg(any(feature = "tracing", feature = "metrics"))]
use crate::clock::Time;

/// Reads the clock only if an event or a metric may need it.
pub(crate) struct Stopwatch {
    #[cfg(any(feature = "tracing", feature = "metrics"))]
    started: Option<Time>,
}

impl Stopwatch {
    #[cfg_attr(
        not(feature = "metrics"),
        allow(unused_variables, clippy::missing_const_for_fn)
    )]
    pub(crate) fn start(meter: &Meter) -> Self {
        Self {
            #[cfg(any(feature = "tracing", feature = "metrics"))]
            started: may_be_told(meter).then(Time::now),
        }
    }

    #[cfg(any(feature = "tracing", feature = "metrics"))]
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
