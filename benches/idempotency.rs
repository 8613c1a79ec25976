//! The cost of a delivery that is to be handled once, and of a replay of its response:
//! `cargo bench --bench idempotency`.
//!
//! All figures are ratios to commands written by hand, measured in the same run, in turns: for a
//! first delivery, `SET key token NX PX ttl` before the handler and `SET key record PX retention`
//! behind it, both awaited; for a replay, one `GET` of as many bytes as a record has. They go over
//! one multiplexed connection that all clients share.

mod support;
#[path = "../tests/support/mod.rs"]
mod test_support;

use std::convert::Infallible;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use redis::aio::MultiplexedConnection;
use support::recipe::connection;
use support::{Figures, Goal, load, median};
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
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(run());
}

async fn run() {
    let server = RedisServer::start().await;
    let bench = Bench::new(&server).await;
    let mut figures = Figures::default();
    // Words behind `--` choose parts: first, replay, many.
    let chosen: Vec<String> = std::env::args()
        .skip(1)
        .filter(|arg| !arg.starts_with('-'))
        .collect();
    let wants = |part: &str| chosen.is_empty() || chosen.iter().any(|chosen| chosen == part);
    if wants("first") {
        bench.first_deliveries(&mut figures).await;
    }
    if wants("replay") {
        bench.replays(&mut figures).await;
    }
    if wants("many") {
        bench.many_replays(&mut figures).await;
    }
    figures.print();
}

#[derive(Clone)]
struct Bench {
    layer: IdempotencyLayer,
    redis: MultiplexedConnection,
    /// As long as the record of a response.
    record: Bytes,
}

impl Bench {
    async fn new(server: &RedisServer) -> Self {
        let locks = LockManager::connect(&server.url()).await.unwrap();
        let mut bench = Self {
            layer: IdempotencyLayer::new(locks),
            redis: connection(&server.url()).await.unwrap(),
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
        let token = uuid::Uuid::new_v4().simple().to_string();
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

    async fn script_calls(&self) -> u64 {
        test_support::script_calls(&self.redis).await
    }

    /// Measures how long one client waits whose requests are all new.
    async fn first_deliveries(&self, figures: &mut Figures) {
        let (mut latencies, mut commands) = (Rounds::default(), 0);
        for round in 0..ROUNDS {
            let hand = self.one_client(round, |bench, key| async move {
                bench.by_hand(&key).await;
            });
            let hand = hand.await;
            let before = self.script_calls().await;
            let ours = self.one_client(round, |bench, key| async move {
                assert!(!bench.deliver(&key).await);
            });
            latencies.add(hand, ours.await);
            commands += self.script_calls().await - before;
        }
        let (hand, ours) = latencies.medians();
        println!(
            "a first delivery, one client: {hand:.1} µs with two commands by hand, {ours:.1} µs through the layer"
        );
        figures.add(
            "first_delivery_1_client_vs_hand",
            latencies.ratio(),
            &Goal::AtMost(1.3),
        );
        figures.add(
            "commands_per_first_delivery",
            commands as f64 / (ROUNDS * REQUESTS) as f64,
            &Goal::AtMost(2.0),
        );
    }

    /// Measures how long one client waits whose requests were all completed before.
    async fn replays(&self, figures: &mut Figures) {
        self.deliver("done").await;
        self.put("done").await;
        let (mut latencies, mut commands) = (Rounds::default(), 0);
        for round in 0..ROUNDS {
            let hand = self.one_client(round, |bench, _| async move {
                bench.get("done").await;
            });
            let hand = hand.await;
            let before = self.script_calls().await;
            let ours = self.one_client(round, |bench, _| async move {
                assert!(bench.deliver("done").await);
            });
            latencies.add(hand, ours.await);
            commands += self.script_calls().await - before;
        }
        let (hand, ours) = latencies.medians();
        println!("a replay, one client: {hand:.1} µs for a GET, {ours:.1} µs through the layer");
        figures.add(
            "replay_1_client_vs_get",
            latencies.ratio(),
            &Goal::AtMost(1.5),
        );
        figures.add(
            "commands_per_replay",
            commands as f64 / (ROUNDS * REQUESTS) as f64,
            &Goal::AtMost(1.0),
        );
    }

    /// Returns the µs that each request took. No other request of the round has its key.
    async fn one_client<F, R>(&self, round: usize, request: F) -> Vec<f64>
    where
        F: Fn(Self, String) -> R + Send + 'static,
        R: Future<Output = ()> + Send,
    {
        let bench = self.clone();
        let latencies = tokio::spawn(async move {
            let mut latencies = Vec::with_capacity(REQUESTS);
            for number in 0..REQUESTS {
                let (bench, key) = (bench.clone(), format!("{round}-{number}"));
                let started = Instant::now();
                request(bench, key).await;
                latencies.push(started.elapsed().as_secs_f64() * 1e6);
            }
            latencies
        });
        latencies.await.unwrap()
    }

    /// Measures how many completed requests many clients get through, each with a key of its own.
    async fn many_replays(&self, figures: &mut Figures) {
        for client in 0..CLIENTS {
            self.deliver(&client.to_string()).await;
            self.put(&client.to_string()).await;
        }
        let (mut rates, mut costs) = (Rounds::default(), Rounds::default());
        let (mut commands, mut requests) = (0, 0.0);
        for _ in 0..ROUNDS {
            let bench = self.clone();
            let hand = load(CLIENTS, ROUND, move |client, _| {
                let bench = bench.clone();
                async move { bench.get(&client.to_string()).await }
            });
            let (hand, hand_cost) = hand.await;
            let before = self.script_calls().await;
            let bench = self.clone();
            let ours = load(CLIENTS, ROUND, move |client, _| {
                let bench = bench.clone();
                async move { assert!(bench.deliver(&client.to_string()).await) }
            });
            let (ours, our_cost) = ours.await;
            commands += self.script_calls().await - before;
            requests += ours * ROUND.as_secs_f64();
            rates.add(vec![hand], vec![ours]);
            costs.add(vec![hand_cost], vec![our_cost]);
        }
        let ((hand, ours), (hand_cost, our_cost)) = (rates.medians(), costs.medians());
        println!(
            "replays, {CLIENTS} clients: {hand:.0} GETs/s ({hand_cost:.1} µs of CPU each), {ours:.0} replays/s \
             ({our_cost:.1} µs), {:.3} commands each",
            commands as f64 / requests,
        );
        figures.add(
            &format!("replays_{CLIENTS}_clients_vs_get"),
            rates.ratio(),
            &Goal::AtLeast(0.8),
        );
    }
}

/// The medians of rounds: by hand, and through the layer.
#[derive(Default)]
struct Rounds(Vec<(f64, f64)>);

impl Rounds {
    fn add(&mut self, mut hand: Vec<f64>, mut ours: Vec<f64>) {
        self.0.push((median(&mut hand), median(&mut ours)));
    }

    fn medians(&self) -> (f64, f64) {
        (self.median(|(hand, _)| hand), self.median(|(_, ours)| ours))
    }

    /// Returns the layer's value divided by that of the commands by hand in the same round.
    fn ratio(&self) -> f64 {
        self.median(|(hand, ours)| ours / hand)
    }

    fn median(&self, of: impl Fn((f64, f64)) -> f64) -> f64 {
        let mut values: Vec<f64> = self.0.iter().copied().map(of).collect();
        median(&mut values)
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
