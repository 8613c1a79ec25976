//! [`Waits`]: a histogram of waiting times.

use std::time::Duration;

/// Buckets to each power of two: a value is told with an error of less than a fifth.
const STEPS: u32 = 4;
/// Shorter times, in microseconds, are in the first bucket: 64 µs.
const LEAST: u32 = 6;
/// Longer ones are in the last: 2^30 µs, about 18 minutes.
const MOST: u32 = 30;
const BUCKETS: usize = ((MOST - LEAST) * STEPS) as usize + 1;

/// How long requests waited.
#[derive(Clone)]
pub(crate) struct Waits {
    counts: [u32; BUCKETS],
    total: Duration,
    longest: Duration,
}

impl Default for Waits {
    fn default() -> Self {
        Self {
            counts: [0; BUCKETS],
            total: Duration::ZERO,
            longest: Duration::ZERO,
        }
    }
}

impl Waits {
    pub(super) fn add(&mut self, wait: Duration) {
        self.counts[bucket(wait)] += 1;
        self.total += wait;
        self.longest = self.longest.max(wait);
    }

    pub(super) fn merge(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(other.counts) {
            *count += more;
        }
        self.total += other.total;
        self.longest = self.longest.max(other.longest);
    }

    pub(crate) fn count(&self) -> u32 {
        self.counts.iter().sum()
    }

    pub(crate) fn total(&self) -> Duration {
        self.total
    }

    pub(crate) fn longest(&self) -> Duration {
        self.longest
    }

    /// Returns the time within which that part of the requests had their lock, rounded up to the
    /// end of its bucket. `None` if there was no request.
    pub(crate) fn quantile(&self, part: f64) -> Option<Duration> {
        let count = self.count();
        let rank = ((f64::from(count) * part).ceil() as u32).clamp(1, count.max(1));
        let mut seen = 0;
        let bucket = self.counts.iter().position(|count| {
            seen += count;
            seen >= rank
        })?;
        Some(upper_end(bucket).min(self.longest))
    }
}

fn bucket(wait: Duration) -> usize {
    let micros = wait.as_micros().clamp(1, 1 << MOST) as u32;
    let power = micros.ilog2();
    if power < LEAST {
        return 0;
    }
    // The bits behind the first one.
    let step = (micros >> (power - STEPS.ilog2())) & (STEPS - 1);
    let bucket = ((power - LEAST) * STEPS + step) as usize + 1;
    bucket.min(BUCKETS - 1)
}

fn upper_end(bucket: usize) -> Duration {
    let bucket = bucket as u32;
    let micros = (STEPS + bucket % STEPS) << (LEAST + bucket / STEPS - STEPS.ilog2());
    // The last one has no end.
    match bucket as usize == BUCKETS - 1 {
        true => Duration::MAX,
        false => Duration::from_micros(micros.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_time_is_within_its_bucket_and_told_with_an_error_of_less_than_a_quarter() {
        for micros in (0..100_000).chain((0..1 << 34).step_by(999_983)) {
            let wait = Duration::from_micros(micros);
            let bucket = bucket(wait);
            let (end, begin) = match bucket {
                0 => (upper_end(0), Duration::ZERO),
                _ => (upper_end(bucket), upper_end(bucket - 1)),
            };
            assert!(
                begin <= wait && wait < end,
                "{wait:?} is in {begin:?}..{end:?}"
            );
            if bucket > 0 && bucket < BUCKETS - 1 {
                assert!(end <= begin * 5 / 4, "{begin:?}..{end:?} is too wide");
            }
        }
    }

    #[test]
    fn quantiles_are_those_of_the_requests() {
        let mut waits = Waits::default();
        assert_eq!(waits.quantile(0.5), None);
        for ms in 1..=100 {
            waits.add(Duration::from_millis(ms));
        }
        let mut others = Waits::default();
        others.add(Duration::from_secs(9));
        waits.merge(&others);
        assert_eq!(waits.count(), 101);
        let within = |part, ms: std::ops::RangeInclusive<u128>| {
            let quantile = waits.quantile(part).unwrap().as_millis();
            assert!(ms.contains(&quantile), "{part}: {quantile} ms");
        };
        within(0.5, 51..=64);
        within(0.99, 100..=125);
        within(1.0, 9000..=9000);
        assert_eq!(waits.longest(), Duration::from_secs(9));
    }
}
