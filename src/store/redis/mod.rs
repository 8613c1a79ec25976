//! Locks kept in Redis.
//!
//! [`RedisStore`] is a queue of commands and the [driver], which the manager's background task
//! runs. The driver sends the commands in batches over one connection, reconnects, and receives
//! what the server tells of its own accord.

mod address;
mod address_map;
mod breaker;
mod cluster;
mod commands;
mod confirming;
mod connection;
mod connection_driver;
mod credentials;
mod driver;
mod endpoint;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod in_flight;
mod inspect;
mod intervene;
mod long;
mod manifest;
mod messages;
mod moving;
mod names;
mod passed_on;
mod pending;
mod ping;
mod probe;
mod pushes;
mod queue;
mod scripts;
mod sentinel;
mod server;
mod tls;
mod told;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use uuid::Uuid;

use self::address::Address;
pub(crate) use self::address_map::AddressMap;
use self::breaker::Breaker;
pub(crate) use self::cluster::ClusterStore;
use self::cluster::Redirected;
use self::connection::Link;
pub use self::credentials::Credentials;
pub(crate) use self::credentials::CredentialsCallback;
use self::long::LongRecords;
pub(crate) use self::manifest::{Damage, Manifest};
use self::names::Names;
use self::pending::Pending;
use self::ping::Pings;
pub(crate) use self::queue::HeldBack;
use self::queue::Queue;
pub use self::server::RedisServer;
pub(crate) use self::tls::Tls;
use self::told::Told;
use super::{Command, Failure, Options, Outcome, Servers};
use crate::clock::Time;
use crate::error::Error;
use crate::key::LockKey;
use crate::sync::Doorbell;

#[derive(Clone, Debug)]
struct Settings {
    names: Names,
    /// What this process is called.
    instance: String,
    ttl: Duration,
    grant_ttl: Duration,
    command_timeout: Duration,
    /// Whether no lock is given for a time to live after data was lost.
    quarantine: bool,
    /// How many replicas must have a lock before it is given.
    min_replicas: u32,
}

impl Settings {
    fn new(names: Names, options: &Options) -> Self {
        Self {
            names,
            instance: options.instance.clone(),
            ttl: options.ttl,
            grant_ttl: options.grant_ttl,
            command_timeout: options.command_timeout,
            quarantine: options.quarantine,
            min_replicas: options.min_replicas,
        }
    }

    /// Returns how long it may take until an acquire has its outcome, as long as the driver runs. A
    /// connection is made within one command timeout, and a reply comes, or is given up, within
    /// another. The third is for the driver. To count replicas takes two more.
    fn replies_within(&self) -> Duration {
        let timeouts = match self.min_replicas {
            0 => 3,
            _ => 5,
        };
        timeouts * self.command_timeout
    }
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
    told: Told,
    long_records: LongRecords,
    pings: Pings,
    /// Where commands go that this server does not carry out, if it is one of a cluster.
    redirected: Option<Arc<Redirected>>,
}

impl RedisStore {
    /// Reads where Redis is. [`run`](Self::run) connects.
    pub(crate) fn new(servers: Servers, options: &Options) -> Result<Self, Error> {
        let (credentials, map) = (options.credentials.clone(), options.address_map.clone());
        let address = Address::new(servers, &options.tls, credentials, map)?;
        let names = Names::new(options.prefix.clone(), Uuid::new_v4());
        Ok(Self::with(Settings::new(names, options), address))
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
            told: Told::default(),
            long_records: LongRecords::default(),
            pings: Pings::default(),
            redirected: None,
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
        self.take_over(Pending::new(key.clone(), command, now));
        None
    }

    /// See [`Settings::replies_within`].
    pub(crate) fn replies_within(&self) -> Duration {
        self.settings.replies_within()
    }

    pub(crate) fn is_drained(&self) -> bool {
        self.queue().is_empty() && self.in_flight.load(Ordering::Acquire) == 0
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }

    /// Waits until the server has replied to a command that was sent from now on.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unavailable`](crate::ErrorKind) if it does not reply in time, or gives no
    /// locks.
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
