//! [`Tls`]: whom to trust, and who to be, in connections by TLS.

use redis::{Client, ConnectionAddr, ConnectionInfo, RedisError};

use crate::error::{Error, ErrorKind};

/// The settings for `rediss://`. Without the feature `tls` there are none.
#[derive(Clone, Default)]
pub(crate) struct Tls {
    /// The authorities to trust in place of the system's, in PEM form.
    #[cfg(feature = "tls")]
    pub(crate) root_certificate: Option<Vec<u8>>,
    /// The certificate and the key by which the server knows this client, in PEM form.
    #[cfg(feature = "tls")]
    pub(crate) client: Option<(Vec<u8>, Vec<u8>)>,
    /// The name that the server's certificate must have, in place of its address.
    pub(crate) server_name: Option<String>,
}

/// Leaves the key out.
impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls")
            .field("server_name", &self.server_name)
            .finish_non_exhaustive()
    }
}

impl Tls {
    /// Adds the certificates to the address. Those that are in it stay, unless there are others
    /// here.
    pub(super) fn apply(&self, info: ConnectionInfo) -> Result<ConnectionInfo, Error> {
        if !matches!(info.addr(), ConnectionAddr::TcpTls { .. }) {
            return match self.server_name {
                Some(_) => Err(Error::new(
                    ErrorKind::Config,
                    "tls_server_name needs a connection by TLS: use rediss:// instead of redis://",
                )),
                None => Ok(info),
            };
        }
        let client = self.client_of(info).map_err(|error| {
            Error::new(
                ErrorKind::Config,
                format!("the settings of the Redis connection are not valid: {error}"),
            )
        })?;
        Ok(client.get_connection_info().clone())
    }

    #[cfg(not(feature = "tls"))]
    fn client_of(&self, info: ConnectionInfo) -> Result<Client, RedisError> {
        Client::open(info)
    }

    #[cfg(feature = "tls")]
    fn client_of(&self, info: ConnectionInfo) -> Result<Client, RedisError> {
        // rustls cannot choose by itself when a program is built with several providers. This
        // crate's is used if the program has chosen none. An error means that it has chosen one
        // just now.
        if rustls::crypto::CryptoProvider::get_default().is_none() {
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        if let Some(name) = &self.server_name {
            rustls::pki_types::ServerName::try_from(name.as_str()).map_err(|_| {
                std::io::Error::other("tls_server_name is not the name of a server")
            })?;
        }
        if self.root_certificate.is_none() && self.client.is_none() {
            return Client::open(info);
        }
        let client_tls = self.client.clone();
        let certificates = redis::TlsCertificates {
            client_tls: client_tls.map(|(client_cert, client_key)| redis::ClientTlsConfig {
                client_cert,
                client_key,
            }),
            root_cert: self.root_certificate.clone(),
        };
        Client::build_with_tls(info, certificates)
    }
}
