//! The names of what the crate keeps in Redis.

use std::borrow::Cow;
use std::fmt::{self, Display};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use uuid::Uuid;

use super::cluster;
use crate::error::Error;
use crate::key::{Kind, LockKey};

/// How the name of a record ends.
const RECORD: &str = ":record";
/// What the name of a connection begins with.
const CLIENT: &str = concat!(env!("CARGO_PKG_NAME"), ":");

/// Where fences come from.
#[derive(Clone, Debug)]
pub(super) enum Fences {
    /// The server has one counter for all keys.
    One(String),
    /// Each slot of a cluster has a counter, as commands for several keys must be about one slot.
    BySlot {
        /// The primary's id.
        primary: String,
        home: Home,
    },
}

/// A slot of a primary, in which lies what is not about a single lock. The router follows it when
/// slots move.
#[derive(Clone, Debug)]
pub(super) struct Home(Arc<AtomicU16>);

impl Home {
    pub(super) fn at(slot: u16) -> Self {
        Self(Arc::new(AtomicU16::new(slot)))
    }

    pub(super) fn slot(&self) -> u16 {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn move_to(&self, slot: u16) {
        self.0.store(slot, Ordering::Relaxed);
    }
}

/// What does not change from call to call.
#[derive(Clone, Debug)]
pub(super) struct Names {
    /// What the name of every lock begins with.
    pub(super) prefix: String,
    pub(super) fences: Fences,
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
    pub(super) fn of_primary(prefix: &str, id: Uuid, primary: &str, home: Home) -> Self {
        let inboxes = format!("{prefix}inbox:{primary}:");
        let primary = primary.to_owned();
        Self::with(
            prefix.to_owned(),
            id,
            inboxes,
            Fences::BySlot { primary, home },
        )
    }

    fn with(prefix: String, id: Uuid, inboxes: String, fences: Fences) -> Self {
        Self {
            fences,
            inbox: format!("{inboxes}{}", id.simple()),
            inboxes,
            tokens: format!("{}:", id.simple()),
            prefix,
        }
    }

    /// Returns a key that no lock has, in a slot of this server.
    pub(super) fn probe(&self) -> Result<LockKey, Error> {
        let id = Uuid::new_v4().simple();
        LockKey::new(match &self.fences {
            Fences::One(_) => format!("probe:{id}"),
            Fences::BySlot { home, .. } => format!("probe:{{{}}}:{id}", cluster::tag(home.slot())),
        })
    }

    /// Names what says which server has the data, and since when it may give locks. The name
    /// changes when this server's [`Home`] moves.
    pub(super) fn epoch(&self) -> String {
        let prefix = &self.prefix;
        match &self.fences {
            Fences::One(_) => format!("{{{prefix}}}:epoch"),
            Fences::BySlot { primary, home } => {
                format!("{{{}}}:{prefix}epoch:{primary}", cluster::tag(home.slot()))
            }
        }
    }

    /// Names what is written before replicas are counted: in the slot of this lock.
    pub(super) fn barrier(&self, lock_name: &str) -> String {
        let prefix = &self.prefix;
        match &self.fences {
            Fences::One(_) => format!("{{{prefix}}}:barrier"),
            Fences::BySlot { .. } => {
                let tag = cluster::tag(cluster::slot(lock_name));
                format!("{{{tag}}}:{prefix}barrier")
            }
        }
    }

    /// Returns where what is not about a single lock lies, if this is a primary of a cluster.
    pub(super) fn home(&self) -> Option<&Home> {
        match &self.fences {
            Fences::One(_) => None,
            Fences::BySlot { home, .. } => Some(home),
        }
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

    /// Returns what tells this manager from all others.
    pub(super) fn id(&self) -> &str {
        self.tokens.trim_end_matches(':')
    }

    /// Returns the name of this process's connections: its tokens begin as the name goes on, and
    /// then it says what the process is called. Redis forgets it with the connection.
    pub(super) fn client(&self, instance: &str) -> String {
        // Redis takes neither spaces nor line breaks.
        let instance = utf8_percent_encode(instance, NON_ALPHANUMERIC);
        format!("{CLIENT}{}{instance}", self.tokens)
    }

    /// Returns what the number stands for in Redis.
    pub(super) fn token(&self, number: u64) -> impl Display {
        Token(&self.tokens, number)
    }
}

/// Reads the id and the name of a process from the name of its connection.
pub(super) fn read_client(name: &str) -> Option<(&str, String)> {
    let (id, instance) = name.strip_prefix(CLIENT)?.split_once(':')?;
    let instance = percent_decode_str(instance).decode_utf8_lossy();
    Some((id, instance.into_owned()))
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
            let names = Names::of_primary("lock:", Uuid::nil(), "node", Home::at(slot));
            assert_eq!(cluster::slot(&names.fence(slot)), slot);
            assert_eq!(cluster::slot(&names.epoch()), slot);
            assert_eq!(cluster::slot(&names.barrier(&lock)), slot);
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
    fn a_connections_name_tells_the_process_whatever_it_is_called() {
        let names = Names::new("lock:".to_owned(), Uuid::from_u128(0xa));
        let instance = "api 7: \r\n «ü»";
        let client = names.client(instance);
        assert!(client.bytes().all(|byte| (b'!'..=b'~').contains(&byte)));
        assert_eq!(
            read_client(&client),
            Some((names.id(), instance.to_owned()))
        );
        assert_eq!(read_client("redis-py"), None);
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
