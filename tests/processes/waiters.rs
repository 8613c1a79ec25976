//! Processes that are killed or frozen while they wait.

use std::time::{Duration, Instant};

use crate::process::{MINUTE, Worker};
use crate::support::{
    RedisServer, clients, eventually, eventually_no_trace, eventually_queued, minute,
};

pub async fn a_waiting_process_that_was_killed_is_passed_over_at_once() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let locks = minute().connect(&server.url()).await.unwrap();
    let guard = locks.try_acquire("a").await.unwrap();
    let before = clients(&redis).await.len();
    let mut killed = Worker::start(&server, MINUTE).await;
    killed.tell("acquire").await;
    eventually_queued(&redis, "a", 1).await;
    let others = clients(&redis).await.len() - before;
    let mut next = Worker::start(&server, MINUTE).await;
    next.tell("acquire").await;
    eventually_queued(&redis, "a", 2).await;

    killed.kill().await;
    eventually("Redis has noticed", || async {
        clients(&redis).await.len() == before + others
    })
    .await;
    guard.release().await.unwrap();
    let started = Instant::now();
    next.acquired().await;
    // No grant had to expire, which would take two seconds.
    assert!(started.elapsed() < Duration::from_millis(1500));
    assert_eq!(next.ask("release").await, "ok");
    eventually_no_trace(&redis).await;
}

pub async fn waiting_processes_that_are_frozen_do_not_keep_the_lock_from_the_others() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let locks = minute().connect(&server.url()).await.unwrap();
    let guard = locks.try_acquire("a").await.unwrap();
    let mut workers = Vec::new();
    for waiting in 1..=3 {
        let mut worker = Worker::start(&server, MINUTE).await;
        worker.tell("acquire").await;
        eventually_queued(&redis, "a", waiting).await;
        workers.push(worker);
    }
    let mut next = workers.pop().unwrap();
    for frozen in &workers {
        frozen.freeze().await;
    }
    guard.release().await.unwrap();
    // The lock is granted to each of the frozen ones first, for two seconds.
    let started = Instant::now();
    let token = next.acquired().await;
    println!("served after {:?}", started.elapsed());
    for frozen in &workers {
        frozen.signal("-CONT");
    }
    assert_eq!(next.ask("look").await, "held: true, lost: false");
    assert_eq!(next.ask("release").await, "ok");
    // The frozen ones ask again, in any order.
    let served = workers.iter_mut().map(|frozen| async move {
        assert!(frozen.acquired().await > token);
        assert_eq!(frozen.ask("release").await, "ok");
    });
    futures_util::future::join_all(served).await;
    eventually_no_trace(&redis).await;
}
