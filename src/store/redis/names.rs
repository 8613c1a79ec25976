//! The names of what the crate keeps in Redis.

use std::borrow::Cow;
use std::fmt::{self, Display};

use uuid::Uuid;

use super::cluster;
use crate::error::Error;
use crate::key::{Kind, LockKey};

/// How the name of a record ends.
const RECORD: &str = ":record";

/// Where fences come from.
#[derive(Clone, Debug)]
pub(super) enum Fences {
    /// The server has one counter for all keys.
    One(String),
    /// Each slot of a cluster has a counter, as commands for several keys must be about one slot.
    BySlot {
        /// One that this primary had when it was found.
        one: u16,
    },
}

/// What does not change from call to call.
#[derive(Clone, Debug)]
pub(super) struct Names {
    /// What the name of every lock begins with.
    pub(super) prefix: String,
    pub(super) fences: Fences,
    /// Says which server has the data, and since when it may give locks.
    pub(super) epoch: String,
    /// Written before replicas are counted.
    pub(super) barrier: String,
    /// What the name of every inbox of this prefix begins with.
    pub(super) inboxes: String,
    /// The channel on which this process is told of grants.
    pub(super) inbox: String,
    /// What every token of this process begins with.
    pub(super) tokens: String,
}

impl Names {
    /// Returns the names that the manager `id` uses. No other manager has its tokens.
    pub(super) fn new(prefix: String, id: Uuid) -> Self {
        let inboxes = format!("{prefix}inbox:");
        let fences = Fences::One(format!("{{{prefix}}}:fence"));
        Self::with(prefix, id, inboxes, fences)
    }

    /// Like [`new`](Self::new), for a primary of a cluster. A process has an inbox at each, of its
    /// own name: a message goes to all servers of the cluster, but must come over the connection to
    /// the one that sends it.
    pub(super) fn of_primary(prefix: &str, id: Uuid, primary: &str, slot: u16) -> Self {
        let inboxes = format!("{prefix}inbox:{primary}:");
        Self::with(prefix.to_owned(), id, inboxes, Fences::BySlot { one: slot })
    }

    fn with(prefix: String, id: Uuid, inboxes: String, fences: Fences) -> Self {
        Self {
            fences,
            epoch: format!("{{{prefix}}}:epoch"),
            barrier: format!("{{{prefix}}}:barrier"),
            inbox: format!("{inboxes}{}", id.simple()),
            inboxes,
            tokens: format!("{}:", id.simple()),
            prefix,
        }
    }

    /// Returns a key that no lock has, in a slot of this server.
    pub(super) fn probe(&self) -> Result<LockKey, Error> {
        let id = Uuid::new_v4().simple();
        LockKey::new(match self.fences {
            Fences::One(_) => format!("probe:{id}"),
            Fences::BySlot { one } => format!("probe:{{{}}}:{id}", cluster::tag(one)),
        })
    }

    /// Returns the slot of a key's counter of fences: of the key itself, in a cluster.
    pub(super) fn slot(&self, key: &LockKey) -> u16 {
        match self.fences {
            Fences::One(_) => 0,
            Fences::BySlot { .. } => cluster::slot(&lock_name(&self.prefix, key)),
        }
    }

    /// Names the counter of fences of a slot. No lock has such a name, as a prefix holds no brace.
    pub(super) fn fence(&self, slot: u16) -> Cow<'_, str> {
        match &self.fences {
            Fences::One(fence) => Cow::Borrowed(fence),
            Fences::BySlot { .. } => {
                Cow::Owned(format!("{{{}}}:{}fence", cluster::tag(slot), self.prefix))
            }
        }
    }

    /// Returns the name of this process's connections. It ends as its tokens begin.
    pub(super) fn client(&self) -> String {
        let id = self.tokens.trim_end_matches(':');
        format!("{}:{id}", env!("CARGO_PKG_NAME"))
    }

    /// Returns what the number stands for in Redis.
    pub(super) fn token(&self, number: u64) -> impl Display {
        Token(&self.tokens, number)
    }
}

/// Written where it is needed, without a string of its own.
struct Token<'a>(&'a str, u64);

impl Display for Token<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)?;
        self.1.fmt(f)
    }
}

/// Names a lock as other clients would; a record with a brace in front, as no lock is (a prefix
/// holds none).
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
    beside(lock_name, "queue")
}

/// Names the set of those that share a lock. Lies where the queue does.
pub(super) fn readers_name(lock_name: &str) -> String {
    beside(lock_name, "readers")
}

fn beside(lock_name: &str, what: &str) -> String {
    let tag = lock_name.find('{').and_then(|open| {
        let length = lock_name[open + 1..].find('}')?;
        (length > 0).then(|| &lock_name[open..=open + 1 + length])
    });
    match tag {
        Some(tag) => format!("{tag}:{what}:{lock_name}"),
        None if lock_name.contains(['{', '}']) => {
            let tag = cluster::tag(cluster::slot(lock_name));
            format!("{{{tag}}}:{what}:{lock_name}")
        }
        None => format!("{{{lock_name}}}:{what}"),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queue_and_readers_lie_in_the_slot_of_their_lock_and_outside_of_the_names_of_locks() {
        assert_eq!(queue_name("lock:a"), "{lock:a}:queue");
        assert_eq!(queue_name("lock:{u}1"), "{u}:queue:lock:{u}1");
        assert_eq!(readers_name("lock:{u}1"), "{u}:readers:lock:{u}1");
        assert_eq!(queue_name("lock:{}1"), "{5s7}:queue:lock:{}1");
        for key in [
            "a", "{u}1", "{}1", "{", "}", "}{", "a}b", "{a", "{{a}}", "a{b}c{d}",
        ] {
            let lock = format!("lock:{key}");
            let slot = cluster::slot(&lock);
            for name in [queue_name(&lock), readers_name(&lock)] {
                assert_eq!(cluster::slot(&name), slot, "{lock}: {name}");
                assert!(!name.starts_with("lock:"));
            }
            let names = Names::of_primary("lock:", Uuid::nil(), "node", 0);
            assert_eq!(cluster::slot(&names.fence(slot)), slot);
        }
    }

    #[test]
    fn a_record_is_named_as_no_lock_and_no_queue_is() {
        let name = |key: &LockKey| lock_name("lock:", key);
        let record = LockKey::record(["a{b}", "c"]).unwrap();
        assert_eq!(name(&record), "{lock:a%7Bb%7D:c}:record");
        assert_eq!(
            queue_name(&name(&record)),
            "{lock:a%7Bb%7D:c}:queue:{lock:a%7Bb%7D:c}:record"
        );
        assert_eq!(key_of("lock:", &name(&record)), Some(record.clone()));
        let part = part_name("lock:", &record, &Uuid::from_u128(0xa), 12);
        assert_eq!(
            part,
            "{lock:a%7Bb%7D:c}:part:0000000000000000000000000000000a:12"
        );
        assert_eq!(key_of("lock:", &part), None);
        for text in ["a:c", "{lock:a:c}:record", "a:c}:record"] {
            let lock = LockKey::new(text).unwrap();
            assert_eq!(name(&lock), format!("lock:{text}"));
            assert_eq!(key_of("lock:", &name(&lock)), Some(lock));
        }
        let record = LockKey::record(["a:c"]).unwrap();
        assert!(record != LockKey::new(record.as_str()).unwrap());
        assert_eq!(key_of("lock:", "{lock:a"), None);
        assert_eq!(key_of("lock:", "{other:a}:record"), None);
    }

    #[test]
    fn keys_with_braces_cannot_reach_what_belongs_to_another() {
        let locks = [
            "lock:{lock:x}:queue",
            "lock:x}:queue:lock:{lock:x",
            "lock:{}:queue:lock:x",
            "lock:x",
            "lock:{lock:x}",
        ];
        let mut names: Vec<String> = locks.iter().map(|lock| queue_name(lock)).collect();
        names.extend(locks.iter().map(|lock| readers_name(lock)));
        names.extend(locks.map(str::to_owned));
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
