//! Under axum.

use axum::Router;
use axum::routing::get;
use http::{StatusCode, Version};
use tower_distributed_lock::{DistributedLockLayer, Lease, LockManager, key};

use super::{ask, http_requests_exclude_each_other, layer, text};
use crate::nodes::Nodes;
use crate::servers::{axum_on, client};
use crate::support::{Gate, soon};

on_every_store! {
    Nodes:
    axum_router_layer
    axum_route_layer
}

fn gated(gate: Gate) -> axum::routing::MethodRouter {
    get(move |axum::Extension(lease): axum::Extension<Lease>| {
        let gate = gate.clone();
        async move {
            assert_eq!(lease.key().as_str(), "a");
            gate.pass().await;
            "gated"
        }
    })
}

async fn axum_router_layer(nodes: Nodes) {
    http_requests_exclude_each_other(&nodes, Version::HTTP_11, |layer, gate| async {
        let locked = Router::new().route("/gated", gated(gate)).layer(layer);
        axum_on(locked.route("/free", get(async || "free"))).await
    })
    .await;
}

async fn axum_route_layer(nodes: Nodes) {
    http_requests_exclude_each_other(&nodes, Version::HTTP_2, |layer, gate| async {
        let locked = Router::new()
            .route("/gated", gated(gate))
            .route_layer(layer);
        axum_on(locked.route("/free", get(async || "free"))).await
    })
    .await;
}

#[tokio::test]
async fn an_axum_route_layer_leaves_unknown_routes_alone() {
    let locks = LockManager::in_memory();
    let _guard = locks.try_acquire("a").await.unwrap();
    let router = || Router::new().route("/known", get(async || "known"));
    let by_route = axum_on(router().route_layer(layer(&locks))).await;
    let by_router = axum_on(router().layer(layer(&locks))).await;
    let client = client(Version::HTTP_11);
    let status = async |address, path| ask(&client, address, path).await.status();
    assert_eq!(status(by_route, "/known").await, StatusCode::CONFLICT);
    assert_eq!(status(by_route, "/unknown").await, StatusCode::NOT_FOUND);
    assert_eq!(status(by_router, "/unknown").await, StatusCode::CONFLICT);
}

#[tokio::test]
async fn axum_requests_for_different_paths_run_at_the_same_time() {
    let locks = LockManager::in_memory();
    let gate = Gate::new();
    let handler = get({
        let gate = gate.clone();
        move || {
            let gate = gate.clone();
            async move { gate.pass().await }
        }
    });
    let by_path = DistributedLockLayer::new(locks, key::path("/accounts/{id}/**"));
    let router = Router::new()
        .route("/accounts/{id}", handler.clone())
        .route("/accounts/{id}/transfer", handler)
        .route_layer(by_path);
    let address = axum_on(router).await;
    let client = client(Version::HTTP_11);
    let spawn = |path: &'static str| {
        let client = client.clone();
        tokio::spawn(async move { ask(&client, address, path).await.status() })
    };
    let seven = spawn("/accounts/7");
    gate.arrived().await;
    let eight = spawn("/accounts/8");
    gate.arrived().await;
    let conflict = spawn("/accounts/7/transfer").await.unwrap();
    assert_eq!(conflict, StatusCode::CONFLICT);
    gate.open();
    gate.open();
    assert_eq!(soon("it ends", seven).await.unwrap(), StatusCode::OK);
    assert_eq!(soon("it ends", eight).await.unwrap(), StatusCode::OK);
}

#[tokio::test]
async fn routes_whose_patterns_end_with_one_account_share_its_lock_in_a_nested_router_too() {
    let locks = LockManager::in_memory();
    let by = |pattern| DistributedLockLayer::new(locks.clone(), key::path(pattern));
    let ok = || {
        get(async |axum::Extension(lease): axum::Extension<Lease>| lease.key().as_str().to_owned())
    };
    let route = |path| (path, ok().route_layer(by(path)));
    let mut accounts = Router::new();
    for (path, handler) in [
        route("/accounts/{id}/transfer"),
        route("/accounts/{id}/deposit"),
    ] {
        accounts = accounts.route(path, handler);
    }
    let files = Router::new().route("/files/{*path}", ok());
    let router = Router::new()
        .nest("/api", accounts)
        .merge(files.route_layer(by("/files/{*path}")))
        // The layer is on a route that it is not for: its requests do not run.
        .merge(
            Router::new()
                .route("/other", ok())
                .route_layer(by("/accounts/{id}/**")),
        );
    let address = axum_on(router).await;
    let client = client(Version::HTTP_11);
    let get = async |path| ask(&client, address, path).await;
    for path in ["/api/accounts/7/transfer", "/api/accounts/%37/deposit?x=1"] {
        assert_eq!(text(get(path).await).await, "accounts:7");
    }
    assert_eq!(text(get("/files/a/b%2Fc").await).await, "files:a/b/c");
    let status = async |path| get(path).await.status();
    assert_eq!(status("/other").await, StatusCode::INTERNAL_SERVER_ERROR);
    let guard = locks.try_acquire(("accounts", 7)).await.unwrap();
    for path in ["/api/accounts/7/transfer", "/api/accounts/7/deposit"] {
        assert_eq!(status(path).await, StatusCode::CONFLICT);
    }
    assert_eq!(status("/api/accounts/8/deposit").await, StatusCode::OK);
    drop(guard);
}
