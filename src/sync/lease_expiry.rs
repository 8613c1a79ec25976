//! [`LeaseExpiry`]: until when a lease is valid, and why it ended.

use super::primitives::{AtomicU8, AtomicU64, Notify, Ordering};

/// The time until which a lease is valid, which can be put off until it has come, and the end,
/// which can come before.
pub(crate) struct LeaseExpiry {
    valid_until: AtomicU64,
    ended: AtomicU8,
    notify: Notify,
}

/// The lease has not ended. Any other number says why it did.
pub(crate) const VALID: u8 = 0;

impl LeaseExpiry {
    pub(crate) fn new(valid_until: u64) -> Self {
        Self {
            valid_until: AtomicU64::new(valid_until),
            ended: AtomicU8::new(VALID),
            notify: Notify::new(),
        }
    }

    pub(crate) fn valid_until(&self) -> u64 {
        self.valid_until.load(Ordering::Acquire)
    }

    /// Returns why the lease has ended, or [`VALID`]. `late` gets the time until which the lease is
    /// valid, and returns the reason if that has passed.
    pub(crate) fn ended(&self, late: impl FnOnce(u64) -> Option<u8>) -> u8 {
        match self.ended.load(Ordering::Acquire) {
            VALID => match late(self.valid_until()) {
                None => VALID,
                // Stored: otherwise, if the time is put off at this moment, the next call would
                // find the lease valid after all.
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
        let first = self.ended.compare_exchange(VALID, why, before, after);
        if first.is_ok() {
            self.notify.notify_waiters();
        }
    }

    /// Puts the time off, unless the lease has ended: a holder that knows of the end must not find
    /// the lease valid again.
    pub(crate) fn extend(&self, valid_until: u64, late: impl FnOnce(u64) -> Option<u8>) {
        if self.ended(late) == VALID {
            self.valid_until.store(valid_until, Ordering::Release);
        }
    }

    /// Resolves when the lease [ends](Self::end), if that is after this call.
    pub(crate) fn notified(&self) -> impl Future<Output = ()> {
        self.notify.notified()
    }
}
