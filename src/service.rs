//! [`DistributedLock`]: the middleware.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::request::Parts;
use http::{Extensions, Method, Request, Response, StatusCode, Version, response};
use http_body::Body;
use tower::{BoxError, Service};

use crate::body::ResponseBody;
use crate::future::ResponseFuture;
use crate::grpc;
use crate::guard::Lease;
use crate::key::LockKey;
use crate::layer::Config;
use crate::rejection::{Layer, Rejection, RejectionKind};

/// Runs every request of the service inside under a lock. Made by a [`DistributedLockLayer`](crate::DistributedLockLayer).
///
/// Its error is that of the service inside: whatever goes wrong with a lock is a response.
#[derive(Clone, Debug)]
pub struct DistributedLock<S> {
    inner: S,
    config: Arc<Config>,
}

/// The locks that a request holds beside the one in its `Lease`, in its extensions: none is taken twice.
#[derive(Clone, Default)]
struct Outer(Vec<Lease>);

/// Puts a lease into the extensions of the request that now runs under it.
pub(crate) fn hold(lease: Lease, extensions: &mut Extensions) {
    if let Some(outer) = extensions.insert(lease) {
        extensions.get_or_insert_default::<Outer>().0.push(outer);
    }
}

/// The same for a lease that is not what the handler looks for: that on what the request works on goes first.
pub(crate) fn hold_beside(lease: Lease, extensions: &mut Extensions) {
    if extensions.get::<Lease>().is_none() {
        extensions.insert(lease);
    } else {
        extensions.get_or_insert_default::<Outer>().0.push(lease);
    }
}

/// The lease on that key, if the request runs under one already.
pub(crate) fn held<'a>(
    extensions: &'a Extensions,
    manager: u64,
    key: &LockKey,
) -> Option<&'a Lease> {
    let outer = extensions.get::<Outer>().map_or(&[][..], |outer| &outer.0);
    let mut leases = extensions.get::<Lease>().into_iter().chain(outer);
    leases.find(|lease| lease.is_on(manager, key))
}

/// What the client speaks, as far as it matters here.
#[derive(Clone, Copy)]
pub(crate) struct Protocol {
    is_grpc: bool,
    is_http1: bool,
    is_head: bool,
}

impl Protocol {
    pub(crate) fn of(request: &Parts) -> Self {
        Self {
            is_grpc: grpc::is_grpc(&request.headers),
            is_http1: request.version <= Version::HTTP_11,
            is_head: request.method == Method::HEAD,
        }
    }

    /// How long the request is to wait, if at all: no longer than its client does.
    pub(crate) fn wait(self, configured: Option<Duration>, request: &Parts) -> Option<Duration> {
        configured.map(|wait| wait.min(grpc::timeout(&request.headers).unwrap_or(wait)))
    }

    pub(crate) fn is_grpc(self) -> bool {
        self.is_grpc
    }

    pub(crate) fn reject(self, kind: RejectionKind) -> Rejection {
        Rejection::new(kind, Layer::Lock, self.is_grpc)
    }

    /// Whether a server sends a body behind such a head (RFC 9110, section 6.4.1).
    pub(crate) fn has_body(self, response: &response::Parts) -> bool {
        let is_bare = matches!(
            response.status,
            StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
        );
        !self.is_head && !is_bare && !response.status.is_informational()
    }

    /// How many bytes the body has by its head, whatever the body itself knows.
    pub(crate) fn content_length(self, response: &response::Parts) -> Option<u64> {
        let mut lengths = response.headers.get_all(CONTENT_LENGTH).iter();
        let (Some(length), None) = (lengths.next(), lengths.next()) else {
            return None;
        };
        let digits = length.to_str().ok().filter(|_| self.has_body(response))?;
        // The standard library also reads a sign.
        let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
        digits.parse().ok().filter(|_| is_number)
    }

    /// How many bytes the client takes for the whole body. In HTTP/2 the end is marked.
    pub(crate) fn last_byte(self, response: &response::Parts) -> Option<u64> {
        self.content_length(response).filter(|_| self.is_http1)
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
