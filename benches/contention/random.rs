//! Numbers that look random and are the same in every run.

use std::sync::atomic::{AtomicU64, Ordering};

pub use crate::fixtures::random::Random;
use crate::fixtures::random::{STEP, mix};

/// The next of one sequence that all tasks of a process share.
pub fn shared() -> u64 {
    static STATE: AtomicU64 = AtomicU64::new(0);
    mix(STATE.fetch_add(STEP, Ordering::Relaxed) ^ u64::from(std::process::id()))
}

/// Zipf's law with exponent 1: the item of rank `r` comes with a frequency proportional to `1 / r`.
pub struct Zipf {
    /// How much of all comes up to this rank.
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

    /// Counted from zero, the most frequent first.
    pub fn sample(&self, random: &mut Random) -> usize {
        let fraction = random.fraction();
        let item = self.cumulated.partition_point(|sum| *sum <= fraction);
        item.min(self.cumulated.len() - 1)
    }
}
