//! Transfers between two accounts in SQLite. Each request locks both accounts, in one layer, so
//! that no two transfers deadlock, and sends a fencing token along with each of its writes.
//!
//! ```text
//! cargo run --example transfer
//! ```
//!
//! starts two nodes of an axum service, sends them transfers in all directions at once, and tells
//! what became of the money. The locks are in Redis if `REDIS_URL` is set
//! (`redis://127.0.0.1:6379`), in this process if not.

mod locks;

use std::error::Error;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use axum::extract::{Path, State};
use axum::http::{Request, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Extension, Router};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rusqlite::{Connection, params};
use tokio::net::TcpListener;
use tower_distributed_lock::{DistributedLockLayer, Lease, Leases, LockManager};

type Failure = Box<dyn Error + Send + Sync>;

const ACCOUNTS: u32 = 5;
const EACH: i64 = 1_000;
const CLIENTS: u32 = 16;
const TRANSFERS: u32 = 10;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    // In a service, each node has a manager of its own.
    let managers = locks::connect([LockManager::builder(), LockManager::builder()]).await?;
    let (one, two) = (&managers[0], managers.last().expect("there is one"));
    let bank = Arc::new(Bank::open()?);
    let nodes = [serve(one, &bank).await?, serve(two, &bank).await?];

    let before = bank.balances()?;
    let began = Instant::now();
    let answers = transfer_in_all_directions(nodes).await?;
    let took = began.elapsed();
    let after = bank.balances()?;

    println!("\n{:<12}{:>8}{:>8}", "", "before", "after");
    for (account, (before, after)) in before.iter().zip(&after).enumerate() {
        println!("account {account:<4}{before:>8}{after:>8}");
    }
    let (sum, sum_after) = (before.iter().sum::<i64>(), after.iter().sum::<i64>());
    println!("{:<12}{sum:>8}{sum_after:>8}\n", "sum");
    println!(
        "{} transfers on two nodes took {took:.1?}:",
        CLIENTS * TRANSFERS
    );
    for (what, count) in answers {
        println!("  {count:>4}  {what}");
    }
    if sum != sum_after {
        return Err("money was made or lost".into());
    }
    println!("  the sum is what it was, and no request waited for ever");

    // A node that stood still until its lease ran out would come with an old token.
    let late = bank.write(0, 1_000_000, 1);
    println!(
        "a write with an old fencing token: {}",
        if late? { "done!" } else { "refused" }
    );
    one.close().await;
    two.close().await;
    Ok(())
}

/// Starts a node of the service.
async fn serve(locks: &LockManager, bank: &Arc<Bank>) -> Result<SocketAddr, Failure> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let app = app(locks.clone(), Arc::clone(bank));
    tokio::spawn(async move { axum::serve(listener, app).await });
    Ok(address)
}

fn app(locks: LockManager, bank: Arc<Bank>) -> Router {
    // Two layers, one for each account, would deadlock: a transfer from 1 to 2 has 1 and waits for
    // 2, and one from 2 to 1 the other way round. One layer that locks both takes them in an order
    // that all nodes share.
    let both_accounts = DistributedLockLayer::new(locks, |req| {
        let path = req.uri.path().strip_prefix("/transfers/")?;
        let mut ids = path.split('/').map(|id| id.parse::<u32>().ok());
        // An array is several keys, of which each is a tuple: account:1, account:2.
        Some([("account", ids.next()?), ("account", ids.next()?)])
    });
    Router::new()
        .route("/transfers/{from}/{to}/{amount}", post(transfer))
        .route_layer(both_accounts.wait(Duration::from_secs(10)))
        .with_state(bank)
}

/// Moves the amount from one account to the other: reads both balances, takes its time, and writes
/// both. Without the locks, two of these at once would make or lose money.
async fn transfer(
    State(bank): State<Arc<Bank>>,
    Path((from, to, amount)): Path<(u32, u32, i64)>,
    Extension(leases): Extension<Leases>,
) -> Result<&'static str, Failed> {
    if from == to || amount <= 0 {
        return Err(Failed::Refused("no such transfer"));
    }
    let (source, target) = (bank.balance(from)?, bank.balance(to)?);
    if source < amount {
        return Err(Failed::Refused("too little money"));
    }
    // Another service is asked about the transfer, say.
    tokio::time::sleep(Duration::from_millis(2)).await;
    let fencing_token = |account| {
        let lease = leases.get(("account", account));
        lease.map_or(0, Lease::fencing_token)
    };
    let writes = [
        (from, source - amount, fencing_token(from)),
        (to, target + amount, fencing_token(to)),
    ];
    match bank.write_all(&writes)? {
        true => Ok("transferred"),
        false => Err(Failed::Refused(
            "a later holder of a lock has already written",
        )),
    }
}

enum Failed {
    Refused(&'static str),
    Database(rusqlite::Error),
}

impl From<rusqlite::Error> for Failed {
    fn from(error: rusqlite::Error) -> Self {
        Self::Database(error)
    }
}

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        match self {
            Self::Refused(why) => (StatusCode::CONFLICT, why).into_response(),
            Self::Database(error) => {
                eprintln!("the database: {error}");
                StatusCode::INTERNAL_SERVER_ERROR.into_response()
            }
        }
    }
}

/// The accounts, in SQLite. Both nodes use it, as they would use one database.
struct Bank(Mutex<Connection>);

impl Bank {
    fn open() -> Result<Self, rusqlite::Error> {
        let database = Connection::open_in_memory()?;
        database.execute_batch(
            "CREATE TABLE accounts (
                 id INTEGER PRIMARY KEY,
                 balance INTEGER NOT NULL,
                 -- The highest fencing token that has written. It always fits.
                 fencing_token INTEGER NOT NULL DEFAULT 0
             )",
        )?;
        for account in 0..ACCOUNTS {
            let new = "INSERT INTO accounts (id, balance) VALUES (?1, ?2)";
            database.execute(new, params![account, EACH])?;
        }
        Ok(Self(Mutex::new(database)))
    }

    fn database(&self) -> MutexGuard<'_, Connection> {
        self.0.lock().expect("not poisoned")
    }

    fn balance(&self, account: u32) -> Result<i64, rusqlite::Error> {
        let read = "SELECT balance FROM accounts WHERE id = ?1";
        self.database().query_row(read, [account], |row| row.get(0))
    }

    fn balances(&self) -> Result<Vec<i64>, rusqlite::Error> {
        (0..ACCOUNTS).map(|account| self.balance(account)).collect()
    }

    fn write(&self, account: u32, balance: i64, token: u64) -> Result<bool, rusqlite::Error> {
        self.write_all(&[(account, balance, token)])
    }

    /// Writes all balances, or none if one comes from a holder that was overtaken. A lock alone
    /// cannot keep that out: a process may stand still until its lease has run out, and write
    /// before it can notice.
    fn write_all(&self, writes: &[(u32, i64, u64)]) -> Result<bool, rusqlite::Error> {
        let mut database = self.database();
        let transaction = database.transaction()?;
        for &(account, balance, token) in writes {
            let written = transaction.execute(
                "UPDATE accounts SET balance = ?2, fencing_token = ?3
                 WHERE id = ?1 AND fencing_token <= ?3",
                params![account, balance, token as i64],
            )?;
            if written == 0 {
                return Ok(false); // rolls back
            }
        }
        transaction.commit()?;
        Ok(true)
    }
}

/// Sends the transfers. Returns what the service answered, and how often.
async fn transfer_in_all_directions(nodes: [SocketAddr; 2]) -> Result<Vec<(String, u32)>, Failure> {
    let client: Client<HttpConnector, Full<Bytes>> =
        Client::builder(TokioExecutor::new()).build_http();
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move {
                let mut answers = Vec::new();
                for _ in 0..TRANSFERS {
                    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
                    let from = number % ACCOUNTS;
                    let to = (from + 1 + number / ACCOUNTS % (ACCOUNTS - 1)) % ACCOUNTS;
                    let amount = 1 + number * 37 % 400;
                    let node = nodes[number as usize % 2];
                    let uri = format!("http://{node}/transfers/{from}/{to}/{amount}");
                    let request = Request::post(uri).body(Full::default()).expect("valid");
                    answers.push(ask(&client, request).await?);
                }
                Ok::<_, Failure>(answers)
            })
        })
        .collect();
    let mut counted: Vec<(String, u32)> = Vec::new();
    for client in clients {
        for answer in client.await?? {
            match counted.iter_mut().find(|(what, _)| *what == answer) {
                Some((_, count)) => *count += 1,
                None => counted.push((answer, 1)),
            }
        }
    }
    Ok(counted)
}

async fn ask(
    client: &Client<HttpConnector, Full<Bytes>>,
    request: Request<Full<Bytes>>,
) -> Result<String, Failure> {
    let response = client.request(request).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    Ok(format!("{status}: {}", String::from_utf8_lossy(&body)))
}
