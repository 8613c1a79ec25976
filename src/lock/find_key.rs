//! [`FindKey`]: the ways in which a layer finds the keys of a request.

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

#[cfg(feature = "axum")]
use bytes::Bytes;
#[cfg(feature = "axum")]
use http::Response;
use http::request::Parts;

use crate::error::Error;
use crate::key::{KeysResult, LockKeys};

#[derive(Clone)]
pub(super) enum FindKey {
    /// At once, from the head.
    Now(Arc<dyn Fn(&Parts) -> KeysResult + Send + Sync>),
    /// By a future, from a copy of the head.
    Later(Arc<dyn Fn(Parts) -> FindingKey + Send + Sync>),
}

impl FindKey {
    pub(super) fn now(find: impl Fn(&Parts) -> KeysResult + Send + Sync + 'static) -> Self {
        Self::Now(Arc::new(find))
    }

    pub(super) fn later<F, Fut>(find: F) -> Self
    where
        F: Fn(Parts) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Found> + Send + 'static,
    {
        Self::Later(Arc::new(move |parts| FindingKey::new(find(parts))))
    }
}

/// What a future has found.
type Found = Result<LockKeys, NoKey>;

/// Why a future found no key.
pub(super) enum NoKey {
    Error(Error),
    /// An extractor rejected the request with this response.
    #[cfg(feature = "axum")]
    Rejected(Box<Response<Bytes>>),
}

/// A user's future that finds a key.
///
/// It need not be `Sync`, but the future of a request is. The mutex makes it so, and is never
/// locked.
pub(super) struct FindingKey(Mutex<Pin<Box<dyn Future<Output = Found> + Send>>>);

impl FindingKey {
    fn new(finding: impl Future<Output = Found> + Send + 'static) -> Self {
        Self(Mutex::new(Box::pin(finding)))
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Found> {
        let finding = self.0.get_mut().unwrap_or_else(PoisonError::into_inner);
        finding.as_mut().poll(cx)
    }
}

impl fmt::Debug for FindKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Now(_) => "Now",
            Self::Later(_) => "Later",
        })
    }
}
