//! How long records are kept, and records that are gone or not what was written.

use std::time::Duration;

use tower_distributed_lock::{IdempotencyLayer, LockManager, lock::RejectionKind};

use super::{layer, record};
use crate::idempotency::{RECORD, WAIT};
use crate::once::{App, Runs, post};
use crate::support::{
    Gate, RedisServer, eventually, expires_in, is_before_redis_7, minute, run, soon,
};

#[tokio::test]
async fn a_key_has_the_expiry_of_its_lease_while_it_runs_and_of_its_record_after() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let locks = minute().connect(&server.url()).await.unwrap();
    let (hour, second) = (Duration::from_secs(3600), Duration::from_secs(1));
    for (retention, at_most, at_least) in [
        (None, 24 * hour, 23 * hour),
        (Some(2 * hour), 2 * hour, hour),
        (Some(second), second, Duration::ZERO),
    ] {
        run(&redis, "FLUSHALL").await;
        let (runs, gate) = (Runs::default(), Gate::new());
        let layer = match retention {
            Some(retention) => layer(&locks).retention(retention),
            None => layer(&locks),
        };
        let app = App::new(&layer, runs.gated(&gate));
        let first = app.begin(post("k")).await;
        gate.arrived().await;
        let left = expires_in(&redis, RECORD).await;
        assert!(left > 50 * second && left <= 60 * second, "{left:?}");
        gate.open();
        soon("a response", first).await.unwrap().is_run(1);
        let left = expires_in(&redis, RECORD).await;
        assert!(left > at_least && left <= at_most, "{left:?}");
        if retention == Some(second) {
            eventually("it has expired", || async {
                record(&redis).await.is_none()
            })
            .await;
            gate.open();
            app.send(post("k")).await.is_run(2);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_kept_in_memory_for_as_long_as_it_should() {
    let runs = Runs::default();
    let hour = Duration::from_secs(3600);
    let locks = LockManager::in_memory();
    let app = App::new(&layer(&locks).retention(hour), runs.handler());
    app.send(post("k")).await.is_run(1);
    tokio::time::advance(hour / 2).await;
    app.send(post("later")).await.is_run(2);
    tokio::time::advance(hour / 2 - Duration::from_secs(1)).await;
    // A replay does not prolong it.
    app.send(post("k")).await.is_replay_of(1);
    tokio::time::advance(Duration::from_secs(1)).await;
    app.send(post("k")).await.is_run(3);
    app.send(post("later")).await.is_replay_of(2);
}

#[tokio::test]
async fn a_record_that_cannot_be_read_is_an_error_and_left_alone() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let locks = minute().connect(&server.url()).await.unwrap();
    let runs = Runs::default();
    App::new(&layer(&locks), runs.handler())
        .send(post("k"))
        .await
        .is_run(1);
    let good = record(&redis).await.unwrap();
    let mut newer = good.clone();
    newer[4] += 1;
    let mut flagged = good.clone();
    flagged[5] |= 128;
    // Another response, in the right form.
    let mut damaged = good.clone();
    let body = damaged.windows(5).position(|text| text == b"run 1");
    damaged[body.unwrap() + 4] = b'3';
    // Redis 6.2 reads the place behind the take: what is empty there looks like what was released.
    let empty = (!is_before_redis_7()).then(Vec::new);
    for bad in empty.into_iter().chain([
        b"something else".to_vec(),
        b"TDLR".to_vec(),
        newer,
        flagged,
        damaged,
        good[..good.len() - 1].to_vec(),
        [&good[..], b"x"].concat(),
    ]) {
        let set = async |value: &[u8]| {
            let mut set = redis::cmd("SET");
            let set = set.arg(RECORD).arg(value);
            let () = set.query_async(&mut redis.clone()).await.unwrap();
        };
        set(&bad).await;
        for layer in [layer(&locks), layer(&locks).wait(WAIT)] {
            let app = App::new(&layer, runs.handler());
            let answer = app.send(post("k")).await;
            answer.is_rejected(500, RejectionKind::Unreadable);
        }
        assert_eq!(record(&redis).await.unwrap(), bad);
    }
    // A key that holds no string at all is not ours, and Redis refuses.
    run(&redis, &format!("DEL {RECORD}")).await;
    run(&redis, &format!("RPUSH {RECORD} x")).await;
    let app = App::new(&layer(&locks), runs.handler());
    let answer = app.send(post("k")).await;
    answer.is_rejected(503, RejectionKind::Unavailable);
    assert_eq!(runs.count(), 1);
}

/// Where records are evicted or deleted, a duplicate runs: nothing tells that it is one.
#[tokio::test]
async fn a_record_that_is_gone_is_gone() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let locks = minute().connect(&server.url()).await.unwrap();
    let runs = Runs::default();
    let app = App::new(&layer(&locks), runs.handler());
    app.send(post("k")).await.is_run(1);
    run(&redis, &format!("DEL {RECORD}")).await;
    app.send(post("k")).await.is_run(2);
    app.send(post("k")).await.is_replay_of(2);
}

#[tokio::test]
async fn managers_with_other_prefixes_have_other_records() {
    let server = RedisServer::start().await;
    let runs = Runs::default();
    for (number, prefix) in ["lock:", "other:", "lock:POST%3A/"].into_iter().enumerate() {
        let locks = minute().prefix(prefix);
        let locks = locks.connect(&server.url()).await.unwrap();
        let app = App::new(&layer(&locks), runs.handler());
        app.send(post("k")).await.is_run(number + 1);
        app.send(post("k")).await.is_replay_of(number + 1);
    }
}

/// Redis closes the connection of a subscriber that is to be sent more than 32 MiB at once.
#[tokio::test]
async fn long_answers_are_replayed_however_many_are_wanted_at_once() {
    let server = RedisServer::start().await;
    // A busy machine takes its time for so many bytes.
    let patient = minute().command_timeout(Duration::from_secs(10));
    let locks = patient.connect(server.url()).await.unwrap();
    let held = locks.try_acquire("held").await.unwrap();
    for (duplicates, mib) in [(40, 1), (1, 33)] {
        let body = bytes::Bytes::from(vec![b'a'; mib << 20]);
        let service = tower::ServiceBuilder::new()
            .layer(IdempotencyLayer::new(locks.clone()).max_response_body(64 << 20))
            .service(tower::service_fn(move |_| {
                let response = http::Response::new(http_body_util::Full::new(body.clone()));
                std::future::ready(Ok::<_, std::convert::Infallible>(response))
            }));
        let send = async |key: usize| {
            let request =
                http::Request::post("/").header("idempotency-key", format!("{mib}-{key}"));
            let request = request.body(http_body_util::Full::<bytes::Bytes>::default());
            let service = service.clone();
            let response = tower::ServiceExt::oneshot(service, request.unwrap());
            let response = soon("a response", response).await.unwrap();
            let is_replay = response.headers().contains_key("idempotent-replayed");
            let length = http_body::Body::size_hint(response.body()).exact();
            assert_eq!(response.status(), 200);
            assert_eq!(length, Some((mib << 20) as u64));
            is_replay
        };
        for key in 0..duplicates {
            assert!(!send(key).await);
        }
        for _ in 0..2 {
            let all = futures_util::future::join_all((0..duplicates).map(send)).await;
            assert!(all.iter().all(|is_replay| *is_replay));
        }
    }
    // Long records have a connection of their own, and that of the locks has noticed nothing.
    held.release().await.unwrap();
}
