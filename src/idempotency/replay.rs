//! The response to a duplicate.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response};

use super::stored_response::{Fingerprint, StoredResponse, Unreadable};
use crate::http::{Collected, RejectionKind};
use crate::key::LockKey;
use crate::observe::Repetition;

/// Marks a response that was given before.
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
/// Says that there was a body, and that it was not kept.
const BODY: HeaderName = HeaderName::from_static("idempotent-body");

/// Why what is stored is no response to a duplicate.
pub(super) enum NoReplay {
    /// It is the response to another payload.
    Mismatch,
    /// Its body was not kept.
    NotKept,
    Unreadable(Unreadable),
}

/// Makes the stored response one to a request with that fingerprint.
pub(super) fn replay(
    stored: Bytes,
    fingerprint: Option<Fingerprint>,
    is_grpc: bool,
) -> Result<Response<Collected>, NoReplay> {
    let stored = StoredResponse::decode(stored).map_err(NoReplay::Unreadable)?;
    if let (Some(then), Some(now)) = (stored.fingerprint, fingerprint)
        && then != now
    {
        return Err(NoReplay::Mismatch);
    }
    let is_kept = stored.body.is_some();
    if !is_kept && is_grpc {
        // Without the trailers, a gRPC client would not learn how the call went.
        return Err(NoReplay::NotKept);
    }
    let mut response = Response::new(stored.body.unwrap_or_default());
    *response.status_mut() = stored.status;
    *response.headers_mut() = stored.headers;
    let headers = response.headers_mut();
    headers.insert(REPLAYED, HeaderValue::from_static("true"));
    if !is_kept {
        headers.insert(BODY, HeaderValue::from_static("not-kept"));
    }
    Ok(response)
}

impl NoReplay {
    /// Returns what became of the request.
    pub(super) fn repetition(&self) -> Repetition {
        match self {
            Self::Mismatch => Repetition::Mismatch,
            // The request is done. What is missing is its response.
            Self::NotKept => Repetition::Replayed,
            Self::Unreadable(_) => Repetition::Failed,
        }
    }

    pub(super) fn trace(&self, key: &LockKey) {
        if let Self::Unreadable(reason) = self {
            crate::observe::unreadable(key, reason);
        }
    }
}

impl From<NoReplay> for RejectionKind {
    fn from(reason: NoReplay) -> Self {
        match reason {
            NoReplay::Mismatch => Self::Mismatch,
            NoReplay::NotKept => Self::NotKept,
            NoReplay::Unreadable(_) => Self::Unreadable,
        }
    }
}
