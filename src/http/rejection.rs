//! [`Rejection`]: why a request did not run, as a response.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};

use crate::error::ErrorKind;

/// Why a request did not run, or did not run to its end.
///
/// [`to_response`](Self::to_response) makes the default response of it, which a closure given to
/// [`DistributedLockLayer::rejection`](crate::DistributedLockLayer::rejection) or
/// [`IdempotencyLayer::rejection`](crate::IdempotencyLayer::rejection) can replace. It is also in the
/// extensions of that response, for layers outside that log or count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rejection {
    kind: RejectionKind,
    by: Layer,
    is_grpc: bool,
}

/// Replaces [`Rejection::to_response`].
pub(crate) type Respond = dyn Fn(&Rejection) -> Response<Bytes> + Send + Sync;

/// Which layer rejects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Layer {
    Lock,
    Idempotency,
}

/// The cases of [`Rejection`], with the default response of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RejectionKind {
    /// Another request holds the lock, or runs with the same idempotency key. 409, gRPC `ABORTED`.
    Held,
    /// The lock did not become free, or that request did not end, in the time given to wait. 409, gRPC `ABORTED`.
    TimedOut,
    /// Too many requests wait already. 503, gRPC `RESOURCE_EXHAUSTED`.
    QueueFull,
    /// The request has no key that can be used. 400, gRPC `INVALID_ARGUMENT`.
    InvalidKey,
    /// Redis cannot say who holds the lock, or the manager is closed. 503, gRPC `UNAVAILABLE`.
    Unavailable,
    /// The lock was lost before the request had run to its end. 503, gRPC `ABORTED`.
    Lost,
    /// The idempotency key was used with another payload. 422, gRPC `INVALID_ARGUMENT`.
    Mismatch,
    /// The request's body is longer than an [`IdempotencyLayer`](crate::IdempotencyLayer) may keep in memory.
    /// 413, gRPC `RESOURCE_EXHAUSTED`.
    TooLarge,
    /// The request's body did not arrive. 400, gRPC `CANCELLED`.
    Incomplete,
    /// What was recorded for the idempotency key cannot be read. 500, gRPC `DATA_LOSS`.
    Unreadable,
    /// The request was completed before, and its answer was not kept. Only gRPC calls are told so: `ALREADY_EXISTS`.
    NotKept,
}

impl Rejection {
    pub(crate) fn new(kind: RejectionKind, by: Layer, is_grpc: bool) -> Self {
        Self { kind, by, is_grpc }
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
            RejectionKind::Held | RejectionKind::TimedOut | RejectionKind::NotKept => {
                StatusCode::CONFLICT
            }
            RejectionKind::InvalidKey | RejectionKind::Incomplete => StatusCode::BAD_REQUEST,
            RejectionKind::Mismatch => StatusCode::UNPROCESSABLE_ENTITY,
            RejectionKind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            RejectionKind::Unreadable => StatusCode::INTERNAL_SERVER_ERROR,
            RejectionKind::QueueFull | RejectionKind::Unavailable | RejectionKind::Lost => {
                StatusCode::SERVICE_UNAVAILABLE
            }
        }
    }

    /// The default response. To an HTTP request: [`status`](Self::status), `Retry-After` where trying again makes sense,
    /// and a body of `application/problem+json` as in RFC 9457. To a gRPC call: a status without a body.
    /// Neither repeats the key.
    pub fn to_response(&self) -> Response<Bytes> {
        let mut response = Response::new(Bytes::new());
        let detail = self.detail();
        if self.is_grpc {
            let headers = response.headers_mut();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            headers.insert("grpc-status", HeaderValue::from_static(self.grpc_status()));
            // Percent-encoded by rule: these need no escape.
            headers.insert("grpc-message", HeaderValue::from_static(detail));
            return response;
        }
        let status = self.status();
        let title = status.canonical_reason().unwrap_or_default();
        let (first, rest) = detail.split_at(1);
        let problem = format!(
            r#"{{"title":"{title}","status":{},"detail":"{}{rest}."}}"#,
            status.as_u16(),
            first.to_ascii_uppercase()
        );
        *response.status_mut() = status;
        *response.body_mut() = Bytes::from(problem);
        let headers = response.headers_mut();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        if matches!(
            status,
            StatusCode::CONFLICT | StatusCode::SERVICE_UNAVAILABLE
        ) {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }

    /// The response by the user's closure, or the default one, with what it is about in its extensions.
    pub(crate) fn answer(self, respond: Option<&Respond>) -> Response<Bytes> {
        let mut response = match respond {
            Some(respond) => respond(&self),
            None => self.to_response(),
        };
        response.extensions_mut().insert(self);
        response
    }

    fn grpc_status(&self) -> &'static str {
        match self.kind {
            RejectionKind::Incomplete => "1",
            RejectionKind::InvalidKey | RejectionKind::Mismatch => "3",
            RejectionKind::NotKept => "6",
            RejectionKind::QueueFull | RejectionKind::TooLarge => "8",
            RejectionKind::Held | RejectionKind::TimedOut | RejectionKind::Lost => "10",
            RejectionKind::Unavailable => "14",
            RejectionKind::Unreadable => "15",
        }
    }

    /// The sentence that says what happened, without a capital and a full stop.
    fn detail(&self) -> &'static str {
        match (self.kind, self.by) {
            (RejectionKind::Held, Layer::Lock) => "the resource is locked by another request",
            (RejectionKind::Held, Layer::Idempotency) => {
                "a request with this idempotency key is still running"
            }
            (RejectionKind::TimedOut, Layer::Lock) => {
                "the resource stayed locked by other requests"
            }
            (RejectionKind::TimedOut, Layer::Idempotency) => {
                "a request with this idempotency key went on running"
            }
            (RejectionKind::QueueFull, Layer::Lock) => "too many requests wait for the resource",
            (RejectionKind::QueueFull, Layer::Idempotency) => {
                "too many requests with this idempotency key wait"
            }
            (RejectionKind::InvalidKey, Layer::Lock) => {
                "the request does not name what is to be locked"
            }
            (RejectionKind::InvalidKey, Layer::Idempotency) => {
                "the request has no valid idempotency key"
            }
            (RejectionKind::Unavailable, _) => "the lock service is not available",
            (RejectionKind::Lost, _) => "the lock was lost while the request ran",
            (RejectionKind::Mismatch, _) => {
                "the idempotency key was used before, with another payload"
            }
            (RejectionKind::TooLarge, _) => "the body of the request is too long",
            (RejectionKind::Incomplete, _) => "the body of the request did not arrive",
            (RejectionKind::Unreadable, _) => "the recorded answer to the request cannot be read",
            (RejectionKind::NotKept, _) => {
                "the request was completed before, and its answer was not kept"
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
