//! The worker processes of a phase, each behind a proxy of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::io::AsyncWriteExt;
use tokio::process::Child;
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::harness;
use crate::history::{Log, What};
use crate::proxy::Proxy;
use crate::support::random::Random;
use crate::worker::Orders;
use crate::{PATIENCE, WORKER};

pub struct Place {
    /// One in front of each server.
    pub proxies: Vec<Arc<Proxy>>,
    worker: Mutex<Worker>,
}

struct Worker {
    child: Child,
    orders: Orders,
}

pub struct Crew {
    pub places: Vec<Place>,
    log: Log,
    next: AtomicU32,
}

impl Worker {
    fn start(orders: Orders) -> Self {
        let child = harness::worker()
            .env(WORKER, orders.line())
            .spawn()
            .unwrap();
        Self { child, orders }
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = self.child.id().unwrap() as i32;
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }
}

impl Crew {
    pub async fn start(
        size: u32,
        orders: &Orders,
        targets: &[u16],
        log: &Log,
        random: &mut Random,
    ) -> Self {
        let mut places = Vec::new();
        for number in 1..=size {
            let proxies = join_all(targets.iter().map(|target| Proxy::start(*target))).await;
            let mut orders = orders.clone();
            (orders.number, orders.seed) = (number, random.next());
            let ports = targets.iter().zip(&proxies);
            orders.access.servers = ports.map(|(at, by)| (*at, by.port)).collect();
            let worker = Mutex::new(Worker::start(orders));
            places.push(Place { proxies, worker });
        }
        let (log, next) = (log.clone(), AtomicU32::new(size + 1));
        Self { places, log, next }
    }

    /// Stops a worker for some time.
    pub async fn stop(&self, place: usize, time: Duration) {
        let worker = self.places[place].worker.lock().await;
        worker.signal(rustix::process::Signal::STOP);
        tokio::time::sleep(time).await;
        worker.signal(rustix::process::Signal::CONT);
    }

    /// Kills a worker. A new one takes its place.
    pub async fn replace(&self, place: usize) {
        let mut worker = self.places[place].worker.lock().await;
        let mut orders = worker.orders.clone();
        worker.child.kill().await.unwrap();
        self.log.of(orders.number).note(What::Killed, 0, 0, "");
        let step = self.places.len() as u32;
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        // The new worker is of the same kind: see `Runtimes::of`.
        orders.number = number * step * 4 + orders.number % 4;
        orders.seed ^= u64::from(orders.number);
        *worker = Worker::start(orders);
    }

    pub async fn tell(&self, line: &str) {
        for place in &self.places {
            let mut worker = place.worker.lock().await;
            let input = worker.child.stdin.as_mut().unwrap();
            input
                .write_all(format!("{line}\n").as_bytes())
                .await
                .unwrap();
        }
    }

    /// Waits until all have ended by themselves. Returns how many did not, or failed.
    pub async fn ended(&self) -> usize {
        let mut stuck = 0;
        for place in &self.places {
            let mut worker = place.worker.lock().await;
            // `wait` would close it, and the worker would end at once.
            let _input = worker.child.stdin.take();
            let ended = timeout(PATIENCE, worker.child.wait()).await;
            stuck +=
                usize::from(!ended.is_ok_and(|status| status.is_ok_and(|status| status.success())));
        }
        stuck
    }
}
