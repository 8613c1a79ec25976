//! [`Address`]: where Redis is, and how a connection to it is made.

use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{ProtocolVersion, RedisError};
use tokio::time::{Instant, timeout};

use super::Settings;
use super::address_map::AddressMap;
use super::connection::{Link, closed, replication};
use super::credentials::CredentialsCallback;
use super::endpoint::{Endpoint, config};
use super::probe::explain;
use super::sentinel::{Sentinels, ZOMBIE};
use super::tls::Tls;
use crate::error::{Error, ErrorKind};
use crate::store::Servers;

/// Where Redis is, and how to log in there.
#[derive(Debug)]
pub(super) struct Address {
    place: Place,
    credentials: Option<CredentialsCallback>,
}

#[derive(Debug)]
enum Place {
    Server(Box<Endpoint>),
    Sentinels(Arc<Sentinels>),
}

impl Address {
    pub(super) fn new(
        servers: Servers,
        tls: &Tls,
        credentials: Option<CredentialsCallback>,
        map: Option<AddressMap>,
    ) -> Result<Self, Error> {
        let place = match servers {
            Servers::One(server) => Place::Server(Box::new(server.endpoint(tls)?)),
            Servers::Sentinel { sentinels, primary } => {
                let credentials = credentials.clone();
                let sentinels = Sentinels::new(sentinels, primary, tls, credentials, map)?;
                Place::Sentinels(sentinels)
            }
            Servers::Cluster(_) => unreachable!("each primary has a store of its own"),
        };
        Ok(Self { place, credentials })
    }

    /// Returns the address of one server, which is always the same.
    pub(super) fn of(server: Endpoint, credentials: Option<CredentialsCallback>) -> Self {
        let place = Place::Server(Box::new(server));
        Self { place, credentials }
    }

    /// Returns host and port, without user and password.
    pub(super) fn display(&self) -> String {
        match &self.place {
            Place::Server(server) => server.display(),
            Place::Sentinels(sentinels) => sentinels.display(),
        }
    }

    /// Returns the server that is used now, if it is known.
    pub(super) fn current(&self) -> Option<Endpoint> {
        match &self.place {
            Place::Server(server) => Some((**server).clone()),
            Place::Sentinels(sentinels) => sentinels.current(),
        }
    }

    /// Connects, and makes the server ready for takes.
    pub(super) async fn connect(&self, settings: &Settings) -> Result<Link, Error> {
        let limit = settings.command_timeout;
        let connecting = async {
            match &self.place {
                Place::Server(server) => self.connect_to(server, settings, None).await,
                Place::Sentinels(sentinels) => self.connect_by(sentinels, settings).await,
            }
        };
        let late = |_| Err(self.unavailable(&format!("no answer within {limit:?}")));
        timeout(limit, connecting).await.unwrap_or_else(late)
    }

    /// Connects to the first server that the sentinels name and that says itself that it is the
    /// primary.
    async fn connect_by(
        &self,
        sentinels: &Arc<Sentinels>,
        settings: &Settings,
    ) -> Result<Link, Error> {
        let limit = settings.command_timeout;
        let deadline = Instant::now() + limit;
        let found = sentinels.primaries(limit).await?;
        let mut left = found.len() as u32;
        let mut first_error = None;
        for primary in &found {
            let time = (deadline - Instant::now()) / left;
            left -= 1;
            let connecting = self.connect_to(primary, settings, Some(sentinels));
            let error = match timeout(time, connecting).await {
                Ok(Ok(link)) => return Ok(link),
                Ok(Err(error)) => error,
                Err(_) => unavailable(&primary.display(), "no answer in time"),
            };
            first_error.get_or_insert(error);
        }
        Err(first_error.expect("the sentinels have named one"))
    }

    /// Connects to this server, which the sentinels have named, if there are any.
    async fn connect_to(
        &self,
        server: &Endpoint,
        settings: &Settings,
        sentinels: Option<&Arc<Sentinels>>,
    ) -> Result<Link, Error> {
        let (server, valid_for) = self.log_in(server).await?;
        let failed = |error| failed(&server.display(), error, settings);
        let mut link = Link::open(&server, settings).await.map_err(failed)?;
        if let (Some(callback), Some(_)) = (&self.credentials, valid_for) {
            let keeping = callback.clone();
            let keeping = keeping.keep_logged_in(link.commands.clone(), valid_for);
            link.tasks.spawn(keeping);
        }
        // Another server may have its place before: then that one may still give locks.
        if sentinels.is_some() || settings.quarantine && settings.names.home().is_some() {
            let mut commands = link.commands.clone();
            let found = link.connection.run_until(replication(&mut commands)).await;
            let found = found.unwrap_or_else(|| Err(closed())).map_err(failed)?;
            if !found.is_primary {
                return Err(unavailable(&server.display(), "it is a replica"));
            }
            if !found.needs_replicas && found.may_be_promoted {
                link.zombie = ZOMBIE;
            }
            if let Some(sentinels) = sentinels {
                if !found.needs_replicas {
                    sentinels.warn_of_zombies();
                }
                sentinels.set_current(&server);
                let limit = settings.command_timeout;
                for watch in sentinels.watches(&server, &found.id, &link.pusher, limit) {
                    link.tasks.spawn(watch);
                }
            }
        }
        link.make_ready(settings).await;
        Ok(link)
    }

    /// Returns the server with the login of this moment, and how long that is valid.
    async fn log_in(&self, server: &Endpoint) -> Result<(Endpoint, Option<Duration>), Error> {
        let Some(callback) = &self.credentials else {
            return Ok((server.clone(), None));
        };
        let credentials = callback.ask().await.map_err(|error| {
            let why = format!("the callback for its credentials failed: {error}");
            unavailable(&server.display(), &why)
        })?;
        Ok((server.logged_in_as(&credentials), credentials.valid_for))
    }

    /// Returns a connection for commands only, to which the limits of a subscriber do not apply.
    pub(super) async fn connect_for_long(
        &self,
        server: &Endpoint,
        settings: &Settings,
    ) -> Result<MultiplexedConnection, Error> {
        let (server, _) = self.log_in(server).await?;
        let opening = server.open_in_task(ProtocolVersion::RESP2, config());
        let mut connection = opening
            .await
            .map_err(|error| self.failed(error, settings))?;
        let _: Result<(), RedisError> = redis::cmd("CLIENT")
            .arg("SETNAME")
            .arg(settings.names.client(&settings.instance))
            .query_async(&mut connection)
            .await;
        Ok(connection)
    }

    pub(super) fn unavailable(&self, why: &str) -> Error {
        unavailable(&self.display(), why)
    }

    pub(super) fn failed(&self, error: RedisError, settings: &Settings) -> Error {
        failed(&self.display(), error, settings)
    }

    pub(super) fn cannot_use(&self, why: &str) -> String {
        cannot_use(&self.display(), why)
    }
}

fn unavailable(server: &str, why: &str) -> Error {
    Error::new(ErrorKind::Unavailable, cannot_use(server, why))
}

fn failed(server: &str, error: RedisError, settings: &Settings) -> Error {
    let message = cannot_use(server, &explain(&error, settings));
    Error::caused_by(ErrorKind::Unavailable, message, error)
}

fn cannot_use(server: &str, why: &str) -> String {
    format!("cannot use Redis at {server}: {why}")
}
