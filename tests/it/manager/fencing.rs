//! Fencing tokens rise, whatever happens.

use redis::aio::MultiplexedConnection;
use tower_distributed_lock::LockManager;

use super::WAIT;
use crate::nodes::Store;
use crate::support::{RedisServer, eventually, run, soon, text};

on_every_store! {
    Store:
    fencing_tokens_rise_from_holder_to_holder
}

async fn fencing_tokens_rise_from_holder_to_holder(store: Store) {
    let locks = store.locks().await;
    let mut last = 0;
    for round in 0..2000 {
        // Every other time with a waiter, so that the lock is handed over within this process.
        let guard = locks.try_acquire("a").await.unwrap();
        assert!(guard.fencing_token() > last, "round {round}");
        assert!(i64::try_from(guard.fencing_token()).is_ok());
        last = guard.fencing_token();
        let waiting = tokio::spawn({
            let locks = locks.clone();
            async move { locks.acquire("a", WAIT).await.unwrap().fencing_token() }
        });
        if round % 2 == 0 {
            tokio::task::yield_now().await;
        }
        drop(guard);
        let next = waiting.await.unwrap();
        assert!(next > last, "round {round}");
        last = next;
    }
}

#[tokio::test]
async fn fencing_tokens_go_on_rising_whatever_happens_to_the_data() {
    let mut server = RedisServer::start().await;
    let mut last = 0;
    for harm in [
        "nothing",
        "DEL {lock:}:fence",
        "FLUSHALL",
        "a restart without data",
        "a clock set back",
    ] {
        match harm {
            "nothing" => {}
            "a restart without data" => {
                server.kill();
                server.restart().await;
            }
            "a clock set back" => {
                // As if the highest fence so far had been given out an hour from now.
                let redis = server.client().await;
                let later = clock(&redis).await + 3600 * 1_000_000;
                run(&redis, &format!("SET {{lock:}}:fence {later}")).await;
                last = last.max(later * 1024);
            }
            command => {
                run(&server.client().await, command).await;
            }
        }
        // From two processes.
        for _ in 0..2 {
            let locks = LockManager::connect(&server.url()).await.unwrap();
            for _ in 0..10 {
                let guard = locks.try_acquire("a").await.unwrap();
                assert!(
                    guard.fencing_token() > last,
                    "{harm}: {} after {last}",
                    guard.fencing_token()
                );
                last = guard.fencing_token();
                guard.release().await.unwrap();
            }
        }
    }
}

/// Returns the server's clock, in µs.
async fn clock(redis: &MultiplexedConnection) -> u64 {
    let time = run(redis, "TIME").await;
    let (seconds, micros): (u64, u64) = redis::from_redis_value(time).unwrap();
    seconds * 1_000_000 + micros
}

/// Returns by how many µs the next fence is behind the server's clock.
async fn lag(redis: &MultiplexedConnection, locks: &LockManager) -> u64 {
    let clock = clock(redis).await;
    let guard = locks.try_acquire("a").await.unwrap();
    clock.saturating_sub(guard.fencing_token() / 1024)
}

#[tokio::test]
async fn fences_follow_the_clock_while_a_connection_lasts() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let locks = LockManager::connect(&server.url()).await.unwrap();
    // Between two seeds it falls behind.
    eventually("a fence is behind", async || {
        drop(locks.try_acquire("seeded").await.unwrap());
        lag(&redis, &locks).await > 0
    })
    .await;
    eventually("a fence is at the clock", async || {
        lag(&redis, &locks).await == 0
    })
    .await;
}

#[tokio::test]
async fn fences_follow_the_clock_when_the_scripts_are_flushed() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let locks = LockManager::connect(&server.url()).await.unwrap();
    let is_to_be_raised = async || {
        let counter = run(&redis, "GET {lock:}:fence").await;
        let counter: u64 = redis::from_redis_value(counter).unwrap();
        clock(&redis).await > counter + 10_000
    };
    let refused = async || {
        let errors = text(&redis, "INFO errorstats").await;
        let lines = errors.lines();
        let refused = lines.filter_map(|line| line.strip_prefix("errorstat_NOSCRIPT:count="));
        refused
            .map(|count| count.parse::<u64>().unwrap())
            .sum::<u64>()
    };
    for round in 0..4 {
        run(&redis, "SCRIPT FLUSH").await;
        eventually("the counter is to be raised", is_to_be_raised).await;
        assert_eq!(lag(&redis, &locks).await, 0, "{round}");
        eventually("the counter is to be raised", is_to_be_raised).await;
        let guard = locks.try_acquire("a").await.unwrap();
        guard.release().await.unwrap();
    }
    // What is known again is not refused again.
    let before = refused().await;
    eventually("the counter is to be raised", is_to_be_raised).await;
    assert_eq!(lag(&redis, &locks).await, 0);
    assert_eq!(refused().await, before);
}

#[tokio::test]
async fn more_hand_offs_than_one_fence_has_tokens_for() {
    let server = RedisServer::start().await;
    let locks = LockManager::connect(&server.url()).await.unwrap();
    let guard = locks.try_acquire("a").await.unwrap();
    let mut last = guard.fencing_token();
    let mut queue: Vec<_> = (0..3000)
        .map(|_| Box::pin(locks.acquire("a", WAIT)))
        .collect();
    for waiter in &mut queue {
        assert!(futures_util::poll!(waiter).is_pending());
    }
    drop(guard);
    for waiter in queue {
        let guard = soon("the next is served", waiter).await.unwrap();
        assert!(guard.fencing_token() > last);
        last = guard.fencing_token();
    }
}
