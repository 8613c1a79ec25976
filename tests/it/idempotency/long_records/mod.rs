//! Records that are too long for the connection of the locks: they go another way, and no lock
//! notices.

mod broken;
mod links;
mod parts;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use redis::aio::MultiplexedConnection;
use tower_distributed_lock::{IdempotencyLayer, LockManager, LockManagerBuilder};

use crate::once::{Answer, App, Runs, text};
use crate::support::{clients, eventually, expires_in, has_resp3, names, run, soon};

const MIB: usize = 1 << 20;

const PARTS: &str = "{lock:POST%3A/a:k}:part:";

/// No two parts of it are alike.
fn content(length: usize) -> Bytes {
    let mut content = vec![0; length];
    for (number, piece) in content.chunks_exact_mut(1024).enumerate() {
        piece[..8].copy_from_slice(&(number as u64).to_ne_bytes());
    }
    content.into()
}

fn layer(locks: &LockManager) -> IdempotencyLayer {
    IdempotencyLayer::new(locks.clone()).max_response_body(256 * MIB)
}

/// An app that answers with this body.
fn app(locks: &LockManager, runs: &Runs, body: &Bytes) -> App {
    let body = body.clone();
    let handler = runs.then(move |_, _| std::future::ready(Ok(text(body.clone()))));
    App::new(&layer(locks), handler)
}

#[track_caller]
fn is_whole(answer: &Answer, body: &Bytes) {
    assert_eq!(answer.status(), 200);
    assert!(answer.body == body, "another body of {}", answer.body.len());
}

#[track_caller]
fn is_replay(answer: &Answer, body: &Bytes) {
    is_whole(answer, body);
    assert!(answer.is_replay());
}

/// The replay of a response whose body was not kept.
#[track_caller]
fn is_short_replay(answer: &Answer) {
    assert_eq!(answer.status(), 200);
    assert!(answer.is_replay());
    assert_eq!(answer.head.headers["idempotent-body"], "not-kept");
    assert!(answer.body.is_empty());
}

/// The names of the parts, in order.
async fn parts(redis: &MultiplexedConnection) -> Vec<String> {
    let mut keys = names(redis, "*").await;
    keys.retain(|key| key.contains(":part:"));
    assert!(keys.iter().all(|key| key.starts_with(PARTS)));
    keys.sort_by_key(|key| key.rsplit(':').next().unwrap().parse::<usize>().unwrap());
    keys
}

async fn has_parts(redis: &MultiplexedConnection, number: usize) {
    eventually("so many parts are written", || async {
        parts(redis).await.len() >= number
    })
    .await;
}

/// Parts that no manifest leads to are gone within minutes.
async fn expire_soon(redis: &MultiplexedConnection, parts: &[String]) {
    for part in parts {
        assert!(expires_in(redis, part).await <= Duration::from_secs(5 * 60));
    }
}

/// The connections that there are, by their numbers.
async fn connected(redis: &MultiplexedConnection) -> Vec<String> {
    let clients = clients(redis).await;
    let id = |client: &String| {
        let id = client.split(' ').next()?.strip_prefix("id=")?;
        Some(id.to_owned())
    };
    clients.iter().filter_map(id).collect()
}

/// Closes the one connection that was made since then.
async fn close_others(redis: &MultiplexedConnection, before: &[String]) {
    let now = connected(redis).await;
    let others: Vec<_> = now.iter().filter(|id| !before.contains(id)).collect();
    assert_eq!(others.len(), 1, "the connection for long records");
    run(redis, &format!("CLIENT KILL ID {}", others[0])).await;
}

/// A manager that notices a lost lock soon, and has long timeouts.
fn patient() -> LockManagerBuilder {
    let ttl = Duration::from_secs(if has_resp3() { 60 } else { 3 });
    LockManager::builder().ttl(ttl).command_timeout(ttl)
}

/// Takes and releases locks of other keys until it is dropped, and counts them.
struct Others {
    served: Arc<AtomicUsize>,
    is_over: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<()>,
}

impl Others {
    fn of(locks: &LockManager) -> Self {
        let (served, is_over) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        let (locks, count, over) = (locks.clone(), Arc::clone(&served), Arc::clone(&is_over));
        let task = tokio::spawn(async move {
            while !over.load(Ordering::SeqCst) {
                let number = count.load(Ordering::SeqCst);
                let guard = locks.try_acquire(format!("other{number}")).await.unwrap();
                guard.release().await.unwrap();
                count.fetch_add(1, Ordering::SeqCst);
            }
        });
        Self {
            served,
            is_over,
            task,
        }
    }

    fn served(&self) -> usize {
        self.served.load(Ordering::SeqCst)
    }

    async fn end(self) {
        self.is_over.store(true, Ordering::SeqCst);
        soon("the last of the others", self.task).await.unwrap();
    }
}
