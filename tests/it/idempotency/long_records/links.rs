//! Links that are slow, or break: no lock waits for a long record, and what can be had is had in
//! time.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tower::{ServiceBuilder, service_fn};
use tower_distributed_lock::{DistributedLockLayer, LockManager, lock::RejectionKind};

use super::{
    MIB, Others, app, close_others, connected, content, expire_soon, has_parts, is_replay,
    is_short_replay, is_whole, layer, parts, patient,
};
use crate::once::{Answer, App, Runs, post, text};
use crate::support::{Mode, PATIENCE, Proxy, RedisServer, minute, sets, soon};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_lock_waits_for_a_long_record_that_is_written_or_read_over_a_slow_link() {
    let server = RedisServer::start().await;
    let proxy = Proxy::start(server.port).await;
    // Less time than a record takes.
    let limit = Duration::from_secs(3);
    let locks = LockManager::builder().ttl(limit).command_timeout(limit);
    let locks = locks.connect(&proxy.url()).await.unwrap();
    let (runs, body) = (Runs::default(), content(64 * MIB));
    let app = app(&locks, &runs, &body);
    let held = locks.try_acquire("held").await.unwrap();
    proxy.set(Mode::Throttle(12_500_000));
    for is_read in [false, true] {
        let others = Others::of(&locks);
        let mut answer = app.call(post("k"));
        // All of these got their locks before the record was through.
        let served = loop {
            tokio::select! {
                biased;
                answer = &mut answer => {
                    let answer = Answer::of(answer.unwrap()).await;
                    is_whole(&answer, &body);
                    assert_eq!(answer.is_replay(), is_read);
                    break others.served();
                }
                () = tokio::time::sleep(Duration::from_millis(20)) => {}
            }
        };
        others.end().await;
        assert!(
            served > 10,
            "only {served} were served in five seconds and more"
        );
        assert_eq!(held.lease().lost_reason(), None);
    }
    assert_eq!(runs.count(), 1);
    held.release().await.unwrap();
}

#[tokio::test]
async fn no_lock_waits_for_a_long_record_that_does_not_get_through() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let proxy = Proxy::start(server.port).await;
    let locks = patient().connect(&proxy.url()).await.unwrap();
    let (runs, body) = (Runs::default(), content(4 * MIB));
    let app = app(&locks, &runs, &body);
    let held = locks.try_acquire("held").await.unwrap();
    for _ in 0..2 {
        proxy.set(Mode::First(3 * MIB as u64 / 2));
        let answer = app.begin(post("k")).await;
        if runs.count() == 1 {
            has_parts(&redis, 1).await;
        }
        for number in 0..100 {
            let other = locks.try_acquire(format!("{number}")).await.unwrap();
            other.release().await.unwrap();
        }
        assert!(!answer.is_finished());
        proxy.set(Mode::Forward);
        is_whole(&soon("the response", answer).await.unwrap(), &body);
    }
    held.release().await.unwrap();
}

#[tokio::test]
async fn where_no_long_record_gets_through_the_answer_is_given_in_time_and_kept_without_its_body() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let proxy = Proxy::start(server.port).await;
    let limit = Duration::from_millis(300);
    let locks = minute().command_timeout(limit);
    let locks = locks.connect(&proxy.url()).await.unwrap();
    let (runs, body) = (Runs::default(), content(2 * MIB));
    let app = app(&locks, &runs, &body);
    proxy.set(Mode::First(MIB as u64 / 2));
    let started = Instant::now();
    is_whole(&app.send(post("k")).await, &body);
    // Ten timeouts for the parts, one to delete them, one for the record; and a slow machine.
    let took = started.elapsed();
    assert!(took < limit * 12 + Duration::from_secs(1), "{took:?}");
    is_short_replay(&app.send(post("k")).await);
    assert_eq!(runs.count(), 1);
    expire_soon(&redis, &parts(&redis).await).await;
}

#[tokio::test]
async fn a_long_record_that_cannot_be_had_is_told_in_time() {
    let server = RedisServer::start().await;
    let proxy = Proxy::start(server.port).await;
    let limit = Duration::from_millis(500);
    let locks = minute().command_timeout(limit);
    let locks = locks.connect(&proxy.url()).await.unwrap();
    let (runs, body) = (Runs::default(), content(4 * MIB));
    let app = app(&locks, &runs, &body);
    is_whole(&app.send(post("k")).await, &body);
    proxy.set(Mode::First(MIB as u64 / 2));
    let started = Instant::now();
    let all = join_all((0..20).map(|_| app.send(post("k")))).await;
    for answer in all {
        answer.is_rejected(503, RejectionKind::Unavailable);
    }
    let took = started.elapsed();
    assert!(took < limit * 11 + Duration::from_secs(1), "{took:?}");
    proxy.set(Mode::Forward);
    is_replay(&app.send(post("k")).await, &body);
}

#[tokio::test]
async fn a_part_that_fails_is_sent_again_and_not_those_before_it() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let proxy = Proxy::start(server.port).await;
    let locks = patient().connect(&proxy.url()).await.unwrap();
    let (runs, body) = (Runs::default(), content(8 * MIB - 1000));
    let before = sets(&redis).await;
    app(&locks, &runs, &content(1)).send(post("short")).await;
    let short = sets(&redis).await - before;
    let connected = connected(&redis).await;
    proxy.set(Mode::First(5 * MIB as u64 / 2));
    let app = app(&locks, &runs, &body);
    let answer = app.begin(post("k")).await;
    has_parts(&redis, 2).await;
    close_others(&redis, &connected).await;
    has_parts(&redis, 3).await;
    proxy.set(Mode::Forward);
    is_whole(&soon("the response", answer).await.unwrap(), &body);
    let long = sets(&redis).await - before - short;
    assert_eq!(long, short + 8);
    is_replay(&app.send(post("k")).await, &body);
}

#[tokio::test]
async fn a_connection_that_was_closed_while_nobody_used_it_fails_no_replay() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let locks = minute().connect(&server.url()).await.unwrap();
    let connected = connected(&redis).await;
    let (runs, body) = (Runs::default(), content(2 * MIB));
    let app = app(&locks, &runs, &body);
    is_whole(&app.send(post("k")).await, &body);
    for _ in 0..3 {
        close_others(&redis, &connected).await;
        let all = join_all((0..8).map(|_| app.send(post("k")))).await;
        for answer in all {
            is_replay(&answer, &body);
        }
    }
    // Nor does a closed connection fail a record that is written.
    close_others(&redis, &connected).await;
    is_whole(&app.send(post("l")).await, &body);
    is_replay(&app.send(post("l")).await, &body);
    assert_eq!(runs.count(), 2);
}

/// The handler is done. The time that its response takes to get to Redis does not count as its
/// hold.
#[tokio::test]
async fn an_answer_that_takes_longer_to_write_than_its_handler_may_hold_is_kept() {
    let server = RedisServer::start().await;
    let proxy = Proxy::start(server.port).await;
    let max_hold = Duration::from_millis(500);
    let locks = minute()
        .max_hold(max_hold)
        .connect(&proxy.url())
        .await
        .unwrap();
    let (runs, body) = (Runs::default(), content(4 * MIB));
    let app = app(&locks, &runs, &body);
    // This takes four times as long as the hold may.
    proxy.set(Mode::Throttle(2 << 20));
    is_whole(&app.send(post("k")).await, &body);
    proxy.set(Mode::Forward);
    is_replay(&app.send(post("k")).await, &body);
    assert_eq!(runs.count(), 1);
}

#[tokio::test]
async fn one_that_takes_too_long_is_kept_without_its_body_however_short_the_hold() {
    let server = RedisServer::start().await;
    let proxy = Proxy::start(server.port).await;
    let limit = Duration::from_millis(300);
    let locks = minute().command_timeout(limit).max_hold(limit);
    let locks = locks.connect(&proxy.url()).await.unwrap();
    let (runs, body) = (Runs::default(), content(20 * MIB));
    let app = app(&locks, &runs, &body);
    // Each part gets through, and all take longer than ten timeouts. What deletes them then has
    // to wait for the last one.
    proxy.set(Mode::Throttle(5 << 20));
    is_whole(&app.send(post("k")).await, &body);
    is_short_replay(&app.send(post("k")).await);
    assert_eq!(runs.count(), 1);
}

#[tokio::test]
async fn under_a_lock_outside_one_is_written_without_its_client() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let proxy = Proxy::start(server.port).await;
    let locks = patient().connect(&proxy.url()).await.unwrap();
    let (runs, body) = (Runs::default(), content(4 * MIB));
    let handler = runs.then({
        let body = body.clone();
        move |_, _| std::future::ready(Ok(text(body.clone())))
    });
    let stack = ServiceBuilder::new()
        .layer(DistributedLockLayer::new(locks.clone(), |_| "account").wait(PATIENCE))
        .layer(layer(&locks).wait(PATIENCE));
    let app = App::of(stack.service(service_fn(handler)));
    proxy.set(Mode::Throttle(4 << 20));
    let client = app.begin(post("k")).await;
    has_parts(&redis, 1).await;
    client.abort();
    proxy.set(Mode::Forward);
    is_replay(&app.send(post("k")).await, &body);
    assert_eq!(runs.count(), 1);
}
