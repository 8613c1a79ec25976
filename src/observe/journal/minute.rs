//! [`Minute`]: what happened in the last minute.

use std::time::Duration;

use crate::clock::Time;

const SLICES: usize = 6;
const SLICE: Duration = Duration::from_secs(10);

/// Something that is counted by the minute, in slices of ten seconds. The slice of now is not full
/// yet, so it is of the last 50 to 60 seconds.
#[derive(Default)]
pub(super) struct Minute<T> {
    /// With the number of the slice, counted from the beginning of the clock.
    slices: [(u64, T); SLICES],
}

impl<T: Default> Minute<T> {
    /// Returns the slice of now.
    pub(super) fn at(&mut self, now: Time) -> &mut T {
        let number = number(now);
        let slice = &mut self.slices[number as usize % SLICES];
        if slice.0 != number {
            *slice = (number, T::default());
        }
        &mut slice.1
    }

    /// Returns the slices of the last minute, in no particular order.
    pub(super) fn slices(&self, now: Time) -> impl Iterator<Item = &T> {
        let oldest = number(now).saturating_sub(SLICES as u64 - 1);
        let slices = self.slices.iter();
        slices.filter_map(move |(number, slice)| (*number >= oldest).then_some(slice))
    }
}

fn number(now: Time) -> u64 {
    now.as_nanos() / SLICE.as_nanos() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_older_than_a_minute_does_not_count() {
        let at = |seconds: u64| Time::from_nanos(0) + Duration::from_secs(seconds);
        let sum = |minute: &Minute<u32>, now| minute.slices(at(now)).sum::<u32>();
        let mut minute = Minute::default();
        *minute.at(at(3)) += 1;
        *minute.at(at(45)) += 10;
        assert_eq!(sum(&minute, 45), 11);
        assert_eq!(sum(&minute, 59), 11);
        assert_eq!(sum(&minute, 60), 10);
        // The place of the first slice is used once more.
        *minute.at(at(63)) += 100;
        assert_eq!(sum(&minute, 63), 110);
        assert_eq!(sum(&minute, 10_000), 0);
    }
}
