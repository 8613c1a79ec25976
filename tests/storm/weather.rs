//! What happens to the nodes in a storm, and what is left after it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use futures_util::future::{join, join_all};
use tokio::time::sleep;

use crate::audit::Findings;
use crate::client::Leaves;
use crate::cluster::Cluster;
use crate::harness;
use crate::node;
use crate::sender::Sender;
use crate::stall::Pings;
use crate::storage::Storage;
use crate::support::random::Random;
use crate::support::{RedisServer, connect_patiently, eventually, names, run, soon};

pub const NODES: usize = 3;

pub const EVENTS: u64 = 120;

/// What happens to the nodes.
#[derive(Clone, Copy)]
pub struct Weather {
    pub ttl_ms: u64,
    pub kills: usize,
    /// See [`node::IS_ROUGH`]. And Redis is out of memory for moments.
    pub is_rough: bool,
}

impl Weather {
    pub fn new(ttl_ms: u64) -> Self {
        Self {
            ttl_ms,
            kills: 0,
            is_rough: false,
        }
    }
}

/// Runs a storm in which neither a general rule nor one of `more` may be broken. If one was broken
/// and the machine stood still meanwhile, the storm says nothing, and there is another one.
pub async fn calm_after(weather: Weather, more: impl Fn(&Storm, &mut Vec<String>)) {
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
        // The rest of a lease when its renewal is due.
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
pub struct Storm {
    pub findings: Findings,
    pub statuses: BTreeMap<u16, usize>,
    pub no_answer: usize,
    /// The longest time that the machine stood still, in ms.
    pub stood_still: u64,
    pub locks: RedisServer,
}

async fn storm(weather: Weather) -> Storm {
    let seed = harness::seed(node::SEED);
    let (locks, server) = (RedisServer::start().await, RedisServer::start().await);
    let pings = Pings::start([
        connect_patiently(&locks.url()).await.unwrap(),
        connect_patiently(&server.url()).await.unwrap(),
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
    // Every node must replay the same.
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
         cut off before their effect and {} after it, {} past their lease; {} effects, {} visits to accounts, {} of which only read; {} violations; at \
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
        findings.visits.0,
        findings.visits.1,
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

/// Makes Redis run out of memory for moments, again and again.
async fn run_out_of_memory(locks: &RedisServer, seed: u64) {
    let redis = locks.client().await;
    let mut random = Random::at(seed, &[4]);
    loop {
        sleep(random.millis(50, 400)).await;
        run(&redis, "CONFIG SET maxmemory 1").await;
        sleep(random.millis(10, 250)).await;
        run(&redis, "CONFIG SET maxmemory 0").await;
    }
}

/// Waits until there is neither a lock nor a queue. (Long responses are kept in parts.)
async fn only_records_are_left(server: &RedisServer) {
    let redis = server.client().await;
    eventually(
        "only the records are left in Redis, and the fence",
        || async {
            let keys = names(&redis, "*").await;
            let records = keys.iter().filter(|key| key.ends_with(":record")).count();
            let parts = keys.iter().filter(|key| key.contains(":part:")).count();
            records == EVENTS as usize && keys.len() == records + parts + 1
        },
    )
    .await;
}
