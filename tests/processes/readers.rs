//! Processes that share a lock, and are killed or frozen.

use std::time::Duration;

use crate::process::{MINUTE, Worker, expired_keys, expiry, given_at};
use crate::support::{RedisServer, eventually, eventually_no_trace, eventually_queued, run, value};

pub async fn a_killed_reader_frees_its_place_when_its_own_lease_expires() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let mut killed = Worker::start(&server, 2000).await;
    let mut writer = Worker::start(&server, 2000).await;
    let first = killed.share().await;
    writer.tell("acquire").await;
    eventually_queued(&redis, "a", 1).await;
    killed.kill().await;
    let expiry = expiry(&redis).await;
    let second = writer.acquired().await;
    assert!(second > first);
    assert!(expired_keys(&redis).await >= 1);
    let given = given_at(second);
    assert!(given + 2 >= expiry, "{} ms early", expiry - given);
    assert!(given < expiry + 2000, "{} ms late", given - expiry);
    assert_eq!(writer.ask("release").await, "ok");
    eventually_no_trace(&redis).await;
}

pub async fn the_renewals_of_other_readers_do_not_keep_a_killed_one_alive() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let mut killed = Worker::start(&server, 1000).await;
    let mut reader = Worker::start(&server, 1000).await;
    let mut writer = Worker::start(&server, MINUTE).await;
    killed.share().await;
    reader.share().await;
    writer.tell("acquire").await;
    eventually_queued(&redis, "a", 1).await;
    killed.kill().await;
    // The other one renews for longer than the time to live of the one that was killed.
    let killed_at = expiry(&redis).await;
    eventually("it has renewed often", || async {
        expiry(&redis).await > killed_at + 2500
    })
    .await;
    assert_eq!(reader.ask("look").await, "held: true, lost: false");
    // When the last of the living leaves, the lock is free at once.
    let left = expiry(&redis).await;
    assert_eq!(reader.ask("release").await, "ok");
    let writes = writer.acquired().await;
    assert!(given_at(writes) < left, "it did not wait for an expiry");
    assert_eq!(writer.ask("release").await, "ok");
    eventually_no_trace(&redis).await;
}

pub async fn a_killed_writer_that_waited_keeps_no_reader_out() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let mut first = Worker::start(&server, 900).await;
    let mut writer = Worker::start(&server, 900).await;
    let mut second = Worker::start(&server, 900).await;
    first.share().await;
    writer.tell("acquire").await;
    eventually_queued(&redis, "a", 1).await;
    writer.kill().await;
    second.share().await;
    assert_eq!(first.ask("look").await, "held: true, lost: false");
    for reader in [&mut first, &mut second] {
        assert_eq!(reader.ask("release").await, "ok");
    }
    eventually_no_trace(&redis).await;
}

pub async fn a_reader_that_was_frozen_beyond_its_ttl_knows_that_it_lost_the_lock() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let mut frozen = Worker::start(&server, 500).await;
    let mut writer = Worker::start(&server, MINUTE).await;
    let old = frozen.share().await;
    frozen.freeze().await;
    let new = writer.acquire().await;
    assert!(old < new);
    let owner = value(&redis, "lock:a").await;
    frozen.tell("look").await;
    frozen.signal("-CONT");
    assert_eq!(frozen.answer().await, "held: false, lost: true");
    assert_eq!(frozen.ask("release").await, "Lost");
    assert_eq!(value(&redis, "lock:a").await, owner);
    assert_eq!(writer.ask("look").await, "held: true, lost: false");
    assert_eq!(writer.ask("release").await, "ok");
    // And from then on it works like any other process.
    assert!(frozen.share().await > new);
    assert_eq!(frozen.ask("release").await, "ok");
    eventually_no_trace(&redis).await;
}

pub async fn readers_are_let_in_though_one_of_those_that_wait_was_killed() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let mut writer = Worker::start(&server, MINUTE).await;
    let mut killed = Worker::start(&server, MINUTE).await;
    let mut readers = Vec::new();
    writer.acquire().await;
    killed.tell("share").await;
    eventually_queued(&redis, "a", 1).await;
    for waiting in 2..4 {
        let mut reader = Worker::start(&server, MINUTE).await;
        reader.tell("share").await;
        eventually_queued(&redis, "a", waiting).await;
        readers.push(reader);
    }
    killed.kill().await;
    eventually("Redis knows that it is gone", || async {
        let channels = run(&redis, "PUBSUB CHANNELS lock:inbox:*").await;
        let channels: Vec<String> = redis::from_redis_value(channels).unwrap();
        channels.len() == 3
    })
    .await;
    assert_eq!(writer.ask("release").await, "ok");
    for reader in &mut readers {
        reader.acquired().await;
    }
    for mut reader in readers {
        assert_eq!(reader.ask("look").await, "held: true, lost: false");
        assert_eq!(reader.ask("release").await, "ok");
    }
    eventually_no_trace(&redis).await;
}

/// Far more than it takes to give a lock on.
const A_WHILE: Duration = Duration::from_millis(500);

pub async fn a_writer_waits_for_the_lease_of_a_reader_that_was_killed() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let mut killed = Worker::start(&server, 3000).await;
    let mut reader = Worker::start(&server, 3000).await;
    let mut writer = Worker::start(&server, MINUTE).await;
    killed.share().await;
    let dead_until = expiry(&redis).await;
    reader.share().await;
    writer.tell("acquire").await;
    eventually_queued(&redis, "a", 1).await;
    killed.kill().await;
    // It may be alive, for all that is known: its lease is valid.
    assert_eq!(reader.ask("release").await, "ok");
    let writes = given_at(writer.acquired().await);
    assert!(writes + 2 >= dead_until, "{} ms early", dead_until - writes);
    let late = writes.saturating_sub(dead_until);
    assert!(late < 3000 + A_WHILE.as_millis() as u64, "{late} ms late");
    assert_eq!(writer.ask("release").await, "ok");
    eventually_no_trace(&redis).await;
}
