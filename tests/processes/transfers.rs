//! Transfers between accounts, each of which locks two: nothing is lost, and none waits for ever.

use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use tower_distributed_lock::LockManager;

use crate::harness;
use crate::process::{MINUTE, Worker};
use crate::support::random::Random;
use crate::support::{RedisServer, eventually, eventually_no_trace, run};

const ACCOUNTS: u64 = 20;
const EACH: i64 = 1000;
const PROCESSES: usize = 4;
/// Transfers of a process that run at the same time.
const TASKS: usize = 8;
/// Ample for one transfer, and much less than a deadlock would last.
const WAIT: Duration = Duration::from_secs(120);

async fn start(ttl_ms: u64) -> (RedisServer, MultiplexedConnection, Vec<Worker>) {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    for account in 0..ACCOUNTS {
        run(&redis, &format!("HSET balances {account} {EACH}")).await;
    }
    let mut workers = Vec::new();
    for _ in 0..PROCESSES {
        workers.push(Worker::start(&server, ttl_ms).await);
    }
    (server, redis, workers)
}

async fn sum(redis: &MultiplexedConnection) -> i64 {
    let balances: Vec<i64> = redis::from_redis_value(run(redis, "HVALS balances").await).unwrap();
    assert_eq!(balances.len() as u64, ACCOUNTS);
    balances.iter().sum()
}

pub async fn transfers_between_random_accounts_never_change_their_sum() {
    const TIMES: usize = 400;
    // No expiry can be the explanation, as it would take a minute.
    let (_server, redis, mut workers) = start(MINUTE).await;
    let began = Instant::now();
    for worker in &mut workers {
        worker.tell(&format!("transfer {TIMES}")).await;
    }
    let mut longest = Duration::ZERO;
    for worker in &mut workers {
        let answer = worker.answer().await;
        let (done, waited) = answer.split_once(' ').unwrap();
        assert_eq!(done.parse::<usize>().unwrap(), TIMES, "all are served");
        longest = longest.max(Duration::from_millis(waited.parse().unwrap()));
    }
    let took = began.elapsed();
    println!(
        "{} transfers took {took:?}; the longest wait was {longest:?}",
        PROCESSES * TIMES
    );
    assert!(
        longest < Duration::from_secs(20),
        "a deadlock, or one that starved"
    );
    assert_eq!(sum(&redis).await, ACCOUNTS as i64 * EACH);
    run(&redis, "DEL balances fences").await;
    eventually_no_trace(&redis).await;
}

/// A transfer is written by one script, so that a process that is killed leaves none half done.
/// What this shows is that the locks of the dead, one or both, come to the others.
pub async fn processes_killed_in_the_middle_of_transfers_change_no_sum() {
    let (server, redis, mut workers) = start(600).await;
    let mut random = Random::new(harness::seed("PROCESSES_SEED"));
    for worker in &mut workers {
        worker.tell("transfer 1000000").await;
    }
    let fences = || async {
        let fences = run(&redis, "HVALS fences").await;
        let mut fences: Vec<u64> = redis::from_redis_value(fences).unwrap();
        fences.sort_unstable();
        fences
    };
    for _ in 0..6 {
        let before = fences().await;
        eventually("they go on", || async { fences().await != before }).await;
        let victim = random.below(PROCESSES as u64) as usize;
        let ended = workers[victim].child.try_wait().unwrap();
        assert!(ended.is_none(), "a worker found something wrong");
        workers[victim].kill().await;
        workers[victim] = Worker::start(&server, 600).await;
        workers[victim].tell("transfer 1000000").await;
        assert_eq!(sum(&redis).await, ACCOUNTS as i64 * EACH);
    }
    for worker in &mut workers {
        worker.kill().await;
    }
    assert_eq!(sum(&redis).await, ACCOUNTS as i64 * EACH);
    // The locks of the dead expire. Then one call has all accounts.
    let locks = LockManager::builder().max_keys(ACCOUNTS as usize);
    let locks = locks.connect(&server.url()).await.unwrap();
    let keys = (0..ACCOUNTS).map(|account| ("account", account));
    let all = locks.acquire_all(keys, WAIT).await.unwrap();
    all.release().await.unwrap();
    run(&redis, "DEL balances fences").await;
    eventually_no_trace(&redis).await;
}

/// A worker's side: makes transfers between random accounts, in two steps that only the locks make
/// one. Returns how many it made, and the longest wait in ms.
pub async fn transfers(locks: &LockManager, redis: &MultiplexedConnection, times: usize) -> String {
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| {
            let (locks, redis) = (locks.clone(), redis.clone());
            let seed = u64::from(std::process::id()) << 8 | task as u64;
            tokio::spawn(some_transfers(locks, redis, seed, times / TASKS))
        })
        .collect();
    let (mut done, mut longest) = (0, Duration::ZERO);
    for task in tasks {
        let (by_task, waited) = task.await.unwrap();
        done += by_task;
        longest = longest.max(waited);
    }
    format!("{done} {}", longest.as_millis())
}

async fn some_transfers(
    locks: LockManager,
    mut redis: MultiplexedConnection,
    seed: u64,
    times: usize,
) -> (usize, Duration) {
    // Refuses what comes with a token that is older than one that was seen, and balances that are
    // not those of the reader.
    let write = redis::Script::new(
        "for at = 1, 2 do
           local seen = tonumber(redis.call('HGET', KEYS[2], ARGV[at]) or 0)
           if tonumber(ARGV[at + 2]) < seen then return -1 end
         end
         for at = 1, 2 do
           redis.call('HSET', KEYS[2], ARGV[at], ARGV[at + 2])
           redis.call('HSET', KEYS[1], ARGV[at], ARGV[at + 4])
         end
         return 1",
    );
    let mut random = Random::new(seed);
    let (mut done, mut longest) = (0, Duration::ZERO);
    for _ in 0..times {
        let from = random.below(ACCOUNTS);
        let to = (from + 1 + random.below(ACCOUNTS - 1)) % ACCOUNTS;
        let asked = Instant::now();
        let keys = [("account", from), ("account", to)];
        // It may fail where others are killed, and the machine is busy.
        let Ok(guards) = locks.acquire_all(keys, WAIT).await else {
            continue;
        };
        longest = longest.max(asked.elapsed());
        let read = format!("HMGET balances {from} {to}");
        let (old_from, old_to): (i64, i64) =
            redis::from_redis_value(run(&redis, &read).await).unwrap();
        let fence = |account| {
            let lease = guards.leases().get(("account", account)).unwrap();
            lease.fencing_token()
        };
        let mut call = write.key("balances");
        let call = call.key("fences").arg(from).arg(to);
        let call = call.arg(fence(from)).arg(fence(to));
        let call = call.arg(old_from - 1).arg(old_to + 1);
        let written: i64 = call.invoke_async(&mut redis).await.unwrap();
        match written {
            1 => done += 1,
            _ => assert!(!guards.is_held(), "refused, and not told of the loss"),
        }
    }
    (done, longest)
}
