//! [`Doorbell`]: wakes the task that empties a queue.

use super::primitives::{AtomicBool, Notify, Ordering};

/// Notifies a task once for everything that is put into its queue before it next empties it.
#[derive(Debug, Default)]
pub(crate) struct Doorbell {
    /// Whether the task has been notified since it last began to empty the queue.
    is_notified: AtomicBool,
    notify: Notify,
}

impl Doorbell {
    /// Notifies the task that something was put into the queue.
    pub(crate) fn notify(&self) {
        if !self.is_notified.swap(true, Ordering::AcqRel) {
            self.notify.notify_one();
        }
    }

    /// Wakes the task, though nothing may be in the queue.
    pub(crate) fn wake(&self) {
        self.notify.notify_one();
    }

    /// Empties the queue by `take`. Everything that is put into it from now on notifies again, even
    /// if `take` still finds it.
    pub(crate) fn drain<T>(&self, take: impl FnOnce() -> T) -> T {
        self.is_notified.store(false, Ordering::SeqCst);
        take()
    }

    /// Waits until the task is notified. Only one task may wait. It may have taken already what it
    /// is notified of.
    pub(crate) async fn notified(&self) {
        self.notify.notified().await;
    }
}
