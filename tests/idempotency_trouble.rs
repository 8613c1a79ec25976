//! The idempotency layer when Redis, a lock or a record is lost: one run all the same, or a clear answer.

mod common;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use common::once::{Answer, App, Failed, Inside, Runs, post, post_to, text};
use common::{
    Gate, Mode, OnDrop, PATIENCE, Proxy, RedisServer, eventually, free_port, has_resp3, minute,
    run, short_lived, soon,
};
use futures_util::poll;
use redis::aio::MultiplexedConnection;
use tower_distributed_lock::{
    IdempotencyLayer, Lease, LockManager, LockManagerBuilder,
    lock::{OnLost, Rejection, RejectionKind},
};

/// Longer than any test.
const WAIT: Duration = Duration::from_secs(3600);
const TIMEOUT: Duration = Duration::from_millis(300);

/// What the key `k` of [`post`] is called in Redis.
const RECORD: &str = "{lock:POST%3A/a:k}:record";

async fn record(redis: &MultiplexedConnection) -> Option<Vec<u8>> {
    let mut get = redis::cmd("GET");
    let value = get.arg(RECORD).query_async(&mut redis.clone()).await;
    value.unwrap()
}

async fn is_recorded(redis: &MultiplexedConnection) -> bool {
    let record = record(redis).await;
    record.is_some_and(|record| record.starts_with(b"TDLR"))
}

async fn expires_in(redis: &MultiplexedConnection) -> Duration {
    let mut pttl = redis::cmd("PTTL");
    let left: i64 = pttl
        .arg(RECORD)
        .query_async(&mut redis.clone())
        .await
        .unwrap();
    assert!(left > 0, "it has no expiry, or is not there: {left}");
    Duration::from_millis(left as u64)
}

#[track_caller]
fn is_rejected(answer: &Answer, status: u16, kind: RejectionKind) {
    answer.is_refused(status);
    let rejection = answer.head.extensions.get::<Rejection>().unwrap();
    assert_eq!(rejection.kind(), kind);
}

fn layer(locks: &LockManager) -> IdempotencyLayer {
    IdempotencyLayer::new(locks.clone())
}

// A lock that is lost, or is not.

/// With RESP3, Redis tells of a loss. Without, the next renewal does.
fn told_soon() -> LockManagerBuilder {
    match has_resp3() {
        true => minute(),
        false => short_lived(1500),
    }
}

/// Deletes the lock of the key `k` behind the back of its holder, and waits until another request runs in this process
/// for that key, which says that the loss is known here.
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
                is_rejected(&app.send(post("k")).await, 409, RejectionKind::Held);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        gate.open();
        soon("an answer", first).await.unwrap().is_run(1);
        two.send(post("k")).await.is_replay_of(1);
        assert_eq!(runs.count(), 1);
    }
}

/// The first run notes when it is stopped; later ones go through the gate.
fn stoppable(
    runs: &Runs,
    gate: &Gate,
) -> (
    impl Fn(Inside) -> futures_util::future::BoxFuture<'static, common::once::Result>
    + Clone
    + Send
    + Sync
    + 'static
    + use<>,
    std::sync::Arc<std::sync::atomic::AtomicBool>,
) {
    let (note, is_dropped) = OnDrop::new();
    let note = std::sync::Arc::new(std::sync::Mutex::new(Some(note)));
    let gate = gate.clone();
    let handler = runs.then(move |run, _| {
        let (note, gate) = (note.lock().unwrap().take(), gate.clone());
        let handler: futures_util::future::BoxFuture<'static, common::once::Result> =
            Box::pin(async move {
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
    is_rejected(&first, 503, RejectionKind::Lost);
    assert!(is_dropped.load(Ordering::SeqCst));
    // What it gave up was not the other's.
    for app in [&app, &other] {
        is_rejected(&app.send(post("k")).await, 409, RejectionKind::Held);
    }
    gate.open();
    soon("an answer", second).await.unwrap().is_run(2);
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
    is_rejected(&first, 503, RejectionKind::Lost);
    assert!(is_dropped.load(Ordering::SeqCst));
    gate.arrived().await;
    gate.open();
    soon("an answer", second).await.unwrap().is_run(2);
    app.send(post("k")).await.is_replay_of(2);
}

/// With the locks in memory, in one thread, neither the renewal nor the loss gets a turn.
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
            let handler = runs.then(move |run, request: Inside| {
                let lease = request.extensions().get::<Lease>().unwrap().clone();
                if run == 1 {
                    // Until the store has it no more either.
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
                _ => is_rejected(&first, 503, RejectionKind::Lost),
            }
            // What was lost left nothing.
            let second = app.send(request()).await;
            assert_eq!((second.status(), second.is_replay()), (status, false));
            assert_eq!(second.body, "run 2");
        }
    }
}

/// The only thread of its runtime is blocked: nobody has noticed the loss yet, and Redis does not say what became of the answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_handler_that_blocked_past_its_lease_is_no_success_if_redis_does_not_answer() {
    let server = RedisServer::start().await;
    let proxy = Arc::new(Proxy::start(server.port).await);
    let locks = short_lived(300).connect(&proxy.url()).await.unwrap();
    let silent = Arc::clone(&proxy);
    let runs = Runs::default();
    let handler = runs.then(move |run, request: Inside| {
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
    // On the thread that is blocked, so that nothing goes on before the handler is done.
    let answer = tokio::spawn(async move { app.send(post("k")).await });
    let answer = soon("an answer", answer).await.unwrap();
    is_rejected(&answer, 503, RejectionKind::Lost);
}

/// The lease is over, and the lock still there: nobody else can have run.
#[tokio::test]
async fn an_answer_that_takes_its_locks_place_stands_however_late() {
    // The store keeps it for 100 ms longer.
    let locks = short_lived(2000).in_memory().unwrap();
    let runs = Runs::default();
    let handler = runs.then(move |run, request: Inside| {
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
    let handler = |request: Inside| {
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
    // Its client gets what it did.
    soon("an answer", first).await.unwrap().is_run(1);
    for app in [&quick, &other, &slow] {
        app.send(post("k")).await.is_replay_of(2);
    }
    assert_eq!(record(&redis).await, newer);
    assert_eq!(runs.count(), 2);
}

/// The same, where the loss is noticed by Redis alone: there is another owner when the answer is to be recorded.
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
    soon("an answer", first).await.unwrap().is_run(1);
    assert_eq!(record(&redis).await.unwrap(), owner.as_bytes());
    is_rejected(&app.send(post("k")).await, 409, RejectionKind::Held);
}

/// In one thread: what the two handlers have to tell Redis goes out in one call.
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
    soon("an answer", first).await.unwrap().is_run(1);
    soon("an answer", second).await.unwrap().is_run(2);
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
    is_rejected(&impatient.send(post("k")).await, 409, RejectionKind::Held);
    let app = App::new(&layer(&locks).wait(WAIT), runs.handler());
    let waiting = [
        app.begin(post("k")).await,
        app.begin(post("k")).await,
        app.begin(post("k")).await,
    ];
    let mut answers = Vec::new();
    for waiting in waiting {
        answers.push(soon("an answer", waiting).await.unwrap());
    }
    assert_eq!(answers.iter().filter(|it| it.is_replay()).count(), 2);
    assert!(answers.iter().all(|answer| answer.body == "run 1"));
}

// Redis is away.

#[tokio::test]
async fn nothing_runs_while_redis_is_away() {
    let runs = Runs::default();
    let nobody = format!("redis://127.0.0.1:{}", free_port());
    let nobody = LockManager::builder().connect_lazy(&nobody).unwrap();
    let mut server = RedisServer::start().await;
    let locks = LockManager::connect(&server.url()).await.unwrap();
    let app = App::new(&layer(&locks), runs.handler());
    app.send(post("k")).await.is_run(1);
    server.kill();
    for locks in [&nobody, &locks] {
        for layer in [layer(locks), layer(locks).wait(WAIT)] {
            let app = App::new(&layer, runs.handler());
            for key in ["k", "l"] {
                let answer = app.send(post(key)).await;
                is_rejected(&answer, 503, RejectionKind::Unavailable);
                assert!(answer.head.headers.contains_key("retry-after"));
            }
        }
    }
    assert_eq!(runs.count(), 1);
    // Back, with nothing in it.
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
        soon("an answer", first).await.unwrap().is_run(1);
        let took = opened.elapsed();
        assert!(took >= TIMEOUT && took < PATIENCE / 2, "{took:?}");
        if mode == Mode::HoldAnswers {
            assert!(is_recorded(&redis).await);
        } else {
            // Taken, for no longer than its time to live, and nobody runs.
            assert_eq!(record(&redis).await.unwrap(), owner);
            assert!(expires_in(&redis).await <= Duration::from_secs(60));
            is_rejected(&other.send(post("k")).await, 409, RejectionKind::Held);
            // Here, the lock stays that of the run whose answer is on its way.
            is_rejected(&app.send(post("k")).await, 409, RejectionKind::Held);
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

/// What this thread logs.
#[cfg(feature = "tracing")]
fn log() -> (
    std::sync::Arc<std::sync::Mutex<Vec<u8>>>,
    tracing::subscriber::DefaultGuard,
) {
    #[derive(Clone)]
    struct Writer(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);
    impl std::io::Write for Writer {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let written = std::sync::Arc::default();
    let writer = Writer(std::sync::Arc::clone(&written));
    let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone());
    (
        written,
        tracing::subscriber::set_default(subscriber.finish()),
    )
}

#[tokio::test]
async fn a_completion_that_is_sent_again_is_none_too_many() {
    #[cfg(feature = "tracing")]
    let (log, _guard) = log();
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
        let clients = run(&redis, "CLIENT LIST").await;
        let clients: String = redis::from_redis_value(clients).unwrap();
        clients.lines().count() == 1
    })
    .await;
    proxy.set(Mode::Forward);
    // Long before the timeout.
    soon("an answer", first).await.unwrap().is_run(1);
    assert_eq!(record(&redis).await, before);
    app.send(post("k")).await.is_replay_of(1);
    assert_eq!(runs.count(), 1);
    #[cfg(feature = "tracing")]
    {
        let log = String::from_utf8(log.lock().unwrap().clone()).unwrap();
        assert!(log.contains("no connection to Redis"), "{log}");
        assert!(!log.contains("could not be recorded"), "{log}");
    }
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
    soon("an answer", first).await.unwrap().is_run(1);
    assert!(!is_recorded(&redis).await);
    let refused = app.send(post("k")).await;
    assert!([409, 503].contains(&refused.status()));
    run(&redis, "CONFIG SET maxmemory 0").await;
    eventually("it is recorded", || is_recorded(&redis)).await;
    // The process whose answer it is learns of that with the reply.
    eventually("the lock is not held here any more", || async {
        app.send(post("k")).await.status() != 409
    })
    .await;
    app.send(post("k")).await.is_replay_of(1);
    assert_eq!(runs.count(), 1);
}

#[tokio::test]
async fn who_waits_while_the_connection_breaks_gets_the_answer_that_was_given_meanwhile() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let proxy = Proxy::start(server.port).await;
    let one = minute().connect(&server.url()).await.unwrap();
    let two = minute().connect(&proxy.url()).await.unwrap();
    let (runs, gate) = (Runs::default(), Gate::new());
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
    proxy.set(Mode::Close);
    gate.open();
    soon("an answer", first).await.unwrap().is_run(1);
    proxy.set(Mode::Forward);
    for waiting in waiting {
        soon("the same answer", waiting)
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
    soon("an answer", first).await.unwrap().is_run(1);
    app.send(post("k")).await.is_replay_of(1);
}

// Records.

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
        let left = expires_in(&redis).await;
        assert!(left > 50 * second && left <= 60 * second, "{left:?}");
        gate.open();
        soon("an answer", first).await.unwrap().is_run(1);
        let left = expires_in(&redis).await;
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
    // Another answer, in the right form.
    let mut damaged = good.clone();
    let body = damaged.windows(5).position(|text| text == b"run 1");
    damaged[body.unwrap() + 4] = b'3';
    for bad in [
        b"something else".to_vec(),
        b"".to_vec(),
        b"TDLR".to_vec(),
        newer,
        flagged,
        damaged,
        good[..good.len() - 1].to_vec(),
        [&good[..], b"x"].concat(),
    ] {
        let set = async |value: &[u8]| {
            let mut set = redis::cmd("SET");
            let set = set.arg(RECORD).arg(value);
            let () = set.query_async(&mut redis.clone()).await.unwrap();
        };
        set(&bad).await;
        for layer in [layer(&locks), layer(&locks).wait(WAIT)] {
            let app = App::new(&layer, runs.handler());
            let answer = app.send(post("k")).await;
            is_rejected(&answer, 500, RejectionKind::Unreadable);
        }
        assert_eq!(record(&redis).await.unwrap(), bad);
    }
    // What is no string at all is none of ours, and Redis says so.
    run(&redis, &format!("DEL {RECORD}")).await;
    run(&redis, &format!("RPUSH {RECORD} x")).await;
    let app = App::new(&layer(&locks), runs.handler());
    let answer = app.send(post("k")).await;
    is_rejected(&answer, 503, RejectionKind::Unavailable);
    assert_eq!(runs.count(), 1);
}

/// Where records are evicted, or somebody deletes them, a duplicate runs: there is nothing to tell it by.
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

/// A duplicate that waits, on another node or on the same, makes nobody give up the lock of the first run.
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
        gate.open();
        eventually("Redis has refused the answer", || async {
            let errors = run(&redis, "INFO errorstats").await;
            let errors: String = redis::from_redis_value(errors).unwrap();
            errors.contains("OOM")
        })
        .await;
        run(&redis, "CONFIG SET maxmemory 0").await;
        run(&redis, "CONFIG RESETSTAT").await;
        let duplicate = match is_elsewhere {
            true => second.send(post(&key)).await,
            false => first.send(post(&key)).await,
        };
        duplicate.is_replay_of(1);
        soon("its answer", running).await.unwrap().is_run(1);
        assert_eq!(runs.count(), 1);
    }
}

/// Redis closes the connection of a subscriber that is to be sent more than 32 MiB at once.
#[tokio::test]
async fn long_answers_are_replayed_however_many_are_wanted_at_once() {
    let server = RedisServer::start().await;
    let locks = minute().connect(&server.url()).await.unwrap();
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
            let response = soon("an answer", response).await.unwrap();
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
    // They have a connection of their own, and that of the locks has not noticed.
    held.release().await.unwrap();
}
