//! [`KeyMap`]: a map from keys, which does not hash them again.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use super::LockKey;

pub(crate) type KeyMap<V> = HashMap<LockKey, V, BuildHasherDefault<Prehashed>>;

/// Passes on the hash that a [`LockKey`] was made with.
#[derive(Default)]
pub(crate) struct Prehashed(u64);

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
