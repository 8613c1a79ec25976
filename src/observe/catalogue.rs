//! The names, units and meanings of all metrics.
//!
//! The [operations guide](crate::_guide::operations) has the same in a table, with the labels.

use metrics::Unit;

pub(super) const ACQUIRE_DURATION: &str = "lock.acquire.duration";
pub(super) const HOLD_DURATION: &str = "lock.hold.duration";
pub(super) const WAITERS: &str = "lock.waiters";
pub(super) const HELD: &str = "lock.held";
pub(super) const LOST: &str = "lock.lost";
pub(super) const REJECTIONS: &str = "lock.rejections";
pub(super) const RENEWALS: &str = "lock.renewals";
pub(super) const HANDOFFS: &str = "lock.handoffs";
pub(super) const COMMAND_DURATION: &str = "lock.store.command.duration";
pub(super) const STORE_UP: &str = "lock.store.up";
pub(super) const QUARANTINE: &str = "lock.quarantine";
pub(super) const IDEMPOTENCY_REQUESTS: &str = "idempotency.requests";

/// Tells the recorder the units and the meanings. To do so again does no harm.
pub(super) fn describe() {
    for (name, meaning) in [
        (ACQUIRE_DURATION, "From the request for a lock to its end"),
        (HOLD_DURATION, "How long locks were held"),
        (COMMAND_DURATION, "From a command to the reply of the store"),
    ] {
        metrics::describe_histogram!(name, Unit::Seconds, meaning);
    }
    for (name, meaning) in [
        (WAITERS, "Requests that wait for a lock"),
        (HELD, "Locks that are held"),
        (STORE_UP, "1 if the store gives locks"),
        (
            QUARANTINE,
            "1 if the store gives no locks after it lost data",
        ),
    ] {
        metrics::describe_gauge!(name, meaning);
    }
    for (name, meaning) in [
        (LOST, "Locks that their holders lost"),
        (
            REJECTIONS,
            "Requests that a layer answered instead of the service",
        ),
        (RENEWALS, "Renewals of leases"),
        (HANDOFFS, "Locks that went from one holder to the next"),
        (
            IDEMPOTENCY_REQUESTS,
            "Requests with an idempotency key, or webhooks",
        ),
    ] {
        metrics::describe_counter!(name, meaning);
    }
}
