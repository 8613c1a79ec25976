//! A hot key that is mostly read, in four processes: `readers`.

use std::time::Duration;

use crate::contenders::Kind;
use crate::load::Tally;
use crate::processes::start;
use crate::rounds::Rounds;
use crate::support::figures::{Figures, Goal};
use crate::support::monitor::Monitor;
use crate::support::options;
use crate::support::workers::{ask_all, moment};
use crate::table::{Table, Values};
use crate::test_support::RedisServer;

const PROCESSES: usize = 4;
const TASKS: usize = 16;
/// Of a hundred sections.
const READS: [u64; 2] = [95, 100];

/// Four processes with 16 tasks each want the same lock, mostly to read.
pub async fn measure(server: &RedisServer, figures: &mut Figures) -> Table {
    let mut table = Table::new(
        "4 processes × 16 tasks on one key, 95 % only read, 1 ms hold",
        &[
            ("sections/s", 0),
            ("p99 wait to write, ms", 2),
            ("commands a section", 3),
            ("sections/s, 100 % read", 0),
            ("commands a section", 5),
        ],
    );
    let rounds = Rounds::measure(
        &Kind::OF_READERS,
        options::rounds(3),
        async |kind, round| read(server, kind, &format!("readers:{round}:{}", kind.word())).await,
    )
    .await;
    rounds.fill(&mut table);
    for (name, column) in [("readers_95", 0), ("readers_100", 3)] {
        let ratio = rounds.ratio(Kind::Shared, Kind::Ours, column);
        figures.note(&format!("{name}_vs_exclusive"), ratio);
        let ratio = rounds.ratio(Kind::Shared, Kind::RwLock, column);
        figures.note(&format!("{name}_vs_rwlock"), ratio);
    }
    let ratio = rounds.ratio(Kind::Shared, Kind::Ours, 1);
    figures.note("readers_95_p99_wait_to_write_vs_exclusive", ratio);
    let commands = rounds.spread(Kind::Shared, 2);
    figures.note("readers_95_commands_per_section", commands);
    figures.add(
        "readers_100_commands_per_section",
        rounds.spread(Kind::Shared, 4),
        &Goal::AtMost(0.01),
    );
    table
}

async fn read(server: &RedisServer, kind: Kind, key: &str) -> Values {
    let time = options::time(Duration::from_millis(1500));
    let mut values = Vec::new();
    for reads in READS {
        let key = format!("{key}:{reads}");
        let mut sum = run(server, kind, &key, reads, time, None).await?;
        values.push(sum.sections as f64 / time.as_secs_f64());
        if reads < 100 {
            values.push(sum.p99_wait() / 1000.0);
        }
        // In a run of its own, as counting commands costs Redis time.
        let mut commands = 0;
        let key = format!("{key}:counted");
        let counted = run(server, kind, &key, reads, time / 2, Some(&mut commands)).await?;
        values.push(commands as f64 / counted.all as f64);
    }
    Ok(values)
}

async fn run(
    server: &RedisServer,
    kind: Kind,
    key: &str,
    reads: u64,
    time: Duration,
    commands: Option<&mut u64>,
) -> Result<Tally, String> {
    let mut workers = start(server, kind, PROCESSES).await?;
    let monitor = match commands {
        Some(commands) => Some((Monitor::start(server).await, commands)),
        None => None,
    };
    let from = Duration::from_millis(300);
    let (from, until) = (moment(from), moment(from + time));
    let line = format!("read {key} {TASKS} {reads} {from} {until}");
    let answers = ask_all(&mut workers, &line).await?;
    if let Some((monitor, commands)) = monitor {
        *commands = monitor.stop().await;
    }
    let mut sum = Tally::default();
    for answer in answers {
        sum.add(Tally::parse(&answer)?);
    }
    Ok(sum)
}
