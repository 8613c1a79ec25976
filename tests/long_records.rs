//! Records that are too long for the connection of the locks: they go another way, and no lock
//! notices.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use common::once::{Answer, App, Runs, post, text};
use common::{Mode, PATIENCE, Proxy, RedisServer, eventually, has_resp3, minute, run, soon};
use futures_util::future::join_all;
use http::{HeaderValue, Response};
use redis::Value;
use redis::aio::MultiplexedConnection;
use tower_distributed_lock::{
    IdempotencyLayer, LockManager, LockManagerBuilder,
    lock::{Rejection, RejectionKind},
};

const MIB: usize = 1 << 20;
/// What the key `k` of [`post`] is called in Redis, and its parts.
const RECORD: &str = "{lock:POST%3A/a:k}:record";
const PARTS: &str = "{lock:POST%3A/a:k}:part:";

/// No two parts of it are alike.
fn content(length: usize) -> Bytes {
    let mut content = vec![0; length];
    for (number, piece) in content.chunks_exact_mut(1024).enumerate() {
        piece[..8].copy_from_slice(&(number as u64).to_ne_bytes());
    }
    content.into()
}

fn layer(locks: &LockManager) -> IdempotencyLayer {
    IdempotencyLayer::new(locks.clone()).max_response_body(256 * MIB)
}

/// Answers with this body.
fn app(locks: &LockManager, runs: &Runs, body: &Bytes) -> App {
    let body = body.clone();
    let handler = runs.then(move |_, _| std::future::ready(Ok(text(body.clone()))));
    App::new(&layer(locks), handler)
}

#[track_caller]
fn is_whole(answer: &Answer, body: &Bytes) {
    assert_eq!(answer.status(), 200);
    assert!(answer.body == body, "another body of {}", answer.body.len());
}

#[track_caller]
fn is_replay(answer: &Answer, body: &Bytes) {
    is_whole(answer, body);
    assert!(answer.is_replay());
}

/// The duplicate of an answer that could not be kept whole.
#[track_caller]
fn is_short_replay(answer: &Answer) {
    assert_eq!(answer.status(), 200);
    assert!(answer.is_replay());
    assert_eq!(answer.head.headers["idempotent-body"], "not-kept");
    assert!(answer.body.is_empty());
}

#[track_caller]
fn is_rejected(answer: &Answer, status: u16, kind: RejectionKind) {
    answer.is_refused(status);
    let rejection = answer.head.extensions.get::<Rejection>().unwrap();
    assert_eq!(rejection.kind(), kind);
}

/// The names of the parts, in order.
async fn parts(redis: &MultiplexedConnection) -> Vec<String> {
    let mut keys = redis::cmd("KEYS");
    let keys = keys.arg("*").query_async(&mut redis.clone()).await;
    let mut keys: Vec<String> = keys.unwrap();
    keys.retain(|key| key.contains(":part:"));
    assert!(keys.iter().all(|key| key.starts_with(PARTS)));
    keys.sort_by_key(|key| key.rsplit(':').next().unwrap().parse::<usize>().unwrap());
    keys
}

async fn has_parts(redis: &MultiplexedConnection, number: usize) {
    eventually("so many parts are written", || async {
        parts(redis).await.len() >= number
    })
    .await;
}

async fn expires_in(redis: &MultiplexedConnection, key: &str) -> Duration {
    let mut pttl = redis::cmd("PTTL");
    let left: i64 = pttl.arg(key).query_async(&mut redis.clone()).await.unwrap();
    assert!(left > 0, "it has no expiry, or is not there: {left}");
    Duration::from_millis(left as u64)
}

/// Parts that no manifest leads to are gone within minutes.
async fn expire_soon(redis: &MultiplexedConnection, parts: &[String]) {
    for part in parts {
        assert!(expires_in(redis, part).await <= Duration::from_secs(5 * 60));
    }
}

async fn calls(redis: &MultiplexedConnection, command: &str) -> usize {
    let info: String = redis::cmd("INFO")
        .arg("commandstats")
        .query_async(&mut redis.clone())
        .await
        .unwrap();
    let calls = info.lines().find_map(|line| {
        let calls = line.strip_prefix(&format!("cmdstat_{command}:calls="))?;
        calls.split(',').next()?.parse().ok()
    });
    calls.unwrap_or(0)
}

async fn clients(redis: &MultiplexedConnection) -> Vec<String> {
    let mut list = redis::cmd("CLIENT");
    let list = list.arg("LIST").query_async(&mut redis.clone()).await;
    let list: String = list.unwrap();
    let id = |line: &str| {
        line.split(' ')
            .next()?
            .strip_prefix("id=")
            .map(str::to_owned)
    };
    list.lines().filter_map(id).collect()
}

/// Closes connections that were made since then.
async fn close_others(redis: &MultiplexedConnection, before: &[String]) {
    let now = clients(redis).await;
    let others: Vec<_> = now.iter().filter(|id| !before.contains(id)).collect();
    assert_eq!(others.len(), 1, "the connection for long records");
    run(redis, &format!("CLIENT KILL ID {}", others[0])).await;
}

/// Tells of a lost lock soon, and takes its time with all else.
fn patient() -> LockManagerBuilder {
    let ttl = Duration::from_secs(if has_resp3() { 60 } else { 3 });
    LockManager::builder().ttl(ttl).command_timeout(ttl)
}

/// Takes and releases locks of other keys until it is dropped, and counts them.
struct Others {
    served: Arc<AtomicUsize>,
    is_over: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<()>,
}

impl Others {
    fn of(locks: &LockManager) -> Self {
        let (served, is_over) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        let (locks, count, over) = (locks.clone(), Arc::clone(&served), Arc::clone(&is_over));
        let task = tokio::spawn(async move {
            while !over.load(Ordering::SeqCst) {
                let number = count.load(Ordering::SeqCst);
                let guard = locks.try_acquire(format!("other{number}")).await.unwrap();
                guard.release().await.unwrap();
                count.fetch_add(1, Ordering::SeqCst);
            }
        });
        Self {
            served,
            is_over,
            task,
        }
    }

    fn served(&self) -> usize {
        self.served.load(Ordering::SeqCst)
    }

    async fn end(self) {
        self.is_over.store(true, Ordering::SeqCst);
        soon("the last of the others", self.task).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_lock_waits_for_a_long_record_that_is_written_or_read_over_a_slow_link() {
    let server = RedisServer::start().await;
    let proxy = Proxy::start(server.port).await;
    // Less than a record takes.
    let limit = Duration::from_secs(3);
    let locks = LockManager::builder().ttl(limit).command_timeout(limit);
    let locks = locks.connect(&proxy.url()).await.unwrap();
    let (runs, body) = (Runs::default(), content(64 * MIB));
    let app = app(&locks, &runs, &body);
    let held = locks.try_acquire("held").await.unwrap();
    proxy.set(Mode::Throttle(12_500_000));
    for is_read in [false, true] {
        let others = Others::of(&locks);
        let mut answer = app.call(post("k"));
        // All of these were answered before the record was through.
        let served = loop {
            tokio::select! {
                biased;
                answer = &mut answer => {
                    let answer = Answer::of(answer.unwrap()).await;
                    is_whole(&answer, &body);
                    assert_eq!(answer.is_replay(), is_read);
                    break others.served();
                }
                () = tokio::time::sleep(Duration::from_millis(20)) => {}
            }
        };
        others.end().await;
        assert!(
            served > 10,
            "only {served} were served in five seconds and more"
        );
        assert_eq!(held.lease().lost_reason(), None);
    }
    assert_eq!(runs.count(), 1);
    held.release().await.unwrap();
}

#[tokio::test]
async fn no_lock_waits_for_a_long_record_that_does_not_get_through() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let proxy = Proxy::start(server.port).await;
    let locks = patient().connect(&proxy.url()).await.unwrap();
    let (runs, body) = (Runs::default(), content(4 * MIB));
    let app = app(&locks, &runs, &body);
    let held = locks.try_acquire("held").await.unwrap();
    for _ in 0..2 {
        proxy.set(Mode::First(3 * MIB as u64 / 2));
        let answer = app.begin(post("k")).await;
        if runs.count() == 1 {
            has_parts(&redis, 1).await;
        }
        for number in 0..100 {
            let other = locks.try_acquire(format!("{number}")).await.unwrap();
            other.release().await.unwrap();
        }
        assert!(!answer.is_finished());
        proxy.set(Mode::Forward);
        is_whole(&soon("the answer", answer).await.unwrap(), &body);
    }
    held.release().await.unwrap();
}

#[tokio::test]
async fn a_record_of_any_length_is_replayed_as_it_was() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let locks = minute().connect(&server.url()).await.unwrap();
    let other = minute().connect(&server.url()).await.unwrap();
    let overhead = {
        let runs = Runs::default();
        let answer = app(&locks, &runs, &content(0)).send(post("k")).await;
        is_whole(&answer, &content(0));
        match run(&redis, &format!("STRLEN {RECORD}")).await {
            Value::Int(length) => length as usize,
            other => panic!("{other:?}"),
        }
    };
    for (record, in_parts) in [
        (16 * 1024, 0),
        (16 * 1024 + 1, 1),
        (MIB, 1),
        (MIB + 1, 2),
        (3 * MIB, 3),
    ] {
        run(&redis, "FLUSHALL").await;
        let (runs, body) = (Runs::default(), content(record - overhead));
        let [one, two] = [&locks, &other].map(|locks| app(locks, &runs, &body));
        is_whole(&one.send(post("k")).await, &body);
        assert_eq!(parts(&redis).await.len(), in_parts);
        for app in [one, two] {
            is_replay(&app.send(post("k")).await, &body);
        }
        assert_eq!(runs.count(), 1);
    }
}

#[tokio::test]
async fn parts_outlive_their_record_and_not_for_long() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let (ttl, hold, second) = (60, 100, Duration::from_secs(1));
    let locks = minute().max_hold(second * hold).command_timeout(second);
    let locks = locks.connect(&server.url()).await.unwrap();
    let runs = Runs::default();
    let body = content(3 * MIB - 1000);
    let layer = layer(&locks).retention(second * 3600);
    let app = App::new(&layer, {
        let body = body.clone();
        runs.then(move |_, _| std::future::ready(Ok(text(body.clone()))))
    });
    is_whole(&app.send(post("k")).await, &body);
    let parts = parts(&redis).await;
    assert_eq!(parts.len(), 3);
    for part in &parts {
        // In this order: time passes in between.
        let part = expires_in(&redis, part).await;
        let record = expires_in(&redis, RECORD).await;
        // The time to write the record, and to read it, is ten command timeouts each.
        let margin = second * (hold + ttl + 20);
        assert!(part > record && part <= record + margin + second * 5);
    }
    // Of another record with this key there is nothing in common.
    run(&redis, &format!("DEL {RECORD}")).await;
    is_whole(&app.send(post("k")).await, &body);
    let both = self::parts(&redis).await;
    assert_eq!(both.len(), 6);
    for part in &parts {
        run(&redis, &format!("DEL {part}")).await;
    }
    is_replay(&app.send(post("k")).await, &body);
}

#[test]
fn a_process_that_dies_while_it_writes_leaves_nothing_for_long() {
    let runtime = || tokio::runtime::Runtime::new().unwrap();
    let (process, tests) = (runtime(), runtime());
    let (server, redis, proxy) = tests.block_on(async {
        let server = RedisServer::start().await;
        let redis = server.client().await;
        let proxy = Proxy::start(server.port).await;
        (server, redis, proxy)
    });
    proxy.set(Mode::First(5 * MIB as u64 / 2));
    let url = proxy.url();
    process.spawn(async move {
        let locks = minute().command_timeout(Duration::from_secs(20));
        let locks = locks.connect(&url).await.unwrap();
        app(&locks, &Runs::default(), &content(4 * MIB))
            .send(post("k"))
            .await;
    });
    let left = tests.block_on(async {
        has_parts(&redis, 2).await;
        parts(&redis).await
    });
    process.shutdown_background();
    tests.block_on(async {
        expire_soon(&redis, &left).await;
        // And there is no manifest that would lead there.
        assert!(expires_in(&redis, RECORD).await <= Duration::from_secs(60));
        drop(server);
    });
}

#[tokio::test]
async fn a_lock_that_is_lost_while_its_record_is_written_gets_none() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let proxy = Proxy::start(server.port).await;
    let locks = patient().connect(&proxy.url()).await.unwrap();
    let direct = patient().connect(&server.url()).await.unwrap();
    let (runs, body) = (Runs::default(), content(4 * MIB));
    proxy.set(Mode::First(3 * MIB as u64 / 2));
    let app = app(&locks, &runs, &body);
    let first = app.begin(post("k")).await;
    has_parts(&redis, 1).await;
    let written = parts(&redis).await;
    run(&redis, &format!("DEL {RECORD}")).await;
    // Somebody else's run, and its record.
    let other = App::new(&layer(&direct), runs.handler());
    other.send(post("k")).await.is_run(2);
    eventually("the loss is known there", || async {
        app.send(post("k")).await.is_replay()
    })
    .await;
    let sent = calls(&redis, "set").await;
    proxy.set(Mode::Forward);
    let first = soon("an answer", first).await.unwrap();
    is_rejected(&first, 503, RejectionKind::Lost);
    // The part that was on its way, and none of the others.
    assert!(calls(&redis, "set").await <= sent + 1);
    other.send(post("k")).await.is_replay_of(2);
    let left = parts(&redis).await;
    assert!(left.iter().all(|part| !written.contains(part)), "{left:?}");
    expire_soon(&redis, &left).await;
}

#[tokio::test]
async fn a_part_that_fails_is_sent_again_and_not_those_before_it() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let proxy = Proxy::start(server.port).await;
    let locks = patient().connect(&proxy.url()).await.unwrap();
    let (runs, body) = (Runs::default(), content(8 * MIB - 1000));
    let before = calls(&redis, "set").await;
    app(&locks, &runs, &content(1)).send(post("short")).await;
    let short = calls(&redis, "set").await - before;
    let connected = clients(&redis).await;
    proxy.set(Mode::First(5 * MIB as u64 / 2));
    let app = app(&locks, &runs, &body);
    let answer = app.begin(post("k")).await;
    has_parts(&redis, 2).await;
    close_others(&redis, &connected).await;
    has_parts(&redis, 3).await;
    proxy.set(Mode::Forward);
    is_whole(&soon("the answer", answer).await.unwrap(), &body);
    let long = calls(&redis, "set").await - before - short;
    assert_eq!(long, short + 8);
    is_replay(&app.send(post("k")).await, &body);
}

#[tokio::test]
async fn where_no_long_record_gets_through_the_answer_is_given_in_time_and_kept_without_its_body() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let proxy = Proxy::start(server.port).await;
    let limit = Duration::from_millis(300);
    let locks = minute().command_timeout(limit);
    let locks = locks.connect(&proxy.url()).await.unwrap();
    let (runs, body) = (Runs::default(), content(2 * MIB));
    let app = app(&locks, &runs, &body);
    proxy.set(Mode::First(MIB as u64 / 2));
    let started = std::time::Instant::now();
    is_whole(&app.send(post("k")).await, &body);
    // Ten timeouts for the parts, one to delete them, one for the record; and a slow machine.
    let took = started.elapsed();
    assert!(took < limit * 12 + Duration::from_secs(1), "{took:?}");
    is_short_replay(&app.send(post("k")).await);
    assert_eq!(runs.count(), 1);
    expire_soon(&redis, &parts(&redis).await).await;
}

/// The answer is as it was, and a duplicate gets what can be kept of it.
async fn falls_back(arguments: &[&str]) {
    let server = RedisServer::start_with(arguments).await;
    let redis = server.client().await;
    // It is not the lock that is evicted.
    let locks = LockManager::builder().ttl(Duration::from_secs(3600));
    let command_timeout = Duration::from_secs(5);
    let locks = locks.command_timeout(command_timeout);
    let locks = locks.connect(&server.url()).await.unwrap();
    let held = locks.try_acquire("held").await.unwrap();
    let (runs, body) = (Runs::default(), content(32 * MIB));
    for (key, header) in [("k", 10), ("l", 20_000)] {
        let app = App::new(&layer(&locks), {
            let body = body.clone();
            runs.then(move |_, _| {
                let header = HeaderValue::from_str(&"h".repeat(header)).unwrap();
                let mut answer: Response<_> = text(body.clone());
                answer.headers_mut().insert("x-header", header);
                std::future::ready(Ok(answer))
            })
        });
        let answer = app.send(post(key)).await;
        is_whole(&answer, &body);
        assert!(!answer.is_replay());
        let replay = app.send(post(key)).await;
        is_short_replay(&replay);
        let header = replay.head.headers.get("x-header");
        assert_eq!(header.is_some(), key == "k");
        assert_eq!(parts(&redis).await, [""; 0]);
    }
    assert_eq!(runs.count(), 2);
    held.release().await.unwrap();
}

#[tokio::test]
async fn a_server_without_room_for_the_parts_keeps_the_answer_without_its_body() {
    falls_back(&["--maxmemory", "16mb"]).await;
}

#[tokio::test]
async fn a_server_that_evicts_the_parts_keeps_the_answer_without_its_body() {
    falls_back(&["--maxmemory", "16mb", "--maxmemory-policy", "volatile-ttl"]).await;
}

#[tokio::test]
async fn a_record_whose_parts_are_not_what_was_written_is_unreadable() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let locks = minute().connect(&server.url()).await.unwrap();
    let (runs, body) = (Runs::default(), content(3 * MIB));
    let app = app(&locks, &runs, &body);
    is_whole(&app.send(post("k")).await, &body);
    let names = parts(&redis).await;
    for command in [
        format!("DEL {}", names[0]),
        format!("DEL {}", names[3]),
        format!("SETRANGE {} 7 x", names[1]),
        format!("APPEND {} x", names[1]),
        format!("RENAME {} {}", names[0], names[1]),
        // What else may stand in the lock's place: a manifest, nearly.
        format!("APPEND {RECORD} x"),
        format!("SETRANGE {RECORD} 4 x"),
    ] {
        let copies = names.iter().map(String::as_str).chain([RECORD]);
        for name in copies.clone() {
            run(&redis, &format!("COPY {name} copy:{name}")).await;
        }
        run(&redis, &command).await;
        let answer = app.send(post("k")).await;
        is_rejected(&answer, 500, RejectionKind::Unreadable);
        for name in copies {
            run(&redis, &format!("COPY copy:{name} {name} REPLACE")).await;
            run(&redis, &format!("DEL copy:{name}")).await;
        }
        is_replay(&app.send(post("k")).await, &body);
    }
    assert_eq!(runs.count(), 1);
}

#[tokio::test]
async fn a_connection_that_was_closed_while_nobody_used_it_fails_no_replay() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let locks = minute().connect(&server.url()).await.unwrap();
    let connected = clients(&redis).await;
    let (runs, body) = (Runs::default(), content(2 * MIB));
    let app = app(&locks, &runs, &body);
    is_whole(&app.send(post("k")).await, &body);
    for _ in 0..3 {
        close_others(&redis, &connected).await;
        let all = join_all((0..8).map(|_| app.send(post("k")))).await;
        for answer in all {
            is_replay(&answer, &body);
        }
    }
    // Nor does it fail one that is written.
    close_others(&redis, &connected).await;
    is_whole(&app.send(post("l")).await, &body);
    is_replay(&app.send(post("l")).await, &body);
    assert_eq!(runs.count(), 2);
}

#[tokio::test]
async fn a_record_that_goes_while_it_is_read_is_not_there_and_not_damaged() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let proxy = Proxy::start(server.port).await;
    let writer = minute().connect(&server.url()).await.unwrap();
    let (runs, body) = (Runs::default(), content(4 * MIB));
    for new_run in [false, true] {
        run(&redis, "FLUSHDB").await;
        // A connection for long records that has not sent anything yet.
        let locks = patient().connect(&proxy.url()).await.unwrap();
        is_whole(&app(&writer, &runs, &body).send(post("k")).await, &body);
        let names = parts(&redis).await;
        let read = calls(&redis, "getrange").await;
        proxy.set(Mode::First(3 * MIB as u64 / 2));
        let reader = app(&locks, &runs, &body);
        let duplicate = reader.begin(post("k")).await;
        eventually("it reads", || async {
            // The script's own, and two parts.
            calls(&redis, "getrange").await >= read + 3
        })
        .await;
        run(&redis, &format!("DEL {RECORD} {}", names.join(" "))).await;
        if new_run {
            run(&redis, &format!("SET {RECORD} {:032x}:1 PX 60000", 7)).await;
        }
        proxy.set(Mode::Forward);
        let answer = soon("an answer", duplicate).await.unwrap();
        is_rejected(&answer, 503, RejectionKind::Unavailable);
    }
    assert_eq!(runs.count(), 2);
}

#[tokio::test]
async fn a_long_record_that_cannot_be_had_is_told_in_time() {
    let server = RedisServer::start().await;
    let proxy = Proxy::start(server.port).await;
    let limit = Duration::from_millis(500);
    let locks = minute().command_timeout(limit);
    let locks = locks.connect(&proxy.url()).await.unwrap();
    let (runs, body) = (Runs::default(), content(4 * MIB));
    let app = app(&locks, &runs, &body);
    is_whole(&app.send(post("k")).await, &body);
    proxy.set(Mode::First(MIB as u64 / 2));
    let started = std::time::Instant::now();
    let all = join_all((0..20).map(|_| app.send(post("k")))).await;
    for answer in all {
        is_rejected(&answer, 503, RejectionKind::Unavailable);
    }
    let took = started.elapsed();
    assert!(took < limit * 11 + Duration::from_secs(1), "{took:?}");
    proxy.set(Mode::Forward);
    is_replay(&app.send(post("k")).await, &body);
}

/// With the rights that the README names: long records need no others, nor do watched locks.
#[tokio::test]
async fn an_acl_user_with_just_the_rights_for_locks_keeps_long_records() {
    let user = "worker on >secret ~lock:* ~{* &lock:inbox:* +@connection +@scripting +@string +@list \
                +@keyspace +subscribe +publish +pubsub +time +client -@dangerous";
    let user: Vec<&str> = std::iter::once("--user").chain(user.split(' ')).collect();
    let server = RedisServer::start_with(&user).await;
    let redis = server.client().await;
    let url = format!("redis://worker:secret@127.0.0.1:{}", server.port);
    let locks = patient().connect(&url).await.unwrap();
    let (runs, body) = (Runs::default(), content(2 * MIB));
    let app = app(&locks, &runs, &body);
    is_whole(&app.send(post("k")).await, &body);
    is_replay(&app.send(post("k")).await, &body);
    assert_eq!(parts(&redis).await.len(), 3);
    let guard = locks.try_acquire("watched").await.unwrap();
    if has_resp3() {
        eventually("Redis watches the lock", || async {
            let mut info = redis::cmd("INFO");
            let info = info.arg("stats").query_async(&mut redis.clone()).await;
            let info: String = info.unwrap();
            info.contains("tracking_total_keys:1")
        })
        .await;
    }
    run(&redis, "DEL lock:watched").await;
    soon("it is told", guard.lost()).await;
}

// What stands in a lock's place, and is none of ours.

#[tokio::test]
async fn whatever_stands_in_the_place_of_a_record_no_more_than_a_record_is_read_of_it() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let locks = minute().connect(&server.url()).await.unwrap();
    let runs = Runs::default();
    let app = App::new(&layer(&locks), runs.handler());
    let set = async |key: &str| {
        run(&redis, &format!("SETRANGE {key} {} x", 8 * MIB - 1)).await;
    };
    let sent = async || {
        let info: String = redis::cmd("INFO")
            .arg("stats")
            .query_async(&mut redis.clone())
            .await
            .unwrap();
        let sent = info
            .lines()
            .find_map(|line| line.strip_prefix("total_net_output_bytes:"));
        sent.unwrap().parse::<usize>().unwrap()
    };
    set(RECORD).await;
    set("lock:k").await;
    let before = sent().await;
    let held = locks.try_acquire("held").await.unwrap();
    is_rejected(&app.send(post("k")).await, 500, RejectionKind::Unreadable);
    let waiting = tokio::spawn({
        let locks = locks.clone();
        async move { locks.acquire("k", PATIENCE).await }
    });
    common::eventually("it waits", || async {
        common::queue_length(&redis, "k").await == 1
    })
    .await;
    for number in 0..100 {
        drop(locks.try_acquire(format!("{number}")).await.unwrap());
    }
    assert!(sent().await - before < MIB);
    run(&redis, "DEL lock:k").await;
    let guard = soon("it is free", waiting).await.unwrap().unwrap();
    guard.release().await.unwrap();
    held.release().await.unwrap();
}

/// Redis tells of each key that is read behind a script call of many.
#[tokio::test]
async fn each_of_many_locks_that_are_deleted_is_told() {
    if !has_resp3() {
        return;
    }
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let locks = minute().connect(&server.url()).await.unwrap();
    let names: Vec<String> = (0..40).map(|number| number.to_string()).collect();
    let guards = join_all(names.iter().map(|name| locks.try_acquire(name.as_str()))).await;
    let guards: Vec<_> = guards.into_iter().map(Result::unwrap).collect();
    let watched = async || {
        let info: String = redis::cmd("INFO")
            .arg("stats")
            .query_async(&mut redis.clone())
            .await
            .unwrap();
        let keys = info
            .lines()
            .find_map(|line| line.strip_prefix("tracking_total_keys:"));
        keys.unwrap().parse::<usize>().unwrap()
    };
    eventually("Redis watches all", || async { watched().await == 40 }).await;
    // One by one: nothing else tells of the last.
    for (name, guard) in names.iter().zip(&guards).rev() {
        assert!(guard.lease().is_held());
        run(&redis, &format!("DEL lock:{name}")).await;
        soon("it is told", guard.lost()).await;
    }
}

/// The handler is done: what its answer takes to get to Redis is not its hold.
#[tokio::test]
async fn an_answer_that_takes_longer_to_write_than_its_handler_may_hold_is_kept() {
    let server = RedisServer::start().await;
    let proxy = Proxy::start(server.port).await;
    let max_hold = Duration::from_millis(500);
    let locks = minute()
        .max_hold(max_hold)
        .connect(&proxy.url())
        .await
        .unwrap();
    let (runs, body) = (Runs::default(), content(4 * MIB));
    let app = app(&locks, &runs, &body);
    // Four times as long.
    proxy.set(Mode::Throttle(2 << 20));
    is_whole(&app.send(post("k")).await, &body);
    proxy.set(Mode::Forward);
    is_replay(&app.send(post("k")).await, &body);
    assert_eq!(runs.count(), 1);
}
