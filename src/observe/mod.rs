//! What the crate tells of its locks. Each fact is told at one place, by one function here, which
//! makes an [event](events) of it, counts it in the [metrics](meter) and notes it in the journal of
//! its manager. What is an event and nothing else is a function there.
//!
//! Without the features `tracing`, `metrics` and `inspector`, these functions do nothing.

#![cfg_attr(
    not(all(feature = "tracing", feature = "metrics", feature = "inspector")),
    allow(unused_variables, clippy::missing_const_for_fn)
)]

#[cfg(feature = "metrics")]
mod catalogue;
mod events;
#[cfg(feature = "inspector")]
mod journal;
mod meter;
mod meters;
mod mistake;
#[cfg(feature = "tracing")]
mod seldom;
#[cfg(feature = "metrics")]
mod series;
mod spans;
mod stopwatch;

use std::time::Duration;

#[cfg(feature = "inspector")]
pub(crate) use self::events::force_released;
pub(crate) use self::events::{
    misconfigured, no_min_replicas, no_tracking, not_kept, not_logged_in, not_recorded,
    not_started, restarted, slot_given_up, store_still_down, unreadable,
};
#[cfg(feature = "inspector")]
pub(crate) use self::journal::{Journal, LockHistory, Loss, Queue, Run, RunEnd, Tally};
pub(crate) use self::meter::{Meter, Role};
pub(crate) use self::meters::ManagerMeters;
pub(crate) use self::mistake::Mistake;
#[cfg(feature = "tracing")]
pub(crate) use self::spans::span;
pub(crate) use self::spans::{acquiring, in_current_span, in_span, with_this_subscriber};
pub(crate) use self::stopwatch::Stopwatch;
use crate::error::Error;
use crate::http::RejectionKind;
use crate::key::LockKey;
use crate::lease::{Lease, LostReason};
#[cfg(any(feature = "metrics", feature = "inspector"))]
use crate::store::Reply;
use crate::store::{Command, Outcome};

/// A request has got its lock.
pub(crate) fn acquired(meters: &ManagerMeters, lease: &Lease, waited: &Stopwatch) {
    events::acquired(lease, waited);
    #[cfg(feature = "tracing")]
    spans::acquired(lease);
    #[cfg(feature = "metrics")]
    lease.meter().acquired(lease.path(), waited);
    #[cfg(feature = "inspector")]
    meters.note(|journal| journal.acquired(lease, waited.elapsed()));
}

/// A request has not got its lock.
pub(crate) fn refused(
    meters: &ManagerMeters,
    key: &LockKey,
    meter: &Meter,
    error: &Error,
    waited: &Stopwatch,
) {
    events::refused(key, meter, error, waited);
    #[cfg(feature = "tracing")]
    spans::not_acquired(Some(error));
    #[cfg(feature = "metrics")]
    meter.refused(error.kind(), waited);
    #[cfg(feature = "inspector")]
    meters.note(|journal| journal.refused(key, error.kind()));
}

/// A request has found a record in the lock's place.
pub(crate) fn recorded(key: &LockKey, meter: &Meter, waited: &Stopwatch) {
    events::recorded(key, meter, waited);
    #[cfg(feature = "tracing")]
    spans::not_acquired(None);
    #[cfg(feature = "metrics")]
    meter.recorded(waited);
}

/// A holder begins to hold.
pub(crate) fn held(meters: &ManagerMeters, lease: &Lease) {
    #[cfg(feature = "metrics")]
    lease.meter().held();
    #[cfg(feature = "inspector")]
    meters.note(|journal| journal.held(lease));
}

/// A holder is done, whether it has lost its lock before or not.
pub(crate) fn released(meters: &ManagerMeters, lease: &Lease) {
    events::released(lease);
    if lease.is_first_end() {
        #[cfg(feature = "metrics")]
        lease.meter().ended(lease.age());
        #[cfg(feature = "inspector")]
        meters.note(|journal| journal.released(lease));
    }
}

/// A holder has lost its lock. To say so again does nothing.
pub(crate) fn lost(meters: &ManagerMeters, lease: &Lease, reason: LostReason) {
    if !lease.is_first_end() {
        return;
    }
    events::lost(lease, reason);
    #[cfg(feature = "metrics")]
    {
        lease.meter().lost(reason);
        lease.meter().ended(lease.age());
    }
    #[cfg(feature = "inspector")]
    meters.note(|journal| journal.lost(lease, reason));
}

/// A layer has answered a request instead of the service inside.
pub(crate) fn rejected(meter: &Meter, kind: RejectionKind) {
    #[cfg(feature = "metrics")]
    meter.rejected(kind);
}

/// What became of a request with an idempotency key.
#[derive(Clone, Copy)]
#[cfg_attr(not(feature = "metrics"), allow(dead_code))]
pub(crate) enum Repetition {
    /// It is the first with this key: it runs.
    First,
    /// It got the stored response.
    Replayed,
    /// The first one still runs.
    InProgress,
    /// It has another payload than the first one.
    Mismatch,
    /// Whether it is the first one is not known, or its response cannot be replayed.
    Failed,
}

/// A request with an idempotency key was decided on.
pub(crate) fn keyed_request(meter: &Meter, what: Repetition) {
    #[cfg(feature = "metrics")]
    meter.keyed_request(what);
}

/// The lock went to the next request of this process.
pub(crate) fn handed_on(meters: &ManagerMeters) {
    #[cfg(feature = "metrics")]
    meters.handed_on();
}

/// The store has replied to a command, or has failed it.
pub(crate) fn replied(
    meters: &ManagerMeters,
    key: &LockKey,
    command: &Command<(), ()>,
    outcome: &Outcome,
) {
    #[cfg(feature = "metrics")]
    {
        meters.replied(command, outcome);
        if let Command::Renew { .. } = command {
            meters.renewed(outcome);
        }
        if let Ok(Reply::Released { granted: true, .. }) = outcome.result {
            meters.granted_away();
        }
    }
    #[cfg(feature = "inspector")]
    if let Ok(Reply::Released { granted: true, .. }) = outcome.result {
        meters.note(|journal| journal.granted_away(key));
    }
}

/// So many more requests wait, or fewer.
pub(crate) fn waiting(meters: &ManagerMeters, key: &LockKey, before: usize, after: usize) {
    #[cfg(feature = "metrics")]
    if before != after {
        meters.waiting(before, after);
    }
    #[cfg(feature = "inspector")]
    if before != after {
        meters.note(|journal| journal.waiting(key, after));
    }
}

/// The first sign of an outage: the store gives no locks.
pub(crate) fn store_down(server: &str, why: &Error) {
    events::store_down(server, why);
    #[cfg(feature = "metrics")]
    meters::store_up(server, 0.0);
}

/// The store gives locks, for the first time or after an outage of this length.
pub(crate) fn store_up(server: &str, down: Option<Duration>) {
    if let Some(down) = down {
        events::store_up(server, down);
    }
    #[cfg(feature = "metrics")]
    meters::store_up(server, 1.0);
}

/// Locks are no longer kept in this server: whether it is up does not matter.
pub(crate) fn store_gone(server: &str) {
    #[cfg(feature = "metrics")]
    meters::store_up(server, f64::NAN);
}

/// The store gives no lock, as it may lack some that are held; or it does again.
pub(crate) fn quarantined(server: &str, is_quarantined: bool) {
    #[cfg(feature = "metrics")]
    meters::quarantined(server, is_quarantined);
}
