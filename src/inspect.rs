//! What can be asked about locks: who holds them, who waits, and since when.
//!
//! The questions are methods of a [`LockManager`](crate::LockManager):
//! [`stats`](crate::LockManager::stats), [`ping`](crate::LockManager::ping),
//! [`inspect`](crate::LockManager::inspect) and [`list`](crate::LockManager::list).
//!
//! An answer is what was true at one moment. Nothing may be decided by it that a lock is for: by
//! the time that it is read, the lock may have another holder.
//!
//! # Example
//!
//! ```
//! use tower_distributed_lock::LockManager;
//! use tower_distributed_lock::inspect::Occupant;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), tower_distributed_lock::Error> {
//! # let locks = LockManager::in_memory();
//! let guard = locks.try_acquire("account:7").await?;
//! let report = locks.inspect("account:7").await?;
//! if let Occupant::Process(holder) = &report.occupant {
//!     println!("held by {}, {} processes wait", holder.process, report.waiting.len());
//!     assert_eq!(holder.fencing_token, Some(guard.fencing_token()));
//! }
//! # Ok(()) }
//! ```

use std::fmt;
use std::time::Duration;

use crate::key::{Kind, LockKey};

/// What a manager knows of its own process, without asking Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LockStats {
    /// Locks that this process holds.
    pub held: usize,
    /// Requests of this process that wait for a lock.
    pub waiting: usize,
    /// Locks for which this process stands in a queue in Redis.
    pub queued: usize,
    /// Whether there is a connection to Redis. Always true in memory.
    pub is_store_up: bool,
    /// Whether no more locks are given out: after [`drain`](crate::LockManager::drain) or
    /// [`close`](crate::LockManager::close).
    pub is_draining: bool,
}

/// What is known of one lock.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LockReport {
    /// What is locked.
    pub key: LockKey,
    /// What is in the lock's place.
    pub occupant: Occupant,
    /// How much longer the store keeps it unless it is renewed, for a record: at all. `None` if
    /// nothing is there, or if it never expires.
    pub remaining: Option<Duration>,
    /// Whether the holder knows that another process waits. Requests that wait in the holder's own
    /// process are not in Redis: they are in the [`LockStats`] there.
    pub is_contended: bool,
    /// The processes that wait, in the order in which they get the lock. A process that is not
    /// [alive](Process::is_alive) is passed over. At most 1000.
    pub waiting: Vec<Process>,
}

/// What is in a lock's place.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Occupant {
    /// Nothing: the lock is free.
    None,
    /// A process that uses this crate, and has the lock alone.
    Process(Holder),
    /// Processes that [share](crate::Mode::Shared) the lock, each for any number of its requests.
    /// At most 1000.
    Shared(Vec<Holder>),
    /// Another client of Redis, such as redis-py's `Lock`, whose name is not known.
    OtherClient,
    /// The stored response to an idempotency key.
    Record,
}

/// A holder of a lock.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Holder {
    /// The process that holds it.
    pub process: Process,
    /// The fencing token. Known of locks that this process holds. Of several requests that share
    /// the lock here, it is that of the first, and so is the time.
    pub fencing_token: Option<u64>,
    /// For how long it has been held. Known of locks that this process holds.
    pub held_for: Option<Duration>,
}

/// A process that uses this crate: to be exact, one of its managers.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Process {
    /// Tells it from all others. It is the first part of the lock's value in Redis.
    pub id: String,
    /// Its [name](crate::LockManagerBuilder::instance_name). `None` if it is not connected, or if
    /// this process may not ask Redis for it (`CLIENT LIST`).
    pub name: Option<String>,
    /// The address from which it is connected to Redis. Unknown where the name is.
    pub address: Option<String>,
    /// Whether it is connected, and so can be told that it has the lock.
    pub is_alive: bool,
    /// Whether it is the process that asks.
    pub is_this: bool,
}

/// Shows the name, or the id where the name is not known.
impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name.as_ref().unwrap_or(&self.id))
    }
}

/// Some of all locks: see [`LockManager::list`](crate::LockManager::list).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LockPage {
    /// The locks of this page, in no particular order.
    pub locks: Vec<LockReport>,
    /// Where the next page begins. `None`: this was the last one.
    pub next: Option<LockCursor>,
}

/// A place in the list of all locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockCursor {
    pub(crate) kind: Kind,
    /// Which server of a cluster.
    pub(crate) server: usize,
    pub(crate) position: u64,
}

impl LockCursor {
    /// Returns the beginning of the list of locks.
    pub fn locks() -> Self {
        Self::of(Kind::Lock)
    }

    /// Returns the beginning of the list of idempotency keys, of requests that run and of stored
    /// responses.
    pub fn records() -> Self {
        Self::of(Kind::Record)
    }

    fn of(kind: Kind) -> Self {
        Self {
            kind,
            server: 0,
            position: 0,
        }
    }
}

impl LockReport {
    /// What is known of a lock that is free.
    pub(crate) fn free(key: LockKey) -> Self {
        Self {
            key,
            occupant: Occupant::None,
            remaining: None,
            is_contended: false,
            waiting: Vec::new(),
        }
    }

    pub(crate) fn is_free(&self) -> bool {
        matches!(self.occupant, Occupant::None)
    }

    /// Returns the processes, those that hold the lock first.
    pub(crate) fn processes(&mut self) -> impl Iterator<Item = &mut Process> {
        let holders = self.occupant.holders().iter_mut();
        let holders = holders.map(|holder| &mut holder.process);
        holders.chain(&mut self.waiting)
    }
}

impl Occupant {
    /// Returns those that hold the lock, as far as they are known.
    pub(crate) fn holders(&mut self) -> &mut [Holder] {
        match self {
            Self::Process(holder) => std::slice::from_mut(holder),
            Self::Shared(holders) => holders,
            Self::None | Self::OtherClient | Self::Record => &mut [],
        }
    }
}

impl Process {
    /// A process of which only the id is known.
    pub(crate) fn of(id: &str) -> Self {
        Self {
            id: id.to_owned(),
            name: None,
            address: None,
            is_alive: false,
            is_this: false,
        }
    }

    pub(crate) fn holding(self) -> Holder {
        Holder {
            process: self,
            fencing_token: None,
            held_for: None,
        }
    }
}
