//! [`Idempotency`]: the middleware.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::request::Parts;
use http::{Request, Response};
use http_body::Body;
use pin_project_lite::pin_project;
use tower::{BoxError, Service};

use super::body::IdempotencyBody;
use super::layer::Config;
use super::read::{self, NotRead};
use super::replay::replay;
use super::run::{Run, run};
use crate::detach::DetachFuture;
use crate::http::{Layer, Protocol, Rejection, RejectionKind, Whole, held, hold_beside};
use crate::manager::Claimed;

/// Runs the service inside once for each idempotency key. Made by an [`IdempotencyLayer`](super::IdempotencyLayer).
///
/// Its error is that of the service inside: whatever goes wrong with a key or its record is a response.
#[derive(Clone, Debug)]
pub struct Idempotency<S> {
    inner: S,
    config: Arc<Config>,
}

impl<S> Idempotency<S> {
    pub(super) fn new(inner: S, config: Arc<Config>) -> Self {
        Self { inner, config }
    }
}

impl<S, ReqB, ResB> Service<Request<ReqB>> for Idempotency<S>
where
    S: Service<Request<IdempotencyBody<ReqB>>, Response = Response<ResB>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    ReqB: Body<Data = Bytes> + Send + 'static,
    ReqB::Error: Into<BoxError>,
    ResB: Body<Data = Bytes> + Send + 'static,
    ResB::Error: Into<BoxError>,
{
    type Response = Response<IdempotencyBody<ResB>>;
    type Error = S::Error;
    type Future = IdempotencyFuture<S::Future, Self::Response, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqB>) -> Self::Future {
        // The service that is ready, not a clone of it.
        let clone = self.inner.clone();
        let mut ready = std::mem::replace(&mut self.inner, clone);
        let (parts, body) = request.into_parts();
        let state = match self.config.concerns(&parts) {
            false => {
                let request = Request::from_parts(parts, IdempotencyBody::through(body));
                State::Through {
                    inner: ready.call(request),
                }
            }
            true => {
                let config = Arc::clone(&self.config);
                State::Once {
                    once: Box::pin(once(config, ready, parts, body)),
                }
            }
        };
        IdempotencyFuture { state }
    }
}

/// A request that may have a key.
async fn once<S, ReqB, ResB>(
    config: Arc<Config>,
    mut service: S,
    mut parts: Parts,
    body: ReqB,
) -> Result<Response<IdempotencyBody<ResB>>, S::Error>
where
    S: Service<Request<IdempotencyBody<ReqB>>, Response = Response<ResB>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    ReqB: Body<Data = Bytes> + Send + 'static,
    ResB: Body<Data = Bytes> + Send + 'static,
    ResB::Error: Into<BoxError>,
{
    let protocol = Protocol::of(&parts);
    let reject = |kind| {
        let rejection = Rejection::new(kind, Layer::Idempotency, protocol.is_grpc());
        Ok(config.respond(rejection).map(fixed))
    };
    // Nothing is read for a key that cannot be one.
    let in_head = match config.key_in_head(&parts) {
        Ok(key) => key,
        Err(error) => return reject(error.kind().into()),
    };
    if in_head.is_none() && config.is_in_head() {
        return reject(RejectionKind::InvalidKey);
    }
    let whole = match read::request(body, config.max_request_body).await {
        Ok(whole) => whole,
        Err(NotRead::TooLong) => return reject(RejectionKind::TooLarge),
        Err(NotRead::Broken) => return reject(RejectionKind::Incomplete),
    };
    let key = match in_head {
        Some(key) => Some(key),
        None => match config.key_in_body(&parts, &whole.data) {
            Ok(None) if config.require_key => return reject(RejectionKind::InvalidKey),
            Ok(key) => key,
            Err(error) => return reject(error.kind().into()),
        },
    };
    // A layer that is applied twice looks at a request once.
    let key = key.filter(|key| held(&parts.extensions, config.locks.id(), key).is_none());
    let Some(key) = key else {
        let request = Request::from_parts(parts, IdempotencyBody::whole(whole));
        let response = service.call(request).await?;
        return Ok(response.map(IdempotencyBody::through));
    };
    let fingerprint = config.fingerprint(&parts, &whole.data);
    let wait = protocol.wait(config.wait, &parts);
    let guard = match config.locks.claim(key.clone(), wait).await {
        Ok(Claimed::Lock(guard)) => guard,
        Ok(Claimed::Record(record)) => {
            return match replay(record, fingerprint, protocol.is_grpc()) {
                Ok(response) => Ok(response.map(IdempotencyBody::whole)),
                Err(failure) => {
                    failure.trace(&key);
                    reject(failure.into())
                }
            };
        }
        Ok(Claimed::Damaged(damage)) => {
            crate::trace::unreadable(&key, &damage);
            return reject(RejectionKind::Unreadable);
        }
        Err(error) => return reject(error.kind().into()),
    };
    hold_beside(guard.lease().clone(), &mut parts.extensions);
    let request = Request::from_parts(parts, IdempotencyBody::whole(whole));
    let run = run(
        service,
        request,
        Run {
            config,
            guard,
            fingerprint,
            protocol,
        },
    );
    DetachFuture::spawn(run).await
}

/// A body of our own.
pub(super) fn fixed<B>(data: Bytes) -> IdempotencyBody<B> {
    let trailers = None;
    IdempotencyBody::whole(Whole { data, trailers })
}

pin_project! {
    /// The response of an [`Idempotency`].
    ///
    /// Dropped before it is ready, a request that runs goes on to its end, and its answer is recorded. One that waits does not
    /// wait any longer.
    pub struct IdempotencyFuture<F, T, E> {
        #[pin]
        state: State<F, T, E>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F, T, E> {
        Through { #[pin] inner: F },
        Once { once: Pin<Box<dyn Future<Output = Result<T, E>> + Send>> },
    }
}

impl<F, B, E> Future for IdempotencyFuture<F, Response<IdempotencyBody<B>>, E>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<IdempotencyBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProj::Through { inner } => inner
                .poll(cx)
                .map_ok(|response| response.map(IdempotencyBody::through)),
            StateProj::Once { once } => once.as_mut().poll(cx),
        }
    }
}

impl<F, T, E> fmt::Debug for IdempotencyFuture<F, T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdempotencyFuture").finish_non_exhaustive()
    }
}
