//! What the layer costs a request that nobody contends with: `cargo bench --bench overhead`.
//!
//! All figures are ratios to a reference measured in the same run, in turns with it. The reference on Redis is the
//! textbook recipe written by hand: `SET key token NX PX ttl`, the work, then a compare-and-delete by `EVALSHA`,
//! both awaited, on one multiplexed connection that all clients share.

#[path = "../tests/common/mod.rs"]
mod common;
mod support;

use std::convert::Infallible;
use std::hint::black_box;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::RedisServer;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use redis::aio::MultiplexedConnection;
use support::{Figures, Goal, load, median};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_distributed_lock::{DistributedLockLayer, LockManager};

const ROUNDS: usize = 7;
const WRK_SECONDS: u32 = 2;
const ROUND: Duration = Duration::from_millis(700);

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
    let mut figures = Figures::default();
    // Words behind `--` choose parts: memory, one, many, http.
    let chosen: Vec<String> = std::env::args()
        .skip(1)
        .filter(|arg| !arg.starts_with('-'))
        .collect();
    let wants = |part: &str| chosen.is_empty() || chosen.iter().any(|chosen| chosen == part);
    if wants("memory") {
        in_memory(&mut figures).await;
    }
    if wants("one") {
        one_client(&server, &mut figures).await;
    }
    if wants("many") {
        many_clients(&server, &mut figures).await;
    }
    if wants("http") {
        over_http(&server, &mut figures).await;
    }
    figures.print();
}

async fn hello(_: Request<()>) -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(Response::new(Full::new(Bytes::from_static(b"hello"))))
}

/// A request for a key of its own, through a service and to the end of its body.
async fn through<S, B>(mut service: S, key: String)
where
    S: Service<Request<()>, Response = Response<B>, Error = Infallible>,
    B: http_body::Body<Data = Bytes, Error: std::fmt::Debug>,
{
    let request = Request::builder().uri(key).body(()).unwrap();
    let response = service.ready().await.unwrap().call(request).await.unwrap();
    assert_eq!(response.status(), 200);
    black_box(response.into_body().collect().await.unwrap());
}

fn layer(locks: &LockManager) -> DistributedLockLayer {
    DistributedLockLayer::new(locks.clone(), |req| Some(req.uri.path().to_owned()))
}

/// The recipe, by hand.
#[derive(Clone)]
struct ByHand {
    redis: MultiplexedConnection,
    release: Arc<redis::Script>,
}

impl ByHand {
    async fn new(server: &RedisServer) -> Self {
        use redis::IntoConnectionInfo;
        let info = server.url().into_connection_info().unwrap();
        let tcp = redis::io::tcp::TcpSettings::default().set_nodelay(true);
        let client = redis::Client::open(info.set_tcp_settings(tcp)).unwrap();
        let release = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0";
        Self {
            redis: client.get_multiplexed_async_connection().await.unwrap(),
            release: Arc::new(redis::Script::new(release)),
        }
    }

    async fn locked(mut self, key: String) {
        let token = uuid::Uuid::new_v4().simple().to_string();
        let name = format!("hand:{key}");
        let taken: bool = redis::cmd("SET")
            .arg(&name)
            .arg(&token)
            .arg("NX")
            .arg("PX")
            .arg(10_000)
            .query_async(&mut self.redis)
            .await
            .unwrap();
        assert!(taken);
        through(service_fn(hello), key).await;
        let released: u32 = self
            .release
            .key(&name)
            .arg(&token)
            .invoke_async(&mut self.redis)
            .await
            .unwrap();
        assert_eq!(released, 1);
    }
}

/// The cost of the layer itself, without Redis.
async fn in_memory(figures: &mut Figures) {
    const REQUESTS: u32 = 100_000;
    let locks = LockManager::in_memory();
    let (mut bare, mut locked) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        for (with_layer, times) in [(false, &mut bare), (true, &mut locked)] {
            let locked = layer(&locks).layer(service_fn(hello));
            let started = Instant::now();
            for _ in 0..REQUESTS {
                match with_layer {
                    true => through(locked.clone(), "/a".to_owned()).await,
                    false => through(service_fn(hello), "/a".to_owned()).await,
                }
            }
            times.push(started.elapsed().as_secs_f64() * 1e6 / f64::from(REQUESTS));
        }
    }
    let (bare, locked) = (median(&mut bare), median(&mut locked));
    println!("in memory: a bare service {bare:.2} µs a request, with the layer {locked:.2} µs");
    figures.add("memory_added_us", locked - bare, &Goal::AtMost(2.0));
}

/// What one client waits for.
async fn one_client(server: &RedisServer, figures: &mut Figures) {
    const REQUESTS: u64 = 3000;
    let by_hand = ByHand::new(server).await;
    let locks = LockManager::connect(&server.url()).await.unwrap();
    let (mut hand, mut ours) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        for (with_layer, times) in [(false, &mut hand), (true, &mut ours)] {
            let (by_hand, locked) = (by_hand.clone(), layer(&locks).layer(service_fn(hello)));
            let latencies = tokio::spawn(async move {
                let mut latencies = Vec::new();
                for number in 0..REQUESTS {
                    let key = format!("/{number}");
                    let started = Instant::now();
                    match with_layer {
                        true => through(locked.clone(), key).await,
                        false => by_hand.clone().locked(key).await,
                    }
                    latencies.push(started.elapsed().as_secs_f64() * 1e6);
                }
                latencies
            });
            times.extend(latencies.await.unwrap());
        }
    }
    let bare_started = Instant::now();
    for _ in 0..REQUESTS {
        through(service_fn(hello), "/a".to_owned()).await;
    }
    let bare = bare_started.elapsed().as_secs_f64() * 1e6 / REQUESTS as f64;
    let (hand, ours) = (median(&mut hand) - bare, median(&mut ours) - bare);
    println!(
        "one client: two commands by hand add {hand:.1} µs to a request, the layer adds {ours:.1} µs (medians)"
    );
    figures.add("latency_1_client_vs_hand", ours / hand, &Goal::AtMost(0.65));
}

/// What many clients get through.
async fn many_clients(server: &RedisServer, figures: &mut Figures) {
    let redis = server.client().await;
    for clients in [64, 256] {
        let by_hand = ByHand::new(server).await;
        let locks = LockManager::connect(&server.url()).await.unwrap();
        let (mut hand, mut ours) = (Vec::new(), Vec::new());
        let (mut hand_cpu, mut our_cpu) = (Vec::new(), Vec::new());
        let (mut commands, mut requests) = (0, 0.0);
        for _ in 0..ROUNDS {
            let one = by_hand.clone();
            let (rate, cpu) = load(clients, ROUND, move |client, number| {
                one.clone().locked(format!("/{client}/{number}"))
            })
            .await;
            hand.push(rate);
            hand_cpu.push(cpu);
            let locked = layer(&locks).layer(service_fn(hello));
            let before = common::script_calls(&redis).await;
            let (rate, cpu) = load(clients, ROUND, move |client, number| {
                through(locked.clone(), format!("/{client}/{number}"))
            })
            .await;
            commands += common::script_calls(&redis).await - before;
            requests += rate * ROUND.as_secs_f64();
            ours.push(rate);
            our_cpu.push(cpu);
        }
        let list: String = redis::cmd("CLIENT")
            .arg("LIST")
            .query_async(&mut redis.clone())
            .await
            .unwrap();
        let connections = list.matches(" sub=1 ").count();
        let ratio = median(&mut ours) / median(&mut hand);
        let per_request = commands as f64 / requests;
        println!(
            "{clients} clients: {:.0} requests/s by hand ({:.1} µs of CPU each), {:.0} through the layer ({:.1} µs), \
             {per_request:.3} commands a request, {connections} connection",
            median(&mut hand),
            median(&mut hand_cpu),
            median(&mut ours),
            median(&mut our_cpu),
        );
        figures.add(
            &format!("throughput_{clients}_clients_vs_hand"),
            ratio,
            &Goal::AtLeast(1.0),
        );
        figures.add(
            &format!("commands_per_request_{clients}_clients"),
            per_request,
            &Goal::AtMost(2.0),
        );
        figures.add(
            &format!("connections_{clients}_clients"),
            connections as f64,
            &Goal::AtMost(1.0),
        );
        let cpu = median(&mut our_cpu) / median(&mut hand_cpu);
        figures.add(
            &format!("client_cpu_{clients}_clients_vs_hand"),
            cpu,
            &Goal::AtMost(1.0),
        );
        locks.close().await;
    }
}

/// An axum server, and wrk with 64 connections.
async fn over_http(server: &RedisServer, figures: &mut Figures) {
    if Command::new("wrk").arg("--version").output().is_err() {
        println!("over HTTP: not measured, wrk is not installed (Debian: apt-get install wrk)");
        figures.add(
            "http_64_connections_vs_no_layer",
            f64::NAN,
            &Goal::AtLeast(0.55),
        );
        return;
    }
    let locks = LockManager::connect(&server.url()).await.unwrap();
    // Every request locks a key that no other does.
    let next = AtomicU64::new(0);
    let layer = DistributedLockLayer::new(locks.clone(), move |_| {
        next.fetch_add(1, Ordering::Relaxed).to_string()
    });
    let app = || axum::Router::new().route("/", axum::routing::get(|| async { "hello" }));
    let bare = serve(app()).await;
    let locked = serve(app().route_layer(layer)).await;
    let redis = server.client().await;
    let (mut bare_rates, mut locked_rates) = (Vec::new(), Vec::new());
    let (mut costs, mut commands) = (vec![f64::NAN], Vec::new());
    for _ in 0..5 {
        bare_rates.push(wrk(bare).await);
        let (cpu, calls) = (support::cpu_time(), common::script_calls(&redis).await);
        let rate = wrk(locked).await;
        let requests = rate * f64::from(WRK_SECONDS);
        if let (Some(before), Some(after)) = (cpu, support::cpu_time()) {
            costs.push((after - before).as_secs_f64() * 1e6 / requests);
        }
        commands.push((common::script_calls(&redis).await - calls) as f64 / requests);
        locked_rates.push(rate);
    }
    let (bare, locked) = (median(&mut bare_rates), median(&mut locked_rates));
    println!(
        "over HTTP, 64 connections: {bare:.0} requests/s without the layer, {locked:.0} with it ({:.1} µs of CPU each, \
         {:.3} commands a request)",
        median(&mut costs),
        median(&mut commands),
    );
    figures.add(
        "http_64_connections_vs_no_layer",
        locked / bare,
        &Goal::AtLeast(0.55),
    );
}

async fn serve(app: axum::Router) -> std::net::SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

/// Requests a second.
async fn wrk(address: std::net::SocketAddr) -> f64 {
    let mut wrk = tokio::process::Command::new("wrk");
    let output = wrk
        .args([
            "-t1",
            "-c64",
            &format!("-d{WRK_SECONDS}s"),
            &format!("http://{address}/"),
        ])
        .output()
        .await
        .unwrap();
    let report = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!report.contains("Non-2xx"), "{report}");
    let rate = report
        .lines()
        .find_map(|line| line.strip_prefix("Requests/sec:"));
    rate.and_then(|rate| rate.trim().parse().ok())
        .unwrap_or_else(|| panic!("{report}"))
}
