//! The cost of contention within one process: `one`, `once`, `zipf`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::contenders::{Contender, Kind};
use crate::load::{self, Keys, Load, Work};
use crate::random::Zipf;
use crate::rounds::Rounds;
use crate::support::figures::{Figures, Goal};
use crate::support::monitor::Monitor;
use crate::support::options;
use crate::support::orders::text;
use crate::table::{Table, Values};
use crate::test_support::RedisServer;

const HOLD: Duration = Duration::from_millis(1);
/// No workload may take longer, by far.
const BOUND: Duration = Duration::from_secs(5);

/// 64 tasks want the same lock again and again, and do nothing under it.
pub async fn one(server: &RedisServer, figures: &mut Figures) -> Table {
    let mut table = Table::new(
        "one process, 64 waiters on one key, no hold",
        &[("sections/s", 0), ("commands a section", 4)],
    );
    let rounds = Rounds::measure(
        &with(Kind::Mutex),
        options::rounds(5),
        async |kind, round| race(server, kind, &format!("one:{round}")).await,
    )
    .await;
    rounds.fill(&mut table);
    let ratio = rounds.ratio(Kind::Ours, Kind::Mutex, 0);
    figures.add(
        "one_process_64_waiters_vs_mutex",
        ratio,
        &Goal::AtLeast(0.5),
    );
    figures.add(
        "one_process_64_waiters_commands_per_section",
        rounds.spread(Kind::Ours, 1),
        &Goal::AtMost(0.01),
    );
    table
}

fn with(local: Kind) -> Vec<Kind> {
    let mut kinds = Kind::ON_REDIS.to_vec();
    kinds.insert(1, local);
    kinds
}

/// Returns the sections per second, and the commands per section. Those are counted in a run of
/// their own, as counting costs Redis time.
async fn race(server: &RedisServer, kind: Kind, key: &str) -> Values {
    let time = options::time(Duration::from_millis(400));
    let contender = Contender::connect(kind, &server.url()).await?;
    let _ = sections(&contender, key, time / 8).await?;
    let started = Instant::now();
    let rate = sections(&contender, key, time).await? as f64 / started.elapsed().as_secs_f64();
    let monitor = Monitor::start(server).await;
    let counted = sections(&contender, key, time / 2).await;
    let commands = monitor.stop().await;
    contender.close().await;
    Ok(vec![rate, commands as f64 / counted? as f64])
}

/// Returns how many sections 64 tasks get through.
async fn sections(contender: &Contender, key: &str, time: Duration) -> Result<u64, String> {
    let mut tasks = JoinSet::new();
    let started = Instant::now();
    for _ in 0..64 {
        let (contender, key) = (contender.clone(), key.to_owned());
        tasks.spawn(async move {
            let mut count = 0;
            while started.elapsed() < time {
                contender.acquire(&key).await?.release().await?;
                count += 1;
            }
            Ok::<u64, String>(count)
        });
    }
    let all_done = async {
        let mut sum = 0;
        while let Some(count) = tasks.join_next().await {
            sum += count.map_err(text)??;
        }
        Ok(sum)
    };
    let done = tokio::time::timeout(BOUND, all_done).await;
    done.unwrap_or_else(|_| Err(format!("a task had not got the lock after {BOUND:?}")))
}

/// 256 tasks want the same lock once.
pub async fn once(server: &RedisServer, figures: &mut Figures) -> Table {
    let mut table = Table::new(
        "one process, 256 waiters on one key, once each, 1 ms hold",
        &[("sections/s", 0), ("share of the time held", 3)],
    );
    let is_again = |kind| matches!(kind, Kind::Ours | Kind::Mutex);
    let rounds = Rounds::measure_again(
        &with(Kind::Mutex),
        is_again,
        options::rounds(5),
        async |kind, round| queue_up(server, kind, &format!("once:{round}")).await,
    )
    .await;
    rounds.fill(&mut table);
    let goal = Goal::AtLeast(0.98);
    let rate = rounds.ratio(Kind::Ours, Kind::Mutex, 0);
    figures.add("once_256_waiters_vs_mutex", rate, &goal);
    // tokio's timers end with a tick, which hides a gap that is shorter. The share of the time that
    // the lock was held shows it.
    let share = rounds.ratio(Kind::Ours, Kind::Mutex, 1);
    figures.add("once_256_waiters_held_share_vs_mutex", share, &goal);
    table
}

async fn queue_up(server: &RedisServer, kind: Kind, key: &str) -> Values {
    let contender = Contender::connect(kind, &server.url()).await?;
    contender.acquire("first").await?.release().await?;
    let (rate, share) = load::once(&contender, 256, key, &Work::Sleep(HOLD), BOUND).await?;
    contender.close().await;
    Ok(vec![rate, share])
}

/// 256 tasks want locks of which some are wanted much more than others.
pub async fn zipf(server: &RedisServer, figures: &mut Figures) -> Table {
    let mut table = Table::new(
        "one process, 256 tasks, 1000 keys by Zipf's law (1.0), 1 ms hold",
        &[("sections/s", 0), ("p99 wait, ms", 2)],
    );
    let is_again = |kind| matches!(kind, Kind::Ours | Kind::Mutexes);
    let rounds = Rounds::measure_again(
        &with(Kind::Mutexes),
        is_again,
        options::rounds(5),
        async |kind, round| mix(server, kind, &format!("zipf:{round}:")).await,
    )
    .await;
    rounds.fill(&mut table);
    let rate = rounds.ratio(Kind::Ours, Kind::Mutexes, 0);
    figures.add("zipf_256_tasks_vs_mutexes", rate, &Goal::AtLeast(0.98));
    let wait = rounds.ratio(Kind::Ours, Kind::Mutexes, 1);
    figures.add(
        "zipf_256_tasks_p99_wait_vs_mutexes",
        wait,
        &Goal::AtMost(1.1),
    );
    table
}

async fn mix(server: &RedisServer, kind: Kind, prefix: &str) -> Values {
    let time = options::time(Duration::from_millis(1300));
    let contender = Contender::connect(kind, &server.url()).await?;
    let from = Instant::now() + Duration::from_millis(200);
    let load = Load {
        tasks: 256,
        keys: Keys::Zipf(prefix.to_owned(), Arc::new(Zipf::new(1000))),
        work: Work::Sleep(HOLD),
        reads: 0,
        seed: 0,
        from,
        until: from + time,
    };
    let mut tally = load::run(&contender, &load).await?;
    contender.close().await;
    let rate = tally.sections as f64 / time.as_secs_f64();
    Ok(vec![rate, tally.p99_wait() / 1000.0])
}
