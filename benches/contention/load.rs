//! Tasks that contend for a lock, and the tally of what they got.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use tokio::task::JoinSet;

use crate::contenders::Contender;
use crate::random::{Random, Zipf};
use crate::support::figures::p99;
use crate::support::orders::text;

/// How long waiters may go on after the end of a workload.
const DRAIN: Duration = Duration::from_secs(3);

#[derive(Clone)]
pub struct Load {
    pub tasks: usize,
    pub keys: Keys,
    pub work: Work,
    /// How many of a hundred sections only read.
    pub reads: u64,
    /// From which the sequences of the tasks follow.
    pub seed: u64,
    /// What begins earlier is a warm-up and does not count.
    pub from: Instant,
    /// When tasks stop to begin new waits.
    pub until: Instant,
}

#[derive(Clone)]
pub enum Keys {
    One(String),
    /// Of many, with a prefix. Each task has its own sequence.
    Zipf(String, Arc<Zipf>),
}

/// The work of a section.
#[derive(Clone)]
pub enum Work {
    Sleep(Duration),
    /// Counts up in Redis. Only the lock makes that atomic.
    Count(MultiplexedConnection, String, Duration),
}

/// The tally of one or more tasks.
#[derive(Clone, Default)]
pub struct Tally {
    /// Sections that ended between `from` and `until`.
    pub sections: u64,
    /// How long these sections took in all, in seconds.
    pub held: f64,
    /// The longest of them that only read, in seconds.
    pub longest_read: f64,
    /// Sections at any time.
    pub all: u64,
    /// The waits of sections that do not only read, in µs, that began between `from` and `until`.
    pub waits: Vec<f64>,
    /// Since when the task has been waiting.
    asked: Option<Instant>,
}

impl Tally {
    /// Reads what another process wrote.
    pub fn parse(line: &str) -> Result<Self, String> {
        let numbers: Result<Vec<f64>, _> = line.split(' ').map(str::parse).collect();
        match numbers.map_err(text)?.as_slice() {
            &[sections, held, longest_read, all, ref waits @ ..] => Ok(Self {
                sections: sections as u64,
                held,
                longest_read,
                all: all as u64,
                waits: waits.to_vec(),
                asked: None,
            }),
            _ => Err(format!("what is {line}?")),
        }
    }

    pub fn add(&mut self, other: Self) {
        self.sections += other.sections;
        self.held += other.held;
        self.longest_read = self.longest_read.max(other.longest_read);
        self.all += other.all;
        self.waits.extend(other.waits);
    }

    pub fn mean_hold(&self) -> f64 {
        self.held / self.sections as f64
    }

    pub fn p99_wait(&mut self) -> f64 {
        p99(&mut self.waits)
    }
}

/// Writes a line that another process can [parse](Tally::parse).
impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            sections,
            held,
            longest_read,
            all,
            ..
        } = self;
        write!(f, "{sections} {held} {longest_read} {all}")?;
        self.waits
            .iter()
            .try_for_each(|wait| write!(f, " {wait:.1}"))
    }
}

/// Runs a load. Returns the first error that a task had.
pub async fn run(contender: &Contender, load: &Load) -> Result<Tally, String> {
    let tallies: Vec<_> = (0..load.tasks)
        .map(|_| Arc::new(Mutex::new(Tally::default())))
        .collect();
    let mut tasks = JoinSet::new();
    for (number, tally) in tallies.iter().enumerate() {
        let (contender, load, tally) = (contender.clone(), load.clone(), Arc::clone(tally));
        tasks.spawn(async move { contend(&contender, &load, number, &tally).await });
    }
    let end = load.until + DRAIN;
    while let Ok(Some(done)) = tokio::time::timeout_at(end.into(), tasks.join_next()).await {
        done.map_err(text)??;
    }
    // The tasks that are left starve.
    tasks.shutdown().await;
    let mut sum = Tally::default();
    for tally in &tallies {
        let mut tally = std::mem::take(&mut *lock(tally));
        // It has waited for so long at least.
        if let Some(asked) = tally.asked.filter(|asked| *asked >= load.from) {
            tally.waits.push(asked.elapsed().as_secs_f64() * 1e6);
        }
        sum.add(tally);
    }
    match sum.sections {
        0 => Err("no section in the given time".to_owned()),
        _ => Ok(sum),
    }
}

async fn contend(
    contender: &Contender,
    load: &Load,
    number: usize,
    tally: &Mutex<Tally>,
) -> Result<(), String> {
    let mut random = Random::new(load.seed + number as u64);
    let window = load.from..load.until;
    loop {
        let key = load.keys.next(&mut random);
        let asked = Instant::now();
        if asked >= load.until {
            return Ok(());
        }
        lock(tally).asked = Some(asked);
        let reads = load.reads > 0 && random.next() % 100 < load.reads;
        let held = match reads {
            true => contender.acquire_to_read(&key).await?,
            false => contender.acquire(&key).await?,
        };
        let acquired = Instant::now();
        load.work.run().await?;
        let done = Instant::now();
        {
            let mut tally = lock(tally);
            tally.asked = None;
            tally.all += 1;
            if window.contains(&asked) && !reads {
                let wait = acquired - asked;
                tally.waits.push(wait.as_secs_f64() * 1e6);
            }
            if window.contains(&done) {
                tally.sections += 1;
                let time = (done - acquired).as_secs_f64();
                tally.held += time;
                if reads {
                    tally.longest_read = tally.longest_read.max(time);
                }
            }
        }
        held.release().await?;
    }
}

/// Lets each of so many waiters have the lock once. Returns the sections per second, and the share
/// of the time for which the lock was held.
pub async fn once(
    contender: &Contender,
    waiters: usize,
    key: &str,
    work: &Work,
    bound: Duration,
) -> Result<(f64, f64), String> {
    let mut tasks = JoinSet::new();
    let started = Instant::now();
    for _ in 0..waiters {
        let (contender, key, work) = (contender.clone(), key.to_owned(), work.clone());
        tasks.spawn(async move {
            let held = contender.acquire(&key).await?;
            let acquired = Instant::now();
            work.run().await?;
            let time = acquired.elapsed();
            held.release().await.map(|()| time)
        });
    }
    let mut held = Duration::ZERO;
    let all_done = async {
        while let Some(done) = tasks.join_next().await {
            held += done.map_err(text)??;
        }
        Ok(started.elapsed().as_secs_f64())
    };
    let elapsed = tokio::time::timeout(bound, all_done).await;
    let elapsed = elapsed.unwrap_or_else(|_| Err(format!("not done after {bound:?}")))?;
    Ok((waiters as f64 / elapsed, held.as_secs_f64() / elapsed))
}

impl Keys {
    fn next(&self, random: &mut Random) -> String {
        match self {
            Self::One(key) => key.clone(),
            Self::Zipf(prefix, zipf) => format!("{prefix}{}", zipf.sample(random)),
        }
    }
}

impl Work {
    pub async fn run(&self) -> Result<(), String> {
        match self {
            Self::Sleep(time) => tokio::time::sleep(*time).await,
            Self::Count(redis, counter, time) => {
                let mut redis = redis.clone();
                let get = redis::cmd("GET").arg(counter).to_owned();
                let count: Option<u64> = get.query_async(&mut redis).await.map_err(text)?;
                tokio::time::sleep(*time).await;
                let mut set = redis::cmd("SET");
                set.arg(counter).arg(count.unwrap_or(0) + 1);
                set.exec_async(&mut redis).await.map_err(text)?;
            }
        }
        Ok(())
    }
}

fn lock(tally: &Mutex<Tally>) -> MutexGuard<'_, Tally> {
    tally.lock().unwrap_or_else(PoisonError::into_inner)
}
