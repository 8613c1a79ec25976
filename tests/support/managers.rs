//! Managers with settings that rule out one explanation or another.

use std::time::Duration;

use tower_distributed_lock::{LockManager, LockManagerBuilder};

use super::has_resp3;

/// No expiry can be the explanation: it would take a minute.
pub fn minute() -> LockManagerBuilder {
    LockManager::builder().ttl(Duration::from_secs(60))
}

pub fn short_lived(ttl_ms: u64) -> LockManagerBuilder {
    LockManager::builder()
        .ttl(Duration::from_millis(ttl_ms))
        .command_timeout(Duration::from_millis(ttl_ms.min(1000)))
}

/// How many connections a manager has.
pub fn connections_per_manager() -> usize {
    if has_resp3() { 1 } else { 2 }
}
