//! A worker's side of a process of its own: it carries out the orders of its standard input, and
//! ends when that is closed.
//!
//! An order is a line, and so is its answer.

use std::io::{BufRead, Write};

use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;

use super::workers::THREADS;

pub trait Obey {
    async fn obey(&mut self, words: &[&str]) -> Result<String, String>;
}

/// Carries out all orders.
pub fn obey_all(mut worker: impl Obey) {
    let threads = std::env::var(THREADS).ok();
    let threads = threads.and_then(|threads| threads.parse().ok());
    let runtime = runtime(threads.unwrap_or(1));
    let (orders, mut received) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let _ = orders.send(line.unwrap());
        }
        // The benchmark is over, however it ended.
        std::process::exit(0);
    });
    // The runtime never stops, so that background tasks go on between the orders.
    runtime.block_on(async {
        while let Some(line) = received.recv().await {
            let words: Vec<&str> = line.split(' ').collect();
            let answer = match worker.obey(&words).await {
                Ok(answer) => answer,
                Err(reason) => format!("failed {}", reason.replace('\n', " ")),
            };
            let mut out = std::io::stdout().lock();
            writeln!(out, "{answer}").unwrap();
            out.flush().unwrap();
        }
    });
}

/// Returns a runtime with so many threads.
pub fn runtime(threads: usize) -> Runtime {
    let mut builder = match threads {
        1 => Builder::new_current_thread(),
        _ => Builder::new_multi_thread(),
    };
    if threads > 1 {
        builder.worker_threads(threads);
    }
    builder.enable_all().build().unwrap()
}

pub fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
