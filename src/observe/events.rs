//! The events of the `tracing` feature. Without it, these functions do nothing.
//!
//! A key is never shown, only its [fingerprint](crate::LockKey::fingerprint).

#![cfg_attr(
    not(feature = "tracing"),
    allow(unused_variables, clippy::missing_const_for_fn)
)]

use std::fmt::{Debug, Display};
#[cfg(feature = "tracing")]
use std::time::Duration;

use super::Stopwatch;
use crate::error::Error;
use crate::key::LockKey;

pub(super) fn acquired(key: &LockKey, name: &str, fencing_token: u64, waited: &Stopwatch) {
    #[cfg(feature = "tracing")]
    tracing::debug!(
        key = %Fingerprint(key),
        name,
        fencing_token,
        waited_ms = millis(waited.elapsed()),
        "lock acquired"
    );
}

pub(super) fn refused(key: &LockKey, name: &str, error: &Error, waited: &Stopwatch) {
    #[cfg(feature = "tracing")]
    tracing::debug!(
        key = %Fingerprint(key),
        name,
        waited_ms = millis(waited.elapsed()),
        reason = ?error.kind(),
        %error,
        "lock not acquired"
    );
}

pub(super) fn recorded(key: &LockKey, name: &str, waited: &Stopwatch) {
    #[cfg(feature = "tracing")]
    tracing::debug!(
        key = %Fingerprint(key),
        name,
        waited_ms = millis(waited.elapsed()),
        "record found"
    );
}

/// The work was done, but has no record: a duplicate may do it again.
pub(super) fn not_recorded(key: &LockKey, error: &Error) {
    #[cfg(feature = "tracing")]
    tracing::error!(
        key = %Fingerprint(key),
        %error,
        "the answer to an idempotency key could not be recorded: a duplicate may run again once the lock has expired"
    );
}

/// The body could not be kept: a duplicate gets only the head of the response.
pub(super) fn not_kept(key: &LockKey, error: &Error) {
    #[cfg(feature = "tracing")]
    tracing::warn!(
        key = %Fingerprint(key),
        %error,
        "the answer to an idempotency key could not be kept whole: a duplicate gets it without its body"
    );
}

/// Duplicates fail until the record is gone.
pub(super) fn unreadable(key: &LockKey, reason: &dyn Display) {
    #[cfg(feature = "tracing")]
    tracing::error!(
        key = %Fingerprint(key),
        %reason,
        "the record of an idempotency key cannot be read: the request does not run"
    );
}

pub(super) fn released(key: &LockKey, name: &str, fencing_token: u64, held: &Stopwatch) {
    #[cfg(feature = "tracing")]
    tracing::debug!(
        key = %Fingerprint(key),
        name,
        fencing_token,
        held_ms = millis(held.elapsed()),
        "lock released"
    );
}

pub(super) fn lost(
    key: &LockKey,
    name: &str,
    fencing_token: u64,
    held: &Stopwatch,
    reason: impl Debug,
) {
    #[cfg(feature = "tracing")]
    tracing::warn!(
        key = %Fingerprint(key),
        name,
        fencing_token,
        held_ms = millis(held.elapsed()),
        ?reason,
        "lock lost"
    );
}

/// There is a mistake in this crate. It affects only this key.
pub(super) fn slot_given_up(key: &LockKey) {
    #[cfg(feature = "tracing")]
    tracing::error!(
        key = %Fingerprint(key),
        "the state of a lock was given up after a panic: its holder has lost it, and its waiters are refused"
    );
}

/// The background task has ended by a panic. Another one is started.
pub(super) fn restarted() {
    #[cfg(feature = "tracing")]
    tracing::error!("the background task of a lock manager panicked, and is started again");
}

pub(super) fn disconnected(why: &dyn Display) {
    #[cfg(feature = "tracing")]
    tracing::warn!(%why, "no connection to Redis");
}

pub(super) fn no_tracking(why: &dyn Display) {
    #[cfg(feature = "tracing")]
    tracing::warn!(%why, "Redis does not tell when a lock is deleted by someone else");
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
