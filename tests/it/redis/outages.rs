//! A Redis that does not run, does not reply, or is cut off.

use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tower_distributed_lock::{ErrorKind, LockManager, LostReason};

use super::{TIMEOUT, impatient, recovers, unavailable};
use crate::support::{
    ClosedPort, Mode, PATIENCE, Proxy, RedisServer, clients, eventually, eventually_no_trace,
    eventually_queued, knows_what_was_said, minute, run, script_calls, short_lived, soon, value,
};

#[tokio::test]
async fn not_running_at_start_connect_says_where_and_why() {
    let nobody = ClosedPort::new();
    let port = nobody.port();
    let url = format!("redis://user:secret@127.0.0.1:{port}");
    let error = LockManager::connect(&url).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let text = error.to_string();
    assert!(text.contains(&format!("127.0.0.1:{port}")), "{text}");
    assert!(text.to_lowercase().contains("connection refused"), "{text}");
    assert!(!error.to_string().contains("secret") && !format!("{error:?}").contains("secret"));
    let source = std::error::Error::source(&error).expect("the error of the client");
    assert!(text.contains(&source.to_string()), "{text}: {source}");
    assert!(!format!("{source:?}").contains("secret"), "{source:?}");
}

#[tokio::test]
async fn started_lazily_it_works_as_soon_as_redis_does() {
    let mut server = RedisServer::start().await;
    let url = server.url();
    server.kill();
    let locks = impatient().connect_lazy(&url).unwrap();
    let text = unavailable(&locks).await.to_string();
    assert!(text.to_lowercase().contains("connection refused"), "{text}");
    let error = locks.acquire("a", PATIENCE).await.unwrap_err();
    assert_eq!(
        error.kind(),
        ErrorKind::Unavailable,
        "a refusal is told at once"
    );
    server.restart().await;
    // The very next request works: it does not wait until a pause between attempts is over.
    soon("a result", locks.try_acquire("a"))
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
}

#[tokio::test]
async fn a_server_that_never_answers_is_told_within_the_command_timeout() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    let started = Instant::now();
    let error = impatient().connect(&url).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(
        error.to_string().contains("no answer within 300ms"),
        "{error}"
    );
    let locks = impatient().connect_lazy(&url).unwrap();
    unavailable(&locks).await;
    let error = locks.acquire("a", PATIENCE).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    // Three times the timeout would do. This shows only that none of them waited for something
    // else.
    assert!(started.elapsed() < PATIENCE);
    drop(listener);
}

#[tokio::test]
async fn a_wait_for_a_holder_of_the_same_process_ends_as_one_for_a_holder_also_in_an_outage() {
    let server = RedisServer::start().await;
    let proxy = Proxy::start(server.port).await;
    let locks = minute().connect(&proxy.url()).await.unwrap();
    let guard = locks.try_acquire("a").await.unwrap();
    proxy.set(Mode::Close);
    eventually("the connection is gone", || async {
        !locks.stats().is_store_up
    })
    .await;
    let error = locks.acquire("a", Duration::from_millis(50)).await;
    assert!(guard.lease().is_held());
    assert_eq!(error.unwrap_err().kind(), ErrorKind::TimedOut);
}

#[tokio::test]
async fn after_repeated_failures_requests_are_answered_at_once_until_redis_is_back() {
    let server = RedisServer::start().await;
    let proxy = Proxy::start(server.port).await;
    let locks = impatient().connect(&proxy.url()).await.unwrap();
    proxy.set(Mode::Hold);
    let all = async {
        // If each waited for the timeout, it would take two minutes.
        for _ in 0..400 {
            unavailable(&locks).await;
        }
    };
    soon("they are answered", all).await;
    proxy.set(Mode::Forward);
    recovers(&locks).await;
}

#[tokio::test]
async fn answers_that_stop_are_noticed_and_what_arrives_late_leaves_no_lock() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    for mode in [Mode::Hold, Mode::HoldAnswers] {
        let proxy = Proxy::start(server.port).await;
        let locks = impatient()
            .ttl(Duration::from_secs(60))
            .connect(&proxy.url())
            .await
            .unwrap();
        proxy.set(mode);
        unavailable(&locks).await;
        let error = locks.acquire("a", PATIENCE).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        // What was kept back gets through now: commands whose requests have given up.
        proxy.set(Mode::Forward);
        recovers(&locks).await;
        eventually_no_trace(&redis).await;
    }
}

#[tokio::test]
async fn a_server_that_is_stopped_for_a_while_is_used_again() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let locks = impatient()
        .ttl(Duration::from_secs(60))
        .connect(&server.url())
        .await
        .unwrap();
    let guard = locks.try_acquire("held").await.unwrap();
    server.signal("-STOP");
    for _ in 0..3 {
        unavailable(&locks).await;
    }
    server.signal("-CONT");
    recovers(&locks).await;
    // The lease did not run out, and is still ours.
    guard.release().await.unwrap();
    // None of the requests that were refused has left a lock, though the server has read them all
    // by now.
    eventually_no_trace(&redis).await;
}

#[tokio::test]
async fn a_loss_is_told_before_the_server_can_have_expired_the_lease() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let proxy = Proxy::start(server.port).await;
    for mode in [Mode::Hold, Mode::HoldAnswers, Mode::Close] {
        let locks = short_lived(1500)
            .command_timeout(TIMEOUT)
            .connect(&proxy.url())
            .await
            .unwrap();
        let guard = locks.try_acquire("a").await.unwrap();
        let lease = guard.lease().clone();
        let before = script_calls(&redis).await;
        eventually("it has been renewed", || async {
            script_calls(&redis).await > before
        })
        .await;
        proxy.set(mode);
        assert_eq!(
            soon("the loss is told", guard.lost()).await,
            LostReason::Expired
        );
        assert!(!lease.is_held());
        assert!(
            value(&redis, "lock:a").await.is_some(),
            "{mode:?}: the server had expired it before"
        );
        drop(guard);
        proxy.set(Mode::Forward);
        recovers(&locks).await;
        eventually_no_trace(&redis).await;
    }
}

#[tokio::test]
async fn one_failed_renewal_is_not_a_loss() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let proxy = Proxy::start(server.port).await;
    let locks = short_lived(3000)
        .command_timeout(TIMEOUT)
        .connect(&proxy.url())
        .await
        .unwrap();
    let guard = locks.try_acquire("a").await.unwrap();
    let inboxes = async || {
        let clients = clients(&redis).await;
        clients
            .iter()
            .filter(|client| client.contains(" sub=1 "))
            .count()
    };
    for _ in 0..4 {
        eventually("it is connected", async || inboxes().await == 1).await;
        proxy.set(Mode::Close);
        eventually("it is cut off", async || inboxes().await == 0).await;
        proxy.set(Mode::Forward);
    }
    let held_since = Instant::now();
    while held_since.elapsed() < Duration::from_secs(4) {
        assert!(guard.lease().is_held());
        assert!(value(&redis, "lock:a").await.is_some());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    guard.release().await.unwrap();
}

#[tokio::test]
async fn a_connection_that_is_killed_costs_no_request() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let one = LockManager::builder().ttl(Duration::from_secs(60));
    let (one, two) = (
        one.clone().connect(&server.url()).await.unwrap(),
        one.connect(&server.url()).await.unwrap(),
    );
    let guard = one.try_acquire("held").await.unwrap();
    let waiter = two.clone();
    let waiting = tokio::spawn(async move { waiter.acquire("held", PATIENCE).await });
    eventually_queued(&redis, "held", 1).await;
    knows_what_was_said(&two).await;
    for round in 0..20 {
        run(&redis, "CLIENT KILL TYPE normal SKIPME yes").await;
        run(&redis, "CLIENT KILL TYPE pubsub SKIPME yes").await;
        one.try_acquire(format!("{round}"))
            .await
            .unwrap()
            .release()
            .await
            .unwrap();
    }
    guard.release().await.unwrap();
    // The inbox was gone for a moment, so the grant may have been missed, but not for long.
    soon("the waiter is served", waiting)
        .await
        .unwrap()
        .unwrap()
        .release()
        .await
        .unwrap();
    eventually_no_trace(&redis).await;
}

#[tokio::test]
async fn restarted_empty_the_lock_is_lost_and_the_next_request_works() {
    let mut server = RedisServer::start().await;
    let locks = LockManager::builder()
        .ttl(Duration::from_secs(60))
        .connect(&server.url())
        .await
        .unwrap();
    let guard = locks.try_acquire("a").await.unwrap();
    server.kill();
    server.restart().await;
    // The next renewal would be in twenty seconds. The manager looks at the lock as soon as the
    // server is back.
    assert_eq!(
        soon("the loss is told", guard.lost()).await,
        LostReason::Taken
    );
    let again = locks.try_acquire("a").await.unwrap();
    assert!(again.fencing_token() > guard.fencing_token());
    drop(guard);
    again.release().await.unwrap();
}

#[tokio::test]
async fn a_server_that_is_loading_its_data_is_waited_for() {
    let file = ["--dbfilename", "dump.rdb", "--rdbcompression", "no"];
    let mut server = RedisServer::start_with(&file).await;
    let redis = server.client().await;
    run(&redis, "DEBUG POPULATE 2000 key 20000").await;
    run(&redis, "SAVE").await;
    let locks = LockManager::connect(&server.url()).await.unwrap();
    locks
        .try_acquire("a")
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    server.kill();
    // At a millisecond for each key, this takes two seconds. It answers after every two megabytes.
    server.restart_with(&["--key-load-delay", "1000"]).await;
    let error = unavailable(&locks).await;
    assert!(
        error.to_string().to_lowercase().contains("loading"),
        "{}",
        error.to_string()
    );
    recovers(&locks).await;
}
