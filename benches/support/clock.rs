//! The clock that processes share: CLOCK_MONOTONIC.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

pub fn nanos() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Returns the same moment on this process's own clock, or now if it has passed.
pub fn instant(nanos: u64) -> Instant {
    Instant::now() + Duration::from_nanos(nanos.saturating_sub(self::nanos()))
}
