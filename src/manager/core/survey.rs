//! What this process knows of its own locks, one by one, for the [inspector](crate::inspector).

use std::time::Duration;

use super::Core;
use super::slots::Entry;
use crate::key::LockKey;
use crate::lease::Lease;
use crate::manager::LockManager;
use crate::observe::Journal;

/// How many locks are looked at. It takes about a millisecond.
const LOOK_AT: usize = 10_000;

/// The locks of this process that there is most to see of.
#[derive(Debug)]
pub(crate) struct Survey {
    /// Those first that most requests wait for, then those that are held longest.
    pub(crate) locks: Vec<LocalLock>,
    /// Whether there are more locks than could be looked at.
    pub(crate) is_cut: bool,
}

/// What this process knows of one lock.
#[derive(Clone, Debug)]
pub(crate) struct LocalLock {
    pub(crate) key: LockKey,
    /// Whether this process has the lock.
    pub(crate) is_held: bool,
    /// That of the holder in this process; of the first, if several share the lock.
    pub(crate) lease: Option<Lease>,
    /// How many requests hold it.
    pub(crate) holders: usize,
    pub(crate) held_for: Duration,
    /// Requests of this process that wait.
    pub(crate) waiting: usize,
    /// Whether this process stands in the queue in Redis.
    pub(crate) is_queued: bool,
    /// Whether this process has the lock, and another one waits.
    pub(crate) is_contended: bool,
}

impl LockManager {
    /// Returns what this process is called.
    pub(crate) fn instance(&self) -> &str {
        self.core.store.instance()
    }

    /// Returns the journal, which is kept from now on.
    pub(crate) fn journal(&self) -> &Journal {
        self.core.meters.journal()
    }

    /// Looks at the locks of this process, shard by shard, and returns so many of them.
    pub(crate) fn survey(&self, most: usize) -> Survey {
        let core = &self.core;
        let (mut locks, mut is_cut) = (Vec::new(), false);
        for shard in 0..core.slots.shards() {
            let shard = core.slots.shard(shard);
            let room = LOOK_AT - locks.len();
            is_cut |= shard.len() > room;
            let some = shard.iter().take(room);
            locks.extend(some.filter_map(|(key, entry)| core.local(key, entry)));
        }
        let order = |lock: &LocalLock| std::cmp::Reverse((lock.waiting, lock.held_for));
        if locks.len() > most {
            locks.select_nth_unstable_by_key(most, order);
            locks.truncate(most);
        }
        locks.sort_by_key(order);
        Survey { locks, is_cut }
    }

    /// Returns what this process knows of a lock. `None` if it has nothing to do with it.
    pub(crate) fn local(&self, key: &LockKey) -> Option<LocalLock> {
        let shard = self.core.slots.shard_of(key);
        self.core.local(key, shard.get(key)?)
    }
}

impl Core {
    fn local(&self, key: &LockKey, entry: &Entry) -> Option<LocalLock> {
        if entry.slot.is_idle() {
            return None;
        }
        let census = entry.slot.census();
        let mut held = entry.leases.iter();
        let is_held = |lease: &&Lease| census.is_held && lease.is_held();
        let holders = held.clone().filter(is_held).count();
        let lease = held.find(is_held).cloned();
        let held_for = lease.as_ref().map(|lease| self.held_for(lease));
        Some(LocalLock {
            key: key.clone(),
            is_held: census.is_held,
            lease,
            holders,
            held_for: held_for.unwrap_or_default(),
            waiting: census.waiting,
            is_queued: census.in_store,
            is_contended: entry.slot.is_contended(),
        })
    }
}
