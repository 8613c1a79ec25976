//! What the `tracing` feature tells, and what it never tells.
//!
//! A program of its own: a manager also logs from threads that no test can reach, so its subscriber
//! is that of the whole process. It keeps everything on every level, and some tests make it panic.
//! Other tests would be slowed down by that, and fill it.
#![cfg(feature = "tracing")]
#![allow(unreachable_pub)]

mod capture;
mod mistakes;
#[allow(dead_code)] // Not all that it can do is used here.
#[path = "../support/once.rs"]
mod once;
mod spans;
#[path = "../support/mod.rs"]
mod support;

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use capture::{
    PANICS, Record, assert_untold, fingerprint, listen, of_this_thread, one, records, told,
};
use http::{Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Empty, StreamBody};
use once::{App, Runs, post};
use support::{
    Gate, Mode, PATIENCE, PRIMARY, Proxy, RedisServer, clients, connect_patiently, eventually,
    eventually_queued, knows_what_was_said, minute, run, sentinel_cut_off, short_lived, soon,
    value,
};
use tower::{ServiceBuilder, ServiceExt, service_fn};
use tower_distributed_lock::{
    DistributedLockLayer, ErrorKind, IdempotencyLayer, Lease, Leases, LockManager, LostReason, key,
};
use tracing::Level;

#[tokio::test]
async fn a_lock_that_is_taken_and_released_is_told_with_fingerprint_token_and_times() {
    const HELD: Duration = Duration::from_millis(30);
    const KEY: &str = "taken and released";
    listen();
    let locks = LockManager::in_memory();
    let guard = locks.try_acquire(KEY).await.unwrap();
    let token = guard.fencing_token().to_string();

    let acquired = one(KEY, "lock acquired").await;
    assert_eq!(acquired.level, Level::DEBUG);
    assert!(acquired.is_ours());
    assert_eq!(acquired.fields.get("fencing_token"), Some(&*token));
    let waited = acquired.fields.number("waited_ms");
    assert!((0.0..20_000.0).contains(&waited), "{waited}");

    // So that a time of some length is told.
    tokio::time::sleep(HELD).await;
    assert!(told(KEY, "lock released").is_empty());
    guard.release().await.unwrap();
    let released = one(KEY, "lock released").await;
    assert_eq!(released.level, Level::DEBUG);
    assert!(released.is_ours());
    assert_eq!(released.fields.get("fencing_token"), Some(&*token));
    let held = released.fields.number("held_ms");
    assert!((30.0..20_000.0).contains(&held), "{held}");
}

#[tokio::test]
async fn a_guard_that_is_dropped_is_told_as_released_once() {
    listen();
    let locks = LockManager::in_memory();
    drop(locks.try_acquire("dropped").await.unwrap());
    locks.close().await;
    one("dropped", "lock released").await;
}

#[tokio::test]
async fn how_long_a_request_waited_is_told() {
    const WAITED: Duration = Duration::from_millis(30);
    const KEY: &str = "waited for";
    listen();
    let locks = LockManager::in_memory();
    let guard = locks.try_acquire(KEY).await.unwrap();
    one(KEY, "lock acquired").await;
    let mut waiting = Box::pin(locks.acquire(KEY, PATIENCE));
    assert!(futures_util::poll!(&mut waiting).is_pending());
    tokio::time::sleep(WAITED).await;
    drop(guard);
    let guard = soon("it is its turn", waiting).await.unwrap();
    let acquired = told(KEY, "lock acquired").pop().unwrap();
    let token = guard.fencing_token().to_string();
    assert_eq!(acquired.fields.get("fencing_token"), Some(&*token));
    let waited = acquired.fields.number("waited_ms");
    assert!((30.0..20_000.0).contains(&waited), "{waited}");
}

#[tokio::test]
async fn a_refusal_is_told_with_its_reason() {
    const WAIT: Duration = Duration::from_millis(30);
    listen();
    let locks = LockManager::in_memory();
    let _guard = locks.try_acquire("refused").await.unwrap();
    locks.try_acquire("refused").await.unwrap_err();
    let refused = one("refused", "lock not acquired").await;
    assert_eq!(refused.level, Level::DEBUG);
    assert_eq!(refused.fields.get("reason"), Some("Held"));
    assert!(refused.fields.get("error").unwrap().contains("held"));
    assert!(refused.fields.number("waited_ms") >= 0.0);

    let _guard = locks.try_acquire("waited in vain").await.unwrap();
    let error = locks.acquire("waited in vain", WAIT).await.unwrap_err();
    let refused = one("waited in vain", "lock not acquired").await;
    assert_eq!(refused.fields.get("reason"), Some("TimedOut"));
    assert_eq!(refused.fields.get("error"), Some(&*error.to_string()));
    let waited = refused.fields.number("waited_ms");
    assert!((30.0..20_000.0).contains(&waited), "{waited}");
}

#[tokio::test]
async fn a_lost_lock_is_a_warning_with_the_reason() {
    listen();
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let proxy = Proxy::start(server.port).await;
    let locks = short_lived(300).connect(&proxy.url()).await.unwrap();

    let taken = locks.try_acquire("taken").await.unwrap();
    run(&redis, "DEL lock:taken").await;
    assert_eq!(soon("it is lost", taken.lost()).await, LostReason::Taken);
    let expired = locks.try_acquire("expired").await.unwrap();
    proxy.set(Mode::Hold);
    assert_eq!(
        soon("it is lost", expired.lost()).await,
        LostReason::Expired
    );
    for (key, reason, guard) in [("taken", "Taken", &taken), ("expired", "Expired", &expired)] {
        let lost = one(key, "lock lost").await;
        assert_eq!(lost.level, Level::WARN);
        assert!(lost.is_ours());
        assert_eq!(lost.fields.get("reason"), Some(reason));
        let token = guard.fencing_token().to_string();
        assert_eq!(lost.fields.get("fencing_token"), Some(&*token));
        assert!(lost.fields.number("held_ms") > 0.0);
    }
}

#[tokio::test]
async fn the_handler_and_its_body_run_inside_of_the_locks_span() {
    const KEY: &str = "handled";
    listen();
    let locks = LockManager::in_memory();
    let tokens = Arc::new(Mutex::new(Vec::new()));
    let layer = DistributedLockLayer::new(locks.clone(), |_| KEY);
    let service = ServiceBuilder::new().layer(layer).service(service_fn({
        let tokens = Arc::clone(&tokens);
        move |request: Request<Empty<Bytes>>| {
            let tokens = Arc::clone(&tokens);
            tracing::info!("the handler is called");
            async move {
                let lease = request.extensions().get::<Lease>().unwrap();
                tokens.lock().unwrap().push(lease.fencing_token());
                tracing::info!("the handler runs");
                tokio::task::yield_now().await;
                tracing::info!("the handler goes on");
                let body = futures_util::stream::once(async {
                    tracing::info!("the body is made");
                    Ok::<_, Infallible>(Frame::data(Bytes::from("done")))
                });
                Ok::<_, Infallible>(Response::new(StreamBody::new(Box::pin(body))))
            }
        }
    }));
    let requests = (0..3).map(|_| async {
        let response = service.clone().oneshot(Request::default()).await;
        let response = response.unwrap();
        let status = response.status();
        // Read to its end, which is when the lock is released, or dropped.
        let _ = response.into_body().collect().await;
        status
    });
    let mut answers = Vec::new();
    for request in requests {
        answers.push(request.await);
    }
    tracing::info!("all is handled");
    assert_eq!(answers, [StatusCode::OK; 3]);
    let tokens = tokens.lock().unwrap();
    assert_eq!(tokens.len(), 3);
    for message in [
        "the handler is called",
        "the handler runs",
        "the handler goes on",
        "the body is made",
    ] {
        let mut events = records();
        events.retain(|record| record.message() == message);
        assert_eq!(events.len(), 3, "{message}");
        for (event, token) in events.iter().zip(&*tokens) {
            let span = event.lock_span().unwrap_or_else(|| panic!("{event:?}"));
            assert_eq!(span.get("fencing_token"), Some(&*token.to_string()));
            assert_eq!(span.get("key"), Some(&*fingerprint(KEY)));
            assert_eq!(event.spans.len(), 1);
        }
    }
    let mut events = records();
    events.retain(|record| record.message() == "all is handled");
    assert!(events[0].lock_span().is_none());
}

#[tokio::test]
async fn several_locks_are_told_one_by_one_and_have_one_span() {
    const KEYS: [&str; 2] = ["one of two", "two of two"];
    listen();
    let locks = LockManager::in_memory();
    let layer = DistributedLockLayer::new(locks.clone(), |_| KEYS);
    let service = ServiceBuilder::new().layer(layer).service(service_fn(
        async |request: Request<Empty<Bytes>>| {
            let leases = request.extensions().get::<Leases>().unwrap();
            tracing::info!(?leases, "both are held");
            Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
        },
    ));
    let response = service.clone().oneshot(Request::default()).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    drop(response);
    for key in KEYS {
        one(key, "lock acquired").await;
        one(key, "lock released").await;
    }
    let mut events = records();
    events.retain(|record| record.message() == "both are held");
    let span = events[0].lock_span().unwrap();
    let keys = KEYS.map(fingerprint).join(",");
    assert_eq!(span.get("keys"), Some(&*keys));

    let _guard = locks.try_acquire(KEYS[1]).await.unwrap();
    let response = service.oneshot(Request::default()).await.unwrap();
    assert_eq!(response.status(), StatusCode::CONFLICT);
    tracing::info!(?response, "refused");
    let refused = one(KEYS[1], "lock not acquired").await;
    assert_eq!(refused.fields.get("reason"), Some("Held"));
    assert!(told(KEYS[0], "lock not acquired").is_empty());
    assert_untold(&KEYS);
}

#[tokio::test]
async fn neither_a_key_nor_a_secret_is_ever_told() {
    const KEY: &str = "account-of-mrs-schmidt";
    const SECRET: &str = "pa55word-of-redis";
    const WRONG: &str = "wr0ng-password";
    const OTHER: &str = "another-pa55word";
    listen();
    let mut server = RedisServer::start_with(&["--requirepass", SECRET]).await;
    let url = |secret: &str| format!("redis://:{secret}@127.0.0.1:{}", server.port);
    let redis = connect_patiently(&url(SECRET)).await.unwrap();
    let locks = short_lived(1000).connect(&url(SECRET)).await.unwrap();

    // The whole way of a request, with everything that a handler may log.
    let layer = DistributedLockLayer::new(locks.clone(), |_| KEY);
    let service = ServiceBuilder::new().layer(layer.clone()).service(service_fn({
        let redis = redis.clone();
        move |request: Request<Empty<Bytes>>| {
            let redis = redis.clone();
            async move {
                let lease = request.extensions().get::<Lease>().unwrap().clone();
                tracing::trace!(?lease, key = ?lease.key(), extensions = ?request.extensions(), "in the handler");
                if request.headers().contains_key("x-lose") {
                    run(&redis, &format!("DEL lock:{KEY}")).await;
                    lease.lost().await;
                    std::future::pending::<()>().await;
                }
                Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
            }
        }
    }));
    tracing::trace!(?locks, ?layer, ?service, builder = ?LockManager::builder(), "made");
    let mut losing = Request::default();
    losing.headers_mut().insert("x-lose", "1".parse().unwrap());
    for (request, status) in [
        (Request::default(), StatusCode::OK),
        (losing, StatusCode::SERVICE_UNAVAILABLE),
    ] {
        let response = soon("a response", service.clone().oneshot(request)).await;
        let response = response.unwrap();
        assert_eq!(response.status(), status);
        tracing::trace!(?response, "answered");
        let _ = response.into_body().collect().await;
    }
    one(KEY, "lock lost").await;

    // The lock is held by another process.
    let guard = soon("it is free", locks.acquire(KEY, PATIENCE))
        .await
        .unwrap();
    tracing::trace!(?guard, "held");
    let response = service.clone().oneshot(Request::default()).await.unwrap();
    assert_eq!(response.status(), StatusCode::CONFLICT);
    guard.release().await.unwrap();

    // An error of Redis itself about this key.
    run(&redis, &format!("RPUSH lock:{KEY} x")).await;
    let error = locks.try_acquire(KEY).await.unwrap_err();
    tracing::trace!(?error, %error, "the wrong type");
    run(&redis, &format!("DEL lock:{KEY}")).await;
    let user = format!("ACL SETUSER limited on >{OTHER} +@all &* ~nothing:*");
    run(&redis, &user).await;
    let limited = format!("redis://limited:{OTHER}@127.0.0.1:{}", server.port);
    let error = LockManager::connect(&limited).await.unwrap_err();
    tracing::trace!(?error, %error, "no permission to begin with");
    let limited = minute().connect_lazy(&limited).unwrap();
    let error = limited.try_acquire(KEY).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    tracing::trace!(?error, %error, "no permission");

    // Errors of the connection.
    let error = LockManager::connect(&url(WRONG)).await.unwrap_err();
    tracing::trace!(?error, %error, "the wrong password");
    let lazy = minute().connect_lazy(url(WRONG)).unwrap();
    let error = soon("a response", lazy.try_acquire(KEY)).await.unwrap_err();
    tracing::trace!(?error, %error, ?lazy, "the wrong password, lazily");
    for wrong in [
        format!("redis://:{SECRET}@127.0.0.1:99999"),
        format!("redis://:{SECRET}@127.0.0.1:1/{SECRET}"),
        format!("{SECRET}@127.0.0.1"),
    ] {
        let error = minute().connect_lazy(&wrong).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        tracing::trace!(?error, %error, "not valid");
    }
    let address = format!("127.0.0.1:{}", server.port);
    let disconnected = || {
        let records = records();
        let told = records.iter();
        told.filter(|record| record.message() == "Redis gives no locks")
            .filter(|record| record.fields.get("server") == Some(&*address))
            .count()
    };
    let before = disconnected();
    server.kill();
    let response = service.clone().oneshot(Request::default()).await.unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    eventually("it is told that Redis is away", || async {
        disconnected() > before
    })
    .await;

    assert_untold(&[KEY, SECRET, WRONG, OTHER]);
    // There were such events, so the look through them means something.
    let reasons: Vec<String> = told(KEY, "lock not acquired")
        .iter()
        .map(|record| record.fields.get("reason").unwrap().to_owned())
        .collect();
    for reason in ["Held", "Unavailable"] {
        assert!(reasons.iter().any(|told| told == reason), "{reasons:?}");
    }
    assert!(told(KEY, "lock released").len() >= 3);
}

/// The events about the store of that server: level and message, in order.
fn told_of(server: &str) -> Vec<(Level, String)> {
    let records = records();
    let of_server = records.iter().filter(|record| {
        assert!(record.fields.get("server").is_none() || record.is_ours());
        record.fields.get("server") == Some(server)
    });
    of_server
        .map(|record| (record.level, record.message().to_owned()))
        .collect()
}

#[tokio::test]
async fn an_outage_is_one_warning_with_its_cause_and_one_event_at_its_end() {
    listen();
    let server = RedisServer::start().await;
    let proxy = Proxy::start(server.port).await;
    let address = format!("127.0.0.1:{}", proxy.port);
    let locks = minute().connect(&proxy.url()).await.unwrap();
    for outage in 1..=2 {
        proxy.set(Mode::Close);
        for _ in 0..20 {
            let refused = soon("a refusal", locks.try_acquire("away")).await;
            assert_eq!(refused.unwrap_err().kind(), ErrorKind::Unavailable);
        }
        proxy.set(Mode::Forward);
        drop(
            soon("a lock", locks.acquire("away", PATIENCE))
                .await
                .unwrap(),
        );
        let count = |level, message| {
            let event = (level, str::to_owned(message));
            told_of(&address)
                .iter()
                .filter(|told| **told == event)
                .count()
        };
        eventually("its end is told", || async {
            count(Level::INFO, "Redis gives locks again") == outage
        })
        .await;
        assert_eq!(count(Level::WARN, "Redis gives no locks"), outage);
        assert!(count(Level::DEBUG, "Redis still gives no locks") > 0);
    }
}

#[tokio::test]
async fn a_server_that_becomes_a_replica_is_told_as_such() {
    listen();
    let primary = RedisServer::start().await;
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let address = format!("127.0.0.1:{}", server.port);
    let locks = minute().connect(&server.url()).await.unwrap();
    run(&redis, &format!("REPLICAOF 127.0.0.1 {}", primary.port)).await;
    for _ in 0..5 {
        let refused = soon("a refusal", locks.try_acquire("demoted")).await;
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Unavailable);
    }
    run(&redis, "REPLICAOF NO ONE").await;
    eventually("it is told that locks can be had", || async {
        let told = told_of(&address);
        told.iter()
            .any(|(_, message)| message == "Redis gives locks again")
    })
    .await;
    let of_server = |record: &&Record| {
        record.level == Level::WARN && record.fields.get("server") == Some(&*address)
    };
    let warnings: Vec<_> = records().iter().filter(of_server).cloned().collect();
    assert_eq!(warnings.len(), 1, "{warnings:#?}");
    let why = warnings[0].fields.get("why").unwrap();
    assert!(why.contains("READONLY"), "{why}");
}

/// The service's subscriber may panic. Here it does so while it is told of a lost connection, which
/// ends the background task.
async fn a_background_task_that_panics_is_told_and_started_again() {
    // The event does not say which manager's task it is about: one such test at a time.
    static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    let _alone = ALONE.lock().await;
    listen();
    let server = RedisServer::start().await;
    let proxy = Proxy::start(server.port).await;
    let locks = minute().connect(&proxy.url()).await.unwrap();
    let guard = locks.try_acquire("held").await.unwrap();
    let other = minute().connect(&server.url()).await.unwrap();
    let others = other.try_acquire("other's").await.unwrap();
    let waiting = locks.clone();
    let waiting = tokio::spawn(async move { waiting.acquire("other's", PATIENCE).await });
    let redis = server.client().await;
    eventually_queued(&redis, "other's", 1).await;
    knows_what_was_said(&locks).await;

    let restarts = || {
        let message = "the background task of a lock manager panicked, and is started again";
        let is_one = |record: &&Record| record.message() == message;
        records().iter().filter(is_one).count()
    };
    let before = restarts();
    PANICS
        .lock()
        .unwrap()
        .push(format!("127.0.0.1:{}", proxy.port));
    proxy.set(Mode::Close);
    eventually("it is started again", || async { restarts() > before }).await;
    proxy.set(Mode::Forward);
    // The new task goes on where the other one ended.
    drop(others);
    drop(soon("its turn", waiting).await.unwrap().unwrap());
    soon("the release", guard.release()).await.unwrap();
    soon("an end", locks.close()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_background_task_among_others_that_panics_is_told_and_started_again() {
    a_background_task_that_panics_is_told_and_started_again().await;
}

#[tokio::test]
async fn a_background_thread_that_panics_is_told_and_started_again() {
    a_background_task_that_panics_is_told_and_started_again().await;
}

#[tokio::test]
async fn a_service_that_cannot_have_keys_is_told_as_an_error_without_what_the_client_sent() {
    const SECRET: &str = "secret-in-the-path";
    let (records, _guard) = of_this_thread();
    let locks = LockManager::in_memory();
    for (layer, hint) in [
        (
            DistributedLockLayer::from_extension(locks.clone()),
            "from_extension",
        ),
        (
            DistributedLockLayer::new(locks.clone(), key::path("/accounts/{id}")),
            "/accounts/{id}",
        ),
    ] {
        for (layer, events) in [(layer.clone(), 1), (layer.optional_key(), 0)] {
            records.lock().unwrap().clear();
            let handler = service_fn(async |_: Request<Empty<Bytes>>| {
                Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
            });
            let service = ServiceBuilder::new().layer(layer).service(handler);
            let request = Request::get(format!("/{SECRET}"))
                .body(Empty::new())
                .unwrap();
            service.oneshot(request).await.unwrap();
            let told = records.lock().unwrap();
            let told: Vec<&Record> = told.iter().filter(|told| told.is_ours()).collect();
            assert_eq!(told.len(), events, "{told:#?}");
            for told in told {
                assert_eq!(told.level, Level::ERROR);
                assert!(told.fields.get("error").unwrap().contains(hint));
                assert!(!format!("{told:?}").contains(SECRET));
            }
        }
    }
}

/// It arrives twice, as the reply to the first one is cut off.
#[tokio::test]
async fn a_completion_that_is_sent_again_is_told_as_a_lost_connection_alone() {
    let (records, _guard) = of_this_thread();
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let proxy = Proxy::start(server.port).await;
    let locks = minute().command_timeout(Duration::from_secs(30));
    let locks = locks.connect(&proxy.url()).await.unwrap();
    let (runs, gate) = (Runs::default(), Gate::new());
    let app = App::new(&IdempotencyLayer::new(locks), runs.gated(&gate));
    let first = app.begin(post("k")).await;
    gate.arrived().await;
    let record = "{lock:POST%3A/a:k}:record";
    let owner = value(&redis, record).await.unwrap();
    proxy.set(Mode::HoldAnswers);
    gate.open();
    eventually("it is recorded", || async {
        run(&redis, &format!("STRLEN {record}")).await != redis::Value::Int(owner.len() as i64)
    })
    .await;
    proxy.set(Mode::Close);
    eventually("the connection is closed", || async {
        clients(&redis).await.len() == 1
    })
    .await;
    proxy.set(Mode::Forward);
    soon("a response", first).await.unwrap().is_run(1);
    app.send(post("k")).await.is_replay_of(1);
    let records = records.lock().unwrap();
    let has = |text: &str| records.iter().any(|record| record.message().contains(text));
    assert!(has("Redis gives no locks"), "{records:#?}");
    assert!(!has("could not be recorded"), "{records:#?}");
}

#[tokio::test]
async fn an_old_primary_that_would_give_locks_is_told_of_once() {
    listen();
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let (sentinel, _) = sentinel_cut_off(server.port).await;
    let builder = minute().quarantine(false);
    let locks = builder.connect_sentinel([sentinel], PRIMARY).await.unwrap();
    let told = || {
        let records = records();
        let about = |record: &&Record| record.message().contains("no min-replicas-to-write");
        records.iter().filter(about).count()
    };
    eventually("it is told", || async { told() == 1 }).await;
    for kind in ["normal", "pubsub"] {
        run(&redis, &format!("CLIENT KILL TYPE {kind} SKIPME yes")).await;
    }
    eventually("it is connected again", || async {
        locks.try_acquire("a").await.is_ok()
    })
    .await;
    assert_eq!(told(), 1);
}
