//! [`Slots`]: the slots of a manager, by key.

use std::sync::{Mutex, MutexGuard, PoisonError};

use smallvec::SmallVec;

use super::Waiter;
use crate::key::{KeyMap, LockKey};
use crate::lease::Lease;
use crate::manager::slot::Slot;

/// Keys that share a mutex. Many, so that requests for different keys do not wait for each other.
const SHARDS: usize = 64;

/// The slots that are not empty, in shards with a mutex each.
pub(super) struct Slots {
    shards: Box<[Mutex<Shard>]>,
}

pub(super) type Shard = KeyMap<Entry>;

#[derive(Default)]
pub(super) struct Entry {
    pub(super) slot: Slot<Waiter>,
    /// The leases of those that hold it, of one token, in order of their grants.
    pub(super) leases: SmallVec<[Lease; 1]>,
}

impl Entry {
    /// Adds the lease of a holder, behind those with which it shares the lock.
    pub(super) fn add(&mut self, lease: Lease) {
        let token = lease.grant().token;
        let is_other = |first: &Lease| first.grant().token != token;
        if self.leases.first().is_some_and(is_other) {
            self.leases.clear();
        }
        self.leases.push(lease);
    }

    pub(super) fn lease(&self, lease: u64) -> Option<&Lease> {
        self.leases.get(self.place_of(lease)?)
    }

    pub(super) fn take(&mut self, lease: u64) -> Option<Lease> {
        Some(self.leases.remove(self.place_of(lease)?))
    }

    fn place_of(&self, lease: u64) -> Option<usize> {
        let place = self
            .leases
            .binary_search_by_key(&lease, |one| one.grant().lease);
        place.ok()
    }
}

impl Slots {
    pub(super) fn new() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
        }
    }

    /// Locks the shard in which a key's slot is.
    pub(super) fn shard_of(&self, key: &LockKey) -> MutexGuard<'_, Shard> {
        // Other bits than those that the map uses first.
        let index = (key.hashed() >> 32) as usize % SHARDS;
        lock(&self.shards[index])
    }

    /// Returns how many shards there are.
    pub(super) fn shards(&self) -> usize {
        self.shards.len()
    }

    pub(super) fn shard(&self, index: usize) -> MutexGuard<'_, Shard> {
        lock(&self.shards[index])
    }

    pub(super) fn is_empty(&self) -> bool {
        self.shards.iter().all(|shard| lock(shard).is_empty())
    }
}

fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}
