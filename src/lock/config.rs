//! [`Config`]: the settings that the layer and its services share.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use http::Response;
use http::request::Parts;

use super::find_key::FindKey;
use super::mode_of::ModeOf;
use crate::error::{Error, ErrorKind};
use crate::http::{OnLost, Rejection, RejectionResponder, Wait};
use crate::key::{KeysResult, LockKeys};
use crate::manager::LockManager;
use crate::mode::Mode;
use crate::observe::{self, Meter, Mistake};

#[derive(Clone)]
pub(super) struct Config {
    pub(super) locks: LockManager,
    pub(super) meter: Meter,
    pub(super) find_key: FindKey,
    pub(super) wait: Wait,
    pub(super) mode: Option<ModeOf>,
    pub(super) hold: Hold,
    pub(super) on_unavailable: OnUnavailable,
    pub(super) on_lost: OnLost,
    pub(super) release_before_response: bool,
    pub(super) optional_key: bool,
    pub(super) rejection: Option<Arc<RejectionResponder>>,
}

/// How long a request holds its lock: see [`DistributedLockLayer::hold`].
///
/// A connection that is upgraded (`101 Switching Protocols`: WebSocket) runs without the lock, with
/// either: its request ends with the head of the response. The handler can take the lock over, by
/// [`Lease::take_over`](crate::Lease::take_over), and hand it to the task that serves the
/// connection.
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
    /// Returns the keys that were found, or `None` if there is none and the request needs none.
    pub(super) fn keys(&self, found: KeysResult) -> Result<Option<LockKeys>, Error> {
        match found {
            Ok(keys) => Ok(Some(keys)),
            Err(error) => match error.kind() {
                ErrorKind::MissingKey | ErrorKind::Config if self.optional_key => Ok(None),
                ErrorKind::Config => {
                    observe::misconfigured(&self.meter, Mistake::NoKey, &error);
                    Err(error)
                }
                _ => Err(error),
            },
        }
    }

    /// Returns whether a request has its lock alone.
    pub(super) fn mode(&self, request: &Parts) -> Mode {
        self.mode
            .as_ref()
            .map_or_else(Mode::default, |mode| mode(request))
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
            .field("optional_key", &self.optional_key)
            .finish_non_exhaustive()
    }
}
