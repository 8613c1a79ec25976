//! [`DistributedLock`]: the middleware.

use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::request::Parts;
use http::{HeaderMap, Request, Response, Version};
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

/// What the client speaks, as far as it matters here.
#[derive(Clone, Copy)]
pub(crate) struct Protocol {
    is_grpc: bool,
    is_http1: bool,
}

impl Protocol {
    fn of(request: &Parts) -> Self {
        Self {
            is_grpc: is_grpc(&request.headers),
            is_http1: request.version <= Version::HTTP_11,
        }
    }

    pub(crate) fn reject(self, kind: RejectionKind) -> Rejection {
        Rejection::new(kind, self.is_grpc)
    }

    /// How many bytes the client takes for the whole body, whatever the body itself knows. In HTTP/2 the end is marked.
    pub(crate) fn announced_length(self, response: &HeaderMap) -> Option<u64> {
        let length = response.get(CONTENT_LENGTH).filter(|_| self.is_http1)?;
        length.to_str().ok()?.parse().ok()
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
        let protocol = Protocol::of(&parts);
        let key = match config.key(&parts) {
            Ok(key) => key,
            Err(error) => return ResponseFuture::rejected(config, protocol, error.kind().into()),
        };
        let held = key.as_ref().and_then(|key| {
            let holding = parts.extensions.get::<Holding>()?;
            let manager = config.locks.id();
            holding.0.iter().find(|lease| lease.is_on(manager, key))
        });
        match (key, held) {
            (Some(_), Some(lease)) if !lease.is_held() => {
                ResponseFuture::rejected(config, protocol, RejectionKind::Lost)
            }
            (Some(key), None) => {
                let request = Request::from_parts(parts, body);
                ResponseFuture::locking(config, protocol, key, ready, request)
            }
            (None, _) | (Some(_), Some(_)) => {
                let inner = ready.call(Request::from_parts(parts, body));
                ResponseFuture::unlocked(config, protocol, inner)
            }
        }
    }
}
