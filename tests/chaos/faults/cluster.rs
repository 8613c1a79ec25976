//! A cluster: planned failovers, slots on their way, servers with an old map; and, where data may
//! be lost, primaries that die or stand still.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::{RedisResult, Value, from_redis_value};

use super::{Scene, line};
use crate::requests::KEYS;
use crate::support::PATIENCE;
use crate::support::random::Random;
use crate::worker::TTL;

/// Of a primary.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Shard {
    replicas: Vec<usize>,
    slots: Vec<(u16, u16)>,
}

/// By the primaries' places.
pub(super) type Shards = BTreeMap<usize, Shard>;

/// How long a replica may take to take over, on a machine that has other things to do.
const TAKES_OVER: Duration = Duration::from_secs(8);

/// What Valkey is asked how the moves of slots go, from 9.0 on. Others do not know it.
const MIGRATIONS: &str = "CLUSTER GETSLOTMIGRATIONS";

pub async fn disturb(scene: Arc<Scene>, may_lose: bool, mut random: Random) {
    while scene.pause(random.millis(100, 700)).await {
        let shards = settled(&scene).await;
        if !*scene.goes_on.borrow() {
            return;
        }
        let primaries: Vec<usize> = shards.keys().copied().collect();
        let primary = random.pick(&primaries);
        let itself = [primary];
        let replica = shards[&primary].replicas[0];
        let all: Vec<usize> = (0..scene.servers.len()).collect();
        let replaced = || until(&scene, replica, "role:", "master");
        let more = random.millis(0, 700);
        let is_valkey_9 = scene.ask(primary, MIGRATIONS).await.is_ok();
        match random.below(if may_lose { 14 } else { 5 }) {
            0..2 => {
                let failover = fail_over(&scene, replica);
                scene.fault("planned failover", failover).await;
            }
            number @ 2..5 => {
                let (how, name) = match number {
                    3 if is_valkey_9 => (Move::AtOnce, "slot moved at once"),
                    // Valkey has the replicas agree to a move.
                    4 if !may_lose && !is_valkey_9 => {
                        (Move::Deaf(replica), "slot moved, a server is deaf")
                    }
                    _ => (Move::Paused, "slot moved with a pause"),
                };
                let mut _moves = None;
                if may_lose {
                    _moves = Some(scene.moves.lock().await);
                    // A quarantine is for the locks that a primary has then, wherever they go.
                    tokio::time::sleep(2 * TTL).await;
                }
                let moving = move_slot(&scene, &shards, how, &mut random);
                scene.fault(name, moving).await;
            }
            5..8 => {
                let killed = scene.kill_until(primary, replaced(), more);
                scene.fault("primary killed", killed).await;
            }
            8 => {
                let killed = scene.restart(&itself, random.millis(0, 300));
                scene.fault("primary killed, back at once", killed).await;
            }
            // Only there can messages of all kinds be dropped.
            9..11 if is_valkey_9 => {
                let cut_off = cut_off_bus(&scene, primary, replaced(), more);
                scene
                    .fault("primary cut off from the others", cut_off)
                    .await;
            }
            9..12 => {
                let stopped = scene.stop_until(primary, replaced(), more);
                scene.fault("primary stopped, replaced", stopped).await;
            }
            12 => {
                let stopped = scene.stop(&all, random.millis(500, 2500));
                scene.fault("all stopped", stopped).await;
            }
            _ => {
                let killed = scene.restart(&all, random.millis(0, 1500));
                scene.fault("all killed", killed).await;
            }
        }
        let settling = async { drop(settled(&scene).await) };
        scene.fault("until all is well", settling).await;
    }
}

/// Waits until all servers tell of the same three primaries, each with its replica, and these have
/// the data.
pub(super) async fn settled(scene: &Scene) -> Shards {
    let started = Instant::now();
    loop {
        if let Some(shards) = agreed(scene).await {
            return shards;
        }
        if started.elapsed() > 2 * PATIENCE {
            scene.tell_all("CLUSTER NODES").await;
            panic!("the cluster does not recover");
        }
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
}

async fn agreed(scene: &Scene) -> Option<Shards> {
    let mut known: Option<Shards> = None;
    for server in 0..scene.servers.len() {
        let info = scene.command(server, "CLUSTER INFO").await;
        if line(&info, "cluster_state:") != "ok" {
            return None;
        }
        let shards = read(
            &scene.ask(server, "CLUSTER SLOTS").await.ok()?,
            &scene.ports,
        )?;
        if known.as_ref().is_some_and(|known| *known != shards) {
            return None;
        }
        known = Some(shards);
    }
    let known = known?;
    let is_whole = known.len() == 3 && known.values().all(|shard| shard.replicas.len() == 1);
    if !is_whole {
        return None;
    }
    for primary in known.keys() {
        let info = scene.command(*primary, "INFO replication").await;
        if line(&info, "role:") != "master" || !info.contains("state=online") {
            return None;
        }
    }
    Some(known)
}

/// Reads the reply to CLUSTER SLOTS.
fn read(reply: &Value, ports: &[u16]) -> Option<Shards> {
    let mut shards = Shards::new();
    let ranges: Vec<Vec<Value>> = from_redis_value(reply.clone()).ok()?;
    for range in ranges {
        let mut fields = range.into_iter();
        let first: u16 = from_redis_value(fields.next()?).ok()?;
        let last: u16 = from_redis_value(fields.next()?).ok()?;
        let servers = fields.map(|server| {
            let server: Vec<Value> = from_redis_value(server).ok()?;
            let port: u16 = from_redis_value(server.get(1)?.clone()).ok()?;
            ports.iter().position(|known| *known == port)
        });
        let mut servers = servers.collect::<Option<Vec<_>>>()?.into_iter();
        let primary = servers.next()?;
        let mut replicas: Vec<_> = servers.collect();
        replicas.sort_unstable();
        let shard = shards.entry(primary).or_insert(Shard {
            replicas,
            slots: Vec::new(),
        });
        shard.slots.push((first, last));
    }
    Some(shards)
}

/// Waits until a line of a server's INFO says that, or for so long.
async fn until(scene: &Scene, server: usize, name: &str, value: &str) {
    let started = Instant::now();
    loop {
        let info = scene.command(server, "INFO replication").await;
        if line(&info, name) == value || started.elapsed() > TAKES_OVER {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn fail_over(scene: &Scene, replica: usize) {
    scene.command(replica, "CLUSTER FAILOVER").await;
    until(scene, replica, "role:", "master").await;
}

/// A primary hears nothing of the other servers, nor they of it, until its replica has taken its
/// place and for some time more. Clients can reach it all the while.
async fn cut_off_bus(
    scene: &Scene,
    primary: usize,
    replaced: impl Future<Output = ()>,
    more: Duration,
) {
    insist(scene, primary, "DEBUG DROP-CLUSTER-PACKET-FILTER -2").await;
    replaced.await;
    tokio::time::sleep(more).await;
    insist(scene, primary, "DEBUG DROP-CLUSTER-PACKET-FILTER -1").await;
}

/// How a slot moves.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Move {
    Paused,
    /// That server does not hear of the move, and tells of the old map.
    Deaf(usize),
    /// With all its keys, as Valkey can from 9.0 on.
    AtOnce,
}

/// Moves a slot with its keys: with pauses as `redis-cli --cluster reshard` does, or at once.
async fn move_slot(scene: &Scene, shards: &Shards, how: Move, random: &mut Random) {
    let _deaf = match how {
        Move::Deaf(server) => Some(Deaf::new(scene.servers[server].lock().await)),
        Move::Paused | Move::AtOnce => None,
    };
    let asked = shards.keys().next().unwrap();
    let name = format!("CLUSTER KEYSLOT lock:{}", random.pick(&KEYS[..4]));
    let slot: u16 = match scene.ask(*asked, &name).await.map(from_redis_value) {
        Ok(Ok(slot)) => slot,
        _ => return,
    };
    let has = |shard: &Shard| {
        let mut slots = shard.slots.iter();
        slots.any(|(first, last)| (*first..=*last).contains(&slot))
    };
    let owner = shards.iter().find(|(_, shard)| has(shard));
    let source = *owner.unwrap().0;
    let others: Vec<usize> = shards
        .keys()
        .copied()
        .filter(|one| *one != source)
        .collect();
    let target = random.pick(&others);
    let source_id = scene.command(source, "CLUSTER MYID").await;
    let target_id = scene.command(target, "CLUSTER MYID").await;
    if how == Move::AtOnce {
        return move_at_once(scene, slot, source, &target_id).await;
    }
    let port = scene.ports[target];
    let import = format!("CLUSTER SETSLOT {slot} IMPORTING {source_id}");
    let migrate = format!("CLUSTER SETSLOT {slot} MIGRATING {target_id}");
    insist(scene, target, &import).await;
    insist(scene, source, &migrate).await;
    tokio::time::sleep(random.millis(0, 500)).await;
    let started = Instant::now();
    for count in [1, 1, 100].into_iter().chain(std::iter::repeat(100)) {
        let keys = format!("CLUSTER GETKEYSINSLOT {slot} {count}");
        let keys = scene.ask(source, &keys).await;
        let keys: Option<Vec<String>> = keys.ok().and_then(|keys| from_redis_value(keys).ok());
        match keys {
            Some(keys) if keys.is_empty() => break,
            Some(keys) => {
                let keys = keys.join(" ");
                let migrate = format!("MIGRATE 127.0.0.1 {port}  0 2000 REPLACE KEYS {keys}");
                scene.command(source, &migrate).await;
            }
            None => {}
        }
        assert!(started.elapsed() < PATIENCE, "slot {slot} does not move");
        // Half-way.
        tokio::time::sleep(random.millis(0, 200)).await;
    }
    tokio::time::sleep(random.millis(0, 300)).await;
    let arrived = format!("CLUSTER SETSLOT {slot} NODE {target_id}");
    insist(scene, target, &arrived).await;
    tokio::time::sleep(random.millis(0, 300)).await;
    insist(scene, source, &arrived).await;
}

async fn move_at_once(scene: &Scene, slot: u16, source: usize, target_id: &str) {
    let range = format!("SLOTSRANGE {slot} {slot} NODE {target_id}");
    insist(scene, source, &format!("CLUSTER MIGRATESLOTS {range}")).await;
    let started = Instant::now();
    while !has_ended(scene.ask(source, MIGRATIONS).await) {
        assert!(started.elapsed() < PATIENCE, "slot {slot} does not move");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Whether no move of slots goes on, by the reply to [`MIGRATIONS`].
fn has_ended(reply: RedisResult<Value>) -> bool {
    let Ok(Ok(moves)) = reply.map(from_redis_value::<Vec<BTreeMap<String, Value>>>) else {
        return false;
    };
    moves.iter().all(|one| {
        let state = one.get("state").cloned().map(from_redis_value::<String>);
        matches!(state, Some(Ok(state)) if ["success", "failed", "cancelled"].contains(&&*state))
    })
}

/// Says it until the server does it: half a move is none.
async fn insist(scene: &Scene, server: usize, command: &str) {
    let started = Instant::now();
    while let Err(error) = scene.ask(server, command).await {
        assert!(started.elapsed() < PATIENCE, "in vain: {command}: {error}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A server that is stopped as long as this lives.
struct Deaf<'a>(tokio::sync::MutexGuard<'a, crate::support::RedisServer>);

impl<'a> Deaf<'a> {
    fn new(server: tokio::sync::MutexGuard<'a, crate::support::RedisServer>) -> Self {
        server.signal("-STOP");
        Self(server)
    }
}

impl Drop for Deaf<'_> {
    fn drop(&mut self) {
        self.0.signal("-CONT");
    }
}
