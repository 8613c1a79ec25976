//! The cost of the layer itself, with the locks in memory: `memory`.

use std::time::Instant;

use tower_distributed_lock::LockManager;

use crate::support::figures::{Figures, Goal, Turns};
use crate::support::options::{requests, rounds};
use crate::ways::{Hello, Way, locked, through};

pub async fn measure(figures: &mut Figures) {
    let requests = requests(100_000);
    let locks = LockManager::in_memory();
    let mut times = Turns::default();
    for _ in 0..rounds(9) {
        for way in [None, Some(Way::Layer), Some(Way::WaitingLayer)] {
            let started = Instant::now();
            match way {
                None => {
                    for _ in 0..requests {
                        through(Hello, "/a".to_owned()).await;
                    }
                }
                Some(way) => {
                    let locked = locked(way, &locks);
                    for _ in 0..requests {
                        through(locked.clone(), "/a".to_owned()).await;
                    }
                }
            }
            times.add(way, started.elapsed().as_secs_f64() * 1e6 / requests as f64);
        }
    }
    println!(
        "in memory: a bare service {:.2} µs a request, with the layer {:.2} µs, with .wait() {:.2} µs",
        times.median(None),
        times.median(Some(Way::Layer)),
        times.median(Some(Way::WaitingLayer)),
    );
    for way in Way::LAYERS {
        let added = times.pairs(Some(way), None, |with, without| with - without);
        let name = format!("memory_added_us_{}", way.word());
        figures.add(&name, added, &Goal::AtMost(0.7));
    }
}
