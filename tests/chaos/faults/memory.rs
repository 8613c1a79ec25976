//! Redis is out of memory for a moment: it refuses what would take more of it.

use std::sync::Arc;
use std::time::Duration;

use super::Scene;
use crate::support::random::Random;

pub async fn disturb(scene: Arc<Scene>, mut random: Random) {
    while scene.pause(random.millis(50, 500)).await {
        scene
            .fault("out of memory", full(&scene, random.millis(10, 250)))
            .await;
    }
}

async fn full(scene: &Scene, time: Duration) {
    scene.command(0, "CONFIG SET maxmemory 1").await;
    tokio::time::sleep(time).await;
    scene.command(0, "CONFIG SET maxmemory 0").await;
}
