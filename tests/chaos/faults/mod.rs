//! What goes wrong, at random times. Each fault is counted, and stands in the history.

pub mod clock;
pub mod loss;
pub mod memory;
pub mod network;
pub mod processes;
pub mod server;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;

use crate::crew::Crew;
use crate::history::{Log, What};
use crate::support::{RedisServer, connect_patiently};

/// What the gremlins of a phase share.
pub struct Scene {
    pub crew: Crew,
    pub servers: Vec<tokio::sync::Mutex<RedisServer>>,
    pub log: Log,
    pub dir: PathBuf,
    pub goes_on: watch::Sender<bool>,
    pub counts: Mutex<BTreeMap<&'static str, u64>>,
    pub ids: AtomicU64,
}

impl Scene {
    /// Carries out a fault that lasts until `fault` is over.
    pub async fn fault(&self, name: &'static str, fault: impl Future<Output = ()>) {
        let id = self.ids.fetch_add(1, Ordering::Relaxed);
        self.log.note(What::FaultBegins, id, 0, name);
        fault.await;
        self.log.note(What::FaultEnds, id, 0, name);
        *self.counts.lock().unwrap().entry(name).or_default() += 1;
    }

    /// Waits for some time. Returns whether there is to be another fault.
    pub async fn pause(&self, time: Duration) -> bool {
        let mut goes_on = self.goes_on.subscribe();
        let ended = goes_on.wait_for(|goes_on| !goes_on);
        tokio::time::timeout(time, ended).await.is_err()
    }

    pub async fn command(&self, server: usize, command: &str) -> String {
        self.command_in(server, 0, command).await
    }

    pub async fn command_in(&self, server: usize, database: u32, command: &str) -> String {
        let url = self.servers[server].lock().await.url();
        let url = format!("{url}/{database}");
        let mut words = command.split(' ');
        let mut cmd = redis::cmd(words.next().unwrap());
        words.for_each(|word| {
            cmd.arg(word);
        });
        // Some of them end this connection too.
        match connect_patiently(&url).await {
            Ok(mut connection) => match cmd.query_async::<redis::Value>(&mut connection).await {
                Ok(value) => redis::from_redis_value(value).unwrap_or_default(),
                Err(_) => String::new(),
            },
            Err(_) => String::new(),
        }
    }
}

/// They make faults, each at its own pace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gremlin {
    Network,
    /// Of the network: around as long as a lock lives, one after the other.
    Outages,
    /// Of the network: it takes so many bytes in a second, and no more.
    Narrow,
    Processes,
    Server,
    Memory,
    Loss,
    ClockBack,
    ClockForward,
}

pub fn spawn(
    gremlin: Gremlin,
    scene: &Arc<Scene>,
    random: &mut crate::support::random::Random,
) -> Vec<tokio::task::JoinHandle<()>> {
    let scene = || Arc::clone(scene);
    match gremlin {
        Gremlin::Network => (0..scene().crew.places.len())
            .map(|place| tokio::spawn(network::disturb(scene(), place, random.fork())))
            .collect(),
        Gremlin::Outages => (0..scene().crew.places.len())
            .map(|place| tokio::spawn(network::outages(scene(), place, random.fork())))
            .collect(),
        Gremlin::Narrow => vec![tokio::spawn(network::narrow(scene()))],
        Gremlin::Processes => vec![tokio::spawn(processes::disturb(scene(), random.fork()))],
        Gremlin::Server => vec![tokio::spawn(server::disturb(scene(), random.fork()))],
        Gremlin::Memory => vec![tokio::spawn(memory::disturb(scene(), random.fork()))],
        Gremlin::Loss => vec![tokio::spawn(loss::disturb(scene(), random.fork()))],
        Gremlin::ClockBack => vec![tokio::spawn(clock::disturb(scene(), false, random.fork()))],
        Gremlin::ClockForward => vec![tokio::spawn(clock::disturb(scene(), true, random.fork()))],
    }
}
