//! Processes that are killed, stopped, ended: real ones.
//!
//! This program is its own worker: started with [`URL`] set, it does what it is told on its standard input, and ends with
//! it. Started without, it runs the tests, one after another.

mod common;

use std::future::Future;
use std::io::{BufRead, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::process::{ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use common::{
    PATIENCE, RedisServer, eventually, eventually_no_trace, minute, queue_length, run, short_lived,
    soon, value,
};
use redis::aio::MultiplexedConnection;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, watch};
use tower_distributed_lock::{LockGuard, LockManager};

const URL: &str = "TOWER_DISTRIBUTED_LOCK_TEST_URL";
const TTL_MS: &str = "TOWER_DISTRIBUTED_LOCK_TEST_TTL_MS";
const MINUTE: u64 = 60_000;

type Test = fn() -> Pin<Box<dyn Future<Output = ()>>>;

macro_rules! tests {
    ($($name:ident)*) => {
        const TESTS: &[(&str, Test)] = &[$((stringify!($name), || Box::pin($name()))),*];
    };
}

tests! {
    the_lock_of_a_killed_process_goes_to_a_waiter_when_it_expires
    a_holder_that_was_frozen_beyond_its_ttl_knows_that_it_lost_the_lock
    processes_in_competition_lose_no_update_and_each_has_a_share
    a_waiting_process_that_was_killed_is_passed_over_at_once
    waiting_processes_that_are_frozen_do_not_keep_the_lock_from_the_others
    an_answer_that_came_while_the_process_was_frozen_is_not_late
    processes_killed_and_frozen_at_random_lose_no_update
    a_process_that_ends_right_after_close_leaves_no_lock
    a_process_that_drops_its_runtime_and_lives_on_leaves_no_lock
}

fn main() -> ExitCode {
    if let Ok(url) = std::env::var(URL) {
        worker(&url);
        return ExitCode::SUCCESS;
    }
    let args: Vec<String> = std::env::args().skip(1).collect();
    let skip = args.iter().position(|arg| arg == "--skip");
    let skipped = skip.and_then(|at| args.get(at + 1));
    let filter = args
        .iter()
        .find(|arg| !arg.starts_with('-') && Some(*arg) != skipped);
    let (chosen, others): (Vec<_>, Vec<_>) = TESTS.iter().partition(|(name, _)| {
        filter.is_none_or(|filter| name.contains(filter.as_str()))
            && skipped.is_none_or(|skipped| !name.contains(skipped.as_str()))
    });
    if args.iter().any(|arg| arg == "--list") {
        for (name, _) in &chosen {
            println!("{name}: test");
        }
        return ExitCode::SUCCESS;
    }
    println!("\nrunning {} tests", chosen.len());
    let started = Instant::now();
    let mut failed = 0;
    for (name, test) in &chosen {
        let run = || Runtime::new().unwrap().block_on(test());
        let ok = catch_unwind(AssertUnwindSafe(run)).is_ok();
        println!("test {name} ... {}", if ok { "ok" } else { "FAILED" });
        failed += usize::from(!ok);
    }
    println!(
        "\ntest result: {}. {} passed; {failed} failed; 0 ignored; 0 measured; {} filtered out; finished in {:.2}s\n",
        if failed == 0 { "ok" } else { "FAILED" },
        chosen.len() - failed,
        others.len(),
        started.elapsed().as_secs_f64(),
    );
    match failed {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::from(101),
    }
}

// ---- The worker's side.

/// What is left to do when the worker's runtime has nothing left to run.
enum End {
    Exit,
    DropRuntimeAndLiveOn(LockManager, LockGuard),
}

fn worker(url: &str) {
    let ttl = std::env::var(TTL_MS).unwrap().parse().unwrap();
    let builder = short_lived(ttl);
    // Of one thread: what is not waited for is not done either when the worker ends.
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let (commands, received) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let _ = commands.send(line.unwrap());
        }
        // The test is over, however it ended.
        std::process::exit(1);
    });
    let end = runtime.block_on(async {
        let locks = builder.connect(url).await.unwrap();
        let client = redis::Client::open(url).unwrap();
        // A process that was frozen is not too late for an answer.
        let patient = redis::AsyncConnectionConfig::new().set_response_timeout(None);
        let redis = client.get_multiplexed_async_connection_with_config(&patient);
        let redis = redis.await.unwrap();
        say("ready");
        obey(locks, &redis, received).await
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
    // Nothing waits for anything any more.
    std::process::exit(0);
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").unwrap();
    out.flush().unwrap();
}

async fn obey(
    locks: LockManager,
    redis: &MultiplexedConnection,
    mut commands: mpsc::UnboundedReceiver<String>,
) -> End {
    let mut held: Option<LockGuard> = None;
    let calm = watch::Sender::new(false);
    let mut storming = Vec::new();
    loop {
        let line = commands.recv().await.unwrap();
        let mut words = line.split(' ');
        match words.next().unwrap() {
            "acquire" => match locks.acquire("a", PATIENCE * 3).await {
                Ok(guard) => {
                    say(&guard.fencing_token().to_string());
                    held = Some(guard);
                }
                Err(error) => say(&format!("{:?}", error.kind())),
            },
            "look" => {
                let lease = held.as_ref().unwrap().lease();
                // In this order: the first look.
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

/// Counts up under the lock, without any atomicity but the lock's, until the count is there. Returns this process's part.
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

/// Reads and writes under the lock, in two steps, until there is calm. The storage refuses tokens that are older
/// than one it has seen. Returns how often it was served, and how often refused.
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
    while !*calm.borrow() {
        // It may have been frozen while it waited.
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

// ---- The test's side.

/// A process of its own, killed with this value.
struct Worker {
    pid: u32,
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Worker {
    async fn start(server: &RedisServer, ttl_ms: u64) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .env(URL, server.url())
            .env(TTL_MS, ttl_ms.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut worker = Self {
            pid: child.id().unwrap(),
            input: child.stdin.take().unwrap(),
            output: BufReader::new(child.stdout.take().unwrap()).lines(),
            child,
        };
        assert_eq!(worker.answer().await, "ready");
        worker
    }

    async fn storming(server: &RedisServer, ttl_ms: u64) -> Self {
        let mut worker = Self::start(server, ttl_ms).await;
        assert_eq!(worker.ask("storm").await, "storming");
        worker
    }

    async fn tell(&mut self, line: &str) {
        self.input.write_all(line.as_bytes()).await.unwrap();
        self.input.write_all(b"\n").await.unwrap();
    }

    async fn answer(&mut self) -> String {
        let line = soon("the worker answers", self.output.next_line()).await;
        line.unwrap().expect("the worker goes on")
    }

    async fn ask(&mut self, line: &str) -> String {
        self.tell(line).await;
        self.answer().await
    }

    async fn acquire(&mut self) -> u64 {
        self.tell("acquire").await;
        self.acquired().await
    }

    /// The fencing token that comes.
    async fn acquired(&mut self) -> u64 {
        let answer = self.answer().await;
        answer.parse().unwrap_or_else(|_| panic!("{answer}"))
    }

    fn signal(&self, signal: &str) {
        let kill = std::process::Command::new("kill")
            .args([signal, &self.pid.to_string()])
            .status();
        assert!(kill.unwrap().success());
    }

    async fn freeze(&self) {
        self.signal("-STOP");
        let stat = format!("/proc/{}/stat", self.pid);
        if cfg!(target_os = "linux") {
            eventually("it is frozen", || async {
                // The state stands behind the name, which is in parentheses.
                let stat = std::fs::read_to_string(&stat).unwrap();
                stat.rsplit_once(')').unwrap().1.trim().starts_with('T')
            })
            .await;
        }
    }

    async fn ended(&mut self) -> ExitStatus {
        soon("it ends", self.child.wait()).await.unwrap()
    }

    async fn kill(&mut self) {
        self.signal("-KILL");
        self.ended().await;
    }
}

async fn waits(redis: &MultiplexedConnection, processes: usize) {
    eventually("they wait", || async {
        queue_length(redis, "a").await == processes
    })
    .await;
}

async fn connections(redis: &MultiplexedConnection) -> usize {
    let list: String = redis::from_redis_value(run(redis, "CLIENT LIST").await).unwrap();
    list.lines().count()
}

/// When the owner's key expires, in ms of the server's clock.
async fn expiry(redis: &MultiplexedConnection) -> u64 {
    let now_and_left = "local now = redis.call('TIME') \
                        return now[1] * 1000 + math.floor(now[2] / 1000) + redis.call('PTTL', KEYS[1])";
    redis::Script::new(now_and_left)
        .key("lock:a")
        .invoke_async(&mut redis.clone())
        .await
        .unwrap()
}

async fn expired_keys(redis: &MultiplexedConnection) -> u64 {
    let stats: String = redis::from_redis_value(run(redis, "INFO stats").await).unwrap();
    let line = stats
        .lines()
        .find_map(|line| line.strip_prefix("expired_keys:"));
    line.unwrap().parse().unwrap()
}

/// The server's time, in ms, at which it gave the lock away: fences are its clock in µs, with 1024 tokens for each.
fn given_at(fencing_token: u64) -> u64 {
    fencing_token / 1024 / 1000
}

async fn the_lock_of_a_killed_process_goes_to_a_waiter_when_it_expires() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let mut holder = Worker::start(&server, 1000).await;
    let mut waiter = Worker::start(&server, 1000).await;
    let first = holder.acquire().await;
    waiter.tell("acquire").await;
    waits(&redis, 1).await;
    // Alive, it keeps the lock beyond its time to live.
    eventually("it has renewed the lease", || async {
        expiry(&redis).await > given_at(first) + 1500
    })
    .await;
    assert_eq!(expired_keys(&redis).await, 0);

    holder.kill().await;
    let expiry = expiry(&redis).await;
    let second = waiter.acquired().await;
    assert!(second > first);
    assert_eq!(expired_keys(&redis).await, 1);
    let given = given_at(second);
    assert!(given + 2 >= expiry, "{} ms early", expiry - given);
    assert!(given < expiry + 1000, "{} ms late", given - expiry);
    println!(
        "given away {} ms after the expiry",
        given.saturating_sub(expiry)
    );

    assert_eq!(waiter.ask("release").await, "ok");
    eventually_no_trace(&redis).await;
}

async fn a_holder_that_was_frozen_beyond_its_ttl_knows_that_it_lost_the_lock() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let mut frozen = Worker::start(&server, 500).await;
    let mut other = Worker::start(&server, MINUTE).await;
    let old = frozen.acquire().await;
    frozen.freeze().await;
    let new = other.acquire().await;
    assert!(old < new);
    let owner = value(&redis, "lock:a").await;
    assert!(owner.is_some());

    // The question is there before it wakes up.
    frozen.tell("look").await;
    frozen.signal("-CONT");
    assert_eq!(frozen.answer().await, "held: false, lost: true");
    assert_eq!(frozen.ask("release").await, "Lost");
    assert_eq!(value(&redis, "lock:a").await, owner);
    assert_eq!(other.ask("look").await, "held: true, lost: false");
    assert_eq!(other.ask("release").await, "ok");
    eventually_no_trace(&redis).await;
    // And it is as good as any other from then on.
    assert!(frozen.acquire().await > new);
    assert_eq!(frozen.ask("release").await, "ok");
    eventually_no_trace(&redis).await;
}

async fn processes_in_competition_lose_no_update_and_each_has_a_share() {
    const PROCESSES: usize = 4;
    const TOTAL: u64 = 3000;
    let server = RedisServer::start().await;
    let redis = server.client().await;
    run(&redis, "SET counter 0").await;
    let mut workers = Vec::new();
    for _ in 0..PROCESSES {
        workers.push(Worker::start(&server, 10_000).await);
    }
    for worker in &mut workers {
        worker.tell(&format!("compete 16 {TOTAL}")).await;
    }
    let mut shares = Vec::new();
    for worker in &mut workers {
        shares.push(worker.answer().await.parse::<u64>().unwrap());
    }
    println!("shares: {shares:?}");
    assert_eq!(shares.iter().sum::<u64>(), TOTAL);
    assert_eq!(value(&redis, "counter").await, Some(TOTAL.to_string()));
    let fair = TOTAL / PROCESSES as u64;
    assert!(shares.iter().all(|share| *share > fair / 3), "{shares:?}");
    run(&redis, "DEL counter").await;
    eventually_no_trace(&redis).await;
}

async fn a_waiting_process_that_was_killed_is_passed_over_at_once() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let locks = minute().connect(&server.url()).await.unwrap();
    let guard = locks.try_acquire("a").await.unwrap();
    let before = connections(&redis).await;
    let mut killed = Worker::start(&server, MINUTE).await;
    killed.tell("acquire").await;
    waits(&redis, 1).await;
    let others = connections(&redis).await - before;
    let mut next = Worker::start(&server, MINUTE).await;
    next.tell("acquire").await;
    waits(&redis, 2).await;

    killed.kill().await;
    eventually("Redis has noticed", || async {
        connections(&redis).await == before + others
    })
    .await;
    guard.release().await.unwrap();
    let started = Instant::now();
    next.acquired().await;
    // No grant was waited for, which would take two seconds.
    assert!(started.elapsed() < Duration::from_millis(1500));
    assert_eq!(next.ask("release").await, "ok");
    eventually_no_trace(&redis).await;
}

async fn waiting_processes_that_are_frozen_do_not_keep_the_lock_from_the_others() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let locks = minute().connect(&server.url()).await.unwrap();
    let guard = locks.try_acquire("a").await.unwrap();
    let mut workers = Vec::new();
    for waiting in 1..=3 {
        let mut worker = Worker::start(&server, MINUTE).await;
        worker.tell("acquire").await;
        waits(&redis, waiting).await;
        workers.push(worker);
    }
    let mut next = workers.pop().unwrap();
    for frozen in &workers {
        frozen.freeze().await;
    }
    guard.release().await.unwrap();
    // The lock is granted to each of the frozen ones first, for two seconds.
    let started = Instant::now();
    let token = next.acquired().await;
    println!("served after {:?}", started.elapsed());
    for frozen in &workers {
        frozen.signal("-CONT");
    }
    assert_eq!(next.ask("look").await, "held: true, lost: false");
    assert_eq!(next.ask("release").await, "ok");
    // They ask again, in either order.
    let served = workers.iter_mut().map(|frozen| async move {
        assert!(frozen.acquired().await > token);
        assert_eq!(frozen.ask("release").await, "ok");
    });
    futures_util::future::join_all(served).await;
    eventually_no_trace(&redis).await;
}

async fn an_answer_that_came_while_the_process_was_frozen_is_not_late() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let mut worker = Worker::start(&server, MINUTE).await;
    run(&redis, "CLIENT PAUSE 60000 WRITE").await;
    worker.tell("acquire").await;
    eventually("the command is there", || async {
        let list = run(&redis, "CLIENT LIST").await;
        let list: String = redis::from_redis_value(list).unwrap();
        list.contains("cmd=evalsha")
    })
    .await;
    worker.freeze().await;
    run(&redis, "CLIENT UNPAUSE").await;
    eventually("it is carried out", || async {
        value(&redis, "lock:a").await.is_some()
    })
    .await;
    // That is the fault itself: longer than a command may take.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    worker.signal("-CONT");
    worker.acquired().await;
    assert_eq!(worker.ask("release").await, "ok");
    eventually_no_trace(&redis).await;
}

/// Real processes in competition, with a storage that knows the fencing tokens. A lost update would be a number that
/// was written twice.
async fn processes_killed_and_frozen_at_random_lose_no_update() {
    const TTL: u64 = 600;
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let mut workers = Vec::new();
    for _ in 0..4 {
        workers.push(Worker::storming(&server, TTL).await);
    }
    let seed = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_nanos() as u64;
    println!("seed {seed}");
    let mut random = Random(seed);
    for _ in 0..12 {
        let count = written(&redis).await.len();
        eventually("they go on", || async {
            written(&redis).await.len() > count + 50
        })
        .await;
        let victim = random.below(4);
        if random.below(3) == 0 {
            workers[victim].kill().await;
            workers[victim] = Worker::storming(&server, TTL).await;
        } else {
            workers[victim].freeze().await;
            // That is the fault itself: up to twice the time to live.
            tokio::time::sleep(Duration::from_millis(random.below(2 * TTL as usize) as u64)).await;
            workers[victim].signal("-CONT");
        }
    }
    let mut served = Vec::new();
    for worker in &mut workers {
        served.push(worker.ask("calm").await);
    }
    let log = written(&redis).await;
    println!("{} updates; served and refused: {served:?}", log.len());
    let numbers: Vec<u64> = log.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, (1..=log.len() as u64).collect::<Vec<_>>());
    assert!(log.is_sorted_by(|(_, one), (_, next)| one < next), "fences");
    // None starved, not even one that was frozen.
    assert!(
        served.iter().all(|served| !served.starts_with("0 ")),
        "{served:?}"
    );
    run(&redis, "DEL storage log").await;
    eventually_no_trace(&redis).await;
}

/// What the storage was told: numbers, and the fencing tokens that they came with.
async fn written(redis: &MultiplexedConnection) -> Vec<(u64, u64)> {
    let log: Vec<String> = redis::from_redis_value(run(redis, "LRANGE log 0 -1").await).unwrap();
    log.iter()
        .map(|entry| {
            let (number, fence) = entry.split_once(' ').unwrap();
            (number.parse().unwrap(), fence.parse().unwrap())
        })
        .collect()
}

/// Numbers that look random: a linear congruential generator (Knuth's constants).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit
    }
}

async fn a_process_that_ends_right_after_close_leaves_no_lock() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    for _ in 0..10 {
        let mut worker = Worker::start(&server, MINUTE).await;
        worker.acquire().await;
        assert!(value(&redis, "lock:a").await.is_some());
        worker.tell("close").await;
        assert!(worker.ended().await.success());
        assert_eq!(value(&redis, "lock:a").await, None);
    }
    eventually_no_trace(&redis).await;
}

async fn a_process_that_drops_its_runtime_and_lives_on_leaves_no_lock() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let mut worker = Worker::start(&server, MINUTE).await;
    worker.acquire().await;
    assert!(value(&redis, "lock:a").await.is_some());
    assert_eq!(worker.ask("drop").await, "dropped");
    eventually_no_trace(&redis).await;
    assert!(worker.child.try_wait().unwrap().is_none(), "it lives on");
}
