//! One connection to Redis, made ready for the driver.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{ErrorKind as RedisKind, ProtocolVersion, RedisError};
use smallvec::SmallVec;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::Settings;
use super::commands::{Ahead, Epoch, Seed, Server, refused};
use super::connection_driver::ConnectionDriver;
use super::endpoint::{Endpoint, config};
use super::in_flight::InFlightCall;
use super::names::{Fences, Home, Names};
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

/// A connection that is ready to use.
pub(super) struct Link {
    pub(super) commands: MultiplexedConnection,
    pub(super) pushes: mpsc::UnboundedReceiver<Push>,
    pub(super) observed: Observed,
    /// Whether grants come with a time before which they were not given.
    pub(super) dates_grants: bool,
    /// What is found out later holds for later calls: each call has what it was made for.
    pub(super) server: Arc<Server>,
    /// Why the server does not track what is read.
    pub(super) no_tracking: Option<RedisError>,
    /// Why no lock can be given before the server is [made ready](Link::make_ready).
    pub(super) unready: Option<Error>,
    /// Until then, no lock may be given.
    quarantined_until: Option<Time>,
    /// When the counters of fences were last raised to the clock, by their slots.
    seeded_at: HashMap<u16, Time>,
    /// For how long an old primary may give locks when this server has taken its place.
    pub(super) zombie: Duration,
    /// What runs besides, for as long as this is used.
    pub(super) tasks: JoinSet<()>,
    /// For what those tasks find out.
    pub(super) pusher: mpsc::UnboundedSender<Push>,
    pub(super) connection: ConnectionDriver,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").finish_non_exhaustive()
    }
}

/// Makes one connection, on which messages and invalidations come between the replies.
async fn connect_resp3(server: &Endpoint, settings: &Settings) -> Result<Link, RedisError> {
    let observed = Observed::now();
    let (sender, receiver) = mpsc::unbounded_channel();
    let forward = pushes::forward(sender.clone(), observed.clone());
    let config = config().set_push_sender(forward);
    let (commands, mut driver) = server.open(ProtocolVersion::RESP3, config).await?;
    let prepared = prepare(commands.clone(), settings, true);
    let prepared = driver.run_until(prepared).await;
    let no_tracking = prepared.unwrap_or_else(|| Err(closed()))?;
    let mut link = Link::new(commands, sender, receiver, driver, observed);
    link.dates_grants = true;
    Arc::make_mut(&mut link.server).watches = no_tracking.is_none();
    link.no_tracking = no_tracking;
    Ok(link)
}

/// Makes two connections: in RESP2, one that is subscribed to the inbox can do nothing else.
async fn connect_resp2(server: &Endpoint, settings: &Settings) -> Result<Link, RedisError> {
    let mut inbox = server.open_inbox().await?;
    inbox.subscribe(&settings.names.inbox).await?;
    let (sender, receiver) = mpsc::unbounded_channel();
    let listening = pushes::listen(inbox, sender.clone(), settings.command_timeout);
    let (commands, mut driver) = server.open(ProtocolVersion::RESP2, config()).await?;
    driver
        .run_until(prepare(commands.clone(), settings, false))
        .await
        .unwrap_or_else(|| Err(closed()))?;
    let mut link = Link::new(commands, sender, receiver, driver, Observed::now());
    link.tasks.spawn(listening);
    Ok(link)
}

impl Link {
    /// Connects to this server. It is not [ready](Self::make_ready) yet.
    pub(super) async fn open(server: &Endpoint, settings: &Settings) -> Result<Self, RedisError> {
        match connect_resp3(server, settings).await {
            Err(error) if refuses_resp3(&error) => connect_resp2(server, settings).await,
            result => result,
        }
    }

    fn new(
        commands: MultiplexedConnection,
        pusher: mpsc::UnboundedSender<Push>,
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
            no_tracking: None,
            unready: Some(Error::of(ErrorKind::Unavailable)),
            quarantined_until: None,
            seeded_at: HashMap::new(),
            zombie: Duration::ZERO,
            tasks: JoinSet::new(),
            pusher,
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
        let ready = make_ready(self.commands.clone(), settings, self.zombie);
        let ready = tokio::time::timeout(settings.command_timeout, ready);
        self.unready = match self.connection.run_until(ready).await {
            // The driver closes the connection.
            _ if self.observed.is_out_of_step() => Some(Error::of(ErrorKind::Unavailable)),
            Some(Ok(Ok(ready))) => {
                let server = Arc::make_mut(&mut self.server);
                server.seed = ready.seed;
                server.takes_with_get = ready.takes_with_get;
                server.epoch = ready.epoch;
                self.quarantined_until = ready.quarantined_until;
                if let Fences::One(_) = settings.names.fences {
                    self.seeded_at.insert(0, Time::now());
                }
                None
            }
            Some(Ok(Err(error))) => Some(refused(error)),
            Some(Err(_)) | None => Some(Error::of(ErrorKind::Unavailable)),
        };
    }

    /// Returns a call of these commands, and what goes ahead of them: seeds for the counters of
    /// which takes draw fences, and the epoch, if its name has changed.
    pub(super) fn call(
        &mut self,
        sent_at: Time,
        commands: Vec<Pending>,
        names: &Names,
    ) -> (InFlightCall, Ahead) {
        let moves_epoch = self.moves_epoch(names);
        let server = self.server.clone();
        let call = InFlightCall {
            sent_at,
            server,
            commands,
        };
        let seeds = self.seeds(sent_at, call.seeds(names));
        let mut behind = SmallVec::<[u16; 4]>::new();
        for slot in call.drawn_by_scripts(names) {
            // Whether a script draws a fence shows later, so the counter stays due.
            if self.is_behind(sent_at, slot) && !behind.contains(&slot) {
                behind.push(slot);
            }
        }
        let ahead = Ahead {
            seeds,
            behind,
            moves_epoch,
        };
        (call, ahead)
    }

    /// Returns those that are to be carried out now.
    fn seeds(&mut self, now: Time, wanted: impl Iterator<Item = Seed>) -> SmallVec<[Seed; 4]> {
        let mut seeds = SmallVec::new();
        for seed in wanted {
            // One that asks goes along each time: the server may have refused those before.
            let is_due = match seed.is_asking {
                true => !seeds.contains(&seed),
                false => self.is_due(now, seed.slot),
            };
            if is_due {
                seeds.push(seed);
            }
        }
        seeds
    }

    fn is_due(&mut self, now: Time, slot: u16) -> bool {
        let is_due = self.is_behind(now, slot);
        if is_due {
            self.seeded_at.insert(slot, now);
        }
        is_due
    }

    /// Returns whether the counter of a slot may be too far behind the clock.
    fn is_behind(&self, now: Time, slot: u16) -> bool {
        let seeded_at = self.seeded_at.get(&slot);
        seeded_at.is_none_or(|at| now.since(*at) >= SEED_EVERY)
    }

    /// Returns whether no lock may be given at this time, as the server may lack some that are
    /// held.
    pub(super) fn is_quarantined(&self) -> bool {
        self.quarantined_until
            .is_some_and(|until| Time::now() < until)
    }

    /// Returns whether the epoch has to be written under another name, as this server's
    /// [`Home`](super::names::Home) has moved. As long as a connection lives, its server has the
    /// data of that epoch.
    fn moves_epoch(&mut self, names: &Names) -> bool {
        let (Some(epoch), Some(home)) = (&self.server.epoch, names.home()) else {
            return false;
        };
        let home = home.slot();
        let has_moved = epoch.home != home;
        if has_moved {
            let (name, value) = (names.epoch(), epoch.value.clone());
            Arc::make_mut(&mut self.server).epoch = Some(Epoch { home, name, value });
        }
        has_moved
    }

    /// Returns why no lock may be given at this time.
    pub(super) fn refuses(&mut self) -> Option<Error> {
        let is_quarantined = self.is_quarantined();
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
    epoch: Option<Epoch>,
    quarantined_until: Option<Time>,
}

async fn make_ready(
    mut commands: MultiplexedConnection,
    settings: &Settings,
    zombie: Duration,
) -> Result<Ready, RedisError> {
    let (mut epoch, mut quarantined_until) = (None, None);
    if settings.quarantine {
        let home = settings.names.home().map_or(0, Home::slot);
        let name = settings.names.epoch();
        let (value, remaining): (Vec<u8>, i64) = redis::cmd("EVAL")
            .arg(scripts::QUARANTINE.source)
            .arg(1)
            .arg(&name)
            .arg((settings.ttl + zombie).as_millis() as u64)
            .query_async(&mut commands)
            .await?;
        epoch = Some(Epoch { home, name, value });
        let remaining = u64::try_from(remaining).unwrap_or(0);
        quarantined_until = Some(Time::now() + Duration::from_millis(remaining));
    }
    let (seed, takes_with_get) = match &settings.names.fences {
        Fences::One(fence) => seed(&mut commands, fence).await?,
        // Each counter is seeded when it is first used. Every server of a cluster is of this day.
        Fences::BySlot { .. } => (clock(&mut commands).await?, true),
    };
    Ok(Ready {
        seed,
        takes_with_get,
        epoch,
        quarantined_until,
    })
}

/// Returns the server's clock, in µs, to which every counter of fences is raised from now on.
async fn clock(commands: &mut MultiplexedConnection) -> Result<u64, RedisError> {
    let (seconds, micros): (u64, u64) = redis::cmd("TIME").query_async(commands).await?;
    Ok(seconds * 1_000_000 + micros)
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

pub(super) fn closed() -> RedisError {
    std::io::Error::from(std::io::ErrorKind::ConnectionReset).into()
}

/// Returns whether the server does not know the command `HELLO`, forbids it, or does not know the
/// protocol.
pub(super) fn refuses_resp3(error: &RedisError) -> bool {
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

/// Loads the scripts. With RESP3, also subscribes to the inbox, and turns on the tracking of keys.
/// Returns why the server does not track them, if it refuses.
async fn prepare(
    mut commands: MultiplexedConnection,
    settings: &Settings,
    can_push: bool,
) -> Result<Option<RedisError>, RedisError> {
    if can_push {
        commands.subscribe(&settings.names.inbox).await?;
    }
    let mut pipeline = redis::pipe();
    for script in scripts::LOADED {
        let load = pipeline.cmd("SCRIPT").arg("LOAD");
        load.arg(script.source).ignore();
    }
    pipeline.exec_async(&mut commands).await?;
    // So that the holder of a lock is found in CLIENT LIST. A proxy may refuse it.
    let _: Result<(), RedisError> = redis::cmd("CLIENT")
        .arg("SETNAME")
        .arg(settings.names.client(&settings.instance))
        .query_async(&mut commands)
        .await;
    if !can_push {
        return Ok(None);
    }
    // Without tracking, the next renewal notices that another client has deleted a lock.
    let tracking: Result<(), RedisError> = redis::cmd("CLIENT")
        .arg(&["TRACKING", "ON", "OPTIN", "NOLOOP"])
        .query_async(&mut commands)
        .await;
    Ok(tracking.err())
}

/// A server's part in the replication.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Replication {
    pub(super) is_primary: bool,
    /// Whether it accepts writes only while it has replicas.
    pub(super) needs_replicas: bool,
    /// Whether it may have taken the place of another server since it was started.
    pub(super) may_be_promoted: bool,
    /// The id of its data. No two primaries have the same.
    pub(super) id: String,
}

/// Asks a server for its part in the replication. This is `INFO`, which the quarantine needs as
/// well, and not `ROLE`, which is another right.
pub(super) async fn replication(
    commands: &mut (impl ConnectionLike + Send),
) -> Result<Replication, RedisError> {
    let mut info = redis::cmd("INFO");
    let info: String = info.arg("replication").query_async(commands).await?;
    Ok(read_replication(&info))
}

fn read_replication(info: &str) -> Replication {
    let mut lines = info.lines().map(str::trim_end);
    let id = lines
        .clone()
        .find_map(|line| line.strip_prefix("master_replid:"));
    Replication {
        is_primary: lines.clone().any(|line| line == "role:master"),
        needs_replicas: lines
            .clone()
            .any(|line| line.starts_with("min_slaves_good_slaves:")),
        // A server that is promoted keeps the id of what it followed before.
        may_be_promoted: !lines.any(|line| {
            let id = line.strip_prefix("master_replid2:");
            id.is_some_and(|id| id.bytes().all(|byte| byte == b'0'))
        }),
        id: id.unwrap_or_default().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_tells_its_part_in_the_replication() {
        let zeros = "0".repeat(40);
        let alone = format!("# Replication\r\nrole:master\r\nmaster_replid2:{zeros}\r\n");
        let replication = read_replication(&alone);
        assert!(replication.is_primary && !replication.needs_replicas);
        assert!(!replication.may_be_promoted);
        let promoted =
            "role:master\r\nmaster_replid:7f\r\nmin_slaves_good_slaves:1\r\nmaster_replid2:0a0\r\n";
        let replication = read_replication(promoted);
        assert!(replication.is_primary && replication.needs_replicas);
        assert!(replication.may_be_promoted);
        assert_eq!(replication.id, "7f");
        let replica = read_replication("role:slave\r\n");
        assert!(!replica.is_primary && replica.may_be_promoted);
    }
}
