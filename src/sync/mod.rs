//! What is synchronised by hand.
//!
//! Each of these files also belongs to `tests/loom.rs`, which has its own `primitives` and tries every order of events.

mod alarm;
mod doorbell;
mod inside;
mod term;

pub(crate) use alarm::Alarm;
pub(crate) use doorbell::Doorbell;
pub(crate) use inside::Inside;
pub(crate) use term::{HELD, Term};

mod primitives {
    pub(super) use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

    pub(super) use futures_util::task::AtomicWaker;
    pub(super) use tokio::sync::Notify;
}
