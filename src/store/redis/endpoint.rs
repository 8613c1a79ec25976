//! [`Endpoint`]: one server, and how to open connections to it.

use std::sync::Arc;

use redis::aio::{MultiplexedConnection, PubSub};
use redis::io::AsyncDNSResolver;
use redis::io::tcp::TcpSettings;
use redis::{AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, ProtocolVersion};
use redis::{RedisError, RedisFuture};
use tokio::net::TcpStream;

use super::address_map::AddressMap;
use super::connection_driver::ConnectionDriver;
use super::credentials::Credentials;
use super::tls::Tls;
use crate::error::Error;

/// A server, and a login.
#[derive(Clone, Debug)]
pub(super) struct Endpoint {
    info: ConnectionInfo,
    /// The name that its certificate must have, in place of its address.
    server_name: Option<Arc<str>>,
    /// Where the servers are of which this one tells.
    map: Option<AddressMap>,
}

impl Endpoint {
    pub(super) fn new(info: ConnectionInfo, tls: &Tls) -> Result<Self, Error> {
        let tcp = TcpSettings::default().set_nodelay(true);
        let login = info.redis_settings().clone();
        let login = login.set_lib_name(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));
        let info = info.set_tcp_settings(tcp).set_redis_settings(login);
        Ok(Self {
            info: tls.apply(info)?,
            server_name: tls.server_name.as_deref().map(Into::into),
            map: None,
        })
    }

    /// Returns the same server, which tells of others by addresses that are to be looked up.
    pub(super) fn with_map(self, map: Option<AddressMap>) -> Self {
        Self { map, ..self }
    }

    /// Returns the same login at another address, which a server has told.
    pub(super) fn at(&self, told: (String, u16)) -> Self {
        let mapped = self.map.as_ref().and_then(|map| map.of(&told.0, told.1));
        let (host, port) = mapped.unwrap_or(told);
        let addr = match self.info.addr().clone() {
            ConnectionAddr::TcpTls {
                insecure,
                tls_params,
                ..
            } => ConnectionAddr::TcpTls {
                host,
                port,
                insecure,
                tls_params,
            },
            _ => ConnectionAddr::Tcp(host, port),
        };
        Self {
            info: self.info.clone().set_addr(addr),
            ..self.clone()
        }
    }

    /// Returns the same address with another login.
    pub(super) fn logged_in_as(&self, credentials: &Credentials) -> Self {
        // Its user may be none, which cannot be set.
        let before = self.info.redis_settings();
        let mut login = redis::RedisConnectionInfo::default()
            .set_db(before.db())
            .set_password(&credentials.password)
            .set_lib_name(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));
        if let Some(user) = &credentials.user {
            login = login.set_username(user);
        }
        Self {
            info: self.info.clone().set_redis_settings(login),
            ..self.clone()
        }
    }

    pub(super) fn addr(&self) -> &ConnectionAddr {
        self.info.addr()
    }

    /// Returns the name or the address of the host.
    pub(super) fn host(&self) -> Option<(&str, u16)> {
        match self.addr() {
            ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
                Some((host, *port))
            }
            _ => None,
        }
    }

    pub(super) fn has_tls(&self) -> bool {
        matches!(self.addr(), ConnectionAddr::TcpTls { .. })
    }

    /// Returns host and port, without user and password.
    pub(super) fn display(&self) -> String {
        match self.info.addr() {
            ConnectionAddr::Tcp(host, port) => format!("{host}:{port}"),
            ConnectionAddr::TcpTls { host, port, .. } => format!("{host}:{port} (TLS)"),
            ConnectionAddr::Unix(path) => path.display().to_string(),
            _ => "its address".to_owned(),
        }
    }

    /// Opens a connection whose bytes the caller moves.
    pub(super) async fn open(
        &self,
        protocol: ProtocolVersion,
        config: AsyncConnectionConfig,
    ) -> Result<(MultiplexedConnection, ConnectionDriver), RedisError> {
        let login = self.info.redis_settings().clone().set_protocol(protocol);
        match self.info.addr() {
            ConnectionAddr::Tcp(host, port) => {
                let stream = TcpStream::connect((host.as_str(), *port)).await?;
                stream.set_nodelay(true)?;
                let (commands, driver) =
                    MultiplexedConnection::new_with_config(&login, stream, config).await?;
                Ok((commands, ConnectionDriver::new(driver)))
            }
            #[cfg(unix)]
            ConnectionAddr::Unix(path) => {
                let stream = tokio::net::UnixStream::connect(path).await?;
                let (commands, driver) =
                    MultiplexedConnection::new_with_config(&login, stream, config).await?;
                Ok((commands, ConnectionDriver::new(driver)))
            }
            // TLS is left to the client, which runs a task for it.
            _ => {
                let commands = self.open_in_task(protocol, config).await?;
                Ok((commands, ConnectionDriver::new(std::future::pending())))
            }
        }
    }

    /// Opens a connection whose bytes a task moves.
    pub(super) async fn open_in_task(
        &self,
        protocol: ProtocolVersion,
        config: AsyncConnectionConfig,
    ) -> Result<MultiplexedConnection, RedisError> {
        let (client, config) = match (&self.server_name, self.info.addr()) {
            // The client checks the certificate for the host that it is given, and asks the
            // resolver where that is.
            (
                Some(name),
                ConnectionAddr::TcpTls {
                    host,
                    port,
                    insecure,
                    tls_params,
                },
            ) => {
                let addr = ConnectionAddr::TcpTls {
                    host: name.to_string(),
                    port: *port,
                    insecure: *insecure,
                    tls_params: tls_params.clone(),
                };
                let host = host.clone();
                let config = config.set_dns_resolver(Always { host });
                (self.client(protocol, addr)?, config)
            }
            (_, addr) => (self.client(protocol, addr.clone())?, config),
        };
        client
            .get_multiplexed_async_connection_with_config(&config)
            .await
    }

    /// Opens a connection for a subscriber that does not speak RESP3.
    pub(super) async fn open_inbox(&self) -> Result<PubSub, RedisError> {
        if self.server_name.is_some() {
            return Err(
                std::io::Error::other("tls_server_name needs a server that speaks RESP3").into(),
            );
        }
        let client = self.client(ProtocolVersion::RESP2, self.info.addr().clone())?;
        client.get_async_pubsub().await
    }

    fn client(
        &self,
        protocol: ProtocolVersion,
        addr: ConnectionAddr,
    ) -> Result<Client, RedisError> {
        let login = self.info.redis_settings().clone().set_protocol(protocol);
        let info = self.info.clone().set_addr(addr);
        Client::open(info.set_redis_settings(login))
    }
}

/// Finds one host, whatever it is asked for.
struct Always {
    host: String,
}

impl AsyncDNSResolver for Always {
    fn resolve<'a, 'b: 'a>(
        &'a self,
        _name: &'b str,
        port: u16,
    ) -> RedisFuture<'a, Box<dyn Iterator<Item = std::net::SocketAddr> + Send + 'a>> {
        Box::pin(async move {
            let found = tokio::net::lookup_host((self.host.as_str(), port)).await?;
            let found: Box<dyn Iterator<Item = _> + Send> = Box::new(found);
            Ok(found)
        })
    }
}

/// The settings of a connection: the caller has timeouts of its own.
pub(super) fn config() -> AsyncConnectionConfig {
    AsyncConnectionConfig::new()
        .set_connection_timeout(None)
        .set_response_timeout(None)
}
