//! Sends each event several times, to any of the nodes, until it has a 200.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use futures_util::future::join_all;
use tokio::time::sleep;

use crate::client::{Answer, Leaves, Outcome, deliver};
use crate::node;
use crate::storage::{Entry, Storage};
use crate::support::random::Random;
use crate::weather::NODES;

const DUPLICATES: u64 = 6;

/// The time within which the first deliveries of the events are sent.
const WINDOW_MS: u64 = 3000;

/// Sends the events, and keeps the responses.
pub struct Sender {
    pub seed: u64,
    pub ports: Arc<Mutex<Vec<u16>>>,
    pub storage: Storage,
    pub answers: Vec<Mutex<Vec<Answer>>>,
    pub is_answered: Vec<AtomicBool>,
    pub deliveries: AtomicUsize,
    pub no_answer: AtomicUsize,
    pub disconnects: AtomicUsize,
}

impl Sender {
    /// Sends an event several times at about the same time, with clients of which some leave. Then
    /// sends it again and again, until there is a 200.
    pub async fn send(&self, event: u64) {
        let mut random = Random::at(self.seed, &[3, event]);
        let first = random.millis(0, WINDOW_MS);
        let duplicates = (0..DUPLICATES).map(|duplicate| async move {
            let mut random = Random::at(self.seed, &[3, event, duplicate]);
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

    /// Returns whether the response is a replay of a 200.
    pub async fn deliver(&self, event: u64, node: usize, leaves: Leaves) -> bool {
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
