//! Redis in trouble, and with other clients: a clear answer, never a hang, never two holders, and
//! back to work without a restart.

mod accounts;
mod atomic_moves;
mod cluster;
mod connecting;
mod interop;
mod moving_slots;
mod neighbours;
mod outages;
mod probe;
mod proxies;
mod quarantine;
mod refusals;
mod releases;
mod replicas;
mod replies;
mod rights;
mod sentinel;
mod waits;

use std::time::Duration;

use tower_distributed_lock::{Error, ErrorKind, LockManager, LockManagerBuilder};

use crate::support::{eventually, is_before_redis_7, soon};

pub const TIMEOUT: Duration = Duration::from_millis(300);

/// A manager with a command timeout that a test can wait for.
pub fn impatient() -> LockManagerBuilder {
    LockManager::builder().command_timeout(TIMEOUT)
}

pub async fn unavailable(locks: &LockManager) -> Error {
    let error = soon("a result", locks.try_acquire("a")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    error
}

/// Waits for the first request that works. Every earlier one must have got an answer as well.
pub async fn recovers(locks: &LockManager) {
    eventually("locks can be taken again", || async {
        match locks.try_acquire("recovered").await {
            Ok(guard) => guard.release().await.is_ok(),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
                false
            }
        }
    })
    .await;
}

/// The rights that the guide says a user of Redis needs.
pub fn rights_of_the_guide() -> String {
    let guide = include_str!("../../../src/_guide/operations.rs");
    let (_, section) = guide.split_once("# ACL").unwrap();
    let listed = section.split("```").nth(1).unwrap();
    let lines = listed.lines().skip(1);
    let words = lines.flat_map(|line| line.trim_start_matches("//!").split_whitespace());
    words.collect::<Vec<_>>().join(" ")
}

/// What takes dangerous commands away from a user. As the guide says, it gives back what Redis 6.2
/// takes with them.
pub fn without_dangerous() -> &'static str {
    match is_before_redis_7() {
        true => "-@dangerous +client|setname +client|tracking +client|caching",
        false => "-@dangerous",
    }
}

/// The server's arguments for a user.
pub fn acl(user: &str) -> Vec<&str> {
    std::iter::once("--user")
        .chain(user.split_whitespace())
        .collect()
}
