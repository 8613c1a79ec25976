//! [`Protocol`]: the protocol of a request.

use std::time::Duration;

use http::header::CONTENT_LENGTH;
use http::request::Parts;
use http::{Method, StatusCode, Version, response};

use super::grpc;
use super::rejection::{Reason, RejectedBy, Rejection};
use super::wait::Wait;
use crate::key::LockKey;

/// What the middlewares need to know of a request's protocol.
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

    /// Returns how long the request is to wait, if at all: no longer than its client does.
    pub(crate) fn wait(self, wait: &Wait, request: &Parts) -> Option<Duration> {
        wait.of(request)
            .map(|wait| wait.min(grpc::timeout(&request.headers).unwrap_or(wait)))
    }

    pub(crate) fn is_grpc(self) -> bool {
        self.is_grpc
    }

    /// Makes the rejection of this request by one of the layers.
    pub(crate) fn reject(
        self,
        reason: Reason,
        by: RejectedBy,
        key: Option<LockKey>,
        waited: Duration,
    ) -> Rejection {
        Rejection::new(reason, by, self.is_grpc, key, waited)
    }

    /// Whether a server sends a body behind such a head (RFC 9110, section 6.4.1).
    pub(crate) fn has_body(self, response: &response::Parts) -> bool {
        let is_bare = matches!(
            response.status,
            StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
        );
        !self.is_head && !is_bare && !response.status.is_informational()
    }

    /// Returns the length that the response's head tells, in bytes, whatever the body itself knows.
    pub(crate) fn content_length(self, response: &response::Parts) -> Option<u64> {
        let mut lengths = response.headers.get_all(CONTENT_LENGTH).iter();
        let (Some(length), None) = (lengths.next(), lengths.next()) else {
            return None;
        };
        let digits = length.to_str().ok().filter(|_| self.has_body(response))?;
        // The standard library would also accept a sign.
        let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
        digits.parse().ok().filter(|_| is_number)
    }

    /// Returns after how many bytes the client takes the body for complete. `None` where the end is
    /// marked, as always in HTTP/2.
    pub(crate) fn last_byte(self, response: &response::Parts) -> Option<u64> {
        self.content_length(response).filter(|_| self.is_http1)
    }
}
