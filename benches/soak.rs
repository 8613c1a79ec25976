//! Steadiness: `cargo bench --bench soak -- 600` runs mixed load with faults for ten minutes
//! (default: one), and tells whether everything is then as it was before.
//!
//! Two managers in one process share a redis-server of the benchmark's own, whose scripts are
//! flushed and whose clients are killed. One of them goes through a proxy, which now and then keeps
//! back what is sent, or closes the connections. Requests try, wait, give up, hold, or run once for
//! an idempotency key. Compared before and after, with nothing to do: resident memory, tasks,
//! connections, subscriptions, keys.

#![allow(unreachable_pub)]

#[path = "support/mod.rs"]
mod support;
#[path = "../tests/support/mod.rs"]
mod test_support;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use redis::aio::MultiplexedConnection;
use support::figures::{Figures, Goal};
use test_support::{Mode, Proxy, RedisServer, eventually, run};
use tokio::runtime::Handle;
use tower::{ServiceBuilder, ServiceExt, service_fn};
use tower_distributed_lock::{ErrorKind, IdempotencyLayer, LockManager};

const TASKS: usize = 100;
const KEYS: u64 = 50;
const WARM_UP: Duration = Duration::from_secs(10);

#[derive(Default)]
struct Counts {
    held: AtomicU64,
    refused: AtomicU64,
    unavailable: AtomicU64,
    gave_up: AtomicU64,
    answered: AtomicU64,
}

#[tokio::main(worker_threads = 2)]
async fn main() {
    let seconds = std::env::args().filter_map(|word| word.parse().ok()).next();
    let time = Duration::from_secs(seconds.unwrap_or(60));
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let proxy = Proxy::start(server.port).await;
    let builder = LockManager::builder()
        .ttl(Duration::from_secs(2))
        .command_timeout(Duration::from_millis(300));
    let managers = [
        builder.clone().connect(&server.url()).await.unwrap(),
        builder.connect(&proxy.url()).await.unwrap(),
    ];
    let counts = Arc::new(Counts::default());

    load(&managers, &counts, &proxy, &redis, WARM_UP).await;
    let before = Reading::of(&redis).await;
    load(&managers, &counts, &proxy, &redis, time).await;
    let after = Reading::of(&redis).await;

    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    println!(
        "{} s: {} locks held, {} refused or timed out, {} told that Redis is away, {} gave up, {} answers for keys",
        time.as_secs(),
        count(&counts.held),
        count(&counts.refused),
        count(&counts.unavailable),
        count(&counts.gave_up),
        count(&counts.answered)
    );
    println!("before: {before:?}\nafter:  {after:?}");
    let mut figures = Figures::default();
    let growth = after.memory / before.memory;
    figures.add("soak_memory_growth", growth, &Goal::AtMost(1.2));
    for (name, before, after) in [
        ("soak_tasks_left", before.tasks, after.tasks),
        (
            "soak_connections_left",
            before.connections,
            after.connections,
        ),
        (
            "soak_subscriptions_left",
            before.subscriptions,
            after.subscriptions,
        ),
        ("soak_keys_left", before.keys, after.keys),
    ] {
        let left = after as f64 - before as f64;
        figures.add(name, left, &Goal::AtMost(0.0));
    }
    figures.print();
}

/// What the process and Redis have while there is nothing to do.
#[derive(Debug)]
struct Reading {
    memory: f64,
    tasks: usize,
    connections: usize,
    subscriptions: usize,
    keys: usize,
}

impl Reading {
    async fn of(redis: &MultiplexedConnection) -> Self {
        // By then, all locks, queues and records have expired.
        tokio::time::sleep(Duration::from_secs(8)).await;
        let text = async |command: &str| {
            let value = run(redis, command).await;
            redis::from_redis_value::<String>(value).unwrap_or_default()
        };
        let list = async |command: &str| {
            let value = run(redis, command).await;
            redis::from_redis_value::<Vec<String>>(value).unwrap().len()
        };
        Self {
            memory: resident(),
            tasks: Handle::current().metrics().num_alive_tasks(),
            connections: text("CLIENT LIST").await.lines().count(),
            subscriptions: list("PUBSUB CHANNELS").await,
            keys: list("KEYS *").await,
        }
    }
}

fn resident() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok());
    kilobytes.unwrap_or(f64::NAN)
}

async fn load(
    managers: &[LockManager; 2],
    counts: &Arc<Counts>,
    proxy: &Proxy,
    redis: &MultiplexedConnection,
    time: Duration,
) {
    let until = Instant::now() + time;
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| {
            let locks = managers[task % 2].clone();
            let (counts, random) = (Arc::clone(counts), Random(task as u64));
            tokio::spawn(work(locks, counts, random, until))
        })
        .collect();
    let mut random = Random(7);
    while Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(200 + random.below(800))).await;
        match random.below(5) {
            0 => proxy.set(Mode::Hold),
            1 => proxy.set(Mode::Close),
            2 => drop(run(redis, "SCRIPT FLUSH").await),
            3 => drop(run(redis, "CLIENT KILL TYPE normal SKIPME yes").await),
            _ => proxy.set(Mode::Forward),
        }
    }
    proxy.set(Mode::Forward);
    for task in tasks {
        task.await.unwrap();
    }
    eventually("both are connected again", || async {
        let mut are_well = true;
        for locks in managers {
            are_well &= locks.try_acquire("well").await.is_ok();
        }
        are_well
    })
    .await;
}

async fn work(locks: LockManager, counts: Arc<Counts>, mut random: Random, until: Instant) {
    let count = |counter: &AtomicU64| counter.fetch_add(1, Ordering::Relaxed);
    let once = ServiceBuilder::new()
        .layer(IdempotencyLayer::new(locks.clone()).retention(Duration::from_secs(1)))
        .service(service_fn(|_| async {
            Ok::<_, Infallible>(Response::new(Full::<Bytes>::from("done")))
        }));
    while Instant::now() < until {
        let key = format!("key:{}", random.below(KEYS));
        let patience = Duration::from_millis(random.below(200));
        let result = match random.below(4) {
            0 => {
                let request = Request::post("/").header("idempotency-key", key);
                let request = request.body(Full::<Bytes>::default()).unwrap();
                once.clone().oneshot(request).await.unwrap();
                count(&counts.answered);
                continue;
            }
            1 => locks.try_acquire(key).await,
            2 => locks.acquire(key, Duration::from_millis(500)).await,
            _ => match tokio::time::timeout(patience, locks.acquire(key, test_support::PATIENCE))
                .await
            {
                Ok(result) => result,
                Err(_) => {
                    count(&counts.gave_up);
                    continue;
                }
            },
        };
        match result {
            Ok(guard) => {
                count(&counts.held);
                let hold = Duration::from_micros(random.below(3000));
                tokio::time::sleep(hold).await;
                drop(guard);
            }
            Err(error) if error.kind() == ErrorKind::Unavailable => {
                count(&counts.unavailable);
                // Like a client that is told to come back later.
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(_) => {
                count(&counts.refused);
                tokio::task::yield_now().await;
            }
        }
    }
}

/// Numbers that look random: a linear congruential generator (Knuth's constants).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}
