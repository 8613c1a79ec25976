//! [`WakeAt`]: wakes a task at the earliest of many times.

use super::primitives::{AtomicU64, Notify, Ordering};

/// When a task next visits many things, each of which has a time and a mutex.
///
/// The task [clears](Self::clear) it, visits all of them, and sleeps until the earliest time that it
/// saw, or until it is [notified](Self::notified). Whoever changes a time calls
/// [`wake_by`](Self::wake_by) afterwards.
#[derive(Debug)]
pub(crate) struct WakeAt {
    next: AtomicU64,
    notify: Notify,
}

impl WakeAt {
    pub(crate) fn new() -> Self {
        Self {
            next: AtomicU64::new(u64::MAX),
            notify: Notify::new(),
        }
    }

    /// From now on, all who want a visit have to say so: the task may have passed them already.
    pub(crate) fn clear(&self) {
        self.next.store(u64::MAX, Ordering::Release);
    }

    /// The task wakes up then anyway.
    pub(crate) fn set(&self, at: u64) {
        self.next.fetch_min(at, Ordering::AcqRel);
    }

    /// Makes the task wake up then, or earlier.
    pub(crate) fn wake_by(&self, at: u64) {
        if at < self.next.load(Ordering::Relaxed) && at < self.next.fetch_min(at, Ordering::AcqRel)
        {
            self.notify.notify_one();
        }
    }

    /// Makes the task wake up now.
    pub(crate) fn wake(&self) {
        self.notify.notify_one();
    }

    /// Waits until the task is to wake up earlier than it knew.
    pub(crate) async fn notified(&self) {
        self.notify.notified().await;
    }
}
