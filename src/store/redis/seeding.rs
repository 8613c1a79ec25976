//! [`Seeding`]: when the counters of fences are raised to the clock of their server.

use std::collections::HashMap;
use std::time::Duration;

use crate::clock::Time;

/// How far a counter of fences may be behind the clock of its server while it is used: another
/// server whose counter is at the clock may take over after that time.
const SEED_EVERY: Duration = Duration::from_millis(2);
/// For how long a process relies on what it knows of the server's clock, which may be set.
const RELIABLE: Duration = Duration::from_secs(1);

/// What one connection knows of the counters of fences, by their slots.
///
/// The processes that use a counter share the work: one whose fences show that another process has
/// raised the counter to the clock leaves it at that.
#[derive(Debug, Default)]
pub(super) struct Seeding {
    counters: HashMap<u16, Counter>,
}

#[derive(Debug)]
struct Counter {
    /// When the last seed of this process was sent.
    seeded_at: Time,
    /// What the server's clock had at most, in µs, when a seed was sent then.
    clock: Option<(Time, u64)>,
    /// The newest fence. The counter is not lower.
    newest: u64,
}

impl Counter {
    fn new(seeded_at: Time) -> Self {
        Self {
            seeded_at,
            clock: None,
            newest: 0,
        }
    }

    /// Returns whether the counter may be too far behind the clock.
    fn is_behind(&self, now: Time) -> bool {
        now.since(self.seeded_at) >= SEED_EVERY && !self.follows(now)
    }

    /// Returns whether the counter is known not to be far behind the clock.
    fn follows(&self, now: Time) -> bool {
        self.clock.is_some_and(|(at, clock)| {
            let passed = now.since(at);
            let behind = (clock + passed.as_micros() as u64).saturating_sub(self.newest);
            passed < RELIABLE && u128::from(behind) <= SEED_EVERY.as_micros()
        })
    }
}

impl Seeding {
    /// Notes that a counter was raised.
    pub(super) fn seeded(&mut self, now: Time, slot: u16) {
        self.counters.insert(slot, Counter::new(now));
    }

    /// Returns whether the counter of a slot may be too far behind the clock.
    pub(super) fn is_behind(&self, now: Time, slot: u16) -> bool {
        let counter = self.counters.get(&slot);
        counter.is_none_or(|counter| counter.is_behind(now))
    }

    /// Returns whether a call that is sent now is to raise a counter, and notes that it does.
    pub(super) fn is_due(&mut self, now: Time, slot: u16) -> bool {
        let is_due = self.is_behind(now, slot);
        if is_due {
            match self.counters.get_mut(&slot) {
                Some(counter) => counter.seeded_at = now,
                None => self.seeded(now, slot),
            }
        }
        is_due
    }

    /// Notes the last fence that a call got which was sent at that time.
    pub(super) fn drew(&mut self, sent_at: Time, slot: u16, fence: u64) {
        if let Some(counter) = self.counters.get_mut(&slot) {
            counter.newest = counter.newest.max(fence);
            if counter.seeded_at == sent_at {
                // It is at least what the seed, ahead in that call, has set the counter to, which
                // is at least what the clock had.
                counter.clock = Some((sent_at, fence));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOT: u16 = 7;

    fn at(millis: u64) -> Time {
        Time::from_nanos(millis * 1_000_000)
    }

    /// Returns what is known once a seed, which was sent at zero, has set the counter to 1 s.
    fn seeding() -> Seeding {
        let mut seeding = Seeding::default();
        assert!(seeding.is_due(at(0), SLOT));
        seeding.drew(at(0), SLOT, 1_000_000);
        seeding
    }

    #[test]
    fn a_counter_is_seeded_at_first_and_when_it_may_have_fallen_behind() {
        let mut seeding = seeding();
        assert!(!seeding.is_due(at(1), SLOT));
        assert!(!seeding.is_due(at(2), SLOT));
        assert!(seeding.is_due(at(3), SLOT));
        assert!(!seeding.is_due(at(4), SLOT));
        // Its reply has not come so far.
        assert!(seeding.is_due(at(5), SLOT));
        assert!(seeding.is_due(at(5), SLOT + 1));
    }

    #[test]
    fn a_counter_that_other_processes_seed_is_left_alone() {
        let mut seeding = seeding();
        for now in 3..999 {
            seeding.drew(at(now), SLOT, 1_000_000 + (now - 2) * 1000);
            assert!(!seeding.is_due(at(now), SLOT), "{now}");
        }
        seeding.drew(at(999), SLOT, 1_000_000 + 997 * 1000 - 1);
        assert!(!seeding.is_due(at(998), SLOT));
        assert!(seeding.is_due(at(999), SLOT));
    }

    #[test]
    fn a_clock_that_may_have_been_set_is_read_again() {
        let mut seeding = seeding();
        // Far ahead, as another process would have it after the clock was set forward.
        seeding.drew(at(10), SLOT, 9_000_000);
        assert!(!seeding.is_due(at(999), SLOT));
        assert!(seeding.is_due(at(1000), SLOT));
        seeding.drew(at(1000), SLOT, 9_000_000);
        assert!(seeding.is_due(at(1003), SLOT));
    }

    #[test]
    fn fences_say_nothing_of_the_clock_unless_a_seed_went_ahead() {
        let mut seeding = Seeding::default();
        seeding.seeded(at(0), SLOT);
        seeding.drew(at(1), SLOT, 1_000_000);
        assert!(!seeding.is_due(at(1), SLOT));
        assert!(seeding.is_due(at(2), SLOT));
    }
}
