//! Waiting for what must happen, and failing if it does not.

use std::future::Future;
use std::time::{Duration, Instant};

/// Long enough for a slow machine, and never waited for if all is well.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until a condition holds. Fails the test if it never does.
pub async fn eventually<F, R>(what: &str, mut condition: F)
where
    F: FnMut() -> R,
    R: Future<Output = bool>,
{
    let started = Instant::now();
    while !condition().await {
        assert!(started.elapsed() < PATIENCE, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Waits for something that must come.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .unwrap_or_else(|_| panic!("waited in vain: {what}"))
}
