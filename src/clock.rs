//! [`Time`]: a point in time that the state machine can compare and print, and a test can make.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// Nanoseconds on this process's monotonic clock, counted from its first use.
///
/// A plain number rather than an `Instant`: it fits an atomic, and a test can make any.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Time(u64);

/// The clock's first use.
struct Epoch {
    suspended: Suspended,
    /// What the clock that counts suspensions said right before `instant`.
    all: u64,
    instant: Instant,
}

fn epoch() -> &'static Epoch {
    static EPOCH: OnceLock<Epoch> = OnceLock::new();
    EPOCH.get_or_init(|| {
        let suspended = suspended();
        let all = all();
        let instant = Instant::now();
        Epoch {
            suspended,
            all,
            instant,
        }
    })
}

/// For how long the machine has been suspended since the clock's first use, as far as that was
/// [noticed](Time::now_for_certain).
static SUSPENDED: AtomicU64 = AtomicU64::new(0);

/// Two clocks cannot be read at once. A suspension goes unnoticed if it is shorter than the time
/// between their readings. If the scheduler has pulled them further apart than this, in
/// nanoseconds, they are taken again…
const TIGHT: u64 = 20_000;
/// …but no more than so many times in all.
const ATTEMPTS: u32 = 16;

impl Time {
    pub(crate) fn now() -> Self {
        Self(running() + SUSPENDED.load(Ordering::Relaxed))
    }

    /// Returns the time, even if the machine was suspended just now: an `Instant` stands still
    /// meanwhile, and the server's clock does not. Costs more than [`now`](Self::now), and is for
    /// code that relies on a lease.
    pub(crate) fn now_for_certain() -> Self {
        // A suspension that is not counted yet puts the second reading ahead of the first. So does
        // the time between the two: then it is looked at more closely.
        let now = Self::now();
        if all().saturating_sub(epoch().all) <= now.0 + TIGHT {
            return now;
        }
        let since = suspended().since(&epoch().suspended);
        SUSPENDED.fetch_max(since, Ordering::Relaxed);
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
        epoch().instant + Duration::from_nanos(running)
    }

    /// Returns how long after `earlier` this is, zero if it is not.
    pub(crate) fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// Returns the time since the clock's first use without suspensions.
fn running() -> u64 {
    Instant::now()
        .saturating_duration_since(epoch().instant)
        .as_nanos() as u64
}

/// Bounds of how long this machine has been suspended since it was started, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Suspended {
    at_least: u64,
    at_most: u64,
}

impl Suspended {
    /// Reads the clock that counts `all` time between two readings of the one that stands still
    /// during a suspension.
    ///
    /// However far apart the readings are, `at_least` is not too much, nor `at_most` too little.
    fn read(running: impl Fn() -> u64, all: impl Fn() -> u64) -> Self {
        let bracket = || {
            let (earlier, all, later) = (running(), all(), running());
            Self {
                at_least: all.saturating_sub(later),
                at_most: all.saturating_sub(earlier),
            }
        };
        let mut tightest = bracket();
        for _ in 1..ATTEMPTS {
            if tightest.width() <= TIGHT {
                break;
            }
            tightest = std::cmp::min_by_key(bracket(), tightest, Self::width);
        }
        tightest
    }

    /// Returns how long the machine has certainly been suspended since an earlier reading: never
    /// more than it was, and so zero if it only ran.
    fn since(&self, earlier: &Self) -> u64 {
        self.at_least.saturating_sub(earlier.at_most)
    }

    fn width(&self) -> u64 {
        self.at_most - self.at_least
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn nanos(clock: rustix::time::ClockId) -> u64 {
    let time = rustix::time::clock_gettime(clock);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Reads the clock that counts suspensions.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn all() -> u64 {
    nanos(rustix::time::ClockId::Boottime)
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn suspended() -> Suspended {
    Suspended::read(|| nanos(rustix::time::ClockId::Monotonic), all)
}

/// On other systems, this crate knows no clock that counts suspensions.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn all() -> u64 {
    0
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn suspended() -> Suspended {
    Suspended::read(|| 0, all)
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

#[cfg(all(test, feature = "properties"))]
// `proofs/tests/model.rs` includes this file by its path, and would look elsewhere.
#[path = "clock/properties.rs"]
mod properties;

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::collections::VecDeque;

    use super::*;

    /// A machine that keeps its process waiting before each reading of a clock, and that may be
    /// suspended then.
    #[derive(Default)]
    pub(super) struct Machine {
        running: Cell<u64>,
        pub(super) suspended: Cell<u64>,
        /// Before the next readings: for how long the process waits, and the machine is suspended.
        pub(super) pauses: RefCell<VecDeque<(u64, u64)>>,
    }

    impl Machine {
        pub(super) fn read(&self) -> Suspended {
            let wait = || {
                let (waits, sleeps) = self.pauses.borrow_mut().pop_front().unwrap_or((30, 0));
                self.running.set(self.running.get() + waits);
                self.suspended.set(self.suspended.get() + sleeps);
            };
            let running = || {
                wait();
                self.running.get()
            };
            let all = || {
                wait();
                self.running.get() + self.suspended.get()
            };
            Suspended::read(running, all)
        }
    }

    #[test]
    fn readings_that_are_pulled_apart_are_taken_again() {
        let ms = 1_000_000;
        let machine = Machine::default();
        // Suspended for 3 ms, and then kept from the second clock, and from the third reading, for
        // longer.
        machine
            .pauses
            .replace([(30, 3 * ms), (5 * ms, 0), (5 * ms, 0)].into());
        let read = machine.read();
        assert!(read.at_least <= 3 * ms && read.at_most >= 3 * ms && read.width() <= TIGHT);
    }

    #[test]
    fn two_clocks_that_go_at_the_same_rate_differ_by_less_than_a_millisecond() {
        for _ in 0..1000 {
            assert!(suspended().width() < 1_000_000);
        }
    }

    #[test]
    fn a_machine_that_runs_has_one_time() {
        let first = Time::now();
        let second = Time::now_for_certain();
        assert!(first <= second && second.since(first) < Duration::from_secs(1));
    }
}
