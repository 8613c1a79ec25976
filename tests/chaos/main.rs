//! Real processes, a real Redis and all that can go wrong between them, at random, from a seed that
//! is printed. The processes write down what happens, and a checker proves from that history alone
//! what the crate promises.
//!
//! This program is its own worker: started with [`WORKER`] set, it makes requests. Started without,
//! it runs the phases: `CHAOS_SECONDS` (130) in total, with `CHAOS_SEED`, or a seed from the clock.
//! The seed fixes what is tried, not how the processes run, so the same seed is likely, not sure,
//! to show the same again. `CHAOS_PHASE` chooses the phases whose names contain it; `CHAOS_KEEP`
//! keeps the history.

#![allow(unreachable_pub)]

#[macro_use]
#[path = "../support/harness.rs"]
mod harness;
#[path = "../support/mod.rs"]
mod support;

mod checker;
mod client;
mod clock;
mod crew;
mod faults;
mod handling;
mod history;
mod holding;
mod mutants;
mod phases;
mod proxy;
mod report;
mod requests;
mod runtimes;
mod selftest;
mod settings;
mod store;
mod textbook;
mod topology;
mod variety;
mod watch;
mod worker;

use std::process::ExitCode;
use std::time::Duration;

use faults::Gremlin;
use futures_util::{StreamExt, stream};
use phases::{Outcome, Phase};
use support::PATIENCE;
use support::random::Random;
use topology::Topology;
use variety::Variety;

/// Set in the environment: this is a worker, and these are its orders.
const WORKER: &str = "TOWER_DISTRIBUTED_LOCK_CHAOS_WORKER";

/// How many phases run at the same time: each waits for most of its own.
const AT_ONCE: usize = 2;

/// How long all phases take together, if `CHAOS_SECONDS` does not say.
const DEFAULT_SECONDS: f64 = 130.0;

fn phases() -> Vec<Phase> {
    use Gremlin::{
        ClockBack, ClockForward, Loss, Memory, Narrow, Network, Operators, Outages, Partition,
        Passwords, Primaries, Processes, Server,
    };
    let phase = Phase {
        name: "Redis keeps its data",
        topology: Topology::One,
        part: 19.0,
        gremlins: &[Network, Processes, Processes, Server],
        variety: &[],
        workers: 5,
        textbook: None,
        quarantine: false,
        exclusive: true,
    };
    let quarantines = [
        (false, "its data is lost"),
        // No two hold a lock even then.
        (true, "its data is lost, quarantine"),
    ];
    let losses = quarantines.map(|(quarantine, name)| Phase {
        name,
        part: 9.0 / quarantines.len() as f64,
        gremlins: &[Loss, Network, Processes],
        workers: 4,
        quarantine,
        exclusive: quarantine,
        ..phase
    });
    let mut phases = vec![
        phase.clone(),
        Phase {
            name: "its clock is set back",
            part: 5.5,
            gremlins: &[ClockBack, Processes],
            workers: 3,
            ..phase
        },
        // The server lets locks expire too early then, and no client can know.
        Phase {
            name: "its clock is set forward",
            part: 5.0,
            gremlins: &[ClockForward, Processes],
            workers: 3,
            exclusive: false,
            ..phase
        },
        Phase {
            name: "settings differ",
            part: 15.0,
            gremlins: &[Outages],
            variety: &[Variety::Settings, Variety::LongHolds],
            workers: 8,
            ..phase
        },
        Phase {
            name: "runtimes differ",
            part: 11.0,
            gremlins: &[Processes, Server],
            variety: &[Variety::Runtimes, Variety::Blocking],
            workers: 4,
            ..phase
        },
        Phase {
            name: "databases differ",
            part: 9.0,
            gremlins: &[],
            variety: &[Variety::Databases, Variety::LongHolds],
            workers: 4,
            ..phase
        },
        Phase {
            name: "out of memory for moments",
            part: 10.0,
            gremlins: &[Memory],
            variety: &[Variety::Events],
            workers: 4,
            ..phase
        },
        Phase {
            name: "long answers, a narrow network",
            part: 9.0,
            gremlins: &[Narrow],
            variety: &[Variety::LongAnswers],
            workers: 3,
            ..phase
        },
    ];
    phases.extend(losses);
    let cluster = Phase {
        name: "cluster keeps its data",
        topology: Topology::Cluster,
        part: 9.0,
        gremlins: &[Operators, Partition, Passwords, Processes, Server],
        workers: 4,
        ..phase
    };
    let primaries_fail = Phase {
        name: "cluster, primaries fail",
        part: 10.0,
        gremlins: &[Primaries, Partition, Passwords, Processes, Server],
        quarantine: true,
        ..cluster
    };
    phases.extend([
        cluster,
        primaries_fail.clone(),
        Phase {
            name: "Sentinel, primaries fail",
            topology: Topology::Sentinel,
            ..primaries_fail
        },
        // Two may hold a lock then.
        Phase {
            name: "Sentinel, no quarantine",
            topology: Topology::Sentinel,
            part: 6.0,
            gremlins: &[Primaries],
            quarantine: false,
            exclusive: false,
            ..primaries_fail
        },
    ]);
    phases
}

async fn run(seconds: f64, seed: u64) -> bool {
    let mut random = Random::new(seed);
    let dir = std::env::temp_dir().join(format!(
        "tower-distributed-lock-chaos-{}",
        std::process::id()
    ));
    let _dir = Remove(dir.clone());
    let has_clock = faults::clock::library().await.is_some();
    if !has_clock {
        println!(
            "NOT DONE: the clock of Redis is not set. libfaketime is not installed (Debian: apt-get install faketime), or this \
             redis-server does not run with it."
        );
    }
    let phases = phases();
    let parts = phases.iter().map(|phase| phase.part).sum::<f64>() / AT_ONCE as f64 + mutants::PART;
    let runs = phases
        .into_iter()
        .enumerate()
        .filter_map(|(number, phase)| {
            let random = random.fork();
            if phase.sets_clock() && !has_clock || !is_chosen(phase.name) {
                return None;
            }
            let time = Duration::from_secs_f64(seconds * phase.part / parts);
            let dir = dir.join(number.to_string());
            Some(async move { phase.run(time, &dir, random).await })
        });
    let runs: Vec<_> = runs.collect();
    let mut outcomes: Vec<Outcome> = stream::iter(runs).buffered(AT_ONCE).collect().await;
    let rest = Duration::from_secs_f64(seconds * mutants::PART / parts);
    outcomes.extend(mutants::run(rest, &dir, &mut random).await);
    report::table(&outcomes);
    report::figures(&outcomes);
    report::failures(&outcomes, seed);
    outcomes.iter().all(Outcome::is_as_expected)
}

fn is_chosen(phase: &str) -> bool {
    std::env::var("CHAOS_PHASE").is_ok_and(|part| phase.contains(&part))
        || std::env::var_os("CHAOS_PHASE").is_none()
}

/// A directory that goes when this does.
struct Remove(std::path::PathBuf);

impl Drop for Remove {
    fn drop(&mut self) {
        if std::env::var_os("CHAOS_KEEP").is_none() {
            let _ = std::fs::remove_dir_all(&self.0);
        } else {
            println!("the history is in {}", self.0.display());
        }
    }
}

async fn the_checker_judges_histories_made_by_hand_rightly() {
    let wrong = selftest::wrong();
    assert!(
        wrong.is_empty(),
        "the checker is wrong\n{}",
        wrong.join("\n")
    );
}

async fn chaos() {
    let seed = harness::seed("CHAOS_SEED");
    let seconds = std::env::var("CHAOS_SECONDS").map_or(DEFAULT_SECONDS, |seconds| {
        let seconds: u64 = seconds.parse().expect("CHAOS_SECONDS");
        seconds as f64
    });
    println!("CHAOS_SECONDS={seconds}");
    let is_as_expected = run(seconds, seed).await;
    assert!(is_as_expected, "see above: CHAOS_SEED={seed}");
}

tests! {
    the_checker_judges_histories_made_by_hand_rightly
    chaos
}

fn main() -> ExitCode {
    if let Ok(orders) = std::env::var(WORKER) {
        worker::main(&orders);
        return ExitCode::SUCCESS;
    }
    harness::run(TESTS)
}
