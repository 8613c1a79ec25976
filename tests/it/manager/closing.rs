//! The end of a manager.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tower_distributed_lock::inspect::LockCursor;
use tower_distributed_lock::{ErrorKind, LockManager};

use super::WAIT;
use crate::nodes::Store;
use crate::support::{
    Mode, Proxy, RedisServer, clients, eventually, eventually_no_trace, eventually_queued, minute,
    short_lived, soon, value,
};

on_every_store! {
    Store:
    close_waits_for_guards_and_refuses_new_requests
    close_returns_while_a_release_is_on_its_way
    closing_goes_on_though_nobody_waits_for_it
    many_may_wait_for_the_end
    a_closed_manager_answers_no_questions
}

async fn close_waits_for_guards_and_refuses_new_requests(store: Store) {
    let locks = store.locks().await;
    let guard = locks.try_acquire("a").await.unwrap();
    let mut waiting = Box::pin(locks.acquire("a", WAIT));
    assert!(futures_util::poll!(&mut waiting).is_pending());
    let mut closing = Box::pin(locks.close());
    assert!(futures_util::poll!(&mut closing).is_pending());
    assert_eq!(waiting.await.unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(
        locks.try_acquire("b").await.unwrap_err().kind(),
        ErrorKind::Closed
    );
    assert!(guard.lease().is_held());
    assert!(futures_util::poll!(&mut closing).is_pending());
    drop(guard);
    soon("the manager is closed", closing).await;
    if let Some(server) = &store.server {
        // At once, not eventually: `close` has waited for it.
        assert_eq!(value(&server.client().await, "lock:a").await, None);
    }
    soon("it is closed already", locks.close()).await;
}

async fn close_returns_while_a_release_is_on_its_way(store: Store) {
    for round in 0..30 {
        let locks = store.locks().await;
        let guard = locks.try_acquire("a").await.unwrap();
        for _ in 0..round % 4 {
            tokio::task::yield_now().await;
        }
        drop(guard);
        soon("the manager is closed", locks.close()).await;
        if let Some(server) = &store.server {
            assert_eq!(value(&server.client().await, "lock:a").await, None);
        }
    }
}

/// Waits until no manager is connected.
async fn eventually_alone(store: &Store) {
    let Some(server) = &store.server else {
        return;
    };
    let redis = server.client().await;
    eventually("no manager is connected", || async {
        let clients = clients(&redis).await;
        clients
            .iter()
            .all(|client| !client.contains("tower-distributed-lock"))
    })
    .await;
}

/// A deadline is a timeout around it, which drops the future.
async fn closing_goes_on_though_nobody_waits_for_it(store: Store) {
    let locks = store.manager(short_lived(300)).await;
    let guard = locks.try_acquire("a").await.unwrap();
    let shared = locks.try_acquire_shared("s").await.unwrap();
    let waiting = tokio::spawn({
        let locks = locks.clone();
        async move { locks.acquire("a", WAIT).await }
    });
    eventually("it waits", || async { locks.stats().waiting == 1 }).await;
    let began = Instant::now();
    for limit in [Duration::ZERO, Duration::from_millis(1)] {
        let closed = tokio::time::timeout(limit, locks.close()).await;
        assert!(closed.is_err(), "guards live");
    }
    let refused = soon("it is told", waiting).await.unwrap().unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Closed);
    // What is held is renewed, however long it takes.
    eventually("they would have expired", || async {
        began.elapsed() > Duration::from_millis(900)
    })
    .await;
    assert!(guard.lease().is_held() && shared.lease().is_held());
    assert_eq!(
        locks.try_acquire("b").await.unwrap_err().kind(),
        ErrorKind::Closed
    );
    guard.release().await.unwrap();
    drop(shared);
    eventually_alone(&store).await;
    if let Some(server) = &store.server {
        eventually_no_trace(&server.client().await).await;
    }
    soon("it is closed already", locks.close()).await;
}

async fn many_may_wait_for_the_end(store: Store) {
    let locks = store.manager(minute()).await;
    let guards = locks.try_acquire_all(["a", "b"]).await.unwrap();
    let closing = (0..10).map(|_| {
        let locks = locks.clone();
        tokio::spawn(async move { locks.close().await })
    });
    let closing: Vec<_> = closing.collect();
    eventually("it closes", || async { locks.stats().is_draining }).await;
    // One that gives up does not end it for the others.
    closing[0].abort();
    drop(guards);
    for closed in soon("all are told", join_all(closing.into_iter().skip(1))).await {
        closed.unwrap();
    }
    eventually_alone(&store).await;
}

async fn a_closed_manager_answers_no_questions(store: Store) {
    let locks = store.manager(minute()).await;
    // A question has a connection of its own, which ends as well.
    locks.inspect("a").await.unwrap();
    soon("an end", locks.close()).await;
    eventually_alone(&store).await;
    let refusals = [
        locks.inspect("a").await.unwrap_err(),
        locks.list(LockCursor::locks()).await.unwrap_err(),
        locks.force_release("a").await.unwrap_err(),
        locks.forget("a").await.unwrap_err(),
        locks.ping().await.unwrap_err(),
    ];
    for error in refusals {
        assert_eq!(error.kind(), ErrorKind::Closed, "{error}");
    }
    eventually_alone(&store).await;
}

/// It has ended when the lock is still to be given to the next process.
#[tokio::test]
async fn a_lock_that_is_taken_away_while_its_manager_closes_goes_to_the_next_process() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let proxy = Proxy::start(server.port).await;
    let operator = minute().connect(&proxy.url()).await.unwrap();
    let holder = minute().connect(&server.url()).await.unwrap();
    let waiter = minute().connect(&server.url()).await.unwrap();
    operator.inspect("a").await.unwrap();
    let _held = holder.try_acquire("a").await.unwrap();
    let waiting = tokio::spawn(async move { waiter.acquire("a", WAIT).await });
    eventually_queued(&redis, "a", 1).await;
    proxy.set(Mode::HoldAnswers);
    let releasing = tokio::spawn({
        let operator = operator.clone();
        async move { operator.force_release("a").await }
    });
    let reads = || async { crate::support::calls(&redis, "getrange").await };
    eventually("its question is asked", || async { reads().await > 0 }).await;
    soon("an end", operator.close()).await;
    proxy.set(Mode::Forward);
    assert!(soon("a result", releasing).await.unwrap().unwrap());
    let guard = soon("its turn", waiting).await.unwrap().unwrap();
    guard.release().await.unwrap();
}

#[test]
fn a_manager_in_memory_is_closed_where_nothing_drives_its_runtime() {
    let runtime = || {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_all().build().unwrap()
    };
    let (idle, driven) = (runtime(), runtime());
    let locks = LockManager::in_memory();
    let guard = idle.block_on(locks.try_acquire("a")).unwrap();
    driven.block_on(async {
        let mut closing = Box::pin(locks.close());
        assert!(futures_util::poll!(&mut closing).is_pending());
        drop(guard);
        soon("an end", closing).await;
        soon("it is closed already", locks.close()).await;
    });
}
