//! The servers of a phase, and how a worker gets to them.

use std::path::Path;
use std::time::Duration;

use tower_distributed_lock::{Credentials, Error, LockManager, LockManagerBuilder};

use crate::phases::Phase;
use crate::settings::Settings;
use crate::support::{Cluster, PRIMARY, RedisServer, Sentinel, SentinelSet, run};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topology {
    One,
    /// Three primaries, each with a replica.
    Cluster,
    /// A primary, two replicas and three sentinels.
    Sentinel,
}

/// A primary without a replica takes no writes, so that one that was replaced stops.
const STRICT: [&str; 4] = [
    "--min-replicas-to-write",
    "1",
    "--min-replicas-max-lag",
    "2",
];

/// The user of the workers, where there are several servers. Its password changes.
pub const USER: &str = "worker";

impl Topology {
    const ALL: [Self; 3] = [Self::One, Self::Cluster, Self::Sentinel];

    /// Starts what stands behind the proxies. (One server is started by its phase.)
    pub async fn start(self, phase: &Phase) -> (Vec<RedisServer>, Vec<Sentinel>) {
        let replicas_take_over = phase.loses_primaries();
        match self {
            Self::One => (Vec::new(), Vec::new()),
            Self::Cluster => {
                // No replica takes over by itself as long as no data is to be lost.
                let mut args = vec![
                    "--cluster-node-timeout",
                    if replicas_take_over { "1000" } else { "8000" },
                    // Each primary keeps its own.
                    "--cluster-allow-replica-migration",
                    "no",
                ];
                if replicas_take_over {
                    args.extend(STRICT);
                }
                (Cluster::start_with(3, 1, &args).await.servers, Vec::new())
            }
            Self::Sentinel => {
                let set = SentinelSet::start(&STRICT).await;
                for sentinel in &set.sentinels {
                    fails_over_often(sentinel).await;
                }
                (set.servers, set.sentinels)
            }
        }
    }

    /// How much longer than over one server an answer may take: a command that was redirected has a
    /// connection to wait for once more.
    pub fn more_patience(self) -> Duration {
        match self {
            Self::Cluster => 2 * Settings::USUAL.command_timeout,
            Self::One | Self::Sentinel => Duration::ZERO,
        }
    }

    /// How much longer than over one server a lock may be free while a request waits for it, when
    /// the servers are well again: a quarantine, and the time until its end is looked for.
    pub fn more_stuck(self) -> Duration {
        match self {
            Self::One => Duration::ZERO,
            Self::Cluster | Self::Sentinel => Settings::USUAL.ttl + Duration::from_millis(1500),
        }
    }
}

pub async fn fails_over_often(sentinel: &Sentinel) {
    // Twice that lies between two failovers.
    let often = format!("SENTINEL SET {PRIMARY} failover-timeout 2000");
    run(&sentinel.client().await, &often).await;
}

/// How a worker gets to the servers: through proxies of its own.
#[derive(Clone, Debug)]
pub struct Access {
    pub topology: Topology,
    /// For each server its port, and that of the proxy in front of it.
    pub servers: Vec<(u16, u16)>,
    /// The sentinels' ports.
    pub sentinels: Vec<u16>,
}

impl Access {
    /// One word, for the orders of a worker.
    pub fn word(&self) -> String {
        let servers = self.servers.iter();
        let servers: Vec<_> = servers.map(|(at, by)| format!("{at}>{by}")).collect();
        let sentinels: Vec<_> = self.sentinels.iter().map(u16::to_string).collect();
        let topology = self.topology as usize;
        format!("{topology}:{}:{}", servers.join(","), sentinels.join(","))
    }

    pub fn parse(word: &str) -> Option<Self> {
        let mut parts = word.split(':');
        let topology = *Topology::ALL.get(parts.next()?.parse::<usize>().ok()?)?;
        let servers = parts.next()?.split(',').map(|server| {
            let (at, by) = server.split_once('>')?;
            Some((at.parse().ok()?, by.parse().ok()?))
        });
        let servers = servers.collect::<Option<_>>()?;
        let sentinels = parts.next()?.split(',').filter(|port| !port.is_empty());
        let sentinels = sentinels.map(|port| port.parse().ok());
        Some(Self {
            topology,
            servers,
            sentinels: sentinels.collect::<Option<_>>()?,
        })
    }

    /// The URL of the only server.
    pub fn url(&self, database: u32) -> String {
        format!("{}/{database}", url(self.servers[0].1))
    }

    pub fn connect_lazy(
        &self,
        builder: LockManagerBuilder,
        database: u32,
        dir: &Path,
    ) -> Result<LockManager, Error> {
        let servers = self.servers.clone();
        // The servers tell of each other by their own ports.
        let mapped = |builder: LockManagerBuilder| {
            let password = dir.join(PASSWORD);
            builder
                .address_map(move |host, port| {
                    let (_, by) = servers.iter().find(|(at, _)| *at == port)?;
                    Some((host.to_owned(), *by))
                })
                .credentials(move || {
                    let password = std::fs::read_to_string(&password);
                    async { Ok::<_, std::io::Error>(Credentials::new(USER, password?)) }
                })
        };
        match self.topology {
            Topology::One => builder.connect_lazy(self.url(database)),
            Topology::Cluster => {
                let seeds = self.servers.iter().map(|(_, by)| url(*by));
                mapped(builder).connect_cluster_lazy(seeds)
            }
            Topology::Sentinel => {
                let sentinels = self.sentinels.iter().map(|port| url(*port));
                mapped(builder).connect_sentinel_lazy(sentinels, PRIMARY)
            }
        }
    }
}

fn url(port: u16) -> String {
    format!("redis://127.0.0.1:{port}")
}

/// The file with the password of this moment, which the workers' callback reads.
const PASSWORD: &str = "password";

/// At once: no worker sees half a file.
pub fn tell_password(dir: &Path, password: &str) {
    std::fs::write(dir.join("password.new"), password).unwrap();
    std::fs::rename(dir.join("password.new"), dir.join(PASSWORD)).unwrap();
}
