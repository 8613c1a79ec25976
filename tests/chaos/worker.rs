//! A process that takes locks, writes what it sees into its history, and ends with its standard
//! input.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tower_distributed_lock::LockManager;

use crate::client::Client;
use crate::clock::{MS, nanos};
use crate::handling::Handling;
use crate::harness;
use crate::history::{Log, What};
use crate::requests;
use crate::runtimes::{self, Runtimes};
use crate::settings::Settings;
use crate::store::Store;
use crate::support::random::Random;
use crate::textbook::{Flaw, Textbook};
use crate::topology::Access;
use crate::variety::Variety;

pub const TTL: Duration = Settings::USUAL.ttl;
/// Databases of one server that have locks, with [`Variety::Databases`].
pub const DATABASES: u32 = 2;
/// Requests that a worker has under way at a time.
const TASKS: u64 = 8;

/// What a worker is to do, as one line in its environment.
#[derive(Clone, Debug)]
pub struct Orders {
    pub number: u32,
    pub seed: u64,
    pub access: Access,
    pub store_url: String,
    /// None: this crate.
    pub textbook: Option<Flaw>,
    pub quarantine: bool,
    pub variety: Vec<Variety>,
    pub dir: PathBuf,
}

impl Orders {
    pub fn line(&self) -> String {
        let flaw = |flaw| Flaw::ALL.iter().position(|known| *known == flaw).unwrap() + 1;
        let Self {
            number,
            seed,
            access,
            store_url,
            quarantine,
            dir,
            ..
        } = self;
        let client = self.textbook.map_or(0, flaw);
        let variety = Variety::word(&self.variety);
        format!(
            "{number} {seed} {} {store_url} {client} {quarantine} {variety} {}",
            access.word(),
            dir.display()
        )
    }

    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.splitn(8, ' ');
        let mut next = || fields.next();
        Some(Self {
            number: next()?.parse().ok()?,
            seed: next()?.parse().ok()?,
            access: Access::parse(next()?)?,
            store_url: next()?.to_owned(),
            textbook: match next()?.parse::<usize>().ok()? {
                0 => None,
                flaw => Some(Flaw::ALL[flaw - 1]),
            },
            quarantine: next()?.parse().ok()?,
            variety: Variety::parse(next()?)?,
            dir: next()?.into(),
        })
    }

    pub fn has(&self, variety: Variety) -> bool {
        self.variety.contains(&variety)
    }

    /// Which database of the server has its locks.
    fn database(&self) -> u32 {
        match self.has(Variety::Databases) {
            true => self.number % DATABASES,
            false => 0,
        }
    }

    fn settings(&self) -> Settings {
        match self.has(Variety::Settings) {
            true => Settings::of(self.number, &mut Random::new(self.seed)),
            false => Settings::USUAL,
        }
    }

    /// Within what time a request that does not wait has its answer: it may have to wait for the
    /// connection first, and then for the reply.
    pub fn answers_within(&self) -> Duration {
        2 * self.settings().command_timeout + self.access.topology.more_patience()
    }

    /// Within what time a response is in Redis, or read from there, besides: see
    /// `IdempotencyLayer::max_response_body`.
    pub fn kept_within(&self) -> Duration {
        match self.has(Variety::LongAnswers) {
            true => 12 * self.settings().command_timeout,
            false => Duration::ZERO,
        }
    }

    pub fn locks(&self) -> LockManager {
        let builder = self.settings().builder().quarantine(self.quarantine);
        let locks = self
            .access
            .connect_lazy(builder, self.database(), &self.dir);
        locks.unwrap()
    }

    pub fn client(&self) -> Client {
        match self.textbook {
            Some(flaw) => {
                let url = self.access.url(self.database());
                Client::Textbook(Textbook::new(&url, TTL, flaw))
            }
            None => Client::Crate(self.locks()),
        }
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

pub struct Worker {
    pub orders: Orders,
    log: Log,
    mood: watch::Receiver<Mood>,
    ids: AtomicU64,
}

/// What the tasks of one runtime share.
#[derive(Clone)]
pub struct Me {
    pub client: Client,
    pub store: Store,
    pub log: Log,
    pub worker: Arc<Worker>,
    runtime: u64,
}

impl Me {
    pub fn next_id(&self) -> u64 {
        self.worker.ids.fetch_add(1, Ordering::Relaxed) * runtimes::MOST + self.runtime
    }

    pub fn mood(&self) -> Mood {
        *self.worker.mood.borrow()
    }

    /// Blocks the thread, as a handler should not.
    pub fn block(&self, time: Duration) {
        let before = nanos();
        std::thread::sleep(time);
        self.log.since(before, What::Stall, self.runtime, 0, "");
    }

    /// A lock's name in the history, and in the store: each database has its own.
    pub fn name(&self, key: &str) -> String {
        named(self.worker.orders.database(), key)
    }
}

/// See [`Me::name`].
pub fn named(database: u32, key: &str) -> String {
    match database {
        0 => key.to_owned(),
        other => format!("{other}:{key}"),
    }
}

pub fn main(line: &str) {
    let orders = Orders::parse(line).unwrap();
    // Even a stopped process ends with the test.
    let end = Some(rustix::process::Signal::KILL);
    #[cfg(target_os = "linux")]
    rustix::process::set_parent_process_death_signal(end).unwrap();
    let (mood, watch) = watch::channel(Mood::Wild);
    harness::obey_input(move |line| {
        match line.as_str() {
            "patient" => mood.send_replace(Mood::Patient),
            _ => mood.send_replace(Mood::Finished),
        };
    });
    let path = orders.dir.join(format!("{}.history", orders.number));
    let log = Log::create(&path, orders.number);
    tell_of_panics(log.clone());
    let runtimes = Runtimes::of(&orders);
    runtimes.run(&Arc::new(Worker {
        orders,
        log,
        mood: watch,
        ids: AtomicU64::new(1),
    }));
    std::process::exit(0);
}

/// Even if the panic is caught: this program's handlers do not panic.
fn tell_of_panics(log: Log) {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        log.note(What::Panicked, 0, 0, &panic.to_string().replace('\n', " "));
        print(panic);
    }));
}

/// Makes requests in this runtime, until they are finished.
pub async fn work(worker: &Arc<Worker>, client: Client, runtime: u64) -> Me {
    let orders = &worker.orders;
    let me = Me {
        client,
        store: Store::connect(&orders.store_url).await,
        log: worker.log.clone(),
        worker: Arc::clone(worker),
        runtime,
    };
    tokio::spawn(pulse(me.log.clone(), runtime));
    let handling = match &me.client {
        Client::Crate(locks) => Some(Handling::new(locks)),
        Client::Textbook(_) => None,
    };
    let mut random = Random::new(orders.seed ^ runtime);
    let tasks: Vec<_> = (0..TASKS)
        .map(|_| tokio::spawn(requests::make(me.clone(), handling.clone(), random.fork())))
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    me
}

/// Notes when nothing of this runtime ran: the process was stopped, others had the processors, or a
/// handler blocked the thread.
pub async fn pulse(log: Log, runtime: u64) {
    let mut last = nanos();
    loop {
        tokio::time::sleep(Duration::from_millis(2)).await;
        let now = nanos();
        if now - last > 8 * MS {
            log.since(last, What::Stall, runtime, 0, "");
        }
        last = now;
    }
}
