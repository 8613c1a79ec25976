//! Redis loses data: it starts again without, is emptied, or gives way to a replica that has missed
//! the last writes.

use std::sync::Arc;
use std::time::Duration;

use super::Scene;
use crate::crew::Place;
use crate::proxy::Cut;
use crate::support::random::Random;

/// A pair: the replica can be promoted at once.
pub const PAIR: &[&str] = &[
    "--repl-diskless-sync",
    "yes",
    "--repl-diskless-sync-delay",
    "0",
];

/// A port on which nobody listens.
const NOBODY: u16 = 1;

pub async fn disturb(scene: Arc<Scene>, mut random: Random) {
    let mut primary = 0;
    while scene.pause(random.millis(100, 900)).await {
        match random.below(4) {
            0 => scene.fault("FLUSHALL", flush(&scene, primary)).await,
            1 => {
                scene
                    .fault(
                        "Redis killed, empty",
                        restart(&scene, primary, random.millis(0, 200)),
                    )
                    .await;
            }
            _ => {
                scene
                    .fault("replica promoted", promote(&scene, primary, &mut random))
                    .await;
                primary = 1 - primary;
            }
        }
    }
}

pub async fn pair(scene: &Scene, primary: usize) {
    let port = scene.servers[primary].lock().await.port;
    scene
        .command(1 - primary, &format!("REPLICAOF 127.0.0.1 {port}"))
        .await;
}

async fn flush(scene: &Scene, primary: usize) {
    scene.command(primary, "FLUSHALL").await;
}

async fn restart(scene: &Scene, primary: usize, after: Duration) {
    let mut server = scene.servers[primary].lock().await;
    server.kill();
    tokio::time::sleep(after).await;
    server.restart().await;
}

async fn promote(scene: &Scene, primary: usize, random: &mut Random) {
    let replica = 1 - primary;
    for _ in 0..200 {
        let info = scene.command(replica, "INFO replication").await;
        if info.contains("master_link_status:up") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // From here on, it misses what is written.
    scene.command(replica, "REPLICAOF NO ONE").await;
    tokio::time::sleep(random.millis(0, 300)).await;
    let port = scene.servers[replica].lock().await.port;
    let turn_to = |place: &Place, port, how| {
        let proxy = &place.proxies[0];
        proxy.target.send_replace(port);
        proxy.cut(how);
    };
    let how = |random: &mut Random| random.pick(&[Cut::Close, Cut::Reset]);
    // The quarantine asks that the old server be gone when the first gets to the new one.
    if scene.quarantine {
        for place in &scene.crew.places {
            turn_to(place, NOBODY, how(random));
        }
    }
    // Not all hear of it at the same moment.
    for place in &scene.crew.places {
        turn_to(place, port, how(random));
        tokio::time::sleep(random.millis(0, 200)).await;
    }
    pair(scene, replica).await;
}
