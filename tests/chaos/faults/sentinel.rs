//! A primary with replicas, and sentinels: planned failovers, and sentinels that stand still; and
//! primaries that die or stand still.

use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::from_redis_value;

use super::{Scene, asked, line};
use crate::support::random::Random;
use crate::support::{PATIENCE, PRIMARY};
use crate::topology::fails_over_often;

/// How long the sentinels may take to put another in its place, on a machine that has other things
/// to do.
const REPLACES: Duration = Duration::from_secs(10);
/// How long the servers may disagree with the sentinels, which are slow to tell them.
const DISAGREES: Duration = Duration::from_secs(3);

pub async fn disturb(scene: Arc<Scene>, may_lose: bool, mut random: Random) {
    while scene.pause(random.millis(100, 700)).await {
        let primary = settled(&scene).await;
        let itself = [primary];
        if !*scene.goes_on.borrow() {
            return;
        }
        let all: Vec<usize> = (0..scene.servers.len()).collect();
        let sentinel = random.below(scene.sentinels.len() as u64) as usize;
        let replaced = || replaced(&scene, primary);
        let more = random.millis(0, 1000);
        match random.below(if may_lose { 12 } else { 2 }) {
            0 => {
                let forgets = watch_anew(&scene, sentinel, primary);
                scene.fault("sentinel forgets the others", forgets).await;
            }
            1 => {
                let stopped = async {
                    scene.sentinels[sentinel].signal("-STOP");
                    tokio::time::sleep(random.millis(100, 1500)).await;
                    scene.sentinels[sentinel].signal("-CONT");
                };
                scene.fault("sentinel stopped", stopped).await;
            }
            2..5 => {
                let failover = fail_over(&scene, sentinel, primary, more);
                scene.fault("planned failover", failover).await;
            }
            5..7 => {
                let killed = scene.kill_until(primary, replaced(), more);
                scene.fault("primary killed", killed).await;
            }
            7 => {
                let killed = scene.restart(&itself, random.millis(0, 200));
                scene.fault("primary killed, back at once", killed).await;
            }
            8..10 => {
                let stopped = scene.stop_until(primary, replaced(), more);
                scene.fault("primary stopped, replaced", stopped).await;
                // It takes itself for the primary still.
                let zombie = tokio::time::sleep(random.millis(0, 1500));
                scene.fault("old primary is back", zombie).await;
            }
            10 => {
                let stopped = scene.stop(&all, random.millis(500, 2500));
                scene.fault("all stopped", stopped).await;
            }
            _ => {
                let killed = async {
                    scene.restart(&all, random.millis(0, 1500)).await;
                    attach(&scene, primary).await;
                };
                scene.fault("all killed", killed).await;
            }
        }
        let settling = async {
            if let Some(primary) = named(&scene).await {
                attach(&scene, primary).await;
            }
            settled(&scene).await;
        };
        scene.fault("until all is well", settling).await;
    }
}

/// Waits until all sentinels name the same primary, and the others are its replicas.
pub(super) async fn settled(scene: &Scene) -> usize {
    let started = Instant::now();
    let (mut disagree_since, mut unnamed_since) = (Instant::now(), Instant::now());
    loop {
        let named = named(scene).await;
        if let Some(primary) = named {
            let info = scene.command(primary, "INFO replication").await;
            let is_well = line(&info, "role:") == "master"
                && info.matches("state=online").count() == scene.servers.len() - 1;
            if is_well {
                return primary;
            }
        }
        if named.is_some() {
            unnamed_since = Instant::now();
        } else if unnamed_since.elapsed() > REPLACES {
            let primary = agree(scene).await;
            attach(scene, primary).await;
            unnamed_since = Instant::now();
        }
        // A failover may be under way until then.
        if let Some(primary) = named
            && disagree_since.elapsed() > DISAGREES
        {
            attach(scene, primary).await;
            disagree_since = Instant::now();
        }
        if started.elapsed() > 2 * PATIENCE {
            scene.tell_all("ROLE").await;
            for sentinel in &scene.sentinels {
                let said = asked(&sentinel.url(), &format!("SENTINEL MASTER {PRIMARY}")).await;
                println!("sentinel {}: {said:?}", sentinel.port);
            }
            panic!("the servers do not follow one primary");
        }
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
}

/// The primary, if all sentinels name the same.
async fn named(scene: &Scene) -> Option<usize> {
    let named = named_by_each(scene).await;
    let first = named[0]?;
    named.iter().all(|one| *one == Some(first)).then_some(first)
}

/// The primary that each sentinel names.
async fn named_by_each(scene: &Scene) -> Vec<Option<usize>> {
    let asking = format!("SENTINEL GET-MASTER-ADDR-BY-NAME {PRIMARY}");
    let mut named = Vec::new();
    for sentinel in &scene.sentinels {
        let address = asked(&sentinel.url(), &asking).await;
        let port = match address.map(from_redis_value::<(String, u16)>) {
            Ok(Ok((_, port))) => Some(port),
            _ => None,
        };
        named.push(scene.ports.iter().position(|known| port == Some(*known)));
    }
    named
}

/// A failover that was asked for, and one that sentinels have begun by themselves, may have the
/// same number. Each sentinel then holds on to its own, and has the servers follow each other. Does
/// what an operator does: has all watch the server that most of them name. Returns that.
async fn agree(scene: &Scene) -> usize {
    let named = named_by_each(scene).await;
    let votes = |server: &usize| named.iter().filter(|one| **one == Some(*server)).count();
    let primary = (0..scene.servers.len()).max_by_key(votes).unwrap();
    for (sentinel, named) in named.into_iter().enumerate() {
        if named != Some(primary) {
            watch_anew(scene, sentinel, primary).await;
        }
    }
    primary
}

/// A sentinel forgets what it knows, and watches this server.
async fn watch_anew(scene: &Scene, sentinel: usize, primary: usize) {
    let sentinel = &scene.sentinels[sentinel];
    sentinel.watch(scene.ports[primary]).await;
    fails_over_often(sentinel).await;
}

/// Does what the sentinels do ten seconds later: has the others follow this one.
async fn attach(scene: &Scene, primary: usize) {
    let port = scene.ports[primary].to_string();
    for server in 0..scene.servers.len() {
        let info = scene.command(server, "INFO replication").await;
        let follows = line(&info, "master_port:");
        if server == primary {
            if !follows.is_empty() {
                scene.command(server, "REPLICAOF NO ONE").await;
            }
        } else if follows != port {
            let follow = format!("REPLICAOF 127.0.0.1 {port}");
            scene.command(server, &follow).await;
        }
    }
}

/// Waits until all sentinels name another primary.
async fn replaced(scene: &Scene, before: usize) {
    let started = Instant::now();
    while started.elapsed() < REPLACES && named(scene).await.is_none_or(|named| named == before) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// As an operator does it. The old primary goes on for a while.
async fn fail_over(scene: &Scene, sentinel: usize, primary: usize, goes_on: Duration) {
    let url = scene.sentinels[sentinel].url();
    let failover = format!("SENTINEL FAILOVER {PRIMARY}");
    let started = Instant::now();
    // Another may be under way.
    while asked(&url, &failover).await.is_err() && started.elapsed() < REPLACES {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    replaced(scene, primary).await;
    tokio::time::sleep(goes_on).await;
}
