//! The cost of the layer to a request whose lock no other wants: `cargo bench --bench overhead`.
//!
//! All figures are ratios to a reference measured in the same run, in turns with it. The reference
//! on Redis is the textbook recipe written by hand: `SET key token NX PX ttl`, the work, then a
//! compare-and-delete by `EVALSHA`, both awaited, on one multiplexed connection that all clients
//! share.

mod support;
#[path = "../tests/support/mod.rs"]
mod test_support;

use std::convert::Infallible;
use std::hint::black_box;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use support::recipe::Recipe;
use support::{Figures, Goal, load, median, over_http};
use test_support::RedisServer;
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_distributed_lock::{DistributedLockLayer, LockManager};

const ROUNDS: usize = 7;
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
        over_http::compare(&server, &mut figures, &Goal::AtLeast(0.55)).await;
    }
    figures.print();
}

async fn hello(_: Request<()>) -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(Response::new(Full::new(Bytes::from_static(b"hello"))))
}

/// Sends a request for a key of its own to a service, and reads the response to its end.
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

/// Runs a request under a lock taken by hand.
async fn by_hand(mut recipe: Recipe, key: String) {
    let name = format!("hand:{key}");
    let token = recipe.try_acquire(&name).await.unwrap().unwrap();
    through(service_fn(hello), key).await;
    assert!(recipe.release(&name, &token).await.unwrap());
}

/// Measures the cost of the layer itself, without Redis.
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

/// Measures how long one client waits.
async fn one_client(server: &RedisServer, figures: &mut Figures) {
    const REQUESTS: u64 = 3000;
    let recipe = Recipe::new(server).await;
    let locks = LockManager::connect(&server.url()).await.unwrap();
    let (mut hand, mut ours) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        for (with_layer, times) in [(false, &mut hand), (true, &mut ours)] {
            let (recipe, locked) = (recipe.clone(), layer(&locks).layer(service_fn(hello)));
            let latencies = tokio::spawn(async move {
                let mut latencies = Vec::new();
                for number in 0..REQUESTS {
                    let key = format!("/{number}");
                    let started = Instant::now();
                    match with_layer {
                        true => through(locked.clone(), key).await,
                        false => by_hand(recipe.clone(), key).await,
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

/// Measures how many requests many clients get through.
async fn many_clients(server: &RedisServer, figures: &mut Figures) {
    let redis = server.client().await;
    for clients in [64, 256] {
        let recipe = Recipe::new(server).await;
        let locks = LockManager::connect(&server.url()).await.unwrap();
        let (mut hand, mut ours) = (Vec::new(), Vec::new());
        let (mut hand_cpu, mut our_cpu) = (Vec::new(), Vec::new());
        let (mut commands, mut requests) = (0, 0.0);
        for _ in 0..ROUNDS {
            let one = recipe.clone();
            let (rate, cpu) = load(clients, ROUND, move |client, number| {
                by_hand(one.clone(), format!("/{client}/{number}"))
            })
            .await;
            hand.push(rate);
            hand_cpu.push(cpu);
            let locked = layer(&locks).layer(service_fn(hello));
            let before = test_support::script_calls(&redis).await;
            let (rate, cpu) = load(clients, ROUND, move |client, number| {
                through(locked.clone(), format!("/{client}/{number}"))
            })
            .await;
            commands += test_support::script_calls(&redis).await - before;
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
