//! Locks that Redis evicts, and those of one name in two databases: what Redis tells of them.

use std::time::Duration;

use tower_distributed_lock::{LockManager, LostReason};

use crate::support::{
    RedisServer, calls, connect_patiently, eventually, has_resp3, minute, run, soon, value,
    watched_keys,
};

#[tokio::test]
async fn a_lock_that_redis_evicts_is_told_at_once_if_redis_watches_it_and_else_at_the_first_check()
{
    let server = RedisServer::start_with(&["--maxmemory-policy", "allkeys-random"]).await;
    let redis = server.client().await;
    // No renewal can be the explanation, as the first one comes after eight hours.
    let day = LockManager::builder().ttl(Duration::from_secs(24 * 3600));
    let locks = day.connect(&server.url()).await.unwrap();
    for is_watched in [false, true] {
        let guard = locks.try_acquire("a").await.unwrap();
        if is_watched && has_resp3() {
            eventually("it is watched", || async { watched_keys(&redis).await > 0 }).await;
        } else {
            assert_eq!(watched_keys(&redis).await, 0);
        }
        // Redis evicts everything.
        run(&redis, "CONFIG SET maxmemory 1").await;
        let full: Result<(), _> = redis::cmd("SET")
            .arg(&["x", "x"])
            .query_async(&mut redis.clone())
            .await;
        assert!(full.is_err());
        run(&redis, "CONFIG SET maxmemory 0").await;
        assert_eq!(value(&redis, "lock:a").await, None);
        assert_eq!(soon("it is told", guard.lost()).await, LostReason::Taken);
    }
}

/// Redis tells a client of changes to the keys that it watches, in whichever database they are
/// made.
#[tokio::test]
async fn holders_of_one_name_in_two_databases_leave_each_other_in_peace() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let databases = ["0", "1"].map(|database| format!("{}/{database}", server.url()));
    let mut guards = Vec::new();
    for url in &databases {
        let locks = minute().connect(url).await.unwrap();
        guards.push(locks.try_acquire("a").await.unwrap());
    }
    let is_watched = async || watched_keys(&redis).await == 1 || !has_resp3();
    eventually("Redis watches the lock", is_watched).await;
    // The calls that this provokes come to an end.
    eventually("there are no more calls", || async {
        let before = calls(&redis, "getrange").await;
        for _ in 0..300 {
            run(&redis, "PING").await;
        }
        calls(&redis, "getrange").await == before
    })
    .await;

    // A lock that is looked at for nothing is not written to.
    let renewals = async || calls(&redis, "pexpire").await;
    let (before, asked) = (renewals().await, calls(&redis, "getrange").await);
    if has_resp3() {
        let other = format!("{}/5", server.url());
        let mut other = connect_patiently(&other).await.unwrap();
        let _: () = redis::cmd("FLUSHDB").query_async(&mut other).await.unwrap();
        eventually("both have looked", || async {
            calls(&redis, "getrange").await >= asked + 2
        })
        .await;
        assert_eq!(renewals().await, before);
    }
    assert!(guards.iter().all(|guard| guard.lease().is_held()));
}
