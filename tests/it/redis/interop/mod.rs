//! Together with another client of the same locks: redis-py's `redis.lock.Lock`, the real one.
//!
//! Where a time to live is a minute, nothing that happens within [`PATIENCE`] can be an expiry.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tower_distributed_lock::{ErrorKind, LostReason};

use crate::support::{
    Mode, PATIENCE, Proxy, RedisServer, eventually, eventually_no_trace, eventually_queued,
    has_resp3, minute, run, short_lived, soon, value,
};

const LOCK: &str = "lock:a";

/// A Python program of `tests/it/redis/interop`, killed with this value.
struct Python {
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    _child: Child,
}

impl Python {
    async fn start(program: &str, server: &RedisServer, args: &[&str]) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let packages = root.join("target/python");
        assert!(
            packages.join("redis/__init__.py").exists(),
            "these tests need redis-py in target/python: run tests/run, which installs it"
        );
        let spawned = Command::new("python3")
            .arg(root.join("tests/it/redis/interop").join(program))
            .arg(server.port.to_string())
            .args(args)
            .env("PYTHONPATH", packages)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn();
        let mut child = spawned.unwrap_or_else(|error| {
            panic!("these tests need python3 ({error}): install it, then run tests/run")
        });
        let mut python = Self {
            input: child.stdin.take().unwrap(),
            output: BufReader::new(child.stdout.take().unwrap()).lines(),
            _child: child,
        };
        assert_eq!(python.answer().await, "ready");
        python
    }

    async fn tell(&mut self, line: &str) {
        self.input.write_all(line.as_bytes()).await.unwrap();
        self.input.write_all(b"\n").await.unwrap();
    }

    async fn answer(&mut self) -> String {
        let line = soon("Python answers", self.output.next_line()).await;
        line.unwrap().expect("the Python program goes on")
    }

    async fn ask(&mut self, line: &str) -> String {
        self.tell(line).await;
        self.answer().await
    }

    /// A program that has a lock on `lock:a`, not taken yet. With 0 seconds, it never expires.
    async fn with_lock(server: &RedisServer, ttl_seconds: f64) -> Self {
        let mut python = Self::start("client.py", server, &[]).await;
        assert_eq!(
            python.ask(&format!("lock {LOCK} {ttl_seconds}")).await,
            "ok"
        );
        python
    }
}

#[tokio::test]
async fn while_redis_py_holds_we_are_refused_and_go_on_as_soon_as_it_releases() {
    for ttl in [60.0, 0.0] {
        let server = RedisServer::start().await;
        let redis = server.client().await;
        let locks = minute().connect(&server.url()).await.unwrap();
        let mut python = Python::with_lock(&server, ttl).await;
        assert_eq!(python.ask("try").await, "True");

        let refused = locks.try_acquire("a").await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Held);

        let waiting = tokio::spawn({
            let locks = locks.clone();
            async move { locks.acquire("a", PATIENCE).await }
        });
        eventually_queued(&redis, "a", 1).await;
        assert_eq!(python.ask("owned").await, "True");
        assert_eq!(python.ask("release").await, "None");
        let guard = soon("we go on", waiting).await.unwrap().unwrap();
        assert_eq!(python.ask("try").await, "False");
        guard.release().await.unwrap();
        eventually_no_trace(&redis).await;
    }
}

#[tokio::test]
async fn a_lock_that_redis_py_extends_stays_its_own_while_we_wait() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let locks = minute().connect(&server.url()).await.unwrap();
    let mut python = Python::with_lock(&server, 60.0).await;
    assert_eq!(python.ask("try").await, "True");
    let waiting = tokio::spawn({
        let locks = locks.clone();
        async move { locks.acquire("a", PATIENCE).await }
    });
    eventually_queued(&redis, "a", 1).await;
    for _ in 0..20 {
        assert_eq!(python.ask("extend").await, "True");
        assert_eq!(python.ask("owned").await, "True");
    }
    assert!(!waiting.is_finished());
    assert_eq!(python.ask("release").await, "None");
    let guard = soon("we go on", waiting).await.unwrap().unwrap();
    guard.release().await.unwrap();
}

#[tokio::test]
async fn while_we_share_redis_py_is_refused_and_has_the_lock_after_the_last_release() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let locks = minute().connect(&server.url()).await.unwrap();
    let other = minute().connect(&server.url()).await.unwrap();
    let mut python = Python::with_lock(&server, 60.0).await;

    let readers = [&locks, &other].map(|locks| locks.try_acquire_shared("a"));
    let [one, two] = futures_util::future::join_all(readers)
        .await
        .try_into()
        .unwrap();
    assert_eq!(python.ask("try").await, "False");
    one.unwrap().release().await.unwrap();
    assert_eq!(python.ask("try").await, "False");
    two.unwrap().release().await.unwrap();
    assert_eq!(python.ask("try").await, "True");

    // And the other way round.
    let refused = locks.try_acquire_shared("a").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Held);
    let waiting = [&locks, &other].map(|locks| {
        let locks = locks.clone();
        tokio::spawn(async move { locks.acquire_shared("a", PATIENCE).await })
    });
    eventually_queued(&redis, "a", 2).await;
    assert_eq!(python.ask("owned").await, "True");
    assert_eq!(python.ask("release").await, "None");
    let readers = futures_util::future::join_all(waiting);
    let readers = soon("we go on together", readers).await;
    let readers: Vec<_> = readers
        .into_iter()
        .map(|reader| reader.unwrap().unwrap())
        .collect();

    // And if redis-py waits, in its own way.
    python.tell("acquire").await;
    drop(readers);
    assert_eq!(python.answer().await, "True");
    assert_eq!(python.ask("release").await, "None");
    eventually_no_trace(&redis).await;
}

#[tokio::test]
async fn while_we_hold_redis_py_is_refused_and_has_the_lock_after_our_release() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let locks = minute().connect(&server.url()).await.unwrap();
    let mut python = Python::with_lock(&server, 60.0).await;

    let guard = locks.try_acquire("a").await.unwrap();
    assert_eq!(python.ask("try").await, "False");
    guard.release().await.unwrap();
    assert_eq!(python.ask("try").await, "True");
    assert_eq!(python.ask("release").await, "None");

    // And the same if redis-py waits, in its own way.
    let guard = locks.try_acquire("a").await.unwrap();
    python.tell("acquire").await;
    drop(guard);
    assert_eq!(python.answer().await, "True");
    let refused = locks.try_acquire("a").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Held);
    assert_eq!(python.ask("release").await, "None");
    locks
        .try_acquire("a")
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    eventually_no_trace(&redis).await;
}

#[tokio::test]
async fn redis_py_cannot_release_a_lock_that_expired_and_is_ours_now() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let locks = minute().connect(&server.url()).await.unwrap();
    let mut python = Python::with_lock(&server, 0.3).await;
    assert_eq!(python.ask("try").await, "True");
    let guard = soon("its lock expires", locks.acquire("a", PATIENCE))
        .await
        .unwrap();
    let ours = value(&redis, LOCK).await;
    assert!(ours.is_some());

    assert_eq!(python.ask("owned").await, "False");
    assert_eq!(python.ask("release").await, "LockNotOwnedError");
    assert_eq!(value(&redis, LOCK).await, ours);
    assert!(guard.lease().is_held());
    assert_eq!(python.ask("try").await, "False");
    guard.release().await.unwrap();
    eventually_no_trace(&redis).await;
}

#[tokio::test]
async fn we_cannot_release_a_lock_that_expired_and_is_redis_pys_now() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let proxy = Proxy::start(server.port).await;
    let locks = short_lived(300).connect(&proxy.url()).await.unwrap();
    let mut python = Python::with_lock(&server, 60.0).await;
    let guard = locks.try_acquire("a").await.unwrap();
    proxy.set(Mode::Close);
    python.tell("acquire").await;
    assert_eq!(soon("we are told", guard.lost()).await, LostReason::Expired);
    assert_eq!(python.answer().await, "True");
    let theirs = value(&redis, LOCK).await;

    proxy.set(Mode::Forward);
    eventually("we are connected again", || async {
        locks.try_acquire("another").await.is_ok()
    })
    .await;
    assert_eq!(guard.release().await.unwrap_err().kind(), ErrorKind::Lost);
    assert_eq!(value(&redis, LOCK).await, theirs);
    assert_eq!(python.ask("owned").await, "True");
    assert_eq!(python.ask("release").await, "None");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn we_and_redis_py_in_competition_lose_no_update() {
    const EACH: usize = 4;
    const ROUNDS: usize = 50;
    let server = RedisServer::start().await;
    let redis = server.client().await;
    run(&redis, "SET counter 0").await;
    let (each, rounds) = (EACH.to_string(), ROUNDS.to_string());
    let args = [LOCK, "counter", "log", &each, &rounds];
    let mut python = Python::start("contend.py", &server, &args).await;
    // These are two processes, as far as Redis can tell.
    let one = minute().connect(&server.url()).await.unwrap();
    let two = minute().connect(&server.url()).await.unwrap();
    python.tell("go").await;
    let tasks = (0..EACH).map(|task| {
        let locks = [&one, &two][task % 2].clone();
        let redis = redis.clone();
        tokio::spawn(async move {
            for _ in 0..ROUNDS {
                let guard = locks.acquire("a", PATIENCE * 3).await.unwrap();
                let count: usize = value(&redis, "counter").await.unwrap().parse().unwrap();
                run(&redis, &format!("SET counter {}", count + 1)).await;
                run(&redis, "RPUSH log us").await;
                guard.release().await.unwrap();
                // redis-py does not queue but looks every 10 ms. This leaves it a chance.
                tokio::time::sleep(Duration::from_millis(8)).await;
            }
        })
    });
    for task in futures_util::future::join_all(tasks).await {
        task.unwrap();
    }
    assert_eq!(python.answer().await, "done");
    let count: usize = value(&redis, "counter").await.unwrap().parse().unwrap();
    assert_eq!(count, 2 * EACH * ROUNDS);
    let log: Vec<String> = redis::from_redis_value(run(&redis, "LRANGE log 0 -1").await).unwrap();
    let turns = log.windows(2).filter(|pair| pair[0] != pair[1]).count();
    println!("{count} updates, {turns} changes between redis-py and us");
    // Without RESP3, Redis does not tell us of its releases, and we look every 100 ms.
    let expected = if has_resp3() { 10 } else { 2 };
    assert!(turns >= expected, "they did not compete: {turns} changes");
    run(&redis, "DEL counter log").await;
    eventually_no_trace(&redis).await;
}
