//! Keys that a future finds.

use std::sync::{Arc, Mutex};

use futures_util::poll;
use http::StatusCode;
use tokio::sync::oneshot;
use tower::{Layer, Service};
use tower_distributed_lock::{
    DistributedLockLayer, Error, ErrorKind, LockManager,
    lock::{OnUnavailable, Rejection, RejectionKind},
};

use super::{LayerOn, Leases, WAIT, is_free, noting, request, request_for, text};

fn by_header(locks: &LockManager) -> DistributedLockLayer {
    DistributedLockLayer::new_async(locks.clone(), |req| async move {
        tokio::task::yield_now().await;
        Some((
            "account",
            req.headers.get("x-key")?.to_str().ok()?.to_owned(),
        ))
    })
}

#[tokio::test]
async fn a_request_waits_for_its_key_and_then_runs_under_its_lock() {
    let locks = LockManager::in_memory();
    let leases = Leases::default();
    let (send, key) = oneshot::channel::<&str>();
    let key = Arc::new(Mutex::new(Some(key)));
    let layer = DistributedLockLayer::new_async(locks.clone(), move |_| {
        let key = key.lock().unwrap().take().unwrap();
        async move { key.await.ok() }
    });
    let mut service = layer.layer_on(noting(&leases));
    let mut response = service.call(request());
    assert!(poll!(&mut response).is_pending());
    assert!(leases.lock().unwrap().is_empty());
    send.send("a").unwrap();
    let response = response.await.unwrap();
    let lease = leases.lock().unwrap()[0].clone().unwrap();
    assert_eq!(lease.key().as_str(), "a");
    assert!(lease.is_held());
    assert!(!is_free(&locks, "a").await);
    assert_eq!(text(response).await, "done");
    assert!(is_free(&locks, "a").await);
}

#[tokio::test]
async fn a_request_that_is_dropped_before_its_key_is_found_drops_the_search() {
    let locks = LockManager::in_memory();
    let leases = Leases::default();
    let searched = Arc::new(());
    let layer = DistributedLockLayer::new_async(locks, {
        let searched = Arc::clone(&searched);
        move |_| {
            let searched = Arc::clone(&searched);
            async move {
                std::future::pending::<()>().await;
                drop(searched);
                "a"
            }
        }
    });
    let mut service = layer.layer_on(noting(&leases));
    let mut response = service.call(request());
    assert!(poll!(&mut response).is_pending());
    assert_eq!(Arc::strong_count(&searched), 3);
    drop(response);
    assert_eq!(Arc::strong_count(&searched), 2);
    assert!(leases.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_key_that_a_future_does_not_find_is_refused_like_any_other() {
    let locks = LockManager::in_memory();
    let leases = Leases::default();
    let layer = by_header(&locks);
    let mut strict = layer.clone().layer_on(noting(&leases));
    for (request, kind) in [
        (request(), RejectionKind::MissingKey),
        (request_for(""), RejectionKind::InvalidKey),
    ] {
        let response = strict.call(request).await.unwrap();
        let rejection = response.extensions().get::<Rejection>().unwrap();
        assert_eq!(rejection.kind(), kind);
        assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    }
    assert!(leases.lock().unwrap().is_empty());
    let mut lenient = layer.optional_key().layer_on(noting(&leases));
    let response = lenient.call(request()).await.unwrap();
    assert_eq!(text(response).await, "done");
    assert!(leases.lock().unwrap()[0].is_none());
}

#[tokio::test]
async fn a_future_that_fails_refuses_the_request_with_an_error_of_its_own() {
    let locks = LockManager::in_memory();
    let leases = Leases::default();
    let layer = DistributedLockLayer::new_async(locks, |_| async {
        Err::<u64, _>(Error::new(ErrorKind::Unavailable, "the sessions are away"))
    });
    // Redis is well: what the layer does without it does not count.
    let mut service = layer
        .on_unavailable(OnUnavailable::Proceed)
        .layer_on(noting(&leases));
    let response = service.call(request()).await.unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    let rejection = response.extensions().get::<Rejection>().unwrap();
    let error = rejection.error().unwrap();
    assert_eq!(error.to_string(), "the sessions are away");
    assert!(leases.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_layer_that_finds_its_key_later_is_refused_waits_and_is_not_locked_twice() {
    let locks = LockManager::in_memory();
    let leases = Leases::default();
    let layer = by_header(&locks);
    let guard = locks.try_acquire(("account", "a")).await.unwrap();
    let mut impatient = layer.layer_on(noting(&leases));
    let response = impatient.call(request_for("a")).await.unwrap();
    assert_eq!(response.status(), StatusCode::CONFLICT);
    let patient = layer.wait(WAIT);
    let mut twice = patient.clone().layer(patient.layer_on(noting(&leases)));
    let mut response = Box::pin(twice.call(request_for("a")));
    assert!(poll!(&mut response).is_pending());
    drop(guard);
    assert_eq!(text(response.await.unwrap()).await, "done");
    let lease = leases.lock().unwrap()[0].clone().unwrap();
    assert_eq!(lease.key().as_str(), "account:a");
}
