//! [`Leases`]: a view of several locks that are held together.

use std::fmt;
use std::slice;
use std::sync::Arc;

use futures_util::future::select_all;
use smallvec::SmallVec;

use super::{Lease, LostReason};
use crate::error::{Error, ErrorKind};
use crate::key::IntoLockKey;
use crate::manager::{LockGuard, LockGuards};

/// A view of several locks that are held together, with a [`Lease`] for each: cheap to clone, and
/// in the extensions of every request whose layer's closure returned [several
/// keys](crate::key::IntoLockKeys). With the feature `axum`, it is an extractor, which a layer for
/// one key serves as well.
///
/// To lose one of the locks is to lose all: what the request does needs them all.
///
/// # Example
///
/// ```
/// use axum::Extension;
/// use axum::http::StatusCode;
/// use tower_distributed_lock::Leases;
///
/// async fn transfer(Extension(leases): Extension<Leases>) -> Result<String, StatusCode> {
///     // A fencing token is one of its key: send each along with the writes to its account.
///     let from = leases.get(("account", 7)).ok_or(StatusCode::BAD_REQUEST)?;
///     Ok(format!("taking from the account 7 with fencing token {}", from.fencing_token()))
/// }
/// # let _ = transfer;
/// ```
#[derive(Clone)]
pub struct Leases(Several);

#[derive(Clone)]
enum Several {
    /// Needs no memory on the heap.
    One(Lease),
    All(Arc<[Lease]>),
}

impl Leases {
    /// Makes a view of these leases, of which there must be one.
    pub(crate) fn new(leases: impl IntoIterator<Item = Lease>) -> Self {
        let mut leases = leases.into_iter();
        let first = leases.next().expect("a lock is held");
        match leases.next() {
            None => first.into(),
            Some(second) => {
                let all = [first, second].into_iter().chain(leases);
                Self(Several::All(all.collect()))
            }
        }
    }

    /// Returns the lease on that key. `None` if it is not among these, or is not a key.
    pub fn get(&self, key: impl IntoLockKey) -> Option<&Lease> {
        let key = key.into_lock_key().ok()?;
        self.iter().find(|lease| *lease.key() == key)
    }

    /// Returns the leases. There is at least one.
    pub fn as_slice(&self) -> &[Lease] {
        match &self.0 {
            Several::One(lease) => slice::from_ref(lease),
            Several::All(leases) => leases,
        }
    }

    /// Returns the leases, one after the other.
    pub fn iter(&self) -> slice::Iter<'_, Lease> {
        self.as_slice().iter()
    }

    /// Returns whether all the locks are certainly held at this moment: see [`Lease::is_held`].
    pub fn is_held(&self) -> bool {
        self.iter().all(Lease::is_held)
    }

    /// Waits until one of the locks is no longer held, and returns why: see [`Lease::lost`].
    pub async fn lost(&self) -> LostReason {
        self.first(Lease::lost).await
    }

    /// Takes all the locks over from the layers that hold them for this request, or none: see
    /// [`Lease::take_over`], by which one of them can be taken over alone.
    ///
    /// Returns `None` if one of them is lost, was taken over before, or has no layer to give it.
    ///
    /// # Example
    ///
    /// ```
    /// use axum::Extension;
    /// use axum::http::StatusCode;
    /// use tower_distributed_lock::Leases;
    ///
    /// async fn begin_merge(Extension(leases): Extension<Leases>) -> StatusCode {
    ///     let Some(guards) = leases.take_over() else {
    ///         return StatusCode::SERVICE_UNAVAILABLE;
    ///     };
    ///     tokio::spawn(async move {
    ///         tokio::select! {
    ///             () = merge() => {}
    ///             reason = guards.lost() => eprintln!("stopped: a lock was lost ({reason:?})"),
    ///         }
    ///         // The guards are dropped here, and release the locks.
    ///     });
    ///     StatusCode::ACCEPTED
    /// }
    /// # async fn merge() {}
    /// # let _ = begin_merge;
    /// ```
    pub fn take_over(&self) -> Option<LockGuards> {
        if !self.is_held() {
            return None;
        }
        let mut guards = SmallVec::new();
        for lease in self {
            let Some(guard) = lease.take_over() else {
                guards.into_iter().for_each(LockGuard::give_back);
                return None;
            };
            guards.push(guard);
        }
        Some(LockGuards::new(guards))
    }

    /// Returns the error of a request that has lost one of the locks.
    pub(crate) fn loss(&self) -> Error {
        let lost = Error::of(ErrorKind::Lost);
        match self.as_slice() {
            [_] => lost,
            leases => match leases.iter().find(|lease| lease.is_lost_to_layer()) {
                Some(lease) => lost.about(lease.key()),
                None => lost,
            },
        }
    }

    /// Waits until one of the locks is lost to the layer that holds them.
    pub(crate) async fn lost_to_layer(&self) {
        self.first(Lease::lost_to_layer).await;
    }

    /// Waits for the first lease that is done.
    async fn first<'a, F: Future>(&'a self, done: impl Fn(&'a Lease) -> F) -> F::Output {
        match self.as_slice() {
            [lease] => done(lease).await,
            leases => {
                let all = leases.iter().map(|lease| Box::pin(done(lease)));
                select_all(all).await.0
            }
        }
    }
}

impl From<Lease> for Leases {
    fn from(lease: Lease) -> Self {
        Self(Several::One(lease))
    }
}

impl<'a> IntoIterator for &'a Leases {
    type Item = &'a Lease;
    type IntoIter = slice::Iter<'a, Lease>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Debug for Leases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self).finish()
    }
}
