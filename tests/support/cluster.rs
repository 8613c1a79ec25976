//! Redis Clusters.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

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

    /// Makes a replica the primary, and waits until all servers know of it. A replica gives up
    /// after 5 s in which it had no majority, as on a machine that is busy. It is asked again then.
    pub async fn fail_over_to(&self, replica: usize) {
        let redis = self.client(replica).await;
        let asked = Mutex::new(None::<Instant>);
        eventually("the replica is a primary", || async {
            let is_due = |asked: Instant| asked.elapsed() > Duration::from_secs(6);
            if asked.lock().unwrap().is_none_or(is_due) {
                let mut failover = redis::cmd("CLUSTER");
                failover.arg("FAILOVER");
                // Refused while the replica does not reach its primary.
                let _: Result<String, _> = failover.query_async(&mut redis.clone()).await;
                *asked.lock().unwrap() = Some(Instant::now());
            }
            let info = text(&redis, "INFO replication").await;
            info.contains("role:master")
        })
        .await;
        self.eventually_agreed().await;
    }

    /// Moves a slot with its keys, as `redis-cli --cluster reshard` does.
    pub async fn move_slot(&self, slot: u16, from: usize, to: usize) {
        self.open_slot(slot, from, to).await;
        self.move_keys(slot, from, to).await;
        self.close_slot(slot, from, to).await;
    }

    /// Begins to move a slot.
    pub async fn open_slot(&self, slot: u16, from: usize, to: usize) {
        let (source, target) = (self.client(from).await, self.client(to).await);
        let id = self.id(from).await;
        run(&target, &format!("CLUSTER SETSLOT {slot} IMPORTING {id}")).await;
        let id = self.id(to).await;
        run(&source, &format!("CLUSTER SETSLOT {slot} MIGRATING {id}")).await;
    }

    /// Moves all keys of an open slot that are left.
    pub async fn move_keys(&self, slot: u16, from: usize, to: usize) {
        let source = self.client(from).await;
        loop {
            let mut keys = redis::cmd("CLUSTER");
            keys.arg("GETKEYSINSLOT").arg(slot).arg(100);
            let keys: Vec<String> = keys.query_async(&mut source.clone()).await.unwrap();
            if keys.is_empty() {
                return;
            }
            self.move_some(&keys, from, to).await;
        }
    }

    /// Moves some keys of an open slot. A key that is at both servers is an error.
    pub async fn move_some(&self, keys: &[String], from: usize, to: usize) {
        let mut migrate = redis::cmd("MIGRATE");
        migrate.arg("127.0.0.1").arg(self.servers[to].port).arg("");
        migrate.arg(0).arg(5000).arg("KEYS").arg(keys);
        let mut source = self.client(from).await;
        let () = migrate.query_async(&mut source).await.unwrap();
    }

    /// Ends the move of a slot whose keys have been moved.
    pub async fn close_slot(&self, slot: u16, from: usize, to: usize) {
        let id = self.id(to).await;
        for place in [to, from] {
            let redis = self.client(place).await;
            run(&redis, &format!("CLUSTER SETSLOT {slot} NODE {id}")).await;
        }
    }

    /// Whether the servers can move a slot with all its keys at once, as Valkey can from 9.0 on.
    pub async fn moves_at_once(&self) -> bool {
        let mut migrations = redis::cmd("CLUSTER");
        migrations.arg("GETSLOTMIGRATIONS");
        let mut redis = self.client(0).await;
        let known: redis::RedisResult<redis::Value> = migrations.query_async(&mut redis).await;
        known.is_ok()
    }

    /// Moves a slot with all its keys at once, and waits until the source knows that it has.
    pub async fn move_at_once(&self, slot: u16, from: usize, to: usize) {
        let (source, id) = (self.client(from).await, self.id(to).await);
        let migrate = format!("CLUSTER MIGRATESLOTS SLOTSRANGE {slot} {slot} NODE {id}");
        run(&source, &migrate).await;
        eventually("the slot has moved", || async {
            let mut slots = redis::cmd("CLUSTER");
            slots.arg("NODES");
            let nodes: String = slots.query_async(&mut source.clone()).await.unwrap();
            let owner = nodes.lines().find(|line| has_slot(line, slot));
            owner.is_some_and(|line| line.starts_with(&id))
        })
        .await;
    }

    /// The names of the keys of a slot that a server has, whoever the slot's primary is.
    pub async fn keys_in(&self, slot: u16, place: usize) -> Vec<String> {
        let mut keys = redis::cmd("CLUSTER");
        keys.arg("GETKEYSINSLOT").arg(slot).arg(1000);
        let mut redis = self.client(place).await;
        keys.query_async(&mut redis).await.unwrap()
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

/// Whether a line of a reply to CLUSTER NODES says that the server has a slot.
fn has_slot(line: &str, slot: u16) -> bool {
    line.split(' ').skip(8).any(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        match (first.parse::<u16>(), last.parse::<u16>()) {
            (Ok(first), Ok(last)) => (first..=last).contains(&slot),
            // One that is on its way.
            _ => false,
        }
    })
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
