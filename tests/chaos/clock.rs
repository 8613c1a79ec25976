//! The clock that all processes of the machine share: CLOCK_MONOTONIC, in ns.

use rustix::time::{ClockId, clock_gettime};

pub fn nanos() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

pub const MS: u64 = 1_000_000;
