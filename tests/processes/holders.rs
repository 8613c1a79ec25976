//! Holders that are killed or frozen.

use std::time::Duration;

use crate::process::{MINUTE, Worker, expired_keys, expiry, given_at};
use crate::support::{
    RedisServer, clients, eventually, eventually_no_trace, eventually_queued, run, value,
};

pub async fn the_lock_of_a_killed_process_goes_to_a_waiter_when_it_expires() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let mut holder = Worker::start(&server, 1000).await;
    let mut waiter = Worker::start(&server, 1000).await;
    let first = holder.acquire().await;
    waiter.tell("acquire").await;
    eventually_queued(&redis, "a", 1).await;
    // Alive, it keeps the lock beyond its time to live.
    eventually("it has renewed the lease", || async {
        expiry(&redis).await > given_at(first) + 1500
    })
    .await;
    assert_eq!(expired_keys(&redis).await, 0);

    holder.kill().await;
    let expiry = expiry(&redis).await;
    let second = waiter.acquired().await;
    assert!(second > first);
    assert_eq!(expired_keys(&redis).await, 1);
    let given = given_at(second);
    assert!(given + 2 >= expiry, "{} ms early", expiry - given);
    assert!(given < expiry + 1000, "{} ms late", given - expiry);
    println!(
        "given away {} ms after the expiry",
        given.saturating_sub(expiry)
    );

    assert_eq!(waiter.ask("release").await, "ok");
    eventually_no_trace(&redis).await;
}

pub async fn a_holder_that_was_frozen_beyond_its_ttl_knows_that_it_lost_the_lock() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let mut frozen = Worker::start(&server, 500).await;
    let mut other = Worker::start(&server, MINUTE).await;
    let old = frozen.acquire().await;
    frozen.freeze().await;
    let new = other.acquire().await;
    assert!(old < new);
    let owner = value(&redis, "lock:a").await;
    assert!(owner.is_some());

    // The command is there before the process wakes up.
    frozen.tell("look").await;
    frozen.signal("-CONT");
    assert_eq!(frozen.answer().await, "held: false, lost: true");
    assert_eq!(frozen.ask("release").await, "Lost");
    assert_eq!(value(&redis, "lock:a").await, owner);
    assert_eq!(other.ask("look").await, "held: true, lost: false");
    assert_eq!(other.ask("release").await, "ok");
    eventually_no_trace(&redis).await;
    // And from then on it works like any other process.
    assert!(frozen.acquire().await > new);
    assert_eq!(frozen.ask("release").await, "ok");
    eventually_no_trace(&redis).await;
}

pub async fn an_answer_that_came_while_the_process_was_frozen_is_not_late() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let mut worker = Worker::start(&server, MINUTE).await;
    run(&redis, "CLIENT PAUSE 60000 WRITE").await;
    worker.tell("acquire").await;
    eventually("the command is there", || async {
        let clients = clients(&redis).await;
        let is_paused = |client: &String| {
            let flags = client.split("flags=").nth(1).unwrap_or_default();
            flags.split(' ').next().unwrap().contains('b')
        };
        clients.iter().any(is_paused)
    })
    .await;
    worker.freeze().await;
    run(&redis, "CLIENT UNPAUSE").await;
    eventually("it is carried out", || async {
        value(&redis, "lock:a").await.is_some()
    })
    .await;
    // This is the fault itself: longer than a command may take.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    worker.signal("-CONT");
    worker.acquired().await;
    assert_eq!(worker.ask("release").await, "ok");
    eventually_no_trace(&redis).await;
}
