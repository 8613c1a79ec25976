//! Primitives that are synchronised by hand.
//!
//! Each of these files also belongs to `proofs/tests/loom.rs`, which has its own `primitives` and
//! tries every order of events.

mod doorbell;
mod lease_expiry;
mod nested_waker;
mod wake_at;

pub(crate) use doorbell::Doorbell;
pub(crate) use lease_expiry::{LeaseExpiry, VALID};
pub(crate) use nested_waker::NestedWaker;
pub(crate) use wake_at::WakeAt;

mod primitives {
    pub(super) use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

    pub(super) use futures_util::task::AtomicWaker;
    pub(super) use tokio::sync::Notify;
}
