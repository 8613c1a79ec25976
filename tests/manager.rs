//! The lock manager, over memory and over Redis: one suite for both, and what only Redis can show.

mod common;

use std::time::{Duration, Instant};

use common::{
    RedisServer, connections_per_manager, eventually, eventually_no_trace, has_resp3, minute,
    queue_length, run, script_calls, short_lived, soon, value,
};
use futures_util::StreamExt;
use tower_distributed_lock::{ErrorKind, LockManager, LostReason};

const WAIT: Duration = common::PATIENCE;

/// A store to test, with whatever keeps it alive.
struct Store {
    server: Option<RedisServer>,
}

impl Store {
    async fn manager(&self, builder: tower_distributed_lock::LockManagerBuilder) -> LockManager {
        match &self.server {
            Some(server) => builder.connect(&server.url()).await.unwrap(),
            None => builder.in_memory().unwrap(),
        }
    }

    async fn locks(&self) -> LockManager {
        self.manager(LockManager::builder()).await
    }
}

macro_rules! on_every_store {
    ($($name:ident)*) => {
        mod over_memory {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(super::Store { server: None }).await;
            })*
        }
        mod over_redis {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let server = super::RedisServer::start().await;
                super::$name(super::Store { server: Some(server) }).await;
            })*
        }
    };
}

on_every_store! {
    one_holds_and_the_other_is_refused
    fencing_tokens_rise_from_holder_to_holder
    waiters_get_the_lock_in_order_of_arrival
    a_wait_ends_when_it_should
    a_waiter_that_gave_up_is_passed_over
    a_waiter_dropped_at_any_moment_leaves_no_lock
    too_many_waiters_are_refused
    too_many_waiters_for_all_keys_together_are_refused
    ten_thousand_wait_for_one_key_and_are_served_in_order
    other_keys_are_not_affected
    a_lease_outlives_its_ttl_while_its_guard_lives
    max_hold_ends_a_hold_and_others_go_on
    release_says_that_the_lock_was_ours
    a_released_lease_says_so
    close_waits_for_guards_and_refuses_new_requests
    close_returns_while_a_release_is_on_its_way
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

async fn fencing_tokens_rise_from_holder_to_holder(store: Store) {
    let locks = store.locks().await;
    let mut last = 0;
    for round in 0..2000 {
        // Now and then with someone waiting, so that the lock is handed on in this process.
        let guard = locks.try_acquire("a").await.unwrap();
        assert!(guard.fencing_token() > last, "round {round}");
        assert!(i64::try_from(guard.fencing_token()).is_ok());
        last = guard.fencing_token();
        let waiting = tokio::spawn({
            let locks = locks.clone();
            async move { locks.acquire("a", WAIT).await.unwrap().fencing_token() }
        });
        if round % 2 == 0 {
            tokio::task::yield_now().await;
        }
        drop(guard);
        let next = waiting.await.unwrap();
        assert!(next > last, "round {round}");
        last = next;
    }
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
    assert_eq!(error.kind(), ErrorKind::TimedOut);
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
    // Who does not wait is none of them.
    let error = locks.try_acquire("c").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Held);
    // One that leaves makes room.
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
    // The holder may still be at work, so its lease runs out before the next one gets the lock.
    let next = soon("the waiter is served", waiting)
        .await
        .unwrap()
        .unwrap();
    assert!(next.fencing_token() > guard.fencing_token());
    // The release of the lost one does not touch the next.
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
        // Not eventually: close has waited for it.
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

async fn a_guard_dropped_outside_of_a_runtime_releases(store: Store) {
    let locks = store.locks().await;
    let guard = locks.try_acquire("a").await.unwrap();
    std::thread::spawn(move || drop(guard)).join().unwrap();
    drop(locks.try_acquire("a").await.unwrap());
}

async fn simultaneous_requests_never_overlap(store: Store) {
    use std::sync::atomic::{AtomicU32, Ordering};
    static INSIDE: [AtomicU32; 2] = [const { AtomicU32::new(0) }; 2];
    let inside = &INSIDE[usize::from(store.server.is_some())];
    // Two managers where they can share a store: contention inside a process, and between two.
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

// From here on: what only Redis can show.

#[tokio::test]
async fn the_owner_is_a_plain_string_with_an_expiry() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let locks = LockManager::connect(&server.url()).await.unwrap();
    let _guard = locks.try_acquire("account:7").await.unwrap();
    let owner = value(&redis, "lock:account:7").await.unwrap();
    let (manager, number) = owner.split_once(':').unwrap();
    assert_eq!(manager.len(), 32, "a UUID");
    assert!(number.parse::<u64>().is_ok());
    let redis::Value::Int(left) = run(&redis, "PTTL lock:account:7").await else {
        panic!("no number");
    };
    assert!((1..=10_000).contains(&left));
}

#[tokio::test]
async fn five_hundred_duplicates_cost_one_command() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let locks = LockManager::connect(&server.url()).await.unwrap();
    let before = script_calls(&redis).await;
    let mut results =
        futures_util::future::join_all((0..500).map(|_| locks.try_acquire("a"))).await;
    assert_eq!(script_calls(&redis).await - before, 1);
    let won: Vec<_> = results.extract_if(.., |result| result.is_ok()).collect();
    assert_eq!(won.len(), 1);
    assert!(results.iter().all(|result| {
        result
            .as_ref()
            .is_err_and(|error| error.kind() == ErrorKind::Held)
    }));
    // What is held here is known here.
    let before = script_calls(&redis).await;
    assert!(locks.try_acquire("a").await.is_err());
    assert_eq!(script_calls(&redis).await - before, 0);
}

#[tokio::test]
async fn a_release_hands_the_lock_to_the_waiting_process_at_once() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    // No fallback can be the explanation: it would take a minute.
    let one = minute().connect(&server.url()).await.unwrap();
    let two = minute().connect(&server.url()).await.unwrap();
    let guard = one.try_acquire("a").await.unwrap();
    let waiting =
        tokio::spawn(async move { two.acquire("a", WAIT).await.unwrap().fencing_token() });
    eventually("the other process waits", || async {
        queue_length(&redis, "a").await == 1
    })
    .await;
    let first = guard.fencing_token();
    drop(guard);
    assert!(soon("the waiter is served", waiting).await.unwrap() > first);
    eventually_no_trace(&redis).await;
}

#[tokio::test]
async fn a_grant_is_acted_upon_without_asking() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let one = minute().connect(&server.url()).await.unwrap();
    let two = minute().connect(&server.url()).await.unwrap();
    let client = redis::Client::open(server.url()).unwrap();
    let mut inboxes = client.get_async_pubsub().await.unwrap();
    inboxes.psubscribe("lock:inbox:*").await.unwrap();
    let guard = one.try_acquire("a").await.unwrap();
    let waiting = tokio::spawn(async move { two.acquire("a", WAIT).await.unwrap() });
    eventually("the other process waits", || async {
        queue_length(&redis, "a").await == 1
    })
    .await;
    drop(guard);
    let guard = soon("the waiter is served", waiting).await.unwrap();
    let mut messages = inboxes.on_message();
    let fence = loop {
        let message = soon("a message", messages.next()).await.unwrap();
        let text: String = message.get_payload().unwrap();
        if let Some(granted) = text.strip_prefix('g') {
            break granted.split(':').nth(1).unwrap().parse::<u64>().unwrap();
        }
    };
    // Whoever asks gets a fence of their own. Without RESP3, nobody can tell how old a grant is.
    match has_resp3() {
        true => assert_eq!(guard.fencing_token() / 1024, fence),
        false => assert!(guard.fencing_token() / 1024 > fence),
    }
}

/// What Redis has sent to a manager until now has been taken note of: messages that came before the answer to one
/// command have been before it sends the next.
async fn knows_what_was_said(locks: &LockManager) {
    for _ in 0..2 {
        let guard = locks.try_acquire("something else").await.unwrap();
        guard.release().await.unwrap();
    }
}

#[tokio::test]
async fn with_a_burst_of_zero_processes_take_turns() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let turns = minute().burst(0, Duration::ZERO);
    let one = turns.clone().connect(&server.url()).await.unwrap();
    let two = turns.connect(&server.url()).await.unwrap();
    let guard = one.try_acquire("a").await.unwrap();
    let mut waiting: Vec<_> = [&one, &two]
        .into_iter()
        .flat_map(|locks| (0..5).map(|_| Box::pin(locks.acquire("a", WAIT))))
        .collect();
    for waiter in &mut waiting {
        assert!(futures_util::poll!(waiter).is_pending());
    }
    eventually("the other process waits", || async {
        queue_length(&redis, "a").await == 1
    })
    .await;
    knows_what_was_said(&one).await;
    drop(guard);
    // Each notes when its turn came, and lets the next one go.
    let turns = futures_util::future::join_all(waiting.into_iter().map(|waiter| async {
        let guard = soon("its turn", waiter).await.unwrap();
        let token = guard.fencing_token();
        guard.release().await.unwrap();
        token
    }))
    .await;
    let mut order: Vec<_> = turns
        .iter()
        .zip(["one", "two"].iter().flat_map(|name| [name; 5]))
        .collect();
    order.sort_unstable();
    let order: Vec<_> = order.into_iter().map(|(_, name)| *name).collect();
    assert_eq!(order, ["two", "one"].repeat(5));
}

#[tokio::test]
async fn a_process_that_never_rests_lets_another_in() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let busy = LockManager::connect(&server.url()).await.unwrap();
    let other = LockManager::connect(&server.url()).await.unwrap();
    let guard = busy.try_acquire("a").await.unwrap();
    // A hundred more wait here, in line before the other process.
    let mut queue: Vec<_> = (0..100)
        .map(|_| Box::pin(busy.acquire("a", WAIT)))
        .collect();
    for waiter in &mut queue {
        assert!(futures_util::poll!(waiter).is_pending());
    }
    let waiting = tokio::spawn(async move {
        let guard = other.acquire("a", WAIT).await.unwrap();
        guard.fencing_token()
    });
    eventually("the other process waits", || async {
        queue_length(&redis, "a").await == 1
    })
    .await;
    knows_what_was_said(&busy).await;
    drop(guard);
    let mut served = Vec::new();
    for next in queue {
        let guard = soon("the next is served", next).await.unwrap();
        served.push(guard.fencing_token());
    }
    let other = soon("the other is served", waiting).await.unwrap();
    let before = served.iter().filter(|token| **token < other).count();
    assert!(before <= 20, "{before} went first");
}

#[tokio::test]
async fn a_waiter_that_leaves_leaves_no_trace_in_redis() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let one = LockManager::connect(&server.url()).await.unwrap();
    let two = LockManager::connect(&server.url()).await.unwrap();
    let guard = one.try_acquire("a").await.unwrap();
    let error = two
        .acquire("a", Duration::from_millis(50))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    eventually("it left the queue", || async {
        queue_length(&redis, "a").await == 0
    })
    .await;
    drop(guard);
    eventually_no_trace(&redis).await;
}

#[tokio::test]
async fn a_process_that_is_gone_is_skipped() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let one = minute().connect(&server.url()).await.unwrap();
    let two = minute().connect(&server.url()).await.unwrap();
    let mut monitor = redis::Client::open(server.url())
        .unwrap()
        .get_async_pubsub()
        .await
        .unwrap();
    // Somebody who listens to all channels does not make the dead look alive.
    for is_monitored in [false, true] {
        if is_monitored {
            monitor.psubscribe("*").await.unwrap();
        }
        let guard = one.try_acquire("a").await.unwrap();
        // First in line: a token of a process that nobody has heard of.
        run(
            &redis,
            "RPUSH {lock:a}:queue 00000000000000000000000000000000:1",
        )
        .await;
        let two = two.clone();
        let waiting = tokio::spawn(async move { two.acquire("a", WAIT).await?.release().await });
        eventually("the other process waits", || async {
            queue_length(&redis, "a").await == 2
        })
        .await;
        guard.release().await.unwrap();
        let owner = value(&redis, "lock:a").await;
        assert!(
            owner.is_none_or(|owner| !owner.starts_with("0000")),
            "the dead one was granted the lock, to be passed over only when its grant expires"
        );
        soon("the living one is served", waiting)
            .await
            .unwrap()
            .unwrap();
    }
}

#[tokio::test]
async fn flushed_scripts_are_loaded_again() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let locks = LockManager::connect(&server.url()).await.unwrap();
    for round in 0..3 {
        run(&redis, "SCRIPT FLUSH").await;
        let guard = locks.try_acquire("a").await.unwrap();
        run(&redis, "SCRIPT FLUSH").await;
        guard
            .release()
            .await
            .unwrap_or_else(|error| panic!("round {round}: {error}"));
    }
}

#[tokio::test]
async fn a_lock_that_somebody_deletes_is_lost_at_once() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    // With RESP3, Redis tells: the next renewal would be in twenty seconds. Without, that one tells.
    let builder = match has_resp3() {
        true => minute(),
        false => short_lived(1500),
    };
    let locks = builder.connect(&server.url()).await.unwrap();
    for harm in ["DEL lock:a", "SET lock:a somebody", "FLUSHALL"] {
        let guard = locks.try_acquire("a").await.unwrap();
        let before = script_calls(&redis).await;
        eventually("the lease has been looked at", || async {
            script_calls(&redis).await > before
        })
        .await;
        run(&redis, harm).await;
        assert_eq!(soon(harm, guard.lost()).await, LostReason::Taken, "{harm}");
        assert_eq!(
            guard.release().await.unwrap_err().kind(),
            ErrorKind::Lost,
            "{harm}"
        );
        run(&redis, "DEL lock:a").await;
    }
}

#[tokio::test]
async fn who_waits_goes_on_after_an_accident() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    // With RESP3, Redis tells of it: the time to live explains nothing. Without, that is what ends the wait.
    let builder = match has_resp3() {
        true => minute(),
        false => short_lived(1500),
    };
    let one = builder.clone().connect(&server.url()).await.unwrap();
    let two = builder.connect(&server.url()).await.unwrap();
    for harm in [
        "DEL lock:a",
        "FLUSHALL",
        "SCRIPT FLUSH",
        "CLIENT KILL TYPE normal",
        "CLIENT KILL TYPE pubsub",
    ] {
        let guard = one.try_acquire("a").await.unwrap();
        let before = script_calls(&redis).await;
        eventually("the lease has been looked at", || async {
            script_calls(&redis).await > before
        })
        .await;
        let locks = two.clone();
        let waiting = tokio::spawn(async move { locks.acquire("a", WAIT).await });
        eventually("the other process waits", || async {
            queue_length(&redis, "a").await == 1
        })
        .await;
        run(&redis, harm).await;
        if ["DEL lock:a", "FLUSHALL"].contains(&harm) {
            assert_eq!(soon(harm, guard.lost()).await, LostReason::Taken);
        }
        drop(guard);
        let guard = soon(harm, waiting).await.unwrap().unwrap();
        guard.release().await.unwrap();
        eventually("nothing is left", || async {
            value(&redis, "lock:a").await.is_none()
        })
        .await;
    }
}

#[tokio::test]
async fn a_release_never_touches_a_lock_that_is_not_ours_any_more() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let locks = LockManager::connect(&server.url()).await.unwrap();
    let guard = locks.try_acquire("a").await.unwrap();
    run(&redis, "SET lock:a somebody").await;
    assert_eq!(guard.release().await.unwrap_err().kind(), ErrorKind::Lost);
    assert_eq!(value(&redis, "lock:a").await.as_deref(), Some("somebody"));
}

#[tokio::test]
async fn a_textbook_client_excludes_us_and_we_go_on_as_soon_as_it_is_done() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let locks = LockManager::connect(&server.url()).await.unwrap();
    // With RESP3, Redis tells when it is done. Without, we look when its time to live is over.
    let ttl = if has_resp3() { 60_000 } else { 2000 };
    run(&redis, &format!("SET lock:a textbook NX PX {ttl}")).await;
    assert_eq!(
        locks.try_acquire("a").await.unwrap_err().kind(),
        ErrorKind::Held
    );
    let waiting = tokio::spawn(async move { locks.acquire("a", WAIT).await });
    eventually("we wait", || async { queue_length(&redis, "a").await == 1 }).await;
    // Asking a second time, we have Redis watch the key.
    let before = script_calls(&redis).await;
    if has_resp3() && before < 4 {
        eventually("Redis watches", || async {
            script_calls(&redis).await >= 3
        })
        .await;
    }
    run(&redis, "DEL lock:a").await;
    let guard = soon("we are served", waiting).await.unwrap().unwrap();
    assert_eq!(
        run(&redis, "SET lock:a textbook NX PX 60000").await,
        redis::Value::Nil
    );
    guard.release().await.unwrap();
    eventually_no_trace(&redis).await;
}

#[tokio::test]
async fn fencing_tokens_go_on_rising_whatever_happens_to_the_data() {
    let mut server = RedisServer::start().await;
    let mut last = 0;
    for harm in [
        "nothing",
        "DEL {lock:}:fence",
        "FLUSHALL",
        "a restart without data",
        "a clock set back",
    ] {
        match harm {
            "nothing" => {}
            "a restart without data" => {
                server.kill();
                server.restart().await;
            }
            "a clock set back" => {
                // As if the highest fence so far had been given out an hour from now.
                let redis = server.client().await;
                let redis::Value::Array(now) = run(&redis, "TIME").await else {
                    panic!("no time");
                };
                let seconds: u64 = redis::from_redis_value(now[0].clone()).unwrap();
                let later = (seconds + 3600) * 1_000_000;
                run(&redis, &format!("SET {{lock:}}:fence {later}")).await;
                last = last.max(later * 1024);
            }
            command => {
                run(&server.client().await, command).await;
            }
        }
        // From two processes.
        for _ in 0..2 {
            let locks = LockManager::connect(&server.url()).await.unwrap();
            for _ in 0..10 {
                let guard = locks.try_acquire("a").await.unwrap();
                assert!(
                    guard.fencing_token() > last,
                    "{harm}: {} after {last}",
                    guard.fencing_token()
                );
                last = guard.fencing_token();
                guard.release().await.unwrap();
            }
        }
    }
}

#[tokio::test]
async fn more_hand_offs_than_one_fence_has_tokens_for() {
    let server = RedisServer::start().await;
    let locks = LockManager::connect(&server.url()).await.unwrap();
    let guard = locks.try_acquire("a").await.unwrap();
    let mut last = guard.fencing_token();
    let mut queue: Vec<_> = (0..3000)
        .map(|_| Box::pin(locks.acquire("a", WAIT)))
        .collect();
    for waiter in &mut queue {
        assert!(futures_util::poll!(waiter).is_pending());
    }
    drop(guard);
    for waiter in queue {
        let guard = soon("the next is served", waiter).await.unwrap();
        assert!(guard.fencing_token() > last);
        last = guard.fencing_token();
    }
}

#[test]
fn a_runtime_that_is_dropped_leaves_no_lock() {
    let outer = tokio::runtime::Runtime::new().unwrap();
    let server = outer.block_on(RedisServer::start());
    let redis = outer.block_on(server.client());
    for flavor in ["current thread", "multi thread"] {
        let inner = match flavor {
            "current thread" => tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap(),
            _ => tokio::runtime::Runtime::new().unwrap(),
        };
        let locks = inner.block_on(async {
            let locks = LockManager::connect(&server.url()).await.unwrap();
            let guard = locks.try_acquire("a").await.unwrap();
            inner.spawn(async move {
                let _guard = guard;
                std::future::pending::<()>().await;
            });
            locks
        });
        assert!(outer.block_on(value(&redis, "lock:a")).is_some());
        drop(inner);
        outer.block_on(eventually_no_trace(&redis));
        // And the manager goes on to work, from any other runtime.
        let guard = outer
            .block_on(async { soon("it works", locks.try_acquire("a")).await })
            .unwrap();
        outer.block_on(guard.release()).unwrap();
    }
}

#[tokio::test]
async fn a_manager_has_the_same_connections_for_any_number_of_requests() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let count = |list: redis::Value| {
        redis::from_redis_value::<String>(list)
            .unwrap()
            .lines()
            .count()
    };
    let before = count(run(&redis, "CLIENT LIST").await);
    let locks = LockManager::connect(&server.url()).await.unwrap();
    let tasks = (0..500).map(|key| {
        let locks = locks.clone();
        async move {
            let _guard = locks.acquire(format!("{}", key % 50), WAIT).await.unwrap();
            tokio::task::yield_now().await;
        }
    });
    futures_util::future::join_all(tasks).await;
    assert_eq!(
        count(run(&redis, "CLIENT LIST").await),
        before + connections_per_manager()
    );
    drop(locks);
    eventually("the connection is closed with the last handle", || async {
        count(run(&redis, "CLIENT LIST").await) == before
    })
    .await;
}
