//! An axum service whose requests for one account run one at a time, on all its nodes.
//!
//! ```text
//! cargo run --example axum      # on 127.0.0.1:3000, or the port in PORT
//!
//! curl -X POST http://127.0.0.1:3000/accounts/7/deposit -d 100
//! curl -X POST http://127.0.0.1:3000/accounts/7/settle
//! curl -X POST http://127.0.0.1:3000/deliveries -H 'x-delivery-id: 42'
//! curl http://127.0.0.1:3000/accounts/7
//! ```
//!
//! The locks are in Redis if `REDIS_URL` is set (`redis://127.0.0.1:6379`), in this process if not.
//! `examples/locks` says how to use Sentinel or a cluster.

mod locks;

use std::collections::{HashMap, HashSet};
use std::error::Error;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post};
use axum::{Extension, Router};
use tokio::net::TcpListener;
use tokio::time::sleep;
use tower::ServiceBuilder;
use tower_distributed_lock::{DetachLayer, DistributedLockLayer, Lease, LockManager, key};

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), Box<dyn Error>> {
    let port = port()?;
    let locks = locks::connect([LockManager::builder()]).await?.remove(0);
    let listener = TcpListener::bind(("127.0.0.1", port))
        .await
        .map_err(|error| format!("cannot listen on 127.0.0.1:{port}: {error}"))?;
    println!("Listening on http://{}", listener.local_addr()?);
    axum::serve(listener, app(&locks))
        .with_graceful_shutdown(ctrl_c())
        .await?;
    // The server is done with all requests whose clients are still there. Detached ones may still
    // run. Their locks are held, and this waits for them, too. It returns when Redis has all the
    // releases.
    locks.close().await;
    Ok(())
}

fn app(locks: &LockManager) -> Router {
    // One lock for each account, whatever is done to it. The handlers take the id as text, too: as
    // a number, `7` and `07` would be one account with two locks.
    let account = key::path("/accounts/{id}/**");
    let one_at_a_time =
        DistributedLockLayer::new(locks.clone(), account).wait(Duration::from_secs(5));

    // A sender may deliver twice, even at the same time. The second delivery does not wait: it gets
    // a 409, and the sender tries again later. The scope keeps a header like `accounts:7` from
    // naming the lock of an account.
    let delivery = key::scope("delivery", key::header("x-delivery-id"));
    // Without an id, a duplicate cannot be told from a new delivery: 400.
    let no_duplicates = DistributedLockLayer::new(locks.clone(), delivery);

    // `route_layer` applies to the one route that it is called on, after routing: unknown paths
    // take no locks.
    Router::new()
        .route(
            "/accounts/{id}/deposit",
            post(deposit).route_layer(one_at_a_time.clone()),
        )
        .route(
            "/accounts/{id}/settle",
            post(settle).route_layer(
                ServiceBuilder::new()
                    // Settling has two steps, and must not stop between them because the client has
                    // left. The first layer is the outermost: the lock is inside, and is held until
                    // the handler ends.
                    .layer(DetachLayer::new())
                    .layer(one_at_a_time),
            ),
        )
        .route("/deliveries", post(receive).route_layer(no_duplicates))
        // Reading the balance needs no lock.
        .route("/accounts/{id}", get(balance))
        .with_state(Arc::new(Storage::default()))
}

/// Adds the amount in the body: reads the balance, takes its time, and writes the sum. Two of these
/// at once would lose one of the deposits.
async fn deposit(
    State(storage): State<Arc<Storage>>,
    Path(id): Path<String>,
    // The layer has put it into every request that runs under a lock.
    Extension(lease): Extension<Lease>,
    body: String,
) -> Result<String, (StatusCode, String)> {
    let amount: u32 = body.trim().parse().map_err(|_| {
        let hint = "the body must be a whole number, the amount\n";
        (StatusCode::BAD_REQUEST, hint.to_owned())
    })?;
    let before = storage.balance(&id);
    sleep(Duration::from_millis(500)).await;
    let after = before + u64::from(amount);
    storage.write(&id, after, lease.fencing_token())?;
    Ok(format!(
        "balance {after}, written with fencing token {}\n",
        lease.fencing_token()
    ))
}

/// Empties the account in two steps.
async fn settle(
    State(storage): State<Arc<Storage>>,
    Path(id): Path<String>,
    Extension(lease): Extension<Lease>,
) -> Result<String, (StatusCode, String)> {
    let amount = storage.balance(&id);
    println!("account {id}: paying out {amount}");
    sleep(Duration::from_secs(2)).await;
    storage.write(&id, 0, lease.fencing_token())?;
    println!("account {id}: settled");
    Ok(format!("paid out {amount}\n"))
}

/// Does something once for each delivery, however often it arrives.
async fn receive(State(storage): State<Arc<Storage>>, headers: HeaderMap) -> &'static str {
    // The layer lets nothing through that does not have exactly one such header.
    let id = headers["x-delivery-id"].as_bytes().to_vec();
    if storage
        .deliveries
        .lock()
        .expect("not poisoned")
        .contains(&id)
    {
        return "known already\n";
    }
    sleep(Duration::from_secs(1)).await;
    storage.deliveries.lock().expect("not poisoned").insert(id);
    "received\n"
}

async fn balance(State(storage): State<Arc<Storage>>, Path(id): Path<String>) -> String {
    format!("balance {}\n", storage.balance(&id))
}

/// Stands for a database.
#[derive(Default)]
struct Storage {
    accounts: Mutex<HashMap<String, Account>>,
    deliveries: Mutex<HashSet<Vec<u8>>>,
}

#[derive(Default)]
struct Account {
    balance: u64,
    /// The highest fencing token that has written.
    fencing_token: u64,
}

impl Storage {
    fn balance(&self, id: &str) -> u64 {
        let accounts = self.accounts.lock().expect("not poisoned");
        accounts.get(id).map_or(0, |account| account.balance)
    }

    /// Refuses a write of a holder that has been overtaken: one, say, that stood still until its
    /// lease ran out, and writes before it can notice. A lock alone cannot prevent that. In SQL it
    /// is a condition of the write: `UPDATE … SET balance = $1, fencing_token = $2 WHERE id = $3
    /// AND fencing_token <= $2`.
    fn write(&self, id: &str, balance: u64, token: u64) -> Result<(), (StatusCode, String)> {
        let mut accounts = self.accounts.lock().expect("not poisoned");
        let account = accounts.entry(id.to_owned()).or_default();
        if token < account.fencing_token {
            let why = "a later holder of the lock has already written\n";
            return Err((StatusCode::CONFLICT, why.to_owned()));
        }
        *account = Account {
            balance,
            fencing_token: token,
        };
        Ok(())
    }
}

fn port() -> Result<u16, String> {
    let Ok(port) = std::env::var("PORT") else {
        return Ok(3000);
    };
    port.parse()
        .map_err(|_| format!("PORT is {port:?}, which is not the number of a port"))
}

async fn ctrl_c() {
    if let Err(error) = tokio::signal::ctrl_c().await {
        eprintln!("cannot listen for ctrl-c: {error}");
        std::future::pending::<()>().await;
    }
}
