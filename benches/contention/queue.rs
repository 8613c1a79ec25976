//! Whether a hand-off costs the same however many processes wait: `queue`.

use std::time::{Duration, Instant};

use rustix::process::{Resource, getrlimit};
use tower_distributed_lock::LockManager;

use crate::support::figures::{Figures, Goal};
use crate::support::monitor::Monitor;
use crate::support::orders::text;
use crate::test_support::{RedisServer, queue_length};

const BOUND: Duration = Duration::from_secs(8);

pub async fn measure(figures: &mut Figures) {
    println!("\nN processes (one manager with one connection each) wait for one key, once each");
    let mut costs = Vec::new();
    for waiters in [10, 100, 1000] {
        match pass_on(waiters).await {
            Ok((commands, time)) => {
                println!("  N = {waiters:4}: {commands:.3} commands and {time:.0} µs a hand-off");
                costs.push(commands);
            }
            Err(reason) => {
                println!("  N = {waiters:4}: – ({reason})");
                costs.push(f64::NAN);
            }
        }
    }
    let growth = costs[2] / costs[0];
    let goal = Goal::AtMost(1.2);
    figures.add("commands_per_hand_off_1000_vs_10_waiters", growth, &goal);
}

/// Returns the commands and the µs for each hand-off.
async fn pass_on(waiters: usize) -> Result<(f64, f64), String> {
    // Redis is started with the same limit, and keeps some descriptors for itself.
    let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    if files < waiters as u64 + 100 {
        return Err(format!("only {files} files may be open: ulimit -n"));
    }
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let holder = LockManager::connect(&server.url()).await.map_err(text)?;
    let guard = holder.try_acquire("a").await.map_err(text)?;
    let mut tasks = Vec::new();
    for _ in 0..waiters {
        let locks = LockManager::connect(&server.url()).await.map_err(text)?;
        tasks.push(tokio::spawn(async move {
            let guard = locks.acquire("a", Duration::from_secs(3600)).await;
            // The manager lives on, so that its end is not measured as well.
            guard.map(|guard| {
                drop(guard);
                locks
            })
        }));
    }
    let started = Instant::now();
    while queue_length(&redis, "a").await < waiters {
        if started.elapsed() > BOUND {
            return Err(format!("not all wait in Redis after {BOUND:?}"));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let monitor = Monitor::start(&server).await;
    let started = Instant::now();
    drop(guard);
    let mut managers = Vec::new();
    for task in tasks {
        let left = BOUND.saturating_sub(started.elapsed());
        let done = tokio::time::timeout(left, task).await;
        let done = done.map_err(|_| format!("not all had the lock after {BOUND:?}"))?;
        managers.push(done.map_err(text)?.map_err(text)?);
    }
    let time = started.elapsed().as_secs_f64() * 1e6 / waiters as f64;
    for locks in managers {
        locks.close().await;
    }
    let commands = monitor.stop().await as f64 / waiters as f64;
    Ok((commands, time))
}
