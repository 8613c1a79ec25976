//! Locks and records that go, or are not what was written, while a long record is written or read.

use futures_util::future::join_all;
use tower_distributed_lock::lock::RejectionKind;

use super::{
    MIB, app, content, expire_soon, has_parts, is_replay, is_whole, layer, parts, patient,
};
use crate::idempotency::RECORD;
use crate::once::{App, Runs, post};
use crate::support::{
    Mode, PATIENCE, Proxy, RedisServer, calls, eventually, eventually_queued, has_resp3, minute,
    run, sets, soon, statistic, watched_keys,
};

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
    // The run of another request, and its record.
    let other = App::new(&layer(&direct), runs.handler());
    other.send(post("k")).await.is_run(2);
    eventually("the loss is known there", || async {
        app.send(post("k")).await.is_replay()
    })
    .await;
    let sent = sets(&redis).await;
    proxy.set(Mode::Forward);
    let first = soon("a response", first).await.unwrap();
    first.is_rejected(503, RejectionKind::Lost);
    // Only the part that was in flight is written, and none of the others.
    assert!(sets(&redis).await <= sent + 1);
    other.send(post("k")).await.is_replay_of(2);
    let left = parts(&redis).await;
    assert!(left.iter().all(|part| !written.contains(part)), "{left:?}");
    expire_soon(&redis, &left).await;
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
        // And other values in the place of the lock: almost a manifest.
        format!("APPEND {RECORD} x"),
        format!("SETRANGE {RECORD} 4 x"),
    ] {
        let copies = names.iter().map(String::as_str).chain([RECORD]);
        for name in copies.clone() {
            run(&redis, &format!("COPY {name} copy:{name}")).await;
        }
        run(&redis, &command).await;
        let answer = app.send(post("k")).await;
        answer.is_rejected(500, RejectionKind::Unreadable);
        for name in copies {
            run(&redis, &format!("COPY copy:{name} {name} REPLACE")).await;
            run(&redis, &format!("DEL copy:{name}")).await;
        }
        is_replay(&app.send(post("k")).await, &body);
    }
    assert_eq!(runs.count(), 1);
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
            // Two parts.
            calls(&redis, "getrange").await >= read + 2
        })
        .await;
        run(&redis, &format!("DEL {RECORD} {}", names.join(" "))).await;
        if new_run {
            run(&redis, &format!("SET {RECORD} {:032x}:1 PX 60000", 7)).await;
        }
        proxy.set(Mode::Forward);
        let answer = soon("a response", duplicate).await.unwrap();
        answer.is_rejected(503, RejectionKind::Unavailable);
    }
    assert_eq!(runs.count(), 2);
}

// Values that stand in the place of a lock, and are not ours.

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
    let sent = async || statistic(&redis, "total_net_output_bytes").await;
    set(RECORD).await;
    set("lock:k").await;
    // What the first take of each connection finds comes as a whole, and then no more.
    app.send(post("k"))
        .await
        .is_rejected(500, RejectionKind::Unreadable);
    let before = sent().await;
    let held = locks.try_acquire("held").await.unwrap();
    app.send(post("k"))
        .await
        .is_rejected(500, RejectionKind::Unreadable);
    let waiting = tokio::spawn({
        let locks = locks.clone();
        async move { locks.acquire("k", PATIENCE).await }
    });
    eventually_queued(&redis, "k", 1).await;
    for number in 0..100 {
        drop(locks.try_acquire(format!("{number}")).await.unwrap());
    }
    assert!(sent().await - before < MIB as u64);
    run(&redis, "DEL lock:k").await;
    let guard = soon("it is free", waiting).await.unwrap().unwrap();
    guard.release().await.unwrap();
    held.release().await.unwrap();
}

/// After a script call that read many keys, Redis tells of each of them.
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
    eventually("Redis watches all", || async {
        watched_keys(&redis).await == 40
    })
    .await;
    // One by one, and from the last: nothing else tells of it.
    for (name, guard) in names.iter().zip(&guards).rev() {
        assert!(guard.lease().is_held());
        run(&redis, &format!("DEL lock:{name}")).await;
        soon("it is told", guard.lost()).await;
    }
}
