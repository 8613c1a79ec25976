//! Readiness, errors and when things happen; keys, and what a handler is told.

use std::task::Poll;

use bytes::Bytes;
use futures_util::poll;
use http::{Response, StatusCode};
use http_body_util::Full;
use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
use tower_distributed_lock::{
    DistributedLockLayer, Lease, LockKey, LockManager, key,
    lock::{Rejection, RejectionKind},
};

use super::{
    LayerOn, Leases, NotAnError, Request, WAIT, by_header, is_free, noting, on, request,
    request_for, text,
};
use crate::strict::Strict;
use crate::support::{RedisServer, minute, soon, value};

#[tokio::test]
async fn the_service_that_was_polled_ready_is_the_one_that_is_called() {
    let locks = LockManager::in_memory();
    let layer = by_header(&locks).optional_key().wait(WAIT);
    let nested = ServiceBuilder::new()
        .layer(on(&locks, "outer").wait(WAIT))
        .layer(layer.clone());
    let mut single = ServiceBuilder::new()
        .layer(layer)
        .service(Strict::<Request>::default());
    let mut nested = nested.service(Strict::<Request>::default());
    for _ in 0..3 {
        for request in [request_for("a"), request()] {
            let response = single.ready().await.unwrap().call(request).await.unwrap();
            assert_eq!(response.status(), StatusCode::OK);
        }
        for request in [request_for("a"), request_for("outer"), request()] {
            let response = nested.ready().await.unwrap().call(request).await.unwrap();
            assert_eq!(response.status(), StatusCode::OK);
        }
        // This request waits. Its service is called after the next one was polled ready.
        let guard = locks.try_acquire("a").await.unwrap();
        let mut first = single.ready().await.unwrap().call(request_for("a"));
        assert!(poll!(&mut first).is_pending());
        single.ready().await.unwrap();
        drop(guard);
        assert_eq!(first.await.unwrap().status(), StatusCode::OK);
        let second = single.call(request_for("a"));
        assert_eq!(second.await.unwrap().status(), StatusCode::OK);
    }
}

#[tokio::test]
async fn it_is_ready_when_the_service_inside_is() {
    let locks = LockManager::in_memory();
    let (mut service, mut handle) =
        tower_test::mock::spawn_layer::<Request, Response<Full<Bytes>>, _>(on(&locks, "a"));
    handle.allow(0);
    assert!(service.poll_ready().is_pending());
    handle.allow(1);
    assert!(service.is_woken());
    assert!(service.poll_ready().is_ready());
    let response = tokio::spawn(service.call(request()));
    let (_, send) = soon("the request comes", handle.next_request())
        .await
        .unwrap();
    assert!(!is_free(&locks, "a").await);
    assert!(service.poll_ready().is_pending());
    send.send_response(Response::new(Full::from("done")));
    let response = response.await.unwrap().unwrap();
    assert_eq!(text(response).await, "done");
    handle.allow(1);
    assert!(service.poll_ready().is_ready());
    handle.send_error("not ready any more");
    assert!(matches!(service.poll_ready(), Poll::Ready(Err(_))));
}

#[tokio::test]
async fn the_error_of_the_service_inside_comes_through_unchanged_and_the_lock_is_released() {
    fn with_error<S, E>(service: S) -> S
    where
        S: Service<Request, Error = E>,
    {
        service
    }
    let locks = LockManager::in_memory();
    for release_first in [false, true] {
        let failing = service_fn(async |_: Request| Err::<Response<Full<Bytes>>, _>(NotAnError(7)));
        let layer = by_header(&locks)
            .optional_key()
            .release_before_response(release_first);
        let mut service =
            with_error::<_, NotAnError>(ServiceBuilder::new().layer(layer).service(failing));
        assert_eq!(
            service.call(request_for("a")).await.unwrap_err(),
            NotAnError(7)
        );
        assert!(is_free(&locks, "a").await);
        assert_eq!(service.call(request()).await.unwrap_err(), NotAnError(7));
    }
}

#[tokio::test]
async fn nothing_happens_until_the_response_is_polled() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let stores = [
        LockManager::in_memory(),
        minute().connect(&server.url()).await.unwrap(),
    ];
    for locks in stores {
        let leases = Leases::default();
        let mut service = on(&locks, "a").wait(WAIT).layer_on(noting(&leases));
        let response = service.call(request());
        // Had a command been sent, it would have come before this one.
        let guard = locks.try_acquire("b").await.unwrap();
        assert_eq!(value(&redis, "lock:a").await, None);
        assert!(is_free(&locks, "a").await);
        assert!(leases.lock().unwrap().is_empty());
        guard.release().await.unwrap();
        drop(response);
        assert!(is_free(&locks, "a").await);
        let response = service.call(request()).await.unwrap();
        assert_eq!(text(response).await, "done");
    }
}

// Keys, and what a handler is told.

fn kind<B>(response: &Response<B>) -> Option<RejectionKind> {
    response.extensions().get().map(Rejection::kind)
}

#[tokio::test]
async fn a_request_without_a_key_runs_without_a_lock_where_it_may() {
    let locks = LockManager::in_memory();
    let leases = Leases::default();
    let mut service = by_header(&locks).optional_key().layer_on(noting(&leases));
    let response = service.call(request()).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert!(response.extensions().get::<Rejection>().is_none());
    assert_eq!(text(response).await, "done");
    assert!(leases.lock().unwrap()[0].is_none());
}

#[tokio::test]
async fn a_request_that_lacks_its_key_is_refused_in_all_ways_to_make_one() {
    let locks = LockManager::in_memory();
    let leases = Leases::default();
    let header = || key::header("x-key");
    for layer in [
        by_header(&locks),
        DistributedLockLayer::new(locks.clone(), |_| ("account", None::<u64>)),
        DistributedLockLayer::new(locks.clone(), header()),
        DistributedLockLayer::new(locks.clone(), key::scope("account", header())),
        DistributedLockLayer::new(locks.clone(), key::join(key::method_and_path(), header())),
    ] {
        let mut strict = layer.clone().layer_on(noting(&leases));
        let response = strict.call(request()).await.unwrap();
        assert_eq!(kind(&response), Some(RejectionKind::MissingKey));
        assert_eq!(response.status(), StatusCode::BAD_REQUEST);
        assert!(leases.lock().unwrap().is_empty());
        let mut lenient = layer.optional_key().layer_on(noting(&leases));
        lenient.call(request()).await.unwrap();
        assert!(leases.lock().unwrap().pop().unwrap().is_none());
    }
    let response = by_header(&locks)
        .layer_on(noting(&leases))
        .call(request_for("a"));
    assert_eq!(response.await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn a_request_that_cannot_have_a_key_is_refused_as_a_mistake_of_the_service() {
    let locks = LockManager::in_memory();
    let leases = Leases::default();
    let path = || key::path("/accounts/{id}");
    for layer in [
        DistributedLockLayer::from_extension(locks.clone()),
        DistributedLockLayer::new(locks.clone(), path()),
        DistributedLockLayer::new(locks.clone(), key::scope("account", path())),
        DistributedLockLayer::new(locks.clone(), key::join(path(), key::method_and_path())),
    ] {
        let mut strict = layer.clone().layer_on(noting(&leases));
        let response = strict.call(request()).await.unwrap();
        assert_eq!(kind(&response), Some(RejectionKind::Misconfigured));
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert!(leases.lock().unwrap().is_empty());
        let mut lenient = layer.optional_key().layer_on(noting(&leases));
        lenient.call(request()).await.unwrap();
        assert!(leases.lock().unwrap().pop().unwrap().is_none());
    }
}

#[tokio::test]
async fn an_invalid_key_is_refused_even_where_a_request_may_have_none() {
    let locks = LockManager::in_memory();
    let leases = Leases::default();
    for layer in [
        on(&locks, ""),
        by_header(&locks),
        DistributedLockLayer::new(locks.clone(), |_| LockKey::join(["a", ""])),
        DistributedLockLayer::new(locks.clone(), key::path("/{id}")),
    ] {
        for layer in [layer.clone(), layer.optional_key()] {
            let mut service = layer.layer_on(noting(&leases));
            let response = service.call(request_for("")).await.unwrap();
            assert_eq!(kind(&response), Some(RejectionKind::InvalidKey));
            assert_eq!(response.status(), StatusCode::BAD_REQUEST);
        }
    }
    assert!(leases.lock().unwrap().is_empty());
}

#[tokio::test]
async fn the_key_can_come_from_the_extensions() {
    let locks = LockManager::in_memory();
    let leases = Leases::default();
    let mut service = DistributedLockLayer::from_extension(locks.clone()).layer_on(noting(&leases));
    let mut with_key = request();
    let key = LockKey::join(["account", "7"]).unwrap();
    with_key.extensions_mut().insert(key.clone());
    service.call(with_key.clone()).await.unwrap();
    assert_eq!(leases.lock().unwrap()[0].as_ref().unwrap().key(), &key);
    let _guard = locks.try_acquire(key).await.unwrap();
    let response = service.call(with_key).await.unwrap();
    assert_eq!(response.status(), StatusCode::CONFLICT);
}

#[tokio::test]
async fn a_handler_finds_its_lease_with_the_key_and_a_rising_token() {
    let locks = LockManager::in_memory();
    let leases = Leases::default();
    let mut service = by_header(&locks).layer_on(noting(&leases));
    for _ in 0..50 {
        let response = service.call(request_for("a")).await.unwrap();
        // The lock is held until the response has been read.
        assert!(
            leases
                .lock()
                .unwrap()
                .last()
                .unwrap()
                .as_ref()
                .unwrap()
                .is_held()
        );
        text(response).await;
    }
    let leases = leases.lock().unwrap();
    let leases: Vec<&Lease> = leases.iter().map(|lease| lease.as_ref().unwrap()).collect();
    assert_eq!(leases.len(), 50);
    assert!(
        leases
            .iter()
            .all(|lease| lease.key().as_str() == "a" && !lease.is_held())
    );
    assert!(leases.is_sorted_by(|one, two| one.fencing_token() < two.fencing_token()));
}
