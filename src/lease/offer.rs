//! [`Offer`]: who is to release a lock, the layer that took it or the handler.

use std::sync::atomic::{AtomicU8, Ordering};

/// An offer that one of two ends: the handler accepts it, or the layer withdraws it.
///
/// Each step is one change of one number, so that exactly one of the two is first.
#[derive(Default)]
pub(super) struct Offer(AtomicU8);

const NONE: u8 = 0;
const MADE: u8 = 1;
const ACCEPTED: u8 = 2;
/// Accepted, and the layer has seen that.
const SETTLED: u8 = 3;

impl Offer {
    pub(super) fn make(&self) {
        self.0.store(MADE, Ordering::Release);
    }

    /// Returns whether there was an offer.
    pub(super) fn accept(&self) -> bool {
        self.step(MADE, ACCEPTED)
    }

    /// Makes an offer again that was accepted. Returns whether the layer is still there for it.
    pub(super) fn give_back(&self) -> bool {
        self.step(ACCEPTED, MADE)
    }

    /// Ends the offer. Returns whether it was accepted before.
    pub(super) fn withdraw(&self) -> bool {
        let end = |state| match state {
            MADE => Some(NONE),
            ACCEPTED => Some(SETTLED),
            _ => None,
        };
        let (change, read) = (Ordering::AcqRel, Ordering::Acquire);
        match self.0.fetch_update(change, read, end) {
            Ok(before) => before == ACCEPTED,
            Err(ended) => ended == SETTLED,
        }
    }

    pub(super) fn is_accepted(&self) -> bool {
        matches!(self.0.load(Ordering::Acquire), ACCEPTED | SETTLED)
    }

    fn step(&self, from: u8, to: u8) -> bool {
        let (change, read) = (Ordering::AcqRel, Ordering::Acquire);
        self.0.compare_exchange(from, to, change, read).is_ok()
    }
}
