//! Locks kept in Redis.
//!
//! [`RedisStore`] is a queue of commands and the [driver], which the manager's background task
//! runs. The driver sends the commands in batches over one connection, reconnects, and receives
//! what the server tells of its own accord.

mod breaker;
mod commands;
mod connection;
mod connection_driver;
mod driver;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod in_flight;
mod inspect;
mod intervene;
mod long;
mod manifest;
mod messages;
mod names;
mod passed_on;
mod pending;
mod ping;
mod pushes;
mod queue;
mod scripts;
mod up;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use uuid::Uuid;

use self::breaker::Breaker;
use self::connection::{Address, Link};
use self::long::LongRecords;
pub(crate) use self::manifest::{Damage, Manifest};
use self::pending::Pending;
use self::ping::Pings;
use self::queue::Queue;
use super::{Command, Failure, Options, Outcome};
use crate::clock::Time;
use crate::error::Error;
use crate::key::LockKey;
use crate::sync::Doorbell;

#[derive(Debug)]
struct Settings {
    /// Tells this manager's tokens from all others.
    manager: Uuid,
    /// What this process is called.
    instance: String,
    prefix: String,
    ttl: Duration,
    grant_ttl: Duration,
    command_timeout: Duration,
    /// Whether no lock is given for a time to live after data was lost.
    quarantine: bool,
}

#[derive(Debug)]
pub(crate) struct RedisStore {
    settings: Settings,
    address: Address,
    queue: Mutex<Queue>,
    /// Commands taken from the queue that have no reply yet.
    in_flight: AtomicUsize,
    /// Wakes the driver when a command was queued.
    submitted: Doorbell,
    /// Whether there is a connection.
    connected: AtomicBool,
    breaker: Breaker,
    long_records: LongRecords,
    pings: Pings,
}

impl RedisStore {
    /// Reads the URL. [`run`](Self::run) connects.
    pub(crate) fn new(url: &str, options: Options) -> Result<Self, Error> {
        let address = Address::parse(url, options.root_certificate.as_deref())?;
        let settings = Settings {
            manager: Uuid::new_v4(),
            instance: options.instance,
            prefix: options.prefix,
            ttl: options.ttl,
            grant_ttl: options.grant_ttl,
            command_timeout: options.command_timeout,
            quarantine: options.quarantine,
        };
        Ok(Self::with(settings, address))
    }

    fn with(settings: Settings, address: Address) -> Self {
        Self {
            settings,
            address,
            queue: Mutex::default(),
            in_flight: AtomicUsize::new(0),
            submitted: Doorbell::default(),
            connected: AtomicBool::new(false),
            breaker: Breaker::default(),
            long_records: LongRecords::default(),
            pings: Pings::default(),
        }
    }

    /// Queues a command, or returns its failure at once.
    pub(crate) fn submit(&self, now: Time, key: &LockKey, command: Command) -> Option<Outcome> {
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
            submitted: now,
            attempts: 0,
            had_it: false,
        });
        self.submitted.notify();
        None
    }

    /// Returns how long it may take until an acquire has its outcome, as long as the driver runs. A
    /// connection is made within one command timeout, and a reply comes, or is given up, within
    /// another. The third is for the driver.
    pub(crate) fn replies_within(&self) -> Duration {
        3 * self.settings.command_timeout
    }

    pub(crate) fn is_drained(&self) -> bool {
        self.queue().is_empty() && self.in_flight.load(Ordering::Acquire) == 0
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }

    /// Waits until the server has replied to a command that was sent from now on. Fails if it gives
    /// no locks.
    pub(crate) async fn ping(&self) -> Result<(), Error> {
        let answered = self.pings.ask();
        self.wake();
        match tokio::time::timeout(self.settings.command_timeout, answered).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) | Err(_) => Err(self
                .breaker
                .refuses()
                .unwrap_or_else(|| queue::no_reply(&self.settings.command_timeout))),
        }
    }

    /// Wakes the driver, as if a command had been submitted.
    pub(crate) fn wake(&self) {
        self.submitted.wake();
    }

    /// Connects, and prepares the connection: it subscribes to the inbox before any command is
    /// sent.
    async fn connect(&self) -> Result<Link, Error> {
        self.address.connect(&self.settings).await
    }
}
