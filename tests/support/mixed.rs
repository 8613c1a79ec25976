//! Everything at once: a mixed load on few locks, with callers that give up at any moment.

use std::time::Duration;

use tokio::time::{sleep, timeout};
use tower_distributed_lock::LockManager;

use super::random::Random;

const TASKS: u64 = 60;
const ROUNDS: u64 = 40;
const KEYS: [&str; 4] = ["0", "1", "2", "3"];

/// Puts a mixed load on two managers, and returns when it is over: one lock, shared or not, or
/// several; with and without a wait; looked at, and taken away from their holders.
pub async fn mixed_load(managers: [LockManager; 2]) {
    let tasks = (0..TASKS).map(|task| {
        let locks = managers[task as usize % 2].clone();
        let mut random = Random::new(task);
        tokio::spawn(async move {
            for _ in 0..ROUNDS {
                let call = one_call(&locks, random.fork());
                match random.below(4) {
                    // Given up at any moment.
                    0 => drop(timeout(Duration::from_micros(random.below(8000)), call).await),
                    _ => call.await,
                }
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
}

async fn one_call(locks: &LockManager, mut random: Random) {
    let key = KEYS[random.below(4) as usize];
    let wait = Duration::from_millis(random.below(20));
    let work = Duration::from_micros(random.below(1000));
    match random.below(12) {
        0 => drop(locks.try_acquire(key).await),
        1 => drop(locks.try_acquire_shared(key).await),
        2 => drop(locks.try_acquire_all(["3", "1"]).await),
        3..=5 => {
            let held = locks.acquire(key, wait).await;
            sleep(work).await;
            drop(held);
        }
        6..=8 => {
            let held = locks.acquire_shared(key, wait).await;
            sleep(work).await;
            drop(held);
        }
        9 => {
            if let Ok(held) = locks.acquire_all(KEYS, wait).await {
                sleep(work).await;
                let _ = held.release().await;
            }
        }
        10 => drop(locks.inspect(key).await),
        _ => drop(locks.force_release(key).await),
    }
}
