//! Requests that share their lock, by the layer's mode.

use futures_util::poll;
use http::{Method, StatusCode};
use tower::{Service, service_fn};
use tower_distributed_lock::{
    Lease, LockManager, Mode,
    lock::{Rejection, RejectionKind, share_safe_methods},
};

use super::{LayerOn, Leases, Request, WAIT, done, noting, on, request};
use crate::support::{Gate, soon};

fn with(method: Method) -> Request {
    let mut request = request();
    *request.method_mut() = method;
    request
}

#[tokio::test]
async fn safe_methods_share_the_lock_and_the_others_have_it_alone() {
    let locks = LockManager::in_memory();
    let gate = Gate::new();
    let passing = gate.clone();
    let handler = service_fn(move |request: Request| {
        let gate = passing.clone();
        async move {
            let lease = request.extensions().get::<Lease>().unwrap();
            let shares = lease.mode() == Mode::Shared;
            assert_eq!(shares, request.method().is_safe());
            gate.pass().await;
            done()
        }
    });
    let mut service = on(&locks, "a").mode(share_safe_methods).layer_on(handler);
    let safe = [Method::GET, Method::HEAD, Method::OPTIONS, Method::TRACE];
    let unsafe_ones = [Method::POST, Method::PUT, Method::PATCH, Method::DELETE];
    let mut reading: Vec<_> = safe
        .iter()
        .map(|method| Box::pin(service.call(with(method.clone()))))
        .collect();
    for one in &mut reading {
        assert!(poll!(one).is_pending());
        gate.arrived().await;
    }
    for method in &unsafe_ones {
        let response = service.call(with(method.clone())).await.unwrap();
        assert_eq!(response.status(), StatusCode::CONFLICT, "{method}");
    }
    for one in reading {
        gate.open();
        let response = soon("it runs", one).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
    }
    for method in unsafe_ones {
        let mut writing = Box::pin(service.call(with(method.clone())));
        assert!(poll!(&mut writing).is_pending());
        gate.arrived().await;
        let response = service.call(with(Method::GET)).await.unwrap();
        assert_eq!(response.status(), StatusCode::CONFLICT, "{method}");
        gate.open();
        let response = soon("it runs", writing).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
    }
}

#[tokio::test]
async fn the_closure_decides_for_each_request() {
    let locks = LockManager::in_memory();
    let leases = Leases::default();
    let mut service = on(&locks, "a")
        .mode(|req| match req.headers.contains_key("x-reads") {
            true => Mode::Shared,
            false => Mode::Exclusive,
        })
        .layer_on(noting(&leases));
    service.call(request()).await.unwrap();
    let mut reads = request();
    reads.headers_mut().insert("x-reads", "1".parse().unwrap());
    service.call(reads).await.unwrap();
    let leases = leases.lock().unwrap();
    let modes: Vec<_> = leases.iter().flatten().map(Lease::mode).collect();
    assert_eq!(modes, [Mode::Exclusive, Mode::Shared]);
}

#[tokio::test]
async fn a_request_that_shares_its_lock_is_refused_where_it_would_have_it_alone() {
    let locks = LockManager::in_memory();
    let shares = on(&locks, "a").mode(|_| Mode::Shared).wait(WAIT);
    let alone = on(&locks, "a").wait(WAIT);
    let handler = || service_fn(async |_: Request| done());
    let mut upgrading = shares.layer_on(alone.layer_on(handler()));
    let response = soon("no deadlock", upgrading.call(request()))
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    let rejection = response.extensions().get::<Rejection>().unwrap();
    assert_eq!(rejection.kind(), RejectionKind::Misconfigured);
    drop(response);
    // The other way round, the request has more than it asks for. And it may share twice.
    for outer in [&alone, &shares] {
        let mut nested = outer.layer_on(shares.layer_on(handler()));
        let response = soon("it runs", nested.call(request())).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
    }
}
