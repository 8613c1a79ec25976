//! Taking a lock from its holder: off, unless it is allowed, and not for other sites.

use http::{Method, StatusCode};
use tower_distributed_lock::inspector::Inspector;
use tower_distributed_lock::{LockGuard, LockManager, LostReason, inspector};

use super::{json, send, text, view};
use crate::nodes::Store;
use crate::support::soon;

const OURS: (&str, &str) = ("x-tower-distributed-lock", "force-release");

on_every_store!(Store:
    a_lock_is_taken_from_its_holder_if_that_is_allowed
);

/// Holds a lock, and returns the address at which it is taken away.
async fn held(page: &Inspector, locks: &LockManager) -> (LockGuard, String) {
    let guard = locks.try_acquire("k").await.unwrap();
    let found = send(page, Method::POST, "/?view=lock", &[], "k").await;
    let id = json(found).await["id"].as_str().unwrap().to_owned();
    (guard, format!("/locks?do=force-release&id={id}"))
}

async fn a_lock_is_taken_from_its_holder_if_that_is_allowed(store: Store) {
    let locks = store.locks().await;
    let page = inspector(locks.clone()).allow_force_release(true);
    assert_eq!(view(&page, "snapshot").await["allows_force_release"], true);
    let (guard, uri) = held(&page, &locks).await;
    let headers = [OURS, ("sec-fetch-site", "same-origin")];
    let done = json(send(&page, Method::POST, &uri, &headers, "").await).await;
    assert_eq!(done["was_held"], true);
    assert_eq!(soon("it is told", guard.lost()).await, LostReason::Taken);
    drop(guard);
    let done = json(send(&page, Method::POST, &uri, &headers, "").await).await;
    assert_eq!(done["was_held"], false);
}

/// Sends a request that must not take the lock, and returns what it is told.
async fn refused(page: &Inspector, method: Method, uri: &str, headers: &[(&str, &str)]) -> String {
    let response = send(page, method.clone(), uri, headers, "").await;
    let expected = match method {
        Method::POST => StatusCode::FORBIDDEN,
        _ => StatusCode::METHOD_NOT_ALLOWED,
    };
    assert_eq!(response.status(), expected, "{headers:?}");
    text(response).await
}

#[tokio::test]
async fn it_is_off_unless_it_is_allowed() {
    let locks = LockManager::in_memory();
    let page = inspector(locks.clone());
    assert_eq!(view(&page, "snapshot").await["allows_force_release"], false);
    let (guard, uri) = held(&page, &locks).await;
    let headers = [OURS, ("sec-fetch-site", "same-origin")];
    let why = refused(&page, Method::POST, &uri, &headers).await;
    assert!(why.contains("allow_force_release"), "{why}");
    assert!(guard.lease().is_held());
}

#[tokio::test]
async fn what_another_site_may_have_sent_is_refused() {
    let locks = LockManager::in_memory();
    let page = inspector(locks.clone()).allow_force_release(true);
    let (guard, uri) = held(&page, &locks).await;
    let host = ("host", "api.internal:3000");
    // What a form can send, with and without cookies.
    let form = ("content-type", "application/x-www-form-urlencoded");
    let why = refused(&page, Method::POST, &uri, &[form, host]).await;
    assert!(why.contains("x-tower-distributed-lock"), "{why}");
    for headers in [
        [OURS, host, ("sec-fetch-site", "cross-site")],
        [OURS, host, ("sec-fetch-site", "same-site")],
        [OURS, host, ("origin", "https://evil.example")],
        [OURS, host, ("origin", "http://api.internal:4000")],
        [OURS, host, ("origin", "null")],
    ] {
        let why = refused(&page, Method::POST, &uri, &headers).await;
        assert!(why.contains("another site"), "{why}");
    }
    // A link, an image, and the question of a script of another site whether it may.
    for method in [Method::GET, Method::HEAD, Method::OPTIONS, Method::PUT] {
        refused(&page, method, &uri, &[OURS, host]).await;
    }
    assert!(guard.lease().is_held());
    let origin = ("origin", "http://api.internal:3000");
    let done = json(send(&page, Method::POST, &uri, &[OURS, host, origin], "").await).await;
    assert_eq!(done["was_held"], true);
}

#[tokio::test]
async fn a_lock_that_was_not_shown_cannot_be_taken() {
    let locks = LockManager::in_memory();
    let guard = locks.try_acquire("k").await.unwrap();
    let page = inspector(locks.clone()).allow_force_release(true);
    let fingerprint = guard.key().fingerprint();
    for id in [&*fingerprint, "0000000000000000", "k", ""] {
        let uri = format!("/?do=force-release&id={id}");
        let response = send(&page, Method::POST, &uri, &[OURS], "").await;
        assert_eq!(response.status(), StatusCode::NOT_FOUND, "{id}");
    }
    assert!(guard.lease().is_held());
}
