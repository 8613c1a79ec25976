//! What it costs that requests are observed: `observed`, with `--features observed`.

use std::time::Duration;

use crate::support::figures::{Figures, Goal, Turns};
use crate::support::options::{rounds, time};
use crate::support::orders::text;
use crate::support::workers::{Worker, moment};
use crate::test_support::RedisServer;

const ROUND: Duration = Duration::from_millis(700);
const CLIENTS: usize = 64;

/// What observes the locks of a process.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Observer {
    Nothing,
    /// A recorder of metrics, for Prometheus.
    Recorder,
    /// A subscriber that writes events and spans of level INFO as text.
    Subscriber,
    /// The inspector, whose journal keeps what happened last.
    Inspector,
}

impl Observer {
    const ALL: [Self; 4] = [
        Self::Nothing,
        Self::Recorder,
        Self::Subscriber,
        Self::Inspector,
    ];

    pub fn word(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Recorder => "recorder",
            Self::Subscriber => "subscriber",
            Self::Inspector => "inspector",
        }
    }

    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.word() == word)
    }
}

/// Measures how many requests get through, in one process for each observer: most cannot be taken
/// away again.
pub async fn measure(server: &RedisServer, figures: &mut Figures) {
    let mut workers = Vec::new();
    for observer in Observer::ALL {
        let mut worker = Worker::with_threads(server, 2);
        let ready = worker.ask(&format!("observe {}", observer.word())).await;
        ready.unwrap();
        workers.push((observer, worker));
    }
    let mut rates = Turns::default();
    for _ in 0..rounds(15) {
        for (observer, worker) in &mut workers {
            rates.add(*observer, rate(worker).await.unwrap());
        }
    }
    println!("{CLIENTS} clients, observed by");
    for observer in Observer::ALL {
        let rate = rates.median(observer);
        println!("  {:13} {rate:8.0} requests/s", observer.word());
    }
    for observer in Observer::ALL.into_iter().skip(1) {
        let name = format!("rate_{CLIENTS}_clients_{}_vs_nothing", observer.word());
        let ratio = rates.ratio(observer, Observer::Nothing);
        match observer {
            Observer::Recorder => figures.add(&name, ratio, &Goal::AtLeast(0.9)),
            _ => figures.note(&name, ratio),
        }
    }
}

async fn rate(worker: &mut Worker) -> Result<f64, String> {
    let from = Duration::from_millis(20);
    let (from, until) = (moment(from), moment(from + time(ROUND)));
    let count = worker.ask(&format!("run {CLIENTS} {from} {until}")).await?;
    let count: f64 = count.parse().map_err(text)?;
    Ok(count / time(ROUND).as_secs_f64())
}
