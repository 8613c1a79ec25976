//! Shows what the lock does, and checks it: a real server, real HTTP requests, and a picture of who
//! held which lock when.
//!
//! ```text
//! cargo run --example quickstart               # sends requests, checks the responses
//! cargo run --example quickstart -- --serve    # keeps a server on 127.0.0.1:3000 (PORT), for curl
//! ```
//!
//! The first exits with 0 if all is as it should be. If `REDIS_URL` is set
//! (`redis://127.0.0.1:6379`), the locks are in Redis, and it runs two nodes, which have nothing
//! but Redis in common; if not, the locks are in this process, and it runs one. `examples/locks`
//! says how to use Sentinel or a cluster.

mod locks;

use std::collections::BTreeMap;
use std::error::Error;
use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, Request, StatusCode};
use axum::routing::post;
use axum::{Extension, Router};
use http_body_util::BodyExt;
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;
use tower_distributed_lock::{DistributedLockLayer, Lease, LockManager, key};

type AnyError = Box<dyn Error + Send + Sync>;
type HttpClient = Client<HttpConnector, Body>;

/// How many requests are sent at once.
const REQUESTS: usize = 20;
/// How long a transfer takes, at least.
const WORK: Duration = Duration::from_millis(50);
/// How long it takes with `--serve`: long enough to try it by hand.
const WORK_BY_HAND: Duration = Duration::from_secs(3);
/// How long a handler waits for the other requests before the check counts as failed.
const PATIENCE: Duration = Duration::from_secs(8);

/// Prints a line. A reader that has gone away (`| head`) ends neither the check nor the server.
macro_rules! say {
    ($($text:tt)*) => {
        let _ = writeln!(std::io::stdout(), $($text)*);
    };
}

const USAGE: &str = "usage: cargo run --example quickstart [-- --serve]

  (no argument)   send requests to a server of its own, check the answers, and draw who held the lock when
  --serve         keep the server on 127.0.0.1:3000, for curl (another port: PORT)

REDIS_URL, for example redis://127.0.0.1:6379: keep the locks in Redis instead of in memory, and run two nodes
SENTINELS and SENTINEL_MASTER, or REDIS_CLUSTER (examples/cluster.sh starts one): the same";

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args_os()
        .skip(1)
        .map(|argument| argument.to_string_lossy().into_owned())
        .collect();
    let result = match arguments.join(" ").as_str() {
        "" => check().await,
        "--serve" => serve_for_curl().await,
        "--help" | "-h" => {
            say!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

// The service: this is what an application would have.

/// Has two routes to the same transfer. Both lock the account, so they also exclude each other: the
/// pattern names the account only, whatever follows it in the path.
fn app(locks: &LockManager, node: Node) -> Router {
    let account = key::path("/accounts/{id}/**");
    // Refuses at once while another request holds the account: 409.
    let now = DistributedLockLayer::new(locks.clone(), account.clone());
    // Waits for its turn, and gets a 409 only if that takes too long.
    let queued = DistributedLockLayer::new(locks.clone(), account).wait(Duration::from_secs(10));
    Router::new()
        .route(
            "/accounts/{id}/transfer-now",
            post(transfer).route_layer(now),
        )
        .route(
            "/accounts/{id}/transfer",
            post(transfer).route_layer(queued),
        )
        .with_state(node)
}

/// Runs while its request holds the lock of the account. It takes its time, and writes down when.
async fn transfer(
    State(Node { name, bank }): State<Node>,
    Path(account): Path<String>,
    Extension(lease): Extension<Lease>,
    headers: HeaderMap,
) -> Result<String, StatusCode> {
    let start = Instant::now();
    bank.progress.send_modify(|progress| progress.begun += 1);
    tokio::time::sleep(bank.work).await;
    // In the check, some handlers also wait for what the other requests do: see `Phase`.
    let mut progress = bank.progress.subscribe();
    if timeout(PATIENCE, progress.wait_for(bank.finish))
        .await
        .is_err()
    {
        return Err(StatusCode::GATEWAY_TIMEOUT);
    }
    let token = lease.fencing_token();
    let message = format!("account {account}: done, with fencing token {token}\n");
    bank.held.lock().expect("not poisoned").push(Interval {
        request: number(&headers),
        node: name,
        account,
        token,
        start,
        end: Instant::now(),
    });
    Ok(message)
}

/// A server, and what its handlers share with those of the other one. That stands for a database,
/// and for the client's view: the locks are not in it.
#[derive(Clone)]
struct Node {
    name: char,
    bank: Arc<Bank>,
}

struct Bank {
    work: Duration,
    /// Whether enough has happened for a handler to end.
    finish: fn(&Progress) -> bool,
    progress: watch::Sender<Progress>,
    held: Mutex<Vec<Interval>>,
}

#[derive(Default)]
struct Progress {
    /// Handlers that have begun.
    begun: usize,
    /// Requests that were refused with 409, as the client sees it.
    refused: usize,
}

/// One request, while it held the lock.
struct Interval {
    request: usize,
    node: char,
    account: String,
    token: u64,
    start: Instant,
    end: Instant,
}

impl Bank {
    fn new(work: Duration, finish: fn(&Progress) -> bool) -> Arc<Self> {
        Arc::new(Self {
            work,
            finish,
            progress: watch::Sender::new(Progress::default()),
            held: Mutex::default(),
        })
    }
}

const NUMBER: &str = "x-request-number";

fn number(headers: &HeaderMap) -> usize {
    let text = headers.get(NUMBER).and_then(|value| value.to_str().ok());
    text.and_then(|text| text.parse().ok()).unwrap_or(0)
}

// With `--serve`.

async fn serve_for_curl() -> Result<(), AnyError> {
    let port: u16 = match std::env::var("PORT") {
        Ok(port) => port
            .parse()
            .map_err(|_| format!("PORT is {port:?}, which is not the number of a port"))?,
        Err(_) => 3000,
    };
    let locks = locks::connect([LockManager::builder()]).await?.remove(0);
    let listener = TcpListener::bind(("127.0.0.1", port))
        .await
        .map_err(|error| {
            format!("cannot listen on 127.0.0.1:{port}: {error} (PORT=… chooses another port)")
        })?;
    let at = listener.local_addr()?;
    say!(
        "Listening on http://{at}. A transfer takes {WORK_BY_HAND:?}. Ctrl-C ends it.

Two at once without waiting: one runs, the other gets 409 and a body of application/problem+json.

  curl -i -X POST http://{at}/accounts/7/transfer-now & \\
  curl -i -X POST http://{at}/accounts/7/transfer-now; wait

Two at once that wait: both run, one after the other, and the second has the higher fencing token.

  curl -i -X POST http://{at}/accounts/7/transfer & \\
  curl -i -X POST http://{at}/accounts/7/transfer; wait

Two accounts: both run at the same time.

  curl -i -X POST http://{at}/accounts/7/transfer-now & \\
  curl -i -X POST http://{at}/accounts/8/transfer-now; wait

Next: two nodes on one Redis. Start each in a terminal, and send the lines above to both.

  REDIS_URL=redis://127.0.0.1:6379 PORT={port} cargo run --example quickstart -- --serve
  REDIS_URL=redis://127.0.0.1:6379 PORT={} cargo run --example quickstart -- --serve

Then: cargo run --example webhook, which handles what arrives twice once.
",
        port.saturating_add(1)
    );
    let bank = Bank::new(WORK_BY_HAND, |_| true);
    let app = app(&locks, Node { name: 'A', bank });
    axum::serve(listener, app)
        .with_graceful_shutdown(ctrl_c())
        .await?;
    // All requests are over. This waits until Redis has the releases as well. Otherwise a lock
    // could stay taken until its time to live is over.
    locks.close().await;
    Ok(())
}

async fn ctrl_c() {
    if let Err(error) = tokio::signal::ctrl_c().await {
        eprintln!("cannot listen for ctrl-c: {error}");
        std::future::pending::<()>().await;
    }
}

// Without `--serve`: three phases, each of them checked.

/// Some requests that are sent at once, and what has to come of them.
struct Phase {
    title: &'static str,
    route: &'static str,
    /// One account for all requests, or one for each.
    same_account: bool,
    /// When a handler may end. It waits for an event, and not only for some time: so the check does
    /// not depend on how fast this machine is.
    finish: fn(&Progress) -> bool,
    check: fn(&Outcome) -> Vec<String>,
}

const PHASES: [Phase; 3] = [
    Phase {
        title: "20 requests at once for one account, without waiting: one runs, 19 get a 409",
        route: "transfer-now",
        same_account: true,
        // The holder stays until all others have had their response. So all of them came while it
        // held the lock.
        finish: |progress| progress.refused == REQUESTS - 1,
        check: check_refused,
    },
    Phase {
        title: "20 requests at once for one account, waiting up to 10 s: all run, one after the other",
        route: "transfer",
        same_account: true,
        finish: |_| true,
        check: check_serial,
    },
    Phase {
        title: "20 requests at once for 20 accounts: all run at the same time",
        route: "transfer",
        same_account: false,
        // No handler ends before all have begun. If one of them had to wait for another, none would
        // end.
        finish: |progress| progress.begun == REQUESTS,
        check: check_parallel,
    },
];

struct Outcome {
    began: Instant,
    /// How many responses there were, by status, and by content type where it is not 200.
    answers: BTreeMap<String, usize>,
    /// When the request of each number was sent.
    sent: BTreeMap<usize, Instant>,
    /// In order of holding.
    held: Vec<Interval>,
}

async fn check() -> Result<(), AnyError> {
    let locks = locks::connect([LockManager::builder(), LockManager::builder()]).await?;
    match locks.len() {
        1 => {
            say!("Nodes: one, A (with REDIS_URL: two)");
        }
        _ => {
            say!("Nodes: two, A and B, which take turns with the requests");
        }
    }
    say!("Time goes from left to right: · the request waits, █ it holds the lock.");
    let problems = tokio::select! {
        problems = run_phases(&locks) => problems,
        () = ctrl_c() => Err("interrupted: not everything was checked".into()),
    };
    for locks in &locks {
        locks.close().await;
    }
    let problems = problems?;
    if problems.is_empty() {
        say!(
            "\nEverything was as it should be. By hand: cargo run --example quickstart -- --serve"
        );
        return Ok(());
    }
    Err(format!("not as it should be:\n  {}", problems.join("\n  ")).into())
}

async fn run_phases(locks: &[LockManager]) -> Result<Vec<String>, AnyError> {
    let mut problems = Vec::new();
    for (index, phase) in PHASES.iter().enumerate() {
        say!("\n{}. {}\n", index + 1, phase.title);
        let outcome = run(locks, phase).await?;
        draw(&outcome);
        problems.extend(
            (phase.check)(&outcome)
                .into_iter()
                .map(|problem| format!("phase {}: {problem}", index + 1)),
        );
    }
    Ok(problems)
}

/// A server that runs.
struct Server {
    address: SocketAddr,
    stop: watch::Sender<()>,
    ended: JoinHandle<std::io::Result<()>>,
}

impl Server {
    async fn start(locks: &LockManager, node: Node) -> Result<Self, AnyError> {
        let listener = TcpListener::bind(("127.0.0.1", 0))
            .await
            .map_err(|error| format!("cannot listen on 127.0.0.1: {error}"))?;
        let address = listener.local_addr()?;
        let (stop, mut stopped) = watch::channel(());
        let serving = axum::serve(listener, app(locks, node))
            .with_graceful_shutdown(async move {
                // Told to stop, or abandoned because of ctrl-c.
                let _ = stopped.changed().await;
            })
            .into_future();
        Ok(Self {
            address,
            stop,
            ended: tokio::spawn(serving),
        })
    }
}

/// Starts a server for each node, sends the requests of a phase to them in turn, and stops them.
async fn run(locks: &[LockManager], phase: &Phase) -> Result<Outcome, AnyError> {
    let bank = Bank::new(WORK, phase.finish);
    let mut servers = Vec::new();
    for (locks, name) in locks.iter().zip('A'..) {
        let bank = Arc::clone(&bank);
        servers.push(Server::start(locks, Node { name, bank }).await?);
    }

    // Part of each account's name: another run may use the same Redis at the same time.
    let run = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
    let client: HttpClient = Client::builder(TokioExecutor::new()).build_http();
    let began = Instant::now();
    let mut sent = BTreeMap::new();
    let mut requests = JoinSet::new();
    for number in 1..=REQUESTS {
        let account = if phase.same_account { 1 } else { number };
        let address = servers[number % servers.len()].address;
        let request = Request::post(format!(
            "http://{address}/accounts/{run}-{account}/{}",
            phase.route
        ))
        .header(NUMBER, number)
        .body(Body::empty())?;
        sent.insert(number, Instant::now());
        requests.spawn(send(client.clone(), request));
    }
    let mut answers = BTreeMap::new();
    while let Some(answer) = requests.join_next().await {
        let (status, content_type) = answer??;
        if status == StatusCode::CONFLICT {
            bank.progress.send_modify(|progress| progress.refused += 1);
        }
        let answer = match status {
            StatusCode::OK => status.as_u16().to_string(),
            _ => format!("{} ({content_type})", status.as_u16()),
        };
        *answers.entry(answer).or_default() += 1;
    }

    drop(client); // and with it its idle connections
    for server in servers {
        let _ = server.stop.send(());
        server.ended.await??;
    }
    let mut held = std::mem::take(&mut *bank.held.lock().expect("not poisoned"));
    held.sort_by_key(|interval| interval.start);
    Ok(Outcome {
        began,
        answers,
        sent,
        held,
    })
}

/// Sends one request, over a connection of its own while the others are busy.
async fn send(
    client: HttpClient,
    request: Request<Body>,
) -> Result<(StatusCode, String), AnyError> {
    let response = client.request(request).await?;
    let (head, body) = response.into_parts();
    body.collect().await?;
    let content_type = head.headers.get(CONTENT_TYPE);
    let content_type = content_type.and_then(|value| value.to_str().ok());
    Ok((head.status, content_type.unwrap_or("no type").to_owned()))
}

const REFUSED: &str = "409 (application/problem+json)";

fn check_refused(outcome: &Outcome) -> Vec<String> {
    let mut problems = Vec::new();
    expect_answers(
        outcome,
        &[("200", 1), (REFUSED, REQUESTS - 1)],
        &mut problems,
    );
    expect_held(outcome, 1, &mut problems);
    problems
}

fn check_serial(outcome: &Outcome) -> Vec<String> {
    let mut problems = Vec::new();
    expect_answers(outcome, &[("200", REQUESTS)], &mut problems);
    expect_held(outcome, REQUESTS, &mut problems);
    for pair in outcome.held.windows(2) {
        let (first, second) = (&pair[0], &pair[1]);
        let names = format!("requests {} and {}", first.request, second.request);
        if first.end > second.start {
            problems.push(format!("{names} held the lock at the same time"));
        }
        if first.token >= second.token {
            problems.push(format!("{names}: the fencing token did not rise"));
        }
    }
    problems
}

fn check_parallel(outcome: &Outcome) -> Vec<String> {
    let mut problems = Vec::new();
    expect_answers(outcome, &[("200", REQUESTS)], &mut problems);
    expect_held(outcome, REQUESTS, &mut problems);
    let most = most_at_once(&outcome.held);
    if most != REQUESTS {
        problems.push(format!("{most} ran at once, not {REQUESTS}"));
    }
    problems
}

fn expect_answers(outcome: &Outcome, expected: &[(&str, usize)], problems: &mut Vec<String>) {
    let expected: BTreeMap<String, usize> = expected
        .iter()
        .map(|&(answer, count)| (answer.to_owned(), count))
        .collect();
    if outcome.answers != expected {
        problems.push(format!(
            "expected {}, got {}",
            list(&expected),
            list(&outcome.answers)
        ));
    }
}

fn expect_held(outcome: &Outcome, expected: usize, problems: &mut Vec<String>) {
    let requests: std::collections::BTreeSet<_> =
        outcome.held.iter().map(|held| held.request).collect();
    if outcome.held.len() != expected || requests.len() != expected {
        problems.push(format!(
            "{} requests held a lock {} times, not {expected}",
            requests.len(),
            outcome.held.len()
        ));
    }
}

fn list(answers: &BTreeMap<String, usize>) -> String {
    let answers: Vec<String> = answers
        .iter()
        .map(|(answer, count)| format!("{count} × {answer}"))
        .collect();
    answers.join(", ")
}

/// Returns how many locks were held at once, at the most. It looks at the moments at which one was
/// taken: their number is highest at one of those.
fn most_at_once(held: &[Interval]) -> usize {
    let at = |moment| {
        let holders = held
            .iter()
            .filter(|held| held.start <= moment && moment < held.end);
        holders.count()
    };
    held.iter().map(|held| at(held.start)).max().unwrap_or(0)
}

/// Draws one row for each request that held a lock.
fn draw(outcome: &Outcome) {
    const COLUMNS: usize = 60;
    let Outcome { began, held, .. } = outcome;
    let last = held.iter().map(|held| held.end).max().unwrap_or(*began);
    let total = last - *began;
    let column = |moment: Instant| {
        let passed = moment.saturating_duration_since(*began).as_secs_f64();
        // The number of a column is small and positive.
        (passed / total.as_secs_f64() * COLUMNS as f64) as usize
    };
    let (green, plain) = match std::io::stdout().is_terminal() {
        true => ("\x1b[32m", "\x1b[0m"),
        false => ("", ""),
    };
    let scale = format!("{} ms", total.as_millis());
    say!(
        "  request  node        fencing token  0{scale:>width$}",
        width = COLUMNS - 1
    );
    for held in held {
        let start = column(held.start).min(COLUMNS - 1);
        let end = column(held.end).clamp(start + 1, COLUMNS); // at least one column
        let sent = column(outcome.sent[&held.request]).min(start);
        say!(
            "  {:>7}  {:>4}  {:>19}  {}{}{green}{}{plain}{}|",
            held.request,
            held.node,
            held.token,
            " ".repeat(sent),
            "·".repeat(start - sent),
            "█".repeat(end - start),
            " ".repeat(COLUMNS - end),
        );
    }
    let accounts: std::collections::BTreeSet<_> = held.iter().map(|held| &held.account).collect();
    let count = accounts.len();
    say!(
        "\n  answers:    {}\n  locks held: {} on {count} account{}, at most {} at once",
        list(&outcome.answers),
        held.len(),
        if count == 1 { "" } else { "s" },
        most_at_once(held),
    );
}
