//! Numbers that look random, and are the same for the same seed and the same place in the storm.

use std::time::Duration;

const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// SplitMix64.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64, place: &[u64]) -> Self {
        Self(place.iter().fold(mix(seed), |state, part| {
            mix(state ^ part.wrapping_mul(STEP).wrapping_add(STEP))
        }))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        mix(self.0)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_micros(from * 1000 + self.below((to - from) * 1000))
    }
}

fn mix(mut number: u64) -> u64 {
    number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}
