//! Commands whose connection dies, and replies that make no sense.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tower_distributed_lock::{ErrorKind, LockManager};

use super::proxies::{closing, garbling, silencing, unsubscribing};
use super::unavailable;
use crate::support::{
    Gate, PATIENCE, RedisServer, eventually, eventually_no_trace, expires_in, has_resp3, minute,
    run, soon, value,
};

#[tokio::test]
async fn a_connection_that_dies_at_every_command_is_told_after_two_attempts() {
    let server = RedisServer::start().await;
    let (port, closed) = closing(server.port, b"$6\r\nlock:a\r\n", usize::MAX, None).await;
    let locks = LockManager::connect(&format!("redis://127.0.0.1:{port}"))
        .await
        .unwrap();
    unavailable(&locks).await;
    // The release that follows may have been sent as well.
    assert!(closed.load(Ordering::SeqCst) <= 10);
}

#[tokio::test]
async fn a_copy_of_a_command_that_arrives_after_the_release_is_undone_as_soon_as_somebody_waits() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let late = Some(Duration::from_millis(200));
    let (port, _) = closing(server.port, b"$6\r\nlock:a\r\n", 1, late).await;
    let minute = LockManager::builder().ttl(Duration::from_secs(60));
    let locks = minute
        .clone()
        .connect(&format!("redis://127.0.0.1:{port}"))
        .await
        .unwrap();
    let other = minute.connect(&server.url()).await.unwrap();
    // The first attempt is cut off, and the second gets the lock. The first arrives after the
    // release.
    let guard = locks.try_acquire("a").await.unwrap();
    drop(guard);
    eventually("the late copy has taken the lock", || async {
        value(&redis, "lock:a").await.is_some()
    })
    .await;
    let guard = soon("the other is served", other.acquire("a", PATIENCE))
        .await
        .unwrap();
    drop(guard);
    eventually_no_trace(&redis).await;
}

#[tokio::test]
async fn a_reply_of_a_wrong_form_is_refused_and_what_it_hides_is_released() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    for reply in [
        "$1\r\nx\r\n",
        ":9007199254740993\r\n",
        "+OK\r\n",
        "*0\r\n",
        "_\r\n",
    ] {
        let locks = LockManager::builder().ttl(Duration::from_secs(60));
        let url = garbling(server.port, reply).await;
        let locks = locks.connect_lazy(&url).unwrap();
        let asked = tokio::spawn({
            let locks = locks.clone();
            async move { locks.try_acquire("a").await.map(drop) }
        });
        let error = soon("a result", asked)
            .await
            .expect("no panic")
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{reply:?}");
        assert!(error.to_string().contains("form"), "{error}");
        eventually_no_trace(&redis).await;
    }
}

#[tokio::test]
async fn a_take_that_is_sent_again_lasts_for_a_whole_time_to_live_from_then_on() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let gate = Gate::new();
    let url = silencing(server.port, b"$6\r\nlock:a\r\n", gate.clone()).await;
    let locks = minute().connect(&url).await.unwrap();
    let taking = tokio::spawn(async move { locks.try_acquire("a").await });
    gate.arrived().await;
    eventually("the lock is taken", || async {
        value(&redis, "lock:a").await.is_some()
    })
    .await;
    // As if most of its time were over before the process connects again.
    run(&redis, "PEXPIRE lock:a 20000").await;
    gate.open();
    let guard = soon("it is taken", taking).await.unwrap().unwrap();
    assert!(expires_in(&redis, "lock:a").await > Duration::from_secs(40));
    guard.release().await.unwrap();
    eventually_no_trace(&redis).await;
}

/// The client library takes it for the reply to the oldest command, and every reply after it for
/// that of the command before. A proxy that keeps the inbox on a shard channel may send it.
#[tokio::test]
async fn an_unsubscribe_that_was_not_asked_for_is_no_reply_and_ends_the_connection() {
    if !has_resp3() {
        return;
    }
    let server = RedisServer::start().await;
    for kind in ["unsubscribe", "sunsubscribe", "punsubscribe"] {
        let (url, is_armed, connections) = unsubscribing(server.port, b"PING\r\n", kind).await;
        let locks = minute().connect(&url).await.unwrap();
        let before = connections.load(Ordering::SeqCst);
        is_armed.store(true, Ordering::SeqCst);
        soon("a reply", locks.ping()).await.unwrap();
        assert!(!is_armed.load(Ordering::SeqCst));
        let after = connections.load(Ordering::SeqCst);
        assert_eq!(after, before + 1, "{kind} was taken for a reply");
        let guard = locks.try_acquire("a").await.unwrap();
        guard.release().await.unwrap();
    }
}
