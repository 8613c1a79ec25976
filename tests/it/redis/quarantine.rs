//! After Redis lost data, no lock is given until those who had one must have lost it.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use tower_distributed_lock::{ErrorKind, LockGuard, LockManager, LockManagerBuilder};

use crate::support::{
    Mode, PATIENCE, Proxy, RedisServer, eventually, eventually_queued, run, short_lived, soon,
    text, value,
};

const TTL_MS: u64 = 1500;

const EPOCH: &str = "{lock:}:epoch";

fn careful() -> LockManagerBuilder {
    short_lived(TTL_MS).quarantine(true)
}

/// Tries until the lock is given. Until then, each attempt must find it unavailable.
async fn given(locks: &LockManager, key: &str) -> LockGuard {
    let trying = async {
        loop {
            match locks.try_acquire(key).await {
                Ok(guard) => return guard,
                Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}"),
            }
            // This keeps Redis from being busy all the time.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon("the lock is given", trying).await
}

/// Returns a lock whose holder hears nothing more, so that it relies on its lease for as long as it
/// may.
async fn held_by_somebody_cut_off(server: &RedisServer, builder: LockManagerBuilder) -> LockGuard {
    let proxy = Proxy::start(server.port).await;
    // Only the end of its time ends it.
    let locks = builder.command_timeout(Duration::from_millis(TTL_MS));
    let locks = locks.connect(&proxy.url()).await.unwrap();
    let guard = given(&locks, "a").await;
    proxy.set(Mode::Hold);
    // The proxy must live on.
    std::mem::forget(proxy);
    guard
}

async fn epoch(redis: &MultiplexedConnection) -> Option<String> {
    value(redis, EPOCH).await
}

/// Ends the connections of all other clients: in RESP3, one on which a manager also listens.
async fn kill_all_others(redis: &MultiplexedConnection) {
    for kind in ["normal", "pubsub"] {
        run(redis, &format!("CLIENT KILL TYPE {kind} SKIPME yes")).await;
    }
}

#[tokio::test]
async fn a_server_that_was_restarted_empty_gives_nothing_that_may_still_be_trusted() {
    for (builder, is_careful) in [(careful(), true), (short_lived(TTL_MS), false)] {
        let mut server = RedisServer::start().await;
        let guard = held_by_somebody_cut_off(&server, builder.clone()).await;
        server.kill();
        server.restart().await;
        let other = builder.connect(&server.url()).await.unwrap();
        let given = given(&other, "a").await;
        assert_eq!(guard.lease().is_held(), !is_careful, "two hold it");
        assert!(given.fencing_token() > guard.fencing_token());
    }
}

#[tokio::test]
async fn flushed_data_is_noticed_by_whoever_acquires_next() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let other = careful().connect(&server.url()).await.unwrap();
    drop(given(&other, "b").await);
    let guard = held_by_somebody_cut_off(&server, careful()).await;
    let before = epoch(&redis).await;
    run(&redis, "FLUSHALL").await;
    drop(given(&other, "a").await);
    assert!(!guard.lease().is_held(), "two hold it");
    assert_ne!(epoch(&redis).await, before);
}

#[tokio::test]
async fn a_promoted_replica_that_lacks_the_last_writes_is_noticed() {
    let primary = RedisServer::start().await;
    let replica = RedisServer::start().await;
    let (on_primary, on_replica) = (primary.client().await, replica.client().await);
    let one = careful().connect(&primary.url()).await.unwrap();
    drop(given(&one, "b").await);
    run(
        &on_replica,
        &format!("REPLICAOF 127.0.0.1 {}", primary.port),
    )
    .await;
    eventually("the replica has the epoch", || async {
        epoch(&on_replica).await.is_some() && epoch(&on_replica).await == epoch(&on_primary).await
    })
    .await;
    // From here on the replica gets no more writes, as if they were lost.
    run(&on_replica, "REPLICAOF NO ONE").await;
    let guard = held_by_somebody_cut_off(&primary, careful()).await;
    let other = careful().connect(&replica.url()).await.unwrap();
    drop(given(&other, "a").await);
    assert!(!guard.lease().is_held(), "two hold it");
}

/// What a server that was restarted says, by which it could be told whether it lost anything. An id
/// is written as what it is.
async fn says_after_restart(redis: &MultiplexedConnection, before: &str) -> Vec<String> {
    let old = before.split(' ').next().unwrap();
    let info = text(redis, "INFO replication").await;
    let new = info
        .lines()
        .find_map(|line| line.strip_prefix("master_replid:"))
        .unwrap()
        .trim()
        .to_owned();
    assert_ne!(new, old);
    assert_eq!(epoch(redis).await.as_deref(), Some(before));
    let named = |line: &str| line.replace(&new, "new").replace(old, "old");
    info.lines().map(named).collect()
}

/// That is why a server that was restarted with all its data begins a quarantine, too.
#[tokio::test]
async fn a_server_that_lost_its_last_locks_looks_like_one_that_was_shut_down_and_lost_none() {
    let mut said = Vec::new();
    for loses_locks in [false, true] {
        let mut server = RedisServer::start().await;
        let redis = server.client().await;
        let locks = careful().connect(&server.url()).await.unwrap();
        drop(given(&locks, "b").await);
        locks.close().await;
        let before = epoch(&redis).await.unwrap();
        if loses_locks {
            run(&redis, "SAVE").await;
        }
        let guard = held_by_somebody_cut_off(&server, careful()).await;
        match loses_locks {
            // Its last snapshot is older than the lock.
            true => server.kill(),
            false => server.shut_down().await,
        }
        server.restart().await;
        let redis = server.client().await;
        let kept = value(&redis, "lock:a").await;
        assert_eq!(kept.is_none(), loses_locks);
        said.push(says_after_restart(&redis, &before).await);
        let other = careful().connect(&server.url()).await.unwrap();
        drop(given(&other, "a").await);
        assert!(!guard.lease().is_held(), "two hold it");
    }
    assert_eq!(said[0], said[1]);
}

#[tokio::test]
async fn while_the_data_is_kept_nobody_waits_for_anything() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let one = careful().connect(&server.url()).await.unwrap();
    let guard = given(&one, "a").await;
    let before = epoch(&redis).await;
    kill_all_others(&redis).await;
    run(&redis, "SCRIPT FLUSH").await;
    let two = careful().connect(&server.url()).await.unwrap();
    let waiting = tokio::spawn(async move { two.acquire("a", PATIENCE).await });
    eventually_queued(&redis, "a", 1).await;
    guard.release().await.unwrap();
    drop(soon("it is granted", waiting).await.unwrap().unwrap());
    // A request gets the lock now, and not an error.
    drop(one.try_acquire("c").await.unwrap());
    assert_eq!(epoch(&redis).await, before);
}

#[tokio::test]
async fn a_manager_that_only_waits_for_work_begins_the_quarantine_when_it_connects() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let _locks = careful().connect(&server.url()).await.unwrap();
    eventually("there is an epoch", || async {
        epoch(&redis).await.is_some()
    })
    .await;
}

/// A server that cannot say whether it knows of all leases gives no lock, not even to the next in
/// the queue.
#[tokio::test]
async fn while_the_quarantine_is_not_known_a_release_grants_to_no_waiter() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let one = careful().connect(&server.url()).await.unwrap();
    let guard = given(&one, "a").await;
    // Another server takes over, and refuses to say who it is.
    run(&redis, "ACL SETUSER default -info").await;
    run(&redis, "DEBUG CHANGE-REPL-ID").await;
    kill_all_others(&redis).await;
    // A process that waits, and that listens to its inbox.
    let waiter = format!("{:032x}", 1);
    let client = redis::Client::open(server.url()).unwrap();
    let mut inbox = client.get_async_pubsub().await.unwrap();
    let channel = format!("lock:inbox:{waiter}");
    inbox.subscribe(channel).await.unwrap();
    run(&redis, &format!("RPUSH {{lock:a}}:queue {waiter}:1")).await;
    run(&redis, "APPEND lock:a !").await;
    eventually("the manager is connected again", || async {
        guard.lease().is_held() && one.try_acquire("b").await.is_err()
    })
    .await;
    guard.release().await.unwrap();
    assert_eq!(value(&redis, "lock:a").await, None);
}
