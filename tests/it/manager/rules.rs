//! Holders, leases and the end of a manager, over memory and over Redis.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tower_distributed_lock::{ErrorKind, LostReason};

use super::WAIT;
use crate::nodes::Store;
use crate::support::{eventually_no_trace, short_lived, soon};

on_every_store! {
    Store:
    one_holds_and_the_other_is_refused
    other_keys_are_not_affected
    a_lease_outlives_its_ttl_while_its_guard_lives
    max_hold_ends_a_hold_and_others_go_on
    release_says_that_the_lock_was_ours
    a_released_lease_says_so
    a_guard_dropped_outside_of_a_runtime_releases
    simultaneous_requests_never_overlap
}

async fn one_holds_and_the_other_is_refused(store: Store) {
    let locks = store.locks().await;
    let guard = locks.try_acquire("a").await.unwrap();
    assert_eq!(
        locks.try_acquire("a").await.unwrap_err().kind(),
        ErrorKind::Held
    );
    assert!(guard.lease().is_held());
    drop(guard);
    // Free at once for this process, though the release may still be on its way.
    let again = locks.try_acquire("a").await.unwrap();
    assert_eq!(again.key().as_str(), "a");
}

async fn other_keys_are_not_affected(store: Store) {
    let locks = store.locks().await;
    let guards =
        futures_util::future::join_all((0..300).map(|key| locks.try_acquire(format!("key {key}"))))
            .await;
    assert!(guards.iter().all(Result::is_ok));
}

async fn a_lease_outlives_its_ttl_while_its_guard_lives(store: Store) {
    let locks = store.manager(short_lived(300)).await;
    let guard = locks.try_acquire("a").await.unwrap();
    let held_for = Instant::now();
    while held_for.elapsed() < Duration::from_millis(1200) {
        assert_eq!(
            locks.try_acquire("a").await.unwrap_err().kind(),
            ErrorKind::Held
        );
        assert!(guard.lease().is_held());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    guard.release().await.unwrap();
}

async fn max_hold_ends_a_hold_and_others_go_on(store: Store) {
    let builder = short_lived(300).max_hold(Duration::from_millis(400));
    let locks = store.manager(builder).await;
    let guard = locks.try_acquire("a").await.unwrap();
    let waiting = tokio::spawn({
        let locks = locks.clone();
        async move { locks.acquire("a", WAIT).await }
    });
    let started = Instant::now();
    assert_eq!(
        soon("the loss is told", guard.lost()).await,
        LostReason::MaxHold
    );
    assert!(started.elapsed() > Duration::from_millis(300));
    assert_eq!(guard.lease().lost_reason(), Some(LostReason::MaxHold));
    // The holder may still be at work, so its lease must be over before the next one gets the lock.
    let next = soon("the waiter is served", waiting)
        .await
        .unwrap()
        .unwrap();
    assert!(next.fencing_token() > guard.fencing_token());
    // Releasing the lost lock does not touch that of the next holder.
    assert_eq!(guard.release().await.unwrap_err().kind(), ErrorKind::Lost);
    assert!(next.lease().is_held());
    next.release().await.unwrap();
}

async fn release_says_that_the_lock_was_ours(store: Store) {
    let locks = store.locks().await;
    locks
        .try_acquire("a")
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    let guard = locks.try_acquire("a").await.unwrap();
    let mut waiting = Box::pin(locks.acquire("a", WAIT));
    assert!(futures_util::poll!(&mut waiting).is_pending());
    guard.release().await.unwrap();
    drop(soon("the waiter is served", waiting).await.unwrap());
}

async fn a_released_lease_says_so(store: Store) {
    let locks = store.locks().await;
    let guard = locks.try_acquire("a").await.unwrap();
    let lease = guard.lease().clone();
    assert!(lease.remaining() > Duration::from_secs(5));
    drop(guard);
    assert_eq!(
        soon("the end is told", lease.lost()).await,
        LostReason::Released
    );
    assert_eq!(lease.remaining(), Duration::ZERO);
}

async fn a_guard_dropped_outside_of_a_runtime_releases(store: Store) {
    let locks = store.locks().await;
    let guard = locks.try_acquire("a").await.unwrap();
    std::thread::spawn(move || drop(guard)).join().unwrap();
    drop(locks.try_acquire("a").await.unwrap());
}

async fn simultaneous_requests_never_overlap(store: Store) {
    let inside = Arc::new(AtomicU32::new(0));
    // Two managers, where they can share a store: there is contention within a process and between
    // two.
    let one = store.locks().await;
    let two = match &store.server {
        Some(_) => store.locks().await,
        None => one.clone(),
    };
    let tasks = (0..200).map(|task| {
        let locks = if task % 2 == 0 {
            one.clone()
        } else {
            two.clone()
        };
        let inside = Arc::clone(&inside);
        tokio::spawn(async move {
            let guard = locks.acquire("a", WAIT).await.unwrap();
            assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two inside");
            tokio::task::yield_now().await;
            inside.fetch_sub(1, Ordering::SeqCst);
            drop(guard);
        })
    });
    for task in soon("all are served", futures_util::future::join_all(tasks)).await {
        task.unwrap();
    }
    if let Some(server) = &store.server {
        eventually_no_trace(&server.client().await).await;
    }
}
