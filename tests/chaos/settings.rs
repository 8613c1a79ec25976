//! The settings of a worker's manager. During a rolling deployment, processes with different ones
//! share the locks.

use std::time::Duration;

use tower_distributed_lock::{LockManager, LockManagerBuilder};

use crate::support::random::Random;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    pub ttl: Duration,
    pub renewal: Duration,
    pub command_timeout: Duration,
    pub max_hold: Duration,
    pub burst_time: Duration,
    pub burst: u32,
}

const TTLS: [u64; 2] = [300, 1200];
const MAX_HOLDS: [u64; 3] = [500, 1500, 4000];
/// The longest time to live that [`Settings::of`] gives.
pub const LONGEST_TTL: Duration = Duration::from_millis(TTLS[1]);

/// The longest that one of them lets a request hold.
pub const LONGEST_HOLD: Duration = Duration::from_millis(MAX_HOLDS[2]);

impl Settings {
    pub const USUAL: Self = Self {
        ttl: Duration::from_millis(600),
        renewal: Duration::from_millis(200),
        command_timeout: Duration::from_millis(400),
        max_hold: Duration::from_millis(1500),
        burst_time: Duration::from_millis(50),
        burst: 16,
    };

    /// Those of a worker. One half of the workers with each kind of runtime has short leases, the
    /// other long ones.
    pub fn of(worker: u32, random: &mut Random) -> Self {
        let ttl = TTLS[worker as usize / 2 % TTLS.len()];
        let ms = Duration::from_millis;
        Self {
            ttl: ms(ttl),
            renewal: ms(ttl / random.pick(&[2, 3, 6])),
            command_timeout: ms(random.pick(&[200, 400]).min(ttl)),
            max_hold: ms(random.pick(&MAX_HOLDS)),
            burst_time: ms(random.pick(&[0, 20, 50])),
            burst: random.pick(&[0, 2, 16]),
        }
    }

    pub fn builder(&self) -> LockManagerBuilder {
        LockManager::builder()
            .ttl(self.ttl)
            .renewal(self.renewal)
            .command_timeout(self.command_timeout)
            .max_hold(self.max_hold)
            .burst(self.burst, self.burst_time)
    }
}
