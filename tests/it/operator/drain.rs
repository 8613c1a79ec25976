//! A process that is about to shut down.

use http::StatusCode;
use tower::{Layer, ServiceExt, service_fn};
use tower_distributed_lock::{DistributedLockLayer, ErrorKind, lock::OnUnavailable};

use crate::nodes::Store;
use crate::support::{PATIENCE, eventually, eventually_no_trace, soon};

on_every_store!(Store:
    a_process_that_drains_takes_no_locks_lets_waiters_go_and_keeps_what_it_holds
    a_layer_answers_with_503
    no_request_runs_unlocked_as_its_process_drains
);

async fn a_process_that_drains_takes_no_locks_lets_waiters_go_and_keeps_what_it_holds(
    store: Store,
) {
    let locks = store.locks().await;
    let guard = locks.try_acquire("k").await.unwrap();
    let waiting = tokio::spawn({
        let locks = locks.clone();
        async move { locks.acquire("k", PATIENCE).await }
    });
    eventually("it waits", || async { locks.stats().waiting == 1 }).await;
    locks.drain();
    let error = soon("it is let go", waiting).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("shut down"), "{error}");
    for key in ["k", "another"] {
        let error = locks.acquire(key, PATIENCE).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
    }
    assert!(locks.stats().is_draining);
    assert_eq!(
        locks.ping().await.unwrap_err().kind(),
        ErrorKind::Unavailable
    );
    assert_eq!(locks.stats().held, 1);
    assert!(guard.lease().is_held());
    guard.release().await.unwrap();
    soon("an end", locks.close()).await;
    if let Some(server) = &store.server {
        eventually_no_trace(&server.client().await).await;
    }
}

async fn a_layer_answers_with_503(store: Store) {
    let locks = store.locks().await;
    let layer = DistributedLockLayer::new(locks.clone(), |_| "k");
    let service = layer.layer(service_fn(async |_: http::Request<String>| {
        Ok::<_, std::convert::Infallible>(http::Response::new(String::new()))
    }));
    locks.drain();
    let response = service.oneshot(http::Request::default()).await.unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
}

async fn no_request_runs_unlocked_as_its_process_drains(store: Store) {
    let locks = store.locks().await;
    let _guard = locks.try_acquire("k").await.unwrap();
    let layer = DistributedLockLayer::new(locks.clone(), |_| "k")
        .wait(PATIENCE)
        .on_unavailable(OnUnavailable::Proceed);
    let service = layer.layer(service_fn(async |_: http::Request<String>| {
        Ok::<_, std::convert::Infallible>(http::Response::new(String::new()))
    }));
    let waits = tokio::spawn(service.clone().oneshot(http::Request::default()));
    eventually("it waits", || async { locks.stats().waiting == 1 }).await;
    locks.drain();
    let waited = soon("it is let go", waits).await.unwrap().unwrap();
    assert_eq!(waited.status(), StatusCode::SERVICE_UNAVAILABLE);
    let response = service.oneshot(http::Request::default()).await.unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
}
