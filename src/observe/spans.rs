//! The spans of the `tracing` feature. Without it, these functions do nothing.

#[cfg(feature = "tracing")]
use tracing::{Instrument, Span, field};

use super::Meter;
#[cfg(feature = "tracing")]
use super::events::{Fingerprint, Fingerprints, TARGET};
#[cfg(feature = "tracing")]
use crate::error::Error;
use crate::key::LockKey;
use crate::lease::Lease;

#[cfg(feature = "tracing")]
const ACQUIRE: &str = "lock.acquire";

/// Makes a future that gets a task of its own belong to the current span.
pub(crate) fn in_current_span<F: Future>(work: F) -> impl Future<Output = F::Output> {
    #[cfg(feature = "tracing")]
    let work = work.in_current_span();
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

/// Runs the attempt to get the locks of these keys in a span of its own, in which the
/// [outcome](acquired) is noted.
#[cfg_attr(not(feature = "tracing"), allow(unused_variables))]
pub(crate) fn acquiring<F: Future>(
    keys: &[LockKey],
    meter: &Meter,
    attempt: F,
) -> impl Future<Output = F::Output> + use<F> {
    #[cfg(feature = "tracing")]
    let attempt = attempt.instrument(match keys {
        [key] => tracing::info_span!(
            target: TARGET,
            ACQUIRE,
            key = %Fingerprint(key),
            name = meter.name(),
            outcome = field::Empty,
            path = field::Empty,
            fencing_token = field::Empty,
        ),
        // Each lock has a token and a path of its own, which its event tells.
        keys => tracing::info_span!(
            target: TARGET,
            ACQUIRE,
            keys = %Fingerprints(keys.iter()),
            name = meter.name(),
            outcome = field::Empty,
        ),
    });
    attempt
}

/// Notes in the current span, that of the [attempt](acquiring), how it went.
#[cfg(feature = "tracing")]
pub(super) fn acquired(lease: &Lease) {
    if let Some(span) = attempt() {
        span.record("outcome", "acquired");
        span.record("path", lease.path().as_str());
        span.record("fencing_token", lease.fencing_token());
    }
}

/// Like [`acquired`], for an attempt that failed, or found a record.
#[cfg(feature = "tracing")]
pub(super) fn not_acquired(error: Option<&Error>) {
    if let Some(span) = attempt() {
        let outcome = error.map_or("recorded", |error| error.kind().as_str());
        span.record("outcome", outcome);
    }
}

/// Returns the span of the attempt, unless it is filtered out: then the current span is another.
#[cfg(feature = "tracing")]
fn attempt() -> Option<Span> {
    let span = Span::current();
    let name = span.metadata()?.name();
    (name == ACQUIRE).then_some(span)
}

/// The span in which a request runs while it holds a lock, or several.
#[cfg(feature = "tracing")]
pub(crate) fn span(leases: &[Lease]) -> Span {
    match leases {
        [lease] => tracing::info_span!(
            target: TARGET,
            "lock",
            key = %Fingerprint(lease.key()),
            name = lease.meter().name(),
            fencing_token = lease.fencing_token(),
        ),
        leases => tracing::info_span!(
            target: TARGET,
            "lock",
            keys = %Fingerprints(leases.iter().map(Lease::key)),
            name = leases.first().map(|lease| lease.meter().name()),
        ),
    }
}

/// Runs work that holds a lock in its [span].
#[cfg_attr(not(feature = "tracing"), allow(unused_variables))]
pub(crate) fn in_span<F: Future>(
    lease: &Lease,
    work: F,
) -> impl Future<Output = F::Output> + use<F> {
    #[cfg(feature = "tracing")]
    let work = work.instrument(span(std::slice::from_ref(lease)));
    work
}
