//! The names of what the crate keeps in Redis.

use uuid::Uuid;

use super::Settings;
use crate::key::{Kind, LockKey};

/// How the name of a record ends.
const RECORD: &str = ":record";

impl Settings {
    /// The counter of fences.
    pub(super) fn fence_name(&self) -> String {
        format!("{{{}}}:fence", self.prefix)
    }

    /// Says which server has the data, and since when it may give locks.
    pub(super) fn epoch_name(&self) -> String {
        format!("{{{}}}:epoch", self.prefix)
    }

    /// What the name of every inbox of this prefix begins with.
    pub(super) fn inbox_prefix(&self) -> String {
        format!("{}inbox:", self.prefix)
    }

    /// The channel on which this process is told of grants.
    pub(super) fn inbox(&self) -> String {
        format!("{}{}", self.inbox_prefix(), self.manager.simple())
    }
}

/// Names a lock as other clients would; a record with a brace in front, as no lock is (a prefix holds
/// none).
pub(super) fn lock_name(prefix: &str, key: &LockKey) -> String {
    let text = key.as_str();
    match key.kind() {
        Kind::Lock => [prefix, text].concat(),
        Kind::Record => ["{", prefix, text, "}", RECORD].concat(),
    }
}

/// Names a part of a long record: in the record's slot of a Redis Cluster, and outside of the names
/// that locks and queues have.
pub(super) fn part_name(prefix: &str, key: &LockKey, id: &Uuid, number: usize) -> String {
    let key = key.as_str();
    format!("{{{prefix}{key}}}:part:{}:{number}", id.simple())
}

/// Names a lock's queue: outside of the names that locks have (a prefix holds no brace), and in the
/// lock's slot of a Redis Cluster.
pub(super) fn queue_name(lock_name: &str) -> String {
    let tag = lock_name.find('{').and_then(|open| {
        let length = lock_name[open + 1..].find('}')?;
        (length > 0).then(|| &lock_name[open..=open + 1 + length])
    });
    match tag {
        Some(tag) => format!("{tag}:queue:{lock_name}"),
        None if lock_name.contains(['{', '}']) => format!("{{}}:queue:{lock_name}"),
        None => format!("{{{lock_name}}}:queue"),
    }
}

/// Returns the key whose lock has this name.
pub(super) fn key_of(prefix: &str, lock_name: &str) -> Option<LockKey> {
    let (kind, name) = match lock_name.strip_prefix('{') {
        Some(record) => {
            let name = record.strip_suffix(RECORD)?.strip_suffix('}')?;
            (Kind::Record, name)
        }
        None => (Kind::Lock, lock_name),
    };
    LockKey::from_store(kind, name.strip_prefix(prefix)?)
}

