//! Redis Clusters.

use std::collections::BTreeMap;

use redis::aio::MultiplexedConnection;

use super::{FREE_PORT, RedisServer, eventually, run, text};

/// A cluster of its own: primaries that share all slots, and behind them replicas. It ends with
/// this value.
pub struct Cluster {
    /// The primaries first, in the order of their slots.
    pub servers: Vec<RedisServer>,
    primaries: usize,
}

impl Cluster {
    /// Starts primaries, each with so many replicas.
    pub async fn start(primaries: usize, replicas: usize) -> Self {
        Self::start_with(primaries, replicas, &[]).await
    }

    /// Like [`start`](Self::start), with these arguments of each server besides.
    pub async fn start_with(primaries: usize, replicas: usize, args: &[&str]) -> Self {
        let mut all = vec![
            "--cluster-enabled",
            "yes",
            "--cluster-config-file",
            "nodes.conf",
            "--cluster-node-timeout",
            "1000",
            "--cluster-port",
            FREE_PORT,
            "--repl-diskless-sync-delay",
            "0",
        ];
        all.extend(args);
        let mut servers = Vec::new();
        for _ in 0..primaries * (1 + replicas) {
            servers.push(RedisServer::start_with(&all).await);
        }
        let cluster = Self { servers, primaries };
        let first = cluster.client(0).await;
        for server in &cluster.servers[1..] {
            let (port, bus) = (server.port, server.argument("--cluster-port"));
            run(&first, &format!("CLUSTER MEET 127.0.0.1 {port} {bus}")).await;
        }
        for place in 0..primaries {
            let (begin, end) = (
                16_384 * place / primaries,
                16_384 * (place + 1) / primaries - 1,
            );
            let redis = cluster.client(place).await;
            run(&redis, &format!("CLUSTER ADDSLOTSRANGE {begin} {end}")).await;
        }
        cluster.eventually_agreed().await;
        for place in primaries..cluster.servers.len() {
            let primary = cluster.id(place % primaries).await;
            let redis = cluster.client(place).await;
            run(&redis, &format!("CLUSTER REPLICATE {primary}")).await;
            eventually("the replica has its primary's data", || async {
                text(&redis, "INFO replication")
                    .await
                    .contains("master_link_status:up")
            })
            .await;
        }
        cluster.eventually_agreed().await;
        cluster
    }

    /// Waits until all servers know of all, agree on who is a primary, and say that the cluster
    /// works.
    pub async fn eventually_agreed(&self) {
        let known = format!("cluster_known_nodes:{}\r", self.servers.len());
        let size = format!("cluster_size:{}\r", self.primaries);
        let expected = ["cluster_state:ok", "cluster_slots_ok:16384", &known, &size];
        eventually("the servers agree, and find the cluster well", || async {
            let mut views = Vec::new();
            for place in 0..self.servers.len() {
                let redis = self.client(place).await;
                let info = text(&redis, "CLUSTER INFO").await;
                if !expected.iter().all(|line| info.contains(line)) {
                    return false;
                }
                views.push(text(&redis, "CLUSTER NODES").await);
            }
            views
                .windows(2)
                .all(|pair| roles(&pair[0]) == roles(&pair[1]))
        })
        .await;
    }

    pub fn urls(&self) -> Vec<String> {
        self.servers.iter().map(RedisServer::url).collect()
    }

    pub async fn client(&self, place: usize) -> MultiplexedConnection {
        self.servers[place].client().await
    }

    /// The id by which the cluster knows a server.
    pub async fn id(&self, place: usize) -> String {
        text(&self.client(place).await, "CLUSTER MYID").await
    }

    /// The slot of a key.
    pub async fn slot(&self, name: &str) -> u16 {
        let mut redis = self.client(0).await;
        let mut question = redis::cmd("CLUSTER");
        let question = question.arg("KEYSLOT").arg(name);
        question.query_async(&mut redis).await.unwrap()
    }

    /// The place of the primary of a slot, as the first primaries had them.
    pub fn owner(&self, slot: u16) -> usize {
        (0..self.primaries)
            .find(|place| usize::from(slot) < 16_384 * (place + 1) / self.primaries)
            .unwrap()
    }
}

/// The servers in a reply to CLUSTER NODES, each with its role and whether it is well.
fn roles(nodes: &str) -> BTreeMap<&str, &str> {
    nodes
        .lines()
        .map(|line| {
            let mut words = line.split(' ');
            let (id, flags) = (words.next().unwrap(), words.nth(1).unwrap());
            (id, flags.trim_start_matches("myself,"))
        })
        .collect()
}
