//! A node of the service: a process with an HTTP server, whose handler takes locks, has effects,
//! fails, panics, and blocks its thread.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use axum::{Extension, Router};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Handle};
use tokio::time::sleep;
use tower_distributed_lock::{
    IdempotencyLayer, Lease, LockGuards, LockManager, LockManagerBuilder,
};

use crate::harness;
use crate::stall;
use crate::storage::{Entry, Run, Storage, Visit};
use crate::support::random::Random;
use crate::support::short_lived;

/// Its settings, in its environment.
pub const LOCKS: &str = "STORM_LOCKS";
pub const STORAGE: &str = "STORM_STORAGE";
pub const NODE: &str = "STORM_NODE";
pub const SEED: &str = "STORM_SEED";
pub const TTL_MS: &str = "STORM_TTL_MS";
/// Set: nodes have different settings, some handlers block their thread, some responses are long.
pub const IS_ROUGH: &str = "STORM_IS_ROUGH";

pub const ID: &str = "webhook-id";
/// Where a duplicate of an event that is being handled is answered at once…
pub const AT_ONCE: &str = "/at-once";
/// …and where it waits.
pub const WAITING: &str = "/waiting";

/// What makes a response long.
pub const PADDING: char = '~';
const LONG: usize = 2 << 20;

/// What events are about.
const ACCOUNTS: u64 = 6;
/// Ample for one account, and much less than a deadlock would last.
const PATIENCE: Duration = Duration::from_secs(20);

/// From then on, a run of an event succeeds.
const LAST_FAILURE: u64 = 4;

struct Node {
    number: u64,
    seed: u64,
    ttl_ms: u64,
    is_rough: bool,
    storage: Storage,
    beside: Handle,
    locks: LockManager,
}

/// Ends with the process's standard input.
pub fn serve() {
    let is_rough = std::env::var_os(IS_ROUGH).is_some();
    // One thread: a handler that blocks it blocks all of the node but its locks.
    let mut runtime = match is_rough {
        true => Builder::new_current_thread(),
        false => Builder::new_multi_thread(),
    };
    let runtime = runtime.worker_threads(2).enable_all().build().unwrap();
    // Commands for the storage have a runtime of their own, so that they do not wait for a handler
    // that blocks its thread.
    let mut beside = Builder::new_multi_thread();
    let beside = beside.worker_threads(1).enable_all().build().unwrap();
    let storage = beside.block_on(Storage::connect(&setting(STORAGE)));
    runtime.block_on(listen(is_rough, storage, beside.handle().clone()));
}

async fn listen(is_rough: bool, storage: Storage, beside: Handle) {
    let (node_number, ttl_ms) = (number(NODE), number(TTL_MS));
    {
        let (storage, beside) = (storage.clone(), beside.clone());
        stall::watch(move |ms| {
            let storage = storage.clone();
            beside.spawn(async move { storage.log(Entry::StoodStill(ms)).await });
        });
    }
    let builder = builder(node_number, ttl_ms, is_rough);
    let locks = builder.connect(setting(LOCKS)).await.unwrap();
    let node = Node {
        number: node_number,
        seed: number(SEED),
        ttl_ms,
        is_rough,
        storage,
        beside,
        locks: locks.clone(),
    };
    let layer = IdempotencyLayer::webhook(locks, ID).max_response_body(2 * LONG);
    let app = Router::new()
        .route(AT_ONCE, post(handle).layer(layer.clone()))
        .route(
            WAITING,
            post(handle).layer(layer.wait(Duration::from_secs(2))),
        )
        .with_state(Arc::new(node));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("{}", listener.local_addr().unwrap().port());
    harness::obey_input(drop);
    axum::serve(listener, app).await.unwrap();
}

/// The settings differ from node to node, as during a deployment.
fn builder(node: u64, ttl_ms: u64, is_rough: bool) -> LockManagerBuilder {
    let ttl = Duration::from_millis(ttl_ms);
    let builder = match node % 3 {
        1 if is_rough => short_lived(2 * ttl_ms)
            .renewal(ttl / 4)
            .burst(0, Duration::ZERO),
        2 if is_rough => short_lived(3 * ttl_ms).command_timeout(ttl / 2),
        _ => short_lived(ttl_ms),
    };
    match is_rough {
        // A handler that blocks for longer outlives its lease.
        true => builder.max_hold(2 * ttl),
        false => builder,
    }
}

impl Node {
    /// Takes effect under the locks of accounts.
    async fn take_effect(&self, run: Run, mut random: Random) {
        let account = random.below(ACCOUNTS);
        let reads = random.chance(50);
        let accounts = match reads {
            true => vec![account],
            false => vec![
                account,
                (account + 1 + random.below(ACCOUNTS - 1)) % ACCOUNTS,
            ],
        };
        let guards = loop {
            let taken = match reads {
                true => {
                    let share = self.locks.acquire_shared(("account", account), PATIENCE);
                    share.await.map(LockGuards::from)
                }
                false => {
                    let keys = accounts.iter().map(|account| ("account", *account));
                    self.locks.acquire_all(keys, PATIENCE).await
                }
            };
            match taken {
                Ok(guards) => break guards,
                // Redis is out of memory for a moment.
                Err(_) => sleep(random.millis(5, 20)).await,
            }
        };
        let visits = accounts.iter().map(|account| Visit {
            run,
            account: *account,
            reads,
        });
        for visit in visits.clone() {
            self.storage.log(Entry::Entered(visit)).await;
        }
        sleep(random.millis(0, 40)).await;
        self.storage.take_effect(run).await;
        for visit in visits {
            let left = match guards.is_held() {
                true => Entry::Left(visit),
                false => Entry::LeftLate(visit),
            };
            self.storage.log(left).await;
        }
        drop(guards);
    }
}

fn setting(name: &str) -> String {
    std::env::var(name).unwrap()
}

fn number(name: &str) -> u64 {
    setting(name).parse().unwrap()
}

async fn handle(
    State(node): State<Arc<Node>>,
    Extension(lease): Extension<Lease>,
    headers: HeaderMap,
) -> (StatusCode, String) {
    let event = headers[ID].to_str().unwrap().parse().unwrap();
    // In a task, so that a run that has begun has an end, even if this is dropped meanwhile.
    let begins = {
        let (node, lease) = (Arc::clone(&node), lease.clone());
        let beside = node.beside.clone();
        beside.spawn(async move {
            Unfinished {
                run: node.storage.begin(event, node.number).await,
                node: Some(node),
                lease,
            }
        })
    };
    let mut unfinished = begins.await.unwrap();
    let run = unfinished.run;
    // The outcome of a run does not depend on the node.
    let mut random = Random::at(node.seed, &[1, run.event, run.number]);
    let before = match random.chance(5) {
        // The lease must be renewed meanwhile.
        true => random.millis(node.ttl_ms, node.ttl_ms * 3 / 2),
        false => random.millis(1, 150),
    };
    sleep(before).await;
    let what = random.below(100);
    let may_fail = run.number < LAST_FAILURE;
    let end = match what {
        0..20 if may_fail => Entry::Failed(run),
        20..30 if may_fail => Entry::Panicked(run),
        _ => {
            node.take_effect(run, random.fork()).await;
            match node.is_rough && random.chance(5) {
                // Perhaps beyond its lease.
                true => std::thread::sleep(random.millis(0, 3 * node.ttl_ms)),
                false => sleep(random.millis(0, 250)).await,
            }
            Entry::Succeeded(run)
        }
    };
    // A run that is late must not pause here, as it would be stopped then: `Unfinished` tells.
    if lease.is_held() {
        node.storage.log(end).await;
        unfinished.node = None;
    }
    let padding = match node.is_rough && random.chance(5) {
        true => LONG,
        false => 0,
    };
    match end {
        Entry::Succeeded(_) => {
            let padding = PADDING.to_string().repeat(padding);
            (StatusCode::OK, format!("{run}{padding}"))
        }
        Entry::Failed(_) => (StatusCode::INTERNAL_SERVER_ERROR, run.to_string()),
        // Like a panic, but without its message.
        _ => resume_unwind(Box::new("the handler panics")),
    }
}

/// Tells the storage if it is dropped before the run's end was told.
struct Unfinished {
    node: Option<Arc<Node>>,
    run: Run,
    lease: Lease,
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(node) = self.node.take() {
            let dropped = match self.lease.is_held() {
                true => Entry::Dropped(self.run),
                false => Entry::Outlived(self.run),
            };
            let beside = node.beside.clone();
            beside.spawn(async move { node.storage.log(dropped).await });
        }
    }
}
