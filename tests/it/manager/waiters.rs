//! Those who wait for a lock, over memory and over Redis: their order, their number, their end.

use std::time::{Duration, Instant};

use tower_distributed_lock::{ErrorKind, LockManager};

use super::WAIT;
use crate::nodes::Store;
use crate::support::{eventually_no_trace, soon};

on_every_store! {
    Store:
    waiters_get_the_lock_in_order_of_arrival
    a_wait_ends_when_it_should
    a_waiter_that_gave_up_is_passed_over
    a_waiter_dropped_at_any_moment_leaves_no_lock
    too_many_waiters_are_refused
    too_many_waiters_for_all_keys_together_are_refused
    ten_thousand_wait_for_one_key_and_are_served_in_order
}

async fn waiters_get_the_lock_in_order_of_arrival(store: Store) {
    let locks = store.locks().await;
    let guard = locks.try_acquire("a").await.unwrap();
    let mut waiting = Vec::new();
    for number in 0..20 {
        let mut acquire = Box::pin(locks.acquire("a", WAIT));
        // The first poll puts it into the queue.
        assert!(futures_util::poll!(&mut acquire).is_pending());
        waiting.push((number, acquire));
    }
    drop(guard);
    let mut last = 0;
    for (number, acquire) in waiting {
        let guard = soon("the next waiter is served", acquire).await.unwrap();
        assert!(guard.fencing_token() > last, "waiter {number}");
        last = guard.fencing_token();
    }
}

async fn a_wait_ends_when_it_should(store: Store) {
    let locks = store.locks().await;
    let _guard = locks.try_acquire("a").await.unwrap();
    let started = Instant::now();
    let error = locks
        .acquire("a", Duration::from_millis(50))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert!(started.elapsed() >= Duration::from_millis(50));
    let error = locks.acquire("a", Duration::ZERO).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Held, "it did not wait");
}

async fn a_waiter_that_gave_up_is_passed_over(store: Store) {
    let locks = store.locks().await;
    let guard = locks.try_acquire("a").await.unwrap();
    let mut first = Box::pin(locks.acquire("a", WAIT));
    let mut second = Box::pin(locks.acquire("a", WAIT));
    assert!(futures_util::poll!(&mut first).is_pending());
    assert!(futures_util::poll!(&mut second).is_pending());
    drop(first);
    drop(guard);
    drop(soon("the second is served", second).await.unwrap());
}

async fn a_waiter_dropped_at_any_moment_leaves_no_lock(store: Store) {
    let locks = store.locks().await;
    for polls in 0..6 {
        for held in [false, true] {
            let guard = match held {
                true => Some(locks.try_acquire("a").await.unwrap()),
                false => None,
            };
            let mut acquire = Box::pin(locks.acquire("a", WAIT));
            for _ in 0..polls {
                if futures_util::poll!(&mut acquire).is_ready() {
                    break;
                }
                tokio::task::yield_now().await;
            }
            drop(guard);
            drop(acquire);
            let next = soon("the lock is free", locks.acquire("a", WAIT))
                .await
                .unwrap();
            next.release().await.unwrap();
        }
    }
    if let Some(server) = &store.server {
        eventually_no_trace(&server.client().await).await;
    }
}

async fn too_many_waiters_are_refused(store: Store) {
    let locks = store
        .manager(LockManager::builder().max_waiters_per_key(2))
        .await;
    let guard = locks.try_acquire("a").await.unwrap();
    let mut first = Box::pin(locks.acquire("a", WAIT));
    let mut second = Box::pin(locks.acquire("a", WAIT));
    assert!(futures_util::poll!(&mut first).is_pending());
    assert!(futures_util::poll!(&mut second).is_pending());
    let error = locks.acquire("a", WAIT).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::QueueFull);
    drop(guard);
    drop(soon("the first is served", first).await.unwrap());
    drop(soon("the second is served", second).await.unwrap());
}

async fn too_many_waiters_for_all_keys_together_are_refused(store: Store) {
    let locks = store.manager(LockManager::builder().max_waiters(2)).await;
    let held: Vec<_> =
        futures_util::future::join_all(["a", "b", "c"].map(|key| locks.acquire(key, WAIT))).await;
    let mut first = Box::pin(locks.acquire("a", WAIT));
    let mut second = Box::pin(locks.acquire("b", WAIT));
    assert!(futures_util::poll!(&mut first).is_pending());
    assert!(futures_util::poll!(&mut second).is_pending());
    let error = locks.acquire("c", WAIT).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::QueueFull);
    // A request that does not wait does not count.
    let error = locks.try_acquire("c").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Held);
    // A waiter that leaves makes room.
    drop(second);
    let mut third = Box::pin(locks.acquire("c", WAIT));
    assert!(futures_util::poll!(&mut third).is_pending());
    drop(held);
    drop(soon("the first is served", first).await.unwrap());
    drop(soon("the third is served", third).await.unwrap());
}

async fn ten_thousand_wait_for_one_key_and_are_served_in_order(store: Store) {
    let locks = store.locks().await;
    let guard = locks.try_acquire("a").await.unwrap();
    let mut last = guard.fencing_token();
    let mut waiting: Vec<_> = (0..10_000)
        .map(|_| Box::pin(locks.acquire("a", 3 * WAIT)))
        .collect();
    for waiter in &mut waiting {
        assert!(futures_util::poll!(waiter).is_pending());
    }
    drop(guard);
    for waiter in waiting {
        let guard = soon("the next is served", waiter).await.unwrap();
        assert!(guard.fencing_token() > last);
        last = guard.fencing_token();
    }
}
