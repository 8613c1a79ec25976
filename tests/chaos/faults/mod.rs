//! What goes wrong, at random times. Each fault is counted, and stands in the history.

pub mod clock;
mod cluster;
pub mod loss;
pub mod memory;
pub mod network;
pub mod passwords;
pub mod processes;
mod sentinel;
pub mod server;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use redis::{RedisResult, Value, from_redis_value};
use tokio::sync::watch;

use crate::crew::Crew;
use crate::history::{Log, What};
use crate::support::{RedisServer, Sentinel, connect_patiently};
use crate::topology::Topology;

/// What the gremlins of a phase share.
pub struct Scene {
    pub crew: Crew,
    pub topology: Topology,
    /// Whether the managers give no lock for a while after data was lost.
    pub quarantine: bool,
    /// Locked while one is not to be talked to.
    pub servers: Vec<tokio::sync::Mutex<RedisServer>>,
    /// Of the servers.
    pub ports: Vec<u16>,
    pub sentinels: Vec<Sentinel>,
    /// How often the password of the workers' user was changed.
    pub password: tokio::sync::Mutex<u64>,
    /// Locked while a slot moves in a cluster whose primaries are replaced when they stand still. A
    /// move in the middle of which that happens is never ended, and leaves the slot half open.
    pub moves: tokio::sync::Mutex<()>,
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
        // Some of them end this connection too.
        match asked(&format!("{url}/{database}"), command).await {
            Ok(value) => redis::from_redis_value(value).unwrap_or_default(),
            Err(_) => String::new(),
        }
    }

    /// Prints what each server says to that, and about its replication.
    async fn tell_all(&self, command: &str) {
        for (server, port) in self.ports.iter().enumerate() {
            let said = self.ask(server, command).await;
            let said = match said
                .as_ref()
                .map(|said| from_redis_value::<String>(said.clone()))
            {
                Ok(Ok(text)) => text,
                _ => format!("{said:?}"),
            };
            let info = self.command(server, "INFO replication").await;
            println!("{port}: {said}\n{info}");
        }
    }

    /// Those of these keys that a primary has.
    pub async fn find(&self, names: &[String]) -> Vec<String> {
        let mut found = Vec::new();
        for server in 0..self.servers.len() {
            let info = self.command(server, "INFO replication").await;
            if line(&info, "role:") == "master" {
                let all = self.ask(server, "KEYS *lock:*").await;
                let all: Option<Vec<String>> = all.ok().and_then(|all| from_redis_value(all).ok());
                let all = all.expect("the servers are well").into_iter();
                found.extend(all.filter(|name| names.contains(name)));
            }
        }
        found
    }

    /// Waits until it can be reached, if a fault has its lock.
    pub async fn ask(&self, server: usize, command: &str) -> RedisResult<Value> {
        let url = self.servers[server].lock().await.url();
        asked(&url, command).await
    }

    /// Stops these servers for so long, all at once.
    async fn stop(&self, servers: &[usize], time: Duration) {
        let mut stopped = Vec::new();
        for server in servers {
            stopped.push(self.servers[*server].lock().await);
        }
        stopped.iter().for_each(|server| server.signal("-STOP"));
        tokio::time::sleep(time).await;
        stopped.iter().for_each(|server| server.signal("-CONT"));
    }

    /// Kills these servers. After some time, they start again, empty.
    async fn restart(&self, servers: &[usize], after: Duration) {
        let mut killed = Vec::new();
        for server in servers {
            killed.push(self.servers[*server].lock().await);
        }
        killed.iter_mut().for_each(|server| server.kill());
        tokio::time::sleep(after).await;
        for server in &mut killed {
            server.restart().await;
        }
        drop(killed);
        for server in servers {
            passwords::set(self, *server).await;
        }
    }

    /// Stops a server until another has taken its place, and for some time more.
    async fn stop_until(&self, server: usize, replaced: impl Future<Output = ()>, more: Duration) {
        let stopped = self.servers[server].lock().await;
        stopped.signal("-STOP");
        replaced.await;
        tokio::time::sleep(more).await;
        stopped.signal("-CONT");
    }

    /// Kills a server. It starts again, empty, some time after another has taken its place.
    async fn kill_until(&self, server: usize, replaced: impl Future<Output = ()>, more: Duration) {
        let mut killed = self.servers[server].lock().await;
        killed.kill();
        replaced.await;
        tokio::time::sleep(more).await;
        killed.restart().await;
        drop(killed);
        passwords::set(self, server).await;
    }

    /// Waits until the servers are well again: each has its part, and all know it.
    pub async fn settled(&self) {
        match self.topology {
            Topology::One => {}
            Topology::Cluster => drop(cluster::settled(self).await),
            Topology::Sentinel => drop(sentinel::settled(self).await),
        }
    }
}

async fn asked(url: &str, command: &str) -> RedisResult<Value> {
    let mut words = command.split(' ');
    let mut cmd = redis::cmd(words.next().unwrap());
    words.for_each(|word| {
        cmd.arg(word);
    });
    cmd.query_async(&mut connect_patiently(url).await?).await
}

/// The line of INFO that begins with this.
fn line<'a>(info: &'a str, name: &str) -> &'a str {
    let found = info.lines().find_map(|line| line.strip_prefix(name));
    found.unwrap_or_default().trim_end()
}

/// They make faults, each at its own pace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gremlin {
    Network,
    /// Of the network: around as long as a lock lives, one after the other.
    Outages,
    /// Of the network: it takes so many bytes in a second, and no more.
    Narrow,
    /// Of the network: one of several servers cannot be reached.
    Partition,
    Processes,
    Server,
    Passwords,
    /// What an operator does to several servers: no data is lost in a cluster.
    Operators,
    /// That, and primaries that die or stand still.
    Primaries,
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
        Gremlin::Partition => vec![tokio::spawn(network::partition(scene(), random.fork()))],
        Gremlin::Passwords => vec![tokio::spawn(passwords::disturb(scene(), random.fork()))],
        Gremlin::Operators | Gremlin::Primaries => {
            let may_lose = gremlin == Gremlin::Primaries;
            match scene().topology {
                Topology::One => unreachable!("there is nothing to take its place"),
                Topology::Cluster => {
                    vec![tokio::spawn(cluster::disturb(
                        scene(),
                        may_lose,
                        random.fork(),
                    ))]
                }
                Topology::Sentinel => {
                    vec![tokio::spawn(sentinel::disturb(
                        scene(),
                        may_lose,
                        random.fork(),
                    ))]
                }
            }
        }
        Gremlin::Processes => vec![tokio::spawn(processes::disturb(scene(), random.fork()))],
        Gremlin::Server => vec![tokio::spawn(server::disturb(scene(), random.fork()))],
        Gremlin::Memory => vec![tokio::spawn(memory::disturb(scene(), random.fork()))],
        Gremlin::Loss => vec![tokio::spawn(loss::disturb(scene(), random.fork()))],
        Gremlin::ClockBack => vec![tokio::spawn(clock::disturb(scene(), false, random.fork()))],
        Gremlin::ClockForward => vec![tokio::spawn(clock::disturb(scene(), true, random.fork()))],
    }
}
