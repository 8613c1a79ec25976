//! [`Rejection`]: why a request did not run, and the response that says so.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};

use crate::error::{Error, ErrorKind};
use crate::key::LockKey;

/// Why a request did not run, or did not run to its end.
///
/// [`to_response`](Self::to_response) makes the default response of it, which a closure given to
/// [`DistributedLockLayer::rejection`](crate::DistributedLockLayer::rejection) or
/// [`IdempotencyLayer::rejection`](crate::IdempotencyLayer::rejection) can replace.
///
/// The rejection is also in the extensions of the response, for outer layers that log or count:
///
/// ```
/// use http::Response;
/// use tower_distributed_lock::lock::{Rejection, RejectionKind};
///
/// fn is_contended<B>(response: &Response<B>) -> bool {
///     let rejection = response.extensions().get::<Rejection>();
///     rejection.is_some_and(|rejection| {
///         matches!(rejection.kind(), RejectionKind::Held | RejectionKind::TimedOut)
///     })
/// }
/// # assert!(!is_contended(&Response::new(())));
/// ```
///
/// With axum, a layer outside can make the whole response of it, of any type. It passes the
/// extension on: by that, an [`IdempotencyLayer`](crate::IdempotencyLayer) further outside knows
/// that the request did not run, and does not keep the response.
///
/// ```
/// use axum::response::{IntoResponse, Response};
/// use axum::{Extension, Json, middleware::map_response};
/// use tower_distributed_lock::lock::Rejection;
///
/// async fn in_our_form(response: Response) -> Response {
///     match response.extensions().get::<Rejection>().cloned() {
///         Some(rejection) => {
///             let status = rejection.status();
///             (status, Extension(rejection), Json("try again later")).into_response()
///         }
///         None => response,
///     }
/// }
/// # use {axum::Router, tower_distributed_lock::DistributedLockLayer};
/// # fn layers(app: Router, lock: DistributedLockLayer) -> Router {
/// app.route_layer(lock).route_layer(map_response(in_our_form))
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Rejection {
    kind: RejectionKind,
    by: RejectedBy,
    is_grpc: bool,
    cause: Option<Error>,
    key: Option<LockKey>,
    waited: Duration,
}

/// Why a request is rejected: an error of the manager, or something that the layer found itself.
#[derive(Clone, Debug)]
pub(crate) struct Reason {
    kind: RejectionKind,
    cause: Option<Error>,
}

impl From<Error> for Reason {
    fn from(error: Error) -> Self {
        Self {
            kind: error.kind().into(),
            cause: Some(error),
        }
    }
}

impl From<RejectionKind> for Reason {
    fn from(kind: RejectionKind) -> Self {
        Self { kind, cause: None }
    }
}

/// A user's closure that replaces [`Rejection::to_response`].
pub(crate) type RejectionResponder = dyn Fn(&Rejection) -> Response<Bytes> + Send + Sync;

/// The layer that rejects a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum RejectedBy {
    Lock,
    Idempotency,
}

/// The cases of [`Rejection`], with the default response of each.
///
/// | Kind | HTTP, gRPC-Web | `Retry-After: 1` | gRPC | By |
/// |---|---|---|---|---|
/// | [`Held`](Self::Held) | 409 | yes | `ABORTED` | both layers |
/// | [`TimedOut`](Self::TimedOut) | 409 | yes | `ABORTED` | both layers |
/// | [`QueueFull`](Self::QueueFull) | 503 | yes | `RESOURCE_EXHAUSTED` | both layers |
/// | [`MissingKey`](Self::MissingKey) | 400 | | `INVALID_ARGUMENT` | both layers |
/// | [`InvalidKey`](Self::InvalidKey) | 400 | | `INVALID_ARGUMENT` | both layers |
/// | [`TooManyKeys`](Self::TooManyKeys) | 400 | | `INVALID_ARGUMENT` | [`DistributedLockLayer`] |
/// | [`Misconfigured`](Self::Misconfigured) | 500 | | `INTERNAL` | both layers |
/// | [`Unavailable`](Self::Unavailable) | 503 | yes | `UNAVAILABLE` | both layers |
/// | [`Lost`](Self::Lost) | 503 | yes | `ABORTED` | both layers |
/// | [`Mismatch`](Self::Mismatch) | 422 | | `INVALID_ARGUMENT` | [`IdempotencyLayer`] |
/// | [`TooLarge`](Self::TooLarge) | 413 | | `RESOURCE_EXHAUSTED` | [`IdempotencyLayer`] |
/// | [`Incomplete`](Self::Incomplete) | 400 | | `CANCELLED` | [`IdempotencyLayer`] |
/// | [`Unreadable`](Self::Unreadable) | 500 | | `DATA_LOSS` | [`IdempotencyLayer`] |
/// | [`NotKept`](Self::NotKept) | | | `ALREADY_EXISTS` | [`IdempotencyLayer`] |
///
/// [`DistributedLockLayer`]: crate::DistributedLockLayer
/// [`IdempotencyLayer`]: crate::IdempotencyLayer
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RejectionKind {
    /// Another request holds the lock, or runs with the same idempotency key. 409, gRPC `ABORTED`.
    Held,
    /// The lock did not become free, or the request with the same idempotency key did not end, in
    /// the time given to wait. 409, gRPC `ABORTED`.
    TimedOut,
    /// Too many requests wait already. 503, gRPC `RESOURCE_EXHAUSTED`.
    QueueFull,
    /// The request lacks what its key, or the scope of its idempotency key, is made of. 400, gRPC
    /// `INVALID_ARGUMENT`.
    MissingKey,
    /// What the request has for a key cannot be one: it is empty, or not text. 400, gRPC
    /// `INVALID_ARGUMENT`.
    InvalidKey,
    /// The request names more than [`max_keys`](crate::LockManagerBuilder::max_keys) things to
    /// lock. 400, gRPC `INVALID_ARGUMENT`.
    TooManyKeys,
    /// No request of this kind can have a key, as the service is put together: no middleware put a
    /// [`LockKey`](crate::LockKey) into the extensions for
    /// [`from_extension`](crate::DistributedLockLayer::from_extension), or the path does not match
    /// the pattern of [`key::path`](crate::key::path). 500, gRPC `INTERNAL`; the feature `tracing`
    /// tells the reason, at the level error.
    Misconfigured,
    /// Redis cannot say whether the lock is free, or the manager is closed. 503, gRPC
    /// `UNAVAILABLE`.
    Unavailable,
    /// The lock was lost before the head of the response was sent. 503, gRPC `ABORTED`.
    Lost,
    /// The idempotency key was used before, with another payload. 422, gRPC `INVALID_ARGUMENT`.
    Mismatch,
    /// The request's body is longer than
    /// [`max_request_body`](crate::IdempotencyLayer::max_request_body). 413, gRPC
    /// `RESOURCE_EXHAUSTED`.
    TooLarge,
    /// The request's body did not arrive. 400, gRPC `CANCELLED`.
    Incomplete,
    /// The stored response to the idempotency key cannot be read: it is damaged, Redis evicted a
    /// part of it, or a newer version of this crate wrote it. 500, gRPC `DATA_LOSS`.
    Unreadable,
    /// The request was completed before, and the body of its response was not kept. Only gRPC calls
    /// are rejected with it: `ALREADY_EXISTS`. An HTTP request gets the status and the headers.
    NotKept,
}

impl Rejection {
    pub(crate) fn new(
        reason: Reason,
        by: RejectedBy,
        is_grpc: bool,
        key: Option<LockKey>,
        waited: Duration,
    ) -> Self {
        Self {
            kind: reason.kind,
            by,
            is_grpc,
            cause: reason.cause,
            key,
            waited,
        }
    }

    /// Returns which case this is.
    pub fn kind(&self) -> RejectionKind {
        self.kind
    }

    /// Returns the error that is the cause, to log what went wrong. `None` if the layer found the
    /// cause in the request or in a stored response.
    ///
    /// # Warning
    ///
    /// Its message is for the service: it may hold the address of Redis and Redis' own words.
    pub fn error(&self) -> Option<&Error> {
        self.cause.as_ref()
    }

    /// Returns the key, if one was found. Of several, it is the one that was refused or lost, and
    /// `None` if it was all of them. That of an [`IdempotencyLayer`](crate::IdempotencyLayer) is
    /// the one that [`forget`](crate::LockManager::forget) takes.
    ///
    /// # Warning
    ///
    /// Keys come from clients. `Debug` shows a [fingerprint](LockKey::fingerprint), for logs.
    pub fn key(&self) -> Option<&LockKey> {
        self.key.as_ref()
    }

    /// Returns how long the request waited for its lock, or for the request with the same
    /// idempotency key. It counts from when the key was found, the round trip to Redis included.
    pub fn waited(&self) -> Duration {
        self.waited
    }

    /// Returns whether the request is a gRPC call: its content type is `application/grpc`, with or
    /// without a suffix. A gRPC-Web call is not one: its client reads HTTP statuses.
    pub fn is_grpc(&self) -> bool {
        self.is_grpc
    }

    /// Returns the status of the default response to an HTTP request.
    pub fn status(&self) -> StatusCode {
        match self.kind {
            RejectionKind::Held | RejectionKind::TimedOut | RejectionKind::NotKept => {
                StatusCode::CONFLICT
            }
            RejectionKind::MissingKey
            | RejectionKind::InvalidKey
            | RejectionKind::TooManyKeys
            | RejectionKind::Incomplete => StatusCode::BAD_REQUEST,
            RejectionKind::Mismatch => StatusCode::UNPROCESSABLE_ENTITY,
            RejectionKind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            RejectionKind::Misconfigured | RejectionKind::Unreadable => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
            RejectionKind::QueueFull | RejectionKind::Unavailable | RejectionKind::Lost => {
                StatusCode::SERVICE_UNAVAILABLE
            }
        }
    }

    /// Returns the default response.
    ///
    /// To an HTTP request it has the [`status`](Self::status), `Retry-After: 1` where trying again
    /// makes sense (409 and 503), and a body of `application/problem+json` as in
    /// [RFC 9457](https://www.rfc-editor.org/rfc/rfc9457). To a gRPC call it is a gRPC status
    /// without a body. Neither repeats the key.
    pub fn to_response(&self) -> Response<Bytes> {
        let mut response = Response::new(Bytes::new());
        let detail = self.detail();
        if self.is_grpc {
            let headers = response.headers_mut();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            headers.insert("grpc-status", HeaderValue::from_static(self.grpc_status()));
            // The protocol wants it percent-encoded; none of these sentences needs an escape.
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

    /// Returns the response of the user's closure, or the default one, with this rejection in its
    /// extensions.
    pub(crate) fn into_response(self, responder: Option<&RejectionResponder>) -> Response<Bytes> {
        let mut response = match responder {
            Some(respond) => respond(&self),
            None => self.to_response(),
        };
        response.extensions_mut().insert(self);
        response
    }

    fn grpc_status(&self) -> &'static str {
        match self.kind {
            RejectionKind::Incomplete => "1",
            RejectionKind::MissingKey
            | RejectionKind::InvalidKey
            | RejectionKind::TooManyKeys
            | RejectionKind::Mismatch => "3",
            RejectionKind::NotKept => "6",
            RejectionKind::QueueFull | RejectionKind::TooLarge => "8",
            RejectionKind::Held | RejectionKind::TimedOut | RejectionKind::Lost => "10",
            RejectionKind::Misconfigured => "13",
            RejectionKind::Unavailable => "14",
            RejectionKind::Unreadable => "15",
        }
    }

    /// Returns the sentence that says what happened, without a capital and a full stop.
    fn detail(&self) -> &'static str {
        match (self.kind, self.by) {
            (RejectionKind::Held, RejectedBy::Lock) => "the resource is locked by another request",
            (RejectionKind::Held, RejectedBy::Idempotency) => {
                "a request with this idempotency key is still running"
            }
            (RejectionKind::TimedOut, RejectedBy::Lock) => {
                "the resource stayed locked by other requests"
            }
            (RejectionKind::TimedOut, RejectedBy::Idempotency) => {
                "a request with this idempotency key went on running"
            }
            (RejectionKind::QueueFull, RejectedBy::Lock) => {
                "too many requests wait for the resource"
            }
            (RejectionKind::QueueFull, RejectedBy::Idempotency) => {
                "too many requests with this idempotency key wait"
            }
            (RejectionKind::MissingKey, RejectedBy::Lock) => {
                "the request does not name what is to be locked"
            }
            (RejectionKind::MissingKey, RejectedBy::Idempotency) => {
                "the request lacks its idempotency key, or what that belongs to"
            }
            (RejectionKind::InvalidKey, RejectedBy::Lock) => {
                "what the request names cannot be locked"
            }
            (RejectionKind::InvalidKey, RejectedBy::Idempotency) => {
                "the request has no valid idempotency key"
            }
            (RejectionKind::TooManyKeys, _) => "the request names too many things to lock",
            (RejectionKind::Misconfigured, RejectedBy::Lock) => {
                "the service cannot tell what the request is to lock"
            }
            (RejectionKind::Misconfigured, RejectedBy::Idempotency) => {
                "the service cannot tell what the idempotency key belongs to"
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
            ErrorKind::MissingKey => Self::MissingKey,
            ErrorKind::InvalidKey => Self::InvalidKey,
            ErrorKind::TooManyKeys => Self::TooManyKeys,
            ErrorKind::Config => Self::Misconfigured,
            ErrorKind::Lost => Self::Lost,
            ErrorKind::Unavailable | ErrorKind::Closed => Self::Unavailable,
        }
    }
}
