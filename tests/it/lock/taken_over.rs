//! Locks that the handler takes over from the layer.

use std::convert::Infallible;
use std::sync::Mutex;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::{Request as HttpRequest, Response, StatusCode, Version};
use http_body_util::Full;
use tokio_tungstenite::connect_async;
use tokio_tungstenite::tungstenite::Message;
use tower::{Service, ServiceExt, service_fn};
use tower_distributed_lock::{
    IdempotencyLayer, Lease, LockGuard, LockManager, LostReason,
    lock::{Hold, RejectionKind},
};

use super::{Answer, LayerOn, Request, WAIT, brief, by_header, done, is_free, on, request, text};
use crate::servers::axum_on;
use crate::support::{RedisServer, eventually, soon};

type Kept = std::sync::Arc<Mutex<Vec<LockGuard>>>;

/// Takes the lock over, and keeps it in `kept`.
fn keeping(
    kept: &Kept,
) -> impl Service<Request, Response = Response<Full<Bytes>>, Error = Infallible, Future: Send + Unpin>
+ Clone
+ Send
+ use<> {
    let kept = kept.clone();
    service_fn(move |req: Request| {
        let lease = req.extensions().get::<Lease>().unwrap().clone();
        kept.lock().unwrap().push(lease.take_over().unwrap());
        assert!(lease.take_over().is_none(), "it is given once");
        std::future::ready(done())
    })
}

#[tokio::test]
async fn a_lock_that_was_taken_over_is_held_until_its_guard_is_dropped() {
    let server = RedisServer::start().await;
    for locks in [
        LockManager::in_memory(),
        LockManager::connect(&server.url()).await.unwrap(),
    ] {
        for layer in [
            on(&locks, "a"),
            on(&locks, "a").hold(Hold::Head),
            on(&locks, "a").release_before_response(true),
        ] {
            let kept = Kept::default();
            let service = layer.layer_on(keeping(&kept));
            let response = service.clone().oneshot(request()).await.unwrap();
            assert_eq!(response.status(), StatusCode::OK);
            assert_eq!(text(response).await, "done");
            assert!(!is_free(&locks, "a").await);
            let guard = kept.lock().unwrap().pop().unwrap();
            assert!(guard.lease().is_held());
            guard.release().await.unwrap();
            assert!(is_free(&locks, "a").await);
        }
    }
}

#[tokio::test]
async fn a_handler_that_releases_before_it_answers_has_not_lost_the_lock() {
    let locks = LockManager::in_memory();
    let service = on(&locks, "a").layer_on(service_fn(async |req: Request| -> Answer {
        let lease = req.extensions().get::<Lease>().unwrap().clone();
        drop(lease.take_over().unwrap());
        assert_eq!(lease.lost().await, LostReason::Released);
        tokio::task::yield_now().await;
        done()
    }));
    let response = service.oneshot(request()).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_handler_is_stopped_when_the_lock_that_it_took_over_is_lost() {
    let locks = brief();
    let service = on(&locks, "a").layer_on(service_fn(async |req: Request| -> Answer {
        let lease = req.extensions().get::<Lease>().unwrap();
        let _guard = lease.take_over().unwrap();
        std::future::pending().await
    }));
    let response = soon("it is stopped", service.oneshot(request())).await;
    let response = response.unwrap();
    assert_eq!(super::rejection(&response).kind(), RejectionKind::Lost);
    drop(soon("it is free", locks.acquire("a", WAIT)).await.unwrap());
}

#[tokio::test]
async fn what_the_layer_does_not_hold_cannot_be_taken_over() {
    let locks = LockManager::in_memory();
    // By another than the layer.
    let guard = locks.try_acquire("a").await.unwrap();
    assert!(guard.lease().take_over().is_none());
    drop(guard);
    // After the layer has released it.
    let leases = super::Leases::default();
    let service = by_header(&locks).layer_on(super::noting(&leases));
    let response = service.oneshot(super::request_for("a")).await.unwrap();
    text(response).await;
    let lease = leases.lock().unwrap().pop().unwrap().unwrap();
    assert!(lease.take_over().is_none());
    // The lock of an idempotency key, in whose place the response is to come.
    let layer = IdempotencyLayer::new(locks);
    let service = tower::Layer::layer(
        &layer,
        service_fn(async |req: HttpRequest<_>| -> Answer {
            let _: &HttpRequest<tower_distributed_lock::idempotency::IdempotencyBody<Full<Bytes>>> =
                &req;
            let lease = req.extensions().get::<Lease>().unwrap();
            assert!(lease.take_over().is_none());
            done()
        }),
    );
    let request = HttpRequest::post("/").header("idempotency-key", "k");
    let request = request.body(Full::<Bytes>::default()).unwrap();
    let response = service.oneshot(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_websocket_holds_its_lock_until_it_is_closed() {
    let locks = LockManager::in_memory();
    let address = axum_on(crate::websocket::app(&locks)).await;
    let client = crate::servers::client(Version::HTTP_11);
    let status = async || {
        let request = HttpRequest::delete(format!("http://{address}/documents/7"));
        let request = request.body(Full::<Bytes>::default()).unwrap();
        client.request(request).await.unwrap().status()
    };
    let edit = |id: u32| format!("ws://{address}/documents/{id}/edit");
    let (mut socket, _) = connect_async(edit(7)).await.unwrap();
    socket.send(Message::text("hello")).await.unwrap();
    let reply = soon("it is served", socket.next()).await.unwrap();
    assert_eq!(reply.unwrap(), Message::text("hello"));
    assert_eq!(status().await, StatusCode::CONFLICT);
    assert!(connect_async(edit(7)).await.is_err(), "one at a time");
    let (_other, _) = connect_async(edit(8)).await.unwrap();
    socket.close(None).await.unwrap();
    eventually("the lock is free", || async {
        status().await == StatusCode::OK
    })
    .await;
    // Nor does a request that is no WebSocket keep it.
    let plain = HttpRequest::get(format!("http://{address}/documents/7/edit"));
    let plain = plain.body(Full::<Bytes>::default()).unwrap();
    let refused = client.request(plain).await.unwrap().status();
    assert!(refused.is_client_error() && refused != StatusCode::CONFLICT);
    assert_eq!(status().await, StatusCode::OK);
}
