//! [`Journal`]: what happened to the locks of one manager of late, for the
//! [inspector](crate::inspector).
//!
//! Kept from the moment at which an inspector is made. It does not grow: with the number of locks,
//! with their keys, or with the traffic.

mod minute;
mod past;
mod waits;

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use self::minute::Minute;
use self::past::Past;
pub(crate) use self::past::{Queue, Run, RunEnd};
pub(crate) use self::waits::Waits;
use crate::clock::Time;
use crate::error::ErrorKind;
use crate::key::LockKey;
use crate::lease::{GrantPath, Lease, LostReason};
use crate::observe::Meter;

/// How many locks are followed one by one. Of further ones, those are that requests wait for.
const LOCKS: usize = 256;
/// How many losses are kept.
const LOSSES: usize = 50;
/// How often locks that have been quiet are looked for.
const TIDY: Duration = Duration::from_secs(1);
/// For how long a lock is followed after its last event.
const QUIET: Duration = Duration::from_secs(60);

/// What happened to the locks of one manager of late.
pub(crate) struct Journal(Mutex<Pages>);

struct Pages {
    all: Minute<Tally>,
    locks: HashMap<LockKey, Followed>,
    losses: VecDeque<Loss>,
    tidied: Time,
}

/// A lock that is followed.
struct Followed {
    minute: Minute<Tally>,
    past: Past,
    last_event: Time,
}

/// What there was of each kind of event.
#[derive(Clone, Default)]
pub(crate) struct Tally {
    /// How long the requests waited that got their lock.
    pub(crate) waits: Waits,
    /// The requests that did not, by [`ErrorKind`].
    pub(crate) refused: [u32; ErrorKind::Config as usize + 1],
    pub(crate) lost: u32,
}

/// A lock that its holder lost.
#[derive(Clone)]
pub(crate) struct Loss {
    pub(crate) at: Time,
    pub(crate) key: LockKey,
    pub(crate) meter: Meter,
    pub(crate) fencing_token: u64,
    /// For how long it was held, if the lock was followed.
    pub(crate) held_for: Option<Duration>,
    pub(crate) reason: LostReason,
}

/// What is told of all locks, and of some.
pub(crate) struct JournalReport {
    /// In the last minute.
    pub(crate) all: Tally,
    /// The latest first.
    pub(crate) losses: Vec<Loss>,
    pub(crate) locks: Vec<LockHistory>,
}

/// What is told of one lock, of the last minute.
pub(crate) struct LockHistory {
    pub(crate) key: LockKey,
    pub(crate) tally: Tally,
    /// The holders, in order.
    pub(crate) runs: Vec<Run>,
    /// When requests waited, in order.
    pub(crate) queues: Vec<Queue>,
}

impl Journal {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Pages {
            all: Minute::default(),
            locks: HashMap::new(),
            losses: VecDeque::new(),
            tidied: Time::now(),
        }))
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn acquired(&self, lease: &Lease, waited: Duration) {
        let now = Time::now();
        let mut pages = self.pages();
        pages.all.at(now).waits.add(waited);
        if let Some(lock) = pages.follow(lease.key(), now, is_contended(lease)) {
            lock.minute.at(now).waits.add(waited);
        }
    }

    pub(super) fn refused(&self, key: &LockKey, kind: ErrorKind) {
        let now = Time::now();
        let mut pages = self.pages();
        pages.all.at(now).refused[kind as usize] += 1;
        if let Some(lock) = pages.follow(key, now, true) {
            lock.minute.at(now).refused[kind as usize] += 1;
        }
    }

    pub(super) fn held(&self, lease: &Lease) {
        let now = Time::now();
        if let Some(lock) = self.pages().follow(lease.key(), now, is_contended(lease)) {
            lock.past.held(lease, now);
        }
    }

    pub(super) fn released(&self, lease: &Lease) {
        let now = Time::now();
        if let Some(lock) = self.pages().followed(lease.key(), now) {
            lock.past.ended(lease, now, RunEnd::Released);
        }
    }

    pub(super) fn lost(&self, lease: &Lease, reason: LostReason) {
        let now = Time::now();
        let mut pages = self.pages();
        pages.all.at(now).lost += 1;
        let followed = pages.follow(lease.key(), now, true);
        let held_for = followed.and_then(|lock| {
            lock.minute.at(now).lost += 1;
            lock.past.ended(lease, now, RunEnd::Lost(reason))
        });
        pages.losses.truncate(LOSSES - 1);
        pages.losses.push_front(Loss {
            at: now,
            key: lease.key().clone(),
            meter: lease.meter().clone(),
            fencing_token: lease.fencing_token(),
            held_for,
            reason,
        });
    }

    /// The store has given a lock that was released to another process.
    pub(super) fn granted_away(&self, key: &LockKey) {
        let now = Time::now();
        if let Some(lock) = self.pages().followed(key, now) {
            lock.past.granted_away();
        }
    }

    /// Corrects what was told of a lock before that time, by what is known of it.
    pub(crate) fn settle(&self, key: &LockKey, is_held: bool, is_waited_for: bool, before: Time) {
        if let Some(lock) = self.pages().locks.get_mut(key) {
            lock.past
                .settle(is_held, is_waited_for, before, Time::now());
        }
    }

    /// So many requests wait for a lock.
    pub(super) fn waiting(&self, key: &LockKey, requests: usize) {
        let now = Time::now();
        if let Some(lock) = self.pages().follow(key, now, true) {
            lock.past.waiting(requests, now);
        }
    }

    /// Returns what there is of the last minute: of all locks, of these, and of so many more, those
    /// first that were waited for longest.
    pub(crate) fn report(&self, keys: &[LockKey], hottest: usize) -> JournalReport {
        let now = Time::now();
        let pages = self.pages();
        let mut hot: Vec<_> = pages
            .locks
            .iter()
            .filter(|(_, lock)| lock.last_event + QUIET > now)
            .map(|(key, lock)| (lock.heat(now), key))
            .collect();
        hot.sort_unstable_by(|(one, _), (other, _)| other.cmp(one));
        let others = hot.iter().map(|(_, key)| *key);
        let others = others.filter(|key| !keys.contains(key)).take(hottest);
        let locks = keys.iter().chain(others).filter_map(|key| {
            let lock = pages.locks.get(key)?;
            let since = |at: Time| at + QUIET > now;
            Some(LockHistory {
                key: key.clone(),
                tally: lock.tally(now),
                runs: lock.past.runs(since),
                queues: lock.past.queues(since),
            })
        });
        JournalReport {
            all: sum(&pages.all, now),
            locks: locks.collect(),
            losses: pages.losses.iter().cloned().collect(),
        }
    }
}

impl Pages {
    /// Returns what is kept of a lock, if it is followed.
    fn followed(&mut self, key: &LockKey, now: Time) -> Option<&mut Followed> {
        let lock = self.locks.get_mut(key)?;
        lock.last_event = now;
        Some(lock)
    }

    /// Like [`followed`](Self::followed), and follows the lock from now on if there is a place for
    /// it. One that `matters` takes the place of another.
    fn follow(&mut self, key: &LockKey, now: Time, matters: bool) -> Option<&mut Followed> {
        if !self.locks.contains_key(key) {
            self.make_room(now, matters)?;
            let lock = Followed {
                minute: Minute::default(),
                past: Past::default(),
                last_event: now,
            };
            self.locks.insert(key.clone(), lock);
        }
        self.followed(key, now)
    }

    fn make_room(&mut self, now: Time, matters: bool) -> Option<()> {
        if self.locks.len() >= LOCKS && self.tidied + TIDY <= now {
            self.tidied = now;
            self.locks
                .retain(|_, lock| lock.past.is_open() || lock.last_event + QUIET > now);
        }
        if self.locks.len() >= LOCKS && matters {
            let quietest = self.locks.iter().min_by_key(|(_, lock)| lock.last_event);
            let quietest = quietest.map(|(key, _)| key.clone())?;
            self.locks.remove(&quietest);
        }
        (self.locks.len() < LOCKS).then_some(())
    }
}

impl Followed {
    fn tally(&self, now: Time) -> Tally {
        sum(&self.minute, now)
    }

    /// How much there is to see.
    fn heat(&self, now: Time) -> (Duration, u32) {
        self.minute
            .slices(now)
            .fold((Duration::ZERO, 0), |(waited, count), tally| {
                let waits = &tally.waits;
                (waited + waits.total(), count + waits.count() + tally.lost)
            })
    }
}

impl Tally {
    fn add(&mut self, other: &Self) {
        self.waits.merge(&other.waits);
        for (count, more) in self.refused.iter_mut().zip(other.refused) {
            *count += more;
        }
        self.lost += other.lost;
    }
}

fn sum(minute: &Minute<Tally>, now: Time) -> Tally {
    let mut sum = Tally::default();
    minute.slices(now).for_each(|slice| sum.add(slice));
    sum
}

fn is_contended(lease: &Lease) -> bool {
    lease.path() != GrantPath::Uncontended
}

#[cfg(test)]
mod tests;
