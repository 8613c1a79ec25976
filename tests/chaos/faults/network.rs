//! The network between one worker and Redis, or all workers and one of several servers.

use std::sync::Arc;

use super::Scene;
use crate::proxy::{Cut, Way, Weather};
use crate::support::random::Random;

pub async fn disturb(scene: Arc<Scene>, place: usize, mut random: Random) {
    let proxy = Arc::clone(&scene.crew.places[place].proxies[0]);
    while scene.pause(random.millis(50, 1500)).await {
        let late = Way::Late(random.millis(5, 300));
        let (name, weather, cut, longest) = match random.below(12) {
            0 => ("latency", both(late), None, 1000),
            1 => ("latency one way", one(late, &mut random), None, 1000),
            2 => (
                "black hole up",
                Weather {
                    up: Way::Hold,
                    ..Weather::FINE
                },
                None,
                1000,
            ),
            3 => (
                "black hole down",
                Weather {
                    down: Way::Hold,
                    ..Weather::FINE
                },
                None,
                1000,
            ),
            4 => ("black hole", both(Way::Hold), None, 1000),
            5 => ("slow drip", both(Way::Drip), None, 600),
            6 => ("tiny packets", both(Way::Split), None, 600),
            7 => ("reset", Weather::FINE, Some(Cut::Reset), 1),
            8 => (
                "half-open, Redis not told",
                Weather::FINE,
                Some(Cut::TellOnlyClient),
                900,
            ),
            9 => (
                "half-open, worker not told",
                Weather::FINE,
                Some(Cut::TellOnlyServer),
                900,
            ),
            10 => (
                "refused",
                Weather {
                    refuses: true,
                    ..Weather::FINE
                },
                Some(Cut::Close),
                800,
            ),
            // What is in it never arrives.
            _ => (
                "black hole, then reset",
                one(Way::Hold, &mut random),
                None,
                800,
            ),
        };
        scene
            .fault(name, async {
                if let Some(cut) = cut {
                    proxy.cut(cut);
                }
                proxy.weather.send_replace(weather);
                tokio::time::sleep(random.millis(0, longest)).await;
                if name == "black hole, then reset" {
                    proxy.cut(Cut::Reset);
                    tokio::time::sleep(random.millis(1, 5)).await;
                }
                proxy.weather.send_replace(Weather::FINE);
            })
            .await;
    }
}

pub async fn outages(scene: Arc<Scene>, place: usize, mut random: Random) {
    let proxy = Arc::clone(&scene.crew.places[place].proxies[0]);
    while scene.pause(random.millis(200, 900)).await {
        let weather = one(Way::Hold, &mut random);
        scene
            .fault("outage one way", async {
                proxy.weather.send_replace(weather);
                tokio::time::sleep(random.millis(400, 800)).await;
                proxy.weather.send_replace(Weather::FINE);
            })
            .await;
    }
}

/// All along: it is no fault.
pub async fn narrow(scene: Arc<Scene>) {
    for place in &scene.crew.places {
        let weather = Weather {
            up: Way::Narrow,
            ..Weather::FINE
        };
        place.proxies[0].weather.send_replace(weather);
    }
}

/// One server cannot be reached, by none of the workers or by some; or its address leads to another
/// one.
pub async fn partition(scene: Arc<Scene>, mut random: Random) {
    while scene.pause(random.millis(300, 2500)).await {
        let server = random.below(scene.servers.len() as u64) as usize;
        if random.chance(25) {
            let name = "an address leads to another server";
            let misled = mislead(&scene, server, &mut random);
            scene.fault(name, misled).await;
            continue;
        }
        let percent = random.pick(&[50, 100]);
        let weather = match random.below(3) {
            0 => both(Way::Hold),
            1 => one(Way::Hold, &mut random),
            _ => Weather {
                refuses: true,
                ..Weather::FINE
            },
        };
        let places = scene.crew.places.iter();
        let proxies = places.filter_map(|place| {
            let is_cut_off = random.chance(percent);
            is_cut_off.then(|| &place.proxies[server])
        });
        let proxies: Vec<_> = proxies.collect();
        let lasts = random.millis(50, 1500);
        scene
            .fault("a server cut off", async {
                for proxy in &proxies {
                    if weather.refuses {
                        proxy.cut(Cut::Close);
                    }
                    proxy.weather.send_replace(weather);
                }
                tokio::time::sleep(lasts).await;
                for proxy in &proxies {
                    proxy.weather.send_replace(Weather::FINE);
                }
            })
            .await;
    }
}

/// For some workers, the address of a server leads to another one. In a cluster, that may say
/// `MOVED` to where it is asked.
async fn mislead(scene: &Scene, server: usize, random: &mut Random) {
    let count = scene.servers.len();
    let other = (server + 1 + random.below(count as u64 - 1) as usize) % count;
    let places = scene.crew.places.iter();
    let misled: Vec<_> = places
        .filter(|_| random.chance(50))
        .map(|place| &place.proxies[server])
        .collect();
    let lead_to = |target: usize| {
        for proxy in &misled {
            proxy.target.send_replace(scene.ports[target]);
            proxy.cut(Cut::Close);
        }
    };
    lead_to(other);
    tokio::time::sleep(random.millis(50, 1500)).await;
    lead_to(server);
}

fn both(way: Way) -> Weather {
    Weather {
        up: way,
        down: way,
        ..Weather::FINE
    }
}

fn one(way: Way, random: &mut Random) -> Weather {
    match random.chance(50) {
        true => Weather {
            up: way,
            ..Weather::FINE
        },
        false => Weather {
            down: way,
            ..Weather::FINE
        },
    }
}
