//! [`RedisServer`]: what a manager can be told to connect to.

use std::fmt;

use redis::{Client, ConnectionInfo, IntoConnectionInfo};

use super::endpoint::Endpoint;
use super::tls::Tls;
use crate::error::{Error, ErrorKind};

/// Where a Redis server is, and how to log in there: a URL, or what the `redis` crate has for that.
///
/// It is made by `into`, by [`LockManager::connect`](crate::LockManager::connect) and the other
/// methods that connect, of
///
/// - a URL, as `&str` or `String`;
/// - a [`redis::Client`], or a [`redis::ConnectionInfo`], of which the address, the login, the
///   number of the database and the certificates are used. Protocol, library name and TCP settings
///   are chosen by this crate.
///
/// | URL | |
/// |---|---|
/// | `redis://user:password@host:6379/0` | all but the host may be left out |
/// | `rediss://user:password@host:6380/0` | TLS, with the feature `tls` |
/// | `redis+unix:///run/redis.sock?db=0&user=name&pass=secret` | a Unix socket; all behind the path may be left out |
///
/// User and password are percent-encoded in a URL: `p@ss` is `p%40ss`. The schemes `valkey`,
/// `valkeys` and `valkey+unix` mean the same.
///
/// Nothing is checked until the manager connects. The text of `{:?}` says nothing of what is in it,
/// as that may be a password.
///
/// # Example
///
/// ```
/// use tower_distributed_lock::LockManager;
///
/// # fn connect() -> Result<(), Box<dyn std::error::Error>> {
/// let client = redis::Client::open("redis://127.0.0.1:6379")?; // which the service has anyway
/// let locks = LockManager::builder().connect_lazy(&client)?;
/// # let _ = locks;
/// # Ok(()) }
/// # connect().unwrap();
/// ```
#[derive(Clone)]
pub struct RedisServer(Source);

#[derive(Clone)]
enum Source {
    Url(String),
    Info(Box<ConnectionInfo>),
}

impl RedisServer {
    /// Reads the source. No error repeats a URL, as it may hold a password.
    pub(super) fn endpoint(self, tls: &Tls) -> Result<Endpoint, Error> {
        let info = match self.0 {
            Source::Url(url) => read_url(&url)?,
            Source::Info(info) => *info,
        };
        Endpoint::new(info, tls)
    }

    /// Returns the URL, if it is one.
    pub(super) fn url(&self) -> Option<&str> {
        match &self.0 {
            Source::Url(url) => Some(url),
            Source::Info(_) => None,
        }
    }
}

fn read_url(url: &str) -> Result<ConnectionInfo, Error> {
    let config = |message: &str| Error::new(ErrorKind::Config, message);
    let Some(parsed) = redis::parse_redis_url(url) else {
        return Err(config(
            "this is not the URL of a Redis server: it has the form redis://user:password@host:port/database, \
             rediss:// for TLS, or redis+unix:///path for a Unix socket",
        ));
    };
    if matches!(parsed.scheme(), "rediss" | "valkeys") && !cfg!(feature = "tls") {
        return Err(config(
            "TLS (rediss://) needs the cargo feature `tls` of tower-distributed-lock",
        ));
    }
    parsed.into_connection_info().map_err(|error| {
        config(&format!(
            "the URL of the Redis server is not valid: {error}"
        ))
    })
}

impl fmt::Debug for RedisServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisServer").finish_non_exhaustive()
    }
}

impl From<&str> for RedisServer {
    fn from(url: &str) -> Self {
        Self(Source::Url(url.to_owned()))
    }
}

impl From<String> for RedisServer {
    fn from(url: String) -> Self {
        Self(Source::Url(url))
    }
}

impl From<&String> for RedisServer {
    fn from(url: &String) -> Self {
        url.as_str().into()
    }
}

impl From<ConnectionInfo> for RedisServer {
    fn from(info: ConnectionInfo) -> Self {
        Self(Source::Info(Box::new(info)))
    }
}

impl From<&Client> for RedisServer {
    fn from(client: &Client) -> Self {
        client.get_connection_info().clone().into()
    }
}

impl From<Client> for RedisServer {
    fn from(client: Client) -> Self {
        Self::from(&client)
    }
}
