//! A phase: workers, servers, those who disturb them; then some quiet, and the check.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::checker::{self, Demands, Report, Violation};
use crate::crew::Crew;
use crate::faults::{self, Gremlin, Scene, clock, loss, passwords};
use crate::history::{self, Log};
use crate::requests::KEYS;
use crate::settings::{LONGEST_HOLD, LONGEST_TTL, Settings};
use crate::store::Store;
use crate::support::RedisServer;
use crate::support::random::Random;
use crate::textbook::Flaw;
use crate::topology::{Access, Topology};
use crate::variety::Variety;
use crate::watch::watch;
use crate::worker::{DATABASES, Orders, TTL, pulse};

#[derive(Clone, Debug)]
pub struct Phase {
    pub name: &'static str,
    pub topology: Topology,
    /// Its part of the time, among those of all phases.
    pub part: f64,
    pub gremlins: &'static [Gremlin],
    pub variety: &'static [Variety],
    pub workers: u32,
    /// None: this crate.
    pub textbook: Option<Flaw>,
    pub quarantine: bool,
    /// Whether two holders at a time are a violation.
    pub exclusive: bool,
}

pub struct Outcome {
    pub phase: Phase,
    pub time: Duration,
    pub faults: BTreeMap<&'static str, u64>,
    pub report: Report,
    /// The first violations, with the history around them.
    pub pieces: Vec<String>,
}

/// How long nothing goes wrong at the end of a phase.
const QUIET: Duration = Duration::from_millis(2500);

impl Phase {
    fn has(&self, gremlin: Gremlin) -> bool {
        self.gremlins.contains(&gremlin)
    }

    pub fn sets_clock(&self) -> bool {
        self.has(Gremlin::ClockBack) || self.has(Gremlin::ClockForward)
    }

    /// Whether another server may take the place of one, without the last writes.
    pub fn loses_primaries(&self) -> bool {
        self.has(Gremlin::Primaries)
    }

    fn may_lose_data(&self) -> bool {
        self.has(Gremlin::Loss) || self.loses_primaries()
    }

    fn varies(&self, variety: Variety) -> bool {
        self.variety.contains(&variety)
    }

    fn longest_ttl(&self) -> Duration {
        match self.varies(Variety::Settings) {
            true => LONGEST_TTL,
            false => TTL,
        }
    }

    fn longest_hold(&self) -> Duration {
        match self.varies(Variety::Settings) {
            true => LONGEST_HOLD,
            false => Settings::USUAL.max_hold,
        }
    }

    /// Within what time a lock that is free goes to a waiter. Its holder may be unable to release
    /// it (a time to live), it may then be granted to a process that is gone (another), and an
    /// attempt may be in vain once.
    pub fn stuck(&self) -> Duration {
        let one = 2 * self.longest_ttl() + Settings::USUAL.command_timeout;
        one + Duration::from_millis(600) + self.topology.more_stuck()
    }

    fn databases(&self) -> u32 {
        match self.varies(Variety::Databases) {
            true => DATABASES,
            false => 1,
        }
    }

    pub async fn run(self, time: Duration, dir: &Path, mut random: Random) -> Outcome {
        let started = Instant::now();
        std::fs::create_dir_all(dir).unwrap();
        let store_server = RedisServer::start().await;
        let mut store = Store::connect(&store_server.url()).await;
        let log = Log::create(&dir.join("driver.history"), 0);
        let (mut servers, sentinels) = self.topology.start(&self).await;
        if self.topology == Topology::One {
            servers.push(self.server(dir).await);
        }
        if self.has(Gremlin::Loss) {
            servers.push(self.server(dir).await);
        }
        let orders = Orders {
            number: 0,
            seed: 0,
            access: Access {
                topology: self.topology,
                servers: Vec::new(),
                sentinels: sentinels.iter().map(|sentinel| sentinel.port).collect(),
            },
            store_url: store_server.url(),
            textbook: self.textbook,
            quarantine: self.quarantine,
            variety: self.variety.to_owned(),
            dir: dir.to_owned(),
        };
        let ports: Vec<u16> = match self.topology {
            // The other one is promoted.
            Topology::One => vec![servers[0].port],
            _ => servers.iter().map(|server| server.port).collect(),
        };
        let crew = Crew::start(self.workers, &orders, &ports, &log, &mut random).await;
        let scene = Arc::new(Scene {
            crew,
            topology: self.topology,
            quarantine: self.quarantine,
            ports: servers.iter().map(|server| server.port).collect(),
            servers: servers.into_iter().map(tokio::sync::Mutex::new).collect(),
            sentinels,
            password: tokio::sync::Mutex::default(),
            moves: tokio::sync::Mutex::default(),
            log,
            dir: dir.to_owned(),
            goes_on: watch::Sender::new(true),
            counts: Mutex::default(),
            ids: AtomicU64::new(1),
        });
        if self.has(Gremlin::Loss) {
            loss::pair(&scene, 0).await;
        }
        if self.topology != Topology::One {
            passwords::begin(&scene).await;
        }
        let disturbing = self
            .gremlins
            .iter()
            .flat_map(|gremlin| faults::spawn(*gremlin, &scene, &mut random));
        let disturbing: Vec<_> = disturbing.collect();
        // The network is in this process.
        let pulse = tokio::spawn(pulse(scene.log.clone(), 0));
        // Two servers have no common history, and a clock that is set tells no time.
        let watching =
            (self.topology == Topology::One && scene.servers.len() == 1 && !self.sets_clock())
                .then(|| tokio::spawn(watch(Arc::clone(&scene), self.databases())));
        let quiet = if self.textbook.is_some() {
            QUIET / 5
        } else {
            QUIET
        };
        tokio::time::sleep(time.saturating_sub(quiet)).await;
        scene.goes_on.send_replace(false);
        for gremlin in disturbing {
            gremlin.await.unwrap();
        }
        scene.settled().await;
        scene.crew.tell("patient").await;
        tokio::time::sleep(quiet).await;
        scene.crew.tell("finished").await;
        let stuck = scene.crew.ended().await;
        pulse.abort();
        if let Some(watching) = watching {
            watching.abort();
        }
        let left = self.left_in_redis(&scene).await;

        let demands = self.demands();
        let events = history::read(dir);
        let mut report = checker::check(&events, &store.accepted().await, &demands);
        if stuck > 0 {
            report
                .violations
                .push(violation("every worker ends", format!("{stuck} did not")));
        }
        if !left.is_empty() {
            report
                .violations
                .push(violation("nothing is left in Redis", left.join(", ")));
        }
        let pieces = report.violations.iter().take(3).map(|violation| {
            let lines = checker::piece(&events, violation).join("\n  ");
            format!(
                "{}: {} (key {}, at {})\n  {lines}",
                violation.rule, violation.what, violation.key, violation.at
            )
        });
        Outcome {
            time: started.elapsed(),
            faults: scene.counts.lock().unwrap().clone(),
            pieces: pieces.collect(),
            report,
            phase: self,
        }
    }

    async fn server(&self, dir: &Path) -> RedisServer {
        match clock::library().await.filter(|_| self.sets_clock()) {
            Some(library) => {
                clock::set(dir, 0);
                RedisServer::start_in(&clock::environment(library, dir), &[]).await
            }
            None => RedisServer::start_with(loss::PAIR).await,
        }
    }

    fn demands(&self) -> Demands {
        Demands {
            exclusive: self.exclusive,
            keeps_data: !self.may_lose_data() && !self.has(Gremlin::ClockForward),
            has_handoffs: self.textbook.is_none(),
            prompt: self.textbook.is_none(),
            releases_at_limit: self.textbook.is_none() && !self.may_lose_data(),
            frugal: self.textbook.is_none(),
            calm: self.gremlins.iter().all(|one| *one == Gremlin::Narrow),
            takes_turns: (self.exclusive && self.textbook.is_none()).then(|| self.longest_hold()),
            stuck_after: (!self.sets_clock() && self.textbook.is_none()).then_some(self.stuck()),
        }
    }

    /// Locks and queues that should not be there any more, when even those of killed workers have
    /// expired.
    async fn left_in_redis(&self, scene: &Scene) -> Vec<String> {
        if self.textbook.is_some() || self.gremlins.contains(&Gremlin::Loss) || self.sets_clock() {
            return Vec::new();
        }
        let names = KEYS.map(|key| {
            let beside = |what: &str| format!("{{lock:{key}}}:{what}");
            [format!("lock:{key}"), beside("queue"), beside("readers")]
        });
        let names = names.as_flattened();
        let started = Instant::now();
        let mut left = Vec::new();
        if self.topology != Topology::One {
            loop {
                let found = scene.find(names).await;
                if found.is_empty() {
                    return left;
                }
                if started.elapsed() > 4 * self.longest_ttl() {
                    return found;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        let names = names.join(" ");
        for database in 0..self.databases() {
            loop {
                let count = scene
                    .command_in(0, database, &format!("EXISTS {names}"))
                    .await;
                if count == "0" {
                    break;
                }
                if started.elapsed() > 4 * self.longest_ttl() {
                    left.push(format!("{count} of {names} in database {database}"));
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        left
    }
}

fn violation(rule: &'static str, what: String) -> Violation {
    Violation {
        rule,
        what,
        key: String::new(),
        at: 0,
        requests: Vec::new(),
    }
}
