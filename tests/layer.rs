//! The rules of the middleware, around services that are functions.

mod common;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::{Future, pending, ready};
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use common::{Gate, Mode, OnDrop, Proxy, RedisServer, eventually, minute, run, soon, value};
use futures_util::{FutureExt, TryStreamExt, poll};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
use tower_distributed_lock::{
    DetachLayer, DistributedLockLayer, Error, ErrorKind, Lease, LockKey, LockManager,
    lock::{Hold, OnLost, OnUnavailable, Rejection, RejectionKind, ResponseBody, Unlocked},
};

const WAIT: Duration = common::PATIENCE;

type Request = http::Request<Full<Bytes>>;
type Answer<B = Full<Bytes>> = Result<Response<B>, Infallible>;

fn request() -> Request {
    Request::default()
}

fn request_for(key: &str) -> Request {
    let mut request = request();
    request.headers_mut().insert("x-key", key.parse().unwrap());
    request
}

fn grpc_request(content_type: &'static str) -> Request {
    let mut request = request();
    let headers = request.headers_mut();
    headers.insert(CONTENT_TYPE, content_type.parse().unwrap());
    request
}

fn done() -> Answer {
    Ok(Response::new(Full::from("done")))
}

fn on(locks: &LockManager, key: &'static str) -> DistributedLockLayer {
    DistributedLockLayer::new(locks.clone(), move |_| key)
}

fn by_header(locks: &LockManager) -> DistributedLockLayer {
    DistributedLockLayer::new(locks.clone(), |req| {
        let key = req.headers.get("x-key")?;
        Some(key.to_str().unwrap().to_owned())
    })
}

async fn is_free(locks: &LockManager, key: &str) -> bool {
    match locks.try_acquire(key).await {
        Ok(_) => true,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Held);
            false
        }
    }
}

async fn text<B>(response: Response<ResponseBody<B>>) -> String
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<tower::BoxError>,
{
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Notes what requests found in their extensions.
type Leases = Arc<Mutex<Vec<Option<Lease>>>>;

fn noting(
    leases: &Leases,
) -> impl Service<Request, Response = Response<Full<Bytes>>, Error = Infallible, Future: Send + Unpin>
+ Clone
+ Send
+ use<> {
    let leases = Arc::clone(leases);
    service_fn(move |req: Request| {
        let lease = req.extensions().get::<Lease>().cloned();
        leases.lock().unwrap().push(lease);
        ready(done())
    })
}

// Readiness, errors, and when things happen.

/// As strict as the contract of `Service` allows: a clone is not ready, and one call uses readiness up.
#[derive(Default)]
struct Strict {
    is_ready: bool,
}

impl Clone for Strict {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl Service<Request> for Strict {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = std::future::Ready<Answer>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.is_ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request) -> Self::Future {
        assert!(
            std::mem::take(&mut self.is_ready),
            "called without being ready"
        );
        ready(done())
    }
}

#[tokio::test]
async fn the_service_that_was_polled_ready_is_the_one_that_is_called() {
    let locks = LockManager::in_memory();
    let layer = by_header(&locks).wait(WAIT);
    let nested = ServiceBuilder::new()
        .layer(on(&locks, "outer").wait(WAIT))
        .layer(layer.clone());
    let mut single = ServiceBuilder::new()
        .layer(layer)
        .service(Strict::default());
    let mut nested = nested.service(Strict::default());
    for _ in 0..3 {
        for request in [request_for("a"), request()] {
            let response = single.ready().await.unwrap().call(request).await.unwrap();
            assert_eq!(response.status(), StatusCode::OK);
        }
        for request in [request_for("a"), request_for("outer"), request()] {
            let response = nested.ready().await.unwrap().call(request).await.unwrap();
            assert_eq!(response.status(), StatusCode::OK);
        }
        // It waits, and is called later than the next one is polled ready.
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

#[derive(Debug, PartialEq)]
struct NotAnError(u32);

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
        let layer = by_header(&locks).release_before_response(release_first);
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
        // Had anything been sent, it would have been there before this one.
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

trait LayerOn {
    fn layer_on<S>(&self, service: S) -> tower_distributed_lock::lock::DistributedLock<S>;
}

impl LayerOn for DistributedLockLayer {
    fn layer_on<S>(&self, service: S) -> tower_distributed_lock::lock::DistributedLock<S> {
        tower::Layer::layer(self, service)
    }
}

// Keys, and what a handler is told.

#[tokio::test]
async fn a_request_without_a_key_runs_without_a_lock() {
    let locks = LockManager::in_memory();
    let leases = Leases::default();
    let mut service = by_header(&locks).layer_on(noting(&leases));
    let response = service.call(request()).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert!(response.extensions().get::<Rejection>().is_none());
    assert_eq!(text(response).await, "done");
    assert!(leases.lock().unwrap()[0].is_none());
}

#[tokio::test]
async fn a_request_without_a_key_is_refused_where_one_is_required() {
    let locks = LockManager::in_memory();
    let leases = Leases::default();
    let mut service = by_header(&locks)
        .require_key(true)
        .layer_on(noting(&leases));
    let response = service.call(request()).await.unwrap();
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    assert!(leases.lock().unwrap().is_empty());
    let response = service.call(request_for("a")).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
}

#[tokio::test]
async fn an_invalid_key_is_refused_whether_one_is_required_or_not() {
    let locks = LockManager::in_memory();
    let leases = Leases::default();
    for require_key in [false, true] {
        for layer in [
            on(&locks, ""),
            by_header(&locks),
            DistributedLockLayer::new(locks.clone(), |_| LockKey::join(["a", ""])),
        ] {
            let mut service = layer.require_key(require_key).layer_on(noting(&leases));
            let response = service.call(request_for("")).await.unwrap();
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
    service.call(request()).await.unwrap();
    {
        let leases = leases.lock().unwrap();
        assert_eq!(leases[0].as_ref().unwrap().key(), &key);
        assert!(leases[1].is_none());
    }
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
        // Held while the response is not read, released with it.
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

// Requests that do not run.

/// A response to a request that does not run, and whether its handler was reached.
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
        RejectionKind::Lost | RejectionKind::InvalidKey => None,
        _ => Some(locks.try_acquire(KEY).await.unwrap()),
    };
    let mut waiter = Box::pin(locks.acquire(KEY, WAIT));
    let layer = match kind {
        RejectionKind::InvalidKey => on(&locks, KEY).require_key(true),
        RejectionKind::TimedOut => on(&locks, KEY).wait(Duration::from_millis(20)),
        RejectionKind::QueueFull => {
            assert!(poll!(&mut waiter).is_pending());
            on(&locks, KEY).wait(WAIT)
        }
        _ => on(&locks, KEY),
    };
    let layer = match kind {
        RejectionKind::InvalidKey => DistributedLockLayer::new(locks.clone(), |_| {
            LockKey::join(["secret-key", ""]).map(Some)
        }),
        _ => layer,
    };
    if kind == RejectionKind::Unavailable {
        drop(guard);
        soon("the manager is closed", locks.close()).await;
    }
    let mut service = change(layer).layer_on(handler);
    // In a task of its own, where it goes on only when it is woken.
    let response = tokio::spawn(service.call(request));
    let response = soon("an answer", response).await.unwrap().unwrap();
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
        (RejectionKind::InvalidKey, 400),
        (RejectionKind::Unavailable, 503),
        (RejectionKind::Lost, 503),
    ] {
        for content_type in ["application/json", "text/plain; x=application/grpc"] {
            let response = refused_with(kind, grpc_request(content_type), |layer| layer).await;
            assert_eq!(response.status().as_u16(), status, "{kind:?}");
            assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json");
            let again = response.headers().get(RETRY_AFTER);
            if kind == RejectionKind::InvalidKey {
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
    let response = soon("an answer", call("20m", "application/grpc"))
        .await
        .unwrap();
    assert_eq!(response.headers()["grpc-status"], "10");
    // A longer one changes nothing, nor one that makes no sense, nor one of a request that is no gRPC.
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

/// Where the lock is outside of the translation to gRPC.
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
        let response = soon("an answer", service.call(request)).await.unwrap();
        assert_eq!(response.status(), StatusCode::CONFLICT, "{content_type}");
        assert!(response.headers().get("grpc-status").is_none());
        let rejection = response.extensions().get::<Rejection>().unwrap();
        assert_eq!(rejection.kind(), RejectionKind::TimedOut);
        assert!(!rejection.is_grpc());
    }
    // What only looks like it.
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
async fn a_grpc_call_that_does_not_run_gets_a_status_in_headers_alone() {
    for (kind, code) in [
        (RejectionKind::Held, 10),
        (RejectionKind::TimedOut, 10),
        (RejectionKind::QueueFull, 8),
        (RejectionKind::InvalidKey, 3),
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
            // At its end from the start: a server sends the headers alone, which makes them the trailers.
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
    let nobody = format!("redis://127.0.0.1:{}", common::free_port());
    let locks = LockManager::builder().connect_lazy(&nobody).unwrap();
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
    let response = soon("an answer", service.call(request())).await.unwrap();
    assert_eq!(text(response).await, "done");
    assert_eq!(told.load(Ordering::SeqCst), 1);
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

#[test]
#[should_panic(expected = "wait is zero: leave it out for requests that do not wait")]
fn a_wait_of_zero_panics_and_says_what_to_do() {
    let _ = on(&LockManager::in_memory(), "a").wait(Duration::ZERO);
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

// Several locks to one request.

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
    // The layer inside is through with the request, and its body.
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
    // The inner one taken, the outer one is given back.
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

// How long a lock is held.

#[derive(Clone, Copy, Debug, PartialEq)]
enum Step {
    Data(&'static str),
    /// The body knows that nothing comes after this.
    Last(&'static str),
    Trailers,
    Error,
    /// The body is at its end before it is polled.
    Empty,
    /// What follows is not there at once.
    Later,
    Never,
}

/// A body that does what it is told to.
struct Scripted {
    steps: VecDeque<Step>,
    is_over: bool,
    on_drop: Option<Box<dyn FnOnce() + Send>>,
}

impl Scripted {
    fn new(steps: &[Step]) -> Self {
        Self {
            steps: steps.iter().copied().collect(),
            is_over: steps == [Step::Empty],
            on_drop: None,
        }
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        if let Some(on_drop) = self.on_drop.take() {
            on_drop();
        }
    }
}

impl Body for Scripted {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        Poll::Ready(match self.steps.pop_front() {
            None | Some(Step::Empty) => None,
            Some(Step::Later) => {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            Some(Step::Data(text)) => Some(Ok(Frame::data(Bytes::from(text)))),
            Some(Step::Last(text)) => {
                self.is_over = true;
                Some(Ok(Frame::data(Bytes::from(text))))
            }
            Some(Step::Trailers) => {
                let mut trailers = HeaderMap::new();
                trailers.insert("x-trailer", "true".parse().unwrap());
                Some(Ok(Frame::trailers(trailers)))
            }
            Some(Step::Error) => Some(Err(std::io::Error::other("broken"))),
            Some(Step::Never) => return Poll::Pending,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.is_over
    }

    fn size_hint(&self) -> SizeHint {
        let left = self.steps.iter().map(|step| match step {
            Step::Data(text) | Step::Last(text) => text.len() as u64,
            _ => 0,
        });
        SizeHint::with_exact(left.sum())
    }
}

type ScriptedResponse = Response<ResponseBody<Scripted>>;

async fn answer_with(layer: &DistributedLockLayer, steps: &[Step]) -> ScriptedResponse {
    let steps = steps.to_vec();
    let handler = service_fn(move |_: Request| {
        ready(Ok::<_, Infallible>(Response::new(Scripted::new(&steps))))
    });
    soon("the head", layer.layer_on(handler).call(request()))
        .await
        .unwrap()
}

#[tokio::test]
async fn the_lock_is_held_until_the_end_of_the_body_and_no_longer() {
    use Step::{Data, Empty, Error, Last, Later, Trailers};
    let cases: [(&'static [Step], &[bool]); 9] = [
        // What the body does, and whether the lock is free after the head and after each frame.
        (&[Data("a"), Data("b")], &[false, false, false, true]),
        (&[Data("a"), Last("b")], &[false, false, true, true]),
        (&[Data("a"), Trailers], &[false, false, true, true]),
        (&[Trailers], &[false, true, true]),
        (&[Data("a"), Error], &[false, false, true]),
        (&[Error], &[false, true]),
        (&[Last("a")], &[false, true, true]),
        (&[], &[false, true]),
        (&[Empty], &[true, true]),
    ];
    for release_first in [false, true] {
        let locks = LockManager::in_memory();
        let layer = on(&locks, "a").release_before_response(release_first);
        for (steps, expected) in cases {
            // What is there at once would follow the release.
            let begin: &[Step] = match release_first && steps != [Empty] {
                true => &[Later],
                false => &[],
            };
            let steps = [begin, steps].concat();
            let mut body = answer_with(&layer, &steps).await.into_body();
            let mut free = vec![is_free(&locks, "a").await];
            loop {
                let frame = soon("a frame", body.frame()).await;
                free.push(is_free(&locks, "a").await);
                if !matches!(frame, Some(Ok(_))) {
                    break;
                }
            }
            assert_eq!(free, expected, "{steps:?}, {release_first}");
        }
        for (steps, _) in cases {
            let layer = layer.clone().hold(Hold::Head);
            let response = answer_with(&layer, steps).await;
            assert!(is_free(&locks, "a").await, "{steps:?}");
            drop(response);
        }
    }
}

/// A client of HTTP/1 that has read so many bytes is done and may send its next request, before the server asks the
/// body for more.
#[tokio::test]
async fn the_lock_is_free_with_the_last_byte_that_a_content_length_announces() {
    use Step::{Data, Never};
    let locks = LockManager::in_memory();
    let handler = service_fn(async |_: Request| {
        let mut response = Response::new(Scripted::new(&[Data("one "), Data("two"), Never]));
        let length = http::HeaderValue::from_static("7");
        response.headers_mut().insert(CONTENT_LENGTH, length);
        Ok::<_, Infallible>(response)
    });
    let mut service = on(&locks, "a").layer_on(handler);
    let mut body = service.call(request()).await.unwrap().into_body();
    body.frame().await.unwrap().unwrap();
    assert!(!is_free(&locks, "a").await);
    body.frame().await.unwrap().unwrap();
    assert!(is_free(&locks, "a").await);
}

#[tokio::test]
async fn everything_that_a_body_gives_comes_through() {
    use Step::{Data, Error, Last, Trailers};
    let locks = LockManager::in_memory();
    for hold in [Hold::Body, Hold::Head] {
        for release_first in [false, true] {
            let layer = on(&locks, "a")
                .hold(hold)
                .release_before_response(release_first);
            let with_trailers = answer_with(&layer, &[Data("one "), Data("two"), Trailers]).await;
            let collected = with_trailers.into_body().collect().await.unwrap();
            assert_eq!(collected.trailers().unwrap()["x-trailer"], "true");
            assert_eq!(collected.to_bytes(), "one two");
            let last = answer_with(&layer, &[Data("one "), Last("two")]).await;
            assert_eq!(
                last.into_body().collect().await.unwrap().to_bytes(),
                "one two"
            );
            let mut broken = answer_with(&layer, &[Data("one"), Error]).await.into_body();
            broken.frame().await.unwrap().unwrap();
            let error = broken.frame().await.unwrap().unwrap_err();
            assert_eq!(error.to_string(), "broken");
            assert!(error.is::<std::io::Error>());
            assert!(broken.frame().await.is_none());
        }
    }
}

#[tokio::test]
async fn a_body_that_is_dropped_releases_the_lock_wherever_it_was() {
    use Step::{Data, Never};
    let locks = LockManager::in_memory();
    for frames in 0..3 {
        let response = answer_with(&on(&locks, "a"), &[Data("a"), Data("b"), Never]).await;
        let mut body = response.into_body();
        for _ in 0..frames {
            body.frame().await.unwrap().unwrap();
        }
        assert!(!is_free(&locks, "a").await);
        if frames == 2 {
            assert!(poll!(body.frame()).is_pending());
            assert!(!is_free(&locks, "a").await);
        }
        drop(body);
        assert!(is_free(&locks, "a").await);
    }
}

#[tokio::test]
async fn the_length_and_the_end_of_a_body_are_forwarded() {
    use Step::{Data, Last, Later};
    let locks = LockManager::in_memory();
    let cases: [(bool, &[Step], &[u64]); 4] = [
        (false, &[Data("four"), Last("two")], &[7, 3]),
        (true, &[Later, Data("four"), Last("two")], &[7, 3]),
        (true, &[Data("four"), Later, Last("two")], &[7, 3]),
        (true, &[Data("four"), Last("two")], &[7]),
    ];
    for (release_first, steps, lengths) in cases {
        let layer = on(&locks, "a").release_before_response(release_first);
        let mut body = answer_with(&layer, steps).await.into_body();
        for &left in lengths {
            assert_eq!(body.size_hint().exact(), Some(left));
            assert!(!body.is_end_stream());
            body.frame().await.unwrap().unwrap();
        }
        assert_eq!(body.size_hint().exact(), Some(0));
        assert!(body.is_end_stream());
        assert!(body.frame().await.is_none());
        assert!(body.is_end_stream());
    }
    let mut full = on(&locks, "a").layer_on(service_fn(async |_: Request| done()));
    let body = full.call(request()).await.unwrap().into_body();
    assert_eq!(body.size_hint().exact(), Some(4));
    assert!(!body.is_end_stream());
    drop(body);
    let mut empty = on(&locks, "a").layer_on(service_fn(async |_: Request| {
        Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
    }));
    assert!(empty.call(request()).await.unwrap().body().is_end_stream());
}

#[tokio::test]
async fn release_before_response_withholds_the_end_until_redis_has_released() {
    use Step::{Data, Last, Later, Trailers};
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let proxy = Proxy::start(server.port).await;
    let locks = minute()
        .command_timeout(2 * common::PATIENCE)
        .connect(&proxy.url())
        .await
        .unwrap();
    let cases: [(&'static [Step], u64); 4] = [
        (&[Data("a"), Last("xyz")], 3),
        (&[Data("a"), Data("xyz")], 0),
        (&[Data("a"), Trailers], 0),
        (&[], 0),
    ];
    for (steps, length) in cases {
        let layer = on(&locks, "a").release_before_response(true);
        let body = answer_with(&layer, &[&[Later], steps].concat()).await;
        let mut body = body.into_body();
        proxy.set(Mode::Hold);
        // What is not the end does not wait.
        let early = match steps.last() {
            None => 0,
            Some(Data(_)) => steps.len(),
            Some(_) => steps.len() - 1,
        };
        for _ in 0..early {
            let frame = poll!(body.frame());
            assert!(matches!(frame, Poll::Ready(Some(Ok(_)))), "{steps:?}");
        }
        for _ in 0..5 {
            assert!(poll!(body.frame()).is_pending(), "{steps:?}");
            assert!(!body.is_end_stream(), "{steps:?}");
            assert_eq!(body.size_hint().exact(), Some(length), "{steps:?}");
            assert!(value(&redis, "lock:a").await.is_some(), "{steps:?}");
        }
        // In a task of its own, where it goes on only when it is woken.
        let end = tokio::spawn(async move {
            let end = body.frame().await;
            (end, body)
        });
        proxy.set(Mode::Forward);
        let (end, mut body) = soon("the end", end).await.unwrap();
        // Not eventually.
        assert_eq!(value(&redis, "lock:a").await, None, "{steps:?}");
        match steps.last() {
            Some(Last(text)) => {
                assert_eq!(end.unwrap().unwrap().into_data().unwrap(), *text);
                assert!(body.is_end_stream());
            }
            Some(Trailers) => assert!(end.unwrap().unwrap().is_trailers()),
            _ => assert!(end.is_none()),
        }
        assert!(body.frame().await.is_none(), "{steps:?}");
    }
}

#[tokio::test]
async fn release_before_response_withholds_the_head_where_all_is_there_at_once() {
    use Step::{Data, Empty, Error, Last, Trailers};
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let proxy = Arc::new(Proxy::start(server.port).await);
    let locks = minute()
        .command_timeout(2 * common::PATIENCE)
        .connect(&proxy.url())
        .await
        .unwrap();
    let cases: [(Hold, &'static [Step]); 9] = [
        (Hold::Head, &[Data("a")]),
        (Hold::Head, &[Empty]),
        (Hold::Body, &[Empty]),
        (Hold::Body, &[]),
        (Hold::Body, &[Last("a")]),
        (Hold::Body, &[Data("a"), Data("b")]),
        (Hold::Body, &[Data("a"), Trailers]),
        (Hold::Body, &[Trailers]),
        (Hold::Body, &[Data("a"), Error]),
    ];
    for release_first in [true, false] {
        for (hold, steps) in cases {
            let gate = Gate::new();
            let handler = service_fn({
                let gate = gate.clone();
                move |_: Request| {
                    let gate = gate.clone();
                    async move {
                        gate.pass().await;
                        Ok::<_, Infallible>(Response::new(Scripted::new(steps)))
                    }
                }
            });
            let layer = on(&locks, "a").hold(hold);
            let mut service = layer
                .release_before_response(release_first)
                .layer_on(handler);
            let mut response = Box::pin(service.call(request()));
            let arrived = gate.arrived();
            tokio::select! {
                _ = &mut response => panic!("the gate is closed"),
                () = arrived => {}
            }
            proxy.set(Mode::Hold);
            gate.open();
            if release_first {
                for _ in 0..5 {
                    assert!(poll!(&mut response).is_pending(), "{hold:?} {steps:?}");
                    assert!(value(&redis, "lock:a").await.is_some());
                }
                let response = tokio::spawn(response);
                proxy.set(Mode::Forward);
                soon("the head", response).await.unwrap().unwrap();
                assert_eq!(value(&redis, "lock:a").await, None);
            } else {
                // Redis is not waited for.
                assert!(poll!(&mut response).is_ready(), "{hold:?} {steps:?}");
                proxy.set(Mode::Forward);
                common::eventually_no_trace(&redis).await;
            }
        }
    }
}

/// How a body may come: with so many frames of such a length, and whether it is in one piece behind
/// its head.
#[tokio::test]
async fn release_before_response_keeps_back_no_more_than_64_kib_of_several_frames() {
    let locks = LockManager::in_memory();
    let layer = on(&locks, "a").release_before_response(true);
    for (frames, length, is_kept) in [
        (1, 1 << 20, true),
        (2, 32_000, true),
        (2, 64 * 1024, false),
        (50, 1024, true),
        (1000, 1024, false),
        (100, 0, true),
        (100_000, 0, false),
    ] {
        let part = Bytes::from(vec![b'x'; length]);
        let handler = service_fn(move |_: Request| {
            let parts = std::iter::repeat_n(Ok::<_, Infallible>(part.clone()), frames);
            let stream = futures_util::stream::iter(parts).map_ok(Frame::data);
            ready(Ok::<_, Infallible>(Response::new(StreamBody::new(stream))))
        });
        let mut service = layer.layer_on(handler);
        let response = soon("the head", service.call(request())).await.unwrap();
        assert_eq!(is_free(&locks, "a").await, is_kept, "{frames} of {length}");
        let hint = response.body().size_hint();
        let whole = (frames * length) as u64;
        assert_eq!(
            hint.exact(),
            is_kept.then_some(whole),
            "{frames} of {length}"
        );
        let mut body = response.into_body();
        let mut received = Vec::new();
        while let Some(frame) = soon("a frame", body.frame()).await {
            received.push(frame.unwrap().into_data().unwrap().len());
        }
        assert_eq!(received.iter().sum::<usize>() as u64, whole);
        match is_kept {
            true => assert_eq!(received.len(), usize::from(whole > 0)),
            false => assert_eq!(received.len(), frames),
        }
        assert!(is_free(&locks, "a").await);
    }
}

/// The rest of it is never sent: the lock does not wait for it, nor does the head.
#[tokio::test]
async fn what_a_client_takes_for_the_whole_is_all_that_is_kept_back() {
    use Step::{Data, Last, Never};
    let locks = LockManager::in_memory();
    let layer = on(&locks, "a").release_before_response(true);
    let cases: [(&[Step], &str, Option<&str>); 4] = [
        (&[Data("one "), Data("two"), Never], "7", Some("one two")),
        (&[Data("one "), Data("two, three")], "7", Some("one two")),
        (&[Never], "0", Some("")),
        // Too short. That stays for the server to find.
        (&[Data("one "), Last("two")], "70", None),
    ];
    for (steps, length, whole) in cases {
        let steps = steps.to_vec();
        let handler = service_fn(move |_: Request| {
            let mut response = Response::new(Scripted::new(&steps));
            let length = length.parse().unwrap();
            response.headers_mut().insert(CONTENT_LENGTH, length);
            ready(Ok::<_, Infallible>(response))
        });
        let response = layer.layer_on(handler).call(request());
        let body = soon("the head", response).await.unwrap().into_body();
        assert!(is_free(&locks, "a").await, "{length}");
        if whole.is_none() {
            assert_eq!(body.size_hint().exact(), None);
        }
        let received = soon("the body", body.collect()).await.unwrap().to_bytes();
        assert_eq!(received, whole.unwrap_or("one two"));
    }
}

/// The handler's body may be at work, and a server of HTTP/2 asks for it.
#[tokio::test]
async fn a_body_that_is_not_sent_ends_before_its_lock() {
    let locks = LockManager::in_memory();
    let (head, get) = (http::Method::HEAD, http::Method::GET);
    for (method, status) in [
        (head, 200),
        (get.clone(), 204),
        (get.clone(), 304),
        (get, 101),
    ] {
        for release_first in [false, true] {
            let dropped = Arc::new(Mutex::new(None));
            let handler = service_fn({
                let dropped = Arc::clone(&dropped);
                move |req: Request| {
                    let lease = req.extensions().get::<Lease>().unwrap().clone();
                    let mut body = Scripted::new(&[Step::Data("never sent")]);
                    let dropped = Arc::clone(&dropped);
                    body.on_drop = Some(Box::new(move || {
                        *dropped.lock().unwrap() = Some(lease.is_held());
                    }));
                    let response = Response::builder().status(status);
                    ready(Ok::<_, Infallible>(response.body(body).unwrap()))
                }
            });
            let layer = on(&locks, "a").release_before_response(release_first);
            let mut request = request();
            *request.method_mut() = method.clone();
            let response = soon("a head", layer.layer_on(handler).call(request))
                .await
                .unwrap();
            assert_eq!(response.status(), status);
            let lease_was_held = dropped.lock().unwrap().take();
            assert_eq!(lease_was_held, Some(true));
            assert!(is_free(&locks, "a").await);
            // A server may tell it in the head.
            assert_eq!(response.body().size_hint().exact(), Some(10));
            assert!(!response.body().is_end_stream());
            assert!(response.into_body().frame().await.is_none());
        }
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

// Locks that are lost.

fn brief() -> LockManager {
    LockManager::builder()
        .max_hold(Duration::from_millis(50))
        .in_memory()
        .unwrap()
}

#[tokio::test]
async fn a_handler_whose_lock_is_lost_is_dropped_and_answered_with_503() {
    let locks = brief();
    let (on_drop, dropped) = OnDrop::new();
    let on_drop = Arc::new(Mutex::new(Some(on_drop)));
    let handler = service_fn(move |_: Request| {
        let on_drop = on_drop.lock().unwrap().take();
        async move {
            let _on_drop = on_drop;
            pending::<Answer>().await
        }
    });
    let mut service = on(&locks, "a").layer_on(handler);
    // In a task of its own, where it goes on only when it is woken.
    let response = tokio::spawn(service.call(request()));
    let response = soon("an answer", response).await.unwrap().unwrap();
    assert!(dropped.load(Ordering::SeqCst), "before the answer");
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    let rejection = response.extensions().get::<Rejection>().unwrap();
    assert_eq!(rejection.kind(), RejectionKind::Lost);
    assert!(is_free(&locks, "a").await);
}

/// Blocks its thread for longer than [`brief`] lets it hold the lock.
fn block(lease: &Lease) {
    while lease.is_held() {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// It cannot be stopped, and returns as if nothing had happened.
#[tokio::test]
async fn a_handler_that_blocked_past_its_lease_is_no_success() {
    let responses: [fn() -> Response<Scripted>; 4] = [
        || Response::new(Scripted::new(&[Step::Last("done")])),
        || Response::new(Scripted::new(&[Step::Data("one "), Step::Never])),
        || Response::new(Scripted::new(&[Step::Empty])),
        || {
            let mut response = Response::new(Scripted::new(&[Step::Empty]));
            *response.status_mut() = StatusCode::NO_CONTENT;
            response
        },
    ];
    let cases = [Hold::Body, Hold::Head].map(|hold| [(hold, false), (hold, true)]);
    for (hold, release_first) in cases.into_iter().flatten() {
        for respond in responses {
            for on_lost in [OnLost::Cancel, OnLost::Continue] {
                let locks = brief();
                let handler = service_fn(move |req: Request| async move {
                    block(req.extensions().get::<Lease>().unwrap());
                    Ok::<_, Infallible>(respond())
                });
                let layer = on(&locks, "a").hold(hold).on_lost(on_lost);
                let mut service = layer
                    .release_before_response(release_first)
                    .layer_on(handler);
                let response = soon("an answer", service.call(request())).await.unwrap();
                if on_lost == OnLost::Continue {
                    assert_eq!(response.status(), respond().status());
                    continue;
                }
                assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
                let rejection = response.extensions().get::<Rejection>().unwrap();
                assert_eq!(rejection.kind(), RejectionKind::Lost);
                assert!(is_free(&locks, "a").await);
                let call = grpc_request("application/grpc");
                let response = soon("an answer", service.call(call)).await.unwrap();
                assert_eq!(response.headers()["grpc-status"], "10");
            }
        }
    }
}

#[tokio::test]
async fn the_error_of_a_service_that_blocked_past_its_lease_comes_through() {
    let handler = service_fn(async |req: Request| {
        block(req.extensions().get::<Lease>().unwrap());
        Err::<Response<Full<Bytes>>, _>("no response")
    });
    for release_first in [false, true] {
        let layer = on(&brief(), "a").release_before_response(release_first);
        let result = soon("the error", layer.layer_on(handler).call(request())).await;
        assert_eq!(result.unwrap_err(), "no response");
    }
}

/// A body that begins like this, and then blocks its thread for longer than the lease.
struct Blocking {
    lease: Lease,
    begins: VecDeque<Poll<()>>,
    is_over: bool,
}

impl Body for Blocking {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(begin) = self.begins.pop_front() {
            return begin.map(|()| Some(Ok(Frame::data(Bytes::from("begin ")))));
        }
        block(&self.lease);
        let is_over = std::mem::replace(&mut self.is_over, true);
        Poll::Ready((!is_over).then(|| Ok(Frame::data(Bytes::from("end")))))
    }

    fn is_end_stream(&self) -> bool {
        self.is_over
    }
}

/// Answers with such a body, of which so much comes at first.
async fn answer_blocking(
    release_first: bool,
    begins: &'static [Poll<()>],
) -> Response<ResponseBody<Blocking>> {
    let handler = service_fn(async move |req: Request| {
        Ok::<_, Infallible>(Response::new(Blocking {
            lease: req.extensions().get::<Lease>().unwrap().clone(),
            begins: begins.iter().copied().collect(),
            is_over: false,
        }))
    });
    let layer = on(&brief(), "a").release_before_response(release_first);
    soon("an answer", layer.layer_on(handler).call(request()))
        .await
        .unwrap()
}

#[tokio::test]
async fn a_body_that_blocked_past_its_lease_does_not_look_whole() {
    for release_first in [false, true] {
        let begins = &[Poll::Pending, Poll::Ready(())];
        let response = answer_blocking(release_first, begins).await;
        assert_eq!(response.status(), StatusCode::OK);
        let mut body = response.into_body();
        // To take what is there at once is to have seen that there is nothing.
        if !release_first {
            assert!(poll!(body.frame()).is_pending());
        }
        let begin = body.frame().await;
        assert_eq!(begin.unwrap().unwrap().into_data().unwrap(), "begin ");
        let error = body.frame().await.unwrap().unwrap_err();
        assert_eq!(error.downcast::<Error>().unwrap().kind(), ErrorKind::Lost);
        assert!(body.frame().await.is_none());
    }
    // Where the head waits for the body, it tells of the loss.
    for begins in [&[][..], &[Poll::Ready(())]] {
        let response = answer_blocking(true, begins).await;
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        let rejection = response.extensions().get::<Rejection>().unwrap();
        assert_eq!(rejection.kind(), RejectionKind::Lost);
    }
}

/// In one thread: nobody but the release can tell of the loss.
#[tokio::test]
async fn a_response_that_waits_for_a_release_is_none_if_that_finds_the_lock_lost() {
    use Step::{Data, Empty, Last, Later};
    let server = RedisServer::start().await;
    let locks = minute().connect(&server.url()).await.unwrap();
    let client = redis::Client::open(server.url()).unwrap();
    let cases: [(Hold, &'static [Step]); 5] = [
        (Hold::Head, &[Last("done")]),
        (Hold::Body, &[Last("done")]),
        (Hold::Body, &[Data("do"), Data("ne")]),
        (Hold::Body, &[Empty]),
        // This one has its head: its end tells.
        (Hold::Body, &[Later, Last("done")]),
    ];
    for (hold, steps) in cases {
        for on_lost in [OnLost::Cancel, OnLost::Continue] {
            let client = client.clone();
            let handler = service_fn(move |_: Request| {
                let mut redis = client.get_connection().unwrap();
                let deleted: u32 = redis::cmd("DEL").arg("lock:a").query(&mut redis).unwrap();
                assert_eq!(deleted, 1);
                ready(Ok::<_, Infallible>(Response::new(Scripted::new(steps))))
            });
            let layer = on(&locks, "a").hold(hold).on_lost(on_lost);
            let mut service = layer.release_before_response(true).layer_on(handler);
            let response = soon("an answer", service.call(request())).await.unwrap();
            let status = response.status();
            let rejection = response.extensions().get::<Rejection>().copied();
            let body = response.into_body().collect().await;
            if on_lost == OnLost::Continue {
                assert_eq!(status, StatusCode::OK);
                let whole = if steps == [Empty] { "" } else { "done" };
                assert_eq!(body.unwrap().to_bytes(), whole);
            } else if steps[0] == Later {
                assert_eq!(status, StatusCode::OK);
                let error = body.unwrap_err().downcast::<Error>().unwrap();
                assert_eq!(error.kind(), ErrorKind::Lost);
            } else {
                assert_eq!(
                    status,
                    StatusCode::SERVICE_UNAVAILABLE,
                    "{hold:?} {steps:?}"
                );
                assert_eq!(rejection.unwrap().kind(), RejectionKind::Lost);
            }
        }
    }
}

#[tokio::test]
async fn a_lock_that_somebody_deletes_in_redis_ends_the_request() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let locks = minute().connect(&server.url()).await.unwrap();
    let gate = Gate::new();
    let handler = service_fn({
        let gate = gate.clone();
        move |_: Request| {
            let gate = gate.clone();
            async move {
                gate.pass().await;
                done()
            }
        }
    });
    let running = tokio::spawn(on(&locks, "a").layer_on(handler).call(request()));
    gate.arrived().await;
    eventually("the lease has been looked at", || async {
        run(&redis, "DEL lock:a").await;
        running.is_finished()
    })
    .await;
    let response = running.await.unwrap().unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn a_body_whose_lock_is_lost_ends_with_an_error() {
    use Step::{Data, Never};
    let locks = brief();
    let response = answer_with(&on(&locks, "a"), &[Data("a"), Never]).await;
    assert_eq!(response.status(), StatusCode::OK);
    let mut body = response.into_body();
    body.frame().await.unwrap().unwrap();
    let end = tokio::spawn(async move {
        let end = body.frame().await;
        (end, body)
    });
    let (end, mut body) = soon("the end", end).await.unwrap();
    let error = end.unwrap().unwrap_err();
    let error = error.downcast::<Error>().unwrap();
    assert_eq!(error.kind(), ErrorKind::Lost);
    assert!(body.frame().await.is_none());
    assert!(body.is_end_stream());
}

#[tokio::test]
async fn a_body_whose_lock_is_lost_does_not_go_on_even_if_it_could() {
    use Step::{Data, Last};
    let locks = brief();
    let lease = Arc::new(Mutex::new(None));
    let handler = service_fn({
        let lease = Arc::clone(&lease);
        move |req: Request| {
            *lease.lock().unwrap() = req.extensions().get::<Lease>().cloned();
            let body = Scripted::new(&[Data("a"), Last("b")]);
            ready(Ok::<_, Infallible>(Response::new(body)))
        }
    });
    let mut service = on(&locks, "a").layer_on(handler);
    let mut body = service.call(request()).await.unwrap().into_body();
    let lease: Lease = lease.lock().unwrap().take().unwrap();
    soon("the loss", lease.lost()).await;
    let error = body.frame().await.unwrap().unwrap_err();
    assert_eq!(error.downcast::<Error>().unwrap().kind(), ErrorKind::Lost);
}

#[tokio::test]
async fn a_request_may_go_on_without_its_lock() {
    let locks = brief();
    let handler = service_fn(async |req: Request| {
        let lease = req.extensions().get::<Lease>().unwrap();
        lease.lost().await;
        // More than one poll later.
        tokio::task::yield_now().await;
        done()
    });
    let mut service = on(&locks, "a").on_lost(OnLost::Continue).layer_on(handler);
    let response = soon("an answer", service.call(request())).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(text(response).await, "done");
    // And in the middle of its body.
    let lease = Arc::new(Mutex::new(None));
    let handler = service_fn({
        let lease = Arc::clone(&lease);
        move |req: Request| {
            *lease.lock().unwrap() = req.extensions().get::<Lease>().cloned();
            ready(done())
        }
    });
    let mut service = on(&locks, "b").on_lost(OnLost::Continue).layer_on(handler);
    let response = service.call(request()).await.unwrap();
    let lease: Lease = lease.lock().unwrap().take().unwrap();
    soon("the loss", lease.lost()).await;
    assert_eq!(text(response).await, "done");
}

#[tokio::test]
async fn a_body_whose_lock_is_lost_is_dropped_before_the_lock_is_given_to_others() {
    let locks = brief();
    let was_free = Arc::new(AtomicU32::new(0));
    let handler = service_fn({
        let (locks, was_free) = (locks.clone(), Arc::clone(&was_free));
        move |_: Request| {
            let (locks, was_free) = (locks.clone(), Arc::clone(&was_free));
            let mut body = Scripted::new(&[Step::Never]);
            body.on_drop = Some(Box::new(move || {
                let taken = locks.try_acquire("a").now_or_never().unwrap();
                was_free.store(if taken.is_ok() { 2 } else { 1 }, Ordering::SeqCst);
            }));
            ready(Ok::<_, Infallible>(Response::new(body)))
        }
    });
    let mut service = on(&locks, "a").layer_on(handler);
    let mut body = service.call(request()).await.unwrap().into_body();
    soon("the end", body.frame()).await.unwrap().unwrap_err();
    drop(body);
    assert_eq!(
        was_free.load(Ordering::SeqCst),
        1,
        "0: not dropped, 2: another could have the lock while the body still lived"
    );
}

// Detached requests.

/// A handler with a gate, that notes how often it came to its end.
fn gated(
    gate: &Gate,
    finished: &Arc<AtomicU64>,
) -> impl Service<Request, Response = Response<Full<Bytes>>, Error = Infallible, Future: Send>
+ Clone
+ Send
+ use<> {
    let (gate, finished) = (gate.clone(), Arc::clone(finished));
    service_fn(move |_: Request| {
        let (gate, finished) = (gate.clone(), Arc::clone(&finished));
        async move {
            gate.pass().await;
            finished.fetch_add(1, Ordering::SeqCst);
            done()
        }
    })
}

#[tokio::test]
async fn a_detached_request_goes_on_with_its_lock_when_it_is_dropped() {
    let locks = LockManager::in_memory();
    let (gate, finished) = (Gate::new(), Arc::new(AtomicU64::new(0)));
    let mut service = ServiceBuilder::new()
        .layer(DetachLayer::new())
        .layer(on(&locks, "a").wait(WAIT))
        .service(gated(&gate, &finished));
    let mut first = service.ready().await.unwrap().call(request());
    assert!(poll!(&mut first).is_pending());
    gate.arrived().await;
    // The second one waits for the lock.
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
    let mut service = on(&locks, "a").layer_on(gated(&gate, &finished));
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
        .service(gated(&gate, &finished));
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
    // Its body holds the lock, as always.
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
