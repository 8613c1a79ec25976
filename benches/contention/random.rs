//! Numbers that look random and are the same in every run.

use std::sync::atomic::{AtomicU64, Ordering};

const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// SplitMix64.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        mix(self.0)
    }

    /// Returns a number from 0 up to, but not including, 1.
    pub fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Returns the next number of a sequence that all tasks of a process share.
pub fn shared() -> u64 {
    static STATE: AtomicU64 = AtomicU64::new(0);
    mix(STATE.fetch_add(STEP, Ordering::Relaxed) ^ u64::from(std::process::id()))
}

fn mix(mut number: u64) -> u64 {
    number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// Zipf's law with exponent 1: the item of rank `r` comes with a frequency proportional to `1 / r`.
pub struct Zipf {
    /// By rank: the share of all items up to it.
    cumulated: Vec<f64>,
}

impl Zipf {
    pub fn new(items: usize) -> Self {
        let total: f64 = (1..=items).map(|rank| 1.0 / rank as f64).sum();
        let mut sum = 0.0;
        let cumulated = (1..=items)
            .map(|rank| {
                sum += 1.0 / rank as f64 / total;
                sum
            })
            .collect();
        Self { cumulated }
    }

    /// Returns a rank, counted from zero. The most frequent comes first.
    pub fn sample(&self, random: &mut Random) -> usize {
        let fraction = random.fraction();
        let item = self.cumulated.partition_point(|sum| *sum <= fraction);
        item.min(self.cumulated.len() - 1)
    }
}
