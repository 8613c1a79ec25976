//! Redis Sentinel: which server is the primary, and when that changes.
//!
//! The address of the primary is [looked up](Sentinels::primaries) at every connect. While the
//! connection lives, [a watch](watch) ends it when the sentinels say that another server is the
//! primary: an old primary goes on accepting writes for ten seconds after another was promoted,
//! unless it has `min-replicas-to-write`.

mod watch;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use redis::aio::ConnectionLike;
use redis::{ProtocolVersion, RedisError};
use tokio::time::{sleep, timeout};

use super::address_map::AddressMap;
use super::credentials::CredentialsCallback;
use super::endpoint::{Endpoint, config};
use super::server::RedisServer;
use super::tls::Tls;
use crate::error::{Error, ErrorKind};

/// For how long an old primary may accept writes after another server was promoted, if it has no
/// `min-replicas-to-write`: measured, until the sentinels demote it, at most 11.2 s.
pub(super) const ZOMBIE: Duration = Duration::from_secs(12);

type Host = (String, u16);

/// The sentinels of one primary.
#[derive(Debug)]
pub(super) struct Sentinels {
    name: String,
    sentinels: Vec<Endpoint>,
    /// How to log in at the primary. Its address is of no meaning.
    login: Endpoint,
    credentials: Option<CredentialsCallback>,
    /// The primary that was last connected to.
    current: Mutex<Option<Endpoint>>,
    /// Whether it was told that the primary has no `min-replicas-to-write`.
    has_warned: AtomicBool,
}

/// Why a sentinel does not tell where the primary is.
enum Unanswered {
    /// It knows none of that name.
    Unknown,
    Failed(String),
}

impl Sentinels {
    /// Reads where the sentinels are, and the name of the primary, or a URL with that name as its
    /// host.
    pub(super) fn new(
        sentinels: Vec<RedisServer>,
        primary: RedisServer,
        tls: &Tls,
        credentials: Option<CredentialsCallback>,
        map: Option<AddressMap>,
    ) -> Result<Arc<Self>, Error> {
        let mut at_sentinels = tls.clone();
        at_sentinels.server_name = None;
        let sentinels = sentinels
            .into_iter()
            .map(|sentinel| sentinel.endpoint(&at_sentinels))
            .collect::<Result<Vec<_>, _>>()?;
        let Some(first) = sentinels.first() else {
            return Err(Error::new(
                ErrorKind::Config,
                "connect_sentinel needs the URL of at least one sentinel, such as redis://host:26379",
            ));
        };
        // A bare name: TLS as at the sentinels, and no login.
        let primary = match primary.url().filter(|url| !url.contains("://")) {
            Some(name) if !is_name(name) => return Err(no_name()),
            Some(name) if first.has_tls() => format!("rediss://{name}").into(),
            Some(name) => format!("redis://{name}").into(),
            None => primary,
        };
        let login = primary.endpoint(tls)?.with_map(map);
        let name = match login.host() {
            Some((name, _)) if is_name(name) => name.to_owned(),
            _ => return Err(no_name()),
        };
        Ok(Arc::new(Self {
            name,
            sentinels,
            login,
            credentials,
            current: Mutex::default(),
            has_warned: AtomicBool::new(false),
        }))
    }

    /// Returns the primary that was last connected to.
    pub(super) fn current(&self) -> Option<Endpoint> {
        self.lock().clone()
    }

    pub(super) fn set_current(&self, primary: &Endpoint) {
        *self.lock() = Some(primary.clone());
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Endpoint>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells once that an old primary accepts writes.
    pub(super) fn warn_of_zombies(&self) {
        if !self.has_warned.swap(true, Ordering::Relaxed) {
            crate::observe::no_min_replicas();
        }
    }

    pub(super) fn display(&self) -> String {
        match self.current() {
            Some(primary) => format!("{}, the primary {}", primary.display(), self.name),
            None => format!("the primary {}", self.name),
        }
    }

    /// Asks all sentinels. Returns where the primary is, the address that most of them tell first.
    /// One that was cut off may know of an old primary only.
    pub(super) async fn primaries(&self, limit: Duration) -> Result<Vec<Endpoint>, Error> {
        let mut asked: FuturesUnordered<_> = self
            .sentinels
            .iter()
            .map(|sentinel| async move {
                let asking = ask_at(sentinel, &self.name);
                let answer = timeout(limit / 2, asking)
                    .await
                    .unwrap_or_else(|_| Err(Unanswered::Failed("no answer in time".to_owned())));
                (sentinel, answer)
            })
            .collect();
        let mut votes: Vec<(Host, usize)> = Vec::new();
        let mut failed = Vec::new();
        let mut knows_none = 0;
        loop {
            // Those that are silent are not waited for when another has answered.
            let patience = match votes.is_empty() {
                true => limit,
                false => limit / 8,
            };
            let next = tokio::select! {
                next = asked.next() => next,
                () = sleep(patience) => None,
            };
            match next {
                None => break,
                Some((_, Ok(host))) => match votes.iter_mut().find(|(known, _)| *known == host) {
                    Some((_, count)) => *count += 1,
                    None => votes.push((host, 1)),
                },
                Some((_, Err(Unanswered::Unknown))) => knows_none += 1,
                Some((sentinel, Err(Unanswered::Failed(why)))) => {
                    failed.push(format!("{}: {why}", sentinel.display()));
                }
            }
            if votes
                .iter()
                .any(|(_, count)| *count > self.sentinels.len() / 2)
            {
                break;
            }
        }
        votes.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        match votes.is_empty() {
            false => Ok(votes
                .into_iter()
                .map(|(host, _)| self.login.at(host))
                .collect()),
            true if knows_none > 0 => Err(Error::new(
                ErrorKind::Config,
                format!(
                    "the sentinels know no primary of the name {}: use the name in their configuration, which SENTINEL \
                     MASTERS lists",
                    self.name
                ),
            )),
            true => Err(Error::new(
                ErrorKind::Unavailable,
                format!(
                    "no sentinel tells where the primary {} is: {}",
                    self.name,
                    failed.join("; ")
                ),
            )),
        }
    }
}

fn no_name() -> Error {
    Error::new(
        ErrorKind::Config,
        "the primary of connect_sentinel is its name in the configuration of the sentinels, such as mymaster, or a \
         URL with that name as its host, such as redis://user:password@mymaster",
    )
}

/// Returns whether Sentinel allows this name.
fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    !name.is_empty() && name.bytes().all(allowed)
}

async fn ask_at(sentinel: &Endpoint, name: &str) -> Result<Host, Unanswered> {
    let failed = |error: RedisError| Unanswered::Failed(explain(&error));
    let opening = sentinel.open(ProtocolVersion::RESP2, config());
    let (mut commands, mut driver) = opening.await.map_err(failed)?;
    let host = driver.run_until(ask(&mut commands, name)).await;
    let host = host.unwrap_or_else(|| Err(super::connection::closed()));
    host.map_err(failed)?.ok_or(Unanswered::Unknown)
}

/// Asks where the primary of that name is.
async fn ask(
    sentinel: &mut (impl ConnectionLike + Send),
    name: &str,
) -> Result<Option<Host>, RedisError> {
    redis::cmd("SENTINEL")
        .arg("GET-MASTER-ADDR-BY-NAME")
        .arg(name)
        .query_async(sentinel)
        .await
}

fn explain(error: &RedisError) -> String {
    let text = error.to_string();
    match text.to_ascii_lowercase().contains("unknown command") {
        true => format!("{text}. It is no sentinel: sentinels usually have the port 26379"),
        false => text,
    }
}
