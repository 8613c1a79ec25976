//! [`Alarm`]: wakes a task at the earliest of many times.

use super::primitives::{AtomicU64, Notify, Ordering};

/// When a task looks next at many things, each of which has a time and a mutex.
///
/// The task [clears](Self::clear) it, looks at all of them, and sleeps until the earliest time that it saw, or
/// until the alarm [rings](Self::rung). Who changes a time calls [`by`](Self::by) afterwards.
#[derive(Debug)]
pub(crate) struct Alarm {
    next: AtomicU64,
    bell: Notify,
}

impl Alarm {
    pub(crate) fn new() -> Self {
        Self {
            next: AtomicU64::new(u64::MAX),
            bell: Notify::new(),
        }
    }

    /// From now on, all who want the task to look have to say so: it may have passed them already.
    pub(crate) fn clear(&self) {
        self.next.store(u64::MAX, Ordering::Release);
    }

    /// The task will look then anyway.
    pub(crate) fn set(&self, at: u64) {
        self.next.fetch_min(at, Ordering::AcqRel);
    }

    /// Has the task look then, or earlier.
    pub(crate) fn by(&self, at: u64) {
        if at < self.next.load(Ordering::Relaxed) && at < self.next.fetch_min(at, Ordering::AcqRel)
        {
            self.bell.notify_one();
        }
    }

    /// Has the task look now.
    pub(crate) fn wake(&self) {
        self.bell.notify_one();
    }

    /// Waits until the task is to look earlier than it knew.
    pub(crate) async fn rung(&self) {
        self.bell.notified().await;
    }
}
