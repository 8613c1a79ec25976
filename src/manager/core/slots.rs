//! [`Slots`]: the slots of a manager, by key.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Waiter;
use crate::key::LockKey;
use crate::lease::Lease;
use crate::manager::slot::Slot;

/// Keys that share a mutex. Many, so that requests for different keys do not wait for each other.
const SHARDS: usize = 64;

/// The slots that are not idle, in shards with a mutex each.
pub(super) struct Slots {
    shards: Box<[Mutex<Shard>]>,
}

pub(super) type Shard = HashMap<LockKey, Entry, BuildHasherDefault<Prehashed>>;

#[derive(Default)]
pub(super) struct Entry {
    pub(super) slot: Slot<Waiter>,
    /// The current holder's lease.
    pub(super) lease: Option<Lease>,
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

/// Passes on the hash that a [`LockKey`] was made with.
#[derive(Default)]
pub(super) struct Prehashed(u64);

impl Hasher for Prehashed {
    fn write(&mut self, _: &[u8]) {
        unreachable!("a key writes its hash");
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
