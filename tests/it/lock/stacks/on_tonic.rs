//! Under tonic.

use std::net::SocketAddr;
use std::time::Duration;

use tonic::{Code, Status};
use tower_distributed_lock::{DistributedLockLayer, LockManager};

use super::layer;
use crate::lock::WAIT;
use crate::nodes::Nodes;
use crate::servers::tonic::{Around, Echo, EchoClient, serve_tonic};
use crate::support::{ClosedPort, Gate, soon};

on_every_store! {
    Nodes:
    tonic_server_layer_unary
    tonic_server_layer_streaming
    tonic_service_layer_unary
    tonic_service_layer_streaming
}

/// An [`Echo`] under a lock, which fails if it is asked to.
fn echo(gate: &Gate) -> Echo {
    Echo::new(gate, |lease, text| {
        assert!(lease.is_some());
        match text.as_str() {
            "fail" => Err(Status::not_found("as asked")),
            _ => Ok(text),
        }
    })
}

async fn tonic_on(locks: &LockManager, gate: &Gate, around: Around) -> SocketAddr {
    serve_tonic!(layer(locks), echo(gate), around)
}

fn is_aborted(status: &Status) {
    assert_eq!(status.code(), Code::Aborted);
    assert_eq!(
        status.message(),
        "the resource is locked by another request"
    );
}

async fn tonic_unary(nodes: Nodes, around: Around) {
    let gate = Gate::new();
    let one = EchoClient::connect(tonic_on(&nodes.one, &gate, around).await).await;
    let two = EchoClient::connect(tonic_on(&nodes.two, &gate, around).await).await;
    for text in ["one", "two", "fail"] {
        let winner = one.unary(text);
        let losers = async {
            gate.arrived().await;
            is_aborted(&one.unary("loser").await.unwrap_err());
            is_aborted(&two.unary("loser").await.unwrap_err());
            is_aborted(&two.streaming("loser").await.unwrap_err());
            gate.open();
        };
        let (winner, ()) = tokio::join!(winner, losers);
        match text {
            "fail" => {
                let status = winner.unwrap_err();
                assert_eq!(
                    (status.code(), status.message()),
                    (Code::NotFound, "as asked")
                );
            }
            _ => assert_eq!(winner.unwrap(), text),
        }
        nodes.are_at_rest().await;
    }
    assert!(gate.nobody_else());
}

async fn tonic_streaming(nodes: Nodes, around: Around) {
    let gate = Gate::new();
    let one = EchoClient::connect(tonic_on(&nodes.one, &gate, around).await).await;
    let two = EchoClient::connect(tonic_on(&nodes.two, &gate, around).await).await;
    for _ in 0..2 {
        let mut winner = one.streaming("winner").await.unwrap();
        let first = soon("a message", winner.message()).await.unwrap();
        assert_eq!(first.unwrap().text, "winner");
        // The handler has returned; its stream has not ended.
        gate.arrived().await;
        is_aborted(&one.unary("loser").await.unwrap_err());
        is_aborted(&two.unary("loser").await.unwrap_err());
        is_aborted(&two.streaming("loser").await.unwrap_err());
        gate.open();
        let second = soon("a message", winner.message()).await.unwrap();
        assert_eq!(second.unwrap().text, "winner");
        assert!(soon("the end", winner.message()).await.unwrap().is_none());
        nodes.are_at_rest().await;
    }
    // A client that leaves in the middle of the stream ends the hold.
    let mut leaves = one.streaming("leaves").await.unwrap();
    soon("a message", leaves.message()).await.unwrap();
    gate.arrived().await;
    is_aborted(&two.unary("loser").await.unwrap_err());
    drop(leaves);
    nodes.are_at_rest().await;
}

async fn tonic_server_layer_unary(nodes: Nodes) {
    tonic_unary(nodes, Around::Server).await;
}

async fn tonic_server_layer_streaming(nodes: Nodes) {
    tonic_streaming(nodes, Around::Server).await;
}

async fn tonic_service_layer_unary(nodes: Nodes) {
    tonic_unary(nodes, Around::Service).await;
}

async fn tonic_service_layer_streaming(nodes: Nodes) {
    tonic_streaming(nodes, Around::Service).await;
}

#[tokio::test]
async fn tonic_clients_see_the_code_of_each_refusal() {
    let gate = Gate::new();
    let closed = LockManager::in_memory();
    closed.close().await;
    let brief = LockManager::builder().max_hold(Duration::from_millis(50));
    let brief = brief.in_memory().unwrap();
    let nobody = ClosedPort::new();
    let no_redis = LockManager::builder().connect_lazy(nobody.url()).unwrap();
    let full = LockManager::builder()
        .max_waiters_per_key(1)
        .in_memory()
        .unwrap();
    let _guard = full.try_acquire("a").await.unwrap();
    let mut waiter = Box::pin(full.acquire("a", WAIT));
    assert!(futures_util::poll!(&mut waiter).is_pending());
    let no_key = DistributedLockLayer::new(closed.clone(), |_| "");
    for (layer, code) in [
        (layer(&closed), Code::Unavailable),
        (layer(&no_redis), Code::Unavailable),
        (layer(&full), Code::Aborted),
        (
            layer(&full).wait(Duration::from_millis(20)),
            Code::ResourceExhausted,
        ),
        (layer(&brief), Code::Aborted),
        (no_key, Code::InvalidArgument),
    ] {
        let address = serve_tonic!(layer, echo(&gate), Around::Server);
        let status = EchoClient::connect(address)
            .await
            .unary("x")
            .await
            .unwrap_err();
        assert_eq!(status.code(), code, "{status}");
        assert!(!status.message().is_empty());
    }
}
