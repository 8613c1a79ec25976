//! Redis is away, or refuses, when a request begins or its response is to be recorded.

use std::time::{Duration, Instant};

use futures_util::poll;
use tower_distributed_lock::{LockManager, lock::RejectionKind};

use super::{TIMEOUT, is_recorded, layer, record};
use crate::idempotency::{RECORD, WAIT};
use crate::once::{App, Runs, post};
use crate::support::{
    self, ClosedPort, Gate, Mode, PATIENCE, Proxy, RedisServer, clients, eventually, expires_in,
    is_before_redis_7, knows_what_was_said, minute, run, soon,
};

#[tokio::test]
async fn nothing_runs_while_redis_is_away() {
    let runs = Runs::default();
    let nobody = ClosedPort::new();
    let no_redis = LockManager::builder().connect_lazy(nobody.url()).unwrap();
    let mut server = RedisServer::start().await;
    let locks = LockManager::connect(&server.url()).await.unwrap();
    let app = App::new(&layer(&locks), runs.handler());
    app.send(post("k")).await.is_run(1);
    server.kill();
    for locks in [&no_redis, &locks] {
        for layer in [layer(locks), layer(locks).wait(WAIT)] {
            let app = App::new(&layer, runs.handler());
            for key in ["k", "l"] {
                let answer = app.send(post(key)).await;
                answer.is_rejected(503, RejectionKind::Unavailable);
                assert!(answer.head.headers.contains_key("retry-after"));
            }
        }
    }
    assert_eq!(runs.count(), 1);
    // Redis is back, and empty.
    server.restart().await;
    eventually("it runs again", || async {
        app.send(post("l")).await.status() == 200
    })
    .await;
    assert_eq!(runs.count(), 2);
}

#[tokio::test]
async fn an_answer_that_cannot_be_recorded_goes_out_and_the_key_stays_taken_until_it_can() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    for mode in [Mode::Hold, Mode::HoldAnswers, Mode::Close] {
        run(&redis, "FLUSHALL").await;
        let proxy = Proxy::start(server.port).await;
        let locks = minute().command_timeout(TIMEOUT);
        let locks = locks.connect(&proxy.url()).await.unwrap();
        let other = minute().connect(&server.url()).await.unwrap();
        let (runs, gate) = (Runs::default(), Gate::new());
        let app = App::new(&layer(&locks), runs.gated(&gate));
        let other = App::new(&layer(&other), runs.gated(&gate));
        let first = app.begin(post("k")).await;
        gate.arrived().await;
        let owner = record(&redis).await.unwrap();
        proxy.set(mode);
        let opened = Instant::now();
        gate.open();
        soon("a response", first).await.unwrap().is_run(1);
        let took = opened.elapsed();
        assert!(took >= TIMEOUT && took < PATIENCE / 2, "{took:?}");
        if mode == Mode::HoldAnswers {
            assert!(is_recorded(&redis).await);
        } else {
            // The key stays taken for no longer than its time to live, and no other request runs.
            assert_eq!(record(&redis).await.unwrap(), owner);
            assert!(expires_in(&redis, RECORD).await <= Duration::from_secs(60));
            other
                .send(post("k"))
                .await
                .is_rejected(409, RejectionKind::Held);
            // On this node, the lock stays that of the run whose completion is in flight.
            app.send(post("k"))
                .await
                .is_rejected(409, RejectionKind::Held);
        }
        proxy.set(Mode::Forward);
        eventually("it is recorded", || is_recorded(&redis)).await;
        other.send(post("k")).await.is_replay_of(1);
        eventually("this node knows it as well", || async {
            app.send(post("k")).await.is_replay()
        })
        .await;
        assert_eq!(runs.count(), 1);
    }
}

/// `tests/tracing` shows that this logs no error.
#[tokio::test]
async fn a_completion_that_is_sent_again_is_none_too_many() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let proxy = Proxy::start(server.port).await;
    let locks = minute().command_timeout(Duration::from_secs(30));
    let locks = locks.connect(&proxy.url()).await.unwrap();
    let (runs, gate) = (Runs::default(), Gate::new());
    let app = App::new(&layer(&locks), runs.gated(&gate));
    let mut first = app.begin(post("k")).await;
    gate.arrived().await;
    proxy.set(Mode::HoldAnswers);
    gate.open();
    eventually("it is recorded", || is_recorded(&redis)).await;
    assert!(poll!(&mut first).is_pending());
    let before = record(&redis).await;
    proxy.set(Mode::Close);
    eventually("the connection is closed", || async {
        clients(&redis).await.len() == 1
    })
    .await;
    proxy.set(Mode::Forward);
    // This is long before the timeout.
    soon("a response", first).await.unwrap().is_run(1);
    assert_eq!(record(&redis).await, before);
    app.send(post("k")).await.is_replay_of(1);
    assert_eq!(runs.count(), 1);
}

#[tokio::test]
async fn an_answer_that_redis_refuses_is_recorded_when_it_does_not_any_more() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let locks = minute().command_timeout(TIMEOUT);
    let locks = locks.connect(&server.url()).await.unwrap();
    let (runs, gate) = (Runs::default(), Gate::new());
    let app = App::new(&layer(&locks), runs.gated(&gate));
    let first = app.begin(post("k")).await;
    gate.arrived().await;
    run(&redis, "CONFIG SET maxmemory 1").await;
    gate.open();
    soon("a response", first).await.unwrap().is_run(1);
    assert!(!is_recorded(&redis).await);
    let refused = app.send(post("k")).await;
    assert!([409, 503].contains(&refused.status()));
    run(&redis, "CONFIG SET maxmemory 0").await;
    eventually("it is recorded", || is_recorded(&redis)).await;
    // The process whose response it is learns of that with Redis' reply.
    eventually("the lock is not held here any more", || async {
        app.send(post("k")).await.status() != 409
    })
    .await;
    app.send(post("k")).await.is_replay_of(1);
    assert_eq!(runs.count(), 1);
}

/// A duplicate that waits, on another node or on the same one, does not make the first run give up
/// its lock.
#[tokio::test]
async fn an_answer_that_redis_refuses_for_a_moment_is_replayed_to_whoever_waits_for_it() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let waits = |locks: &LockManager| layer(locks).wait(PATIENCE);
    for (round, is_elsewhere) in [true, false].into_iter().cycle().take(6).enumerate() {
        let one = minute().connect(&server.url()).await.unwrap();
        let two = minute().connect(&server.url()).await.unwrap();
        let (runs, gate) = (Runs::default(), Gate::new());
        let first = App::new(&waits(&one), runs.gated(&gate));
        let second = App::new(&waits(&two), runs.handler());
        let key = format!("refused-{round}");
        let running = first.begin(post(&key)).await;
        gate.arrived().await;
        run(&redis, "CONFIG SET maxmemory 1").await;
        run(&redis, "CONFIG RESETSTAT").await;
        gate.open();
        // Redis 6.2 counts what a script meets as `ERR`.
        let refused = match is_before_redis_7() {
            true => "errorstat_ERR",
            false => "errorstat_OOM",
        };
        eventually("Redis has refused the answer", || async {
            support::text(&redis, "INFO errorstats")
                .await
                .contains(refused)
        })
        .await;
        run(&redis, "CONFIG SET maxmemory 0").await;
        let duplicate = match is_elsewhere {
            true => second.send(post(&key)).await,
            false => first.send(post(&key)).await,
        };
        duplicate.is_replay_of(1);
        soon("its response", running).await.unwrap().is_run(1);
        assert_eq!(runs.count(), 1);
    }
}

#[tokio::test]
async fn who_waits_while_the_connection_breaks_gets_the_answer_that_was_given_meanwhile() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let proxy = Proxy::start(server.port).await;
    let one = minute().connect(&server.url()).await.unwrap();
    let two = minute().connect(&proxy.url()).await.unwrap();
    let (runs, gate) = (Runs::default(), Gate::new());
    let other = two.clone();
    let [one, two] = [one, two].map(|locks| App::new(&layer(&locks).wait(WAIT), runs.gated(&gate)));
    let first = one.begin(post("k")).await;
    gate.arrived().await;
    let mut waiting = Vec::new();
    for _ in 0..3 {
        waiting.push(two.begin(post("k")).await);
    }
    eventually("it waits", || async {
        let queue = "LLEN {lock:POST%3A/a:k}:queue:{lock:POST%3A/a:k}:record";
        run(&redis, queue).await == redis::Value::Int(1)
    })
    .await;
    knows_what_was_said(&other).await;
    proxy.set(Mode::Close);
    gate.open();
    soon("a response", first).await.unwrap().is_run(1);
    proxy.set(Mode::Forward);
    for waiting in waiting {
        soon("the same response", waiting)
            .await
            .unwrap()
            .is_replay_of(1);
    }
    assert_eq!(runs.count(), 1);
}

#[tokio::test]
async fn flushed_scripts_are_loaded_again() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let locks = minute().connect(&server.url()).await.unwrap();
    let (runs, gate) = (Runs::default(), Gate::new());
    let app = App::new(&layer(&locks), runs.gated(&gate));
    let first = app.begin(post("k")).await;
    gate.arrived().await;
    run(&redis, "SCRIPT FLUSH").await;
    gate.open();
    soon("a response", first).await.unwrap().is_run(1);
    app.send(post("k")).await.is_replay_of(1);
}
