//! [`Breaker`]: fails commands at once while Redis is known to be away.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::error::Error;

/// While it is open, commands that would only wait for the timeout fail at once. The driver opens
/// it after several timeouts in a row, and closes it when it has connected.
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

    /// Returns why a command need not be tried, if the breaker is open.
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
