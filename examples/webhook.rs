//! A receiver of webhooks that handles each event once, however often it is delivered, and on all
//! its nodes.
//!
//! ```text
//! cargo run --example webhook      # on 127.0.0.1:3000, or the port in PORT
//!
//! # Makes a signed delivery, as a line of curl. It is good for five minutes.
//! delivery=$(cargo run --quiet --example webhook -- sign evt_1 '{"type":"invoice.paid"}')
//! eval "$delivery" & eval "$delivery"; wait     # at the same time: one runs, the other gets 409
//! eval "$delivery"                              # later: the same response, and nothing runs
//!
//! # For an API, the client chooses the key, and the payload has to stay the same: 422.
//! curl -i http://127.0.0.1:3000/payments -H 'idempotency-key: order-42' -d 'amount=100'
//! curl -i http://127.0.0.1:3000/payments -H 'idempotency-key: order-42' -d 'amount=900'
//! ```
//!
//! The signature is that of [Standard Webhooks](https://www.standardwebhooks.com). The secret,
//! `whsec_…`, is in `WEBHOOK_SECRET`. Without it, there is one for a demonstration, which is no
//! secret.
//!
//! The responses are in Redis if `REDIS_URL` is set (`redis://127.0.0.1:6379`), in this process if
//! not. `examples/locks` says how to use Sentinel or a cluster.

mod locks;

use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::to_bytes;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum::routing::post;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use tokio::net::TcpListener;
use tokio::time::sleep;
use tower::ServiceBuilder;
use tower_distributed_lock::{IdempotencyLayer, LockManager};

/// Not a secret: it is here for all to read.
const DEMO_SECRET: &str = "whsec_dGhlIGRlbW8gc2VjcmV0LCBrbm93biB0byBhbGw=";

/// How far the time of a delivery may be from ours, in seconds. A stranger may have recorded an old
/// one.
const TOLERANCE: u64 = 5 * 60;

/// How long a delivery's body may be, in bytes. It is read before its signature is checked.
const MAX_BODY: usize = 256 * 1024;

/// How long the responses are kept: for longer than the sender tries again, which may be three
/// days.
const RETENTION: Duration = Duration::from_secs(4 * 24 * 3600);

/// How long the work takes: long enough to send a duplicate by hand.
const WORK: Duration = Duration::from_secs(2);

const USAGE: &str = "usage: cargo run --example webhook [-- sign ID BODY]

  (no argument)   receive webhooks on 127.0.0.1:3000 (another port: PORT)
  sign ID BODY    print a line of curl that delivers this event

WEBHOOK_SECRET, whsec_…: what the sender signs with
REDIS_URL, for example redis://127.0.0.1:6379: keep the answers in Redis instead of in memory
SENTINELS and SENTINEL_MASTER, or REDIS_CLUSTER: see examples/locks";

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args_os()
        .skip(1)
        .map(|argument| argument.to_string_lossy().into_owned())
        .collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match arguments[..] {
        [] => serve().await,
        ["sign", id, body] => sign(id, body),
        ["--help" | "-h"] => {
            println!("{USAGE}");
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

fn sign(id: &str, body: &str) -> Result<(), Box<dyn Error>> {
    println!("{}", curl(&secret()?, port()?, id, body));
    Ok(())
}

async fn serve() -> Result<(), Box<dyn Error>> {
    let port = port()?;
    let secret = secret()?;
    let locks = locks::connect([LockManager::builder()]).await?.remove(0);
    let listener = TcpListener::bind(("127.0.0.1", port))
        .await
        .map_err(|error| format!("cannot listen on 127.0.0.1:{port}: {error}"))?;
    println!("Listening on http://{}", listener.local_addr()?);
    axum::serve(listener, app(&locks, secret, WORK))
        .with_graceful_shutdown(ctrl_c())
        .await?;
    // A handler whose client has left goes on. This waits for it, and until Redis has its response.
    locks.close().await;
    Ok(())
}

pub(crate) fn app(locks: &LockManager, secret: Secret, work: Duration) -> Router {
    let each_event_once = IdempotencyLayer::webhook(locks.clone(), "webhook-id")
        // The sender tries again after everything else. The next deployment may know what to do
        // with the event.
        .remember(|status| status.is_success())
        .retention(RETENTION);

    // A real service also sets `.scope(…)`: a client must not get the response to another client's
    // key.
    let each_payment_once = IdempotencyLayer::new(locks.clone()).require_key(true);

    Router::new()
        .route(
            "/webhooks",
            post(receive).route_layer(
                ServiceBuilder::new()
                    // The first layer is the outermost: a stranger cannot use up an id, nor read a
                    // response.
                    .layer(from_fn_with_state(secret, verify))
                    .layer(each_event_once),
            ),
        )
        .route("/payments", post(pay).route_layer(each_payment_once))
        .with_state(Arc::new(Worker {
            work,
            runs: AtomicU64::new(0),
        }))
}

/// Runs once for each `webhook-id`, as long as it succeeds.
async fn receive(State(worker): State<Arc<Worker>>, headers: HeaderMap, event: String) -> String {
    // The layer lets nothing through that does not have exactly one such header.
    let id = headers["webhook-id"].to_str().unwrap_or_default();
    let run = worker.run(&format!("event {id}, {event}")).await;
    format!("event {id}: handled in run {run}\n")
}

/// Runs once for each `idempotency-key`.
async fn pay(State(worker): State<Arc<Worker>>, payment: String) -> String {
    let run = worker.run(&format!("payment {payment}")).await;
    format!("{payment}: paid in run {run}\n")
}

/// Stands for what must not be done twice.
struct Worker {
    work: Duration,
    runs: AtomicU64,
}

impl Worker {
    async fn run(&self, what: &str) -> u64 {
        let run = self.runs.fetch_add(1, Ordering::Relaxed) + 1;
        println!("run {run}: {what}");
        sleep(self.work).await;
        println!("run {run}: done");
        run
    }
}

// Standard Webhooks:
// https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md

type Refused = (StatusCode, String);

/// Lets nothing through but what the sender has signed, and has signed lately.
async fn verify(
    State(secret): State<Secret>,
    request: Request,
    next: Next,
) -> Result<Response, Refused> {
    let (parts, body) = request.into_parts();
    let unauthorized = |why: &str| (StatusCode::UNAUTHORIZED, format!("{why}\n"));
    let delivery = Delivery::of(&parts.headers).map_err(unauthorized)?;
    let body = to_bytes(body, MAX_BODY).await.map_err(|_| {
        // Or it did not arrive: then the client has gone, and never sees this.
        let why = "the body is too long\n".to_owned();
        (StatusCode::PAYLOAD_TOO_LARGE, why)
    })?;
    secret.verify(&delivery, &body).map_err(unauthorized)?;
    Ok(next.run(Request::from_parts(parts, body.into())).await)
}

/// What the headers of a delivery say.
struct Delivery<'a> {
    id: &'a str,
    timestamp: &'a str,
    signatures: &'a str,
}

impl<'a> Delivery<'a> {
    fn of(headers: &'a HeaderMap) -> Result<Self, &'static str> {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let id = text("webhook-id").ok_or("no webhook-id")?;
        let timestamp = text("webhook-timestamp").ok_or("no webhook-timestamp")?;
        let signatures = text("webhook-signature").ok_or("no webhook-signature")?;
        let sent: u64 = match timestamp.parse() {
            Ok(sent) if is_time(timestamp) => sent,
            _ => return Err("a webhook-timestamp that is not one"),
        };
        // In what is signed, it must be clear where the id ends: the first time behind a full stop
        // is that of the delivery. Otherwise a stranger whose text is in an event could have a part
        // of it taken for another event, which the sender never signed.
        if id.split('.').skip(1).any(is_time) {
            return Err("a webhook-id with a time behind a full stop");
        }
        if sent.abs_diff(now()) > TOLERANCE {
            return Err("a webhook-timestamp that is too far from now");
        }
        Ok(Self {
            id,
            timestamp,
            signatures,
        })
    }
}

/// Returns whether that looks like the time of a delivery: seconds since 1970, with ten digits
/// until the year 2286.
fn is_time(text: &str) -> bool {
    text.len() == 10 && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// What sender and receiver share.
#[derive(Clone)]
pub(crate) struct Secret(Hmac<Sha256>);

impl Secret {
    pub(crate) fn parse(secret: &str) -> Result<Self, &'static str> {
        let key = secret
            .strip_prefix("whsec_")
            .and_then(|key| BASE64_STANDARD.decode(key).ok())
            .ok_or("the secret must be whsec_ and base64 behind it")?;
        // A short one could be guessed, and with an empty one, anyone could sign.
        if key.len() < 16 {
            return Err("the secret must have 16 bytes or more");
        }
        let keyed = Hmac::new_from_slice(&key).map_err(|_| "the secret cannot be a key")?;
        Ok(Self(keyed))
    }

    fn mac(&self, id: &str, timestamp: &str, body: &[u8]) -> Hmac<Sha256> {
        let head = format!("{id}.{timestamp}.");
        self.0.clone().chain_update(head).chain_update(body)
    }

    pub(crate) fn sign(&self, id: &str, timestamp: &str, body: &[u8]) -> String {
        let mac = self.mac(id, timestamp, body).finalize();
        format!("v1,{}", BASE64_STANDARD.encode(mac.as_bytes()))
    }

    /// Checks that one of the signatures is right: while the sender changes its secret, there are
    /// two.
    fn verify(&self, delivery: &Delivery<'_>, body: &[u8]) -> Result<(), &'static str> {
        let mac = self.mac(delivery.id, delivery.timestamp, body);
        let is_right = |signature: &str| {
            let tag = signature.strip_prefix("v1,");
            let tag = tag.and_then(|tag| BASE64_STANDARD.decode(tag).ok());
            // In constant time: the time that it takes does not tell how much of it was right.
            tag.is_some_and(|tag| mac.clone().verify_slice(&tag).is_ok())
        };
        match delivery.signatures.split(' ').any(is_right) {
            true => Ok(()),
            false => Err("a webhook-signature that is not right"),
        }
    }
}

pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// Returns a delivery as a line for a shell.
pub(crate) fn curl(secret: &Secret, port: u16, id: &str, body: &str) -> String {
    let timestamp = now().to_string();
    let signature = secret.sign(id, &timestamp, body.as_bytes());
    format!(
        "curl -i http://127.0.0.1:{port}/webhooks -H {} -H 'webhook-timestamp: {timestamp}' \
         -H 'webhook-signature: {signature}' --data-raw {}",
        quoted(&format!("webhook-id: {id}")),
        quoted(body),
    )
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

fn secret() -> Result<Secret, Box<dyn Error>> {
    let secret = match std::env::var("WEBHOOK_SECRET") {
        Ok(secret) => secret,
        Err(_) => {
            eprintln!("warning: WEBHOOK_SECRET is not set. Everybody knows the demo secret.");
            DEMO_SECRET.to_owned()
        }
    };
    // Not printed if it is wrong.
    Ok(Secret::parse(&secret).map_err(|why| format!("WEBHOOK_SECRET: {why}"))?)
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
