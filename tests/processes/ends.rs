//! Processes that end, and runtimes that do.

use crate::process::{MINUTE, Worker};
use crate::support::{RedisServer, eventually_no_trace, value};

pub async fn a_process_that_ends_right_after_close_leaves_no_lock() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    for _ in 0..10 {
        let mut worker = Worker::start(&server, MINUTE).await;
        worker.acquire().await;
        assert!(value(&redis, "lock:a").await.is_some());
        worker.tell("close").await;
        assert!(worker.ended().await.success());
        assert_eq!(value(&redis, "lock:a").await, None);
    }
    eventually_no_trace(&redis).await;
}

pub async fn a_process_that_drops_its_runtime_and_lives_on_leaves_no_lock() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let mut worker = Worker::start(&server, MINUTE).await;
    worker.acquire().await;
    assert!(value(&redis, "lock:a").await.is_some());
    assert_eq!(worker.ask("drop").await, "dropped");
    eventually_no_trace(&redis).await;
    assert!(worker.child.try_wait().unwrap().is_none(), "it lives on");
}
