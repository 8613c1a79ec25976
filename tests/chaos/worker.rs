//! A process that takes locks, writes what it sees into its history, and ends with its standard input.

use std::io::BufRead;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::sync::watch;
use tower_distributed_lock::LockManager;

use crate::client::Client;
use crate::clock::{MS, nanos};
use crate::handling::Handling;
use crate::history::{Log, What};
use crate::random::Random;
use crate::requests;
use crate::store::Store;
use crate::textbook::{Flaw, Textbook};

pub const TTL: Duration = Duration::from_millis(600);
pub const COMMAND_TIMEOUT: Duration = Duration::from_millis(400);
/// Requests that a worker has under way at a time.
const TASKS: u64 = 8;

/// What a worker is to do, as one line in its environment.
#[derive(Clone, Debug)]
pub struct Orders {
    pub number: u32,
    pub seed: u64,
    pub url: String,
    pub store_url: String,
    /// None: this crate.
    pub textbook: Option<Flaw>,
    pub quarantine: bool,
    pub dir: PathBuf,
}

impl Orders {
    pub fn line(&self) -> String {
        let flaw = |flaw| Flaw::ALL.iter().position(|known| *known == flaw).unwrap() + 1;
        let Self {
            number,
            seed,
            url,
            store_url,
            quarantine,
            dir,
            ..
        } = self;
        let client = self.textbook.map_or(0, flaw);
        format!(
            "{number} {seed} {url} {store_url} {client} {quarantine} {}",
            dir.display()
        )
    }

    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.splitn(7, ' ');
        let mut next = || fields.next();
        Some(Self {
            number: next()?.parse().ok()?,
            seed: next()?.parse().ok()?,
            url: next()?.to_owned(),
            store_url: next()?.to_owned(),
            textbook: match next()?.parse::<usize>().ok()? {
                0 => None,
                flaw => Some(Flaw::ALL[flaw - 1]),
            },
            quarantine: next()?.parse().ok()?,
            dir: next()?.into(),
        })
    }

    fn client(&self) -> Client {
        if let Some(flaw) = self.textbook {
            return Client::Textbook(Textbook::new(&self.url, TTL, flaw));
        }
        let builder = LockManager::builder()
            .ttl(TTL)
            .command_timeout(COMMAND_TIMEOUT)
            .max_hold(Duration::from_millis(1500));
        let builder = builder.quarantine(self.quarantine);
        Client::Crate(builder.connect_lazy(&self.url).unwrap())
    }
}

/// How wild the workload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    Wild,
    /// No request is given up: it waits until the locks go round again.
    Patient,
    Finished,
}

/// What all tasks of a worker share.
#[derive(Clone)]
pub struct Me {
    pub client: Client,
    pub store: Store,
    pub log: Log,
    pub mood: watch::Receiver<Mood>,
    ids: Arc<AtomicU64>,
}

impl Me {
    pub fn next_id(&self) -> u64 {
        self.ids.fetch_add(1, Ordering::Relaxed)
    }

    pub fn mood(&self) -> Mood {
        *self.mood.borrow()
    }
}

pub fn main(line: &str) {
    let orders = Orders::parse(line).unwrap();
    // Even a stopped process ends with the test.
    let end = Some(rustix::process::Signal::KILL);
    #[cfg(target_os = "linux")]
    rustix::process::set_parent_process_death_signal(end).unwrap();
    let (mood, watch) = watch::channel(Mood::Wild);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            match line.unwrap().as_str() {
                "patient" => mood.send_replace(Mood::Patient),
                _ => mood.send_replace(Mood::Finished),
            };
        }
        // The test is over, however it ended.
        std::process::exit(1);
    });
    // Every other worker has two threads. With one, the time of a signal can be judged: see `pulse`.
    let runtime = match orders.number % 2 {
        0 => Builder::new_current_thread().enable_all().build(),
        _ => Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build(),
    };
    runtime.unwrap().block_on(work(&orders, watch));
    std::process::exit(0);
}

async fn work(orders: &Orders, mood: watch::Receiver<Mood>) {
    let path = orders.dir.join(format!("{}.history", orders.number));
    let me = Me {
        client: orders.client(),
        store: Store::connect(&orders.store_url).await,
        log: Log::create(&path, orders.number),
        mood,
        ids: Arc::new(AtomicU64::new(1)),
    };
    tokio::spawn(pulse(me.log.clone()));
    let handling = match &me.client {
        Client::Crate(locks) => Some(Handling::new(&me, locks)),
        Client::Textbook(_) => None,
    };
    let mut random = Random(orders.seed);
    let tasks: Vec<_> = (0..TASKS)
        .map(|_| tokio::spawn(requests::make(me.clone(), handling.clone(), random.fork())))
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    me.client.close().await;
    me.log.note(What::Closed, 0, 0, "");
}

/// Notes when nothing of this process ran: it was stopped, or others had the processors.
async fn pulse(log: Log) {
    let mut last = nanos();
    loop {
        tokio::time::sleep(Duration::from_millis(2)).await;
        let now = nanos();
        if now - last > 8 * MS {
            log.since(last, What::Stall, 0, 0, "");
        }
        last = now;
    }
}
