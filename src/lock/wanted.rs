//! [`Wanted`]: the locks that a request wants, and those of them that it holds already.

use std::sync::Arc;
use std::time::Duration;

use http::Extensions;
use smallvec::SmallVec;

use super::config::Config;
use super::held_lock::BoxFuture;
use crate::error::{Error, ErrorKind};
use crate::http::{find_lease, insert_lease, insert_leases};
use crate::key::LockKeys;
use crate::lease::{Lease, Leases};
use crate::manager::LockGuards;
use crate::mode::Mode;
use crate::observe::{self, Mistake};

/// The locks that a request wants, mostly one.
pub(super) struct Wanted {
    /// The leases on those that the request holds already. They are not taken again: a layer that
    /// is applied twice takes a lock once.
    outer: SmallVec<[Lease; 1]>,
    are_several: bool,
}

impl Wanted {
    /// Looks which of the keys the request holds already. Returns the others, if there are any.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Lost`] if the request has lost one of them, [`ErrorKind::Config`] if it shares
    /// one that it wants alone.
    pub(super) fn new(
        keys: LockKeys,
        mode: Mode,
        config: &Config,
        extensions: &Extensions,
    ) -> Result<(Self, Option<LockKeys>), Error> {
        let are_several = keys.one().is_none();
        let held = keys.as_slice().iter();
        let held = held.filter_map(|key| find_lease(extensions, config.locks.id(), key));
        let outer: SmallVec<[Lease; 1]> = held.cloned().collect();
        if let Some(lost) = outer.iter().find(|lease| !lease.is_held()) {
            return Err(Error::of(ErrorKind::Lost).about(lost.key()));
        }
        let is_too_little = |lease: &&Lease| lease.mode().is_shared() && !mode.is_shared();
        if let Some(shared) = outer.iter().find(is_too_little) {
            let error = Error::new(
                ErrorKind::Config,
                "an outer layer shares the lock of this request, and an inner one wants it alone: shared locks \
                 are not upgraded",
            );
            observe::misconfigured(&config.meter, Mistake::Upgrade, &error);
            return Err(error.about(shared.key()));
        }
        let missing = keys.without(|key| outer.iter().any(|lease| lease.key() == key));
        let wanted = Self { outer, are_several };
        Ok((wanted, missing))
    }

    /// Lets the handler find the leases, of which `own` are those that this layer has taken.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Lost`] if one was lost meanwhile: time may have passed since it was granted.
    pub(super) fn show(
        self,
        own: Option<&Leases>,
        extensions: &mut Extensions,
    ) -> Result<(), Error> {
        let is_taken_here = own.is_some();
        let own = own.into_iter().flatten().cloned();
        let all = Leases::new(self.outer.into_iter().chain(own));
        if !all.is_held() {
            return Err(all.loss());
        }
        match all.as_slice() {
            _ if self.are_several => insert_leases(all, extensions),
            [lease] if is_taken_here => insert_lease(lease.clone(), extensions),
            _ => {}
        }
        Ok(())
    }
}

/// Takes the locks of these keys.
pub(super) fn acquire(
    config: Arc<Config>,
    keys: LockKeys,
    wait: Option<Duration>,
    mode: Mode,
) -> BoxFuture<Result<LockGuards, Error>> {
    // One future for each of the two ways: that for one key needs less memory.
    match keys.into_one() {
        Ok(key) => Box::pin(async move {
            let taken = config.locks.take(&config.meter, key, wait, mode).await;
            taken.map(LockGuards::from)
        }),
        Err(keys) => {
            Box::pin(async move { config.locks.take_all(&config.meter, keys, wait, mode).await })
        }
    }
}
