//! The watch at the sentinels, for as long as a connection to the primary lives.

use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{ProtocolVersion, PushInfo, PushKind, RedisError, Value};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{MissedTickBehavior, sleep, timeout};

use super::super::connection::{refuses_resp3, replication};
use super::super::endpoint::{Endpoint, config};
use super::super::pushes::Push;
use super::{Host, Sentinels, ask};

/// How many sentinels are listened to at once.
const AT_ONCE: usize = 2;
/// How often a sentinel is asked besides: a message may be lost, and not every sentinel speaks
/// RESP3.
const ASK_EVERY: Duration = Duration::from_secs(1);
const CHANNEL: &str = "+switch-master";

impl Sentinels {
    /// Listens to the sentinels. Each of the returned futures ends the connection to the primary by
    /// [`Push::Replaced`] when a sentinel says that another server is the primary.
    pub(in super::super) fn watches(
        self: &Arc<Self>,
        primary: &Endpoint,
        id: &str,
        pushes: &UnboundedSender<Push>,
        limit: Duration,
    ) -> impl Iterator<Item = impl Future<Output = ()> + Send + 'static> {
        let count = self.sentinels.len().min(AT_ONCE);
        (0..count).map(move |first| {
            let (sentinels, primary) = (self.clone(), primary.clone());
            let (id, pushes) = (id.to_owned(), pushes.clone());
            async move {
                for number in first.. {
                    let sentinel = &sentinels.sentinels[number % sentinels.sentinels.len()];
                    let watch = Watch {
                        sentinels: &sentinels,
                        primary: &primary,
                        id: &id,
                        limit,
                    };
                    if watch.at(sentinel).await.is_ok() {
                        let _ = pushes.send(Push::Replaced);
                        return;
                    }
                    // To the next one.
                    sleep(ASK_EVERY).await;
                }
            }
        })
    }
}

struct Watch<'a> {
    sentinels: &'a Sentinels,
    primary: &'a Endpoint,
    /// Its replication id. It has one address, and may have a name besides.
    id: &'a str,
    limit: Duration,
}

impl Watch<'_> {
    /// Returns when this sentinel says that another server is the primary.
    async fn at(&self, sentinel: &Endpoint) -> Result<(), RedisError> {
        let mut listener = self.in_time(listen(sentinel)).await?;
        // It is asked at once, in case that the primary was replaced before this listened.
        let mut asking = tokio::time::interval(ASK_EVERY);
        asking.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let is_replaced = tokio::select! {
                _ = asking.tick() => {
                    let asking = ask(&mut listener.commands, &self.sentinels.name);
                    let found = self.in_time(asking).await?;
                    found.is_some_and(|host| !self.is_at(&host)) && self.is_replaced().await
                }
                Some(switch) = listener.switches.recv() => {
                    match new_host(&switch, &self.sentinels.name) {
                        Some(host) if !self.is_at(&host) => {
                            let other = self.sentinels.login.at(host);
                            // If it cannot be reached, it is another one all the same.
                            self.is_another(&other).await.unwrap_or(true)
                        }
                        _ => false,
                    }
                }
            };
            if is_replaced {
                return Ok(());
            }
        }
    }

    fn is_at(&self, (host, port): &Host) -> bool {
        self.primary.host() == Some((host, *port))
    }

    /// Asks all sentinels whether there is another primary. One that was cut off for a while names
    /// the primary of that time, which may take itself for that still.
    async fn is_replaced(&self) -> bool {
        let found = self.sentinels.primaries(self.limit).await;
        let Some(first) = found.ok().and_then(|found| found.into_iter().next()) else {
            return false;
        };
        first.addr() != self.primary.addr() && self.is_another(&first).await.unwrap_or(false)
    }

    /// Returns whether this is a primary, and another one.
    async fn is_another(&self, server: &Endpoint) -> Result<bool, RedisError> {
        let asking = async {
            let server = match &self.sentinels.credentials {
                Some(callback) => server.logged_in_as(&callback.ask().await.map_err(failed)?),
                None => server.clone(),
            };
            let opening = server.open_in_task(ProtocolVersion::RESP2, config());
            replication(&mut opening.await?).await
        };
        let found = self.in_time(asking).await?;
        Ok(found.is_primary && found.id != self.id)
    }

    async fn in_time<T>(
        &self,
        work: impl Future<Output = Result<T, RedisError>>,
    ) -> Result<T, RedisError> {
        let late = |_| Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into());
        timeout(self.limit, work).await.unwrap_or_else(late)
    }
}

/// Reads `<name> <old host> <old port> <new host> <new port>`.
fn new_host(switch: &str, primary: &str) -> Option<Host> {
    let words: Vec<&str> = switch.split(' ').collect();
    match words[..] {
        [name, _, _, host, port] if name == primary => Some((host.to_owned(), port.parse().ok()?)),
        _ => None,
    }
}

/// A connection to a sentinel, that takes commands besides.
struct Listener {
    commands: MultiplexedConnection,
    /// What it tells of failovers. If it does not speak RESP3, that is nothing.
    switches: UnboundedReceiver<String>,
}

async fn listen(sentinel: &Endpoint) -> Result<Listener, RedisError> {
    let (sender, switches) = unbounded_channel();
    let listening = config().set_push_sender(move |push| match read(push) {
        Some(switch) => sender.send(switch).map_err(|_| ()),
        None => Ok(()),
    });
    let opening = sentinel.open_in_task(ProtocolVersion::RESP3, listening);
    let commands = match opening.await {
        Err(error) if refuses_resp3(&error) => {
            let opening = sentinel.open_in_task(ProtocolVersion::RESP2, config());
            opening.await?
        }
        commands => {
            let mut commands = commands?;
            commands.subscribe(CHANNEL).await?;
            commands
        }
    };
    Ok(Listener { commands, switches })
}

fn read(push: PushInfo) -> Option<String> {
    match (push.kind, push.data.into_iter().nth(1)) {
        (PushKind::Message, Some(Value::BulkString(text))) => String::from_utf8(text).ok(),
        _ => None,
    }
}

fn failed(error: Box<dyn std::error::Error + Send + Sync>) -> RedisError {
    std::io::Error::other(error).into()
}
