//! [`Term`]: how long a lease lasts.

use super::primitives::{AtomicU8, AtomicU64, Notify, Ordering};

/// A time that can be put off until it has come, and an end that can come before.
pub(crate) struct Term {
    until: AtomicU64,
    ended: AtomicU8,
    over: Notify,
}

/// It has not ended. Any other number says why it did.
pub(crate) const HELD: u8 = 0;

impl Term {
    pub(crate) fn new(until: u64) -> Self {
        Self {
            until: AtomicU64::new(until),
            ended: AtomicU8::new(HELD),
            over: Notify::new(),
        }
    }

    pub(crate) fn until(&self) -> u64 {
        self.until.load(Ordering::Acquire)
    }

    /// Whether it has ended, and why. `late` says so of the time until which it lasts.
    pub(crate) fn ended(&self, late: impl FnOnce(u64) -> Option<u8>) -> u8 {
        match self.ended.load(Ordering::Acquire) {
            HELD => match late(self.until()) {
                None => HELD,
                // Written down: it may be put off at this moment, and would be found to last after all.
                Some(why) => {
                    self.end(why);
                    self.ended.load(Ordering::Acquire)
                }
            },
            why => why,
        }
    }

    pub(crate) fn end(&self, why: u8) {
        let (before, after) = (Ordering::AcqRel, Ordering::Acquire);
        let first = self.ended.compare_exchange(HELD, why, before, after);
        if first.is_ok() {
            self.over.notify_waiters();
        }
    }

    /// Puts it off, unless it has ended: whoever was told of that must be right.
    pub(crate) fn extend(&self, until: u64, late: impl FnOnce(u64) -> Option<u8>) {
        if self.ended(late) == HELD {
            self.until.store(until, Ordering::Release);
        }
    }

    /// Resolves when it [ends](Self::end) after this call.
    pub(crate) fn over(&self) -> impl Future<Output = ()> {
        self.over.notified()
    }
}
