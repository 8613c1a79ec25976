//! Several keys at once that no other request wants, against one: `several`.

use std::time::{Duration, Instant};

use tower_distributed_lock::LockManager;

use crate::support::figures::{Figures, Goal, Turns, median};
use crate::support::options;
use crate::test_support::RedisServer;

const WAIT: Duration = Duration::from_secs(60);
const ROUNDS: usize = 11;
/// Acquisitions in a round.
const TIMES: usize = 2000;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    One,
    /// By one call.
    Two,
    Eight,
    /// One call after the other, as two layers would.
    TwoCalls,
}

const WAYS: [(Way, &str); 4] = [
    (Way::One, "one key"),
    (Way::Two, "two keys"),
    (Way::Eight, "eight keys"),
    (Way::TwoCalls, "two keys, two calls"),
];

pub async fn measure(server: &RedisServer, figures: &mut Figures) {
    let locks = LockManager::connect(&server.url()).await.unwrap();
    let mut latencies = Turns::default();
    for _ in 0..options::rounds(ROUNDS) {
        for (way, _) in WAYS {
            latencies.add(way, latency(&locks, way).await);
        }
    }
    println!("\nkeys that no other request wants: latency of a call, µs");
    for (way, name) in WAYS {
        println!("  {name:24}  {:8.1}", latencies.median(way));
    }
    let ratio = |way| latencies.ratio(way, Way::One);
    let goal = Goal::AtMost(1.3);
    figures.add("two_keys_vs_one_key", ratio(Way::Two), &goal);
    figures.note("eight_keys_vs_one_key", ratio(Way::Eight));
    figures.note("two_calls_vs_one_key", ratio(Way::TwoCalls));
    locks.close().await;
}

/// Returns the median time, in µs, until the locks are held. They are released before the next
/// measurement begins.
async fn latency(locks: &LockManager, way: Way) -> f64 {
    let mut times = Vec::new();
    for _ in 0..options::requests(TIMES) {
        let began = Instant::now();
        match way {
            Way::One => {
                let guard = locks.acquire("several:0", WAIT).await.unwrap();
                times.push(began.elapsed());
                guard.release().await.unwrap();
            }
            Way::Two | Way::Eight => {
                let count = if way == Way::Two { 2 } else { 8 };
                let keys = (0..count).map(|number| format!("several:{number}"));
                let guards = locks.acquire_all(keys, WAIT).await.unwrap();
                times.push(began.elapsed());
                guards.release().await.unwrap();
            }
            Way::TwoCalls => {
                let first = locks.acquire("several:0", WAIT).await.unwrap();
                let second = locks.acquire("several:1", WAIT).await.unwrap();
                times.push(began.elapsed());
                first.release().await.unwrap();
                second.release().await.unwrap();
            }
        }
    }
    let mut times: Vec<f64> = times.iter().map(|time| time.as_secs_f64() * 1e6).collect();
    median(&mut times)
}
