//! Locks, scripts and connections that others delete, in Redis.

use tower_distributed_lock::{ErrorKind, LockManager, LostReason};

use super::WAIT;
use crate::support::{
    RedisServer, eventually, eventually_no_trace, eventually_queued, has_resp3, minute, run,
    script_calls, short_lived, soon, value, watched_keys,
};

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
    // With RESP3, Redis tells, as the next renewal would be in twenty seconds. Without, the renewal
    // tells.
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
    // With RESP3, Redis tells, and the time to live explains nothing. Without, the time to live
    // ends the wait.
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
        eventually_queued(&redis, "a", 1).await;
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
    eventually_queued(&redis, "a", 1).await;
    if has_resp3() {
        eventually("Redis watches", || async { watched_keys(&redis).await > 0 }).await;
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
