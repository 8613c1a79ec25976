//! A worker's side: it takes locks, and does what it is told.

use std::io::Write;

use redis::aio::MultiplexedConnection;
use tokio::runtime::Builder;
use tokio::sync::{mpsc, watch};
use tower_distributed_lock::{Error, LockGuard, LockManager};

use crate::harness;
use crate::support::{PATIENCE, connect_patiently, run, short_lived, value};
use crate::transfers::transfers;

pub const URL: &str = "TOWER_DISTRIBUTED_LOCK_TEST_URL";

pub const TTL_MS: &str = "TOWER_DISTRIBUTED_LOCK_TEST_TTL_MS";

/// What the worker does when its runtime has nothing left to run.
enum End {
    Exit,
    DropRuntimeAndLiveOn(LockManager, LockGuard),
}

pub fn obey(url: &str) {
    let ttl = std::env::var(TTL_MS).unwrap().parse().unwrap();
    let builder = short_lived(ttl);
    // The runtime has one thread: what the worker has not waited for is not done when it ends.
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let (commands, received) = mpsc::unbounded_channel();
    harness::obey_input(move |line| {
        let _ = commands.send(line);
    });
    let end = runtime.block_on(async {
        let locks = builder.connect(url).await.unwrap();
        let redis = connect_patiently(url).await.unwrap();
        say("ready");
        carry_out(locks, &redis, received).await
    });
    if let End::DropRuntimeAndLiveOn(locks, guard) = end {
        drop(guard);
        drop(runtime);
        drop(locks);
        say("dropped");
        loop {
            std::thread::park();
        }
    }
    // The process ends without waiting for anything.
    std::process::exit(0);
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").unwrap();
    out.flush().unwrap();
}

async fn carry_out(
    locks: LockManager,
    redis: &MultiplexedConnection,
    mut received: mpsc::UnboundedReceiver<String>,
) -> End {
    let mut held: Option<LockGuard> = None;
    let calm = watch::Sender::new(false);
    let mut storming = Vec::new();
    loop {
        let line = received.recv().await.unwrap();
        let mut words = line.split(' ');
        match words.next().unwrap() {
            word @ ("acquire" | "share") => match take(&locks, word).await {
                Ok(guard) => {
                    say(&guard.fencing_token().to_string());
                    held = Some(guard);
                }
                Err(error) => say(&format!("{:?}", error.kind())),
            },
            "look" => {
                let lease = held.as_ref().unwrap().lease();
                // In this order: `is_held` is the first to look.
                let is_held = lease.is_held();
                let is_lost = futures_util::poll!(Box::pin(lease.lost())).is_ready();
                say(&format!("held: {is_held}, lost: {is_lost}"));
            }
            "release" => match held.take().unwrap().release().await {
                Ok(()) => say("ok"),
                Err(error) => say(&format!("{:?}", error.kind())),
            },
            "compete" => {
                let tasks = words.next().unwrap().parse().unwrap();
                let total = words.next().unwrap().parse().unwrap();
                say(&compete(&locks, redis, tasks, total).await.to_string());
            }
            "storm" => {
                let tasks = (0..16).map(|_| {
                    let (locks, redis) = (locks.clone(), redis.clone());
                    tokio::spawn(storm(locks, redis, calm.subscribe()))
                });
                storming.extend(tasks);
                say("storming");
            }
            "calm" => {
                calm.send_replace(true);
                let (mut served, mut refused) = (0, 0);
                for task in storming.drain(..) {
                    let counts = task.await.unwrap();
                    served += counts.0;
                    refused += counts.1;
                }
                say(&format!("{served} {refused}"));
            }
            "transfer" => {
                let times = words.next().unwrap().parse().unwrap();
                say(&transfers(&locks, redis, times).await);
            }
            "close" => {
                drop(held);
                locks.close().await;
                return End::Exit;
            }
            "drop" => return End::DropRuntimeAndLiveOn(locks, held.unwrap()),
            _ => panic!("unknown command: {line}"),
        }
    }
}

async fn take(locks: &LockManager, how: &str) -> Result<LockGuard, Error> {
    match how {
        "share" => locks.acquire_shared("a", PATIENCE * 3).await,
        _ => locks.acquire("a", PATIENCE * 3).await,
    }
}

/// Counts up under the lock until the total is reached; only the lock makes that atomic. Returns
/// this process's share.
async fn compete(
    locks: &LockManager,
    redis: &MultiplexedConnection,
    tasks: usize,
    total: u64,
) -> u64 {
    let tasks: Vec<_> = (0..tasks)
        .map(|_| {
            let (locks, redis) = (locks.clone(), redis.clone());
            tokio::spawn(async move {
                let mut share = 0;
                loop {
                    let guard = locks.acquire("a", PATIENCE * 3).await.unwrap();
                    let count: u64 = value(&redis, "counter").await.unwrap().parse().unwrap();
                    if count >= total {
                        return share;
                    }
                    run(&redis, &format!("SET counter {}", count + 1)).await;
                    share += 1;
                    drop(guard);
                }
            })
        })
        .collect();
    let mut share = 0;
    for task in tasks {
        share += task.await.unwrap();
    }
    share
}

/// Reads and writes under the lock, in two steps, until it is told to be calm and has been served.
/// (The process may have been started just before.) The storage refuses tokens that are older than
/// one it has seen. Returns how often it was served, and how often refused.
async fn storm(
    locks: LockManager,
    mut redis: MultiplexedConnection,
    calm: watch::Receiver<bool>,
) -> (u64, u64) {
    let read = redis::Script::new(
        "local seen = tonumber(redis.call('HGET', KEYS[1], 'fence') or 0)
         if tonumber(ARGV[1]) < seen then return -1 end
         redis.call('HSET', KEYS[1], 'fence', ARGV[1])
         return tonumber(redis.call('HGET', KEYS[1], 'number') or 0)",
    );
    let write = redis::Script::new(
        "if redis.call('HGET', KEYS[1], 'fence') ~= ARGV[1] then return -1 end
         redis.call('RPUSH', KEYS[2], ARGV[2] .. ' ' .. ARGV[1])
         return redis.call('HSET', KEYS[1], 'number', ARGV[2])",
    );
    let (mut served, mut refused) = (0, 0);
    while !*calm.borrow() || served == 0 {
        // The wait may fail, as the process may have been frozen meanwhile.
        let Ok(guard) = locks.acquire("a", PATIENCE * 3).await else {
            continue;
        };
        let fence = guard.fencing_token();
        let call = read
            .key("storage")
            .arg(fence)
            .invoke_async(&mut redis)
            .await;
        let number: i64 = call.unwrap();
        let mut written = -1;
        if number >= 0 {
            let mut call = write.key("storage");
            let call = call.key("log").arg(fence).arg(number + 1);
            written = call.invoke_async(&mut redis).await.unwrap();
        }
        if written < 0 {
            assert!(
                !guard.lease().is_held(),
                "refused, and not told of the loss"
            );
            refused += 1;
        } else {
            served += 1;
        }
    }
    (served, refused)
}
