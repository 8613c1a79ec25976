//! Requests that do not run, and what their clients are told.

use std::future::{pending, ready};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::poll;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{Response, StatusCode};
use http_body::Body;
use http_body_util::{BodyExt, Full};
use tower::{Service, service_fn};
use tower_distributed_lock::{
    DistributedLockLayer, ErrorKind, Lease, LockKey, LockManager,
    lock::{OnUnavailable, Rejection, RejectionKind, ResponseBody, Unlocked},
};

use super::{Answer, LayerOn, Request, WAIT, done, grpc_request, on, request, text};
use crate::support::{ClosedPort, soon};

/// Returns the response to a request that is refused for this reason, and checks whether its
/// handler was reached.
async fn refused_with(
    kind: RejectionKind,
    request: Request,
    change: impl Fn(DistributedLockLayer) -> DistributedLockLayer,
) -> Response<ResponseBody<Full<Bytes>>> {
    const KEY: &str = "secret-key";
    let builder = LockManager::builder().max_waiters_per_key(1);
    let locks = match kind {
        RejectionKind::Lost => builder.max_hold(Duration::from_millis(30)),
        _ => builder,
    };
    let locks = locks.in_memory().unwrap();
    let ran = Arc::new(AtomicBool::new(false));
    let handler = service_fn({
        let ran = Arc::clone(&ran);
        move |_: Request| {
            ran.store(true, Ordering::SeqCst);
            pending::<Answer>()
        }
    });
    let guard = match kind {
        RejectionKind::Lost
        | RejectionKind::MissingKey
        | RejectionKind::InvalidKey
        | RejectionKind::Misconfigured => None,
        _ => Some(locks.try_acquire(KEY).await.unwrap()),
    };
    let mut waiter = Box::pin(locks.acquire(KEY, WAIT));
    let layer = match kind {
        RejectionKind::MissingKey => DistributedLockLayer::new(locks.clone(), |_| None::<LockKey>),
        RejectionKind::InvalidKey => DistributedLockLayer::new(locks.clone(), |_| (KEY, "")),
        RejectionKind::Misconfigured => DistributedLockLayer::from_extension(locks.clone()),
        RejectionKind::TimedOut => on(&locks, KEY).wait(Duration::from_millis(20)),
        RejectionKind::QueueFull => {
            assert!(poll!(&mut waiter).is_pending());
            on(&locks, KEY).wait(WAIT)
        }
        _ => on(&locks, KEY),
    };
    if kind == RejectionKind::Unavailable {
        drop(guard);
        soon("the manager is closed", locks.close()).await;
    }
    let mut service = change(layer).layer_on(handler);
    // In a task of its own, so that it goes on only when it is woken.
    let response = tokio::spawn(service.call(request));
    let response = soon("a response", response).await.unwrap().unwrap();
    assert_eq!(ran.load(Ordering::SeqCst), kind == RejectionKind::Lost);
    let rejection = response.extensions().get::<Rejection>().unwrap();
    assert_eq!(rejection.kind(), kind);
    let shown = format!("{:?}", response.headers());
    assert!(!shown.contains(KEY));
    response
}

#[tokio::test]
async fn a_request_that_does_not_run_gets_a_problem_that_never_shows_the_key() {
    for (kind, status) in [
        (RejectionKind::Held, 409),
        (RejectionKind::TimedOut, 409),
        (RejectionKind::QueueFull, 503),
        (RejectionKind::MissingKey, 400),
        (RejectionKind::InvalidKey, 400),
        (RejectionKind::Misconfigured, 500),
        (RejectionKind::Unavailable, 503),
        (RejectionKind::Lost, 503),
    ] {
        for content_type in ["application/json", "text/plain; x=application/grpc"] {
            let response = refused_with(kind, grpc_request(content_type), |layer| layer).await;
            assert_eq!(response.status().as_u16(), status, "{kind:?}");
            assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json");
            let again = response.headers().get(RETRY_AFTER);
            if matches!(status, 400 | 500) {
                assert_eq!(again, None);
            } else {
                let seconds: u32 = again.unwrap().to_str().unwrap().parse().unwrap();
                assert!(seconds > 0);
            }
            assert!(response.headers().get("grpc-status").is_none());
            let length = response.body().size_hint().exact().unwrap();
            assert!(!response.body().is_end_stream());
            let problem = text(response).await;
            assert_eq!(problem.len() as u64, length);
            assert!(problem.starts_with(r#"{"title":""#) && problem.ends_with('}'));
            assert!(problem.contains(&format!(r#""status":{status},"#)));
            assert!(problem.contains(r#""detail":""#));
            assert!(!problem.contains("secret-key"));
        }
    }
}

#[tokio::test]
async fn a_grpc_call_that_does_not_run_gets_a_status_in_headers_alone() {
    for (kind, code) in [
        (RejectionKind::Held, 10),
        (RejectionKind::TimedOut, 10),
        (RejectionKind::QueueFull, 8),
        (RejectionKind::MissingKey, 3),
        (RejectionKind::InvalidKey, 3),
        (RejectionKind::Misconfigured, 13),
        (RejectionKind::Unavailable, 14),
        (RejectionKind::Lost, 10),
    ] {
        for content_type in ["application/grpc", "application/grpc+proto"] {
            let response = refused_with(kind, grpc_request(content_type), |layer| layer).await;
            assert!(response.extensions().get::<Rejection>().unwrap().is_grpc());
            assert_eq!(response.status(), StatusCode::OK);
            let headers = response.headers();
            assert_eq!(
                headers["grpc-status"],
                code.to_string().as_str(),
                "{kind:?}"
            );
            assert_eq!(headers[CONTENT_TYPE], "application/grpc");
            assert_eq!(headers.get(RETRY_AFTER), None);
            // The body is at its end from the start. A server then sends the headers alone, which
            // makes them the trailers.
            assert!(response.body().is_end_stream());
            assert_eq!(response.body().size_hint().exact(), Some(0));
            let body = response.into_body().collect().await.unwrap();
            assert!(body.trailers().is_none());
            assert!(body.to_bytes().is_empty());
        }
    }
}

#[tokio::test]
async fn the_response_to_a_request_that_does_not_run_can_be_replaced() {
    for kind in [
        RejectionKind::Held,
        RejectionKind::Lost,
        RejectionKind::InvalidKey,
    ] {
        let response = refused_with(kind, request(), |layer| {
            layer.rejection(|rejection| {
                let mut response = Response::new(Bytes::from(format!("{:?}", rejection.kind())));
                *response.status_mut() = StatusCode::LOCKED;
                response
            })
        })
        .await;
        assert_eq!(response.status(), StatusCode::LOCKED);
        assert!(response.headers().is_empty());
        assert_eq!(text(response).await, format!("{kind:?}"));
    }
}

#[tokio::test]
async fn without_redis_a_request_is_refused_or_runs_unlocked_as_configured() {
    let nobody = ClosedPort::new();
    let locks = LockManager::builder().connect_lazy(nobody.url()).unwrap();
    let told = Arc::new(AtomicU32::new(0));
    let handler = service_fn({
        let told = Arc::clone(&told);
        move |req: Request| {
            assert!(req.extensions().get::<Lease>().is_none());
            assert!(req.extensions().get::<Unlocked>().is_some());
            told.fetch_add(1, Ordering::SeqCst);
            ready(done())
        }
    });
    let layer = on(&locks, "a").wait(WAIT);
    let mut service = layer.clone().layer_on(handler.clone());
    let response = soon("a refusal", service.call(request())).await.unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    let rejection = response.extensions().get::<Rejection>().unwrap();
    assert_eq!(rejection.kind(), RejectionKind::Unavailable);
    assert_eq!(told.load(Ordering::SeqCst), 0);
    let mut service = layer
        .on_unavailable(OnUnavailable::Proceed)
        .layer_on(handler);
    let response = soon("a response", service.call(request())).await.unwrap();
    assert_eq!(text(response).await, "done");
    assert_eq!(told.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_rejection_tells_its_cause_its_key_and_how_long_the_request_waited() {
    let wait = Duration::from_millis(20);
    let nobody = ClosedPort::new();
    let away = LockManager::builder().connect_lazy(nobody.url()).unwrap();
    let here = LockManager::in_memory();
    let guard = here.try_acquire("secret-key").await.unwrap();
    for (locks, cause, waited) in [
        (&away, ErrorKind::Unavailable, Duration::ZERO),
        (&here, ErrorKind::TimedOut, wait),
    ] {
        let layer = on(locks, "secret-key").wait(wait).rejection(|rejection| {
            // Any body that is bytes.
            Response::new(format!("{:?}", rejection.error().unwrap().kind()))
        });
        let mut service = layer.layer_on(service_fn(async |_: Request| done()));
        let response = soon("a response", service.call(request())).await.unwrap();
        let rejection = response.extensions().get::<Rejection>().unwrap();
        assert_eq!(rejection.error().unwrap().kind(), cause);
        assert_eq!(rejection.key().unwrap().as_str(), "secret-key");
        assert!(rejection.waited() >= waited);
        assert!(!format!("{rejection:?}").contains("secret-key"));
        assert_eq!(text(response).await, format!("{cause:?}"));
    }
    drop(guard);
}

#[tokio::test]
async fn proceeding_without_redis_does_not_mean_proceeding_past_a_lock() {
    let locks = LockManager::in_memory();
    let _guard = locks.try_acquire("a").await.unwrap();
    let layer = on(&locks, "a").on_unavailable(OnUnavailable::Proceed);
    for layer in [layer.clone(), layer.wait(Duration::from_millis(10))] {
        let mut service = layer.layer_on(service_fn(async |_: Request| done()));
        let response = service.call(request()).await.unwrap();
        assert_eq!(response.status(), StatusCode::CONFLICT);
    }
}
