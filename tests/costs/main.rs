//! What a request costs whose lock no other request wants: allocations in this process, and
//! commands of Redis. Unlike time, both can be counted, and so are kept from growing.
//!
//! A binary of its own, without a harness: it counts every allocation of the process.

#![allow(unreachable_pub)]

#[path = "../support/mod.rs"]
mod support;

use std::convert::Infallible;
use std::fmt::Debug;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::{BodyExt, Empty, Full};
use redis::aio::MultiplexedConnection;
use support::{RedisServer, calls};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_distributed_lock::{DistributedLockLayer, LockKey, LockManager};

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

const REQUESTS: u32 = 1000;

/// The most that a request may add to the allocations of the service inside. The future that takes
/// the lock, the channel on which it waits, the lease, and three by which the request's extensions
/// hold that.
const IN_MEMORY: f64 = 6.0;
/// Besides those: two or three commands with their arguments, in one or two pipelines, and what
/// redis-rs makes of them and of the replies. A timer more or less makes the fraction.
const OVER_REDIS: f64 = 30.0;

async fn hello(_: Request<Empty<Bytes>>) -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(Response::new(Full::from("hello")))
}

/// Makes requests one after the other.
async fn make_requests<S, B>(service: &mut S)
where
    S: Service<Request<Empty<Bytes>>, Response = Response<B>, Error = Infallible>,
    B: Body<Error: Debug>,
{
    for _ in 0..REQUESTS {
        let request = Request::new(Empty::new());
        let response = service.ready().await.unwrap().call(request).await.unwrap();
        assert_eq!(response.status(), 200);
        response.into_body().collect().await.unwrap();
    }
}

/// Returns the allocations per request. What is made once was made before.
async fn allocations<S, B>(service: &mut S) -> f64
where
    S: Service<Request<Empty<Bytes>>, Response = Response<B>, Error = Infallible>,
    B: Body<Error: Debug>,
{
    make_requests(service).await;
    let before = dhat::HeapStats::get().total_blocks;
    make_requests(service).await;
    let made = dhat::HeapStats::get().total_blocks - before;
    made as f64 / f64::from(REQUESTS)
}

/// Locks two keys for each request.
fn layer_of_two(locks: LockManager) -> DistributedLockLayer {
    let keys = ["7", "9"].map(|key| LockKey::new(key).unwrap());
    DistributedLockLayer::new(locks, move |_| keys.clone())
}

fn layer(locks: LockManager) -> DistributedLockLayer {
    let key = LockKey::new("7").unwrap();
    DistributedLockLayer::new(locks, move |_| key.clone())
}

/// The commands of requests, by name. The counter of fences is raised by `EVAL`, as often as time
/// goes by, and scripts call others: those do not count. Nor does a renewal, the only script with a
/// `PEXPIRE`: on a busy machine, a request may take long enough for one.
async fn commands(redis: &MultiplexedConnection) -> [(&'static str, u64); 4] {
    let evals = calls(redis, "eval").await;
    [
        ("SET", calls(redis, "set").await - evals),
        ("INCRBY", calls(redis, "incrby").await),
        (
            "EVALSHA",
            calls(redis, "evalsha").await - calls(redis, "pexpire").await,
        ),
        ("PING", calls(redis, "ping").await),
    ]
}

#[tokio::main]
async fn main() {
    let _profiler = dhat::Profiler::builder().testing().build();
    let bare = allocations(&mut service_fn(hello)).await;
    let in_memory =
        allocations(&mut layer(LockManager::in_memory()).layer(service_fn(hello))).await;

    let server = RedisServer::start().await;
    let redis = server.client().await;
    let locks = LockManager::connect(&server.url()).await.unwrap();
    let mut service = layer(locks.clone()).layer(service_fn(hello));
    let over_redis = allocations(&mut service).await;
    // The last release may still be on its way.
    support::eventually_no_trace(&redis).await;
    support::run(&redis, "CONFIG RESETSTAT").await;
    make_requests(&mut service).await;
    locks.close().await;
    let sent = commands(&redis).await;

    let locks = LockManager::connect(&server.url()).await.unwrap();
    let mut service = layer_of_two(locks.clone()).layer(service_fn(hello));
    support::eventually_no_trace(&redis).await;
    support::run(&redis, "CONFIG RESETSTAT").await;
    make_requests(&mut service).await;
    locks.close().await;
    let sent_for_two = commands(&redis).await;

    println!("allocations per request, besides those of the service inside:");
    println!(
        "  in memory {:.2}, over Redis {:.2}",
        in_memory - bare,
        over_redis - bare
    );
    println!("commands of {REQUESTS} requests: {sent:?}");
    assert!(in_memory - bare < IN_MEMORY + 0.1, "allocations in memory");
    assert!(
        over_redis - bare < OVER_REDIS + 0.5,
        "allocations over Redis"
    );
    let requests = u64::from(REQUESTS);
    let expected = [
        ("SET", requests),
        ("INCRBY", requests),
        ("EVALSHA", requests),
        ("PING", 0),
    ];
    assert_eq!(sent, expected, "a take, its fence, a release");
    println!("commands of {REQUESTS} requests for two keys: {sent_for_two:?}");
    let expected = [
        ("SET", 2 * requests),
        ("INCRBY", requests),
        ("EVALSHA", 2 * requests),
        ("PING", 0),
    ];
    // Each write takes the fences of all its takes at once.
    assert_eq!(sent_for_two, expected, "both are taken by one write");
}
