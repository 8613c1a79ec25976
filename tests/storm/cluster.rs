//! The nodes: processes of which some are killed, and others put in their place.

use std::process::Stdio;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Child;
use tokio::time::sleep;

use crate::harness;
use crate::node;
use crate::storage::{Entry, Storage};
use crate::support::random::Random;
use crate::support::soon;
use crate::weather::{NODES, Weather};

pub struct Cluster {
    pub seed: u64,
    pub weather: Weather,
    pub locks: String,
    pub storage: String,
    /// The port of each node that is meant to run.
    pub ports: Arc<Mutex<Vec<u16>>>,
    pub nodes: Vec<(u64, Child)>,
    pub next: u64,
}

impl Cluster {
    /// Starts a node. Returns its number, its process and its port.
    pub async fn start(&mut self) -> (u64, Child, u16) {
        let number = self.next;
        self.next += 1;
        let mut node = harness::worker();
        if self.weather.is_rough {
            node.env(node::IS_ROUGH, "");
        }
        let mut child = node
            .env(node::NODE, number.to_string())
            .env(node::SEED, self.seed.to_string())
            .env(node::TTL_MS, self.weather.ttl_ms.to_string())
            .env(node::LOCKS, &self.locks)
            .env(node::STORAGE, &self.storage)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = soon("the node listens", output.next_line()).await.unwrap();
        let port = line.expect("it goes on").parse().unwrap();
        (number, child, port)
    }

    /// Kills so many nodes, at random, and puts others in their place.
    pub async fn lose(&mut self, kills: usize, storage: &Storage) {
        let mut random = Random::at(self.seed, &[2]);
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
