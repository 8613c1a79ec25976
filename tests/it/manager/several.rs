//! Several keys at once, over every store: all or none, and no deadlock.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use futures_util::poll;
use tower_distributed_lock::{ErrorKind, Lease, LockGuards, LockManager, LostReason};

use super::WAIT;
use crate::nodes::{Nodes, Store};
use crate::support::random::Random;
use crate::support::{
    ClosedPort, PATIENCE, RedisServer, eventually, eventually_no_trace, eventually_queued, minute,
    run, short_lived, soon,
};

on_every_store! {
    Store:
    all_are_taken_or_none
    keys_are_sorted_and_each_is_taken_once
    the_wait_is_one_for_all_keys
    while_one_is_waited_for_those_before_it_are_kept_and_those_behind_it_are_free
    the_loss_of_one_is_the_loss_of_all_and_max_hold_counts_from_the_first
    calls_dropped_at_any_moment_leave_no_lock
    more_keys_than_allowed_are_refused
    a_manager_that_is_closed_takes_none
    calls_without_end_leave_time_for_other_tasks
}

mod between_nodes {
    use super::*;

    on_every_store! {
        Nodes:
        calls_that_name_the_same_keys_crosswise_are_all_served
    }

    /// Each task names its keys in an order of its own. A deadlock would last until the end of a
    /// wait, which fails the test.
    async fn calls_that_name_the_same_keys_crosswise_are_all_served(nodes: Nodes) {
        const KEYS: usize = 4;
        let inside: &[AtomicU32; KEYS] = Box::leak(Box::default());
        let tasks = (0..60).map(|task| {
            let locks = [&nodes.one, &nodes.two][task % 2].clone();
            tokio::spawn(async move {
                let mut random = Random::new(task as u64);
                for _ in 0..10 {
                    let mut keys = [0, 1, 2, 3];
                    for at in 1..KEYS {
                        keys.swap(at, random.below(at as u64 + 1) as usize);
                    }
                    let keys = &keys[..2 + task % 2];
                    let names = keys.iter().map(|key| ("key", *key));
                    let guards = locks.acquire_all(names, WAIT).await.unwrap();
                    for key in keys {
                        assert_eq!(inside[*key].fetch_add(1, Ordering::SeqCst), 0, "two inside");
                    }
                    tokio::task::yield_now().await;
                    for key in keys {
                        inside[*key].fetch_sub(1, Ordering::SeqCst);
                    }
                    drop(guards);
                }
            })
        });
        for task in soon("all are served", join_all(tasks)).await {
            task.unwrap();
        }
        nodes.are_at_rest().await;
    }
}

fn names(guards: &LockGuards) -> Vec<&str> {
    let leases = guards.leases().iter();
    leases.map(|lease| lease.key().as_str()).collect()
}

/// Does something while a call waits, which must not end meanwhile.
async fn meanwhile<T>(waiting: &mut (impl Future + Unpin), work: impl Future<Output = T>) -> T {
    tokio::select! {
        biased;
        _ = waiting => panic!("it must wait"),
        done = work => done,
    }
}

async fn is_free(locks: &LockManager, key: &str) -> bool {
    locks.try_acquire(key).await.is_ok()
}

async fn all_are_taken_or_none(store: Store) {
    let locks = store.locks().await;
    let guard = locks.try_acquire("b").await.unwrap();
    for wait in [Duration::ZERO, Duration::from_millis(50)] {
        let error = locks.acquire_all(["c", "b", "a"], wait).await.unwrap_err();
        let expected = match wait.is_zero() {
            true => ErrorKind::Held,
            false => ErrorKind::TimedOut,
        };
        assert_eq!(error.kind(), expected);
        assert_eq!(
            error.key().unwrap().as_str(),
            "b",
            "the one that was refused"
        );
        let shown = format!("{error} {error:?}");
        assert!(shown.contains(&error.key().unwrap().fingerprint()));
        assert!(is_free(&locks, "a").await && is_free(&locks, "c").await);
    }
    drop(guard);
    let guards = locks.try_acquire_all(["c", "b", "a"]).await.unwrap();
    for key in ["a", "b", "c"] {
        assert!(!is_free(&locks, key).await);
        let lease = guards.leases().get(key).unwrap();
        assert!(lease.is_held() && lease.fencing_token() > 0);
    }
    assert!(guards.is_held() && guards.leases().get("d").is_none());
    guards.release().await.unwrap();
    for key in ["a", "b", "c"] {
        assert!(is_free(&locks, key).await);
    }
    if let Some(server) = &store.server {
        eventually_no_trace(&server.client().await).await;
    }
}

async fn keys_are_sorted_and_each_is_taken_once(store: Store) {
    let locks = store.locks().await;
    let keys = ["b", "c", "a", "b", "b"];
    let guards = soon("no deadlock", locks.acquire_all(keys, WAIT)).await;
    let guards = guards.unwrap();
    assert_eq!(names(&guards), ["a", "b", "c"]);
    let before: Vec<u64> = guards.leases().iter().map(Lease::fencing_token).collect();
    drop(guards);
    let guards = locks.try_acquire_all(keys).await.unwrap();
    for (lease, before) in guards.leases().iter().zip(before) {
        assert!(lease.fencing_token() > before, "tokens rise per key");
    }
    let none = locks.try_acquire_all([] as [&str; 0]).await.unwrap_err();
    assert_eq!(none.kind(), ErrorKind::MissingKey);
    let invalid = locks.try_acquire_all(["d", ""]).await.unwrap_err();
    assert_eq!(invalid.kind(), ErrorKind::InvalidKey);
    assert!(is_free(&locks, "d").await);
}

async fn the_wait_is_one_for_all_keys(store: Store) {
    let locks = store.locks().await;
    let a = locks.try_acquire("a").await.unwrap();
    let _b = locks.try_acquire("b").await.unwrap();
    let started = Instant::now();
    let mut waiting = Box::pin(locks.acquire_all(["b", "a"], Duration::from_secs(1)));
    meanwhile(&mut waiting, tokio::time::sleep(Duration::from_millis(700))).await;
    drop(a);
    let error = soon("the wait ends", waiting).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert_eq!(error.key().unwrap().as_str(), "b", "it had `a` by then");
    let waited = started.elapsed();
    assert!(waited >= Duration::from_secs(1) && waited < Duration::from_millis(1600));
    assert!(is_free(&locks, "a").await);
}

async fn while_one_is_waited_for_those_before_it_are_kept_and_those_behind_it_are_free(
    store: Store,
) {
    let locks = store.manager(short_lived(300)).await;
    let guard = locks.try_acquire("b").await.unwrap();
    let waiting = tokio::spawn({
        let locks = locks.clone();
        async move { locks.acquire_all(["c", "b", "a"], WAIT).await }
    });
    eventually("it has the first", || async { !is_free(&locks, "a").await }).await;
    // Longer than a lease lives, unless it is renewed.
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(900) {
        assert!(!is_free(&locks, "a").await, "what it has is renewed");
        assert!(
            is_free(&locks, "c").await,
            "it keeps nothing that others may need first"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    guard.release().await.unwrap();
    let guards = soon("it is served", waiting).await.unwrap().unwrap();
    assert_eq!(names(&guards), ["a", "b", "c"]);
    assert!(guards.is_held());
}

async fn the_loss_of_one_is_the_loss_of_all_and_max_hold_counts_from_the_first(store: Store) {
    let builder = short_lived(300).max_hold(Duration::from_millis(600));
    let locks = store.manager(builder).await;
    let guard = locks.try_acquire("b").await.unwrap();
    let mut waiting = Box::pin(locks.acquire_all(["a", "b"], WAIT));
    meanwhile(&mut waiting, tokio::time::sleep(Duration::from_millis(400))).await;
    drop(guard);
    let guards = soon("it is served", waiting).await.unwrap();
    assert!(guards.is_held());
    let reason = soon("the loss is told", guards.lost()).await;
    assert_eq!(reason, LostReason::MaxHold);
    assert!(!guards.is_held());
    let [a, b] = guards.leases().as_slice() else {
        panic!("two keys")
    };
    assert!(
        !a.is_held(),
        "its time began while the other was waited for"
    );
    assert!(b.is_held(), "the others stay until the guard is dropped");
    assert!(!is_free(&locks, "b").await);
    let error = guards.release().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Lost);
    assert_eq!(error.key().unwrap().as_str(), "a");
    assert!(is_free(&locks, "b").await);
}

async fn calls_dropped_at_any_moment_leave_no_lock(store: Store) {
    let locks = store.manager(minute()).await;
    for polls in 0..10 {
        for held in [&[][..], &["a"], &["b"], &["c"], &["a", "c"]] {
            for wait in [Duration::ZERO, WAIT] {
                let guards = join_all(held.iter().map(|key| locks.try_acquire(*key))).await;
                assert!(guards.iter().all(Result::is_ok));
                let mut acquire = Box::pin(locks.acquire_all(["c", "b", "a"], wait));
                let mut guards = guards.into_iter();
                for poll in 0..polls {
                    if poll!(&mut acquire).is_ready() {
                        break;
                    }
                    tokio::task::yield_now().await;
                    if poll >= 4 {
                        // It goes on to wait for the next.
                        drop(guards.next());
                    }
                }
                drop(acquire);
                drop(guards);
                let all = locks.acquire_all(["a", "b", "c"], WAIT);
                let all = soon("all are free", all).await.unwrap();
                all.release().await.unwrap();
            }
        }
    }
    if let Some(server) = &store.server {
        eventually_no_trace(&server.client().await).await;
    }
}

async fn more_keys_than_allowed_are_refused(store: Store) {
    let locks = store.locks().await;
    assert!(locks.try_acquire_all(0..16).await.is_ok(), "the default");
    for wait in [Duration::ZERO, WAIT] {
        let error = locks.acquire_all(0..17, wait).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooManyKeys);
        assert!(error.to_string().contains("max_keys"), "{error}");
    }
    assert!(is_free(&locks, "0").await, "none was taken");
    let locks = store.manager(LockManager::builder().max_keys(2)).await;
    assert!(locks.try_acquire_all(["a", "b", "a", "b"]).await.is_ok());
    let error = locks.try_acquire_all(["a", "b", "c"]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooManyKeys);
}

async fn a_manager_that_is_closed_takes_none(store: Store) {
    let locks = store.locks().await;
    let guard = locks.try_acquire("b").await.unwrap();
    let mut waiting = Box::pin(locks.acquire_all(["a", "b"], WAIT));
    assert!(poll!(&mut waiting).is_pending());
    let has_a = eventually("it has `a`", || async { !is_free(&locks, "a").await });
    meanwhile(&mut waiting, has_a).await;
    let mut closing = Box::pin(locks.close());
    assert!(poll!(&mut closing).is_pending());
    let error = soon("it is told", waiting).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed);
    assert_eq!(error.key(), None, "it is not about one of the keys");
    let error = locks.try_acquire_all(["c", "d"]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed);
    drop(guard);
    soon("the manager is closed", closing).await;
}

#[tokio::test]
async fn a_lock_that_is_lost_while_another_is_waited_for_is_waited_for_again() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let builder = minute().max_hold(Duration::from_millis(200));
    let locks = builder.connect(&server.url()).await.unwrap();
    let others = minute().connect(&server.url()).await.unwrap();
    let b = others.try_acquire("b").await.unwrap();
    let mut waiting = Box::pin(locks.acquire_all(["a", "b"], WAIT));
    // It has `a` until its time is over, and does not hold others up for longer.
    let a = meanwhile(&mut waiting, async {
        eventually("it has `a`", || async { !is_free(&others, "a").await }).await;
        others.acquire("a", WAIT).await.unwrap()
    })
    .await;
    drop(b);
    // It gets `b`, and gives it back: it waits for `a` first.
    meanwhile(&mut waiting, async {
        eventually_queued(&redis, "a", 1).await;
        eventually("`b` is free", || async { is_free(&others, "b").await }).await;
    })
    .await;
    drop(a);
    let guards = soon("it is served", waiting).await.unwrap();
    assert!(guards.is_held());
    drop(guards);
    eventually_no_trace(&redis).await;
}

#[tokio::test]
async fn a_lock_that_another_client_deletes_is_the_loss_of_all() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let locks = minute().connect(&server.url()).await.unwrap();
    let guards = locks.try_acquire_all(["a", "b"]).await.unwrap();
    run(&redis, "DEL lock:b").await;
    let reason = soon("the loss is told", guards.lost()).await;
    assert_eq!(reason, LostReason::Taken);
    let error = guards.release().await.unwrap_err();
    assert_eq!(error.key().unwrap().as_str(), "b");
    eventually_no_trace(&redis).await;
}

#[tokio::test]
async fn where_redis_is_not_available_the_first_key_says_so() {
    let nobody = ClosedPort::new();
    let locks = LockManager::builder().connect_lazy(nobody.url()).unwrap();
    for wait in [Duration::ZERO, WAIT] {
        let acquire = locks.acquire_all(["b", "a"], wait);
        let error = soon("a refusal", acquire).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert_eq!(error.key().unwrap().as_str(), "a");
    }
}

/// Of one thread: a task that never lets others run would never end.
async fn calls_without_end_leave_time_for_other_tasks(store: Store) {
    let locks = store.locks().await;
    let _guard = locks.try_acquire("a").await.unwrap();
    let (ended, ends) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().build().unwrap();
        runtime.block_on(async {
            let calls = async {
                loop {
                    locks.try_acquire_all(["a", "b"]).await.unwrap_err();
                }
            };
            tokio::select! {
                () = calls => {}
                () = tokio::time::sleep(Duration::from_millis(20)) => {}
            }
        });
        let _ = ended.send(());
    });
    let is_over = tokio::task::spawn_blocking(move || ends.recv_timeout(PATIENCE));
    is_over.await.unwrap().expect("others have their turn");
}
