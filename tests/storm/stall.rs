//! Whether the machine itself stood still. A lease runs out when its process or Redis does not run,
//! and a storm in which that happened says nothing.
//!
//! This does not use the crate at all.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use tokio::task::JoinHandle;
use tokio::time::sleep;

const PAUSE: Duration = Duration::from_millis(10);

/// A thread that tells for how long this process was kept from running, if that is worth telling.
pub fn watch(tell: impl Fn(u64) + Send + 'static) {
    std::thread::spawn(move || {
        loop {
            let before = Instant::now();
            std::thread::sleep(PAUSE);
            let late = (before.elapsed() - PAUSE).as_millis() as u64;
            if late > 50 {
                tell(late);
            }
        }
    });
}

/// Asks servers for a PING again and again.
pub struct Pings {
    longest: Arc<AtomicU64>,
    tasks: Vec<JoinHandle<()>>,
}

impl Pings {
    pub fn start(servers: impl IntoIterator<Item = MultiplexedConnection>) -> Self {
        let longest = Arc::new(AtomicU64::new(0));
        let tasks = servers.into_iter().map(|mut redis| {
            let longest = Arc::clone(&longest);
            tokio::spawn(async move {
                loop {
                    let before = Instant::now();
                    sleep(PAUSE).await;
                    let pong = redis::cmd("PING").exec_async(&mut redis).await;
                    pong.unwrap_or_else(|error| println!("PING: {error}"));
                    let late = (before.elapsed() - PAUSE).as_millis() as u64;
                    longest.fetch_max(late, Ordering::Relaxed);
                }
            })
        });
        let tasks = tasks.collect();
        Self { longest, tasks }
    }

    /// The longest time that a PING took, and its pause before it was late, in ms.
    pub fn longest(&self) -> u64 {
        self.longest.load(Ordering::Relaxed)
    }
}

impl Drop for Pings {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}
