//! One connection to Redis, made ready for the driver.

use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::{AsyncConnectionConfig, Client, ErrorKind as RedisKind, ProtocolVersion};
use redis::{ConnectionAddr, IntoConnectionInfo, RedisError, ServerErrorKind};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::Settings;
use super::commands::{Server, refused};
use super::connection_driver::ConnectionDriver;
use super::in_flight::InFlightCall;
use super::pending::Pending;
use super::pushes::{self, Observed, Push};
use super::scripts;
use crate::clock::Time;
use crate::error::{Error, ErrorKind};

/// How far the counter of fences may be behind the clock of its server while it is used: another
/// server whose counter is at the clock may take over after that time.
const SEED_EVERY: Duration = Duration::from_millis(2);

const QUARANTINED: &str = "Redis lost data, or another server took over: no lock is given until all \
                           who had one before must have lost it";

/// Where Redis is, and how to log in there.
#[derive(Debug)]
pub(super) struct Address {
    client: Client,
    /// For a server that does not speak RESP3.
    resp2: Client,
}

/// A connection that is ready to use.
pub(super) struct Link {
    pub(super) commands: MultiplexedConnection,
    pub(super) pushes: mpsc::UnboundedReceiver<Push>,
    pub(super) observed: Observed,
    /// Whether grants come with a time before which they were not given.
    pub(super) dates_grants: bool,
    /// What is found out later holds for later calls: each call has what it was made for.
    pub(super) server: Arc<Server>,
    /// Why no lock can be given before the server is [made ready](Link::make_ready).
    pub(super) unready: Option<Error>,
    /// Until then, no lock may be given.
    quarantined_until: Option<Time>,
    /// When the counter of fences was last raised to the clock.
    seeded_at: Time,
    pub(super) connection: ConnectionDriver,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").finish_non_exhaustive()
    }
}

impl Address {
    /// Reads a URL. No error repeats it, as it may hold a password.
    pub(super) fn parse(url: &str, root_certificate: Option<&[u8]>) -> Result<Self, Error> {
        let config = |message: &str| Error::new(ErrorKind::Config, message);
        let Some(parsed) = redis::parse_redis_url(url) else {
            return Err(config(
                "this is not the URL of a Redis server: it has the form redis://user:password@host:port/database, or \
                 rediss:// for TLS",
            ));
        };
        if matches!(parsed.scheme(), "rediss" | "valkeys") && !cfg!(feature = "tls") {
            return Err(config(
                "TLS (rediss://) needs the cargo feature `tls` of tower-distributed-lock",
            ));
        }
        let info = parsed.into_connection_info().map_err(|error| {
            config(&format!(
                "the URL of the Redis server is not valid: {error}"
            ))
        })?;
        let tcp = TcpSettings::default().set_nodelay(true);
        let login = info.redis_settings().clone();
        let login = login.set_lib_name(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));
        let info = info.set_tcp_settings(tcp);
        let client = |protocol| {
            let login = login.clone().set_protocol(protocol);
            let info = info.clone().set_redis_settings(login);
            open(info, root_certificate).map_err(|error| {
                config(&format!(
                    "the settings of the Redis connection are not valid: {error}"
                ))
            })
        };
        Ok(Self {
            client: client(ProtocolVersion::RESP3)?,
            resp2: client(ProtocolVersion::RESP2)?,
        })
    }

    /// Returns host and port, without user and password.
    pub(super) fn display(&self) -> String {
        match self.client.get_connection_info().addr() {
            ConnectionAddr::Tcp(host, port) => format!("{host}:{port}"),
            ConnectionAddr::TcpTls { host, port, .. } => format!("{host}:{port} (TLS)"),
            ConnectionAddr::Unix(path) => path.display().to_string(),
            _ => "its address".to_owned(),
        }
    }

    pub(super) async fn connect(&self, settings: &Settings) -> Result<Link, Error> {
        let limit = settings.command_timeout;
        match tokio::time::timeout(limit, self.try_connect(settings)).await {
            Ok(Ok(link)) => Ok(link),
            Ok(Err(error)) => Err(self.failed(error)),
            Err(_) => Err(self.unavailable(&format!("no answer within {limit:?}"))),
        }
    }

    /// Returns a connection for commands only, to which the limits of a subscriber do not apply.
    pub(super) async fn connect_for_long(&self) -> Result<MultiplexedConnection, RedisError> {
        let client = &self.resp2;
        client
            .get_multiplexed_async_connection_with_config(&config())
            .await
    }

    pub(super) fn unavailable(&self, why: &str) -> Error {
        Error::new(ErrorKind::Unavailable, self.cannot_use(why))
    }

    pub(super) fn failed(&self, error: RedisError) -> Error {
        let message = self.cannot_use(&explain(&error));
        Error::caused_by(ErrorKind::Unavailable, message, error)
    }

    fn cannot_use(&self, why: &str) -> String {
        format!("cannot use Redis at {}: {why}", self.display())
    }

    async fn try_connect(&self, settings: &Settings) -> Result<Link, RedisError> {
        match connect_resp3(&self.client, settings).await {
            Err(error) if refuses_resp3(&error) => connect_resp2(&self.resp2, settings).await,
            result => result,
        }
    }
}

/// Makes one connection, on which messages and invalidations come between the replies.
async fn connect_resp3(client: &Client, settings: &Settings) -> Result<Link, RedisError> {
    let observed = Observed::now();
    let (sender, pushes) = mpsc::unbounded_channel();
    let config = config().set_push_sender(pushes::forward(sender, observed.clone()));
    let (commands, mut driver) = open_connection(client, config).await?;
    let prepared = prepare(commands.clone(), settings, Some(settings.inbox()));
    let watches = driver.run_until(prepared).await;
    let watches = watches.unwrap_or_else(|| Err(closed()))?;
    let mut link = Link::new(commands, pushes, driver, observed);
    link.dates_grants = true;
    Arc::make_mut(&mut link.server).watches = watches;
    link.make_ready(settings).await;
    Ok(link)
}

/// Makes two connections: in RESP2, one that is subscribed to the inbox can do nothing else.
async fn connect_resp2(client: &Client, settings: &Settings) -> Result<Link, RedisError> {
    let mut inbox = client.get_async_pubsub().await?;
    inbox.subscribe(settings.inbox()).await?;
    let (sender, pushes) = mpsc::unbounded_channel();
    tokio::spawn(pushes::listen(inbox, sender, settings.command_timeout));
    let (commands, mut driver) = open_connection(client, config()).await?;
    driver
        .run_until(prepare(commands.clone(), settings, None))
        .await
        .unwrap_or_else(|| Err(closed()))?;
    let mut link = Link::new(commands, pushes, driver, Observed::now());
    link.make_ready(settings).await;
    Ok(link)
}

impl Link {
    fn new(
        commands: MultiplexedConnection,
        pushes: mpsc::UnboundedReceiver<Push>,
        driver: ConnectionDriver,
        observed: Observed,
    ) -> Self {
        Self {
            commands,
            pushes,
            observed,
            dates_grants: false,
            server: Arc::new(Server {
                takes_with_get: true,
                watches: false,
                seed: 0,
                epoch: None,
                may_give: true,
            }),
            unready: Some(Error::of(ErrorKind::Unavailable)),
            quarantined_until: None,
            seeded_at: Time::now(),
            connection: driver,
        }
    }

    /// Readies the server for takes, if it is not ready yet: sets the counter of fences to the
    /// clock at least, and sees whether data was lost. If the server refuses, as it does when it is
    /// out of memory, locks that are held can still be renewed and released.
    pub(super) async fn make_ready(&mut self, settings: &Settings) {
        if self.unready.is_none() {
            return;
        }
        let ready = make_ready(self.commands.clone(), settings);
        let ready = tokio::time::timeout(settings.command_timeout, ready);
        self.unready = match self.connection.run_until(ready).await {
            Some(Ok(Ok(ready))) => {
                let server = Arc::make_mut(&mut self.server);
                server.seed = ready.seed;
                server.takes_with_get = ready.takes_with_get;
                server.epoch = ready.epoch;
                self.quarantined_until = ready.quarantined_until;
                None
            }
            Some(Ok(Err(error))) => Some(refused(error)),
            Some(Err(_)) | None => Some(Error::of(ErrorKind::Unavailable)),
        };
    }

    /// Returns a call of these commands.
    pub(super) fn call(&self, sent_at: Time, commands: Vec<Pending>) -> InFlightCall {
        let server = self.server.clone();
        InFlightCall {
            sent_at,
            server,
            commands,
        }
    }

    /// Decides whether a call that is sent now raises the counter of fences.
    pub(super) fn seeds(&mut self, now: Time) -> bool {
        let is_due = now.since(self.seeded_at) >= SEED_EVERY;
        if is_due {
            self.seeded_at = now;
        }
        is_due
    }

    /// Returns whether no lock may be given at this time, as the server may lack some that are
    /// held.
    pub(super) fn is_quarantined(&self, now: Time) -> bool {
        self.quarantined_until.is_some_and(|until| now < until)
    }

    /// Returns why no lock may be given at this time.
    pub(super) fn refuses(&mut self, now: Time) -> Option<Error> {
        let is_quarantined = self.is_quarantined(now);
        // A server that is not ready may be in quarantine, or its counter of fences be lost.
        let may_give = !is_quarantined && self.unready.is_none();
        if self.server.may_give != may_give {
            Arc::make_mut(&mut self.server).may_give = may_give;
        }
        match is_quarantined {
            true => Some(Error::new(ErrorKind::Unavailable, QUARANTINED)),
            false => self.unready.clone(),
        }
    }
}

/// What a server is found to be like when it is made ready.
struct Ready {
    seed: u64,
    takes_with_get: bool,
    epoch: Option<Vec<u8>>,
    quarantined_until: Option<Time>,
}

async fn make_ready(
    mut commands: MultiplexedConnection,
    settings: &Settings,
) -> Result<Ready, RedisError> {
    let (mut epoch, mut quarantined_until) = (None, None);
    if settings.quarantine {
        let (known, remaining): (Vec<u8>, i64) = redis::cmd("EVAL")
            .arg(scripts::QUARANTINE.source)
            .arg(1)
            .arg(settings.epoch_name())
            .arg(settings.ttl.as_millis() as u64)
            .query_async(&mut commands)
            .await?;
        epoch = Some(known);
        let remaining = u64::try_from(remaining).unwrap_or(0);
        quarantined_until = Some(Time::now() + Duration::from_millis(remaining));
    }
    let (seed, takes_with_get) = seed(&mut commands, &settings.fence_name()).await?;
    Ok(Ready {
        seed,
        takes_with_get,
        epoch,
        quarantined_until,
    })
}

/// Seeds the counter of fences. Returns what it has then, and whether `SET` takes `NX` and `GET`
/// together.
async fn seed(
    commands: &mut MultiplexedConnection,
    fence: &str,
) -> Result<(u64, bool), RedisError> {
    let mut seed = redis::cmd("EVAL");
    seed.arg(scripts::SEED.source).arg(1).arg(fence);
    let seed = seed.query_async(commands).await?;
    // It is there, and stays as it is.
    let mut probe = redis::cmd("SET");
    probe.arg(fence).arg(0).arg("NX").arg("GET");
    let probed: Result<Option<u64>, RedisError> = probe.query_async(commands).await;
    match probed {
        Ok(_) => Ok((seed, true)),
        Err(error) if error.code() == Some("ERR") => Ok((seed, false)),
        Err(error) => Err(error),
    }
}

fn config() -> AsyncConnectionConfig {
    AsyncConnectionConfig::new()
        .set_connection_timeout(None)
        .set_response_timeout(None)
}

async fn open_connection(
    client: &Client,
    config: AsyncConnectionConfig,
) -> Result<(MultiplexedConnection, ConnectionDriver), RedisError> {
    let info = client.get_connection_info();
    let login = info.redis_settings();
    match info.addr() {
        ConnectionAddr::Tcp(host, port) => {
            let stream = TcpStream::connect((host.as_str(), *port)).await?;
            stream.set_nodelay(true)?;
            let (commands, driver) =
                MultiplexedConnection::new_with_config(login, stream, config).await?;
            Ok((commands, ConnectionDriver::new(driver)))
        }
        #[cfg(unix)]
        ConnectionAddr::Unix(path) => {
            let stream = tokio::net::UnixStream::connect(path).await?;
            let (commands, driver) =
                MultiplexedConnection::new_with_config(login, stream, config).await?;
            Ok((commands, ConnectionDriver::new(driver)))
        }
        // TLS is left to the client, which runs a task for it.
        _ => {
            let commands = client
                .get_multiplexed_async_connection_with_config(&config)
                .await?;
            Ok((commands, ConnectionDriver::new(std::future::pending())))
        }
    }
}

fn closed() -> RedisError {
    std::io::Error::from(std::io::ErrorKind::ConnectionReset).into()
}

/// Returns whether the server does not know the command `HELLO`, forbids it, or does not know the
/// protocol.
fn refuses_resp3(error: &RedisError) -> bool {
    let is_about_hello = || {
        let detail = error.detail().unwrap_or_default();
        detail.to_ascii_lowercase().contains("hello")
    };
    match error.code() {
        Some("NOPROTO") => true,
        Some("NOAUTH") => false,
        _ => error.kind() == RedisKind::RESP3NotSupported || is_about_hello(),
    }
}

/// Loads the scripts, and names the connection. With RESP3, also subscribes to the inbox, and turns
/// on the tracking of keys. Returns whether the server tracks them.
async fn prepare(
    mut commands: MultiplexedConnection,
    settings: &Settings,
    inbox: Option<String>,
) -> Result<bool, RedisError> {
    let can_push = inbox.is_some();
    if let Some(inbox) = inbox {
        commands.subscribe(inbox).await?;
    }
    let mut pipeline = redis::pipe();
    for script in scripts::LOADED {
        let load = pipeline.cmd("SCRIPT").arg("LOAD");
        load.arg(script.source).ignore();
    }
    pipeline.exec_async(&mut commands).await?;
    // For those who ask which process has a lock. A proxy may refuse it.
    let mut name = redis::cmd("CLIENT");
    name.arg("SETNAME").arg(settings.client_name());
    let _: Result<(), RedisError> = name.query_async(&mut commands).await;
    if !can_push {
        return Ok(false);
    }
    // Without tracking, the next renewal notices that another client has deleted a lock.
    let tracking: Result<(), RedisError> = redis::cmd("CLIENT")
        .arg(&["TRACKING", "ON", "OPTIN", "NOLOOP"])
        .query_async(&mut commands)
        .await;
    if let Err(error) = &tracking {
        crate::observe::no_tracking(error);
    }
    Ok(tracking.is_ok())
}

/// Describes the cause, and what to do about it where the server's own words do not say.
fn explain(error: &RedisError) -> String {
    match error.kind() {
        RedisKind::AuthenticationFailed => {
            format!("{error}. Check the user and the password in the URL")
        }
        RedisKind::Server(ServerErrorKind::NoPerm) => format!(
            "{error}. The user needs the commands of the crate's scripts, its keys and its inbox channels: see \
             the operations guide in the documentation"
        ),
        _ => error.to_string(),
    }
}

#[cfg(not(feature = "tls"))]
fn open(
    info: redis::ConnectionInfo,
    _root_certificate: Option<&[u8]>,
) -> Result<Client, RedisError> {
    Client::open(info)
}

#[cfg(feature = "tls")]
fn open(
    info: redis::ConnectionInfo,
    root_certificate: Option<&[u8]>,
) -> Result<Client, RedisError> {
    if !matches!(info.addr(), ConnectionAddr::TcpTls { .. }) {
        return Client::open(info);
    }
    // rustls cannot choose by itself when a program is built with several providers. This crate's
    // is used if the program has chosen none. An error means that it has chosen one just now.
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
    let certificates = redis::TlsCertificates {
        client_tls: None,
        root_cert: root_certificate.map(<[u8]>::to_vec),
    };
    Client::build_with_tls(info, certificates)
}
