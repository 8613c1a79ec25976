//! How a lock goes from process to process, in Redis.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use tower_distributed_lock::{ErrorKind, LockGuard, LockManager, LostReason};

use super::WAIT;
use crate::redis::TIMEOUT;
use crate::support::{
    Mode, PATIENCE, Proxy, RedisServer, calls, eventually_no_trace, eventually_queued, has_resp3,
    knows_what_was_said, minute, run, short_lived, soon, value,
};

#[tokio::test]
async fn a_release_hands_the_lock_to_the_waiting_process_at_once() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    // No fallback can be the explanation, as it would take a minute.
    let one = minute().connect(&server.url()).await.unwrap();
    let two = minute().connect(&server.url()).await.unwrap();
    let guard = one.try_acquire("a").await.unwrap();
    let waiting =
        tokio::spawn(async move { two.acquire("a", WAIT).await.unwrap().fencing_token() });
    eventually_queued(&redis, "a", 1).await;
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
    eventually_queued(&redis, "a", 1).await;
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
    // A process that asks Redis gets a new fence. Without RESP3, it must ask, as it cannot tell how
    // old a grant is.
    match has_resp3() {
        true => assert_eq!(guard.fencing_token() / 1024, fence),
        false => assert!(guard.fencing_token() / 1024 > fence),
    }
}

/// Two processes that make way for each other after each request.
async fn in_turns(server: &RedisServer) -> [LockManager; 2] {
    let turns = minute().burst(0, Duration::ZERO);
    let one = turns.clone().connect(&server.url()).await.unwrap();
    [one, turns.connect(&server.url()).await.unwrap()]
}

#[tokio::test]
async fn with_a_burst_of_zero_processes_take_turns() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let [one, two] = in_turns(&server).await;
    let guard = one.try_acquire("a").await.unwrap();
    let mut waiting: Vec<_> = [&one, &two]
        .into_iter()
        .flat_map(|locks| (0..5).map(|_| Box::pin(locks.acquire("a", WAIT))))
        .collect();
    for waiter in &mut waiting {
        assert!(futures_util::poll!(waiter).is_pending());
    }
    eventually_queued(&redis, "a", 1).await;
    knows_what_was_said(&one).await;
    drop(guard);
    // Each notes when its turn came, and makes way for the next.
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
async fn a_process_that_makes_way_and_waits_again_leaves_the_fences_to_the_scripts() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let [one, two] = in_turns(&server).await;
    let guard = one.try_acquire("a").await.unwrap();
    let mut again = Box::pin(one.acquire("a", WAIT));
    assert!(futures_util::poll!(&mut again).is_pending());
    let waiting = tokio::spawn(async move { two.acquire("a", WAIT).await.unwrap() });
    eventually_queued(&redis, "a", 1).await;
    knows_what_was_said(&one).await;
    run(&redis, "CONFIG RESETSTAT").await;
    let first = guard.fencing_token();
    drop(guard);
    let guard = soon("the other is served", waiting).await.unwrap();
    let second = guard.fencing_token();
    drop(guard);
    let third = soon("its turn comes again", again).await.unwrap();
    assert!(first < second && second < third.fencing_token());
    let drawn = [calls(&redis, "incrby").await, calls(&redis, "eval").await];
    assert_eq!(drawn, [0, 0], "a count, or a seed");
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
    eventually_queued(&redis, "a", 1).await;
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
    eventually_queued(&redis, "a", 0).await;
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
    // A client that listens to all channels does not make dead processes look alive.
    for is_monitored in [false, true] {
        if is_monitored {
            monitor.psubscribe("*").await.unwrap();
        }
        let guard = one.try_acquire("a").await.unwrap();
        // First in line: a token of a process that does not exist.
        run(
            &redis,
            "RPUSH {lock:a}:queue 00000000000000000000000000000000:1",
        )
        .await;
        let two = two.clone();
        let waiting = tokio::spawn(async move { two.acquire("a", WAIT).await?.release().await });
        eventually_queued(&redis, "a", 2).await;
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
async fn a_grant_is_trusted_for_no_longer_than_the_process_that_gave_it_has_set() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let proxy = Proxy::start(server.port).await;
    let short = short_lived(300).connect(&server.url()).await.unwrap();
    let long = minute().connect(&proxy.url()).await.unwrap();
    let guard = short.try_acquire("a").await.unwrap();
    let waiting = tokio::spawn(async move { long.acquire("a", PATIENCE).await.unwrap() });
    eventually_queued(&redis, "a", 1).await;
    // The grant arrives, but no renewal gets through.
    proxy.set(Mode::HoldRequests);
    drop(guard);
    let begun = Instant::now();
    if !has_resp3() {
        // A grant that cannot be dated is confirmed first, and that command does not get through.
        drop(eventually_acquired(&short).await);
        assert!(!waiting.is_finished());
        return;
    }
    let granted = soon("the grant", waiting).await.unwrap();
    let third = eventually_acquired(&short).await;
    assert!(!granted.lease().is_held(), "after {:?}", begun.elapsed());
    assert!(third.fencing_token() > granted.fencing_token());
}

async fn eventually_acquired(locks: &LockManager) -> LockGuard {
    soon("the lock", async {
        loop {
            if let Ok(guard) = locks.try_acquire("a").await {
                return guard;
            }
        }
    })
    .await
}

/// By its settings, the queue would expire sooner. Nothing tells when the holder, which is a
/// foreign client, will be done.
#[tokio::test]
async fn a_process_with_a_short_time_to_live_does_not_end_the_wait_of_others() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let long = minute().connect(&server.url()).await.unwrap();
    let short = short_lived(100).connect(&server.url()).await.unwrap();
    run(&redis, "SET lock:a somebody").await;
    let waiting = tokio::spawn(async move { long.acquire("a", PATIENCE).await.map(drop) });
    eventually_queued(&redis, "a", 1).await;
    let error = short.acquire("a", TIMEOUT).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    let lasts: i64 = redis::from_redis_value(run(&redis, "PTTL {lock:a}:queue").await).unwrap();
    assert!(lasts > 60_000, "{lasts}");
    run(&redis, "DEL lock:a").await;
    soon("its turn", waiting).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_lock_that_is_lost_by_max_hold_is_free_at_once() {
    let server = RedisServer::start().await;
    let holder = minute()
        .max_hold(TIMEOUT)
        .connect(&server.url())
        .await
        .unwrap();
    let other = minute().connect(&server.url()).await.unwrap();
    let guard = holder.try_acquire("a").await.unwrap();
    let next = soon("its turn", other.acquire("a", PATIENCE))
        .await
        .unwrap();
    assert_eq!(guard.lease().lost_reason(), Some(LostReason::MaxHold));
    assert!(next.fencing_token() > guard.fencing_token());
    drop(guard);
    assert!(next.lease().is_held());
    next.release().await.unwrap();
}
