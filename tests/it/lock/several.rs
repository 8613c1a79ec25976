//! Several locks to one request.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::{BodyExt, Full};
use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
use tower_distributed_lock::{
    Lease, LockManager,
    lock::{OnLost, Rejection, RejectionKind, ResponseBody},
};

use super::{LayerOn, Leases, Request, WAIT, done, is_free, noting, on, request, text};
use crate::support::{Gate, soon};

#[tokio::test]
async fn a_request_does_not_wait_for_a_lock_that_it_holds_itself() {
    let locks = LockManager::in_memory();
    for wait in [false, true] {
        let a = match wait {
            true => on(&locks.clone(), "a").wait(WAIT),
            false => on(&locks, "a"),
        };
        let leases = Leases::default();
        let mut service = ServiceBuilder::new()
            .layer(a.clone())
            .layer(on(&locks, "b"))
            .layer(a.clone())
            .layer(a)
            .service(noting(&leases));
        let response = soon("no deadlock", service.call(request())).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert!(!is_free(&locks, "a").await && !is_free(&locks, "b").await);
        assert_eq!(text(response).await, "done");
        assert!(is_free(&locks, "a").await && is_free(&locks, "b").await);
        assert_eq!(leases.lock().unwrap().len(), 1);
    }
}

#[tokio::test]
async fn a_lock_that_a_request_holds_already_ends_with_its_first_layer() {
    let locks = LockManager::in_memory();
    let (inner, outer) = (Gate::new(), Gate::new());
    let handler = service_fn({
        let inner = inner.clone();
        move |_: Request| {
            let inner = inner.clone();
            async move {
                inner.pass().await;
                done()
            }
        }
    });
    let between = tower::layer::layer_fn({
        let outer = outer.clone();
        move |service| {
            let outer = outer.clone();
            let service: tower::util::BoxCloneService<Request, _, Infallible> = service;
            service_fn(move |req: Request| {
                let (outer, service) = (outer.clone(), service.clone());
                async move {
                    let response: Response<ResponseBody<Full<Bytes>>> =
                        service.oneshot(req).await?;
                    let body = response.into_body().collect().await.unwrap().to_bytes();
                    outer.pass().await;
                    Ok::<_, Infallible>(Response::new(Full::new(body)))
                }
            })
        }
    });
    let inside = ServiceExt::<Request>::boxed_clone(on(&locks, "a").layer_on(handler));
    let service = ServiceBuilder::new()
        .layer(on(&locks, "a"))
        .layer(between)
        .service(inside);
    let running = tokio::spawn(service.oneshot(request()));
    inner.arrived().await;
    assert!(!is_free(&locks, "a").await);
    inner.open();
    outer.arrived().await;
    // The inner layer has finished with the request and its body.
    assert!(!is_free(&locks, "a").await);
    outer.open();
    assert_eq!(text(running.await.unwrap().unwrap()).await, "done");
    assert!(is_free(&locks, "a").await);
}

#[tokio::test]
async fn a_request_can_hold_two_locks_and_finds_the_inner_lease() {
    let locks = LockManager::in_memory();
    let leases = Leases::default();
    let mut service = ServiceBuilder::new()
        .layer(on(&locks, "a"))
        .layer(on(&locks, "b"))
        .service(noting(&leases));
    let response = service.call(request()).await.unwrap();
    let inner = leases.lock().unwrap()[0].clone().unwrap();
    assert_eq!(inner.key().as_str(), "b");
    assert!(!is_free(&locks, "a").await && !is_free(&locks, "b").await);
    drop(response);
    assert!(is_free(&locks, "a").await && is_free(&locks, "b").await);
    // If the inner lock is taken, the outer one is given back.
    let guard = locks.try_acquire("b").await.unwrap();
    let response = service.call(request()).await.unwrap();
    assert_eq!(response.status(), StatusCode::CONFLICT);
    drop(response);
    assert!(is_free(&locks, "a").await);
    drop(guard);
}

#[tokio::test]
async fn two_managers_lock_the_same_key_twice() {
    let (one, two) = (LockManager::in_memory(), LockManager::in_memory());
    let leases = Leases::default();
    let mut service = ServiceBuilder::new()
        .layer(on(&one, "a"))
        .layer(on(&two, "a"))
        .service(noting(&leases));
    let response = service.call(request()).await.unwrap();
    assert!(!is_free(&one, "a").await && !is_free(&two, "a").await);
    drop(response);
    assert!(is_free(&one, "a").await && is_free(&two, "a").await);
    let guard = two.try_acquire("a").await.unwrap();
    let response = service.call(request()).await.unwrap();
    assert_eq!(response.status(), StatusCode::CONFLICT);
    drop(guard);
}

#[tokio::test]
async fn a_lost_lock_does_not_let_its_request_through_a_second_time() {
    let locks = LockManager::builder()
        .max_hold(Duration::from_millis(30))
        .in_memory()
        .unwrap();
    let leases = Leases::default();
    let inside = ServiceExt::<Request>::boxed_clone(on(&locks, "a").layer_on(noting(&leases)));
    let loses = service_fn(move |req: Request| {
        let inside = inside.clone();
        async move {
            req.extensions().get::<Lease>().unwrap().lost().await;
            inside.oneshot(req).await
        }
    });
    let mut service = on(&locks, "a").on_lost(OnLost::Continue).layer_on(loses);
    let response = soon("a refusal", service.call(request())).await.unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    let rejection = response.extensions().get::<Rejection>().unwrap();
    assert_eq!(rejection.kind(), RejectionKind::Lost);
    assert!(leases.lock().unwrap().is_empty());
}
