//! The cost of contention between processes: `gap`, `four`.

use std::time::Duration;

use redis::RedisResult;

use crate::contenders::Kind;
use crate::load::Tally;
use crate::rounds::Rounds;
use crate::support::figures::{Figures, Goal, median};
use crate::support::monitor::Monitor;
use crate::support::options;
use crate::support::orders::text;
use crate::support::workers::{Worker, ask_all, moment};
use crate::table::{Table, Values};
use crate::test_support::{RedisServer, eventually, value};

/// Two processes take the lock in turns, and do nothing under it.
pub async fn gap(server: &RedisServer, figures: &mut Figures) {
    let mut table = Table::new(
        "two processes on one key, no hold: from the release in one to the next section in the other",
        &[
            ("gap p50, µs", 1),
            ("PING p50, µs", 1),
            ("gap / PING", 2),
            ("PUBLISH p50, µs", 1),
            ("gap / PUBLISH", 2),
            ("hand-offs", 0),
            ("share of sections", 3),
            ("tokens out of order", 0),
        ],
    );
    let is_again = |kind| kind == Kind::Ours;
    let rounds = Rounds::measure_again(
        &Kind::ON_REDIS,
        is_again,
        options::rounds(7),
        async |kind, round| alternate(server, kind, &format!("gap:{round}")).await,
    )
    .await;
    rounds.fill(&mut table);
    table.print();
    let ours = |column| rounds.spread(Kind::Ours, column);
    // A PING involves one process, which may share its core with Redis. A message between two
    // processes cannot.
    figures.note("two_processes_gap_vs_ping", ours(2));
    let goal = Goal::AtMost(1.3);
    figures.add("two_processes_gap_vs_publish", ours(4), &goal);
    let disorder = rounds.sum(Kind::Ours, 7);
    let goal = Goal::AtMost(0.0);
    figures.add("two_processes_tokens_out_of_order", disorder, &goal);
}

async fn alternate(server: &RedisServer, kind: Kind, key: &str) -> Values {
    let mut workers = start(server, kind, 2).await?;
    let ping: f64 = workers[0].ask("ping 3000").await?.parse().map_err(text)?;
    let hop = hop(server, &mut workers).await?;
    let until = moment(options::time(Duration::from_millis(600)));
    let answers = ask_all(&mut workers, &format!("alternate {key} {until}")).await?;
    let mut sections = Vec::new();
    for (process, answer) in answers.iter().enumerate() {
        for section in answer.split(' ').filter(|section| !section.is_empty()) {
            sections.push(Section::parse(process, section)?);
        }
    }
    // Sections do not overlap: sorted by time, their tokens must be sorted as well.
    sections.sort_by_key(|section| section.acquired);
    let pairs = || sections.iter().zip(sections.iter().skip(1));
    let disorder = pairs().filter(|(one, next)| one.token > next.token).count();
    let mut gaps: Vec<f64> = pairs()
        .filter(|(one, next)| one.process != next.process)
        .map(|(one, next)| next.acquired as f64 - one.released as f64)
        .collect();
    if gaps.is_empty() {
        return Err("never handed over".to_owned());
    }
    let gap = median(&mut gaps);
    let share = gaps.len() as f64 / (sections.len() - 1) as f64;
    Ok(vec![
        gap / 1000.0,
        ping / 1000.0,
        gap / ping,
        hop / 1000.0,
        gap / hop,
        gaps.len() as f64,
        share,
        disorder as f64,
    ])
}

/// Measures how long a bare message takes from one process to the other, in ns.
async fn hop(server: &RedisServer, workers: &mut [Worker]) -> Result<f64, String> {
    let [one, other] = workers else {
        return Err("not two processes".to_owned());
    };
    let redis = server.client().await;
    other.tell("hop inbox:other inbox:one 2000").await?;
    eventually("it has subscribed", || async {
        let mut listeners = redis::cmd("PUBSUB");
        listeners.arg("NUMSUB").arg("inbox:other");
        let listeners: RedisResult<(String, u64)> = listeners.query_async(&mut redis.clone()).await;
        listeners.is_ok_and(|(_, count)| count == 1)
    })
    .await;
    let hop = one.ask("hop inbox:one inbox:other 2000").await?;
    other.answer().await?;
    hop.parse().map_err(text)
}

struct Section {
    process: usize,
    acquired: u64,
    released: u64,
    token: u64,
}

impl Section {
    fn parse(process: usize, text: &str) -> Result<Self, String> {
        let numbers: Result<Vec<u64>, _> = text.split(',').map(str::parse).collect();
        match numbers.as_deref() {
            Ok(&[acquired, released, token]) => Ok(Self {
                process,
                acquired,
                released,
                token,
            }),
            _ => Err(format!("what is {text}?")),
        }
    }
}

const PROCESSES: usize = 4;
const TASKS: usize = 16;

/// The columns of `four`.
pub const P99: usize = 2;
pub const COMMANDS: usize = 3;

/// Four processes with 16 tasks each want the same lock, and count up in Redis under it.
pub async fn four(server: &RedisServer, figures: &mut Figures) -> Table {
    let mut table = Table::new(
        "4 processes × 16 waiters on one key, 1 ms hold, a GET and a SET",
        &[
            ("sections/s", 0),
            ("share of the time held", 3),
            ("p99 wait × ideal", 2),
            ("commands a section", 3),
            ("smallest / largest share", 3),
            ("lost updates", 0),
        ],
    );
    let rounds = Rounds::measure(&Kind::ON_REDIS, options::rounds(5), async |kind, round| {
        compete(server, kind, &format!("four:{round}:{}", kind.word())).await
    })
    .await;
    rounds.fill(&mut table);
    let ours = |column| rounds.spread(Kind::Ours, column);
    figures.add("four_processes_held_share", ours(1), &Goal::AtLeast(0.99));
    figures.add(
        "four_processes_p99_wait_vs_ideal",
        ours(P99),
        &Goal::AtMost(1.05),
    );
    let commands = ours(COMMANDS);
    figures.add(
        "four_processes_commands_per_section",
        commands,
        &Goal::AtMost(0.13),
    );
    figures.add(
        "four_processes_smallest_vs_largest_share",
        ours(4),
        &Goal::AtLeast(0.94),
    );
    let lost = rounds.sum(Kind::Ours, 5);
    figures.add("four_processes_lost_updates", lost, &Goal::AtMost(0.0));
    table
}

async fn compete(server: &RedisServer, kind: Kind, key: &str) -> Values {
    let time = options::time(Duration::from_millis(2300));
    let tallies = count(server, kind, key, time, None).await?;
    // In a run of its own, as counting commands costs Redis time.
    let mut commands = 0;
    let counted_key = format!("{key}:counted");
    let counted = count(server, kind, &counted_key, time / 4, Some(&mut commands)).await?;
    let counted: u64 = counted.iter().map(|tally| tally.all).sum();

    let shares: Vec<f64> = tallies.iter().map(|tally| tally.sections as f64).collect();
    let (smallest, largest) = shares
        .iter()
        .fold((f64::MAX, f64::MIN), |(least, most), share| {
            (share.min(least), share.max(most))
        });
    let mut sum = Tally::default();
    for tally in tallies {
        sum.add(tally);
    }
    let ideal = sum.mean_hold() * 1e6 * (PROCESSES * TASKS) as f64;
    let redis = server.client().await;
    let counter = value(&redis, &format!("count:{key}")).await;
    let counter: f64 = counter.unwrap_or_default().parse().map_err(text)?;
    Ok(vec![
        sum.sections as f64 / time.as_secs_f64(),
        sum.held / time.as_secs_f64(),
        sum.p99_wait() / ideal,
        commands as f64 / counted as f64,
        smallest / largest,
        sum.all as f64 - counter,
    ])
}

/// Starts `count` processes that are connected to the same lock.
pub async fn start(server: &RedisServer, kind: Kind, count: usize) -> Result<Vec<Worker>, String> {
    let mut workers: Vec<_> = (0..count).map(|_| Worker::start(server)).collect();
    for worker in &mut workers {
        worker.ask(&format!("connect {}", kind.word())).await?;
    }
    Ok(workers)
}

/// Lets all workers count for a while, and tells how many `commands` that took.
async fn count(
    server: &RedisServer,
    kind: Kind,
    key: &str,
    time: Duration,
    commands: Option<&mut u64>,
) -> Result<Vec<Tally>, String> {
    let mut workers = start(server, kind, PROCESSES).await?;
    let monitor = match commands {
        Some(commands) => Some((Monitor::start(server).await, commands)),
        None => None,
    };
    let from = Duration::from_millis(300);
    let (from, until) = (moment(from), moment(from + time));
    let line = format!("count {key} {TASKS} 1000 {from} {until}");
    let answers = ask_all(&mut workers, &line).await?;
    if let Some((monitor, commands)) = monitor {
        *commands = monitor.stop().await;
    }
    answers.iter().map(|answer| Tally::parse(answer)).collect()
}
