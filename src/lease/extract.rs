//! [`Lease`] and [`Leases`] as extractors of axum.

use std::convert::Infallible;
use std::fmt;

use axum_core::extract::{FromRequestParts, OptionalFromRequestParts};
use axum_core::response::{IntoResponse, Response};
use http::StatusCode;
use http::request::Parts;

use super::{Lease, Leases};

/// Answers with 500 if the request runs under no lock.
impl<S: Sync> FromRequestParts<S> for Lease {
    type Rejection = MissingLease;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, MissingLease> {
        parts.extensions.get().cloned().ok_or(MissingLease)
    }
}

/// `None` if the request runs under no lock, as
/// [`optional_key`](crate::DistributedLockLayer::optional_key) and
/// [`OnUnavailable::Proceed`](crate::lock::OnUnavailable::Proceed) allow.
impl<S: Sync> OptionalFromRequestParts<S> for Lease {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Infallible> {
        Ok(parts.extensions.get().cloned())
    }
}

impl Leases {
    /// Returns the leases of the layer that locks several keys, or the one of a layer for one key.
    fn find(parts: &Parts) -> Option<Self> {
        let extensions = &parts.extensions;
        let several = extensions.get::<Self>().cloned();
        several.or_else(|| extensions.get::<Lease>().cloned().map(Self::from))
    }
}

/// Answers with 500 if the request runs under no lock.
impl<S: Sync> FromRequestParts<S> for Leases {
    type Rejection = MissingLease;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, MissingLease> {
        Self::find(parts).ok_or(MissingLease)
    }
}

/// `None` if the request runs under no lock: see the same for [`Lease`].
impl<S: Sync> OptionalFromRequestParts<S> for Leases {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Infallible> {
        Ok(Self::find(parts))
    }
}

/// The rejection of a handler that takes a [`Lease`] or [`Leases`], for a request that has none
/// (feature `axum`): 500, with a text that says what is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct MissingLease;

impl fmt::Display for MissingLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "the handler takes a Lease or Leases, but its request runs under no such lock: there is no DistributedLockLayer around the route, or it let the request run without a lock (take an Option then), or it locks several keys (take Leases then)",
        )
    }
}

impl std::error::Error for MissingLease {}

impl IntoResponse for MissingLease {
    fn into_response(self) -> Response {
        (StatusCode::INTERNAL_SERVER_ERROR, self.to_string()).into_response()
    }
}
