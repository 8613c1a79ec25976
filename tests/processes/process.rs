//! The test's side of a worker, and what it looks at in Redis.

use std::process::{ExitStatus, Stdio};

use redis::aio::MultiplexedConnection;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout};

use crate::harness;
use crate::support::{self, RedisServer, eventually, soon, statistic};
use crate::worker::{TTL_MS, URL};

pub const MINUTE: u64 = 60_000;

/// A process of its own, killed with this value.
pub struct Worker {
    pid: u32,
    pub child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Worker {
    pub async fn start(server: &RedisServer, ttl_ms: u64) -> Self {
        let mut child = harness::worker()
            .env(URL, server.url())
            .env(TTL_MS, ttl_ms.to_string())
            .stdout(Stdio::piped())
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

    pub async fn storming(server: &RedisServer, ttl_ms: u64) -> Self {
        let mut worker = Self::start(server, ttl_ms).await;
        assert_eq!(worker.ask("storm").await, "storming");
        worker
    }

    pub async fn tell(&mut self, line: &str) {
        self.input.write_all(line.as_bytes()).await.unwrap();
        self.input.write_all(b"\n").await.unwrap();
    }

    pub async fn answer(&mut self) -> String {
        let line = soon("the worker answers", self.output.next_line()).await;
        line.unwrap().expect("the worker goes on")
    }

    pub async fn ask(&mut self, line: &str) -> String {
        self.tell(line).await;
        self.answer().await
    }

    pub async fn acquire(&mut self) -> u64 {
        self.tell("acquire").await;
        self.acquired().await
    }

    pub async fn share(&mut self) -> u64 {
        self.tell("share").await;
        self.acquired().await
    }

    /// Waits for the fencing token of a lock that was asked for.
    pub async fn acquired(&mut self) -> u64 {
        let answer = self.answer().await;
        answer.parse().unwrap_or_else(|_| panic!("{answer}"))
    }

    pub fn signal(&self, signal: &str) {
        support::signal(self.pid, signal);
    }

    pub async fn freeze(&self) {
        self.signal("-STOP");
        let stat = format!("/proc/{}/stat", self.pid);
        if cfg!(target_os = "linux") {
            eventually("it is frozen", || async {
                // The state comes after the name, which is in parentheses.
                let stat = std::fs::read_to_string(&stat).unwrap();
                stat.rsplit_once(')').unwrap().1.trim().starts_with('T')
            })
            .await;
        }
    }

    pub async fn ended(&mut self) -> ExitStatus {
        soon("it ends", self.child.wait()).await.unwrap()
    }

    pub async fn kill(&mut self) {
        self.signal("-KILL");
        self.ended().await;
    }
}

/// Returns when the lock's key expires, in ms of the server's clock.
pub async fn expiry(redis: &MultiplexedConnection) -> u64 {
    let now_and_left = "local now = redis.call('TIME') \
                        return now[1] * 1000 + math.floor(now[2] / 1000) + redis.call('PTTL', KEYS[1])";
    redis::Script::new(now_and_left)
        .key("lock:a")
        .invoke_async(&mut redis.clone())
        .await
        .unwrap()
}

pub async fn expired_keys(redis: &MultiplexedConnection) -> u64 {
    statistic(redis, "expired_keys").await
}

/// Returns the server's time, in ms, at which it gave the lock away. Fences are its clock in µs,
/// with 1024 tokens for each.
pub fn given_at(fencing_token: u64) -> u64 {
    fencing_token / 1024 / 1000
}
