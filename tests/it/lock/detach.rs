//! Detached requests.

use std::convert::Infallible;
use std::future::{Future, ready};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::{FutureExt, poll};
use http::{Response, StatusCode};
use http_body_util::Full;
use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
use tower_distributed_lock::{DetachLayer, LockManager, lock::ResponseBody};

use super::{Answer, LayerOn, NotAnError, Request, WAIT, done, gated, is_free, on, request, text};
use crate::support::{Gate, eventually};

/// A handler behind a gate, which counts how often it came to its end.
fn counting(
    gate: &Gate,
    finished: &Arc<AtomicU64>,
) -> impl Service<Request, Response = Response<Full<Bytes>>, Error = Infallible, Future: Send>
+ Clone
+ Send
+ use<> {
    let finished = Arc::clone(finished);
    gated(gate, move || {
        finished.fetch_add(1, Ordering::SeqCst);
        done()
    })
}

#[tokio::test]
async fn a_detached_request_goes_on_with_its_lock_when_it_is_dropped() {
    let locks = LockManager::in_memory();
    let (gate, finished) = (Gate::new(), Arc::new(AtomicU64::new(0)));
    let mut service = ServiceBuilder::new()
        .layer(DetachLayer::new())
        .layer(on(&locks, "a").wait(WAIT))
        .service(counting(&gate, &finished));
    let mut first = service.ready().await.unwrap().call(request());
    assert!(poll!(&mut first).is_pending());
    gate.arrived().await;
    // The second request waits for the lock.
    let mut second = service.ready().await.unwrap().call(request());
    assert!(poll!(&mut second).is_pending());
    tokio::task::yield_now().await;
    drop(first);
    drop(second);
    for _ in 0..10 {
        tokio::task::yield_now().await;
        assert!(!is_free(&locks, "a").await);
        assert!(gate.nobody_else());
    }
    gate.open();
    gate.arrived().await;
    assert_eq!(finished.load(Ordering::SeqCst), 1);
    assert!(!is_free(&locks, "a").await);
    gate.open();
    eventually("the lock is free", || is_free(&locks, "a")).await;
    assert_eq!(finished.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn without_detaching_a_dropped_request_ends_with_its_lock() {
    let locks = LockManager::in_memory();
    let (gate, finished) = (Gate::new(), Arc::new(AtomicU64::new(0)));
    let mut service = on(&locks, "a").layer_on(counting(&gate, &finished));
    let mut response = Box::pin(service.call(request()));
    assert!(poll!(&mut response).is_pending());
    gate.arrived().await;
    assert!(!is_free(&locks, "a").await);
    drop(response);
    assert!(is_free(&locks, "a").await);
    assert_eq!(finished.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn detached_inside_of_the_lock_the_work_outlives_it() {
    let locks = LockManager::in_memory();
    let (gate, finished) = (Gate::new(), Arc::new(AtomicU64::new(0)));
    let mut service = ServiceBuilder::new()
        .layer(on(&locks, "a"))
        .layer(DetachLayer::new())
        .service(counting(&gate, &finished));
    let mut response = Box::pin(service.call(request()));
    assert!(poll!(&mut response).is_pending());
    gate.arrived().await;
    assert!(!is_free(&locks, "a").await);
    drop(response);
    assert!(is_free(&locks, "a").await);
    gate.open();
    eventually("the work is done", || {
        ready(finished.load(Ordering::SeqCst) == 1)
    })
    .await;
}

#[tokio::test]
async fn a_detached_request_is_answered_like_any_other() {
    let locks = LockManager::in_memory();
    let service = ServiceBuilder::new()
        .layer(DetachLayer::new())
        .layer(on(&locks, "a"))
        .service(service_fn(async |_: Request| done()));
    let response = service.clone().oneshot(request()).await.unwrap();
    // The response body holds the lock, as always.
    assert!(!is_free(&locks, "a").await);
    let conflict = service.clone().oneshot(request()).await.unwrap();
    assert_eq!(conflict.status(), StatusCode::CONFLICT);
    assert_eq!(text(response).await, "done");
    assert!(is_free(&locks, "a").await);
    let failing = service_fn(async |_: Request| Err::<Response<Full<Bytes>>, _>(NotAnError(7)));
    let service = ServiceBuilder::new()
        .layer(DetachLayer::new())
        .service(failing);
    assert_eq!(service.oneshot(request()).await.unwrap_err(), NotAnError(7));
}

#[tokio::test]
async fn a_panic_reaches_the_caller_detached_or_not_and_the_lock_is_released() {
    async fn payload(
        response: impl Future<Output = Answer<ResponseBody<Full<Bytes>>>>,
    ) -> &'static str {
        let caught = AssertUnwindSafe(response).catch_unwind().await;
        let payload = caught.map(drop).unwrap_err();
        payload.downcast_ref::<&'static str>().unwrap()
    }
    let locks = LockManager::in_memory();
    let panicking = service_fn(async |_: Request| -> Answer {
        tokio::task::yield_now().await;
        panic!("of the handler")
    });
    let in_call =
        service_fn(|_: Request| -> std::future::Ready<Answer> { panic!("of the handler") });
    let detach = ServiceBuilder::new().layer(DetachLayer::new());
    let layer = on(&locks, "a");
    let detached = detach.clone().layer(layer.clone()).service(panicking);
    assert_eq!(payload(detached.oneshot(request())).await, "of the handler");
    assert!(is_free(&locks, "a").await);
    let detached = detach.layer(layer.clone()).service(in_call);
    assert_eq!(payload(detached.oneshot(request())).await, "of the handler");
    assert!(is_free(&locks, "a").await);
    let plain = layer.layer_on(panicking);
    assert_eq!(payload(plain.oneshot(request())).await, "of the handler");
    assert!(is_free(&locks, "a").await);
    let plain = layer.layer_on(in_call);
    assert_eq!(payload(plain.oneshot(request())).await, "of the handler");
    assert!(is_free(&locks, "a").await);
}
