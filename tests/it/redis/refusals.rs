//! A Redis that replies, and refuses.

use std::time::Duration;

use tower_distributed_lock::{ErrorKind, LockManager};

use super::{recovers, unavailable};
use crate::support::{
    PATIENCE, RedisServer, eventually, eventually_no_trace, eventually_queued, run, script_calls,
    soon, value,
};

#[tokio::test]
async fn a_read_only_replica_gives_no_locks_until_it_is_promoted() {
    let primary = RedisServer::start().await;
    let port = primary.port.to_string();
    let replica = RedisServer::start_with(&["--replicaof", "127.0.0.1", &port]).await;
    let redis = replica.client().await;
    let locks = LockManager::builder().connect_lazy(replica.url()).unwrap();
    let error = unavailable(&locks).await;
    assert!(
        error.to_string().contains("READONLY"),
        "{}",
        error.to_string()
    );
    run(&redis, "REPLICAOF NO ONE").await;
    recovers(&locks).await;
}

#[tokio::test]
async fn out_of_memory_refuses_new_locks_and_releases_old_ones() {
    let server = RedisServer::start_with(&["--maxmemory-policy", "noeviction"]).await;
    let redis = server.client().await;
    let locks = LockManager::connect(&server.url()).await.unwrap();
    let other = LockManager::connect(&server.url()).await.unwrap();
    let guard = locks.try_acquire("a").await.unwrap();
    let waited_for = locks.try_acquire("b").await.unwrap();
    let waiting = tokio::spawn(async move { other.acquire("b", PATIENCE).await });
    eventually_queued(&redis, "b", 1).await;
    run(&redis, "CONFIG SET maxmemory 1").await;
    let error = soon("a result", locks.try_acquire("c")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("OOM"), "{}", error.to_string());
    guard.release().await.unwrap();
    assert_eq!(value(&redis, "lock:a").await, None);
    waited_for.release().await.unwrap();
    run(&redis, "CONFIG SET maxmemory 0").await;
    recovers(&locks).await;
    let waited = soon("a result", waiting).await.unwrap();
    assert!(waited.is_ok() || waited.is_err_and(|error| error.kind() == ErrorKind::Unavailable));
}

#[tokio::test]
async fn a_key_that_holds_something_else_is_an_error_and_stays_as_it_is() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    run(&redis, "HSET lock:a field value").await;
    let locks = LockManager::connect(&server.url()).await.unwrap();
    // Besides, in the same batch, there is a lock that is fine.
    let (wrong, right) = tokio::join!(locks.try_acquire("a"), locks.try_acquire("b"));
    let error = wrong.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(
        error.to_string().contains("WRONGTYPE"),
        "{}",
        error.to_string()
    );
    right.unwrap().release().await.unwrap();
    assert_eq!(run(&redis, "HLEN lock:a").await, redis::Value::Int(1));
}

#[tokio::test]
async fn an_acquire_that_fails_half_way_leaves_no_lock() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    run(&redis, "ACL SETUSER u on >p ~* &* +@all -time").await;
    let minute = LockManager::builder().ttl(Duration::from_secs(60));
    let url = format!("redis://u:p@127.0.0.1:{}", server.port);
    let locks = minute.clone().connect_lazy(&url).unwrap();
    unavailable(&locks).await;
    eventually_no_trace(&redis).await;
    // The key of a fence or of a queue that holds something else.
    let minute_more = minute.clone();
    let locks = minute.connect(&server.url()).await.unwrap();
    run(&redis, "DEL {lock:}:fence").await;
    run(&redis, "LPUSH {lock:}:fence x").await;
    unavailable(&locks).await;
    eventually("the lock is free again", || async {
        value(&redis, "lock:a").await.is_none()
    })
    .await;
    run(&redis, "DEL {lock:}:fence").await;
    run(&redis, "SET {lock:a}:queue x").await;
    let guard = locks.try_acquire("a").await.unwrap();
    let other = minute_more.connect(&server.url()).await.unwrap();
    let error = other.acquire("a", PATIENCE).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    run(&redis, "DEL {lock:a}:queue").await;
    drop(guard);
    eventually_no_trace(&redis).await;
    // Redis cannot tell the holder that another process waits, which has joined the queue all the
    // same.
    let guard = locks.try_acquire("a").await.unwrap();
    run(&redis, "ACL SETUSER u +time -publish").await;
    let other = LockManager::builder().connect_lazy(&url).unwrap();
    let error = other.acquire("a", PATIENCE).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    eventually_queued(&redis, "a", 0).await;
    drop(guard);
    eventually_no_trace(&redis).await;
}

#[tokio::test]
async fn after_an_acquire_that_redis_refused_there_is_nothing_to_release() {
    let primary = RedisServer::start().await;
    let port = primary.port.to_string();
    let replica = RedisServer::start_with(&["--replicaof", "127.0.0.1", &port]).await;
    let scarce = "CONFIG SET min-replicas-to-write";
    let (none, nine) = (format!("{scarce} 0"), format!("{scarce} 9"));
    for (reason, server, commands, user) in [
        ("READONLY", &replica, ["PING"; 2], ""),
        ("OOM", &primary, ["PING", "CONFIG SET maxmemory 1"], ""),
        (
            "NOREPLICAS",
            &primary,
            ["CONFIG SET maxmemory 0", &nine],
            "",
        ),
        (
            "WRONGTYPE",
            &primary,
            [&none, "HSET lock:a field value"],
            "",
        ),
        (
            "Redis refused",
            &primary,
            ["DEL lock:a", "ACL SETUSER u on >p ~* &* +@all -set"],
            "u:p@",
        ),
    ] {
        let redis = server.client().await;
        for command in commands {
            run(&redis, command).await;
        }
        let url = format!("redis://{user}127.0.0.1:{}", server.port);
        let minute = LockManager::builder().ttl(Duration::from_secs(60));
        let locks = minute.connect_lazy(&url).unwrap();
        unavailable(&locks).await; // This one connects first.
        let before = script_calls(&redis).await;
        let error = unavailable(&locks).await.to_string();
        assert!(error.contains(reason), "{reason}: {error}");
        // A release would be refused as well, and would be tried again for a minute.
        soon(reason, locks.close()).await;
        assert_eq!(script_calls(&redis).await, before, "{reason}");
    }
}
