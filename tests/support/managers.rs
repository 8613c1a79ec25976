//! Managers with settings that rule out one explanation or another.

use std::time::Duration;

use tower_distributed_lock::{LockManager, LockManagerBuilder};

use super::has_resp3;

/// No expiry can be the explanation, as it would take a minute.
pub fn minute() -> LockManagerBuilder {
    LockManager::builder().ttl(Duration::from_secs(60))
}

pub fn short_lived(ttl_ms: u64) -> LockManagerBuilder {
    LockManager::builder().ttl(Duration::from_millis(ttl_ms))
}

/// How many connections a manager has.
pub fn connections_per_manager() -> usize {
    if has_resp3() { 1 } else { 2 }
}

/// Waits until the manager has taken note of all that Redis has sent until now: it has read what
/// came before the reply to one command when it sends the next.
///
/// That a process is in the queue in Redis does not say that it knows. If its connection breaks
/// before it does, and cannot be made again at once, its requests are told that Redis is
/// unavailable.
pub async fn knows_what_was_said(locks: &LockManager) {
    for _ in 0..2 {
        let guard = locks.try_acquire("something else").await.unwrap();
        guard.release().await.unwrap();
    }
}
