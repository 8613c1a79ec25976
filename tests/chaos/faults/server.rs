//! One server of Redis, without a loss of data, as long as no other takes its place.

use std::sync::Arc;
use std::time::Duration;

use super::Scene;
use crate::support::random::Random;
use crate::worker::TTL;

pub async fn disturb(scene: Arc<Scene>, mut random: Random) {
    let ttl = TTL.as_millis() as u64;
    while scene.pause(random.millis(100, 1200)).await {
        let server = random.below(scene.servers.len() as u64) as usize;
        match random.below(9) {
            0..2 => {
                let _no_move = scene.moves.lock().await;
                scene
                    .fault(
                        "Redis stopped < TTL",
                        scene.stop(&[server], random.millis(5, ttl)),
                    )
                    .await;
            }
            2 => {
                let _no_move = scene.moves.lock().await;
                scene
                    .fault(
                        "Redis stopped > TTL",
                        scene.stop(&[server], random.millis(ttl, 2 * ttl)),
                    )
                    .await;
            }
            3..5 => {
                scene
                    .fault("SCRIPT FLUSH", told(&scene, server, "SCRIPT FLUSH", 0))
                    .await;
            }
            5 => {
                scene
                    .fault(
                        "CLIENT KILL normal",
                        told(&scene, server, "CLIENT KILL TYPE normal", 0),
                    )
                    .await;
            }
            6 => {
                scene
                    .fault(
                        "CLIENT KILL pubsub",
                        told(&scene, server, "CLIENT KILL TYPE pubsub", 0),
                    )
                    .await;
            }
            _ => {
                let ms = random.below(ttl);
                let mode = if random.chance(50) { "WRITE" } else { "ALL" };
                let pause = format!("CLIENT PAUSE {ms} {mode}");
                scene
                    .fault("CLIENT PAUSE", told(&scene, server, &pause, ms))
                    .await;
            }
        }
    }
}

async fn told(scene: &Scene, server: usize, command: &str, lasts_ms: u64) {
    scene.command(server, command).await;
    tokio::time::sleep(Duration::from_millis(lasts_ms)).await;
}
