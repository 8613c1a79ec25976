//! The password of the workers' user is changed, on all servers.

use std::sync::Arc;
use std::time::Duration;

use super::Scene;
use crate::support::random::Random;
use crate::topology::{USER, tell_password};

pub async fn disturb(scene: Arc<Scene>, mut random: Random) {
    while scene.pause(random.millis(500, 3000)).await {
        let is_careful = random.chance(50);
        let name = match is_careful {
            true => "password rotated",
            false => "password changed, callback later",
        };
        let (gap, server) = (
            random.millis(0, 300),
            random.below(scene.servers.len() as u64) as usize,
        );
        scene.fault(name, change(&scene, is_careful, gap)).await;
        // Those that are connected stay logged in. Some have to log in anew.
        let kill = format!("CLIENT KILL USER {USER}");
        let killed = async { drop(scene.command(server, &kill).await) };
        scene.fault("CLIENT KILL USER", killed).await;
    }
}

/// All servers take the first password, and the workers have it.
pub async fn begin(scene: &Scene) {
    for server in 0..scene.servers.len() {
        set(scene, server).await;
    }
    tell_password(&scene.dir, &password(0));
}

/// A server that was started again knows no user but its own.
pub async fn set(scene: &Scene, server: usize) {
    let number = scene.password.lock().await;
    tell(scene, server, &format!("resetpass >{}", password(*number))).await;
}

/// The careful way is that of the guide: no connection is refused.
async fn change(scene: &Scene, is_careful: bool, gap: Duration) {
    let mut number = scene.password.lock().await;
    let (old, new) = (password(*number), password(*number + 1));
    *number += 1;
    let first = match is_careful {
        true => format!(">{new}"),
        false => format!("resetpass >{new}"),
    };
    for server in 0..scene.servers.len() {
        tell(scene, server, &first).await;
    }
    tokio::time::sleep(gap).await;
    tell_password(&scene.dir, &new);
    if is_careful {
        for server in 0..scene.servers.len() {
            tell(scene, server, &format!("<{old}")).await;
        }
    }
}

async fn tell(scene: &Scene, server: usize, passwords: &str) {
    let command = format!("ACL SETUSER {USER} on ~* &* +@all {passwords}");
    scene.command(server, &command).await;
}

fn password(number: u64) -> String {
    format!("secret{number}")
}
