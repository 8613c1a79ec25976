//! [`Waiters`]: who waits for a key in this process, in order of arrival.

use std::collections::BTreeMap;

/// A queue from whose middle one can leave. Numbers rise with every arrival.
///
/// The first has a place of its own: most keys never have a second, and need no tree.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Waiters<T> {
    first: Option<(u64, T)>,
    /// All behind the first. Empty if there is none.
    others: BTreeMap<u64, T>,
}

impl<T> Default for Waiters<T> {
    fn default() -> Self {
        Self {
            first: None,
            others: BTreeMap::new(),
        }
    }
}

impl<T> Waiters<T> {
    pub(super) fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    pub(super) fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.others.len()
    }

    pub(super) fn push(&mut self, number: u64, waiter: T) {
        match self.first {
            None => self.first = Some((number, waiter)),
            Some(_) => {
                self.others.insert(number, waiter);
            }
        }
    }

    pub(super) fn pop(&mut self) -> Option<T> {
        let next = self.others.pop_first();
        let (_, first) = std::mem::replace(&mut self.first, next)?;
        Some(first)
    }

    pub(super) fn remove(&mut self, number: u64) -> Option<T> {
        match &self.first {
            Some((first, _)) if *first == number => self.pop(),
            _ => self.others.remove(&number),
        }
    }

    /// Takes out, in order, all for which `is_out` holds.
    pub(super) fn take_if(&mut self, is_out: impl Fn(&T) -> bool) -> Vec<T> {
        let mut out = Vec::new();
        let (mut kept, all) = (Self::default(), std::mem::take(self));
        for (number, waiter) in all.first.into_iter().chain(all.others) {
            match is_out(&waiter) {
                true => out.push(waiter),
                false => kept.push(number, waiter),
            }
        }
        *self = kept;
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled() -> Waiters<char> {
        let mut waiters = Waiters::default();
        for (number, waiter) in [(1, 'a'), (2, 'b'), (5, 'c'), (9, 'd')] {
            waiters.push(number, waiter);
        }
        waiters
    }

    fn rest(mut waiters: Waiters<char>) -> String {
        std::iter::from_fn(|| waiters.pop()).collect()
    }

    #[test]
    fn they_leave_in_order_of_arrival() {
        assert_eq!(filled().len(), 4);
        assert_eq!(rest(filled()), "abcd");
    }

    #[test]
    fn one_can_leave_from_anywhere() {
        for (number, left) in [(1, "bcd"), (2, "acd"), (9, "abc"), (7, "abcd")] {
            let mut waiters = filled();
            waiters.remove(number);
            assert_eq!(waiters.len(), left.len());
            assert_eq!(rest(waiters), left);
        }
    }

    #[test]
    fn some_are_taken_out_and_the_others_stay_in_order() {
        let mut waiters = filled();
        assert_eq!(
            waiters.take_if(|waiter| *waiter == 'a' || *waiter == 'c'),
            ['a', 'c']
        );
        assert_eq!(rest(waiters), "bd");
    }
}
