//! Layers and servers that end a request, and managers that are closed.

use std::convert::Infallible;
use std::future::pending;
use std::time::Duration;

use axum::error_handling::HandleErrorLayer;
use axum::routing::{MethodRouter, any};
use axum::{BoxError, Extension, Router};
use bytes::Bytes;
use http::{Request, Response, StatusCode, Version};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tower::timeout::TimeoutLayer;
use tower::{Layer, ServiceBuilder, service_fn};
use tower_distributed_lock::{DistributedLockLayer, Lease};

use super::client::get;
use super::{Stage, VERSIONS};
use crate::servers::{axum_on, listen};
use crate::support::{Mode, PATIENCE, Proxy, eventually, eventually_queued, minute, soon, value};

/// A handler that looks at its lock itself, as its time limit is running already, and then never
/// ends.
fn endless(stage: &Stage) -> (MethodRouter, mpsc::UnboundedReceiver<bool>) {
    let (tell, was_held) = mpsc::unbounded_channel();
    let (works, redis) = (stage.works.clone(), stage.redis.clone());
    let handler = any(move |Extension(lease): Extension<Lease>| {
        let work = works.on(lease);
        let (redis, tell) = (redis.clone(), tell.clone());
        async move {
            let _work = work;
            let _ = tell.send(value(&redis, "lock:a").await.is_some());
            pending::<()>().await;
        }
    });
    (handler, was_held)
}

const LIMIT: Duration = Duration::from_millis(1500);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_timeout_outside_of_the_lock() {
    let mut stage = Stage::new().await;
    let (handler, mut was_held) = endless(&stage);
    let layers = ServiceBuilder::new()
        .layer(HandleErrorLayer::new(async |_: BoxError| {
            StatusCode::REQUEST_TIMEOUT
        }))
        .layer(TimeoutLayer::new(LIMIT))
        .layer(stage.layer());
    let address = axum_on(Router::new().route("/", handler).layer(layers)).await;
    let mut client = get(address, Version::HTTP_11).await;
    assert_eq!(client.status().await, Some(StatusCode::REQUEST_TIMEOUT));
    assert_eq!(was_held.recv().await, Some(true));
    stage.is_over().await;
    stage.work_ended_under_its_lock().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_timeout_inside_of_the_lock() {
    let mut stage = Stage::new().await;
    let (handler, mut was_held) = endless(&stage);
    let layers = ServiceBuilder::new()
        .layer(stage.layer())
        .layer(HandleErrorLayer::new(async |_: BoxError| {
            StatusCode::REQUEST_TIMEOUT
        }))
        .layer(TimeoutLayer::new(LIMIT));
    let address = axum_on(Router::new().route("/", handler).layer(layers)).await;
    let mut client = get(address, Version::HTTP_11).await;
    assert_eq!(client.status().await, Some(StatusCode::REQUEST_TIMEOUT));
    assert_eq!(was_held.recv().await, Some(true));
    stage.is_over().await;
    stage.work_ended_under_its_lock().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_timeout_outside_ends_a_wait_and_leaves_the_holder_alone() {
    let mut stage = Stage::new().await;
    let other = minute().connect(&stage.server.url()).await.unwrap();
    let guard = other.try_acquire("a").await.unwrap();
    let layers = ServiceBuilder::new()
        .layer(HandleErrorLayer::new(async |_: BoxError| {
            StatusCode::REQUEST_TIMEOUT
        }))
        .layer(TimeoutLayer::new(LIMIT))
        .layer(stage.layer().wait(PATIENCE));
    let router = Router::new().route("/", stage.handler(async || "done"));
    let address = axum_on(router.layer(layers)).await;
    let mut client = get(address, Version::HTTP_11).await;
    let redis = &stage.redis;
    eventually_queued(redis, "a", 1).await;
    assert_eq!(client.status().await, Some(StatusCode::REQUEST_TIMEOUT));
    eventually_queued(redis, "a", 0).await;
    stage.is_held().await;
    guard.release().await.unwrap();
    stage.is_over().await;
    assert!(stage.gate.nobody_else());
    assert!(stage.dropped.try_recv().is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_graceful_shutdown_lets_a_request_end_with_its_lock() {
    for version in VERSIONS {
        let mut stage = Stage::new().await;
        let router = Router::new().route("/", stage.handler(async || "done"));
        let router = router.layer(stage.layer());
        let (listener, address) = listen().await;
        let (stop, stopped) = oneshot::channel::<()>();
        let server = tokio::spawn(async move {
            axum::serve(listener, router)
                .with_graceful_shutdown(async { stopped.await.unwrap() })
                .await
        });
        let mut client = get(address, version).await;
        stage.gate.arrived().await;
        stop.send(()).unwrap();
        eventually("the server takes no more connections", || async {
            TcpStream::connect(address).await.is_err()
        })
        .await;
        stage.is_held().await;
        stage.gate.open();
        assert_eq!(client.status().await, Some(StatusCode::OK));
        let received = client.rest().await;
        assert!(received.is_whole);
        assert_eq!(received.text, "done");
        soon("the server ends", server).await.unwrap().unwrap();
        stage.is_over().await;
        stage.work_ended_under_its_lock().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn close_returns_when_redis_has_answered_the_last_release_however_long_that_took() {
    let stage = Stage::new().await;
    for mode in [Mode::HoldAnswers, Mode::Hold] {
        let proxy = Proxy::start(stage.server.port).await;
        let builder = minute().command_timeout(2 * PATIENCE);
        let locks = builder.connect(&proxy.url()).await.unwrap();
        let layer = DistributedLockLayer::new(locks.clone(), |_| "a");
        let router = Router::new().route("/", stage.handler(async || "done"));
        let address = axum_on(router.layer(layer)).await;
        let mut client = get(address, Version::HTTP_11).await;
        stage.gate.arrived().await;
        stage.is_held().await;
        let closing = tokio::spawn(async move { locks.close().await });
        proxy.set(mode);
        stage.gate.open();
        assert_eq!(client.status().await, Some(StatusCode::OK));
        assert_eq!(client.rest().await.text, "done");
        if mode == Mode::HoldAnswers {
            stage.is_over().await;
        }
        // Many times as long as the manager needs to see that only Redis' reply is missing.
        for _ in 0..100 {
            value(&stage.redis, "lock:a").await;
        }
        assert!(!closing.is_finished());
        proxy.set(Mode::Forward);
        soon("the manager closes", closing).await.unwrap();
        // At once, not eventually.
        assert_eq!(value(&stage.redis, "lock:a").await, None);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_server_that_is_stopped_at_once() {
    let mut stage = Stage::new().await;
    let handler = service_fn({
        let (works, gate) = (stage.works.clone(), stage.gate.clone());
        move |req: Request<Incoming>| {
            let work = works.on(req.extensions().get::<Lease>().unwrap().clone());
            let gate = gate.clone();
            async move {
                let _work = work;
                gate.pass().await;
                Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
            }
        }
    });
    let service = TowerToHyperService::new(stage.layer().layer(handler));
    let (listener, address) = listen().await;
    let server = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let server = hyper::server::conn::http1::Builder::new();
        server.serve_connection(TokioIo::new(stream), service).await
    });
    let mut client = get(address, Version::HTTP_11).await;
    stage.gate.arrived().await;
    stage.is_held().await;
    server.abort();
    assert_eq!(client.status().await, None);
    stage.is_over().await;
    stage.work_ended_under_its_lock().await;
}
