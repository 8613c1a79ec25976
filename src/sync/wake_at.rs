//! [`WakeAt`]: wakes a task at the earliest of many times.

use super::primitives::{AtomicU64, Notify, Ordering};

/// The time at which a task next visits many items, each of which has a time and a mutex.
///
/// The task [clears](Self::clear) this time, visits all items, and sleeps until the earliest time
/// that it saw, or until it is [notified](Self::notified). Code that changes the time of an item
/// calls [`wake_by`](Self::wake_by) afterwards.
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

    /// Forgets the time. From now on, every item whose time changes has to wake the task, which may
    /// have visited it already.
    pub(crate) fn clear(&self) {
        self.next.store(u64::MAX, Ordering::Release);
    }

    /// Notes that the task wakes up then by itself.
    pub(crate) fn set(&self, at: u64) {
        self.next.fetch_min(at, Ordering::AcqRel);
    }

    /// Makes the task wake up by then.
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

    /// Waits until the task must wake up earlier than it knew.
    pub(crate) async fn notified(&self) {
        self.notify.notified().await;
    }
}
