//! Every layer of tower and of tower-http that a service may have compiles, and works, on both
//! sides of each layer of this crate.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::{BodyExt, Full};
use tower::{BoxError, Service, ServiceBuilder, ServiceExt};
use tower_distributed_lock::{DetachLayer, DistributedLockLayer, IdempotencyLayer, LockManager};

const LONG: Duration = Duration::from_secs(600);
const HEADER: HeaderName = HeaderName::from_static("x-request-id");

/// Reads the request's body, of whatever type, and answers.
#[derive(Clone)]
struct Handler;

impl<B> Service<Request<B>> for Handler
where
    B: Body<Error: Into<BoxError>> + Send + 'static,
    B::Data: Send,
{
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        Box::pin(async {
            let body = Box::pin(request.into_body());
            let Ok(body) = body.collect().await else {
                panic!("the body of the request did not arrive");
            };
            assert_eq!(body.to_bytes(), "payload");
            Ok(Response::new(Full::from("done")))
        })
    }
}

async fn answers<S, B>(service: S)
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>>,
    S::Error: Into<BoxError>,
    B: Body<Error: Into<BoxError>>,
{
    let request = Request::post("/a").header("idempotency-key", "k");
    let request = request.body(Full::from("payload")).unwrap();
    let response = service.oneshot(request).await;
    let response = response.unwrap_or_else(|error| panic!("{}", error.into()));
    assert_eq!(response.status(), StatusCode::OK);
    let body = Box::pin(response.into_body()).collect().await;
    let body = body.unwrap_or_else(|error| panic!("{}", error.into()));
    assert_eq!(body.to_bytes(), "done");
}

macro_rules! stacks {
    ($layer:expr, $($ours:expr),*) => {$(
        answers(ServiceBuilder::new().layer($layer).layer($ours).service(Handler)).await;
        answers(ServiceBuilder::new().layer($ours).layer($layer).service(Handler)).await;
    )*};
}

macro_rules! on_both_sides {
    ($($name:ident: $layer:expr;)*) => {$(
        #[tokio::test]
        async fn $name() {
            let lock = || DistributedLockLayer::new(LockManager::in_memory(), |_| "a");
            let idempotency = || IdempotencyLayer::new(LockManager::in_memory());
            stacks!($layer, lock(), idempotency(), DetachLayer::new());
        }
    )*};
}

mod of_tower {
    use tower::buffer::BufferLayer;
    use tower::filter::{AsyncFilterLayer, FilterLayer};
    use tower::limit::{ConcurrencyLimitLayer, GlobalConcurrencyLimitLayer, RateLimitLayer};
    use tower::load_shed::LoadShedLayer;
    use tower::retry::{Policy, RetryLayer};
    use tower::spawn_ready::SpawnReadyLayer;
    use tower::timeout::TimeoutLayer;
    use tower::util::{
        AndThenLayer, BoxCloneServiceLayer, BoxCloneSyncServiceLayer, MapErrLayer, MapFutureLayer,
        MapRequestLayer, MapResponseLayer, MapResultLayer, ThenLayer, option_layer,
    };

    use super::*;

    /// Retries nothing, and so needs no clones of requests.
    #[derive(Clone)]
    struct Never;

    impl<R, T, E> Policy<R, T, E> for Never {
        type Future = Ready<()>;

        fn retry(&mut self, _: &mut R, _: &mut Result<T, E>) -> Option<Ready<()>> {
            None
        }

        fn clone_request(&mut self, _: &R) -> Option<R> {
            None
        }
    }

    on_both_sides! {
        and_then: AndThenLayer::new(|response| ready(Ok::<_, Infallible>(response)));
        async_filter: AsyncFilterLayer::new(|request| ready(Ok::<_, BoxError>(request)));
        box_clone: BoxCloneServiceLayer::new(tower::layer::util::Identity::new());
        box_clone_sync: BoxCloneSyncServiceLayer::new(tower::layer::util::Identity::new());
        buffer: BufferLayer::new(8);
        concurrency_limit: ConcurrencyLimitLayer::new(8);
        filter: FilterLayer::new(Ok::<_, BoxError>);
        global_concurrency_limit: GlobalConcurrencyLimitLayer::new(8);
        load_shed: LoadShedLayer::new();
        map_err: MapErrLayer::new(|error| error);
        map_future: MapFutureLayer::new(|future| future);
        map_request: MapRequestLayer::new(|request| request);
        map_response: MapResponseLayer::new(|response| response);
        map_result: MapResultLayer::new(|result| result);
        optional: option_layer(Some(ConcurrencyLimitLayer::new(8)));
        // The services of these two are not `Clone`, as ours need the service inside to be.
        rate_limit: (BufferLayer::new(8), RateLimitLayer::new(8, LONG));
        spawn_ready: (BufferLayer::new(8), SpawnReadyLayer::new());
        retry: RetryLayer::new(Never);
        then: ThenLayer::new(ready);
        timeout: TimeoutLayer::new(LONG);
    }
}

mod of_tower_http {
    use tower_http::add_extension::AddExtensionLayer;
    use tower_http::auth::{AddAuthorizationLayer, AsyncRequireAuthorizationLayer};
    use tower_http::catch_panic::CatchPanicLayer;
    use tower_http::compression::CompressionLayer;
    use tower_http::cors::CorsLayer;
    use tower_http::decompression::{DecompressionLayer, RequestDecompressionLayer};
    use tower_http::follow_redirect::FollowRedirectLayer;
    use tower_http::limit::RequestBodyLimitLayer;
    use tower_http::map_request_body::MapRequestBodyLayer;
    use tower_http::map_response_body::MapResponseBodyLayer;
    use tower_http::metrics::InFlightRequestsLayer;
    use tower_http::normalize_path::NormalizePathLayer;
    use tower_http::propagate_header::PropagateHeaderLayer;
    use tower_http::request_id::{MakeRequestUuid, PropagateRequestIdLayer, SetRequestIdLayer};
    use tower_http::sensitive_headers::{
        SetSensitiveHeadersLayer, SetSensitiveRequestHeadersLayer, SetSensitiveResponseHeadersLayer,
    };
    use tower_http::set_header::{SetRequestHeaderLayer, SetResponseHeaderLayer};
    use tower_http::set_status::SetStatusLayer;
    use tower_http::timeout::{RequestBodyTimeoutLayer, ResponseBodyTimeoutLayer, TimeoutLayer};
    use tower_http::trace::TraceLayer;
    use tower_http::validate_request::ValidateRequestHeaderLayer;

    use super::*;

    const VALUE: HeaderValue = HeaderValue::from_static("1");

    on_both_sides! {
        add_authorization: AddAuthorizationLayer::bearer("token");
        add_extension: AddExtensionLayer::new(1);
        async_require_authorization: AsyncRequireAuthorizationLayer::new(|request| {
            ready(Ok::<_, Response<_>>(request))
        });
        catch_panic: CatchPanicLayer::new();
        compression: CompressionLayer::new();
        cors: CorsLayer::permissive();
        decompression: DecompressionLayer::new();
        follow_redirect: FollowRedirectLayer::new();
        in_flight_requests: InFlightRequestsLayer::pair().0;
        map_request_body: MapRequestBodyLayer::new(|body| body);
        map_response_body: MapResponseBodyLayer::new(|body| body);
        normalize_path: NormalizePathLayer::trim_trailing_slash();
        propagate_header: PropagateHeaderLayer::new(HEADER);
        propagate_request_id: PropagateRequestIdLayer::new(HEADER);
        request_body_limit: RequestBodyLimitLayer::new(1000);
        request_body_timeout: RequestBodyTimeoutLayer::new(LONG);
        request_decompression: RequestDecompressionLayer::new();
        response_body_timeout: ResponseBodyTimeoutLayer::new(LONG);
        sensitive_headers: SetSensitiveHeadersLayer::new([HEADER]);
        set_request_header: SetRequestHeaderLayer::overriding(HEADER, VALUE);
        set_request_id: SetRequestIdLayer::new(HEADER, MakeRequestUuid);
        set_response_header: SetResponseHeaderLayer::overriding(HEADER, VALUE);
        set_sensitive_request_headers: SetSensitiveRequestHeadersLayer::new([HEADER]);
        set_sensitive_response_headers: SetSensitiveResponseHeadersLayer::new([HEADER]);
        set_status: SetStatusLayer::new(StatusCode::OK);
        timeout: TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, LONG);
        trace: TraceLayer::new_for_http();
        validate_request_header: ValidateRequestHeaderLayer::accept("text/plain");
    }
}
