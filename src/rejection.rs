//! [`Rejection`]: why a request did not run, as a response.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};

use crate::error::ErrorKind;

/// Why a request did not run, or did not run to its end.
///
/// [`to_response`](Self::to_response) makes the default response of it, which a closure given to
/// [`DistributedLockLayer::rejection`](crate::DistributedLockLayer::rejection) can replace. It is also in the
/// extensions of that response, for layers outside that log or count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rejection {
    kind: RejectionKind,
    is_grpc: bool,
}

/// The cases of [`Rejection`], with the default response of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RejectionKind {
    /// Another request holds the lock. 409, gRPC `ABORTED`.
    Held,
    /// The lock did not become free in the time given to wait. 409, gRPC `ABORTED`.
    TimedOut,
    /// Too many requests wait for the lock already. 503, gRPC `RESOURCE_EXHAUSTED`.
    QueueFull,
    /// The request has no key that can name a lock. 400, gRPC `INVALID_ARGUMENT`.
    InvalidKey,
    /// Redis cannot say who holds the lock, or the manager is closed. 503, gRPC `UNAVAILABLE`.
    Unavailable,
    /// The lock was lost before the request had run to its end. 503, gRPC `ABORTED`.
    Lost,
}

impl Rejection {
    pub(crate) fn new(kind: RejectionKind, is_grpc: bool) -> Self {
        Self { kind, is_grpc }
    }

    /// Which case this is.
    pub fn kind(&self) -> RejectionKind {
        self.kind
    }

    /// Whether the request is a gRPC call: its content type is `application/grpc`, or that with a suffix.
    pub fn is_grpc(&self) -> bool {
        self.is_grpc
    }

    /// The status of the default response to an HTTP request.
    pub fn status(&self) -> StatusCode {
        match self.kind {
            RejectionKind::Held | RejectionKind::TimedOut => StatusCode::CONFLICT,
            RejectionKind::InvalidKey => StatusCode::BAD_REQUEST,
            RejectionKind::QueueFull | RejectionKind::Unavailable | RejectionKind::Lost => {
                StatusCode::SERVICE_UNAVAILABLE
            }
        }
    }

    /// The default response. To an HTTP request: [`status`](Self::status), `Retry-After` where trying again makes sense,
    /// and a body of `application/problem+json` as in RFC 9457. To a gRPC call: a status without a message.
    /// Neither repeats the key.
    pub fn to_response(&self) -> Response<Bytes> {
        let mut response = Response::new(Bytes::new());
        if self.is_grpc {
            let (code, message) = self.grpc();
            let headers = response.headers_mut();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            headers.insert("grpc-status", HeaderValue::from_static(code));
            headers.insert("grpc-message", HeaderValue::from_static(message));
        } else {
            *response.status_mut() = self.status();
            *response.body_mut() = Bytes::from_static(self.problem().as_bytes());
            let headers = response.headers_mut();
            headers.insert(
                CONTENT_TYPE,
                HeaderValue::from_static("application/problem+json"),
            );
            if self.kind != RejectionKind::InvalidKey {
                headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
            }
        }
        response
    }

    /// Code and message. A gRPC message is percent-encoded: these need no escape.
    fn grpc(&self) -> (&'static str, &'static str) {
        match self.kind {
            RejectionKind::Held => ("10", "the resource is locked by another request"),
            RejectionKind::TimedOut => ("10", "the resource stayed locked by other requests"),
            RejectionKind::Lost => ("10", "the lock was lost while the request ran"),
            RejectionKind::QueueFull => ("8", "too many requests wait for the resource"),
            RejectionKind::InvalidKey => ("3", "the request does not name what is to be locked"),
            RejectionKind::Unavailable => ("14", "the lock service is not available"),
        }
    }

    fn problem(&self) -> &'static str {
        match self.kind {
            RejectionKind::Held => {
                r#"{"title":"Conflict","status":409,"detail":"The resource is locked by another request."}"#
            }
            RejectionKind::TimedOut => {
                r#"{"title":"Conflict","status":409,"detail":"The resource stayed locked by other requests."}"#
            }
            RejectionKind::QueueFull => {
                r#"{"title":"Service Unavailable","status":503,"detail":"Too many requests wait for the resource."}"#
            }
            RejectionKind::InvalidKey => {
                r#"{"title":"Bad Request","status":400,"detail":"The request does not name what is to be locked."}"#
            }
            RejectionKind::Unavailable => {
                r#"{"title":"Service Unavailable","status":503,"detail":"The lock service is not available."}"#
            }
            RejectionKind::Lost => {
                r#"{"title":"Service Unavailable","status":503,"detail":"The lock was lost while the request ran."}"#
            }
        }
    }
}

impl From<ErrorKind> for RejectionKind {
    fn from(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::Held => Self::Held,
            ErrorKind::TimedOut => Self::TimedOut,
            ErrorKind::QueueFull => Self::QueueFull,
            ErrorKind::InvalidKey => Self::InvalidKey,
            ErrorKind::Lost => Self::Lost,
            ErrorKind::Unavailable | ErrorKind::Closed | ErrorKind::Config => Self::Unavailable,
        }
    }
}
