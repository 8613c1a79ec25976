//! The memory and CPU time of waiters and held locks, each in a process of its own: `memory`.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tower_distributed_lock::LockManager;

use crate::support::figures::{Figures, Goal};
use crate::support::load::cpu_time;
use crate::support::orders::text;
use crate::support::workers::Worker;
use crate::test_support::RedisServer;

const WAITERS: usize = 10_000;
const KEYS: [usize; 2] = [10_000, 100_000];
/// How long it may take to acquire all of them.
const BOUND: Duration = Duration::from_secs(15);
/// The time in which every held lock is renewed once.
const RENEWAL: Duration = Duration::from_millis(10_000 / 3);

pub async fn measure(figures: &mut Figures) {
    println!("\nmemory and CPU time, of a process of its own");
    let bytes = match numbers(&format!("wait {WAITERS}")).await {
        Ok([bytes]) => {
            println!("  {WAITERS:6} tasks that wait for one key: {bytes:.0} bytes each");
            bytes
        }
        Err(reason) => {
            println!("  {WAITERS:6} tasks that wait for one key: – ({reason})");
            f64::NAN
        }
    };
    figures.add("memory_per_waiter_bytes", bytes, &Goal::AtMost(2048.0));
    let mut last = f64::NAN;
    for keys in KEYS {
        last = match numbers(&format!("hold {keys}")).await {
            Ok([rate, bytes, cpu]) => {
                println!(
                    "  {keys:6} keys held at once: taken at {rate:.0} a second, {bytes:.0} bytes each, then {:.1} % of one core",
                    cpu * 100.0
                );
                cpu
            }
            Err(reason) => {
                println!("  {keys:6} keys held at once: – ({reason})");
                f64::NAN
            }
        };
    }
    figures.add("idle_cpu_100k_keys", last, &Goal::AtMost(0.5));
}

/// Returns the answer of a new worker, with a new server.
async fn numbers<const COUNT: usize>(command: &str) -> Result<[f64; COUNT], String> {
    let server = RedisServer::start().await;
    let answer = Worker::start(&server).ask(command).await?;
    let numbers: Result<Vec<f64>, _> = answer.split(' ').map(str::parse).collect();
    let numbers = numbers.map_err(text)?;
    numbers.try_into().map_err(|_| format!("what is {answer}?"))
}

/// The worker's side. Returns the bytes for each task that waits.
pub async fn wait(url: &str, count: usize) -> Result<String, String> {
    let locks = LockManager::connect(url).await.map_err(text)?;
    let guard = locks.try_acquire("a").await.map_err(text)?;
    let waiting = Arc::new(AtomicUsize::new(0));
    let wait = |locks: LockManager, waiting: Arc<AtomicUsize>| async move {
        waiting.fetch_add(1, Ordering::Relaxed);
        // It runs until the process ends.
        let _ = locks.acquire("a", Duration::from_secs(3600)).await;
    };
    let before = resident()?;
    for _ in 0..count {
        tokio::spawn(wait(locks.clone(), Arc::clone(&waiting)));
    }
    while waiting.load(Ordering::Relaxed) < count {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    let bytes = (resident()? - before) / count as f64;
    drop(guard);
    Ok(bytes.to_string())
}

/// The worker's side. Returns the keys acquired per second, the bytes for each held key, and the
/// share of a core that holding them takes.
pub async fn hold(url: &str, count: usize) -> Result<String, String> {
    let locks = LockManager::connect(url).await.map_err(text)?;
    let at_a_time = Arc::new(Semaphore::new(256));
    let mut tasks = Vec::with_capacity(count);
    let (before, started) = (resident()?, Instant::now());
    for number in 0..count {
        if started.elapsed() > BOUND {
            return Err(format!("only {number} of them were taken within {BOUND:?}"));
        }
        let permit = Arc::clone(&at_a_time).acquire_owned().await.map_err(text)?;
        let locks = locks.clone();
        tasks.push(tokio::spawn(async move {
            let guard = locks.try_acquire(format!("key:{number}")).await;
            drop(permit);
            guard
        }));
    }
    let mut guards = Vec::with_capacity(count);
    for task in tasks {
        guards.push(task.await.map_err(text)?.map_err(text)?);
    }
    let rate = count as f64 / started.elapsed().as_secs_f64();
    let bytes = (resident()? - before) / count as f64;
    // The first look at each lock comes soon after it was acquired.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let cpu = cpu_time().ok_or("this system does not tell the CPU time")?;
    tokio::time::sleep(RENEWAL).await;
    let cpu = cpu_time().unwrap_or(cpu) - cpu;
    let lost = guards
        .iter()
        .filter(|guard| !guard.lease().is_held())
        .count();
    match lost {
        0 => Ok(format!(
            "{rate} {bytes} {}",
            cpu.as_secs_f64() / RENEWAL.as_secs_f64()
        )),
        _ => Err(format!("{lost} locks were lost")),
    }
}

/// Returns the resident memory of this process, in bytes.
fn resident() -> Result<f64, String> {
    let status = std::fs::read_to_string("/proc/self/status").map_err(text)?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<f64>().ok());
    Ok(kilobytes.ok_or("this system does not tell the resident memory")? * 1024.0)
}
