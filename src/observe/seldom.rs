//! [`Seldom`]: keeps an event that strangers can cause from filling the log.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::Time;

const MINUTE: Duration = Duration::from_secs(60);

/// Lets one of many events through, once a minute.
#[derive(Debug, Default)]
pub(super) struct Seldom {
    /// When the last one got through, as [`Time`] in nanoseconds. Zero: none has.
    last: AtomicU64,
}

impl Seldom {
    /// Returns whether the event gets through that comes now.
    pub(super) fn is_due(&self, now: Time) -> bool {
        let last = self.last.load(Ordering::Relaxed);
        if last > 0 && now < Time::from_nanos(last) + MINUTE {
            return false;
        }
        let now = now.as_nanos().max(1);
        // Of several that come at once, one.
        let swapped = self
            .last
            .compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed);
        swapped.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_gets_through_at_once_and_one_more_every_minute() {
        let seldom = Seldom::default();
        let at = |seconds: u64| Time::from_nanos(seconds * 1_000_000_000);
        let through: Vec<u64> = (0..200)
            .filter(|seconds| seldom.is_due(at(*seconds)))
            .collect();
        assert_eq!(through, [0, 61, 121, 181]);
    }
}
