//! [`Config`]: the settings that the layer and its services share.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http::request::Parts;

use crate::error::{Error, ErrorKind};
use crate::http::{OnLost, Rejection, RejectionResponder};
use crate::key::{KeyResult, LockKey};
use crate::manager::LockManager;
use crate::observe::{self, Meter};

#[derive(Clone)]
pub(super) struct Config {
    pub(super) locks: LockManager,
    pub(super) meter: Meter,
    pub(super) find_key: Arc<FindKey>,
    pub(super) wait: Option<Duration>,
    pub(super) hold: Hold,
    pub(super) on_unavailable: OnUnavailable,
    pub(super) on_lost: OnLost,
    pub(super) release_before_response: bool,
    pub(super) require_key: bool,
    pub(super) rejection: Option<Arc<RejectionResponder>>,
}

/// A user's closure that finds the key of a request.
pub(super) type FindKey = dyn Fn(&Parts) -> KeyResult + Send + Sync;

/// How long a request holds its lock: see [`DistributedLockLayer::hold`].
///
/// A connection that is upgraded (`101 Switching Protocols`: WebSocket) runs without the lock, with
/// either: its request ends with the head of the response. Take a lock for it in the task that
/// serves it, by [`LockManager::acquire`](crate::LockManager::acquire).
///
/// [`DistributedLockLayer::hold`]: super::DistributedLockLayer::hold
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Hold {
    /// Until the body of the response has been sent, or dropped: its work may go on for as long.
    ///
    /// Where no body is sent (to `HEAD`, with 1xx, 204 and 304), until the handler has returned.
    #[default]
    Body,
    /// Until the handler has returned its response, whose body may be on its way for longer.
    ///
    /// # Warning
    ///
    /// What the body still does, it does without the lock: a stream that reads the resource while
    /// it is sent may see the changes of the next holder. Choose this only if the body needs
    /// nothing that the lock protects, for instance a file or a value that is ready.
    Head,
}

/// What happens to a request when Redis cannot say whether its lock is free: see
/// [`DistributedLockLayer::on_unavailable`].
///
/// [`DistributedLockLayer::on_unavailable`]: super::DistributedLockLayer::on_unavailable
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OnUnavailable {
    /// The request is answered with 503.
    #[default]
    Reject,
    /// The request runs without a lock, and with [`Unlocked`] in its extensions.
    ///
    /// # Warning
    ///
    /// Requests for one key can then run at the same time, on one node as on several, for as long
    /// as Redis is not available. Choose this only where that does less harm than a 503.
    Proceed,
}

/// Marks a request that runs without a lock because Redis was not available, in its extensions.
///
/// Only with [`OnUnavailable::Proceed`]. Such a request has no [`Lease`](crate::Lease).
///
/// ```
/// use axum::Extension;
/// use tower_distributed_lock::lock::Unlocked;
///
/// async fn transfer(unlocked: Option<Extension<Unlocked>>) -> &'static str {
///     match unlocked {
///         Some(_) => "done, perhaps at the same time as another request",
///         None => "done, under the lock",
///     }
/// }
/// # let _ = transfer;
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Unlocked;

impl Config {
    /// Returns the key of a request, or `None` where it needs no lock.
    pub(super) fn key(&self, parts: &Parts) -> Result<Option<LockKey>, Error> {
        match (self.find_key)(parts)? {
            None if self.require_key => Err(Error::of(ErrorKind::InvalidKey)),
            key => Ok(key),
        }
    }

    pub(super) fn respond(&self, rejection: Rejection) -> Response<Bytes> {
        observe::rejected(&self.meter, rejection.kind());
        rejection.into_response(self.rejection.as_deref())
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("meter", &self.meter)
            .field("wait", &self.wait)
            .field("hold", &self.hold)
            .field("on_unavailable", &self.on_unavailable)
            .field("on_lost", &self.on_lost)
            .field("release_before_response", &self.release_before_response)
            .field("require_key", &self.require_key)
            .finish_non_exhaustive()
    }
}
