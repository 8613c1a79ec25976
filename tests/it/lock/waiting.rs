//! Requests that wait for their lock, and for how long.

use std::time::Duration;

use futures_util::poll;
use http::StatusCode;
use tower::{Service, ServiceExt, service_fn};
use tower_distributed_lock::{
    DistributedLockLayer, LockManager,
    lock::{Rejection, RejectionKind, prefer_wait},
};

use super::{LayerOn, Leases, Request, WAIT, done, grpc_request, noting, on, request, text};
use crate::support::{RedisServer, soon};

#[tokio::test]
async fn a_waiting_request_runs_when_its_turn_comes_and_leaves_the_queue_when_dropped() {
    let locks = LockManager::builder()
        .max_waiters_per_key(2)
        .in_memory()
        .unwrap();
    let leases = Leases::default();
    let mut service = on(&locks, "a").wait(WAIT).layer_on(noting(&leases));
    let guard = locks.try_acquire("a").await.unwrap();
    let mut first = service.call(request());
    let mut second = service.call(request());
    assert!(poll!(&mut first).is_pending() && poll!(&mut second).is_pending());
    let third = service.call(request()).await.unwrap();
    assert_eq!(third.status(), StatusCode::SERVICE_UNAVAILABLE);
    drop(first);
    let mut third = service.call(request());
    assert!(poll!(&mut third).is_pending());
    assert!(guard.lease().is_held());
    drop(guard);
    assert_eq!(text(soon("its turn", second).await.unwrap()).await, "done");
    assert_eq!(text(soon("its turn", third).await.unwrap()).await, "done");
    assert_eq!(leases.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn a_grpc_call_waits_no_longer_than_its_client() {
    let locks = LockManager::in_memory();
    let _guard = locks.try_acquire("a").await.unwrap();
    let call = |timeout: &'static str, content_type| {
        let mut request = grpc_request(content_type);
        let headers = request.headers_mut();
        headers.insert("grpc-timeout", timeout.parse().unwrap());
        let mut service = on(&locks, "a")
            .wait(WAIT)
            .layer_on(service_fn(async |_: Request| done()));
        let mut response = Box::pin(service.call(request));
        async move {
            assert!(poll!(&mut response).is_pending());
            response.await
        }
    };
    let response = soon("a response", call("20m", "application/grpc"))
        .await
        .unwrap();
    assert_eq!(response.headers()["grpc-status"], "10");
    // A longer timeout changes nothing, nor does one that makes no sense, nor that of a request
    // that is not gRPC.
    for (timeout, content_type) in [
        ("20H", "application/grpc"),
        ("soon", "application/grpc"),
        ("20m", "application/json"),
    ] {
        let waiting = call(timeout, content_type);
        let result = tokio::time::timeout(Duration::from_millis(60), waiting).await;
        assert!(result.is_err(), "{timeout} {content_type}");
    }
}

/// The lock may be outside the layer that translates gRPC-Web to gRPC.
#[tokio::test]
async fn a_grpc_web_call_waits_no_longer_than_its_client_and_is_told_in_http() {
    let locks = LockManager::in_memory();
    let _guard = locks.try_acquire("a").await.unwrap();
    for content_type in [
        "application/grpc-web",
        "application/grpc-web+proto",
        "application/grpc-web-text",
        "application/grpc-web-text+proto",
        "Application/gRPC-Web; charset=utf-8",
    ] {
        let mut request = grpc_request(content_type);
        let headers = request.headers_mut();
        headers.insert("grpc-timeout", "20m".parse().unwrap());
        let layer = on(&locks, "a").wait(Duration::from_secs(3600));
        let mut service = layer.layer_on(service_fn(async |_: Request| done()));
        let response = soon("a response", service.call(request)).await.unwrap();
        assert_eq!(response.status(), StatusCode::CONFLICT, "{content_type}");
        assert!(response.headers().get("grpc-status").is_none());
        let rejection = response.extensions().get::<Rejection>().unwrap();
        assert_eq!(rejection.kind(), RejectionKind::TimedOut);
        assert!(!rejection.is_grpc());
    }
    // Content types that only look like it.
    for content_type in ["application/grpc-webs", "application/grpc-web-textual"] {
        let mut request = grpc_request(content_type);
        let headers = request.headers_mut();
        headers.insert("grpc-timeout", "20m".parse().unwrap());
        let layer = on(&locks, "a").wait(Duration::from_secs(3600));
        let mut service = layer.layer_on(service_fn(async |_: Request| done()));
        let waiting = tokio::time::timeout(Duration::from_millis(60), service.call(request));
        assert!(waiting.await.is_err(), "{content_type}");
    }
}

#[tokio::test]
async fn requests_one_after_the_other_never_get_a_conflict() {
    let server = RedisServer::start().await;
    for locks in [
        LockManager::in_memory(),
        LockManager::connect(&server.url()).await.unwrap(),
    ] {
        let leases = Leases::default();
        let mut service = on(&locks, "a").layer_on(noting(&leases));
        for number in 0..1000 {
            let response = service.ready().await.unwrap().call(request());
            let response = response.await.unwrap();
            assert_eq!(response.status(), StatusCode::OK, "request {number}");
            assert_eq!(text(response).await, "done");
        }
        assert_eq!(leases.lock().unwrap().len(), 1000);
    }
}

#[tokio::test]
async fn a_wait_of_zero_is_no_wait() {
    let locks = LockManager::in_memory();
    let guard = locks.try_acquire("a").await.unwrap();
    let service = on(&locks, "a")
        .wait(WAIT)
        .wait(Duration::ZERO)
        .layer_on(noting(&Leases::default()));
    let response = service.clone().oneshot(request()).await.unwrap();
    let rejection = response.extensions().get::<Rejection>().unwrap();
    assert_eq!(rejection.kind(), RejectionKind::Held);
    drop(guard);
    let response = service.oneshot(request()).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
}

#[test]
#[should_panic(expected = "wait is longer than a day: 172800s")]
fn a_wait_of_two_days_panics_and_says_why() {
    let _ = on(&LockManager::in_memory(), "a").wait(Duration::from_secs(2 * 24 * 3600));
}

#[test]
fn a_wait_of_a_day_is_fine() {
    let _ = on(&LockManager::in_memory(), "a").wait(Duration::from_secs(24 * 3600));
}

#[tokio::test]
async fn a_request_waits_for_as_long_as_it_says_itself() {
    let locks = LockManager::in_memory();
    let guard = locks.try_acquire("a").await.unwrap();
    let layer = on(&locks, "a").wait_for(prefer_wait(Duration::from_millis(20)));
    let kind = async |layer: DistributedLockLayer, prefer: Option<&str>| {
        let mut request = request();
        if let Some(prefer) = prefer {
            let headers = request.headers_mut();
            headers.insert("prefer", prefer.parse().unwrap());
        }
        let service = layer.layer_on(noting(&Leases::default()));
        let response = soon("a response", service.oneshot(request)).await.unwrap();
        let rejection = response.extensions().get::<Rejection>().unwrap().clone();
        (rejection.kind(), rejection.waited())
    };
    let waiting = layer.clone().wait(Duration::from_secs(3600));
    assert_eq!(
        kind(waiting.clone(), Some("wait=0")).await.0,
        RejectionKind::Held
    );
    // No longer than the layer allows.
    let (why, waited) = kind(waiting, Some("wait=60")).await;
    assert_eq!(why, RejectionKind::TimedOut);
    assert!(waited >= Duration::from_millis(20), "{waited:?}");
    // A request that says nothing waits as the layer is set.
    assert_eq!(kind(layer.clone(), None).await.0, RejectionKind::Held);
    let brief = layer.clone().wait(Duration::from_millis(1));
    assert_eq!(kind(brief, None).await.0, RejectionKind::TimedOut);
    // More than a day is a day, and no panic.
    let for_ever = layer.wait_for(|_| Some(Duration::MAX));
    let service = for_ever.layer_on(noting(&Leases::default()));
    let mut waiting = Box::pin(service.oneshot(request()));
    assert!(poll!(&mut waiting).is_pending());
    drop(guard);
    let response = soon("its turn", waiting).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
}
