//! Fencing tokens rise, whatever happens.

use tower_distributed_lock::LockManager;

use super::WAIT;
use crate::nodes::Store;
use crate::support::{RedisServer, eventually, run, soon};

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
                let redis::Value::Array(now) = run(&redis, "TIME").await else {
                    panic!("no time");
                };
                let seconds: u64 = redis::from_redis_value(now[0].clone()).unwrap();
                let later = (seconds + 3600) * 1_000_000;
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

#[tokio::test]
async fn fences_follow_the_clock_while_a_connection_lasts() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let locks = LockManager::connect(&server.url()).await.unwrap();
    let lag = async || {
        let time = run(&redis, "TIME").await;
        let (seconds, micros): (u64, u64) = redis::from_redis_value(time).unwrap();
        let guard = locks.try_acquire("a").await.unwrap();
        (seconds * 1_000_000 + micros).saturating_sub(guard.fencing_token() / 1024)
    };
    // Between two seeds it falls behind.
    eventually("a fence is behind", async || {
        drop(locks.try_acquire("seeded").await.unwrap());
        lag().await > 0
    })
    .await;
    eventually("a fence is at the clock", async || lag().await == 0).await;
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
