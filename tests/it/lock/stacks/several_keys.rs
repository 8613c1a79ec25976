//! Requests that lock two accounts each, over real sockets and on two nodes.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use axum::extract::{Path, State};
use axum::routing::post;
use axum::{Extension, Router};
use bytes::Bytes;
use futures_util::future::join_all;
use http::{Request, StatusCode, Version};
use http_body_util::Full;
use tower_distributed_lock::{DistributedLockLayer, Leases, LockManager};

use crate::lock::WAIT;
use crate::nodes::Nodes;
use crate::servers::{axum_on, client};
use crate::support::random::Random;
use crate::support::soon;

on_every_store! {
    Nodes:
    transfers_in_both_directions_are_all_served_and_lose_nothing
}

const ACCOUNTS: usize = 6;
const EACH: i64 = 1000;

/// Only the locks make a transfer atomic.
type Balances = Arc<[AtomicI64; ACCOUNTS]>;

fn node(locks: &LockManager, balances: &Balances) -> Router {
    let both = DistributedLockLayer::new(locks.clone(), |req| {
        let ids = req.uri.path().strip_prefix("/transfers/")?;
        let (from, to) = ids.split_once('/')?;
        Some([from, to].map(|id| ("account", id.to_owned())))
    });
    Router::new()
        .route("/transfers/{from}/{to}", post(transfer))
        .route_layer(both.wait(WAIT))
        .with_state(Arc::clone(balances))
}

async fn transfer(
    State(balances): State<Balances>,
    Path((from, to)): Path<(usize, usize)>,
    Extension(leases): Extension<Leases>,
) {
    assert!(leases.get(("account", from)).unwrap().is_held());
    assert!(leases.get(("account", to)).unwrap().is_held());
    for (account, amount) in [(from, -1), (to, 1)] {
        let balance = balances[account].load(Ordering::SeqCst);
        tokio::task::yield_now().await;
        balances[account].store(balance + amount, Ordering::SeqCst);
    }
}

async fn transfers_in_both_directions_are_all_served_and_lose_nothing(nodes: Nodes) {
    let balances: Balances = Arc::new([const { AtomicI64::new(EACH) }; ACCOUNTS]);
    let one = axum_on(node(&nodes.one, &balances)).await;
    let two = axum_on(node(&nodes.two, &balances)).await;
    let clients = (0..16).map(|number| {
        let address = [one, two][number % 2];
        tokio::spawn(async move {
            let client = client::<Full<Bytes>>(Version::HTTP_11);
            let mut random = Random::new(number as u64);
            for _ in 0..20 {
                let from = random.below(ACCOUNTS as u64);
                // Also to itself, which is one lock.
                let to = random.below(ACCOUNTS as u64);
                let uri = format!("http://{address}/transfers/{from}/{to}");
                let request = Request::post(uri).body(Full::default()).unwrap();
                let response = soon("a response", client.request(request)).await.unwrap();
                assert_eq!(response.status(), StatusCode::OK);
            }
        })
    });
    for client in join_all(clients).await {
        client.unwrap();
    }
    let sum = balances
        .iter()
        .map(|balance| balance.load(Ordering::SeqCst));
    assert_eq!(sum.sum::<i64>(), ACCOUNTS as i64 * EACH);
    nodes.are_at_rest().await;
}
