//! The clock that all processes of the machine share: CLOCK_MONOTONIC, in ns.

use rustix::time::{ClockId, clock_gettime};

fn read(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

pub fn nanos() -> u64 {
    read(ClockId::Monotonic)
}

/// Returns how far the wall clock, which Redis reads, is ahead of ours.
pub fn wall_ahead() -> u64 {
    // The closest of a few looks: the process may be interrupted between two clocks.
    let look = || {
        let (before, wall, after) = (nanos(), read(ClockId::Realtime), nanos());
        (after - before, wall - (before + (after - before) / 2))
    };
    (0..5).map(|_| look()).min().unwrap().1
}

pub const MS: u64 = 1_000_000;
