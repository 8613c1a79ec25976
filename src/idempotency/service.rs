//! [`Idempotency`]: the middleware.

use std::mem;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use tower::{BoxError, Service};

use super::body::IdempotencyBody;
use super::config::Config;
use super::future::IdempotencyFuture;
use super::once::once;

/// Runs the service inside once for each idempotency key. Made by an
/// [`IdempotencyLayer`](super::IdempotencyLayer).
///
/// Its error is that of the service inside: whatever goes wrong with a key or its stored response
/// is a response.
///
/// The service inside must be `Clone`, and its futures `Send`: each request runs with a clone of
/// its own, in a task of its own unless it is under a lock already.
#[derive(Clone, Debug)]
pub struct Idempotency<S> {
    inner: S,
    config: Arc<Config>,
}

impl<S> Idempotency<S> {
    pub(super) fn new(inner: S, config: Arc<Config>) -> Self {
        Self { inner, config }
    }

    /// Returns a reference to the service inside.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// Returns a mutable reference to the service inside. A request that is sent through it runs
    /// however often it comes.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// Returns the service inside. Requests that run go on.
    pub fn into_inner(self) -> S {
        self.inner
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
        // The request takes the service that is ready. Its clone need not be.
        let clone = self.inner.clone();
        let mut ready = mem::replace(&mut self.inner, clone);
        let (parts, body) = request.into_parts();
        if !self.config.may_have_key(&parts) {
            let request = Request::from_parts(parts, IdempotencyBody::passthrough(body));
            return IdempotencyFuture::passthrough(ready.call(request));
        }
        let config = Arc::clone(&self.config);
        IdempotencyFuture::once(once(config, ready, parts, body))
    }
}
