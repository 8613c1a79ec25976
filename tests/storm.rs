//! Webhooks in a storm: nodes that are killed, handlers that fail, clients that leave, and each event many times over.
//!
//! Three nodes, processes of their own, serve HTTP with an `IdempotencyLayer`; a sender delivers each event several
//! times, to any of them, until it has a 200. What must come of it is in `storm/audit.rs`.
//!
//! This program is also the node. `STORM_SEED` in the environment repeats a storm, as far as the order in which the
//! processes get to run does not matter.

#![allow(unreachable_pub)]

mod common;

#[path = "storm/audit.rs"]
mod audit;
#[path = "storm/client.rs"]
mod client;
#[path = "storm/node.rs"]
mod node;
#[path = "storm/random.rs"]
mod random;
#[path = "storm/stall.rs"]
mod stall;
#[path = "storm/storage.rs"]
mod storage;

use std::collections::BTreeMap;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::process::{ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use audit::Findings;
use client::{Answer, Leaves, Outcome, deliver};
use common::{RedisServer, eventually, run, soon};
use futures_util::future::{join, join_all};
use random::Random;
use stall::Pings;
use storage::{Entry, Run, Storage};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::runtime::Runtime;
use tokio::time::sleep;

const NODES: usize = 3;
const EVENTS: u64 = 120;
const DUPLICATES: u64 = 6;
/// In which the first deliveries of the events are sent.
const WINDOW_MS: u64 = 3000;

type Test = fn() -> Pin<Box<dyn Future<Output = ()>>>;

const TESTS: &[(&str, Test)] = &[
    ("without_kills_each_event_takes_effect_once", || {
        Box::pin(without_kills_each_event_takes_effect_once())
    }),
    ("with_kills_only_a_run_that_was_cut_off_is_repeated", || {
        Box::pin(with_kills_only_a_run_that_was_cut_off_is_repeated())
    }),
    (
        "during_a_deployment_and_out_of_memory_only_a_run_past_its_lease_is_repeated",
        || Box::pin(during_a_deployment_and_out_of_memory_only_a_run_past_its_lease_is_repeated()),
    ),
    (
        "the_audit_tells_a_run_past_its_lease_from_one_too_many",
        || Box::pin(the_audit_tells_a_run_past_its_lease_from_one_too_many()),
    ),
];

fn main() -> ExitCode {
    if std::env::var_os(node::NODE).is_some() {
        node::serve();
        return ExitCode::SUCCESS;
    }
    let args: Vec<String> = std::env::args().skip(1).collect();
    let skip = args.iter().position(|arg| arg == "--skip");
    let skipped = skip.and_then(|at| args.get(at + 1));
    let filter = args
        .iter()
        .find(|arg| !arg.starts_with('-') && Some(*arg) != skipped);
    let (chosen, others): (Vec<_>, Vec<_>) = TESTS.iter().partition(|(name, _)| {
        filter.is_none_or(|filter| name.contains(filter.as_str()))
            && skipped.is_none_or(|skipped| !name.contains(skipped.as_str()))
    });
    if args.iter().any(|arg| arg == "--list") {
        for (name, _) in &chosen {
            println!("{name}: test");
        }
        return ExitCode::SUCCESS;
    }
    println!("\nrunning {} tests", chosen.len());
    let started = Instant::now();
    let mut failed = 0;
    for (name, test) in &chosen {
        let run = || Runtime::new().unwrap().block_on(test());
        let ok = catch_unwind(AssertUnwindSafe(run)).is_ok();
        println!("test {name} ... {}", if ok { "ok" } else { "FAILED" });
        failed += usize::from(!ok);
    }
    println!(
        "\ntest result: {}. {} passed; {failed} failed; 0 ignored; 0 measured; {} filtered out; finished in {:.2}s\n",
        if failed == 0 { "ok" } else { "FAILED" },
        chosen.len() - failed,
        others.len(),
        started.elapsed().as_secs_f64(),
    );
    match failed {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::from(101),
    }
}

async fn without_kills_each_event_takes_effect_once() {
    calm_after(Weather::new(2000), |storm, violations| {
        let mut must = |holds: bool, what: &str| {
            if !holds {
                violations.push(format!("not so: {what}"));
            }
        };
        must(storm.findings.effects == EVENTS, "each takes effect once");
        must(storm.findings.cut_off == (0, 0), "no run is cut off");
        must(storm.findings.outlived.is_empty(), "no lease is lost");
        let all_answered = storm.no_answer <= storm.findings.panics;
        must(
            all_answered,
            "a panic closes the connection, and nothing else does",
        );
        must(!storm.statuses.contains_key(&503), "there is no 503");
    })
    .await;
}

async fn with_kills_only_a_run_that_was_cut_off_is_repeated() {
    const KILLS: usize = 8;
    let weather = Weather {
        kills: KILLS,
        ..Weather::new(600)
    };
    calm_after(weather, |storm, violations| {
        let (before, after) = storm.findings.cut_off;
        assert_eq!(storm.findings.kills, KILLS);
        assert!(before + after > 0, "no kill hit a run");
        if storm.findings.effects != EVENTS + after {
            violations.push("an effect too many or too few".to_owned());
        }
        if !storm.findings.outlived.is_empty() {
            violations.push("a lease was lost".to_owned());
        }
    })
    .await;
}

async fn during_a_deployment_and_out_of_memory_only_a_run_past_its_lease_is_repeated() {
    let weather = Weather {
        is_rough: true,
        ..Weather::new(800)
    };
    calm_after(weather, |storm, violations| {
        let (_, after) = storm.findings.cut_off;
        if storm.findings.effects != EVENTS + after {
            violations.push("an effect too many or too few".to_owned());
        }
    })
    .await;
}

async fn the_audit_tells_a_run_past_its_lease_from_one_too_many() {
    let run = |number| Run {
        event: 7,
        number,
        node: 0,
    };
    let first = [Entry::Began(run(1)), Entry::TookEffect(run(1))];
    let second = [
        Entry::Began(run(2)),
        Entry::TookEffect(run(2)),
        Entry::Succeeded(run(2)),
    ];
    let log = |between: Entry| [&first[..], &[between], &second].concat();
    assert!(
        Findings::of(&log(Entry::Succeeded(run(1))))
            .violations
            .len()
            == 1
    );
    let findings = Findings::of(&log(Entry::Outlived(run(1))));
    assert_eq!((findings.violations.len(), findings.effects), (0, 2));

    let told = |number| {
        let answer = Answer {
            status: 200,
            is_replay: false,
            lacks_body: false,
            body: run(number).to_string(),
        };
        let mut violations = Vec::new();
        findings.events[&7].answers(7, &[answer], true, &mut violations);
        violations.len()
    };
    assert_eq!((told(1), told(2)), (1, 0));
}

/// What comes upon the nodes.
#[derive(Clone, Copy)]
struct Weather {
    ttl_ms: u64,
    kills: usize,
    /// See [`node::IS_ROUGH`]. And Redis is out of memory for moments.
    is_rough: bool,
}

impl Weather {
    fn new(ttl_ms: u64) -> Self {
        Self {
            ttl_ms,
            kills: 0,
            is_rough: false,
        }
    }
}

/// A storm in which no rule may be broken, nor any of `more`. If one was, and the machine stood still meanwhile, that says
/// nothing, and there is another one.
async fn calm_after(weather: Weather, more: impl Fn(&Storm, &mut Vec<String>)) {
    for _ in 0..5 {
        let storm = storm(weather).await;
        let mut violations = storm.findings.violations.clone();
        more(&storm, &mut violations);
        if violations.is_empty() {
            only_records_are_left(&storm.locks).await;
            return;
        }
        for violation in violations.iter().take(20) {
            println!("violation: {violation}");
        }
        // What is left of a lease when its renewal is due.
        let bearable = weather.ttl_ms / 2;
        assert!(
            storm.stood_still > bearable,
            "{} violations",
            violations.len()
        );
        println!("void: the machine stood still for longer than {bearable} ms. Once more.");
    }
    panic!("the machine is too busy for this test");
}

/// What was left after a storm.
struct Storm {
    findings: Findings,
    statuses: BTreeMap<u16, usize>,
    no_answer: usize,
    /// In ms, at the most.
    stood_still: u64,
    locks: RedisServer,
}

async fn storm(weather: Weather) -> Storm {
    let seed = match std::env::var(node::SEED) {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_nanos() as u64,
    };
    println!("STORM_SEED={seed}");
    let (locks, server) = (RedisServer::start().await, RedisServer::start().await);
    let pings = Pings::start([
        storage::connect(&locks.url()).await,
        storage::connect(&server.url()).await,
    ]);
    let started = Instant::now();
    let mut cluster = Cluster {
        seed,
        weather,
        locks: locks.url(),
        storage: server.url(),
        ports: Arc::default(),
        nodes: Vec::new(),
        next: 0,
    };
    for _ in 0..NODES {
        let (number, child, port) = cluster.start().await;
        cluster.nodes.push((number, child));
        cluster.ports.lock().unwrap().push(port);
    }
    let storage = Storage::connect(&server.url()).await;
    let sender = Arc::new(Sender {
        seed,
        ports: Arc::clone(&cluster.ports),
        storage: storage.clone(),
        answers: (0..EVENTS).map(|_| Mutex::default()).collect(),
        is_answered: (0..EVENTS).map(|_| AtomicBool::new(false)).collect(),
        deliveries: AtomicUsize::new(0),
        no_answer: AtomicUsize::new(0),
        disconnects: AtomicUsize::new(0),
    });
    let events = (0..EVENTS).map(|event| {
        let sender = Arc::clone(&sender);
        tokio::spawn(async move { sender.send(event).await })
    });
    let events = async {
        for ended in join_all(events).await {
            ended.unwrap();
        }
    };
    soon("every event has a 200", async {
        let all = join(events, cluster.lose(weather.kills, &storage));
        tokio::select! {
            _ = all => {}
            () = run_out_of_memory(&locks, seed), if weather.is_rough => {}
        }
    })
    .await;
    run(&locks.client().await, "CONFIG SET maxmemory 0").await;
    // Every node has the same to say.
    let at_the_end = (0..EVENTS).map(|event| {
        let sender = &sender;
        async move {
            let mut is_replayed = true;
            for node in 0..NODES {
                is_replayed &= sender.deliver(event, node, Leaves::Never).await;
            }
            (event, is_replayed)
        }
    });
    let at_the_end = soon("every node answers", join_all(at_the_end)).await;

    let mut findings = Findings::of(&storage.read().await);
    for (event, is_replayed) in at_the_end {
        if !is_replayed {
            let violation = format!("event {event}: not every node replays it at the end");
            findings.violations.push(violation);
        }
    }
    for event in 0..EVENTS {
        let logged = findings.events.get(&event).map_or(0, |event| event.effects);
        assert_eq!(storage.effects(event).await, logged, "event {event}");
    }
    let stood_still = findings.stood_still.max(pings.longest());
    let mut statuses = BTreeMap::new();
    let mut replays = 0;
    for (event, answers) in (0..).zip(&sender.answers) {
        let answers = answers.lock().unwrap();
        for answer in &*answers {
            *statuses.entry(answer.status).or_default() += 1;
            replays += usize::from(answer.is_replay);
        }
        let log = findings.events.entry(event).or_default();
        log.answers(event, &answers, weather.is_rough, &mut findings.violations);
    }
    let no_answer = sender.no_answer.load(Ordering::Relaxed);
    println!(
        "{NODES} nodes, {EVENTS} events, {} deliveries in {:.1} s: answers by status {statuses:?}, {replays} of them \
         replays; {no_answer} without an answer, {} disconnects; {} runs, {} failures, {} panics; {} kills; {} runs \
         cut off before their effect and {} after it, {} past their lease; {} effects; {} violations; at \
         times, the machine stood still for {stood_still} ms",
        sender.deliveries.load(Ordering::Relaxed),
        started.elapsed().as_secs_f64(),
        sender.disconnects.load(Ordering::Relaxed),
        findings.runs,
        findings.failures,
        findings.panics,
        findings.kills,
        findings.cut_off.0,
        findings.cut_off.1,
        findings.outlived.len(),
        findings.effects,
        findings.violations.len(),
    );
    Storm {
        findings,
        statuses,
        no_answer,
        stood_still,
        locks,
    }
}

/// For moments, again and again.
async fn run_out_of_memory(locks: &RedisServer, seed: u64) {
    let redis = locks.client().await;
    let mut random = Random::new(seed, &[4]);
    loop {
        sleep(random.millis(50, 400)).await;
        run(&redis, "CONFIG SET maxmemory 1").await;
        sleep(random.millis(10, 250)).await;
        run(&redis, "CONFIG SET maxmemory 0").await;
    }
}

/// No lock and no queue. (Long answers are kept in parts.)
async fn only_records_are_left(server: &RedisServer) {
    let redis = server.client().await;
    eventually(
        "only the records are left in Redis, and the fence",
        || async {
            let mut keys = redis::cmd("KEYS");
            let keys = keys.arg("*").query_async(&mut redis.clone()).await;
            let keys: Vec<String> = keys.unwrap();
            let records = keys.iter().filter(|key| key.ends_with(":record")).count();
            let parts = keys.iter().filter(|key| key.contains(":part:")).count();
            records == EVENTS as usize && keys.len() == records + parts + 1
        },
    )
    .await;
}

struct Cluster {
    seed: u64,
    weather: Weather,
    locks: String,
    storage: String,
    /// One for each node that is to be there.
    ports: Arc<Mutex<Vec<u16>>>,
    nodes: Vec<(u64, Child)>,
    next: u64,
}

impl Cluster {
    /// A process that listens, with its number and its port.
    async fn start(&mut self) -> (u64, Child, u16) {
        let number = self.next;
        self.next += 1;
        let mut node = Command::new(std::env::current_exe().unwrap());
        if self.weather.is_rough {
            node.env(node::IS_ROUGH, "");
        }
        let mut child = node
            .env(node::NODE, number.to_string())
            .env(node::SEED, self.seed.to_string())
            .env(node::TTL_MS, self.weather.ttl_ms.to_string())
            .env(node::LOCKS, &self.locks)
            .env(node::STORAGE, &self.storage)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = soon("the node listens", output.next_line()).await.unwrap();
        let port = line.expect("it goes on").parse().unwrap();
        (number, child, port)
    }

    /// Kills nodes at random, so many, and puts others in their place.
    async fn lose(&mut self, kills: usize, storage: &Storage) {
        let mut random = Random::new(self.seed, &[2]);
        for _ in 0..kills {
            sleep(random.millis(150, 500)).await;
            let which = random.below(NODES as u64) as usize;
            let (number, child) = &mut self.nodes[which];
            storage.log(Entry::Kill(*number)).await;
            child.kill().await.unwrap();
            let (number, child, port) = self.start().await;
            self.nodes[which] = (number, child);
            self.ports.lock().unwrap()[which] = port;
        }
    }
}

/// Who sends the events, and what came back.
struct Sender {
    seed: u64,
    ports: Arc<Mutex<Vec<u16>>>,
    storage: Storage,
    answers: Vec<Mutex<Vec<Answer>>>,
    is_answered: Vec<AtomicBool>,
    deliveries: AtomicUsize,
    no_answer: AtomicUsize,
    disconnects: AtomicUsize,
}

impl Sender {
    /// Sends an event several times at about the same time, by clients of which some leave. Then again and again, until
    /// there is a 200.
    async fn send(&self, event: u64) {
        let mut random = Random::new(self.seed, &[3, event]);
        let first = random.millis(0, WINDOW_MS);
        let duplicates = (0..DUPLICATES).map(|duplicate| async move {
            let mut random = Random::new(self.seed, &[3, event, duplicate]);
            sleep(first + random.millis(0, 400)).await;
            let node = random.below(NODES as u64) as usize;
            self.deliver(event, node, Leaves::at_random(&mut random))
                .await;
        });
        join_all(duplicates).await;
        while !self.is_answered[event as usize].load(Ordering::Relaxed) {
            let node = random.below(NODES as u64) as usize;
            self.deliver(event, node, Leaves::Never).await;
            sleep(random.millis(20, 150)).await;
        }
    }

    /// Returns whether the answer is a replay of a 200.
    async fn deliver(&self, event: u64, node: usize, leaves: Leaves) -> bool {
        let path = match event % 2 {
            0 => node::AT_ONCE,
            _ => node::WAITING,
        };
        let port = self.ports.lock().unwrap()[node];
        self.deliveries.fetch_add(1, Ordering::Relaxed);
        match deliver(port, path, event, leaves).await {
            Outcome::Answered(answer) => {
                let at = event as usize;
                if answer.status == 200 && !self.is_answered[at].swap(true, Ordering::Relaxed) {
                    self.storage.log(Entry::Answered(event)).await;
                }
                let is_replayed = answer.status == 200 && answer.is_replay;
                self.answers[at].lock().unwrap().push(answer);
                return is_replayed;
            }
            Outcome::NoAnswer => self.no_answer.fetch_add(1, Ordering::Relaxed),
            Outcome::Disconnected => self.disconnects.fetch_add(1, Ordering::Relaxed),
        };
        false
    }
}
