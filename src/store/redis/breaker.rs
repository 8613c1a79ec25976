//! [`Breaker`]: answers at once while Redis is known to be away.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::error::Error;

/// Open, it refuses what would only wait for the timeout: that has passed several times in a row, and the driver has not
/// got through yet.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    is_open: AtomicBool,
    reason: Mutex<Option<Error>>,
}

impl Breaker {
    pub(super) fn open(&self, reason: Error) {
        self.keep(Some(reason));
        self.is_open.store(true, Ordering::Release);
    }

    pub(super) fn close(&self) {
        self.is_open.store(false, Ordering::Release);
        self.keep(None);
    }

    /// Why nothing need be tried.
    pub(super) fn refuses(&self) -> Option<Error> {
        if !self.is_open.load(Ordering::Acquire) {
            return None;
        }
        let reason = self.reason.lock().unwrap_or_else(PoisonError::into_inner);
        reason.clone()
    }

    fn keep(&self, reason: Option<Error>) {
        *self.reason.lock().unwrap_or_else(PoisonError::into_inner) = reason;
    }
}
