//! Clients that leave before they have their response.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::body::Body;
use axum::routing::any;
use axum::{Extension, Router};
use bytes::Bytes;
use futures_util::stream;
use http::{Request, StatusCode};
use http_body::Frame;
use http_body_util::BodyExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tower::{Service, ServiceBuilder, service_fn};
use tower_distributed_lock::{DetachLayer, DistributedLockLayer, Lease};

use super::client::get;
use super::{Stage, VERSIONS, serve};
use crate::servers::axum_on;
use crate::support::{Gate, PATIENCE, eventually_queued, minute, value};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_the_client_left_while_the_handler_ran() {
    let mut stage = Stage::new().await;
    let address = serve(&stage, stage.handler(async || "done")).await;
    for version in VERSIONS {
        let client = get(address, version).await;
        stage.gate.arrived().await;
        stage.is_held().await;
        let _connection = client.leave();
        stage.is_over().await;
        stage.work_ended_under_its_lock().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_the_client_left_in_the_middle_of_its_own_body() {
    let mut stage = Stage::new().await;
    let (works, gate) = (stage.works.clone(), stage.gate.clone());
    let reading = any(move |Extension(lease): Extension<Lease>, body: Body| {
        let (work, gate) = (works.on(lease), gate.clone());
        async move {
            let mut body = body;
            body.frame().await.unwrap().unwrap();
            gate.pass().await;
            let rest = body.collect().await.map(drop);
            drop(work);
            rest.map_err(|_| StatusCode::BAD_REQUEST)
        }
    });
    let address = serve(&stage, reading).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    let half = b"POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 10\r\n\r\nhalf!";
    stream.write_all(half).await.unwrap();
    stage.gate.arrived().await;
    stage.is_held().await;
    stage.gate.open();
    drop(stream);
    stage.is_over().await;
    stage.work_ended_under_its_lock().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_the_client_left_in_the_middle_of_the_body() {
    let mut stage = Stage::new().await;
    let address = serve(&stage, stage.body_handler(stream::empty)).await;
    for version in VERSIONS {
        let mut client = get(address, version).await;
        assert_eq!(client.status().await, Some(StatusCode::OK));
        client.first().await;
        stage.gate.arrived().await;
        stage.is_held().await;
        let _connection = client.leave();
        stage.is_over().await;
        stage.work_ended_under_its_lock().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_the_client_left_without_reading_what_was_sent() {
    let mut stage = Stage::new().await;
    let endless = || stream::repeat_with(|| Ok(Frame::data(Bytes::from(vec![0; 64 * 1024]))));
    let address = serve(&stage, stage.body_handler(endless)).await;
    for version in VERSIONS {
        let mut client = get(address, version).await;
        assert_eq!(client.status().await, Some(StatusCode::OK));
        stage.gate.arrived().await;
        stage.gate.open();
        stage.is_held().await;
        let _connection = client.leave();
        stage.is_over().await;
        stage.work_ended_under_its_lock().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_while_waiting_leaves_the_queue_to_the_others() {
    for version in VERSIONS {
        let mut stage = Stage::new().await;
        let mut nodes = Vec::new();
        for _ in 0..3 {
            let locks = minute().connect(&stage.server.url()).await.unwrap();
            let layer = DistributedLockLayer::new(locks, |_| "a").wait(PATIENCE);
            let router = Router::new().route("/", stage.handler(async || "done"));
            nodes.push(axum_on(router.layer(layer)).await);
        }
        let mut holder = get(nodes[0], version).await;
        stage.gate.arrived().await;
        stage.is_held().await;
        let token = async || {
            let value = value(&stage.redis, "lock:a").await.unwrap_or_default();
            // With the mark that processes wait, or without.
            value.trim_end_matches('!').to_owned()
        };
        let owner = token().await;
        let leaves = get(nodes[1], version).await;
        let redis = &stage.redis;
        eventually_queued(redis, "a", 1).await;
        let mut next = get(nodes[2], version).await;
        eventually_queued(redis, "a", 2).await;
        let _connection = leaves.leave();
        eventually_queued(redis, "a", 1).await;
        // The holder is not affected.
        assert_eq!(token().await, owner);
        assert!(stage.gate.nobody_else());
        stage.gate.open();
        assert_eq!(holder.status().await, Some(StatusCode::OK));
        assert_eq!(holder.rest().await.text, "done");
        stage.gate.arrived().await;
        stage.is_held().await;
        assert_ne!(token().await, owner);
        stage.gate.open();
        assert_eq!(next.status().await, Some(StatusCode::OK));
        assert_eq!(next.rest().await.text, "done");
        stage.is_over().await;
        stage.work_ended_under_its_lock().await;
        stage.work_ended_under_its_lock().await;
        assert!(stage.gate.nobody_else());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_detached_request_ends_later_than_its_client_and_with_its_lock() {
    let mut stage = Stage::new().await;
    let finished = Arc::new(AtomicBool::new(false));
    let handler = stage.handler({
        let finished = Arc::clone(&finished);
        move || {
            let finished = Arc::clone(&finished);
            async move { finished.store(true, Ordering::SeqCst) }
        }
    });
    // Outermost: tells that the server has dropped the request.
    let left = Gate::new();
    let tell = {
        let left = left.clone();
        tower::layer::layer_fn(move |inner: axum::routing::Route| {
            let left = left.clone();
            service_fn(move |req: Request<Body>| {
                let (mut inner, left) = (inner.clone(), left.clone());
                async move {
                    let _left = OnLeaving(left);
                    inner.call(req).await
                }
            })
        })
    };
    let detached = ServiceBuilder::new()
        .layer(DetachLayer::new())
        .layer(stage.layer());
    let router = Router::new().route("/", handler);
    let address = axum_on(router.layer(detached).layer(tell)).await;
    for version in VERSIONS {
        finished.store(false, Ordering::SeqCst);
        let client = get(address, version).await;
        stage.gate.arrived().await;
        let _connection = client.leave();
        left.arrived().await;
        stage.is_held().await;
        assert!(!finished.load(Ordering::SeqCst));
        stage.gate.open();
        stage.is_over().await;
        assert!(finished.load(Ordering::SeqCst));
        stage.work_ended_under_its_lock().await;
    }
}

struct OnLeaving(Gate);

impl Drop for OnLeaving {
    fn drop(&mut self) {
        // Like a handler that comes to the gate and goes no further.
        let mut pass = Box::pin(self.0.pass());
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        let _ = pass.as_mut().poll(&mut cx);
    }
}
