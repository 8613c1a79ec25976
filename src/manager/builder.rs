//! [`LockManagerBuilder`]: the settings of a manager.

use std::fmt;
use std::time::Duration;

use super::slot::Rules;
use super::{Core, LockManager};
use crate::error::{Error, ErrorKind};
use crate::store::{Options, Store};

/// The settings of a [`LockManager`]. Processes that share locks need the same [`prefix`](Self::prefix). The others may differ,
/// as they do while a new version is rolled out, but for the time to live under [`quarantine`](Self::quarantine).
///
/// | Setting | Default | |
/// |---|---|---|
/// | [`ttl`](Self::ttl) | 10 s | how long a lock outlives a process that died |
/// | [`renewal`](Self::renewal) | a third of the time to live | how often a held lock is renewed |
/// | [`max_hold`](Self::max_hold) | 5 min | how long one holder may hold a lock |
/// | [`prefix`](Self::prefix) | `lock:` | what the names of the locks in Redis begin with |
/// | [`command_timeout`](Self::command_timeout) | 1 s | how long Redis may take to answer, or to connect |
/// | [`max_waiters_per_key`](Self::max_waiters_per_key) | 10 000 | how many requests of this process wait for one lock |
/// | [`max_waiters`](Self::max_waiters) | 100 000 | how many wait for all locks together |
/// | [`burst`](Self::burst) | 16, 50 ms | how many go before another process that waits, and for how long |
/// | [`quarantine`](Self::quarantine) | no | after Redis lost data, give no lock until those who had one must have lost it |
/// | `tls_root_certificate` | the system's | the authority to trust with `rediss://` (feature `tls`) |
///
/// Nothing is checked until the last step, which refuses settings that make no sense.
///
/// ```
/// use std::time::Duration;
/// use tower_distributed_lock::LockManager;
///
/// let locks = LockManager::builder()
///     .ttl(Duration::from_secs(30))
///     .prefix("payments:lock:")
///     .in_memory()?; // or .connect("redis://127.0.0.1:6379").await?
/// # let _ = locks;
/// # Ok::<(), tower_distributed_lock::Error>(())
/// ```
#[derive(Clone)]
#[must_use = "settings do nothing until `connect`, `connect_lazy` or `in_memory` is called"]
pub struct LockManagerBuilder {
    ttl: Duration,
    renewal: Option<Duration>,
    max_hold: Duration,
    prefix: String,
    command_timeout: Duration,
    max_waiters_per_key: usize,
    max_waiters: usize,
    burst: u32,
    burst_time: Duration,
    quarantine: bool,
    root_certificate: Option<Vec<u8>>,
}

impl Default for LockManagerBuilder {
    fn default() -> Self {
        Self {
            ttl: Duration::from_secs(10),
            renewal: None,
            max_hold: Duration::from_secs(5 * 60),
            prefix: "lock:".to_owned(),
            command_timeout: Duration::from_secs(1),
            max_waiters_per_key: 10_000,
            max_waiters: 100_000,
            burst: 16,
            burst_time: Duration::from_millis(50),
            quarantine: false,
            root_certificate: None,
        }
    }
}

impl LockManagerBuilder {
    /// Time to live of a lease in Redis: how long a lock stays taken when its holder's process dies, and how long a
    /// holder that cannot reach Redis goes on before it is told that the lock is lost. 100 ms to 24 h.
    ///
    /// A lock that another process handed over begins with two seconds (or the time to live, if that is less), and is
    /// renewed soon after: a process that does not take it up keeps it from the others no longer than that.
    ///
    /// Each lock that is held costs a command per [renewal](Self::renewal), of which 2048 are on
    /// their way at once: with the default settings, a process keeps 250 000 locks at a round trip
    /// of 10 ms. For more, make this longer.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// Time between renewals. At the most half the time to live, so that one may fail.
    pub fn renewal(mut self, renewal: Duration) -> Self {
        self.renewal = Some(renewal);
        self
    }

    /// How long one holder may hold a lock. After that it [loses](crate::LostReason::MaxHold) it: a request is stopped, and a
    /// response that is still being sent, a long download or a stream of events, is cut off. For those, make this
    /// longer, or hold the lock for the head only ([`Hold::Head`](crate::lock::Hold::Head)). At most a year.
    ///
    /// The next one gets the lock soon after that, when the request has had the time to stop (a twentieth of the time to live, at
    /// most 100 ms), and not when the lease would have expired. A handler that has answered within this time has more of it
    /// until its answer is recorded ([`IdempotencyLayer`](crate::IdempotencyLayer)).
    pub fn max_hold(mut self, max_hold: Duration) -> Self {
        self.max_hold = max_hold;
        self
    }

    /// What the name of every lock in Redis begins with: the lock of the key `account:7` is the string `lock:account:7`.
    ///
    /// Managers with different prefixes have nothing to do with each other if neither prefix begins with the
    /// other. 1 to 128 bytes, without braces.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// How long Redis may take to answer a command, or to accept a connection, before a request is told that it is
    /// [unavailable](ErrorKind::Unavailable): one that needs a new connection may wait for both. 1 ms up to the time to live: a lease that takes longer to get is of no use.
    pub fn command_timeout(mut self, command_timeout: Duration) -> Self {
        self.command_timeout = command_timeout;
        self
    }

    /// How many requests of this process may wait for one lock. More are [refused](ErrorKind::QueueFull).
    pub fn max_waiters_per_key(mut self, max_waiters: usize) -> Self {
        self.max_waiters_per_key = max_waiters;
        self
    }

    /// How many requests of this process may wait, for all locks together. More are
    /// [refused](ErrorKind::QueueFull). A waiter takes less than 1 KiB of memory, its task included
    /// (`cargo bench --bench contention -- memory`).
    pub fn max_waiters(mut self, max_waiters: usize) -> Self {
        self.max_waiters = max_waiters;
        self
    }

    /// While another process waits for a lock: how many times this process passes it on among its own requests, and
    /// for how long, before it grants it to that process. Whichever is reached first.
    ///
    /// Passing it on in the process costs next to nothing, granting it to another a round trip to Redis: longer bursts get
    /// more done, shorter ones are fairer from one moment to the next. With zero hand-offs, processes take turns. At most
    /// 1000 hand-offs, and the time to live.
    pub fn burst(mut self, hand_offs: u32, time: Duration) -> Self {
        self.burst = hand_offs;
        self.burst_time = time;
        self
    }

    /// After Redis lost data, gives no lock until every lease that somebody may still trust has run out: for one
    /// [time to live](Self::ttl). Requests are told that Redis is [unavailable](ErrorKind::Unavailable) meanwhile. Default: `false`.
    ///
    /// Without it, a server that was restarted empty, or a replica that was promoted without the last writes, gives locks away
    /// that others hold until they find out. This is the delayed restart that the
    /// [Redis documentation](https://redis.io/docs/latest/develop/use/patterns/distributed-locks/) advises, done by the manager: a
    /// key in Redis holds the replication id of the server. If the key is gone, or the id is another one, data may have been lost.
    /// So it is when a server is used for the first time, and whenever it is restarted, with its data or without.
    ///
    /// It begins when a manager first gets to that server. Whoever can still reach the old one goes on there meanwhile, and for as
    /// long as it is there: take it away before another is promoted.
    ///
    /// All managers of a prefix must have it, with the same time to live. It costs one `INFO` with each call, and an ACL user needs
    /// `+info`.
    pub fn quarantine(mut self, quarantine: bool) -> Self {
        self.quarantine = quarantine;
        self
    }

    /// The certificate, in PEM form, of the authority to trust when connecting with `rediss://`, in place of the
    /// operating system's.
    #[cfg(feature = "tls")]
    #[cfg_attr(docsrs, doc(cfg(feature = "tls")))]
    pub fn tls_root_certificate(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.root_certificate = Some(pem.into());
        self
    }

    /// Connects to Redis, `redis://user:password@host:port/database`. With the feature `tls` also `rediss://`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] if the URL or a setting is not valid, [`ErrorKind::Unavailable`], with the address and
    /// the cause, if the server cannot be used.
    pub async fn connect(self, url: &str) -> Result<LockManager, Error> {
        let locks = self.connect_lazy(url)?;
        locks.core.connect().await?;
        Ok(locks)
    }

    /// Like [`connect`](Self::connect), but connects in the background, so that a service starts without Redis.
    /// Until it is there, locks are [unavailable](ErrorKind::Unavailable).
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] if the URL or a setting is not valid.
    pub fn connect_lazy(self, url: &str) -> Result<LockManager, Error> {
        Ok(LockManager::from_core(self.core(Some(url))?))
    }

    /// Keeps the locks in this process, with the same rules.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] if a setting is not valid.
    pub fn in_memory(self) -> Result<LockManager, Error> {
        Ok(LockManager::from_core(self.core(None)?))
    }

    fn core(self, url: Option<&str>) -> Result<std::sync::Arc<Core>, Error> {
        let rules = self.rules()?;
        let options = Options {
            prefix: self.prefix,
            ttl: self.ttl,
            grant_ttl: rules.grant_ttl,
            command_timeout: self.command_timeout,
            quarantine: self.quarantine,
            root_certificate: self.root_certificate,
        };
        let store = match url {
            None => Store::in_memory(&options),
            Some(url) => Store::at(url, options)?,
        };
        Ok(Core::new(
            store,
            rules,
            self.command_timeout,
            self.max_waiters,
        ))
    }

    fn rules(&self) -> Result<Rules, Error> {
        let renewal = self.renewal.unwrap_or(self.ttl / 3);
        let millisecond = Duration::from_millis(1);
        between(
            "ttl",
            self.ttl,
            100 * millisecond,
            Duration::from_secs(24 * 3600),
        )?;
        between("renewal", renewal, millisecond, self.ttl / 2)?;
        between(
            "max_hold",
            self.max_hold,
            millisecond,
            Duration::from_secs(366 * 24 * 3600),
        )?;
        between(
            "command_timeout",
            self.command_timeout,
            millisecond,
            self.ttl,
        )?;
        let length = self.prefix.len();
        if length == 0 || length > 128 || self.prefix.contains(['{', '}']) {
            return Err(Error::new(
                ErrorKind::Config,
                "prefix must have 1 to 128 bytes and no braces",
            ));
        }
        if self.max_waiters == 0 || self.max_waiters_per_key == 0 {
            return Err(Error::new(
                ErrorKind::Config,
                "max_waiters and max_waiters_per_key must be at least 1; not to wait, use try_acquire, or a layer without \
                 wait",
            ));
        }
        if self.burst > 1000 {
            return Err(Error::new(
                ErrorKind::Config,
                format!("burst must have at most 1000 hand-offs, not {}", self.burst),
            ));
        }
        between("burst", self.burst_time, Duration::ZERO, self.ttl)?;
        Ok(Rules {
            ttl: self.ttl,
            renewal,
            max_hold: self.max_hold,
            grant_ttl: self.ttl.min(Duration::from_secs(2)),
            max_waiters: self.max_waiters_per_key,
            burst: self.burst,
            burst_time: self.burst_time,
        })
    }
}

fn between(name: &str, value: Duration, min: Duration, max: Duration) -> Result<(), Error> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Config,
        format!("{name} must be between {min:?} and {max:?}, not {value:?}"),
    ))
}

/// Leaves out the certificate, which only says that there is one.
impl fmt::Debug for LockManagerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockManagerBuilder")
            .field("ttl", &self.ttl)
            .field("renewal", &self.renewal)
            .field("max_hold", &self.max_hold)
            .field("prefix", &self.prefix)
            .field("command_timeout", &self.command_timeout)
            .field("max_waiters_per_key", &self.max_waiters_per_key)
            .field("max_waiters", &self.max_waiters)
            .field("burst", &self.burst)
            .field("burst_time", &self.burst_time)
            .finish_non_exhaustive()
    }
}
