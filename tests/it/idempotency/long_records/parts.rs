//! The parts of a long record in Redis: how many, for how long, and with which rights.

use std::time::Duration;

use http::{HeaderValue, Response};
use redis::Value;
use tower_distributed_lock::LockManager;

use super::{
    MIB, app, content, expire_soon, has_parts, is_replay, is_short_replay, is_whole, layer, parts,
    patient,
};
use crate::idempotency::RECORD;
use crate::once::{App, Runs, post, text};
use crate::redis::{acl, rights_of_the_guide, without_dangerous};
use crate::support::{
    Mode, Proxy, RedisServer, eventually, expires_in, has_resp3, minute, run, soon, watched_keys,
};

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
        // In this order, as time passes in between.
        let part = expires_in(&redis, part).await;
        let record = expires_in(&redis, RECORD).await;
        // The time to write the record, and to read it, is ten command timeouts each.
        let margin = second * (hold + ttl + 20);
        assert!(part > record && part <= record + margin + second * 5);
    }
    // Another record of the same key shares no part with it.
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
        // And no manifest leads to the parts.
        assert!(expires_in(&redis, RECORD).await <= Duration::from_secs(60));
        drop(server);
    });
}

/// With the rights that the guide names. Neither long records nor watched locks need others.
#[tokio::test]
async fn an_acl_user_with_just_the_rights_for_locks_keeps_long_records() {
    let (rights, less) = (rights_of_the_guide(), without_dangerous());
    let user = format!("worker on >secret {rights} {less}");
    let server = RedisServer::start_with(&acl(&user)).await;
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
            watched_keys(&redis).await == 1
        })
        .await;
    }
    run(&redis, "DEL lock:watched").await;
    soon("it is told", guard.lost()).await;
}

/// The first response is complete, and a duplicate gets what could be kept of it.
async fn falls_back(arguments: &[&str]) {
    let server = RedisServer::start_with(arguments).await;
    let redis = server.client().await;
    // With an hour, the lock is not what is evicted.
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
