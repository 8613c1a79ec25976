//! Those who wait while Redis is away.

use std::time::{Duration, Instant};

use tower_distributed_lock::{
    DistributedLockLayer, ErrorKind, LockManager,
    lock::{OnUnavailable, Unlocked},
};

use super::{TIMEOUT, recovers};
use crate::support::{
    Mode, PATIENCE, Proxy, RedisServer, eventually, eventually_no_trace, eventually_queued,
    knows_what_was_said, run, short_lived, soon, value,
};

#[tokio::test]
async fn a_wait_ends_on_time_though_redis_does_not_answer_and_says_so() {
    let server = RedisServer::start().await;
    let proxy = Proxy::start(server.port).await;
    let locks = LockManager::builder()
        .command_timeout(Duration::from_secs(9))
        .connect(&proxy.url())
        .await
        .unwrap();
    proxy.set(Mode::Hold);
    let started = Instant::now();
    let error = locks
        .acquire("a", Duration::from_millis(100))
        .await
        .unwrap_err();
    // It must not say that the lock is held, which may well be free.
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(started.elapsed() < Duration::from_secs(8));
}

#[tokio::test]
async fn a_layer_whose_wait_ends_before_redis_answers_takes_it_for_unavailable() {
    use tower::{Layer, ServiceExt};
    let server = RedisServer::start().await;
    let proxy = Proxy::start(server.port).await;
    let locks = LockManager::builder().command_timeout(Duration::from_secs(9));
    let locks = locks.connect(&proxy.url()).await.unwrap();
    proxy.set(Mode::Hold);
    let layer = DistributedLockLayer::new(locks, |_: &http::request::Parts| "a")
        .wait(Duration::from_millis(100));
    let answer = async |layer: &DistributedLockLayer, content_type: &str| {
        let handler = tower::service_fn(async |request: http::Request<String>| {
            assert!(request.extensions().get::<Unlocked>().is_some());
            Ok::<_, std::convert::Infallible>(http::Response::new(String::new()))
        });
        let request = http::Request::post("/").header("content-type", content_type);
        let request = request.body(String::new()).unwrap();
        let answer = layer.layer(handler).oneshot(request);
        soon("a result", answer).await.unwrap()
    };
    assert_eq!(answer(&layer, "text/plain").await.status(), 503);
    let grpc = answer(&layer, "application/grpc").await;
    assert_eq!(grpc.headers()["grpc-status"], "14");
    let proceeds = layer.on_unavailable(OnUnavailable::Proceed);
    assert_eq!(answer(&proceeds, "text/plain").await.status(), 200);
}

#[tokio::test]
async fn a_wait_that_ends_while_redis_is_away_says_so_and_one_that_does_not_goes_on() {
    let mut server = RedisServer::start().await;
    let redis = server.client().await;
    let (one, two) = (
        LockManager::connect(&server.url()).await.unwrap(),
        LockManager::connect(&server.url()).await.unwrap(),
    );
    let guard = one.try_acquire("a").await.unwrap();
    let (short, long) = (two.clone(), two.clone());
    let short = tokio::spawn(async move { short.acquire("a", Duration::from_secs(2)).await });
    let long = tokio::spawn(async move { long.acquire("a", PATIENCE).await });
    eventually_queued(&redis, "a", 1).await;
    knows_what_was_said(&two).await;
    server.kill();
    let error = soon("a result", short).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    server.restart().await;
    drop(guard);
    soon("the other goes on", long)
        .await
        .unwrap()
        .unwrap()
        .release()
        .await
        .unwrap();
}

#[tokio::test]
async fn a_wait_outlasts_an_outage_that_is_longer_than_the_time_to_live() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let proxy = Proxy::start(server.port).await;
    let one = short_lived(1000).connect(&server.url()).await.unwrap();
    let two = short_lived(1000).connect(&proxy.url()).await.unwrap();
    let guard = one.try_acquire("a").await.unwrap();
    let waiting = tokio::spawn({
        let two = two.clone();
        async move { two.acquire("a", PATIENCE).await }
    });
    eventually_queued(&redis, "a", 1).await;
    knows_what_was_said(&two).await;
    proxy.set(Mode::Close);
    // This is the outage itself.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert!(!waiting.is_finished());
    proxy.set(Mode::Forward);
    drop(guard);
    let guard = soon("it is served", waiting).await.unwrap().unwrap();
    guard.release().await.unwrap();
    eventually_no_trace(&redis).await;
}

/// An acquire attempt is on its way, no reply comes, and in the end only a request that does not
/// wait is left.
#[tokio::test]
async fn requests_that_join_and_leave_while_redis_is_silent_leave_nothing_behind() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let proxy = Proxy::start(server.port).await;
    let other = short_lived(1000).connect(&server.url()).await.unwrap();
    let locks = short_lived(1000).command_timeout(TIMEOUT);
    let locks = locks.connect(&proxy.url()).await.unwrap();
    let held = other.try_acquire("a").await.unwrap();
    let mut patient = Box::pin(locks.acquire("a", PATIENCE));
    assert!(futures_util::poll!(&mut patient).is_pending());
    // Other keys, whose replies are to come together with those for the first.
    let mut guards = Vec::new();
    let mut waiting = Vec::new();
    for number in 0..40 {
        let key = format!("other {number}");
        guards.push(other.try_acquire(&key).await.unwrap());
        let locks = locks.clone();
        waiting.push(tokio::spawn(async move {
            locks.acquire(key, PATIENCE).await.map(drop)
        }));
    }
    eventually_queued(&redis, "a", 1).await;
    eventually_queued(&redis, "other 39", 1).await;

    // A message says that the lock has changed, so the slot asks Redis again. That command does not
    // arrive.
    proxy.set(Mode::HoldRequests);
    let token = run(&redis, "LRANGE {lock:a}:queue 0 0").await;
    let token: Vec<String> = redis::from_redis_value(token).unwrap();
    let (process, number) = token[0].split_once(':').unwrap();
    let message = format!("PUBLISH lock:inbox:{process} c{number}:lock:a");
    run(&redis, &message).await;
    // While the slot asks Redis, a request that does not wait gets no answer at once.
    let mut impatient = loop {
        let mut impatient = Box::pin(locks.try_acquire("a"));
        if futures_util::poll!(&mut impatient).is_pending() {
            break impatient;
        }
        tokio::task::yield_now().await;
    };
    drop(patient);
    let error = soon("a result", &mut impatient).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    drop((held, guards));
    eventually("the locks are free", || async {
        value(&redis, "lock:a").await.is_none() && value(&redis, "lock:other 39").await.is_none()
    })
    .await;

    proxy.set(Mode::Forward);
    for waiting in waiting {
        soon("its turn", waiting).await.unwrap().unwrap();
    }
    eventually_no_trace(&redis).await;
    recovers(&locks).await;
}
