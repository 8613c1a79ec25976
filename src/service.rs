//! [`DistributedLock`]: the middleware.

use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use tower::{BoxError, Service};

use crate::body::ResponseBody;
use crate::future::ResponseFuture;
use crate::guard::Lease;
use crate::layer::Config;
use crate::rejection::{Rejection, RejectionKind, is_grpc};

/// Runs every request of the service inside under a lock. Made by a [`DistributedLockLayer`](crate::DistributedLockLayer).
///
/// Its error is that of the service inside: whatever goes wrong with a lock is a response.
#[derive(Clone, Debug)]
pub struct DistributedLock<S> {
    inner: S,
    config: Arc<Config>,
}

/// All locks that this request holds, in its extensions: the same one is not taken twice.
#[derive(Clone, Default)]
pub(crate) struct Holding(Vec<Lease>);

impl Holding {
    pub(crate) fn add(extensions: &mut http::Extensions, lease: Lease) {
        extensions
            .get_or_insert_default::<Self>()
            .0
            .push(lease.clone());
        extensions.insert(lease);
    }
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
    type Future = ResponseFuture<S, ReqB>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqB>) -> Self::Future {
        // The service that is ready, not a clone of it.
        let clone = self.inner.clone();
        let mut ready = std::mem::replace(&mut self.inner, clone);
        let config = Arc::clone(&self.config);

        let (parts, body) = request.into_parts();
        let is_grpc = is_grpc(&parts.headers);
        let key = match config.key(&parts) {
            Ok(key) => key,
            Err(error) => {
                let rejection = Rejection::new(error.kind().into(), is_grpc);
                return ResponseFuture::rejected(config, rejection);
            }
        };
        let held = key.as_ref().and_then(|key| {
            let holding = parts.extensions.get::<Holding>()?;
            let manager = config.locks.id();
            holding.0.iter().find(|lease| lease.is_on(manager, key))
        });
        match (key, held) {
            (Some(_), Some(lease)) if !lease.is_held() => {
                let rejection = Rejection::new(RejectionKind::Lost, is_grpc);
                ResponseFuture::rejected(config, rejection)
            }
            (Some(key), None) => {
                let request = Request::from_parts(parts, body);
                ResponseFuture::locking(config, key, ready, request, is_grpc)
            }
            (None, _) | (Some(_), Some(_)) => {
                let request = Request::from_parts(parts, body);
                let inner = ready.call(request);
                ResponseFuture::unlocked(config, inner, is_grpc)
            }
        }
    }
}
