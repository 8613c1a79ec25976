//! The workers: stopped for a while, killed.

use std::sync::Arc;

use super::Scene;
use crate::support::random::Random;
use crate::worker::TTL;

pub async fn disturb(scene: Arc<Scene>, mut random: Random) {
    let ttl = TTL.as_millis() as u64;
    while scene.pause(random.millis(50, 900)).await {
        let place = random.below(scene.crew.places.len() as u64) as usize;
        match random.below(5) {
            0 => {
                scene
                    .fault("worker killed", scene.crew.replace(place))
                    .await;
            }
            1 => {
                scene
                    .fault(
                        "worker stopped briefly",
                        scene.crew.stop(place, random.millis(5, ttl)),
                    )
                    .await;
            }
            _ => {
                scene
                    .fault(
                        "worker stopped > TTL",
                        scene.crew.stop(place, random.millis(ttl, 2 * ttl)),
                    )
                    .await;
            }
        }
    }
}
