//! What the `metrics` feature counts, read as Prometheus would read it.
//!
//! A program of its own, as a process has one recorder. The tests run one at a time, each
//! with a name of its own for its locks.
#![cfg(feature = "metrics")]
#![allow(unreachable_pub)]

mod boards;
#[allow(dead_code)] // Not all that it can do is used here.
#[path = "../support/once.rs"]
mod once;
mod scrape;
#[path = "../support/mod.rs"]
mod support;

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use once::{App, Runs, post};
use scrape::{all_attempts, attempts, becomes, find, install, sum};
use support::{
    Cluster, Gate, Mode, PATIENCE, Proxy, RedisServer, calls, eventually_queued, has_resp3,
    knows_what_was_said, minute, mixed_load, run, short_lived, soon,
};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_distributed_lock::{
    DistributedLockLayer, IdempotencyLayer, Lease, LockKey, LockManager, LostReason,
};

/// Begins a test. They run one at a time, as some metrics have no name.
async fn alone() -> tokio::sync::MutexGuard<'static, ()> {
    static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    let alone = ALONE.lock().await;
    install();
    alone
}

/// A service that holds its lock until the gate lets it go on.
fn gated(
    layer: &DistributedLockLayer,
    gate: &Gate,
) -> impl Service<Request<Full<Bytes>>, Response: IntoStatus, Error = Infallible, Future: Send>
+ Clone
+ Send
+ 'static
+ use<> {
    let gate = gate.clone();
    layer.layer(service_fn(move |_: Request<Full<Bytes>>| {
        let gate = gate.clone();
        async move {
            gate.pass().await;
            Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
        }
    }))
}

/// Reads a response to its end, which is when its lock is released.
trait IntoStatus {
    fn into_status(self) -> impl Future<Output = StatusCode> + Send;
}

impl<B> IntoStatus for Response<B>
where
    B: http_body::Body<Data = Bytes, Error: std::fmt::Debug> + Send,
{
    async fn into_status(self) -> StatusCode {
        let status = self.status();
        self.into_body().collect().await.unwrap();
        status
    }
}

async fn status<S>(service: &S) -> StatusCode
where
    S: Service<Request<Full<Bytes>>, Response: IntoStatus, Error = Infallible> + Clone,
{
    let response = service.clone().oneshot(Request::default());
    let response = soon("a response", response).await.unwrap();
    response.into_status().await
}

#[tokio::test]
async fn each_path_of_a_lock_to_its_holder_is_counted() {
    let _alone = alone().await;
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let one = minute().connect(&server.url()).await.unwrap();
    let two = minute().connect(&server.url()).await.unwrap();
    let gate = Gate::new();
    let on = |locks: &LockManager| {
        let layer = DistributedLockLayer::new(locks.clone(), |_| "paths").name("paths");
        gated(&layer.wait(PATIENCE), &gate)
    };
    let (here, there) = (on(&one), on(&two));
    let handoffs = |to| sum("lock_handoffs_total", &[("to", to)]);
    let (local, remote) = (handoffs("local"), handoffs("remote"));

    // The first finds it free. The second, of the same process, and the third, of another, wait.
    let spawn = |service: &_| {
        let service = Clone::clone(service);
        async move { status(&service).await }
    };
    let first = tokio::spawn(spawn(&here));
    gate.arrived().await;
    becomes("lock_held", &[("name", "paths")], 1.0).await;
    assert_eq!(attempts("paths", "acquired", "uncontended"), 1.0);
    let second = tokio::spawn(spawn(&here));
    becomes("lock_waiters", &[], 1.0).await;
    let third = tokio::spawn({
        let there = there.clone();
        async move { status(&there).await }
    });
    eventually_queued(&redis, "paths", 1).await;
    becomes("lock_waiters", &[], 2.0).await;
    knows_what_was_said(&one).await;
    knows_what_was_said(&two).await;

    gate.open();
    assert_eq!(soon("the first", first).await.unwrap(), StatusCode::OK);
    gate.arrived().await;
    becomes("lock_waiters", &[], 1.0).await;
    gate.open();
    assert_eq!(soon("the second", second).await.unwrap(), StatusCode::OK);
    gate.arrived().await;
    becomes("lock_waiters", &[], 0.0).await;
    gate.open();
    assert_eq!(soon("the third", third).await.unwrap(), StatusCode::OK);

    assert_eq!(attempts("paths", "acquired", "uncontended"), 1.0);
    assert_eq!(attempts("paths", "acquired", "local"), 1.0);
    // Without RESP3, a grant has to be confirmed.
    let path = if has_resp3() { "granted" } else { "polled" };
    assert_eq!(attempts("paths", "acquired", path), 1.0);
    assert_eq!(all_attempts("paths"), 3.0);
    becomes("lock_held", &[("name", "paths")], 0.0).await;
    let holds = sum("lock_hold_duration_seconds_count", &[("name", "paths")]);
    assert_eq!(holds, 3.0);
    assert_eq!(handoffs("local") - local, 1.0);
    becomes("lock_handoffs_total", &[("to", "remote")], remote + 1.0).await;
    assert_eq!(sum("lock_lost_total", &[("name", "paths")]), 0.0);
}

#[tokio::test]
async fn how_long_a_lock_was_waited_for_and_held_is_counted_in_seconds() {
    const TIME: Duration = Duration::from_millis(30);
    let _alone = alone().await;
    let locks = LockManager::in_memory();
    let layer = DistributedLockLayer::new(locks, |_| "times").name("times");
    let gate = Gate::new();
    let service = gated(&layer.wait(PATIENCE), &gate);
    let first = tokio::spawn({
        let service = service.clone();
        async move { status(&service).await }
    });
    gate.arrived().await;
    let second = tokio::spawn(async move { status(&service).await });
    becomes("lock_waiters", &[], 1.0).await;
    // So that a time of some length is counted.
    tokio::time::sleep(TIME).await;
    gate.open();
    gate.arrived().await;
    gate.open();
    soon("the first", first).await.unwrap();
    soon("the second", second).await.unwrap();
    for (metric, labels) in [
        ("lock_acquire_duration_seconds_sum", ("path", "local")),
        ("lock_hold_duration_seconds_sum", ("name", "times")),
    ] {
        let seconds = sum(metric, &[("name", "times"), labels]);
        assert!((0.03..20.0).contains(&seconds), "{metric} is {seconds}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gauges_are_back_at_zero_after_a_mixed_load() {
    let _alone = alone().await;
    let server = RedisServer::start().await;
    let one = minute().connect(&server.url()).await.unwrap();
    let two = minute().connect(&server.url()).await.unwrap();
    let memory = LockManager::in_memory();
    for managers in [[one, two], [memory.clone(), memory]] {
        soon("it is over", mixed_load(managers)).await;
        becomes("lock_held", &[("name", "default")], 0.0).await;
        becomes("lock_waiters", &[], 0.0).await;
    }
}

#[tokio::test]
async fn each_loss_is_counted_once_with_its_reason() {
    let _alone = alone().await;
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let proxy = Proxy::start(server.port).await;
    let locks = short_lived(300).connect(&proxy.url()).await.unwrap();
    let on = |key: &'static str, locks: &LockManager| {
        let layer = DistributedLockLayer::new(locks.clone(), move |_| key).name("losses");
        let service = layer.layer(service_fn(|request: Request<Full<Bytes>>| async move {
            request.extensions().get::<Lease>().unwrap().lost().await;
            std::future::pending::<()>().await;
            Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
        }));
        tokio::spawn(async move { status(&service).await })
    };
    let held = [("name", "losses")];
    let taken = on("taken", &locks);
    becomes("lock_held", &held, 1.0).await;
    run(&redis, "DEL lock:taken").await;
    assert_eq!(taken.await.unwrap(), StatusCode::SERVICE_UNAVAILABLE);
    let short = LockManager::builder().max_hold(Duration::from_millis(50));
    let too_long = on("too long", &short.in_memory().unwrap());
    assert_eq!(too_long.await.unwrap(), StatusCode::SERVICE_UNAVAILABLE);
    let expired = on("expired", &locks);
    becomes("lock_held", &held, 1.0).await;
    proxy.set(Mode::Hold);
    assert_eq!(expired.await.unwrap(), StatusCode::SERVICE_UNAVAILABLE);

    for reason in ["taken", "max_hold", "expired"] {
        becomes("lock_lost_total", &[held[0], ("reason", reason)], 1.0).await;
    }
    assert_eq!(sum("lock_held", &held), 0.0);
    assert_eq!(sum("lock_hold_duration_seconds_count", &held), 3.0);
    let rejected = [held[0], ("reason", "lost")];
    assert_eq!(sum("lock_rejections_total", &rejected), 3.0);
}

/// The handler blocks its thread until the lease has run out, so that the slot has no time to
/// notice.
#[tokio::test]
async fn a_loss_that_only_the_holder_has_noticed_is_counted() {
    let _alone = alone().await;
    let locks = short_lived(100).in_memory().unwrap();
    let layer = DistributedLockLayer::new(locks, |_| "k").name("noticed");
    let service = layer.layer(service_fn(|request: Request<Full<Bytes>>| async move {
        let lease = request.extensions().get::<Lease>().unwrap();
        while lease.is_held() {}
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
    }));
    assert_eq!(status(&service).await, StatusCode::SERVICE_UNAVAILABLE);
    let labels = [("name", "noticed"), ("reason", "expired")];
    assert_eq!(sum("lock_lost_total", &labels), 1.0);
    assert_eq!(sum("lock_held", &labels[..1]), 0.0);
}

#[tokio::test]
async fn each_rejection_is_counted_with_its_reason() {
    let _alone = alone().await;
    let server = RedisServer::start().await;
    let builder = minute().max_waiters_per_key(1);
    let locks = builder.connect(&server.url()).await.unwrap();
    let gate = Gate::new();
    let layer = DistributedLockLayer::new(locks.clone(), |_| "k").name("rejections");
    let service = gated(&layer, &gate);
    let holding = tokio::spawn({
        let service = service.clone();
        async move { status(&service).await }
    });
    gate.arrived().await;

    assert_eq!(status(&service).await, StatusCode::CONFLICT);
    let briefly = gated(&layer.clone().wait(Duration::from_millis(20)), &gate);
    assert_eq!(status(&briefly).await, StatusCode::CONFLICT);
    let patient = gated(&layer.clone().wait(PATIENCE), &gate);
    let waiting = tokio::spawn({
        let patient = patient.clone();
        async move { status(&patient).await }
    });
    let redis = server.client().await;
    eventually_queued_here(&redis).await;
    assert_eq!(status(&patient).await, StatusCode::SERVICE_UNAVAILABLE);
    for (layer, expected) in [
        (
            DistributedLockLayer::new(locks.clone(), |_| None::<LockKey>),
            StatusCode::BAD_REQUEST,
        ),
        (
            DistributedLockLayer::new(locks.clone(), |_| ""),
            StatusCode::BAD_REQUEST,
        ),
        (
            DistributedLockLayer::from_extension(locks.clone()),
            StatusCode::INTERNAL_SERVER_ERROR,
        ),
    ] {
        let keyless = gated(&layer.name("rejections"), &gate);
        assert_eq!(status(&keyless).await, expected);
    }
    gate.open();
    soon("the holder", holding).await.unwrap();
    gate.arrived().await;
    gate.open();
    soon("the waiter", waiting).await.unwrap();
    locks.close().await;
    assert_eq!(status(&service).await, StatusCode::SERVICE_UNAVAILABLE);

    let expected = [
        ("held", 1.0),
        ("timed_out", 1.0),
        ("queue_full", 1.0),
        ("missing_key", 1.0),
        ("invalid_key", 1.0),
        ("misconfigured", 1.0),
        ("unavailable", 1.0),
        ("lost", 0.0),
    ];
    for (reason, count) in expected {
        let labels = [("name", "rejections"), ("reason", reason)];
        // Reasons that have not occurred are there as well: an increase from nothing is none.
        assert_eq!(
            find("lock_rejections_total", &labels),
            Some(count),
            "{reason}"
        );
    }
    for outcome in ["held", "timed_out", "queue_full", "closed"] {
        assert_eq!(attempts("rejections", outcome, "none"), 1.0, "{outcome}");
    }
}

/// Waits until a request of the only process waits.
async fn eventually_queued_here(redis: &redis::aio::MultiplexedConnection) {
    support::eventually("a request waits", || async {
        calls(redis, "evalsha").await > 0 && sum("lock_waiters", &[]) >= 1.0
    })
    .await;
}

#[tokio::test]
async fn what_becomes_of_requests_with_a_key_is_counted() {
    let _alone = alone().await;
    let server = RedisServer::start().await;
    let locks = minute().connect(&server.url()).await.unwrap();
    let gate = Gate::new();
    let runs = Runs::default();
    let layer = IdempotencyLayer::new(locks).name("payments");
    let app = App::new(&layer, runs.gated(&gate));
    let first = app.begin(post("k")).await;
    gate.arrived().await;
    app.send(post("k")).await.is_refused(409);
    gate.open();
    first.await.unwrap().is_run(1);
    app.send(post("k")).await.is_replay_of(1);
    app.send(post("k")).await.is_replay_of(1);
    let mut other = post("k");
    *other.body_mut() = once::body("another payload");
    app.send(other).await.is_refused(422);

    let expected = [
        ("first", 1.0),
        ("replayed", 2.0),
        ("in_progress", 1.0),
        ("mismatch", 1.0),
        ("failed", 0.0),
    ];
    for (outcome, count) in expected {
        let labels = [("name", "payments"), ("outcome", outcome)];
        assert_eq!(
            find("idempotency_requests_total", &labels),
            Some(count),
            "{outcome}"
        );
    }
    assert_eq!(attempts("payments", "recorded", "none"), 3.0);
    assert_eq!(attempts("payments", "acquired", "uncontended"), 1.0);
    becomes("lock_held", &[("name", "payments")], 0.0).await;
}

#[tokio::test]
async fn commands_and_renewals_are_counted_as_redis_counts_them() {
    let _alone = alone().await;
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let locks = short_lived(60_000).renewal(Duration::from_millis(20));
    let locks = locks.connect(&server.url()).await.unwrap();
    let commands = |command| {
        let labels = [("command", command), ("outcome", "ok")];
        sum("lock_store_command_duration_seconds_count", &labels)
    };
    let renewals = || sum("lock_renewals_total", &[("outcome", "renewed")]);
    let before = (commands("acquire"), commands("release"), renewals());
    let scripts = calls(&redis, "evalsha").await;
    let guard = locks.try_acquire("k").await.unwrap();
    support::eventually("three renewals", || async { renewals() - before.2 >= 3.0 }).await;
    guard.release().await.unwrap();
    locks.close().await;
    assert_eq!(commands("acquire") - before.0, 1.0);
    assert_eq!(commands("release") - before.1, 1.0);
    // A renewal that was on its way when the lock was released says that it is gone.
    let renewed = commands("renew");
    let scripts = calls(&redis, "evalsha").await - scripts;
    assert_eq!(renewed + 1.0, scripts as f64);
    assert_eq!(sum("lock_renewals_total", &[]), renewed);
}

#[tokio::test]
async fn whether_the_store_is_there_is_counted_by_server() {
    let _alone = alone().await;
    let server = RedisServer::start().await;
    let proxy = Proxy::start(server.port).await;
    let at = format!("127.0.0.1:{}", proxy.port);
    let labels = [("server", &*at)];
    let locks = minute().connect(&proxy.url()).await.unwrap();
    assert_eq!(find("lock_store_up", &labels), Some(1.0));
    proxy.set(Mode::Close);
    becomes("lock_store_up", &labels, 0.0).await;
    proxy.set(Mode::Forward);
    let guard = soon("Redis is back", locks.acquire("k", PATIENCE)).await;
    drop(guard.unwrap());
    becomes("lock_store_up", &labels, 1.0).await;
}

#[tokio::test]
async fn a_server_that_is_no_primary_any_more_is_neither_there_nor_away() {
    let _alone = alone().await;
    let cluster = Cluster::start(1, 1).await;
    let [old, new] = [0, 1].map(|place| format!("127.0.0.1:{}", cluster.servers[place].port));
    let is_up = |server| find("lock_store_up", &[("server", server)]);
    let locks = minute().quarantine(false);
    let locks = locks.connect_cluster(cluster.urls()).await.unwrap();
    assert_eq!((is_up(&old), is_up(&new)), (Some(1.0), None));
    run(&cluster.client(1).await, "CLUSTER FAILOVER TAKEOVER").await;
    support::eventually("locks are taken at the new primary", || async {
        locks.try_acquire("k").await.is_ok() && is_up(&new) == Some(1.0)
    })
    .await;
    support::eventually("the old one counts no more", || async {
        is_up(&old).unwrap().is_nan()
    })
    .await;
}

#[tokio::test]
async fn quarantine_is_counted_until_it_is_over_though_no_request_comes() {
    let _alone = alone().await;
    let server = RedisServer::start().await;
    let at = format!("127.0.0.1:{}", server.port);
    let labels = [("server", &*at)];
    let builder = short_lived(500).quarantine(true);
    let locks = builder.connect(&server.url()).await.unwrap();
    becomes("lock_quarantine", &labels, 1.0).await;
    becomes("lock_quarantine", &labels, 0.0).await;
    drop(locks.try_acquire("k").await.unwrap());
}

#[tokio::test]
async fn locks_without_a_layer_are_counted_under_default_and_no_key_is_shown() {
    let _alone = alone().await;
    let locks = LockManager::in_memory();
    let key = "account-of-mrs-schmidt";
    let before = attempts("default", "acquired", "uncontended");
    let guard = locks.try_acquire(key).await.unwrap();
    assert!(attempts("default", "acquired", "uncontended") > before);
    assert!(guard.lease().lost_reason() != Some(LostReason::Taken));
    drop(guard);
    let fingerprint = LockKey::new(key).unwrap().fingerprint();
    let text = scrape::text();
    assert!(!text.contains(key) && !text.contains(&fingerprint));
}
