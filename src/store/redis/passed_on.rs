//! [`PassedOn`]: locks that this process passed on to the next in the queue.
//!
//! The process that got the grant may have died, and Redis does not tell when the grant expires. So
//! the process that passed the lock on releases it once more when the grant must have expired. If
//! the lock is free then, it goes to the next in the queue.

use std::collections::{BTreeMap, HashMap};

use crate::clock::Time;
use crate::key::LockKey;

#[derive(Debug, Default)]
pub(super) struct PassedOn {
    /// For each key, the token that last passed the lock on, and when that grant must have expired.
    last: HashMap<LockKey, (u64, Time)>,
    /// When to check which key. Each key is here once, with a number to tell equal times apart.
    order: BTreeMap<(Time, u64), LockKey>,
    next_number: u64,
}

impl PassedOn {
    /// Notes that the lock of this token was passed on. Only the last grant of a key matters.
    pub(super) fn insert(&mut self, key: LockKey, token: u64, expires: Time) {
        if self.last.insert(key.clone(), (token, expires)).is_none() {
            self.check_at(expires, key);
        }
    }

    fn check_at(&mut self, at: Time, key: LockKey) {
        self.order.insert((at, self.next_number), key);
        self.next_number += 1;
    }

    /// Returns when the next key is to be checked.
    pub(super) fn next(&self) -> Option<Time> {
        self.order.first_key_value().map(|((at, _), _)| *at)
    }

    /// Takes a key whose grant must have expired by now, and the token that passed the lock on.
    pub(super) fn expired(&mut self, now: Time) -> Option<(LockKey, u64)> {
        while self.next().is_some_and(|at| at <= now) {
            let (_, key) = self.order.pop_first()?;
            let (token, expires) = self.last[&key];
            if expires <= now {
                self.last.remove(&key);
                return Some((key, token));
            }
            self.check_at(expires, key);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> LockKey {
        LockKey::new(name).unwrap()
    }

    #[test]
    fn a_lock_that_was_passed_on_is_checked_once_when_the_last_grant_must_have_expired() {
        let at = Time::from_nanos;
        let mut passed_on = PassedOn::default();
        passed_on.insert(key("a"), 1, at(10));
        passed_on.insert(key("b"), 2, at(11));
        passed_on.insert(key("c"), 4, at(16));
        passed_on.insert(key("a"), 3, at(15));
        assert_eq!(passed_on.next(), Some(at(10)));
        assert_eq!(passed_on.expired(at(9)), None);
        assert_eq!(passed_on.expired(at(12)), Some((key("b"), 2)));
        assert_eq!(passed_on.expired(at(12)), None);
        assert_eq!(passed_on.next(), Some(at(15)));
        assert_eq!(passed_on.expired(at(15)), Some((key("a"), 3)));
        assert_eq!(passed_on.expired(at(20)), Some((key("c"), 4)));
        assert_eq!(passed_on.expired(at(30)), None);
        assert_eq!(passed_on.next(), None);
        assert!(passed_on.last.is_empty());
    }
}
