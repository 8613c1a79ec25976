//! The time that Redis itself takes, by its own account: `redis`.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use tower_distributed_lock::{LockGuard, LockManager};

use crate::support::command_stats::CommandStats;
use crate::support::figures::{Figures, Goal, Spread, Turns};
use crate::support::options::{requests, rounds};
use crate::test_support::{RedisServer, eventually, queue_length};
use crate::ways::{Client, Way, compare};

/// Commands that reach Redis only by the scripts for a free lock.
const OF_SCRIPTS: [&str; 3] = ["get", "getrange", "del"];

/// Returns whether clients send a command, and scripts do not call it.
fn is_sent(name: &str) -> bool {
    !OF_SCRIPTS.contains(&name)
}

/// Measures a free lock that is taken and released, one at a time.
pub async fn locks(server: &RedisServer, figures: &mut Figures) {
    let redis = server.client().await;
    let requests = requests(4000);
    let (mut all, mut once) = (Turns::default(), Turns::default());
    let mut last = Vec::new();
    for _ in 0..rounds(9) {
        last.clear();
        for way in Way::ALL {
            let stats = stats_of(way, server, &redis, requests).await;
            all.add(way, stats.micros(|_| true) / requests as f64);
            once.add(way, stats.micros(is_sent) / requests as f64);
            last.push((way, stats.describe(requests)));
        }
    }
    println!("inside Redis, a free lock, one at a time (what scripts call counts twice)");
    for (way, commands) in last {
        let micros = all.median(way);
        println!("  {:13} {micros:5.2} µs a lock: {commands}", way.word());
    }
    compare(figures, "inside_redis", &all, &Goal::AtMost(1.1));
    for way in Way::LAYERS {
        let name = format!("inside_redis_scripts_once_{}_vs_awaited", way.word());
        figures.note(&name, once.ratio(way, Way::Awaited));
    }
}

async fn stats_of(
    way: Way,
    server: &RedisServer,
    redis: &MultiplexedConnection,
    requests: usize,
) -> CommandStats {
    let client = Client::connect(way, &server.url()).await.unwrap();
    for number in 0..20 {
        client.request(format!("/{number}")).await;
    }
    settle().await;
    CommandStats::reset(redis).await;
    let used = client.clone();
    let all = async move {
        for number in 0..requests {
            used.request(format!("/{number}")).await;
        }
    };
    tokio::spawn(all).await.unwrap();
    settle().await;
    let stats = CommandStats::read(redis).await;
    client.close().await;
    stats
}

/// Waits until what goes on in the background is done.
async fn settle() {
    tokio::time::sleep(Duration::from_millis(20)).await;
}

/// Measures the scripts of a hand-off from one process to another: the one that puts a token into
/// the queue of a held lock, and the one that releases the lock and gives it to that token. Between
/// two readings, no other script runs.
pub async fn hand_offs(server: &RedisServer, figures: &mut Figures) {
    const LOCKS: usize = 64;
    let redis = server.client().await;
    let holder = LockManager::connect(&server.url()).await.unwrap();
    let waiter = LockManager::connect(&server.url()).await.unwrap();
    let (mut enqueues, mut grants, mut by_hand) = (Vec::new(), Vec::new(), Vec::new());
    let requests = requests(400);
    // The first round loads the scripts.
    for round in 0..=rounds(25) {
        let awaited = stats_of(Way::Awaited, server, &redis, requests).await;
        by_hand.push(awaited.micros(is_sent) / requests as f64);
        let keys: Vec<_> = (0..LOCKS).map(|lock| format!("{round}/{lock}")).collect();
        let mut held = Vec::new();
        for key in &keys {
            held.push(holder.try_acquire(key.as_str()).await.unwrap());
        }
        CommandStats::reset(&redis).await;
        let waiting = wait_for(&waiter, &keys);
        eventually("all tokens are queued", || async {
            let mut are_queued = true;
            for key in &keys {
                are_queued &= queue_length(&redis, key).await == 1;
            }
            are_queued
        })
        .await;
        // The holder is told.
        settle().await;
        enqueues.push(per_script_call(&redis, LOCKS).await);
        CommandStats::reset(&redis).await;
        drop(held);
        let mut granted = Vec::new();
        for waiting in waiting {
            granted.push(waiting.await.unwrap());
        }
        grants.push(per_script_call(&redis, LOCKS).await);
        drop(granted);
        settle().await;
    }
    let (enqueue, grant) = (measured(&enqueues), measured(&grants));
    println!(
        "inside Redis, from one process to another: enqueue {:.2} µs, release with grant {:.2} µs",
        enqueue.median, grant.median
    );
    figures.add("enqueue_us", enqueue, &Goal::AtMost(8.0));
    figures.add("grant_us", grant, &Goal::AtMost(10.0));
    // The goals in µs come from a machine on which the recipe took 4.2 µs.
    let enqueue = measured(&shares(&enqueues, &by_hand));
    figures.add("enqueue_vs_awaited", enqueue, &Goal::AtMost(1.9));
    let grant = measured(&shares(&grants, &by_hand));
    figures.add("grant_vs_awaited", grant, &Goal::AtMost(2.4));
    holder.close().await;
    waiter.close().await;
}

fn wait_for(waiter: &LockManager, keys: &[String]) -> Vec<tokio::task::JoinHandle<LockGuard>> {
    let wait = |key: &String| {
        let (locks, key) = (waiter.clone(), key.clone());
        tokio::spawn(async move { locks.acquire(key, Duration::from_secs(60)).await.unwrap() })
    };
    keys.iter().map(wait).collect()
}

/// Returns the µs of a script call, if there were as many as expected.
async fn per_script_call(redis: &MultiplexedConnection, expected: usize) -> Option<f64> {
    let scripts = CommandStats::read(redis).await.of("evalsha");
    (scripts.calls == expected as u64).then_some(scripts.micros / expected as f64)
}

/// Returns what was measured in each round, in the time of the recipe in that round.
fn shares(rounds: &[Option<f64>], by_hand: &[f64]) -> Vec<Option<f64>> {
    let pairs = rounds.iter().zip(by_hand);
    let share = |(round, by_hand): (&Option<f64>, &f64)| round.map(|micros| micros / by_hand);
    pairs.map(share).collect()
}

/// Leaves out the first round, and those in which other scripts ran as well.
fn measured(rounds: &[Option<f64>]) -> Spread {
    Spread::of(rounds.iter().skip(1).copied().flatten())
}
