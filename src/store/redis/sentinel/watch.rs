//! The watch at the sentinels, for as long as a connection to the primary lives.

use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{ProtocolVersion, PushInfo, PushKind, RedisError, Value};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{sleep, timeout};

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
        pushes: &UnboundedSender<Push>,
        limit: Duration,
    ) -> impl Iterator<Item = impl Future<Output = ()> + Send + 'static> {
        let count = self.sentinels.len().min(AT_ONCE);
        (0..count).map(move |first| {
            let (sentinels, primary) = (self.clone(), primary.clone());
            let pushes = pushes.clone();
            async move {
                for number in first.. {
                    let sentinel = &sentinels.sentinels[number % sentinels.sentinels.len()];
                    let watch = Watch {
                        sentinels: &sentinels,
                        primary: &primary,
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
    limit: Duration,
}

impl Watch<'_> {
    /// Returns when this sentinel says that another server is the primary.
    async fn at(&self, sentinel: &Endpoint) -> Result<(), RedisError> {
        let mut listener = self.in_time(listen(sentinel)).await?;
        loop {
            // First, in case that it was replaced before this listened.
            let found = self
                .in_time(ask(&mut listener.commands, &self.sentinels.name))
                .await?;
            if let Some(host) = found
                && self.primary.host() != Some((&host.0, host.1))
                && self.is_primary(host).await
            {
                return Ok(());
            }
            let asking = sleep(ASK_EVERY);
            tokio::pin!(asking);
            loop {
                tokio::select! {
                    Some(switch) = listener.switches.recv() => {
                        if self.is_replaced_by(&switch) {
                            return Ok(());
                        }
                    }
                    () = &mut asking => break,
                }
            }
        }
    }

    /// Reads `<name> <old host> <old port> <new host> <new port>`.
    fn is_replaced_by(&self, switch: &str) -> bool {
        let words: Vec<&str> = switch.split(' ').collect();
        let [name, _, _, host, port] = words[..] else {
            return false;
        };
        let Ok(port) = port.parse() else {
            return false;
        };
        name == self.sentinels.name && self.primary.host() != Some((host, port))
    }

    /// Returns whether the server says so itself. A sentinel that was cut off for a while names the
    /// primary of that time.
    async fn is_primary(&self, host: Host) -> bool {
        let server = self.sentinels.login.at(host);
        let asking = async {
            let server = match &self.sentinels.credentials {
                Some(callback) => server.logged_in_as(&callback.ask().await.map_err(failed)?),
                None => server,
            };
            let opening = server.open_in_task(ProtocolVersion::RESP2, config());
            replication(&mut opening.await?).await
        };
        self.in_time(asking)
            .await
            .is_ok_and(|found| found.is_primary)
    }

    async fn in_time<T>(
        &self,
        work: impl Future<Output = Result<T, RedisError>>,
    ) -> Result<T, RedisError> {
        let late = |_| Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into());
        timeout(self.limit, work).await.unwrap_or_else(late)
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
