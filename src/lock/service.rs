//! [`DistributedLock`]: the middleware.

use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use tower::{BoxError, Service};

use super::body::ResponseBody;
use super::future::ResponseFuture;
use super::layer::Config;
use crate::http::{Protocol, RejectionKind, held};

/// Runs every request of the service inside under a lock. Made by a [`DistributedLockLayer`](crate::DistributedLockLayer).
///
/// Its error is that of the service inside: whatever goes wrong with a lock is a response.
#[derive(Clone, Debug)]
pub struct DistributedLock<S> {
    inner: S,
    config: Arc<Config>,
}

impl<S> DistributedLock<S> {
    pub(crate) fn new(inner: S, config: Arc<Config>) -> Self {
        Self { inner, config }
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
        // The service that is ready, not a clone of it.
        let clone = self.inner.clone();
        let mut ready = std::mem::replace(&mut self.inner, clone);
        let config = Arc::clone(&self.config);

        let (parts, body) = request.into_parts();
        let protocol = Protocol::of(&parts);
        let key = match config.key(&parts) {
            Ok(key) => key,
            Err(error) => return ResponseFuture::rejected(config, protocol, error.kind().into()),
        };
        let held = key
            .as_ref()
            .and_then(|key| held(&parts.extensions, config.locks.id(), key));
        match (key, held) {
            (Some(_), Some(lease)) if !lease.is_held() => {
                ResponseFuture::rejected(config, protocol, RejectionKind::Lost)
            }
            (Some(key), None) => {
                let wait = protocol.wait(config.wait, &parts);
                let request = Request::from_parts(parts, body);
                ResponseFuture::locking(config, protocol, key, wait, ready, request)
            }
            (None, _) | (Some(_), Some(_)) => {
                let inner = ready.call(Request::from_parts(parts, body));
                ResponseFuture::unlocked(config, protocol, inner)
            }
        }
    }
}
