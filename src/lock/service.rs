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
use super::future::ResponseFuture;
use crate::error::{Error, ErrorKind};
use crate::http::{Protocol, find_lease};

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
        let mut ready = mem::replace(&mut self.inner, clone);
        let config = Arc::clone(&self.config);

        let (parts, body) = request.into_parts();
        let protocol = Protocol::of(&parts);
        let key = match config.key(&parts) {
            Ok(key) => key,
            Err(error) => return ResponseFuture::rejected(config, protocol, None, error),
        };
        // A layer that is applied twice takes a lock once.
        let outer = key
            .as_ref()
            .and_then(|key| find_lease(&parts.extensions, config.locks.id(), key));
        match (key, outer) {
            (Some(key), Some(lease)) if !lease.is_held() => {
                let lost = Error::of(ErrorKind::Lost);
                ResponseFuture::rejected(config, protocol, Some(key), lost)
            }
            (Some(key), None) => {
                let wait = protocol.wait(&config.wait, &parts);
                let request = Request::from_parts(parts, body);
                ResponseFuture::acquiring(config, protocol, key, wait, ready, request)
            }
            (None, _) | (Some(_), Some(_)) => {
                let inner = ready.call(Request::from_parts(parts, body));
                ResponseFuture::unlocked(config, protocol, inner)
            }
        }
    }
}
