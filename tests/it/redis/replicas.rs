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

/// How many processes share the lock, according to this server.
async fn readers(server: &RedisServer, key: &str) -> u64 {
    let count = format!("ZCARD {{lock:{key}}}:readers");
    redis::from_redis_value(run(&server.client().await, &count).await).unwrap()
}

#[tokio::test]
async fn a_share_that_is_given_is_on_a_replica() {
    let (primary, replica) = pair().await;
    let one = builder().connect(primary.url()).await.unwrap();
    let two = builder().connect(primary.url()).await.unwrap();
    for number in 0..10 {
        let key = number.to_string();
        let here = one.try_acquire_shared(&*key).await.unwrap();
        assert_eq!(readers(&replica, &key).await, 1);
        // It joins without Redis.
        let joins = one.try_acquire_shared(&*key).await.unwrap();
        let there = two.acquire_shared(&*key, PATIENCE).await.unwrap();
        assert_eq!(readers(&replica, &key).await, 2);
        let lock = value(&replica.client().await, &format!("lock:{key}")).await;
        assert_eq!(lock.as_deref(), Some("shared"));
        drop(joins);
        here.release().await.unwrap();
        there.release().await.unwrap();
    }
}

#[tokio::test]
async fn a_share_that_no_replica_has_is_given_up_and_others_keep_theirs() {
    let (primary, replica) = pair().await;
    let one = builder().connect(primary.url()).await.unwrap();
    let two = builder().connect(primary.url()).await.unwrap();
    let shared = one.try_acquire_shared("a").await.unwrap();
    let known = two.try_acquire_shared("b").await.unwrap();
    known.release().await.unwrap();
    replica.signal("-STOP");
    let error = two.acquire_shared("a", PATIENCE).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("0 of 1 replicas"), "{error}");
    eventually("only its share is given up", || async {
        readers(&primary, "a").await == 1
    })
    .await;
    assert!(shared.lease().is_held());
    // Here, it is on a replica already.
    drop(one.try_acquire_shared("a").await.unwrap());
    replica.signal("-CONT");
    shared.release().await.unwrap();
    recovers(&two).await;
}

#[tokio::test]
async fn readers_that_are_let_in_behind_a_writer_are_on_a_replica_as_well() {
    let (primary, replica) = pair().await;
    let redis = primary.client().await;
    let mut managers = Vec::new();
    for _ in 0..3 {
        managers.push(builder().connect(primary.url()).await.unwrap());
    }
    let writer = managers[0].try_acquire("a").await.unwrap();
    let mut waiting = Vec::new();
    for (place, locks) in managers[1..].iter().cloned().enumerate() {
        waiting.push(tokio::spawn(async move {
            locks.acquire_shared("a", Duration::from_secs(3)).await
        }));
        eventually_queued(&redis, "a", place + 1).await;
    }
    let token = writer.fencing_token();
    writer.release().await.unwrap();
    let mut guards = Vec::new();
    for reader in waiting {
        guards.push(soon("a reader", reader).await.unwrap().unwrap());
    }
    assert_eq!(readers(&replica, "a").await, 2);
    assert!(guards.iter().all(|guard| guard.fencing_token() > token));
    // And the writer that comes next.
    let writer = {
        let locks = managers[0].clone();
        tokio::spawn(async move { locks.acquire("a", Duration::from_secs(3)).await })
    };
    eventually_queued(&redis, "a", 1).await;
    replica.signal("-STOP");
    for guard in guards {
        guard.release().await.unwrap();
    }
    let error = soon("a result", writer).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    eventually_free(&primary, "lock:a").await;
    replica.signal("-CONT");
    recovers(&managers[1]).await;
}

#[tokio::test]
async fn several_locks_are_all_on_a_replica_or_none_is_had() {
    let (primary, replica) = pair().await;
    let (redis, on_replica) = (primary.client().await, replica.client().await);
    let locks = builder().connect(primary.url()).await.unwrap();
    let keys = ["a", "b", "c"];
    for wait in [None, Some(PATIENCE)] {
        let guards = match wait {
            None => locks.try_acquire_all(keys).await.unwrap(),
            Some(wait) => locks.acquire_all(keys, wait).await.unwrap(),
        };
        for key in keys {
            let name = format!("lock:{key}");
            let token = value(&redis, &name).await;
            assert!(token.is_some());
            assert_eq!(value(&on_replica, &name).await, token);
        }
        guards.release().await.unwrap();
    }
    // Those that wait for one, and are given it by another process.
    let other = builder().connect(primary.url()).await.unwrap();
    let held = other.try_acquire("b").await.unwrap();
    let waiting = {
        let locks = locks.clone();
        tokio::spawn(async move { locks.acquire_all(keys, Duration::from_secs(3)).await })
    };
    eventually_queued(&redis, "b", 1).await;
    held.release().await.unwrap();
    let guards = soon("all three", waiting).await.unwrap().unwrap();
    for key in keys {
        assert!(value(&on_replica, &format!("lock:{key}")).await.is_some());
    }
    guards.release().await.unwrap();
    replica.signal("-STOP");
    for wait in [None, Some(PATIENCE)] {
        let error = match wait {
            None => locks.try_acquire_all(keys).await.unwrap_err(),
            Some(wait) => locks.acquire_all(keys, wait).await.unwrap_err(),
        };
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        for key in keys {
            eventually_free(&primary, &format!("lock:{key}")).await;
        }
    }
    replica.signal("-CONT");
    recovers(&locks).await;
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
