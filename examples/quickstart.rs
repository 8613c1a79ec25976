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
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, Request, StatusCode};
use axum::routing::{get, post};
use axum::{Extension, Router};
use http_body_util::BodyExt;
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;
use tower_distributed_lock::lock::share_safe_methods;
use tower_distributed_lock::{DistributedLockLayer, Lease, Leases, LockManager, key};

type AnyError = Box<dyn Error + Send + Sync>;
type HttpClient = Client<HttpConnector, Body>;

/// How many requests are sent at once.
const REQUESTS: usize = 20;
/// How long requests wait for their turn.
const WAIT: Duration = Duration::from_secs(10);
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

/// Its routes all lock the account, so they also exclude each other: the pattern names the account
/// only, whatever follows it in the path. Those that only read share it. One locks two accounts.
fn app(locks: &LockManager, node: Node) -> Router {
    let account = key::path("/accounts/{id}/**");
    // Refuses at once while another request holds the account: 409.
    let now = DistributedLockLayer::new(locks.clone(), account.clone());
    // Waits for its turn, and gets a 409 only if that takes too long.
    let queued = DistributedLockLayer::new(locks.clone(), account)
        .mode(share_safe_methods)
        .wait(WAIT);
    // Locks both accounts, or none.
    let both = DistributedLockLayer::new(locks.clone(), two_accounts).wait(WAIT);
    Router::new()
        .route(
            "/accounts/{id}/transfer-now",
            post(use_account).route_layer(now),
        )
        .route(
            "/accounts/{id}/transfer",
            post(use_account).route_layer(queued.clone()),
        )
        .route("/accounts/{id}", get(use_account).route_layer(queued))
        .route(
            "/transfers/{from}/{to}",
            post(use_accounts).route_layer(both),
        )
        .with_state(node)
}

/// Makes two keys of `/transfers/7/8`: `accounts:7` and `accounts:8`, as the pattern above does.
fn two_accounts(request: &Parts) -> Option<[(&'static str, String); 2]> {
    let (from, to) = request
        .uri
        .path()
        .strip_prefix("/transfers/")?
        .split_once('/')?;
    Some([from, to].map(|account| ("accounts", account.to_owned())))
}

async fn use_account(
    State(node): State<Node>,
    Extension(lease): Extension<Lease>,
    headers: HeaderMap,
) -> Result<String, StatusCode> {
    work(&node, &[lease], &headers).await
}

async fn use_accounts(
    State(node): State<Node>,
    Extension(leases): Extension<Leases>,
    headers: HeaderMap,
) -> Result<String, StatusCode> {
    work(&node, leases.as_slice(), &headers).await
}

/// Runs while its request holds these locks. It takes its time, and writes down when.
async fn work(
    Node { name, bank }: &Node,
    leases: &[Lease],
    headers: &HeaderMap,
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
    let mut message = String::new();
    for lease in leases {
        let (account, token) = (lease.key().as_str().to_owned(), lease.fencing_token());
        message += &format!("{account}: done, with fencing token {token}\n");
        bank.held.lock().expect("not poisoned").push(Interval {
            request: number(headers),
            node: *name,
            account,
            token,
            start,
            end: Instant::now(),
        });
    }
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

/// One request, while it held a lock.
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

Two that only read: both run at the same time. (Change one into a POST to its /transfer.)

  curl -i http://{at}/accounts/7 & \\
  curl -i http://{at}/accounts/7; wait

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

// Without `--serve`: four phases, each of them checked.

/// Some requests, and what has to come of them.
struct Phase {
    title: &'static str,
    /// The method and the path of the request with this number. `{1}` and `{2}` stand for accounts.
    request: fn(usize) -> (Method, String),
    /// When the request with this number is sent, and when a handler may end. Both wait for an
    /// event, and not only for some time: so the check does not depend on how fast this machine is.
    is_due: fn(usize, &Progress) -> bool,
    finish: fn(&Progress) -> bool,
    check: fn(&Outcome) -> Vec<String>,
}

const PHASES: [Phase; 4] = [
    Phase {
        title: "20 requests at once for one account, without waiting: one runs, 19 get a 409",
        request: |_| (Method::POST, "/accounts/{1}/transfer-now".to_owned()),
        is_due: |_, _| true,
        // The holder stays until all others have had their response. So all of them came while it
        // held the lock.
        finish: |progress| progress.refused == REQUESTS - 1,
        check: check_refused,
    },
    Phase {
        title: "20 requests at once for one account, waiting up to 10 s: all run, one after the other",
        request: |_| (Method::POST, "/accounts/{1}/transfer".to_owned()),
        is_due: |_, _| true,
        finish: |_| true,
        check: check_serial,
    },
    Phase {
        title: "20 requests at once for 20 accounts: all run at the same time",
        request: |number| (Method::POST, format!("/accounts/{{{number}}}/transfer")),
        is_due: |_, _| true,
        // No handler ends before all have begun. If one of them had to wait for another, none would
        // end.
        finish: |progress| progress.begun == REQUESTS,
        check: check_parallel,
    },
    Phase {
        title: "18 requests that read one account, one that changes it, and a transfer between two accounts: \
                readers share it, the others have it alone",
        request: |number| match number {
            WRITER => (Method::POST, "/accounts/{1}/transfer".to_owned()),
            BETWEEN_TWO => (Method::POST, "/transfers/{2}/{1}".to_owned()),
            _ => (Method::GET, "/accounts/{1}".to_owned()),
        },
        // Each comes while those before it hold the account.
        is_due: |number, progress| match number {
            WRITER | BETWEEN_TWO => progress.begun >= number - 1,
            _ => true,
        },
        // The readers stay until all of them have begun.
        finish: |progress| progress.begun >= READERS,
        check: check_shared,
    },
];

/// In the last phase.
const READERS: usize = REQUESTS - 2;
const WRITER: usize = READERS + 1;
const BETWEEN_TWO: usize = READERS + 2;

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
    let mut progress = bank.progress.subscribe();
    for number in 1..=REQUESTS {
        let is_due = progress.wait_for(|progress| (phase.is_due)(number, progress));
        timeout(PATIENCE, is_due)
            .await
            .map_err(|_| "the requests before do not begin")??;
        let address = servers[number % servers.len()].address;
        let (method, path) = (phase.request)(number);
        let path = path.replace('{', &format!("{run}-")).replace('}', "");
        let request = Request::builder()
            .method(method)
            .uri(format!("http://{address}{path}"))
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
    held.sort_by_key(|interval| (interval.start, interval.request));
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

fn check_shared(outcome: &Outcome) -> Vec<String> {
    let mut problems = Vec::new();
    expect_answers(outcome, &[("200", REQUESTS)], &mut problems);
    let of = |request| {
        outcome
            .held
            .iter()
            .filter(move |held| held.request == request)
    };
    let readers: Vec<_> = (1..=READERS).flat_map(of).collect();
    let (writer, between): (Vec<_>, Vec<_>) = (of(WRITER).collect(), of(BETWEEN_TWO).collect());
    let counts = (readers.len(), writer.len(), between.len());
    if counts != (READERS, 1, 2) {
        problems.push(format!(
            "readers, writer and transfer held {counts:?} locks"
        ));
        return problems;
    }
    let most = most_at_once(&outcome.held);
    if most != READERS {
        problems.push(format!("{most} held a lock at once, not {READERS}"));
    }
    let account = &writer[0].account;
    let on_it: Vec<_> = between
        .iter()
        .filter(|held| held.account == *account)
        .collect();
    let in_turn = readers.iter().map(|reader| (*reader, writer[0]));
    for (first, second) in in_turn.chain(on_it.iter().map(|held| (writer[0], **held))) {
        if first.end > second.start || first.token >= second.token {
            let (first, second) = (first.request, second.request);
            problems.push(format!("request {second} was not behind request {first}"));
        }
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
