//! What a duplicate gets.

use bytes::Bytes;
use http::{HeaderValue, Response};

use super::record::{Fingerprint, Record, Unreadable};
use crate::http::{RejectionKind, Whole};
use crate::key::LockKey;

/// Marks an answer that was given before.
const REPLAYED: &str = "idempotent-replayed";
/// Says that there was a body, and that it was not kept.
const BODY: &str = "idempotent-body";

/// Why the record is no answer.
pub(super) enum NoReplay {
    /// It is one to another request.
    Mismatch,
    NotKept,
    Unreadable(Unreadable),
}

/// The answer that was recorded, if it is one to that request.
pub(super) fn replay(
    record: Bytes,
    fingerprint: Option<Fingerprint>,
    is_grpc: bool,
) -> Result<Response<Whole>, NoReplay> {
    let record = Record::decode(record).map_err(NoReplay::Unreadable)?;
    if let (Some(then), Some(now)) = (record.fingerprint, fingerprint)
        && then != now
    {
        return Err(NoReplay::Mismatch);
    }
    let is_kept = record.body.is_some();
    if !is_kept && is_grpc {
        // Without its trailers, it would say nothing.
        return Err(NoReplay::NotKept);
    }
    let mut response = Response::new(record.body.unwrap_or_default());
    *response.status_mut() = record.status;
    *response.headers_mut() = record.headers;
    let headers = response.headers_mut();
    headers.insert(REPLAYED, HeaderValue::from_static("true"));
    if !is_kept {
        headers.insert(BODY, HeaderValue::from_static("not-kept"));
    }
    Ok(response)
}

impl NoReplay {
    pub(super) fn trace(&self, key: &LockKey) {
        if let Self::Unreadable(reason) = self {
            crate::trace::unreadable(key, reason);
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
