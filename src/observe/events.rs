//! The events of the `tracing` feature. Without it, these functions do nothing.
//!
//! The operations guide has a table of them. Their target, their fields and their levels are part
//! of the crate's interface.
//!
//! A key is never shown, only its [fingerprint](crate::LockKey::fingerprint).

#![cfg_attr(
    not(feature = "tracing"),
    allow(unused_variables, clippy::missing_const_for_fn)
)]

use std::fmt::Display;
use std::time::Duration;

use super::{Meter, Mistake, Stopwatch};
use crate::error::Error;
use crate::key::LockKey;
use crate::lease::{Lease, LostReason};

/// The target of all events and spans, wherever in the crate they come from.
#[cfg(feature = "tracing")]
pub(super) const TARGET: &str = "tower_distributed_lock";

/// Makes an event of this level, with fields and a message as the macros of `tracing` take them.
macro_rules! tell {
    ($level:ident: $($event:tt)+) => {
        #[cfg(feature = "tracing")]
        tracing::$level!(target: TARGET, $($event)+);
    };
}

/// Like [`tell`], about a lock and the layer that it is of.
macro_rules! tell_of {
    ($key:expr, $meter:expr, $level:ident: $($event:tt)+) => {
        tell!($level: key = %Fingerprint($key), name = $meter.name(), $($event)+)
    };
}

pub(super) fn acquired(lease: &Lease, waited: &Stopwatch) {
    tell_of!(
        lease.key(), lease.meter(), debug:
        fencing_token = lease.fencing_token(),
        waited_ms = millis(waited.elapsed()),
        "lock acquired"
    );
}

pub(super) fn refused(key: &LockKey, meter: &Meter, error: &Error, waited: &Stopwatch) {
    tell_of!(
        key, meter, debug:
        waited_ms = millis(waited.elapsed()),
        reason = ?error.kind(),
        %error,
        "lock not acquired"
    );
}

pub(super) fn recorded(key: &LockKey, meter: &Meter, waited: &Stopwatch) {
    tell_of!(key, meter, debug: waited_ms = millis(waited.elapsed()), "record found");
}

pub(super) fn released(lease: &Lease) {
    tell_of!(
        lease.key(), lease.meter(), debug:
        fencing_token = lease.fencing_token(),
        held_ms = millis(lease.age().elapsed()),
        "lock released"
    );
}

pub(super) fn lost(lease: &Lease, reason: LostReason) {
    tell_of!(
        lease.key(), lease.meter(), warn:
        fencing_token = lease.fencing_token(),
        held_ms = millis(lease.age().elapsed()),
        ?reason,
        "lock lost"
    );
}

/// The work was done, but has no record: a duplicate may do it again.
pub(crate) fn not_recorded(key: &LockKey, error: &Error) {
    tell!(
        error: key = %Fingerprint(key),
        %error,
        "the answer to an idempotency key could not be recorded: a duplicate may run again once the lock has expired"
    );
}

/// The body could not be kept: a duplicate gets only the head of the response.
pub(crate) fn not_kept(key: &LockKey, error: &Error) {
    tell!(
        warn: key = %Fingerprint(key),
        %error,
        "the answer to an idempotency key could not be kept whole: a duplicate gets it without its body"
    );
}

/// Duplicates fail until the record is gone.
pub(crate) fn unreadable(key: &LockKey, reason: &dyn Display) {
    tell!(
        error: key = %Fingerprint(key),
        %reason,
        "the record of an idempotency key cannot be read: the request does not run"
    );
}

/// An operator takes a lock from its holder, by the inspector.
#[cfg(feature = "inspector")]
pub(crate) fn force_released(key: &LockKey) {
    tell!(warn: key = %Fingerprint(key), "a lock is taken from its holder, by the inspector");
}

/// A request is refused for a mistake in how the service is put together. Strangers can send any
/// number of such requests, so a layer tells of each mistake once a minute, and otherwise to those
/// that debug it.
pub(crate) fn misconfigured(meter: &Meter, mistake: Mistake, error: &Error) {
    #[cfg(feature = "tracing")]
    if meter.is_to_tell_of(mistake) {
        tell!(error: name = meter.name(), %error, "{mistake}");
    } else {
        tell!(debug: name = meter.name(), %error, "{mistake}");
    }
}

/// There is a mistake in this crate. It affects only this key.
pub(crate) fn slot_given_up(key: &LockKey) {
    tell!(
        error: key = %Fingerprint(key),
        "the state of a lock was given up after a panic: its holder has lost it, and its waiters are refused"
    );
}

/// The background task has ended by a panic. Another one is started.
pub(crate) fn restarted() {
    tell!(error: "the background task of a lock manager panicked, and is started again");
}

/// The background task cannot be started: the system gives no thread.
pub(crate) fn not_started(why: &dyn Display) {
    tell!(error: %why, "the background task of a lock manager cannot be started");
}

/// After a failover, an old primary gives locks for some time. Told once by a manager.
pub(crate) fn no_min_replicas() {
    tell!(
        warn: "the primary has no min-replicas-to-write: after a failover, an old primary gives locks for about ten seconds"
    );
}

/// The connection lives on for as long as the server accepts its last login.
pub(crate) fn not_logged_in(why: &dyn Display) {
    tell!(warn: %why, "credentials for Redis could not be renewed");
}

/// Redis does not tell of changes by other clients.
pub(crate) fn no_tracking(server: &str, why: &dyn Display) {
    tell!(warn: %server, %why, "Redis does not tell when a lock is deleted by someone else");
}

/// The first event of an outage.
pub(super) fn store_down(server: &str, why: &Error) {
    tell!(warn: %server, %why, "Redis gives no locks");
}

/// Another attempt of the same outage has failed.
pub(crate) fn store_still_down(server: &str, why: &Error) {
    tell!(debug: %server, %why, "Redis still gives no locks");
}

pub(super) fn store_up(server: &str, down: Duration) {
    tell!(info: %server, down_ms = millis(down), "Redis gives locks again");
}

/// Like [`Fingerprint`], of several keys.
#[cfg(feature = "tracing")]
pub(super) struct Fingerprints<I>(pub(super) I);

#[cfg(feature = "tracing")]
impl<'a, I: Iterator<Item = &'a LockKey> + Clone> Display for Fingerprints<I> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (at, key) in self.0.clone().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            write!(f, "{comma}{}", Fingerprint(key))?;
        }
        Ok(())
    }
}

/// Hashes the key only if a subscriber reads the field.
#[cfg(feature = "tracing")]
pub(super) struct Fingerprint<'a>(pub(super) &'a LockKey);

#[cfg(feature = "tracing")]
impl Display for Fingerprint<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.fingerprint())
    }
}

#[cfg(feature = "tracing")]
fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}
