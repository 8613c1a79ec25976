//! The lock layer in the servers that it is made for, over real sockets.

#[cfg(feature = "axum")]
mod axum_extractors;
mod on_axum;
mod on_hyper;
mod on_tonic;
mod one_after_the_other;
mod readers;
mod several_keys;

use std::future::Future;
use std::net::SocketAddr;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER, TRANSFER_ENCODING};
use http::{Response, StatusCode, Version};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use tower_distributed_lock::{DistributedLockLayer, LockManager};

use crate::lock::WAIT;
use crate::nodes::Nodes;
use crate::servers::client;
use crate::support::{Gate, soon};

fn layer(locks: &LockManager) -> DistributedLockLayer {
    DistributedLockLayer::new(locks.clone(), |_| "a")
}

async fn ask(
    client: &Client<HttpConnector, Full<Bytes>>,
    address: SocketAddr,
    path: &str,
) -> Response<Incoming> {
    let uri = format!("http://{address}{path}").parse().unwrap();
    soon("a response", client.get(uri)).await.unwrap()
}

async fn text(response: Response<Incoming>) -> String {
    let body = soon("the body", response.into_body().collect()).await;
    String::from_utf8(body.unwrap().to_bytes().to_vec()).unwrap()
}

fn is_problem(response: &Response<Incoming>) {
    assert_eq!(response.status(), StatusCode::CONFLICT);
    assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json");
    assert!(response.headers().contains_key(RETRY_AFTER));
    assert!(response.headers().contains_key(CONTENT_LENGTH));
}

/// On both nodes, one request gets the lock and the others are refused. One that waits gets it
/// next.
async fn http_requests_exclude_each_other<F>(
    nodes: &Nodes,
    version: Version,
    serve: impl Fn(DistributedLockLayer, Gate) -> F,
) where
    F: Future<Output = SocketAddr>,
{
    let gate = Gate::new();
    let one = serve(layer(&nodes.one), gate.clone()).await;
    let two = serve(layer(&nodes.two), gate.clone()).await;
    let patient = serve(layer(&nodes.two).wait(WAIT), gate.clone()).await;
    let client = client(version);
    let spawn = |address| {
        let client = client.clone();
        tokio::spawn(async move { ask(&client, address, "/gated").await })
    };
    let winner = spawn(one);
    gate.arrived().await;
    for address in [one, two] {
        let loser = ask(&client, address, "/gated").await;
        assert_eq!(loser.version(), version);
        is_problem(&loser);
        assert!(text(loser).await.contains("409"));
    }
    let mut waiter = spawn(patient);
    assert!(futures_util::poll!(&mut waiter).is_pending());
    // What is not locked is not affected.
    assert_eq!(text(ask(&client, two, "/free").await).await, "free");
    assert!(gate.nobody_else());
    gate.open();
    let winner = soon("the winner", winner).await.unwrap();
    assert_eq!(winner.status(), StatusCode::OK);
    assert_eq!(winner.headers()[CONTENT_LENGTH], "5");
    assert!(!winner.headers().contains_key(TRANSFER_ENCODING));
    assert_eq!(text(winner).await, "gated");
    gate.arrived().await;
    assert!(gate.nobody_else());
    gate.open();
    let waiter = soon("the waiter", waiter).await.unwrap();
    assert_eq!(waiter.status(), StatusCode::OK);
    assert_eq!(text(waiter).await, "gated");
    nodes.are_at_rest().await;
}
