//! A lock that must be on replicas before it is given.

use std::time::Duration;

use tower_distributed_lock::{ErrorKind, LockManagerBuilder};

use super::{recovers, unavailable};
use crate::support::{
    PATIENCE, RedisServer, eventually, eventually_queued, minute, run, soon, value,
};

/// A primary with a replica that follows it.
async fn pair() -> (RedisServer, RedisServer) {
    let primary = RedisServer::start_with(&["--repl-diskless-sync-delay", "0"]).await;
    let port = primary.port.to_string();
    let replica = RedisServer::start_with(&["--replicaof", "127.0.0.1", &port]).await;
    let redis = primary.client().await;
    // It is said to be online before it reads what is written.
    eventually("the replica follows", || async {
        run(&redis, "SET x 1 PX 1000").await;
        run(&redis, "WAIT 1 100").await == redis::Value::Int(1)
    })
    .await;
    (primary, replica)
}

fn builder() -> LockManagerBuilder {
    minute()
        .command_timeout(Duration::from_secs(1))
        .min_replicas(1)
}

/// Waits until the primary has none of these locks.
async fn eventually_free(primary: &RedisServer, lock: &str) {
    let redis = primary.client().await;
    eventually("the lock is free again", || async {
        value(&redis, lock).await.is_none()
    })
    .await;
}

#[tokio::test]
async fn a_lock_that_is_given_is_on_a_replica() {
    let (primary, replica) = pair().await;
    let on_replica = replica.client().await;
    let locks = builder().connect(primary.url()).await.unwrap();
    for number in 0..20 {
        let guard = locks.try_acquire(format!("{number}")).await.unwrap();
        assert!(
            value(&on_replica, &format!("lock:{number}"))
                .await
                .is_some()
        );
        guard.release().await.unwrap();
    }
    soon("nothing is in flight", locks.close()).await;
}

#[tokio::test]
async fn a_lock_that_no_replica_has_is_released_and_unavailable() {
    let (primary, replica) = pair().await;
    let locks = builder().connect(primary.url()).await.unwrap();
    locks
        .try_acquire("a")
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    replica.signal("-STOP");
    let error = unavailable(&locks).await;
    assert!(error.to_string().contains("0 of 1 replicas"), "{error}");
    eventually_free(&primary, "lock:a").await;
    // Several at one moment.
    let (a, b) = tokio::join!(locks.try_acquire("a"), locks.acquire("b", PATIENCE));
    for result in [a, b] {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::Unavailable);
    }
    eventually_free(&primary, "lock:b").await;
    replica.signal("-CONT");
    recovers(&locks).await;
}

#[tokio::test]
async fn a_lock_that_is_handed_over_is_on_a_replica_as_well() {
    let (primary, replica) = pair().await;
    let redis = primary.client().await;
    let one = builder().connect(primary.url()).await.unwrap();
    let two = builder().connect(primary.url()).await.unwrap();
    let guard = one.try_acquire("a").await.unwrap();
    let first = guard.fencing_token();
    let waiting = tokio::spawn({
        let two = two.clone();
        async move { two.acquire("a", PATIENCE).await }
    });
    eventually_queued(&redis, "a", 1).await;
    guard.release().await.unwrap();
    let guard = soon("it is handed over", waiting).await.unwrap().unwrap();
    assert!(guard.fencing_token() > first);
    let token = value(&redis, "lock:a").await;
    assert_eq!(value(&replica.client().await, "lock:a").await, token);
    // And if it is not, nobody has it.
    let waiting = tokio::spawn(async move { one.acquire("a", Duration::from_secs(3)).await });
    eventually_queued(&redis, "a", 1).await;
    replica.signal("-STOP");
    guard.release().await.unwrap();
    let error = soon("a result", waiting).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    replica.signal("-CONT");
    recovers(&two).await;
}

#[tokio::test]
async fn what_was_not_confirmed_when_the_connection_broke_is_confirmed_on_the_next() {
    let (primary, _replica) = pair().await;
    let redis = primary.client().await;
    let locks = builder().connect(primary.url()).await.unwrap();
    for number in 0..20 {
        let asking = locks.clone();
        let asked =
            tokio::spawn(async move { asking.acquire(format!("{number}"), PATIENCE).await });
        for kind in ["normal", "pubsub"] {
            let kill = format!("CLIENT KILL TYPE {kind} SKIPME yes");
            run(&redis, &kill).await;
        }
        match soon("a result", asked).await.unwrap() {
            Ok(guard) => drop(guard.release().await),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}"),
        }
        eventually_free(&primary, &format!("lock:{number}")).await;
    }
    recovers(&locks).await;
}
