//! The idempotency layer when Redis, a lock or a record is lost: one run all the same, or a clear
//! answer.

mod lost_locks;
mod recording;
mod records;

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use tower_distributed_lock::{IdempotencyLayer, LockManager};

use crate::idempotency::RECORD;

const TIMEOUT: Duration = Duration::from_millis(300);

async fn record(redis: &MultiplexedConnection) -> Option<Vec<u8>> {
    let mut get = redis::cmd("GET");
    let value = get.arg(RECORD).query_async(&mut redis.clone()).await;
    value.unwrap()
}

async fn is_recorded(redis: &MultiplexedConnection) -> bool {
    let record = record(redis).await;
    record.is_some_and(|record| record.starts_with(b"TDLR"))
}

fn layer(locks: &LockManager) -> IdempotencyLayer {
    IdempotencyLayer::new(locks.clone())
}
