//! [`Doorbell`]: wakes a task that looks at a queue.

use super::primitives::{AtomicBool, Notify, Ordering};

/// Rings once for all that is put into a queue before its task looks there again.
#[derive(Debug, Default)]
pub(crate) struct Doorbell {
    /// Whether the task is about to look anyway.
    rung: AtomicBool,
    bell: Notify,
}

impl Doorbell {
    /// Something was put into the queue.
    pub(crate) fn ring(&self) {
        if !self.rung.swap(true, Ordering::AcqRel) {
            self.bell.notify_one();
        }
    }

    /// Wakes the task, though nothing may be in the queue.
    pub(crate) fn wake(&self) {
        self.bell.notify_one();
    }

    /// Looks at the queue. What comes in from now on rings again, even if the look still finds it.
    pub(crate) fn answer<T>(&self, look: impl FnOnce() -> T) -> T {
        self.rung.store(false, Ordering::SeqCst);
        look()
    }

    /// Waits until the bell rings, for one task. It may have rung for what was found already.
    pub(crate) async fn rung(&self) {
        self.bell.notified().await;
    }
}
