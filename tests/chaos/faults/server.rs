//! Redis, without a loss of data.

use std::sync::Arc;
use std::time::Duration;

use super::Scene;
use crate::support::random::Random;
use crate::worker::TTL;

pub async fn disturb(scene: Arc<Scene>, mut random: Random) {
    let ttl = TTL.as_millis() as u64;
    while scene.pause(random.millis(100, 1200)).await {
        match random.below(9) {
            0..2 => {
                scene
                    .fault("Redis stopped < TTL", stop(&scene, random.millis(5, ttl)))
                    .await;
            }
            2 => {
                scene
                    .fault(
                        "Redis stopped > TTL",
                        stop(&scene, random.millis(ttl, 2 * ttl)),
                    )
                    .await;
            }
            3..5 => {
                scene
                    .fault("SCRIPT FLUSH", told(&scene, "SCRIPT FLUSH", 0))
                    .await;
            }
            5 => {
                scene
                    .fault(
                        "CLIENT KILL normal",
                        told(&scene, "CLIENT KILL TYPE normal", 0),
                    )
                    .await;
            }
            6 => {
                scene
                    .fault(
                        "CLIENT KILL pubsub",
                        told(&scene, "CLIENT KILL TYPE pubsub", 0),
                    )
                    .await;
            }
            _ => {
                let ms = random.below(ttl);
                let mode = if random.chance(50) { "WRITE" } else { "ALL" };
                let pause = format!("CLIENT PAUSE {ms} {mode}");
                scene.fault("CLIENT PAUSE", told(&scene, &pause, ms)).await;
            }
        }
    }
}

async fn stop(scene: &Scene, time: Duration) {
    let server = scene.servers[0].lock().await;
    server.signal("-STOP");
    tokio::time::sleep(time).await;
    server.signal("-CONT");
}

async fn told(scene: &Scene, command: &str, lasts_ms: u64) {
    scene.command(0, command).await;
    tokio::time::sleep(Duration::from_millis(lasts_ms)).await;
}
