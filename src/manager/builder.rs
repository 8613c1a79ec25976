//! [`LockManagerBuilder`]: the settings of a manager.

use std::fmt;
use std::time::Duration;

use super::slot::Rules;
use super::{Core, LockManager, instance};
use crate::error::{Error, ErrorKind};
use crate::store::{
    AddressMap, Credentials, CredentialsCallback, Options, RedisServer, Servers, Store, Tls,
};

const DEFAULT_COMMAND_TIMEOUT: Duration = Duration::from_secs(1);

/// The settings of a [`LockManager`], made by [`LockManager::builder`].
///
/// | Setting | Default | |
/// |---|---|---|
/// | [`ttl`](Self::ttl) | 10 s | how long a lock outlives a process that died |
/// | [`renewal`](Self::renewal) | a third of the time to live | how often a held lock is renewed |
/// | [`max_hold`](Self::max_hold) | 5 min | how long one holder may hold a lock |
/// | [`prefix`](Self::prefix) | `lock:` | what the names of the locks in Redis begin with |
/// | [`command_timeout`](Self::command_timeout) | 1 s, or the time to live if that is less | how long Redis may take to connect, and then to reply |
/// | [`max_waiters_per_key`](Self::max_waiters_per_key) | 10 000 | how many requests of this process wait for one lock |
/// | [`max_waiters`](Self::max_waiters) | 100 000 | how many wait for all locks together |
/// | [`max_keys`](Self::max_keys) | 16 | how many keys a request may lock at once |
/// | [`burst`](Self::burst) | 16, 50 ms | how many of this process go before another process that waits, and for how long |
/// | [`quarantine`](Self::quarantine) | with Sentinel or a Cluster | whether to give no lock for a time to live after Redis lost data |
/// | [`min_replicas`](Self::min_replicas) | 0 | how many replicas must have a lock before it is given |
/// | [`credentials`](Self::credentials) | those of the URL | asked for user and password at each login |
/// | [`address_map`](Self::address_map) | as they are told | the addresses of the servers of which a cluster or a sentinel tells |
/// | [`instance_name`](Self::instance_name) | host and process id | what this process is called where locks are inspected |
/// | `tls_root_certificate` | the system's | the authorities to trust with `rediss://` (feature `tls`) |
/// | `tls_client_certificate` | none | the certificate by which Redis knows this client (feature `tls`) |
/// | `tls_server_name` | the host | the name that the certificate of Redis must have (feature `tls`) |
///
/// The defaults suit most services. Processes that share locks need the same
/// [`prefix`](Self::prefix), and with [`quarantine`](Self::quarantine) the same time to live. All
/// else may differ between them, as it does while a new version is rolled out.
///
/// Nothing is checked until the last step, [`connect`](Self::connect),
/// [`connect_sentinel`](Self::connect_sentinel), their lazy kinds, or
/// [`in_memory`](Self::in_memory). It refuses settings that make no sense with an error of kind
/// [`ErrorKind::Config`].
///
/// # Example
///
/// ```
/// use std::time::Duration;
/// use tower_distributed_lock::{ErrorKind, LockManager};
///
/// let locks = LockManager::builder()
///     .ttl(Duration::from_secs(30))
///     .prefix("payments:lock:")
///     .in_memory()?; // or .connect("redis://127.0.0.1:6379").await?
/// # let _ = locks;
///
/// let refused = LockManager::builder().ttl(Duration::ZERO).in_memory();
/// assert_eq!(refused.unwrap_err().kind(), ErrorKind::Config);
/// # Ok::<(), tower_distributed_lock::Error>(())
/// ```
#[derive(Clone)]
#[must_use = "settings do nothing until `connect`, `connect_lazy` or `in_memory` is called"]
pub struct LockManagerBuilder {
    ttl: Duration,
    renewal: Option<Duration>,
    max_hold: Duration,
    prefix: String,
    command_timeout: Option<Duration>,
    max_waiters_per_key: usize,
    max_waiters: usize,
    max_keys: usize,
    burst: u32,
    burst_time: Duration,
    /// `None`: where there is failover.
    quarantine: Option<bool>,
    min_replicas: u32,
    address_map: Option<AddressMap>,
    tls: Tls,
    credentials: Option<CredentialsCallback>,
    instance_name: Option<String>,
}

impl Default for LockManagerBuilder {
    fn default() -> Self {
        Self {
            ttl: Duration::from_secs(10),
            renewal: None,
            max_hold: Duration::from_secs(5 * 60),
            prefix: "lock:".to_owned(),
            command_timeout: None,
            max_waiters_per_key: 10_000,
            max_waiters: 100_000,
            max_keys: 16,
            burst: 16,
            burst_time: Duration::from_millis(50),
            quarantine: None,
            min_replicas: 0,
            address_map: None,
            tls: Tls::default(),
            credentials: None,
            instance_name: None,
        }
    }
}

impl LockManagerBuilder {
    /// Sets the time to live of a lease in Redis: how long a lock stays taken when its holder's
    /// process dies, and how long a holder that cannot reach Redis goes on before it is told that
    /// the lock is lost. Default: 10 s. From 100 ms to 24 h.
    ///
    /// A lock that another process handed over begins with two seconds (or the time to live, if
    /// that is less), and is renewed soon after. So a process that does not take it up keeps it
    /// from the others no longer than that.
    ///
    /// Each lock that is held costs a command per [renewal](Self::renewal), of which 2048 are in
    /// flight at once: with the default settings, a process keeps 250 000 locks at a round trip of
    /// 10 ms. For more, make this longer.
    ///
    /// # A short time to live loses locks
    ///
    /// A process that stands still for longer than this, or a Redis that is away for longer, loses
    /// every lock that the process holds, and its requests are stopped. A few seconds ride out a
    /// slow network or a busy machine; 100 ms do not.
    ///
    /// # Example
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_distributed_lock::LockManager;
    /// // Jobs survive half a minute without Redis. After a crash, locks stay taken as long.
    /// let locks = LockManager::builder().ttl(Duration::from_secs(30)).in_memory()?;
    /// # let _ = locks;
    /// # Ok::<(), tower_distributed_lock::Error>(())
    /// ```
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// Sets the time between two renewals of a held lock. Default: a third of the time to live.
    /// From 1 ms to half the [time to live](Self::ttl), so that one renewal may fail.
    ///
    /// More renewals tell earlier of a lock that another client took away, and cost Redis a command
    /// each.
    ///
    /// # Example
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_distributed_lock::LockManager;
    /// let locks = LockManager::builder()
    ///     .ttl(Duration::from_secs(30))
    ///     .renewal(Duration::from_secs(5))
    ///     .in_memory()?;
    /// # let _ = locks;
    /// # Ok::<(), tower_distributed_lock::Error>(())
    /// ```
    pub fn renewal(mut self, renewal: Duration) -> Self {
        self.renewal = Some(renewal);
        self
    }

    /// Sets how long one holder may hold a lock, the response's body included. After that, it
    /// [loses](crate::LostReason::MaxHold) the lock. Default: 5 min. From 1 ms to 366 days.
    ///
    /// The next holder gets the lock when the request has had the time to stop (a twentieth of the
    /// time to live, at most 100 ms), and not only when the lease would have expired. A handler
    /// that has answered within this time has more of it until its response is stored
    /// ([`IdempotencyLayer`](crate::IdempotencyLayer)). Of [several](LockManager::acquire_all)
    /// locks, the first that is taken counts, while it waits for the others as well.
    ///
    /// # Long responses are cut off
    ///
    /// A request that takes longer is stopped, and a response that is still being sent, such as a
    /// long download or a stream of events, ends with an error. For those, make this longer, or
    /// hold the lock until the handler has returned ([`Hold::Head`](crate::lock::Hold::Head)).
    ///
    /// # Example
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_distributed_lock::LockManager;
    /// // Exports that take up to an hour.
    /// let locks = LockManager::builder().max_hold(Duration::from_secs(3600)).in_memory()?;
    /// # let _ = locks;
    /// # Ok::<(), tower_distributed_lock::Error>(())
    /// ```
    pub fn max_hold(mut self, max_hold: Duration) -> Self {
        self.max_hold = max_hold;
        self
    }

    /// Sets what the name of every lock in Redis begins with: the lock of the key `account:7` is
    /// the string `lock:account:7`. Default: `lock:`. 1 to 128 bytes, without braces.
    ///
    /// Managers with different prefixes have nothing to do with each other if neither prefix begins
    /// with the other.
    ///
    /// # Another prefix means other locks
    ///
    /// All processes that are to exclude each other need the same prefix. While a version with
    /// another one is rolled out, two requests for one resource may run at once, one under each.
    ///
    /// # Example
    ///
    /// ```
    /// # use tower_distributed_lock::LockManager;
    /// let locks = LockManager::builder().prefix("payments:lock:").in_memory()?;
    /// # let _ = locks;
    /// # Ok::<(), tower_distributed_lock::Error>(())
    /// ```
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Sets how long Redis may take to accept a connection, and then to reply to a command, before
    /// a request is told that it is [unavailable](ErrorKind::Unavailable). A request that needs a
    /// new connection may wait for both. Default: 1 s, or the [time to live](Self::ttl) if that is
    /// less. From 1 ms to the time to live: a lease that takes longer to get is of no use.
    ///
    /// After several timeouts in a row, requests are told at once until Redis is back.
    ///
    /// # Example
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_distributed_lock::LockManager;
    /// // Rather 503 than a request that waits longer for Redis.
    /// let locks = LockManager::builder().command_timeout(Duration::from_millis(250)).in_memory()?;
    /// # let _ = locks;
    /// # Ok::<(), tower_distributed_lock::Error>(())
    /// ```
    pub fn command_timeout(mut self, command_timeout: Duration) -> Self {
        self.command_timeout = Some(command_timeout);
        self
    }

    /// Sets how many requests of this process may wait for one lock. Further ones are
    /// [refused](ErrorKind::QueueFull), with 503. Default: 10 000. At least 1: for requests that
    /// are not to wait, use [`try_acquire`](LockManager::try_acquire), or a layer without a wait.
    ///
    /// # Example
    ///
    /// ```
    /// # use tower_distributed_lock::LockManager;
    /// let locks = LockManager::builder().max_waiters_per_key(100).in_memory()?;
    /// # let _ = locks;
    /// # Ok::<(), tower_distributed_lock::Error>(())
    /// ```
    pub fn max_waiters_per_key(mut self, max_waiters: usize) -> Self {
        self.max_waiters_per_key = max_waiters;
        self
    }

    /// Sets how many requests of this process may wait, for all locks together. Further ones are
    /// [refused](ErrorKind::QueueFull), with 503. Default: 100 000. At least 1.
    ///
    /// A waiter takes less than 1 KiB of memory, its task included.
    ///
    /// # Example
    ///
    /// ```
    /// # use tower_distributed_lock::LockManager;
    /// let locks = LockManager::builder().max_waiters(5_000).in_memory()?;
    /// # let _ = locks;
    /// # Ok::<(), tower_distributed_lock::Error>(())
    /// ```
    pub fn max_waiters(mut self, max_waiters: usize) -> Self {
        self.max_waiters = max_waiters;
        self
    }

    /// Sets how many different keys a request may lock at once, by a layer whose closure returns
    /// [several](crate::key::IntoLockKeys), or by [`acquire_all`](LockManager::acquire_all). One
    /// with more is [refused](ErrorKind::TooManyKeys), with 400. Default: 16. From 1 to 1000.
    ///
    /// Clients often choose what is locked. This bounds what one request can keep from the others,
    /// and how many commands it sends.
    ///
    /// # Example
    ///
    /// ```
    /// # use tower_distributed_lock::LockManager;
    /// // An order of up to 100 articles locks each of them.
    /// let locks = LockManager::builder().max_keys(100).in_memory()?;
    /// # let _ = locks;
    /// # Ok::<(), tower_distributed_lock::Error>(())
    /// ```
    pub fn max_keys(mut self, max_keys: usize) -> Self {
        self.max_keys = max_keys;
        self
    }

    /// Sets how many times this process passes a lock on among its own requests, and for how long,
    /// while another process waits for that lock. Whichever is reached first; then the other
    /// process is granted the lock. Default: 16 hand-offs, 50 ms. At most 1000 hand-offs, and the
    /// [time to live](Self::ttl).
    ///
    /// Passing the lock on in the process costs next to nothing, granting it to another a round
    /// trip to Redis. Longer bursts get more done; shorter ones are fairer from one moment to the
    /// next. With zero hand-offs, processes take turns.
    ///
    /// # Example
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_distributed_lock::LockManager;
    /// // Fair from one request to the next.
    /// let locks = LockManager::builder().burst(0, Duration::ZERO).in_memory()?;
    /// # let _ = locks;
    /// # Ok::<(), tower_distributed_lock::Error>(())
    /// ```
    pub fn burst(mut self, hand_offs: u32, time: Duration) -> Self {
        self.burst = hand_offs;
        self.burst_time = time;
        self
    }

    /// Sets whether to give no lock, after Redis lost data, until every lease that a process may
    /// still count on has run out: for one [time to live](Self::ttl). Requests are told meanwhile
    /// that Redis is [unavailable](ErrorKind::Unavailable). Default: `true` with
    /// [Sentinel](Self::connect_sentinel) and a [Cluster](Self::connect_cluster), `false`
    /// otherwise.
    ///
    /// Without it, a server that was restarted empty, or a replica that was promoted without the
    /// last writes, gives locks away that other processes hold until they find out. This is the
    /// delayed restart that the [Redis
    /// documentation](https://redis.io/docs/latest/develop/use/patterns/distributed-locks/)
    /// advises, done by the manager: a key in Redis holds the replication id of the server. If the
    /// key is gone, or the id is another one, data may have been lost. So it is when a server is
    /// used for the first time, and whenever it is restarted, with its data or without: then, too,
    /// there is no lock for one time to live.
    ///
    /// With Sentinel or a Cluster, and without `min-replicas-to-write` in the configuration of
    /// Redis, it lasts 12 s longer: for so long, an old primary may give locks after another server
    /// was promoted. In a Cluster, it is about the locks of one primary.
    ///
    /// It costs one `INFO` for each connection and a `GET` with each write that takes locks. An ACL
    /// user needs `+info`.
    ///
    /// # What it needs to hold
    ///
    /// - All managers of a prefix must have it, with the same time to live.
    /// - The old server must be gone. The quarantine begins when a manager first gets to the new
    ///   one. A process that can still reach the old one goes on there meanwhile, and for as long
    ///   as it is there: take it away before another is promoted.
    ///
    /// # Example
    ///
    /// ```no_run
    /// # use tower_distributed_lock::{Error, LockManager};
    /// # async fn connect() -> Result<LockManager, Error> {
    /// LockManager::builder().quarantine(true).connect("redis://redis.internal:6379").await
    /// # }
    /// ```
    pub fn quarantine(mut self, quarantine: bool) -> Self {
        self.quarantine = Some(quarantine);
        self
    }

    /// Sets how many replicas must have a lock before it is given. Default: 0. A lock that fewer
    /// have within the [command timeout](Self::command_timeout) is released again, and the request
    /// is told that Redis is [unavailable](ErrorKind::Unavailable).
    ///
    /// So a lock is rarely lost with the primary. It is no proof against it: another replica may be
    /// promoted than one that had it, and renewals are not waited for.
    /// [Quarantine](Self::quarantine) keeps a second holder out, this keeps the first one's lock.
    ///
    /// It costs a write and a `WAIT`, on a connection of their own, for all locks that are taken at
    /// one moment together: every lock takes two round trips more than it would. Hand-offs between
    /// processes are confirmed as well; those within a process need not be. Not
    /// every proxy lets `WAIT` through.
    ///
    /// # Example
    ///
    /// ```no_run
    /// # use tower_distributed_lock::{Error, LockManager};
    /// # async fn connect() -> Result<LockManager, Error> {
    /// LockManager::builder()
    ///     .min_replicas(1)
    ///     .connect_sentinel(["redis://10.0.0.1:26379"], "mymaster")
    ///     .await
    /// # }
    /// ```
    pub fn min_replicas(mut self, replicas: u32) -> Self {
        self.min_replicas = replicas;
        self
    }

    /// Sets a callback that is asked for user and password whenever a connection is made, in place
    /// of those in the URL. It suits passwords that are rotated, and tokens that expire: of a file,
    /// a vault, or a cloud's identity service.
    ///
    /// The callback has to answer within the [command timeout](Self::command_timeout), of which it
    /// uses up a part. If getting a token takes longer, keep one at hand, and refresh it in a task
    /// of your own. An error of the callback is an [unavailable](ErrorKind::Unavailable) Redis,
    /// whose message has its text.
    ///
    /// A connection that lives on is logged in anew before its credentials expire, if the callback
    /// says [when](Credentials::valid_for) that is. Where there is no RESP3, the second connection
    /// cannot be: it is made again when the server ends it.
    ///
    /// # Example
    ///
    /// ```
    /// use tower_distributed_lock::{Credentials, LockManager};
    ///
    /// let locks = LockManager::builder()
    ///     .credentials(async || {
    ///         let password = tokio::fs::read_to_string("/run/secrets/redis").await?;
    ///         Ok::<_, std::io::Error>(Credentials::new("worker", password.trim_end()))
    ///     })
    ///     .connect_lazy("redis://127.0.0.1:6379")?;
    /// # let _ = locks;
    /// # Ok::<(), tower_distributed_lock::Error>(())
    /// ```
    pub fn credentials<F, R, E>(mut self, callback: F) -> Self
    where
        F: Fn() -> R + Send + Sync + 'static,
        R: Future<Output = Result<Credentials, E>> + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        self.credentials = Some(CredentialsCallback::new(callback));
        self
    }

    /// Sets where the servers are of which a cluster, or a sentinel, tells. The closure gets the
    /// host and the port that they told, and returns those to connect to; `None` leaves them as
    /// they are. Default: they are right.
    ///
    /// It suits servers that know themselves by other addresses than this process: behind port
    /// forwarding, in a container, through a tunnel. The addresses that you name yourself are taken
    /// as they are.
    ///
    /// # Example
    ///
    /// ```
    /// use tower_distributed_lock::LockManager;
    ///
    /// let locks = LockManager::builder()
    ///     .address_map(|_, port| Some(("localhost".to_owned(), port)))
    ///     .connect_cluster_lazy(["redis://localhost:7000"])?;
    /// # let _ = locks;
    /// # Ok::<(), tower_distributed_lock::Error>(())
    /// ```
    pub fn address_map<F>(mut self, map: F) -> Self
    where
        F: Fn(&str, u16) -> Option<(String, u16)> + Send + Sync + 'static,
    {
        self.address_map = Some(AddressMap::new(map));
        self
    }

    /// Sets what this process is called where its locks are [inspected](LockManager::inspect).
    /// Default: the host's name and the process id, as in `api-7d9f:1`. 1 to 128 bytes.
    ///
    /// It is part of the name of the connection (`CLIENT SETNAME`), so Redis forgets it when the
    /// process is gone.
    ///
    /// # Example
    ///
    /// ```
    /// # use tower_distributed_lock::LockManager;
    /// let locks = LockManager::builder().instance_name("billing eu-1").in_memory()?;
    /// # let _ = locks;
    /// # Ok::<(), tower_distributed_lock::Error>(())
    /// ```
    pub fn instance_name(mut self, name: impl Into<String>) -> Self {
        self.instance_name = Some(name.into());
        self
    }

    /// Sets the certificates, in PEM form, of the authorities to trust when connecting by TLS.
    /// Default: the authorities of the operating system. These replace them; they do not add to
    /// them.
    ///
    /// A certificate that cannot be read is refused by [`connect`](Self::connect) and
    /// [`connect_lazy`](Self::connect_lazy). A text without any certificate is not: then no server
    /// is trusted, and every connection by `rediss://` fails.
    ///
    /// # Example
    ///
    /// ```no_run
    /// # use tower_distributed_lock::LockManager;
    /// # async fn connect() -> Result<LockManager, Box<dyn std::error::Error>> {
    /// let pem = std::fs::read("redis-ca.pem")?;
    /// let locks = LockManager::builder()
    ///     .tls_root_certificate(pem)
    ///     .connect("rediss://redis.internal:6380")
    ///     .await?;
    /// # Ok(locks) }
    /// ```
    #[cfg(feature = "tls")]
    #[cfg_attr(docsrs, doc(cfg(feature = "tls")))]
    pub fn tls_root_certificate(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.tls.root_certificate = Some(pem.into());
        self
    }

    /// Sets the certificate by which the server knows this client (`tls-auth-clients`), with those
    /// of its authorities behind it, and its private key, both in PEM form. Default: none.
    ///
    /// What cannot be read is refused by [`connect`](Self::connect) and
    /// [`connect_lazy`](Self::connect_lazy).
    ///
    /// # Example
    ///
    /// ```no_run
    /// # use tower_distributed_lock::LockManager;
    /// # async fn connect() -> Result<LockManager, Box<dyn std::error::Error>> {
    /// let (certificate, key) = (std::fs::read("client.pem")?, std::fs::read("client.key")?);
    /// let locks = LockManager::builder()
    ///     .tls_client_certificate(certificate, key)
    ///     .connect("rediss://redis.internal:6380")
    ///     .await?;
    /// # Ok(locks) }
    /// ```
    #[cfg(feature = "tls")]
    #[cfg_attr(docsrs, doc(cfg(feature = "tls")))]
    pub fn tls_client_certificate(
        mut self,
        certificate: impl Into<Vec<u8>>,
        key: impl Into<Vec<u8>>,
    ) -> Self {
        self.tls.client = Some((certificate.into(), key.into()));
        self
    }

    /// Sets the name that the certificate of the server must have. Default: the host that is
    /// connected to. It suits servers that are reached by another name than that in their
    /// certificate: through a tunnel, or by the IP address that a sentinel tells. (A sentinel's own
    /// certificate must have the name in its URL.)
    ///
    /// It needs a server that speaks RESP3. What is not a name is refused by
    /// [`connect`](Self::connect) and [`connect_lazy`](Self::connect_lazy).
    ///
    /// # Example
    ///
    /// ```no_run
    /// # use tower_distributed_lock::{Error, LockManager};
    /// # async fn connect() -> Result<LockManager, Error> {
    /// LockManager::builder()
    ///     .tls_server_name("redis.internal")
    ///     .connect("rediss://127.0.0.1:16380")
    ///     .await
    /// # }
    /// ```
    #[cfg(feature = "tls")]
    #[cfg_attr(docsrs, doc(cfg(feature = "tls")))]
    pub fn tls_server_name(mut self, name: impl Into<String>) -> Self {
        self.tls.server_name = Some(name.into());
        self
    }

    /// Connects to Redis. What it takes is a URL, `redis://user:password@host:port/database` (all
    /// but the host may be left out), or a `redis::Client`: see [`RedisServer`], also for TLS and
    /// Unix sockets.
    ///
    /// It takes, hands on and releases a lock of a random name, so that it succeeds only where
    /// locks can be had. Later connections are made without that.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] if the URL or a setting is not valid, [`ErrorKind::Unavailable`], with
    /// the address, the cause and what to do, if the server cannot be used: it is not there, is a
    /// replica or a node of a Redis Cluster, or its user lacks rights.
    ///
    /// # Example
    ///
    /// ```no_run
    /// # use tower_distributed_lock::{Error, LockManager};
    /// # async fn connect() -> Result<LockManager, Error> {
    /// LockManager::builder().connect("redis://127.0.0.1:6379").await
    /// # }
    /// ```
    pub async fn connect(self, server: impl Into<RedisServer>) -> Result<LockManager, Error> {
        let locks = self.connect_lazy(server)?;
        locks.core.connect().await?;
        Ok(locks)
    }

    /// Like [`connect`](Self::connect), but connects in the background, so that a service starts
    /// without Redis. Until Redis is there, locks are [unavailable](ErrorKind::Unavailable).
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] if the URL or a setting is not valid.
    ///
    /// # Example
    ///
    /// ```
    /// # use tower_distributed_lock::LockManager;
    /// let locks = LockManager::builder().connect_lazy("redis://127.0.0.1:6379")?;
    /// # let _ = locks;
    /// # Ok::<(), tower_distributed_lock::Error>(())
    /// ```
    pub fn connect_lazy(self, server: impl Into<RedisServer>) -> Result<LockManager, Error> {
        let servers = Servers::One(server.into());
        self.manager(Some(servers))
    }

    /// Connects to the primary that Redis Sentinel watches under a name, and follows it through
    /// failovers.
    ///
    /// `sentinels` are URLs, `redis://user:password@host:26379`, with the login of the sentinel
    /// itself. Name all of them: one that can be reached is enough. `primary` is the name of the
    /// primary in their configuration, such as `mymaster`. If Redis wants a login, or has another
    /// database than 0, it is a URL with that name as its host: `redis://user:password@mymaster/3`.
    /// With a name alone, the primary is connected to by TLS if the sentinels are.
    ///
    /// At each connect, all sentinels are asked, and the server must say itself that it is the
    /// primary. Up to two sentinels are listened to meanwhile: when they have put another server in
    /// its place, the manager goes there. [`quarantine`](Self::quarantine) is on, unless you turn
    /// it off. The [guide](crate::_guide::topologies) says which settings Redis and the sentinels
    /// need, and what a failover can lose.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] if a URL or a setting is not valid, or the sentinels know no primary
    /// of that name, [`ErrorKind::Unavailable`], with the cause, if no sentinel tells where it is,
    /// or it cannot be used.
    ///
    /// # Example
    ///
    /// ```no_run
    /// # use tower_distributed_lock::{Error, LockManager};
    /// # async fn connect() -> Result<LockManager, Error> {
    /// LockManager::builder()
    ///     .connect_sentinel(
    ///         ["redis://10.0.0.1:26379", "redis://10.0.0.2:26379", "redis://10.0.0.3:26379"],
    ///         "mymaster",
    ///     )
    ///     .await
    /// # }
    /// ```
    pub async fn connect_sentinel<S: Into<RedisServer>>(
        self,
        sentinels: impl IntoIterator<Item = S>,
        primary: impl Into<RedisServer>,
    ) -> Result<LockManager, Error> {
        let locks = self.connect_sentinel_lazy(sentinels, primary)?;
        locks.core.connect().await?;
        Ok(locks)
    }

    /// Like [`connect_sentinel`](Self::connect_sentinel), but connects in the background, so that a
    /// service starts without Redis. Until it is there, and if the sentinels know no primary of
    /// that name, locks are [unavailable](ErrorKind::Unavailable).
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] if a URL or a setting is not valid.
    ///
    /// # Example
    ///
    /// ```
    /// # use tower_distributed_lock::LockManager;
    /// let sentinels = ["redis://127.0.0.1:26379"];
    /// let locks = LockManager::builder().connect_sentinel_lazy(sentinels, "mymaster")?;
    /// # let _ = locks;
    /// # Ok::<(), tower_distributed_lock::Error>(())
    /// ```
    pub fn connect_sentinel_lazy<S: Into<RedisServer>>(
        self,
        sentinels: impl IntoIterator<Item = S>,
        primary: impl Into<RedisServer>,
    ) -> Result<LockManager, Error> {
        let servers = Servers::Sentinel {
            sentinels: sentinels.into_iter().map(Into::into).collect(),
            primary: primary.into(),
        };
        self.manager(Some(servers))
    }

    /// Connects to a Redis Cluster of Redis 7.0 or later, or of Valkey. Of the servers that are
    /// named, one must answer; it tells of the others. All have the login of the first.
    ///
    /// The manager has a connection to each primary, finds moved slots and new primaries by itself,
    /// and keeps each lock in the slot of its name. A `{tag}` in a [key](crate::LockKey::new)
    /// chooses the slot, as it does for any key. Where processes wait, the message that hands the
    /// lock on goes to all servers of the cluster, as every `PUBLISH` does.
    ///
    /// While a slot is moved key by key, locks in it are taken, renewed and released as ever. Those
    /// that several processes want, or share, are late until the slot has arrived: see
    /// [the guide](crate::_guide::topologies#cluster).
    ///
    /// A failover loses the last writes, as replicas lag behind. [`quarantine`](Self::quarantine)
    /// is on, unless you turn it off: after a failover, and when a primary is used for the first
    /// time, its locks are unavailable for one time to live at least. Other primaries give theirs.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] if no server is named, or a URL or a setting is not valid,
    /// [`ErrorKind::Unavailable`], with an address and the cause, if no server answers for a
    /// cluster, or one of its primaries cannot be used.
    ///
    /// # Example
    ///
    /// ```no_run
    /// # use tower_distributed_lock::{Error, LockManager};
    /// # async fn connect() -> Result<LockManager, Error> {
    /// let servers = ["redis://redis-0.internal:6379", "redis://redis-1.internal:6379"];
    /// LockManager::builder().connect_cluster(servers).await
    /// # }
    /// ```
    pub async fn connect_cluster<S: Into<RedisServer>>(
        self,
        servers: impl IntoIterator<Item = S>,
    ) -> Result<LockManager, Error> {
        let locks = self.connect_cluster_lazy(servers)?;
        locks.core.connect().await?;
        Ok(locks)
    }

    /// Like [`connect_cluster`](Self::connect_cluster), but connects in the background: see
    /// [`connect_lazy`](Self::connect_lazy).
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] if no server is named, or a URL or a setting is not valid.
    pub fn connect_cluster_lazy<S: Into<RedisServer>>(
        self,
        servers: impl IntoIterator<Item = S>,
    ) -> Result<LockManager, Error> {
        let servers = servers.into_iter().map(Into::into).collect();
        self.manager(Some(Servers::Cluster(servers)))
    }

    /// Keeps the locks in this process, with the same rules: for tests, examples, and services of
    /// one node. The prefix and the quarantine have no meaning then.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] if a setting is not valid.
    ///
    /// # Example
    ///
    /// ```
    /// # use tower_distributed_lock::LockManager;
    /// let locks = LockManager::builder().in_memory()?;
    /// # let _ = locks;
    /// # Ok::<(), tower_distributed_lock::Error>(())
    /// ```
    pub fn in_memory(self) -> Result<LockManager, Error> {
        self.manager(None)
    }

    fn manager(self, servers: Option<Servers>) -> Result<LockManager, Error> {
        let rules = self.rules()?;
        let may_fail_over = matches!(
            servers,
            Some(Servers::Sentinel { .. } | Servers::Cluster(_))
        );
        let command_timeout = self.chosen_command_timeout();
        let instance = self.instance_name.unwrap_or_else(instance::default_name);
        let options = Options {
            instance,
            prefix: self.prefix,
            ttl: self.ttl,
            grant_ttl: rules.grant_ttl,
            command_timeout,
            quarantine: self.quarantine.unwrap_or(may_fail_over),
            min_replicas: self.min_replicas,
            tls: self.tls,
            credentials: self.credentials,
            address_map: self.address_map,
        };
        let store = match servers {
            None => Store::in_memory(&options),
            Some(servers) => Store::at(servers, &options)?,
        };
        let core = Core::new(
            store,
            rules,
            command_timeout,
            self.max_keys,
            self.max_waiters,
        );
        Ok(LockManager::from_core(core))
    }

    fn chosen_command_timeout(&self) -> Duration {
        let default = || DEFAULT_COMMAND_TIMEOUT.min(self.ttl);
        self.command_timeout.unwrap_or_else(default)
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
            self.chosen_command_timeout(),
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
        let instance = self.instance_name.as_deref();
        if instance.is_some_and(|name| name.is_empty() || name.len() > 128) {
            return Err(Error::new(
                ErrorKind::Config,
                "instance_name must have 1 to 128 bytes; leave it out for the host's name",
            ));
        }
        if self.max_waiters == 0 || self.max_waiters_per_key == 0 {
            return Err(Error::new(
                ErrorKind::Config,
                "max_waiters and max_waiters_per_key must be at least 1; not to wait, use try_acquire, or a layer without \
                 wait",
            ));
        }
        if !(1..=1000).contains(&self.max_keys) {
            return Err(Error::new(
                ErrorKind::Config,
                format!("max_keys must be between 1 and 1000, not {}", self.max_keys),
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

/// Leaves certificates and credentials out.
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
            .field("max_keys", &self.max_keys)
            .field("burst", &self.burst)
            .field("burst_time", &self.burst_time)
            .field("quarantine", &self.quarantine)
            .field("min_replicas", &self.min_replicas)
            .field("address_map", &self.address_map)
            .field("instance_name", &self.instance_name)
            .finish_non_exhaustive()
    }
}
