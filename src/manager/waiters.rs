//! [`Waiters`]: the requests that wait for a key in this process, in order of arrival.

use std::collections::VecDeque;

/// A queue that a waiter can leave from the middle. Numbers rise with every arrival.
///
/// The first waiter has a place of its own: most keys never have a second, and so need no memory on
/// the heap.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Waiters<T> {
    first: Option<(u64, T)>,
    /// All behind the first, with the empty places of those that left. The places at both ends are
    /// never empty.
    others: VecDeque<(u64, Option<T>)>,
    /// How many of these places are empty.
    empty: usize,
}

impl<T> Default for Waiters<T> {
    fn default() -> Self {
        Self {
            first: None,
            others: VecDeque::new(),
            empty: 0,
        }
    }
}

impl<T> Waiters<T> {
    pub(super) fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    pub(super) fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.others.len() - self.empty
    }

    pub(super) fn first(&self) -> Option<&T> {
        self.first.as_ref().map(|(_, waiter)| waiter)
    }

    pub(super) fn push(&mut self, number: u64, waiter: T) {
        match self.first {
            None => self.first = Some((number, waiter)),
            Some(_) => self.others.push_back((number, Some(waiter))),
        }
    }

    pub(super) fn pop(&mut self) -> Option<T> {
        let next = self.others.pop_front();
        let next = next.and_then(|(number, waiter)| Some((number, waiter?)));
        let (_, first) = std::mem::replace(&mut self.first, next)?;
        self.tidy_up();
        Some(first)
    }

    pub(super) fn remove(&mut self, number: u64) -> Option<T> {
        match &self.first {
            Some((first, _)) if *first == number => self.pop(),
            _ => {
                let place = self
                    .others
                    .binary_search_by_key(&number, |(number, _)| *number);
                let waiter = self.others[place.ok()?].1.take()?;
                self.empty += 1;
                self.tidy_up();
                Some(waiter)
            }
        }
    }

    /// Takes out all for which `is_out` holds, and returns them in order.
    pub(super) fn take_if(&mut self, is_out: impl Fn(&T) -> bool) -> Vec<T> {
        let (mut kept, mut out) = (Self::default(), Vec::new());
        let Self { first, others, .. } = std::mem::take(self);
        let others = others
            .into_iter()
            .filter_map(|(number, waiter)| Some((number, waiter?)));
        for (number, waiter) in first.into_iter().chain(others) {
            match is_out(&waiter) {
                true => out.push(waiter),
                false => kept.push(number, waiter),
            }
        }
        *self = kept;
        out
    }

    /// Removes the empty places at both ends, and all of them if they are more than the waiters in
    /// between.
    fn tidy_up(&mut self) {
        while self
            .others
            .front()
            .is_some_and(|(_, waiter)| waiter.is_none())
        {
            self.others.pop_front();
            self.empty -= 1;
        }
        while self
            .others
            .back()
            .is_some_and(|(_, waiter)| waiter.is_none())
        {
            self.others.pop_back();
            self.empty -= 1;
        }
        if self.empty * 2 > self.others.len() {
            self.others.retain(|(_, waiter)| waiter.is_some());
            self.empty = 0;
        }
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
    fn those_who_leave_take_their_places_with_them() {
        let mut waiters = Waiters::default();
        for number in 0..1000 {
            waiters.push(number, number);
        }
        for number in (0..1000).filter(|number| number % 10 != 3) {
            assert_eq!(waiters.remove(number), Some(number));
            assert_eq!(waiters.remove(number), None);
            assert!(waiters.others.len() <= 2 * waiters.len());
        }
        assert_eq!(waiters.len(), 100);
        for round in 0..100 {
            assert_eq!(waiters.pop(), Some(10 * round + 3));
        }
        assert!(waiters.is_empty() && waiters.others.is_empty());
        assert_eq!(waiters.pop(), None);
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
