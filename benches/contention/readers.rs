//! A hot key that is mostly read, in four processes: `readers`.

use std::time::Duration;

use crate::contenders::{BURST, BURST_TIME, Kind};
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

/// The most sections that can be in the time of one, if 95 of 100 only read: 20 take the time of
/// one that writes, and of 19 that read with all tasks at a time.
const IDEAL: f64 = 20.0 / (1.0 + 19.0 / (PROCESSES * TASKS) as f64);

/// The columns.
const SECTIONS: usize = 0;
const IDEAL_SHARE: usize = 1;
const P99: usize = 2;
const P99_SHARE: usize = 3;
const COMMANDS: usize = 4;
const ALL_READ: usize = 5;
const COMMANDS_OF_READS: usize = 6;

/// Four processes with 16 tasks each want the same lock, mostly to read.
pub async fn measure(server: &RedisServer, figures: &mut Figures) -> Table {
    let mut table = Table::new(
        "4 processes × 16 tasks on one key, 95 % only read, 1 ms hold",
        &[
            ("sections/s", 0),
            ("of the ideal", 2),
            ("p99 wait to write, ms", 2),
            ("of 2 reads + a burst", 2),
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
    let ratio = |reference, column| rounds.ratio(Kind::Shared, reference, column);
    let ours = |column| rounds.spread(Kind::Shared, column);
    let (exclusive, local) = (ratio(Kind::Ours, SECTIONS), ratio(Kind::RwLock, SECTIONS));
    figures.add("readers_95_vs_exclusive", exclusive, &Goal::AtLeast(20.0));
    figures.note("readers_95_vs_ideal", ours(IDEAL_SHARE));
    figures.add("readers_95_vs_rwlock", local, &Goal::AtLeast(0.3));
    for (name, kind) in [
        ("hand", Kind::ReadersByHand),
        ("distributed_lock_redis", Kind::DistributedReaders),
    ] {
        figures.note(&format!("readers_95_vs_{name}"), ratio(kind, SECTIONS));
    }
    figures.add(
        "readers_95_p99_wait_to_write_vs_2_reads_and_a_burst",
        ours(P99_SHARE),
        &Goal::AtMost(1.0),
    );
    figures.note(
        "readers_95_p99_wait_to_write_vs_exclusive",
        ratio(Kind::Ours, P99),
    );
    figures.note("readers_95_commands_per_section", ours(COMMANDS));
    figures.note("readers_100_vs_exclusive", ratio(Kind::Ours, ALL_READ));
    figures.note("readers_100_vs_rwlock", ratio(Kind::RwLock, ALL_READ));
    figures.add(
        "readers_100_commands_per_section",
        ours(COMMANDS_OF_READS),
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
        let a_second = sum.sections as f64 / time.as_secs_f64();
        values.push(a_second);
        if reads < 100 {
            // Those are a lock of each process, and not one.
            values.push(match kind {
                Kind::RwLock => f64::NAN,
                _ => a_second * sum.mean_hold() / IDEAL,
            });
            let p99 = sum.p99_wait() / 1e6;
            values.push(p99 * 1000.0);
            values.push(p99 / (2.0 * sum.longest_read + burst(sum.mean_hold())));
        }
        // In a run of its own, as counting commands costs Redis time.
        let mut commands = 0;
        let key = format!("{key}:counted");
        let counted = run(server, kind, &key, reads, time / 2, Some(&mut commands)).await?;
        values.push(commands as f64 / counted.all as f64);
    }
    Ok(values)
}

/// Returns how long a process may keep a lock for its own requests while another waits, in seconds:
/// for the section in which it learns that, and for so many hand-offs, if they do not take longer
/// than they may together.
fn burst(section: f64) -> f64 {
    section + (f64::from(BURST) * section).min(BURST_TIME.as_secs_f64())
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
