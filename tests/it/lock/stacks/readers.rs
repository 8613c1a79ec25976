//! Readers that share a lock, and writers, on two nodes.

use axum::Router;
use axum::routing::get;
use bytes::Bytes;
use http::{Method, Request, StatusCode, Version};
use http_body_util::Full;
use tower_distributed_lock::lock::share_safe_methods;

use super::layer;
use crate::lock::WAIT;
use crate::nodes::Nodes;
use crate::servers::{axum_on, client};
use crate::support::{Gate, soon};

on_every_store! {
    Nodes:
    gets_run_together_and_a_put_alone
}

async fn gets_run_together_and_a_put_alone(nodes: Nodes) {
    let gate = Gate::new();
    let mut addresses = Vec::new();
    for (locks, waits) in [(&nodes.one, false), (&nodes.two, false), (&nodes.two, true)] {
        let gate = gate.clone();
        let handler = move || {
            let gate = gate.clone();
            async move { gate.pass().await }
        };
        let layer = layer(locks).mode(share_safe_methods);
        let layer = if waits { layer.wait(WAIT) } else { layer };
        let router = Router::new().route("/", get(handler.clone()).put(handler));
        addresses.push(axum_on(router.layer(layer)).await);
    }
    let client = client(Version::HTTP_11);
    let send = |method: Method, address: &std::net::SocketAddr| {
        let uri = format!("http://{address}/");
        let request = Request::builder().method(method).uri(uri);
        let request = request.body(Full::<Bytes>::default()).unwrap();
        let response = client.request(request);
        tokio::spawn(async move { soon("a response", response).await.unwrap().status() })
    };
    let [one, two, patient] = &addresses[..] else {
        unreachable!("there are three");
    };
    let mut reading = Vec::new();
    for address in [one, one, two, two] {
        reading.push(send(Method::GET, address));
        gate.arrived().await;
    }
    for address in [one, two] {
        let refused = send(Method::PUT, address).await.unwrap();
        assert_eq!(refused, StatusCode::CONFLICT);
    }
    let writing = send(Method::PUT, patient);
    for _ in &reading {
        gate.open();
    }
    for reading in reading {
        assert_eq!(reading.await.unwrap(), StatusCode::OK);
    }
    // Its turn comes when the last of them is done, on both nodes.
    gate.arrived().await;
    for address in [one, two] {
        let refused = send(Method::GET, address).await.unwrap();
        assert_eq!(refused, StatusCode::CONFLICT);
    }
    assert!(gate.nobody_else());
    gate.open();
    assert_eq!(writing.await.unwrap(), StatusCode::OK);
    nodes.are_at_rest().await;
}
