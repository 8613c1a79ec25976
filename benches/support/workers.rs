//! Workers in processes of their own: this program, started again.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::clock;
use crate::test_support::RedisServer;

/// Set for a worker only.
pub const URL: &str = "TOWER_DISTRIBUTED_LOCK_BENCH_URL";

/// Set for a worker whose runtime is to have this many threads.
pub const THREADS: &str = "TOWER_DISTRIBUTED_LOCK_BENCH_THREADS";

/// No workload takes so long.
const BOUND: Duration = Duration::from_secs(40);

/// A process that is killed when this value is dropped.
pub struct Worker {
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    child: Child,
}

impl Worker {
    /// Starts a worker with a runtime of one thread, as several processes share few cores.
    pub fn start(server: &RedisServer) -> Self {
        Self::with_threads(server, 1)
    }

    pub fn with_threads(server: &RedisServer, threads: usize) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .env(URL, server.url())
            .env(THREADS, threads.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Self {
            input: child.stdin.take().unwrap(),
            output: BufReader::new(child.stdout.take().unwrap()).lines(),
            child,
        }
    }

    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    pub async fn ask(&mut self, line: &str) -> Result<String, String> {
        self.tell(line).await?;
        self.answer().await
    }

    pub async fn tell(&mut self, line: &str) -> Result<(), String> {
        let line = format!("{line}\n");
        let told = self.input.write_all(line.as_bytes()).await;
        told.map_err(|error| format!("a worker ended: {error}"))
    }

    pub async fn answer(&mut self) -> Result<String, String> {
        let answer = tokio::time::timeout(BOUND, self.output.next_line()).await;
        let answer = answer.map_err(|_| format!("a worker did not answer within {BOUND:?}"))?;
        match answer {
            Ok(Some(line)) => match line.strip_prefix("failed ") {
                Some(reason) => Err(reason.to_owned()),
                None => Ok(line),
            },
            _ => Err("a worker ended".to_owned()),
        }
    }
}

/// Gives all workers the same order at the same time. Returns their answers.
pub async fn ask_all(workers: &mut [Worker], line: &str) -> Result<Vec<String>, String> {
    for worker in &mut *workers {
        worker.tell(line).await?;
    }
    let mut answers = Vec::new();
    for worker in workers {
        answers.push(worker.answer().await?);
    }
    Ok(answers)
}

/// Returns the moment after so much time, on the clock that all processes share.
pub fn moment(after: Duration) -> u64 {
    clock::nanos() + after.as_nanos() as u64
}
