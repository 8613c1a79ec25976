//! [`Grant`]: what a request is given with a lock, and [`GrantPath`]: how it came. [`LostReason`]:
//! why it ends.

use crate::clock::Time;
use crate::mode::Mode;

/// A lock given to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grant {
    pub(crate) lease: u64,
    /// The store's name for the holder: what to release if the slot has given the lease up as lost.
    pub(crate) token: u64,
    pub(crate) mode: Mode,
    pub(crate) fencing_token: u64,
    /// The lease is valid until then, unless it is extended.
    pub(crate) until: Time,
    /// The lease is not extended beyond this.
    pub(crate) limit: Time,
}

/// How a lock came to its holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    not(any(feature = "tracing", feature = "metrics", feature = "inspector")),
    allow(dead_code)
)]
pub(crate) enum GrantPath {
    /// The first acquire got it: the lock was free.
    Uncontended,
    /// From a request of this process.
    Local,
    /// From another process, which handed it over.
    Granted,
    /// A later acquire got it: the lock had become free, or a grant had to be confirmed.
    Polled,
}

#[cfg(any(feature = "tracing", feature = "metrics", feature = "inspector"))]
impl GrantPath {
    /// Returns the path as spans, metrics and the inspector name it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Uncontended => "uncontended",
            Self::Local => "local",
            Self::Granted => "granted",
            Self::Polled => "polled",
        }
    }
}

/// Why a lock is no longer held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LostReason {
    /// The lease could not be renewed in time: Redis was away, or this process stood still.
    Expired,
    /// Another client of Redis deleted or overwrote the lock, or Redis evicted it or lost its data.
    Taken,
    /// It was held for as long as [`max_hold`](crate::LockManagerBuilder::max_hold) allows.
    MaxHold,
    /// It was not lost: its holder released it.
    Released,
}
