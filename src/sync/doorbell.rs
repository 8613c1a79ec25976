//! [`Doorbell`]: wakes a task that empties a queue.

use super::primitives::{AtomicBool, Notify, Ordering};

/// Notifies a task once for all that is put into a queue before the task empties it again.
#[derive(Debug, Default)]
pub(crate) struct Doorbell {
    /// Whether the task is about to empty the queue anyway.
    is_notified: AtomicBool,
    notify: Notify,
}

impl Doorbell {
    /// Something was put into the queue.
    pub(crate) fn notify(&self) {
        if !self.is_notified.swap(true, Ordering::AcqRel) {
            self.notify.notify_one();
        }
    }

    /// Wakes the task, though nothing may be in the queue.
    pub(crate) fn wake(&self) {
        self.notify.notify_one();
    }

    /// Empties the queue by `take`. What comes in from now on notifies again, even if `take` still
    /// finds it.
    pub(crate) fn drain<T>(&self, take: impl FnOnce() -> T) -> T {
        self.is_notified.store(false, Ordering::SeqCst);
        take()
    }

    /// Waits until the task is notified; there is one task. What it was notified of may have been
    /// taken already.
    pub(crate) async fn notified(&self) {
        self.notify.notified().await;
    }
}
