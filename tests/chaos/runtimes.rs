//! The runtimes of a worker: where its manager was made, and where its requests run.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};

use crate::client::Client;
use crate::history::What;
use crate::variety::Variety;
use crate::worker::{Me, Orders, Worker, work};

/// How many runtimes a worker has at the most. The rest of a request's number, divided by this, is
/// the number of its runtime.
pub const MOST: u64 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runtimes {
    /// One, of one thread.
    OneThread,
    /// One, of two threads.
    TwoThreads,
    /// The manager was made in a runtime of one thread, which nothing drives any more.
    Undriven,
    /// Two, of one thread each. The manager was made in the first.
    Two,
}

impl Runtimes {
    /// Every other worker has one runtime of two threads. With one thread, the time of a signal can
    /// be judged: see `worker::pulse`.
    pub fn of(worker: &Orders) -> Self {
        match worker.number % 4 {
            0 if worker.has(Variety::Runtimes) => Self::Undriven,
            3 if worker.has(Variety::Runtimes) => Self::Two,
            0 | 2 => Self::OneThread,
            _ => Self::TwoThreads,
        }
    }

    /// Returns when all requests are over and the manager is closed.
    pub fn run(self, worker: &Arc<Worker>) {
        match self {
            Self::OneThread => whole(&of_one_thread(), worker),
            Self::TwoThreads => {
                let mut builder = Builder::new_multi_thread();
                whole(
                    &builder.worker_threads(2).enable_all().build().unwrap(),
                    worker,
                );
            }
            Self::Undriven => {
                let first = of_one_thread();
                let client = first.block_on(connected(worker));
                let second = of_one_thread();
                second.block_on(async { end(work(worker, client, 0).await).await });
                drop(first);
            }
            Self::Two => {
                let first = of_one_thread();
                let client = first.block_on(connected(worker));
                let other = {
                    let (worker, client) = (Arc::clone(worker), client.clone());
                    thread::spawn(move || {
                        of_one_thread().block_on(work(&worker, client, 1));
                    })
                };
                let me = first.block_on(work(worker, client, 0));
                other.join().unwrap();
                first.block_on(end(me));
            }
        }
    }
}

fn of_one_thread() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn whole(runtime: &Runtime, worker: &Arc<Worker>) {
    runtime.block_on(async {
        let client = worker.orders.client();
        end(work(worker, client, 0).await).await;
    });
}

/// A manager whose background task runs in this runtime, if it is for that to decide.
async fn connected(worker: &Worker) -> Client {
    let orders = &worker.orders;
    let locks = orders.locks();
    while locks.ping().await.is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Client::Crate(locks)
}

async fn end(me: Me) {
    me.client.close().await;
    me.log.note(What::Closed, 0, 0, "");
}
