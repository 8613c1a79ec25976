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

use std::fmt::{Debug, Display};
use std::time::Duration;

use super::Stopwatch;
use crate::error::Error;
use crate::key::LockKey;

/// The target of all events and spans, wherever in the crate they come from.
#[cfg(feature = "tracing")]
pub(super) const TARGET: &str = "tower_distributed_lock";

pub(super) fn acquired(key: &LockKey, name: &str, fencing_token: u64, waited: &Stopwatch) {
    #[cfg(feature = "tracing")]
    tracing::debug!(
        target: TARGET,
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
        target: TARGET,
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
        target: TARGET,
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
        target: TARGET,
        key = %Fingerprint(key),
        %error,
        "the answer to an idempotency key could not be recorded: a duplicate may run again once the lock has expired"
    );
}

/// The body could not be kept: a duplicate gets only the head of the response.
pub(super) fn not_kept(key: &LockKey, error: &Error) {
    #[cfg(feature = "tracing")]
    tracing::warn!(
        target: TARGET,
        key = %Fingerprint(key),
        %error,
        "the answer to an idempotency key could not be kept whole: a duplicate gets it without its body"
    );
}

/// Duplicates fail until the record is gone.
pub(super) fn unreadable(key: &LockKey, reason: &dyn Display) {
    #[cfg(feature = "tracing")]
    tracing::error!(
        target: TARGET,
        key = %Fingerprint(key),
        %reason,
        "the record of an idempotency key cannot be read: the request does not run"
    );
}

pub(super) fn released(key: &LockKey, name: &str, fencing_token: u64, held: &Stopwatch) {
    #[cfg(feature = "tracing")]
    tracing::debug!(
        target: TARGET,
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
        target: TARGET,
        key = %Fingerprint(key),
        name,
        fencing_token,
        held_ms = millis(held.elapsed()),
        ?reason,
        "lock lost"
    );
}

/// An operator takes a lock from its holder, by the inspector.
#[cfg(feature = "inspector")]
pub(super) fn force_released(key: &LockKey) {
    #[cfg(feature = "tracing")]
    tracing::warn!(
        target: TARGET,
        key = %Fingerprint(key),
        "a lock is taken from its holder, by the inspector"
    );
}

/// There is a mistake in this crate. It affects only this key.
pub(super) fn slot_given_up(key: &LockKey) {
    #[cfg(feature = "tracing")]
    tracing::error!(
        target: TARGET,
        key = %Fingerprint(key),
        "the state of a lock was given up after a panic: its holder has lost it, and its waiters are refused"
    );
}

/// The background task has ended by a panic. Another one is started.
pub(super) fn restarted() {
    #[cfg(feature = "tracing")]
    tracing::error!(target: TARGET, "the background task of a lock manager panicked, and is started again");
}

/// A request is refused, as no key can be made for it.
pub(super) fn misconfigured(error: &Error) {
    #[cfg(feature = "tracing")]
    tracing::error!(
        target: TARGET,
        %error,
        "no key can be made for a request, as the service is put together: it does not run"
    );
}

/// The background task cannot be started: the system gives no thread.
pub(super) fn not_started(why: &dyn Display) {
    #[cfg(feature = "tracing")]
    tracing::error!(target: TARGET, %why, "the background task of a lock manager cannot be started");
}

/// Told once by a manager.
pub(super) fn no_min_replicas() {
    #[cfg(feature = "tracing")]
    tracing::warn!(
        target: TARGET,
        "the primary has no min-replicas-to-write: after a failover, an old primary gives locks for about ten seconds"
    );
}

/// The connection lives on for as long as the server accepts its last login.
pub(super) fn not_logged_in(why: &dyn Display) {
    #[cfg(feature = "tracing")]
    tracing::warn!(target: TARGET, %why, "credentials for Redis could not be renewed");
}

/// The first event of an outage.
pub(super) fn store_down(server: &str, why: &Error) {
    #[cfg(feature = "tracing")]
    tracing::warn!(target: TARGET, %server, %why, "Redis gives no locks");
}

pub(super) fn store_still_down(server: &str, why: &Error) {
    #[cfg(feature = "tracing")]
    tracing::debug!(target: TARGET, %server, %why, "Redis still gives no locks");
}

pub(super) fn store_up(server: &str, down: Duration) {
    #[cfg(feature = "tracing")]
    tracing::info!(target: TARGET, %server, down_ms = millis(down), "Redis gives locks again");
}

pub(super) fn no_tracking(server: &str, why: &dyn Display) {
    #[cfg(feature = "tracing")]
    tracing::warn!(target: TARGET, %server, %why, "Redis does not tell when a lock is deleted by someone else");
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
