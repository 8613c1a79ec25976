//! A lock that is taken from its holder.

use std::time::Instant;

use tower_distributed_lock::inspect::Occupant;
use tower_distributed_lock::{ErrorKind, IdempotencyLayer, LostReason};

use crate::nodes::Store;
use crate::once::{App, Runs, post};
use crate::support::{
    Cluster, PATIENCE, RedisServer, eventually, eventually_no_trace, eventually_queued,
    knows_what_was_said, minute, run, short_lived, soon,
};

on_every_store!(Store:
    the_holder_is_told_and_the_next_of_its_process_gets_the_lock
    a_free_lock_has_no_holder
    a_stored_response_stays
);

async fn the_holder_is_told_and_the_next_of_its_process_gets_the_lock(store: Store) {
    // No renewal can be the explanation, as it would take 20 s.
    let locks = store.manager(minute()).await;
    let hanging = locks.try_acquire("k").await.unwrap();
    let waiting = tokio::spawn({
        let locks = locks.clone();
        async move { locks.acquire("k", PATIENCE).await }
    });
    eventually("it waits", || async { locks.stats().waiting == 1 }).await;
    assert!(locks.force_release("k").await.unwrap());
    assert_eq!(soon("it is told", hanging.lost()).await, LostReason::Taken);
    let next = soon("its turn", waiting).await.unwrap().unwrap();
    assert!(next.fencing_token() > hanging.fencing_token());
    // The one that has lost it takes it from no other.
    drop(hanging);
    assert!(next.lease().is_held());
    next.release().await.unwrap();
}

async fn a_free_lock_has_no_holder(store: Store) {
    let locks = store.locks().await;
    assert!(!locks.force_release("k").await.unwrap());
    let guard = locks.try_acquire("k").await.unwrap();
    guard.release().await.unwrap();
}

async fn a_stored_response_stays(store: Store) {
    let locks = store.locks().await;
    let runs = Runs::default();
    let app = App::new(&IdempotencyLayer::new(locks.clone()), runs.handler());
    app.send(post("k")).await.is_run(1);
    let begin = tower_distributed_lock::inspect::LockCursor::records();
    let mut page = locks.list(begin).await.unwrap();
    while page.locks.is_empty() {
        page = locks.list(page.next.expect("there is one")).await.unwrap();
    }
    let key = page.locks[0].key.clone();
    let error = locks.force_release(key).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Held);
    app.send(post("k")).await.is_replay_of(1);
}

#[tokio::test]
async fn the_next_process_gets_the_lock_at_once_and_any_process_can_see_to_it() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let one = minute().connect(&server.url()).await.unwrap();
    let two = minute().connect(&server.url()).await.unwrap();
    let operator = minute().connect(&server.url()).await.unwrap();
    let hanging = one.try_acquire("k").await.unwrap();
    let waiting = tokio::spawn(async move { two.acquire("k", PATIENCE).await });
    eventually_queued(&redis, "k", 1).await;
    knows_what_was_said(&one).await;
    let began = Instant::now();
    assert!(operator.force_release("k").await.unwrap());
    let next = soon("its turn", waiting).await.unwrap().unwrap();
    assert_eq!(soon("it is told", hanging.lost()).await, LostReason::Taken);
    assert!(began.elapsed() < PATIENCE);
    assert!(next.fencing_token() > hanging.fencing_token());
    assert_eq!(hanging.release().await.unwrap_err().kind(), ErrorKind::Lost);
    next.release().await.unwrap();
    eventually_no_trace(&redis).await;
}

#[tokio::test]
async fn all_that_share_a_lock_are_told_and_one_that_waits_has_it_alone() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let connect = || minute().connect(server.url());
    let (one, two) = (connect().await.unwrap(), connect().await.unwrap());
    let (writer, operator) = (connect().await.unwrap(), connect().await.unwrap());
    let hanging = one.try_acquire_shared("k").await.unwrap();
    let other = two.try_acquire_shared("k").await.unwrap();
    let waiting = tokio::spawn(async move { writer.acquire("k", PATIENCE).await });
    eventually_queued(&redis, "k", 1).await;
    assert!(operator.force_release("k").await.unwrap());
    let next = soon("its turn", waiting).await.unwrap().unwrap();
    for reader in [hanging, other] {
        assert_eq!(soon("it is told", reader.lost()).await, LostReason::Taken);
        assert!(next.fencing_token() > reader.fencing_token());
    }
    next.release().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn each_primary_of_a_cluster_gives_its_locks_to_the_next_process() {
    let cluster = Cluster::start(3, 0).await;
    let connect = || minute().quarantine(false).connect_cluster(cluster.urls());
    let (one, two) = (connect().await.unwrap(), connect().await.unwrap());
    let operator = connect().await.unwrap();
    for number in 0..12 {
        let key = format!("k:{number}");
        let hanging = one.try_acquire(&*key).await.unwrap();
        let waiting = tokio::spawn({
            let (two, key) = (two.clone(), key.clone());
            async move { two.acquire(key, PATIENCE).await }
        });
        eventually("it is in the queue", || async {
            operator.inspect(&*key).await.unwrap().waiting.len() == 1
        })
        .await;
        assert!(operator.force_release(&*key).await.unwrap());
        let next = soon("its turn", waiting).await.unwrap().unwrap();
        assert_eq!(soon("it is told", hanging.lost()).await, LostReason::Taken);
        assert!(next.fencing_token() > hanging.fencing_token());
        next.release().await.unwrap();
    }
}

#[tokio::test]
async fn the_fence_rises_though_its_counter_is_lost() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let one = minute().connect(&server.url()).await.unwrap();
    let two = minute().connect(&server.url()).await.unwrap();
    let hanging = one.try_acquire("k").await.unwrap();
    let waiting = tokio::spawn(async move { two.acquire("k", PATIENCE).await });
    eventually_queued(&redis, "k", 1).await;
    run(&redis, "DEL {lock:}:fence").await;
    assert!(one.force_release("k").await.unwrap());
    let next = soon("its turn", waiting).await.unwrap().unwrap();
    assert!(next.fencing_token() > hanging.fencing_token());
}

#[tokio::test]
async fn the_lock_of_another_client_is_released_unless_it_is_no_lock() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let locks = minute().connect(&server.url()).await.unwrap();
    run(&redis, "SET lock:k of-redis-py PX 30000").await;
    assert!(locks.force_release("k").await.unwrap());
    let report = locks.inspect("k").await.unwrap();
    assert!(matches!(report.occupant, Occupant::None));
    assert!(!locks.force_release("k").await.unwrap(), "it is free");
    // An empty value is one.
    run(&redis, "SET lock:k ").await;
    assert!(locks.try_acquire("k").await.is_err());
    assert!(locks.force_release("k").await.unwrap());
    assert!(locks.try_acquire("k").await.is_ok());
    run(&redis, &format!("SET lock:k {}", "x".repeat(65))).await;
    let error = locks.force_release("k").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Held);
    run(&redis, "DEL lock:k").await;
    run(&redis, "RPUSH lock:k 1").await;
    let error = locks.force_release("k").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
}

#[tokio::test]
async fn in_quarantine_the_lock_is_freed_and_given_to_no_one() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let plain = short_lived(3000).connect(&server.url()).await.unwrap();
    let waiter = short_lived(3000).connect(&server.url()).await.unwrap();
    let held = plain.try_acquire("k").await.unwrap();
    let waiting = tokio::spawn(async move { waiter.acquire("k", PATIENCE).await });
    eventually_queued(&redis, "k", 1).await;
    // The first manager with quarantine finds a server without an epoch.
    let quarantined = short_lived(3000).quarantine(true);
    let quarantined = quarantined.connect(&server.url()).await.unwrap();
    assert!(quarantined.force_release("k").await.unwrap());
    assert_eq!(soon("it is told", held.lost()).await, LostReason::Taken);
    // The waiter, whose manager knows of no quarantine, then takes it by itself.
    drop(soon("its turn", waiting).await.unwrap().unwrap());
}
