//! [`DistributedLock`]: the middleware.

use std::mem;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use tower::{BoxError, Service};

use super::body::ResponseBody;
use super::config::Config;
use super::find_key::FindKey;
use super::future::ResponseFuture;
use crate::http::Protocol;

/// Runs every request of the service inside under a lock. Made by a
/// [`DistributedLockLayer`](super::DistributedLockLayer).
///
/// Its error is that of the service inside: whatever goes wrong with a lock is a response.
///
/// The service inside must be `Clone`: each request waits for its lock with a clone of its own.
#[derive(Clone, Debug)]
pub struct DistributedLock<S> {
    inner: S,
    config: Arc<Config>,
}

impl<S> DistributedLock<S> {
    pub(super) fn new(inner: S, config: Arc<Config>) -> Self {
        Self { inner, config }
    }

    /// Returns a reference to the service inside.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// Returns a mutable reference to the service inside. A request that is sent through it runs
    /// without a lock.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// Returns the service inside. Requests that were called before keep their locks.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<S, ReqB, ResB> Service<Request<ReqB>> for DistributedLock<S>
where
    S: Service<Request<ReqB>, Response = Response<ResB>> + Clone,
    ResB: Body<Data = Bytes>,
    ResB::Error: Into<BoxError>,
{
    type Response = Response<ResponseBody<ResB>>;
    type Error = S::Error;
    type Future = ResponseFuture<S, ReqB, ResB>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqB>) -> Self::Future {
        // The request takes the service that is ready. Its clone need not be.
        let clone = self.inner.clone();
        let ready = mem::replace(&mut self.inner, clone);
        let config = Arc::clone(&self.config);

        let (parts, body) = request.into_parts();
        let protocol = Protocol::of(&parts);
        let found = match &config.find_key {
            FindKey::Now(find) => find(&parts),
            FindKey::Later(find) => {
                let finding = find(parts.clone());
                let request = Request::from_parts(parts, body);
                return ResponseFuture::finding(config, protocol, finding, ready, request);
            }
        };
        ResponseFuture::found(config, protocol, found, ready, parts, body)
    }
}
