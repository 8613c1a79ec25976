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

#[cfg(feature = "tracing")]
use crate::clock::Time;
use crate::error::Error;
use crate::key::LockKey;
#[cfg(feature = "tracing")]
use crate::lease::{Lease, Leases};

/// The target of all events and of the span, wherever in the crate they come from.
#[cfg(feature = "tracing")]
const TARGET: &str = "tower_distributed_lock";

/// Measures how long a request waits for a lock or holds it, if the `tracing` feature is on.
pub(crate) struct Stopwatch {
    #[cfg(feature = "tracing")]
    started: Time,
}

impl Stopwatch {
    pub(crate) fn start() -> Self {
        Self {
            #[cfg(feature = "tracing")]
            started: Time::now(),
        }
    }

    #[cfg(feature = "tracing")]
    fn elapsed_ms(&self) -> f64 {
        millis(Time::now().since(self.started))
    }
}

/// Makes a future that gets a task of its own belong to the current span.
pub(crate) fn in_current_span<F: Future>(work: F) -> impl Future<Output = F::Output> {
    #[cfg(feature = "tracing")]
    let work = tracing::Instrument::in_current_span(work);
    work
}

/// Makes the work of another thread send its events to the subscriber of this thread, if there is
/// one.
pub(crate) fn with_this_subscriber(work: impl FnOnce()) -> impl FnOnce() {
    #[cfg(feature = "tracing")]
    let work = {
        use tracing::{dispatcher, subscriber::NoSubscriber};
        let subscriber = dispatcher::get_default(Clone::clone);
        move || match subscriber.is::<NoSubscriber>() {
            true => work(),
            false => dispatcher::with_default(&subscriber, work),
        }
    };
    work
}

pub(crate) fn acquired(key: &LockKey, fencing_token: u64, waited: &Stopwatch) {
    #[cfg(feature = "tracing")]
    tracing::debug!(
        target: TARGET,
        key = %Fingerprint(key),
        fencing_token,
        waited_ms = waited.elapsed_ms(),
        "lock acquired"
    );
}

pub(crate) fn refused(key: &LockKey, error: &Error, waited: &Stopwatch) {
    #[cfg(feature = "tracing")]
    tracing::debug!(
        target: TARGET,
        key = %Fingerprint(key),
        waited_ms = waited.elapsed_ms(),
        reason = ?error.kind(),
        %error,
        "lock not acquired"
    );
}

pub(crate) fn recorded(key: &LockKey, waited: &Stopwatch) {
    #[cfg(feature = "tracing")]
    tracing::debug!(
        target: TARGET,
        key = %Fingerprint(key),
        waited_ms = waited.elapsed_ms(),
        "record found"
    );
}

/// The work was done, but has no record: a duplicate may do it again.
pub(crate) fn not_recorded(key: &LockKey, error: &Error) {
    #[cfg(feature = "tracing")]
    tracing::error!(
        target: TARGET,
        key = %Fingerprint(key),
        %error,
        "the answer to an idempotency key could not be recorded: a duplicate may run again once the lock has expired"
    );
}

/// The body could not be kept: a duplicate gets only the head of the response.
pub(crate) fn not_kept(key: &LockKey, error: &Error) {
    #[cfg(feature = "tracing")]
    tracing::warn!(
        target: TARGET,
        key = %Fingerprint(key),
        %error,
        "the answer to an idempotency key could not be kept whole: a duplicate gets it without its body"
    );
}

/// Duplicates fail until the record is gone.
pub(crate) fn unreadable(key: &LockKey, reason: &dyn Display) {
    #[cfg(feature = "tracing")]
    tracing::error!(
        target: TARGET,
        key = %Fingerprint(key),
        %reason,
        "the record of an idempotency key cannot be read: the request does not run"
    );
}

pub(crate) fn released(key: &LockKey, fencing_token: u64, held: &Stopwatch) {
    #[cfg(feature = "tracing")]
    tracing::debug!(
        target: TARGET,
        key = %Fingerprint(key),
        fencing_token,
        held_ms = held.elapsed_ms(),
        "lock released"
    );
}

pub(crate) fn lost(key: &LockKey, fencing_token: u64, held: &Stopwatch, reason: impl Debug) {
    #[cfg(feature = "tracing")]
    tracing::warn!(
        target: TARGET,
        key = %Fingerprint(key),
        fencing_token,
        held_ms = held.elapsed_ms(),
        ?reason,
        "lock lost"
    );
}

/// There is a mistake in this crate. It affects only this key.
pub(crate) fn slot_given_up(key: &LockKey) {
    #[cfg(feature = "tracing")]
    tracing::error!(
        target: TARGET,
        key = %Fingerprint(key),
        "the state of a lock was given up after a panic: its holder has lost it, and its waiters are refused"
    );
}

/// The background task has ended by a panic. Another one is started.
pub(crate) fn restarted() {
    #[cfg(feature = "tracing")]
    tracing::error!(target: TARGET, "the background task of a lock manager panicked, and is started again");
}

/// A request is refused, as no key can be made for it.
pub(crate) fn misconfigured(error: &Error) {
    #[cfg(feature = "tracing")]
    tracing::error!(
        target: TARGET,
        %error,
        "no key can be made for a request, as the service is put together: it does not run"
    );
}

/// The background task cannot be started: the system gives no thread.
pub(crate) fn not_started(why: &dyn Display) {
    #[cfg(feature = "tracing")]
    tracing::error!(target: TARGET, %why, "the background task of a lock manager cannot be started");
}

/// Told once by a manager.
pub(crate) fn no_min_replicas() {
    #[cfg(feature = "tracing")]
    tracing::warn!(
        target: TARGET,
        "the primary has no min-replicas-to-write: after a failover, an old primary gives locks for about ten seconds"
    );
}

/// The connection lives on for as long as the server accepts its last login.
pub(crate) fn not_logged_in(why: &dyn Display) {
    #[cfg(feature = "tracing")]
    tracing::warn!(target: TARGET, %why, "credentials for Redis could not be renewed");
}

/// The first event of an outage.
pub(crate) fn store_down(server: &str, why: &Error) {
    #[cfg(feature = "tracing")]
    tracing::warn!(target: TARGET, %server, %why, "Redis gives no locks");
}

pub(crate) fn store_still_down(server: &str, why: &Error) {
    #[cfg(feature = "tracing")]
    tracing::debug!(target: TARGET, %server, %why, "Redis still gives no locks");
}

pub(crate) fn store_up(server: &str, down: Duration) {
    #[cfg(feature = "tracing")]
    tracing::info!(target: TARGET, %server, down_ms = millis(down), "Redis gives locks again");
}

pub(crate) fn no_tracking(server: &str, why: &dyn Display) {
    #[cfg(feature = "tracing")]
    tracing::warn!(target: TARGET, %server, %why, "Redis does not tell when a lock is deleted by someone else");
}

/// The span in which a request runs while it holds a lock, or several.
#[cfg(feature = "tracing")]
pub(crate) fn span(leases: &Leases) -> tracing::Span {
    match leases.as_slice() {
        [lease] => tracing::info_span!(
            target: TARGET,
            "lock",
            key = %Fingerprint(lease.key()),
            fencing_token = lease.fencing_token(),
        ),
        leases => tracing::info_span!(
            target: TARGET,
            "lock",
            keys = %Fingerprints(leases),
        ),
    }
}

/// Like [`Fingerprint`], of several keys.
#[cfg(feature = "tracing")]
struct Fingerprints<'a>(&'a [Lease]);

#[cfg(feature = "tracing")]
impl Display for Fingerprints<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (at, lease) in self.0.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            write!(f, "{comma}{}", Fingerprint(lease.key()))?;
        }
        Ok(())
    }
}

/// Hashes the key only if a subscriber reads the field.
#[cfg(feature = "tracing")]
struct Fingerprint<'a>(&'a LockKey);

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
