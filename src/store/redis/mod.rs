//! Locks kept in Redis.
//!
//! [`RedisStore`] is a queue of commands and, run by the manager's background task, the [driver](driver) that sends
//! them in batches over one connection, re-connects, and takes what the server tells unasked.

mod batch;
mod breaker;
mod connection;
mod driver;
#[cfg(fuzzing)]
pub mod fuzzing;
mod grants;
mod long;
mod manifest;
mod pushes;
mod queue;
mod wire;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use uuid::Uuid;

use breaker::Breaker;
pub(crate) use connection::Address;
use long::LongRecords;
pub(crate) use manifest::{Damage, Manifest};
use queue::{Pending, Queue};

use connection::Link;

use super::{Command, Failure, Farewell, Outcome};
use crate::clock::Time;
use crate::error::Error;
use crate::key::LockKey;
use crate::sync::Doorbell;

/// What the store needs to know.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) manager: Uuid,
    pub(crate) prefix: String,
    pub(crate) ttl: Duration,
    pub(crate) grant_ttl: Duration,
    pub(crate) command_timeout: Duration,
    /// Whether no lock is given for a while after data was lost.
    pub(crate) quarantine: bool,
}

#[derive(Debug)]
pub(crate) struct RedisStore {
    settings: Settings,
    address: Address,
    queue: Mutex<Queue>,
    /// Commands taken from the queue and not answered yet.
    on_the_way: AtomicUsize,
    /// Has the driver look at the queue again.
    submitted: Doorbell,
    /// Whether there is a connection.
    connected: AtomicBool,
    breaker: Breaker,
    long_records: LongRecords,
}

impl RedisStore {
    pub(crate) fn new(settings: Settings, address: Address) -> Self {
        Self {
            settings,
            address,
            queue: Mutex::default(),
            on_the_way: AtomicUsize::new(0),
            submitted: Doorbell::default(),
            connected: AtomicBool::new(false),
            breaker: Breaker::default(),
            long_records: LongRecords::default(),
        }
    }

    /// Queues a command, or tells at once that it would fail.
    pub(crate) fn submit(
        &self,
        now: Time,
        key: &LockKey,
        command: Command,
        farewell: Farewell,
    ) -> Option<Outcome> {
        if let Command::Acquire { again, .. } = command
            && let Some(error) = self.breaker.refuses()
        {
            let unknown = again;
            return Some(Outcome {
                sent_at: now,
                result: Err(Failure { error, unknown }),
            });
        }
        self.queue().push(Pending {
            number: 0,
            key: key.clone(),
            command,
            farewell,
            submitted: now,
            attempts: 0,
            has_waited: false,
        });
        self.submitted.ring();
        None
    }

    pub(crate) fn is_drained(&self) -> bool {
        self.queue().is_empty() && self.on_the_way.load(Ordering::Acquire) == 0
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }

    /// Makes the driver look around, as if something had been submitted.
    pub(crate) fn wake(&self) {
        self.submitted.wake();
    }

    /// Connects, and readies the connection: the inbox is subscribed to before any command is sent.
    async fn connect(&self) -> Result<Link, Error> {
        self.address.connect(&self.settings).await
    }
}
