//! [`Redirected`]: commands that a primary did not carry out, as it does not have their slots, or
//! not now.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::store::redis::pending::Pending;

/// The commands that wait for a newer map of the slots. All primaries' drivers share it with the
/// router.
#[derive(Debug, Default)]
pub(in crate::store::redis) struct Redirected {
    commands: Mutex<Vec<Pending>>,
    changed: Notify,
}

impl Redirected {
    pub(in crate::store::redis) fn put(&self, pending: Pending) {
        self.commands().push(pending);
        self.notify();
    }

    /// Tells the router that the map may be out of date.
    pub(in crate::store::redis) fn notify(&self) {
        self.changed.notify_one();
    }

    pub(super) async fn notified(&self) {
        self.changed.notified().await;
    }

    /// Takes all, in the order in which they came.
    pub(super) fn take(&self) -> Vec<Pending> {
        std::mem::take(&mut self.commands())
    }

    /// Keeps commands whose slots no primary has.
    pub(super) fn put_back(&self, commands: Vec<Pending>) {
        self.commands().splice(..0, commands);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.commands().is_empty()
    }

    fn commands(&self) -> MutexGuard<'_, Vec<Pending>> {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
