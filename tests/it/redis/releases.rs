//! Releases that are refused, kept back or overtaken.

use std::time::{Duration, Instant};

use tower_distributed_lock::{ErrorKind, LockManager};

use super::proxies::slow;
use crate::support::{
    RedisServer, eventually, eventually_no_trace, minute, run, script_calls, soon, statistic, value,
};

#[tokio::test]
async fn a_release_that_a_replica_refuses_looks_for_the_primary_and_not_all_the_time() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let locks = minute().connect(&server.url()).await.unwrap();
    let guard = locks.try_acquire("a").await.unwrap();
    // Another server took over. The new primary may be behind the same address.
    run(&redis, "REPLICAOF 127.0.0.1 1").await;
    let connections = async || statistic(&redis, "total_connections_received").await;
    let (before, calls) = (connections().await, script_calls(&redis).await);
    let started = Instant::now();
    drop(guard);
    eventually("it connects anew", || async {
        connections().await > before
    })
    .await;
    eventually("it tries again and again", || async {
        script_calls(&redis).await >= calls + 4
    })
    .await;
    assert!(started.elapsed() > Duration::from_millis(20 + 40 + 80));
    run(&redis, "REPLICAOF NO ONE").await;
    eventually_no_trace(&redis).await;
}

#[tokio::test]
async fn a_release_that_redis_refuses_for_a_while_is_tried_again() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let locks = LockManager::builder()
        .ttl(Duration::from_secs(60))
        .connect(&server.url())
        .await
        .unwrap();
    let guard = locks.try_acquire("a").await.unwrap();
    run(&redis, "CONFIG SET min-replicas-to-write 1").await;
    assert_eq!(
        guard.release().await.unwrap_err().kind(),
        ErrorKind::Unavailable
    );
    run(&redis, "CONFIG SET min-replicas-to-write 0").await;
    eventually_no_trace(&redis).await;

    // The pauses between attempts are right, however long there was nothing to try again.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let guard = locks.try_acquire("a").await.unwrap();
    run(&redis, "CONFIG SET min-replicas-to-write 1").await;
    let (before, started) = (script_calls(&redis).await, Instant::now());
    drop(guard);
    eventually("it is tried again", || async {
        script_calls(&redis).await >= before + 4
    })
    .await;
    let calls = script_calls(&redis).await - before;
    let expected = 3 + started.elapsed().as_millis() as u64 / 100;
    assert!(calls <= expected, "{calls} instead of {expected}");
    run(&redis, "CONFIG SET min-replicas-to-write 0").await;
    eventually_no_trace(&redis).await;
}

#[tokio::test]
async fn a_release_is_not_kept_back_by_requests_that_are_refused() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let minute = LockManager::builder().ttl(Duration::from_secs(60));
    let other = minute.clone().connect(&server.url()).await.unwrap();
    // Replies take a while, so that a call is always in flight.
    let ours = minute
        .connect(&slow(server.port, Duration::from_millis(2)).await)
        .await
        .unwrap();
    let mut popular = Vec::new();
    for number in 0..7 {
        popular.push(
            other
                .try_acquire(format!("popular {number}"))
                .await
                .unwrap(),
        );
    }
    let refused: Vec<_> = (0..7)
        .map(|number| {
            let ours = ours.clone();
            tokio::spawn(async move {
                loop {
                    let error = ours
                        .try_acquire(format!("popular {number}"))
                        .await
                        .unwrap_err();
                    assert_eq!(error.kind(), ErrorKind::Held);
                    tokio::time::sleep(Duration::from_millis(1 + number % 3)).await;
                }
            })
        })
        .collect();
    for number in 0..10 {
        let key = format!("{number}");
        drop(ours.try_acquire(key.as_str()).await.unwrap());
        soon("the release gets through", async {
            while value(&redis, &format!("lock:{key}")).await.is_some() {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
    for task in refused {
        assert!(!task.is_finished());
        task.abort();
    }
}
