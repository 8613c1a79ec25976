//! Extractors of axum: keys of what they return, and the lease as one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use axum::Router;
use axum::extract::Path;
use axum::routing::get;
use http::{StatusCode, Version};
use tower_distributed_lock::{DistributedLockLayer, IdempotencyLayer, Lease, Leases, LockManager};

use super::{ask, layer, text};
use crate::servers::{axum_on, client};

#[tokio::test]
async fn another_spelling_of_what_the_handler_parses_is_the_same_lock() {
    let locks = LockManager::in_memory();
    let by_id =
        DistributedLockLayer::from_extractor(locks.clone(), |Path(id): Path<u64>| ("account", id));
    let handler =
        async |Path(id): Path<u64>, lease: Lease| format!("{id} {}", lease.key().as_str());
    let nested = Router::new().route("/accounts/{id}", get(handler).route_layer(by_id));
    let address = axum_on(Router::new().nest("/api", nested)).await;
    let client = client(Version::HTTP_11);
    let _guard = locks.try_acquire("account:7").await.unwrap();
    for id in ["7", "07", "+7", "%37", "%2B7"] {
        let response = ask(&client, address, &format!("/api/accounts/{id}")).await;
        assert_eq!(response.status(), StatusCode::CONFLICT, "{id}");
    }
    let response = ask(&client, address, "/api/accounts/08").await;
    assert_eq!(text(response).await, "8 account:8");
}

#[tokio::test]
async fn the_rejection_of_an_extractor_is_the_response() {
    let locks = LockManager::in_memory();
    let ran = Arc::new(AtomicU32::new(0));
    let handler = || {
        let ran = Arc::clone(&ran);
        get(move || async move {
            ran.fetch_add(1, Ordering::SeqCst);
            "ran"
        })
    };
    let account = |Path(id): Path<u64>| ("account", id);
    let by_id = DistributedLockLayer::from_extractor(locks.clone(), account);
    let optional = DistributedLockLayer::from_extractor(locks, |id: Option<Path<u64>>| {
        id.map(|Path(id)| ("account", id))
    });
    let router = Router::new()
        .route(
            "/accounts/{id}",
            handler().route_layer(by_id.optional_key()),
        )
        .route("/", handler().route_layer(optional.clone()))
        .route("/optional", handler().route_layer(optional.optional_key()));
    let address = axum_on(router).await;
    let client = client(Version::HTTP_11);
    let response = ask(&client, address, "/accounts/seven").await;
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    let rejected = text(response).await;
    assert!(rejected.contains("Invalid URL"), "{rejected}");
    let response = ask(&client, address, "/").await;
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    assert_eq!(ran.load(Ordering::SeqCst), 0);
    let response = ask(&client, address, "/optional").await;
    assert_eq!(text(response).await, "ran");
}

#[tokio::test]
async fn a_handler_that_takes_a_lease_says_which_layer_is_missing() {
    let locks = LockManager::in_memory();
    let strict = || get(async |lease: Lease| lease.key().as_str().to_owned());
    let lenient = get(async |lease: Option<Lease>| format!("{}", lease.is_some()));
    let router = Router::new()
        .route("/locked", strict().route_layer(layer(&locks)))
        .route("/unlocked", strict())
        .route("/lenient", lenient);
    let address = axum_on(router).await;
    let client = client(Version::HTTP_11);
    let get = async |path| ask(&client, address, path).await;
    assert_eq!(text(get("/locked").await).await, "a");
    assert_eq!(text(get("/lenient").await).await, "false");
    let response = get("/unlocked").await;
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert!(text(response).await.contains("DistributedLockLayer"));
}

#[tokio::test]
async fn several_keys_may_come_of_an_extractor_and_their_leases_are_one() {
    let locks = LockManager::in_memory();
    let both = DistributedLockLayer::from_extractor(
        locks.clone(),
        |Path((from, to)): Path<(u64, u64)>| [("account", from), ("account", to)],
    );
    let handler = async |leases: Leases| {
        let names = leases.iter().map(|lease| lease.key().as_str().to_owned());
        names.collect::<Vec<_>>().join(" ")
    };
    let lenient = async |leases: Option<Leases>| format!("{}", leases.is_some());
    let router = Router::new()
        .route("/{from}/{to}", get(handler).route_layer(both.clone()))
        .route(
            "/lease/{from}/{to}",
            get(async |_: Lease| "").route_layer(both),
        )
        // A layer for one key serves the same handler.
        .route("/one", get(handler).route_layer(layer(&locks)))
        .route("/unlocked", get(handler))
        .route("/lenient", get(lenient));
    let address = axum_on(router).await;
    let client = client(Version::HTTP_11);
    let get = async |path| ask(&client, address, path).await;
    assert_eq!(text(get("/9/7").await).await, "account:7 account:9");
    assert_eq!(text(get("/7/07").await).await, "account:7");
    assert_eq!(text(get("/one").await).await, "a");
    assert_eq!(text(get("/lenient").await).await, "false");
    for path in ["/unlocked", "/lease/9/7"] {
        let response = get(path).await;
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert!(text(response).await.contains("take Leases"));
    }
    let _guard = locks.try_acquire("account:9").await.unwrap();
    assert_eq!(get("/9/7").await.status(), StatusCode::CONFLICT);
}

#[tokio::test]
async fn what_an_extractor_rejects_is_not_kept_as_the_response_to_an_idempotency_key() {
    let locks = LockManager::in_memory();
    let by_id = DistributedLockLayer::from_extractor(locks.clone(), |Path(id): Path<u64>| id);
    let once = IdempotencyLayer::webhook(locks, "x-id").key(|_, _| "event");
    let handler = get(async || "ran")
        .route_layer(by_id)
        .route_layer(once.scope(|_| "scope"));
    let address = axum_on(Router::new().route("/accounts/{id}", handler)).await;
    let client = client(Version::HTTP_11);
    let response = ask(&client, address, "/accounts/seven").await;
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    let response = ask(&client, address, "/accounts/7").await;
    assert_eq!(text(response).await, "ran");
}
