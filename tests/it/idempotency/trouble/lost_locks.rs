//! A lock that is lost while its request runs, or is not.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use redis::aio::MultiplexedConnection;
use tower_distributed_lock::{
    Lease, LockManager, LockManagerBuilder,
    lock::{OnLost, RejectionKind},
};

use super::{layer, record};
use crate::idempotency::{RECORD, WAIT};
use crate::once::{self, Answer, App, Failed, InnerRequest, Runs, post, post_to, text};
use crate::support::{
    Gate, Mode, OnDrop, PATIENCE, Proxy, RedisServer, has_resp3, minute, run, short_lived, soon,
};

/// With RESP3, Redis tells of a loss. Without, the next renewal tells.
fn told_soon() -> LockManagerBuilder {
    match has_resp3() {
        true => minute(),
        false => short_lived(1500),
    }
}

/// Deletes the lock of the key `k` behind the back of its holder. Waits until another request for
/// that key runs in this process, which shows that the loss is known here.
async fn lose(redis: &MultiplexedConnection, app: &App) -> Answer {
    assert_eq!(
        run(redis, &format!("DEL {RECORD}")).await,
        redis::Value::Int(1)
    );
    let started = Instant::now();
    loop {
        let answer = app.send(post("k")).await;
        if answer.status() != 409 {
            return answer;
        }
        assert!(started.elapsed() < PATIENCE, "the loss is not noticed");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn a_handler_that_takes_longer_than_the_time_to_live_runs_once() {
    let server = RedisServer::start().await;
    let redis = short_lived(800).connect(&server.url()).await.unwrap();
    let other = short_lived(800).connect(&server.url()).await.unwrap();
    let memory = short_lived(800).in_memory().unwrap();
    for [one, two] in [[redis, other], [memory.clone(), memory]] {
        let (runs, gate) = (Runs::default(), Gate::new());
        let [one, two] = [one, two].map(|locks| App::new(&layer(&locks), runs.gated(&gate)));
        let first = one.begin(post("k")).await;
        gate.arrived().await;
        let started = Instant::now();
        while started.elapsed() < Duration::from_millis(1700) {
            for app in [&one, &two] {
                app.send(post("k"))
                    .await
                    .is_rejected(409, RejectionKind::Held);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        gate.open();
        soon("a response", first).await.unwrap().is_run(1);
        two.send(post("k")).await.is_replay_of(1);
        assert_eq!(runs.count(), 1);
    }
}

/// A handler behind a gate, and whether its first run was dropped.
fn stoppable(
    runs: &Runs,
    gate: &Gate,
) -> (
    impl Fn(InnerRequest) -> BoxFuture<'static, once::Result> + Clone + Send + Sync + 'static + use<>,
    Arc<AtomicBool>,
) {
    let (note, is_dropped) = OnDrop::new();
    let note = Arc::new(Mutex::new(Some(note)));
    let gate = gate.clone();
    let handler = runs.then(move |run, _| {
        let (note, gate) = (note.lock().unwrap().take(), gate.clone());
        let handler: BoxFuture<'static, once::Result> = Box::pin(async move {
            let _note = note;
            gate.pass().await;
            Ok(text(format!("run {run}")))
        });
        handler
    });
    (handler, is_dropped)
}

#[tokio::test]
async fn a_handler_whose_lock_is_lost_is_stopped_and_the_next_one_is_left_alone() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let [one, two] = [told_soon(), told_soon()];
    let one = one.connect(&server.url()).await.unwrap();
    let two = two.connect(&server.url()).await.unwrap();
    let (runs, gate) = (Runs::default(), Gate::new());
    let (handler, is_dropped) = stoppable(&runs, &gate);
    let app = App::new(&layer(&one), handler.clone());
    let first = app.begin(post("k")).await;
    gate.arrived().await;
    run(&redis, &format!("DEL {RECORD}")).await;
    // Another node runs it now.
    let other = App::new(&layer(&two), handler);
    let second = other.begin(post("k")).await;
    gate.arrived().await;
    let first = soon("the first is stopped", first).await.unwrap();
    first.is_rejected(503, RejectionKind::Lost);
    assert!(is_dropped.load(Ordering::SeqCst));
    // Giving up, the first run has not touched the lock of the second.
    for app in [&app, &other] {
        app.send(post("k"))
            .await
            .is_rejected(409, RejectionKind::Held);
    }
    gate.open();
    soon("a response", second).await.unwrap().is_run(2);
    app.send(post("k")).await.is_replay_of(2);
    assert_eq!(runs.count(), 2);
}

#[tokio::test]
async fn a_handler_that_holds_for_too_long_is_stopped() {
    let locks = short_lived(300).max_hold(Duration::from_millis(400));
    let (runs, gate) = (Runs::default(), Gate::new());
    let (handler, is_dropped) = stoppable(&runs, &gate);
    let app = App::new(&layer(&locks.in_memory().unwrap()).wait(WAIT), handler);
    let first = app.begin(post("k")).await;
    gate.arrived().await;
    let second = app.begin(post("k")).await;
    let first = soon("the first is stopped", first).await.unwrap();
    first.is_rejected(503, RejectionKind::Lost);
    assert!(is_dropped.load(Ordering::SeqCst));
    gate.arrived().await;
    gate.open();
    soon("a response", second).await.unwrap().is_run(2);
    app.send(post("k")).await.is_replay_of(2);
}

#[tokio::test]
async fn a_handler_that_goes_on_without_its_lock_does_not_replace_a_newer_answer() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let one = told_soon().connect(&server.url()).await.unwrap();
    let two = told_soon().connect(&server.url()).await.unwrap();
    let (runs, gate) = (Runs::default(), Gate::new());
    let layer_of = |locks: &LockManager| layer(locks).on_lost(OnLost::Continue);
    let slow = App::new(&layer_of(&one), runs.gated(&gate));
    let [quick, other] = [&one, &two].map(|locks| App::new(&layer_of(locks), runs.handler()));
    let first = slow.begin(post("k")).await;
    gate.arrived().await;
    lose(&redis, &quick).await.is_run(2);
    let newer = record(&redis).await;
    gate.open();
    // The client gets the response of its own run.
    soon("a response", first).await.unwrap().is_run(1);
    for app in [&quick, &other, &slow] {
        app.send(post("k")).await.is_replay_of(2);
    }
    assert_eq!(record(&redis).await, newer);
    assert_eq!(runs.count(), 2);
}

/// Here only Redis knows of the loss: when the response is to be recorded, there is another owner.
#[tokio::test]
async fn an_answer_does_not_replace_what_somebody_else_has_put_there() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let locks = minute().connect(&server.url()).await.unwrap();
    let (runs, gate) = (Runs::default(), Gate::new());
    let app = App::new(&layer(&locks).on_lost(OnLost::Continue), runs.gated(&gate));
    let first = app.begin(post("k")).await;
    gate.arrived().await;
    let owner = "0123456789abcdef0123456789abcdef:7";
    run(&redis, &format!("SET {RECORD} {owner} PX 60000")).await;
    gate.open();
    soon("a response", first).await.unwrap().is_run(1);
    assert_eq!(record(&redis).await.unwrap(), owner.as_bytes());
    app.send(post("k"))
        .await
        .is_rejected(409, RejectionKind::Held);
}

/// On a single thread, the completions of both handlers go out in one call.
#[tokio::test]
async fn a_stale_answer_never_becomes_that_of_another_key() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let locks = told_soon().connect(&server.url()).await.unwrap();
    let (runs, lost, kept) = (Runs::default(), Gate::new(), Gate::new());
    let layer = layer(&locks).on_lost(OnLost::Continue);
    let losing = App::new(&layer, runs.gated(&lost));
    let keeping = App::new(&layer, runs.gated(&kept));
    let quick = App::new(&layer, runs.handler());
    let first = losing.begin(post("k")).await;
    lost.arrived().await;
    let second = keeping.begin(post("kept")).await;
    kept.arrived().await;
    lose(&redis, &quick).await.is_run(3);
    lost.open();
    kept.open();
    soon("a response", first).await.unwrap().is_run(1);
    soon("a response", second).await.unwrap().is_run(2);
    quick.send(post("k")).await.is_replay_of(3);
    quick.send(post("kept")).await.is_replay_of(2);
}

#[tokio::test]
async fn who_waits_for_a_process_that_died_runs_when_its_lock_has_expired() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let locks = minute().connect(&server.url()).await.unwrap();
    let runs = Runs::default();
    let dead = "0123456789abcdef0123456789abcdef:7";
    run(&redis, &format!("SET {RECORD} {dead} PX 400")).await;
    let impatient = App::new(&layer(&locks), runs.handler());
    impatient
        .send(post("k"))
        .await
        .is_rejected(409, RejectionKind::Held);
    let app = App::new(&layer(&locks).wait(WAIT), runs.handler());
    let waiting = [
        app.begin(post("k")).await,
        app.begin(post("k")).await,
        app.begin(post("k")).await,
    ];
    let mut answers = Vec::new();
    for waiting in waiting {
        answers.push(soon("a response", waiting).await.unwrap());
    }
    assert_eq!(answers.iter().filter(|it| it.is_replay()).count(), 2);
    assert!(answers.iter().all(|answer| answer.body == "run 1"));
}

// Handlers that block their thread.

/// With the locks in memory, on a single thread, neither the renewal nor the loss gets a turn.
#[tokio::test]
async fn a_handler_that_blocked_past_its_lease_is_no_success_unless_its_answer_is_kept() {
    let server = RedisServer::start().await;
    let briefly = short_lived(300).max_hold(Duration::from_millis(200));
    let redis = briefly.connect(&server.url()).await.unwrap();
    let memory = short_lived(300).in_memory().unwrap();
    for locks in [redis, memory] {
        for (status, on_lost) in [
            (200, OnLost::Cancel),
            (500, OnLost::Cancel),
            (200, OnLost::Continue),
        ] {
            let runs = Runs::default();
            let handler = runs.then(move |run, request: InnerRequest| {
                let lease = request.extensions().get::<Lease>().unwrap().clone();
                if run == 1 {
                    // Until the store has dropped the lock as well.
                    std::thread::sleep(Duration::from_millis(400));
                    assert!(!lease.is_held());
                }
                let mut response = text(format!("run {run}"));
                *response.status_mut() = status.try_into().unwrap();
                std::future::ready(Ok(response))
            });
            let app = App::new(&layer(&locks).on_lost(on_lost), handler);
            let request = || post_to(&format!("/{status}/{on_lost:?}"), "k");
            let first = app.send(request()).await;
            match on_lost {
                OnLost::Continue => first.is_run(1),
                _ => first.is_rejected(503, RejectionKind::Lost),
            }
            // The run that lost its lock left nothing behind.
            let second = app.send(request()).await;
            assert_eq!((second.status(), second.is_replay()), (status, false));
            assert_eq!(second.body, "run 2");
        }
    }
}

/// The only thread of its runtime is blocked, so the loss has not been noticed yet. Redis does not
/// tell what became of the response.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_handler_that_blocked_past_its_lease_is_no_success_if_redis_does_not_answer() {
    let server = RedisServer::start().await;
    let proxy = Arc::new(Proxy::start(server.port).await);
    let locks = short_lived(300).connect(&proxy.url()).await.unwrap();
    let silent = Arc::clone(&proxy);
    let runs = Runs::default();
    let handler = runs.then(move |run, request: InnerRequest| {
        let silent = Arc::clone(&silent);
        async move {
            silent.set(Mode::Hold);
            let lease = request.extensions().get::<Lease>().unwrap();
            while lease.is_held() {
                std::thread::sleep(Duration::from_millis(5));
            }
            Ok(text(format!("run {run}")))
        }
    });
    let app = App::new(&layer(&locks), handler);
    // On the thread that is blocked, so that nothing else runs before the handler is done.
    let answer = tokio::spawn(async move { app.send(post("k")).await });
    let answer = soon("a response", answer).await.unwrap();
    answer.is_rejected(503, RejectionKind::Lost);
}

/// The lease is over, but the lock is still there, so no other request can have run.
#[tokio::test]
async fn an_answer_that_takes_its_locks_place_stands_however_late() {
    // The store keeps it for 100 ms longer.
    let locks = short_lived(2000).in_memory().unwrap();
    let runs = Runs::default();
    let handler = runs.then(move |run, request: InnerRequest| {
        let lease = request.extensions().get::<Lease>().unwrap().clone();
        while lease.is_held() {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::future::ready(Ok(text(format!("run {run}"))))
    });
    let app = App::new(&layer(&locks), handler);
    app.send(post("k")).await.is_run(1);
    app.send(post("k")).await.is_replay_of(1);
}

#[tokio::test]
async fn the_error_of_a_service_that_blocked_past_its_lease_comes_through() {
    let locks = short_lived(300).in_memory().unwrap();
    let handler = |request: InnerRequest| {
        let lease = request.extensions().get::<Lease>().unwrap().clone();
        while lease.is_held() {
            std::thread::sleep(Duration::from_millis(5));
        }
        std::future::ready(Err(Failed(7)))
    };
    let app = App::new(&layer(&locks), handler);
    let error = soon("an error", app.call(post("k"))).await.unwrap_err();
    assert_eq!(error, Failed(7));
}

/// Two runs whose responses have the same bytes cannot be taken for one.
#[tokio::test]
async fn a_run_that_lost_its_lock_is_no_success_though_another_stored_the_same_response() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let one = minute().connect(&server.url()).await.unwrap();
    let two = minute().connect(&server.url()).await.unwrap();
    let (runs, gate) = (Runs::default(), Gate::new());
    let first_gate = gate.clone();
    let handler = runs.then(move |run, _: InnerRequest| {
        let gate = first_gate.clone();
        async move {
            if run == 1 {
                gate.pass().await;
            }
            Ok(text("the same"))
        }
    });
    let [one, two] = [one, two].map(|locks| App::new(&layer(&locks), handler.clone()));
    let first = one.begin(post("k")).await;
    gate.arrived().await;
    // Redis tracks the lock from its first renewal on: the holder does not know of this.
    run(&redis, &format!("DEL {RECORD}")).await;
    let second = two.send(post("k")).await;
    assert_eq!((second.status(), runs.count()), (200, 2));
    gate.open();
    let first = soon("a response", first).await.unwrap();
    first.is_rejected(503, RejectionKind::Lost);
}
