//! Processes in competition: no update is lost.

use std::time::Duration;

use redis::aio::MultiplexedConnection;

use crate::harness;
use crate::process::Worker;
use crate::support::random::Random;
use crate::support::{RedisServer, eventually, eventually_no_trace, run, value};

pub async fn processes_in_competition_lose_no_update_and_each_has_a_share() {
    const PROCESSES: usize = 4;
    const TOTAL: u64 = 3000;
    let server = RedisServer::start().await;
    let redis = server.client().await;
    run(&redis, "SET counter 0").await;
    let mut workers = Vec::new();
    for _ in 0..PROCESSES {
        workers.push(Worker::start(&server, 10_000).await);
    }
    for worker in &mut workers {
        worker.tell(&format!("compete 16 {TOTAL}")).await;
    }
    let mut shares = Vec::new();
    for worker in &mut workers {
        shares.push(worker.answer().await.parse::<u64>().unwrap());
    }
    println!("shares: {shares:?}");
    assert_eq!(shares.iter().sum::<u64>(), TOTAL);
    assert_eq!(value(&redis, "counter").await, Some(TOTAL.to_string()));
    let fair = TOTAL / PROCESSES as u64;
    assert!(shares.iter().all(|share| *share > fair / 3), "{shares:?}");
    run(&redis, "DEL counter").await;
    eventually_no_trace(&redis).await;
}

/// The storage knows the fencing tokens. A lost update would be a number that was written twice.
pub async fn processes_killed_and_frozen_at_random_lose_no_update() {
    const TTL: u64 = 600;
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let mut workers = Vec::new();
    for _ in 0..4 {
        workers.push(Worker::storming(&server, TTL).await);
    }
    let mut random = Random::new(harness::seed("PROCESSES_SEED"));
    for _ in 0..12 {
        let count = written(&redis).await.len();
        eventually("they go on", || async {
            written(&redis).await.len() > count + 50
        })
        .await;
        let victim = random.below(4) as usize;
        if random.below(3) == 0 {
            workers[victim].kill().await;
            workers[victim] = Worker::storming(&server, TTL).await;
        } else {
            workers[victim].freeze().await;
            // This is the fault itself: up to twice the time to live.
            tokio::time::sleep(Duration::from_millis(random.below(2 * TTL))).await;
            workers[victim].signal("-CONT");
        }
    }
    let mut served = Vec::new();
    for worker in &mut workers {
        served.push(worker.ask("calm").await);
    }
    let log = written(&redis).await;
    println!("{} updates; served and refused: {served:?}", log.len());
    let numbers: Vec<u64> = log.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, (1..=log.len() as u64).collect::<Vec<_>>());
    assert!(log.is_sorted_by(|(_, one), (_, next)| one < next), "fences");
    // No process starved, not even one that was frozen: none answers before each of its tasks has
    // been served.
    assert!(
        served.iter().all(|served| !served.starts_with("0 ")),
        "{served:?}"
    );
    run(&redis, "DEL storage log").await;
    eventually_no_trace(&redis).await;
}

/// Returns the numbers that the storage was told, and the fencing tokens that they came with.
async fn written(redis: &MultiplexedConnection) -> Vec<(u64, u64)> {
    let log: Vec<String> = redis::from_redis_value(run(redis, "LRANGE log 0 -1").await).unwrap();
    log.iter()
        .map(|entry| {
            let (number, fence) = entry.split_once(' ').unwrap();
            (number.parse().unwrap(), fence.parse().unwrap())
        })
        .collect()
}
