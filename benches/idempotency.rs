//! The cost of a delivery that is to be handled once, and of a replay of its response:
//! `cargo bench --bench idempotency`.
//!
//! All figures are ratios to commands written by hand, measured in the same run, in turns: for a
//! first delivery, `SET key token NX PX ttl` before the handler and `SET key record PX retention`
//! behind it, both awaited; for a replay, one `GET` of as many bytes as a record has. They go over
//! one multiplexed connection that all clients share.
//!
//! Words behind `--` choose parts: first, replay, many. `--quick` only shows that they run.

mod support;
#[path = "../tests/support/mod.rs"]
mod test_support;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use redis::aio::MultiplexedConnection;
use support::figures::{Figures, Goal, Turns, median};
use support::load::load;
use support::monitor::Monitor;
use support::options::{Parts, requests, rounds, time};
use support::orders::runtime;
use support::recipe::{Tokens, connection};
use test_support::RedisServer;
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_distributed_lock::{IdempotencyLayer, LockManager};

const ROUNDS: usize = 9;
/// Requests of one client in a round.
const REQUESTS: usize = 2000;
/// How long many clients send requests in a round.
const ROUND: Duration = Duration::from_millis(700);
const CLIENTS: usize = 64;

const PAYLOAD: &[u8] = &[b'p'; 1024];
const ANSWER: &[u8] = &[b'a'; 1024];

fn main() {
    runtime(2).block_on(run(&Parts::from_args()));
}

async fn run(parts: &Parts) {
    let server = Arc::new(RedisServer::start().await);
    let bench = Bench::new(&server).await;
    let mut figures = Figures::default();
    if parts.wants("first") {
        bench.first_deliveries(&mut figures).await;
    }
    if parts.wants("replay") {
        bench.replays(&mut figures).await;
    }
    if parts.wants("many") {
        bench.many_replays(&mut figures).await;
    }
    figures.print();
}

/// By hand, or through the layer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Hand,
    Layer,
}

#[derive(Clone)]
struct Bench {
    layer: IdempotencyLayer,
    server: Arc<RedisServer>,
    redis: MultiplexedConnection,
    tokens: Arc<Tokens>,
    /// As long as the record of a response.
    record: Bytes,
}

impl Bench {
    async fn new(server: &Arc<RedisServer>) -> Self {
        let locks = LockManager::connect(&server.url()).await.unwrap();
        let mut bench = Self {
            layer: IdempotencyLayer::new(locks),
            server: Arc::clone(server),
            redis: connection(&server.url()).await.unwrap(),
            tokens: Arc::new(Tokens::new()),
            record: Bytes::new(),
        };
        bench.deliver("a").await;
        let mut keys = redis::cmd("KEYS");
        let keys = keys.arg("*:record").query_async(&mut bench.redis).await;
        let [key] = keys.unwrap();
        let key: String = key;
        let mut length = redis::cmd("STRLEN");
        let length = length.arg(key).query_async(&mut bench.redis).await;
        let length: usize = length.unwrap();
        println!(
            "a record has {length} bytes, {} of them its body",
            ANSWER.len()
        );
        bench.record = vec![b'r'; length].into();
        bench
    }

    /// Sends a request through the layer and reads its response. Returns whether that was a replay.
    async fn deliver(&self, key: &str) -> bool {
        through(self.layer.layer(service_fn(handle)), key).await
    }

    /// Carries out a first delivery by hand.
    async fn by_hand(&self, key: &str) {
        let mut redis = self.redis.clone();
        let name = format!("hand:{key}");
        let token = self.tokens.next();
        let mut take = redis::cmd("SET");
        let take = take.arg(&name).arg(token).arg("NX").arg("PX").arg(10_000);
        let is_taken: bool = take.query_async(&mut redis).await.unwrap();
        assert!(is_taken);
        through(service_fn(handle), key).await;
        self.put(&name).await;
    }

    /// Puts a value under that name that stands for a record.
    async fn put(&self, name: &str) {
        let mut put = redis::cmd("SET");
        let put = put
            .arg(name)
            .arg(&self.record[..])
            .arg("PX")
            .arg(86_400_000);
        put.exec_async(&mut self.redis.clone()).await.unwrap();
    }

    async fn get(&self, name: &str) {
        let mut get = redis::cmd("GET");
        let value = get.arg(name).query_async(&mut self.redis.clone()).await;
        let value: Vec<u8> = value.unwrap();
        assert_eq!(value.len(), self.record.len());
    }

    /// Measures how long one client waits whose requests are all new.
    async fn first_deliveries(&self, figures: &mut Figures) {
        let hand = |bench: Self, key: String| async move { bench.by_hand(&key).await };
        let layer = |bench: Self, key: String| async move { assert!(!bench.deliver(&key).await) };
        let mut latencies = Turns::default();
        for round in 0..rounds(ROUNDS) {
            let prefix = round.to_string();
            latencies.add(Way::Hand, self.one_client(&prefix, hand).await);
            latencies.add(Way::Layer, self.one_client(&prefix, layer).await);
        }
        println!(
            "a first delivery, one client: {:.1} µs with two commands by hand, {:.1} µs through the layer",
            latencies.median(Way::Hand),
            latencies.median(Way::Layer)
        );
        let ratio = latencies.ratio(Way::Layer, Way::Hand);
        figures.add("first_delivery_1_client_vs_hand", ratio, &Goal::AtMost(1.1));
        let commands = self.commands("counted", layer).await;
        figures.note("commands_per_first_delivery", commands);
    }

    /// Measures how long one client waits whose requests were all completed before.
    async fn replays(&self, figures: &mut Figures) {
        self.deliver("done").await;
        self.put("done").await;
        let hand = |bench: Self, _| async move { bench.get("done").await };
        let layer = |bench: Self, _| async move { assert!(bench.deliver("done").await) };
        let mut latencies = Turns::default();
        for _ in 0..rounds(ROUNDS) {
            latencies.add(Way::Hand, self.one_client("", hand).await);
            latencies.add(Way::Layer, self.one_client("", layer).await);
        }
        println!(
            "a replay, one client: {:.1} µs for a GET, {:.1} µs through the layer",
            latencies.median(Way::Hand),
            latencies.median(Way::Layer)
        );
        let ratio = latencies.ratio(Way::Layer, Way::Hand);
        figures.add("replay_1_client_vs_get", ratio, &Goal::AtMost(1.1));
        let commands = self.commands("counted", layer).await;
        figures.note("commands_per_replay", commands);
    }

    /// Returns the median of the µs that each request took. No other request has its key.
    async fn one_client<F, R>(&self, prefix: &str, request: F) -> f64
    where
        F: Fn(Self, String) -> R + Send + 'static,
        R: Future<Output = ()> + Send,
    {
        let (bench, prefix) = (self.clone(), prefix.to_owned());
        let latencies = tokio::spawn(async move {
            let mut latencies = Vec::with_capacity(requests(REQUESTS));
            for number in 0..requests(REQUESTS) {
                let (bench, key) = (bench.clone(), format!("{prefix}-{number}"));
                let started = Instant::now();
                request(bench, key).await;
                latencies.push(started.elapsed().as_secs_f64() * 1e6);
            }
            latencies
        });
        median(&mut latencies.await.unwrap())
    }

    /// Returns the commands for each request. That is a run of its own, as counting costs Redis
    /// time.
    async fn commands<F, R>(&self, prefix: &str, request: F) -> f64
    where
        F: Fn(Self, String) -> R + Send + 'static,
        R: Future<Output = ()> + Send,
    {
        let monitor = Monitor::start(&self.server).await;
        self.one_client(prefix, request).await;
        monitor.stop().await as f64 / requests(REQUESTS) as f64
    }

    /// Measures how many completed requests many clients get through, each with a key of its own.
    async fn many_replays(&self, figures: &mut Figures) {
        for client in 0..CLIENTS {
            self.deliver(&client.to_string()).await;
            self.put(&client.to_string()).await;
        }
        let (mut rates, mut costs) = (Turns::default(), Turns::default());
        for _ in 0..rounds(ROUNDS) {
            let bench = self.clone();
            let hand = load(CLIENTS, time(ROUND), move |client, _| {
                let bench = bench.clone();
                async move { bench.get(&client.to_string()).await }
            });
            let (rate, cost) = hand.await;
            rates.add(Way::Hand, rate);
            costs.add(Way::Hand, cost);
            let bench = self.clone();
            let layer = load(CLIENTS, time(ROUND), move |client, _| {
                let bench = bench.clone();
                async move { assert!(bench.deliver(&client.to_string()).await) }
            });
            let (rate, cost) = layer.await;
            rates.add(Way::Layer, rate);
            costs.add(Way::Layer, cost);
        }
        println!(
            "replays, {CLIENTS} clients: {:.0} GETs/s ({:.1} µs of CPU each), {:.0} replays/s ({:.1} µs)",
            rates.median(Way::Hand),
            costs.median(Way::Hand),
            rates.median(Way::Layer),
            costs.median(Way::Layer),
        );
        let ratio = rates.ratio(Way::Layer, Way::Hand);
        let name = format!("replays_{CLIENTS}_clients_vs_get");
        figures.add(&name, ratio, &Goal::AtLeast(0.8));
    }
}

async fn handle<B>(_: Request<B>) -> Result<Response<Full<Bytes>>, Infallible> {
    let answer = Response::new(Full::new(Bytes::from_static(ANSWER)));
    Ok(answer)
}

/// Sends a POST of 1 KiB to a service and reads its response. Returns whether that was a replay.
async fn through<S, B>(mut service: S, key: &str) -> bool
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>, Error = Infallible>,
    B: http_body::Body<Data = Bytes, Error: std::fmt::Debug>,
{
    let request = Request::post("/payments")
        .header("idempotency-key", key)
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from_static(PAYLOAD)))
        .unwrap();
    let response = service.ready().await.unwrap().call(request).await.unwrap();
    assert_eq!(response.status(), 200);
    let is_replay = response.headers().contains_key("idempotent-replayed");
    let answer = response.into_body().collect().await.unwrap();
    assert_eq!(answer.to_bytes().len(), ANSWER.len());
    is_replay
}
