//! A node of the service: a process with an HTTP server, whose handler has effects, fails and panics.

use std::io::Read;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::time::sleep;
use tower_distributed_lock::IdempotencyLayer;

use crate::common::short_lived;
use crate::random::Random;
use crate::stall;
use crate::storage::{Entry, Run, Storage};

/// Its settings, in its environment.
pub const LOCKS: &str = "STORM_LOCKS";
pub const STORAGE: &str = "STORM_STORAGE";
pub const NODE: &str = "STORM_NODE";
pub const SEED: &str = "STORM_SEED";
pub const TTL_MS: &str = "STORM_TTL_MS";

pub const ID: &str = "webhook-id";
/// Where a duplicate of an event that is being handled is answered at once…
pub const AT_ONCE: &str = "/at-once";
/// …and where it waits.
pub const WAITING: &str = "/waiting";

/// From then on, a run of an event succeeds.
const LAST_FAILURE: u64 = 4;

struct Node {
    number: u64,
    seed: u64,
    ttl_ms: u64,
    storage: Storage,
}

/// Ends with the process's standard input.
#[tokio::main(worker_threads = 2)]
pub async fn serve() {
    let locks = setting(LOCKS);
    let node = Node {
        number: number(NODE),
        seed: number(SEED),
        ttl_ms: number(TTL_MS),
        storage: Storage::connect(&setting(STORAGE)).await,
    };
    let (storage, runtime) = (node.storage.clone(), Handle::current());
    stall::watch(move |ms| {
        let storage = storage.clone();
        runtime.spawn(async move { storage.log(Entry::StoodStill(ms)).await });
    });
    let locks = short_lived(node.ttl_ms).connect(&locks).await.unwrap();
    let layer = IdempotencyLayer::webhook(locks, ID);
    let app = Router::new()
        .route(AT_ONCE, post(handle).layer(layer.clone()))
        .route(
            WAITING,
            post(handle).layer(layer.wait(Duration::from_secs(2))),
        )
        .with_state(Arc::new(node));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("{}", listener.local_addr().unwrap().port());
    std::thread::spawn(|| {
        let _ = std::io::stdin().read(&mut [0]);
        // The test is over, however it ended.
        std::process::exit(1);
    });
    axum::serve(listener, app).await.unwrap();
}

fn setting(name: &str) -> String {
    std::env::var(name).unwrap()
}

fn number(name: &str) -> u64 {
    setting(name).parse().unwrap()
}

async fn handle(State(node): State<Arc<Node>>, headers: HeaderMap) -> (StatusCode, String) {
    let event = headers[ID].to_str().unwrap().parse().unwrap();
    let run = node.storage.begin(event, node.number).await;
    let mut unfinished = Unfinished {
        storage: Some(node.storage.clone()),
        run,
    };
    // What becomes of it does not hang on which node it is.
    let mut random = Random::new(node.seed, &[1, run.event, run.number]);
    let before = match random.percent(5) {
        // Its lease must be renewed.
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
            node.storage.take_effect(run).await;
            sleep(random.millis(0, 250)).await;
            Entry::Succeeded(run)
        }
    };
    node.storage.log(end).await;
    unfinished.storage = None;
    match end {
        Entry::Succeeded(_) => (StatusCode::OK, run.to_string()),
        Entry::Failed(_) => (StatusCode::INTERNAL_SERVER_ERROR, run.to_string()),
        // As a panic, but without its message.
        _ => resume_unwind(Box::new("the handler panics")),
    }
}

/// Tells if it is dropped with the run.
struct Unfinished {
    storage: Option<Storage>,
    run: Run,
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(storage) = self.storage.take() {
            let dropped = Entry::Dropped(self.run);
            tokio::spawn(async move { storage.log(dropped).await });
        }
    }
}
