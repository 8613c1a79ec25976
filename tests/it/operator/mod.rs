//! What an operator asks of locks, and does to them.

mod drain;
mod force_release;
mod inspect;
mod ping;

use tower_distributed_lock::inspect::{Holder, LockReport, Occupant};

/// The holder of a lock that a process of this crate has.
fn holder(report: &LockReport) -> &Holder {
    match &report.occupant {
        Occupant::Process(holder) => holder,
        other => panic!("not a process: {other:?}"),
    }
}
