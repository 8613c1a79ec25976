//! [`Instruments`]: the metrics of one name.

use std::sync::Arc;

use metrics::{Gauge, Histogram};

use super::super::series::{Counters, Histograms};
use super::super::{Repetition, Stopwatch, catalogue};
use super::{Meter, Role};
use crate::error::ErrorKind;
use crate::http::RejectionKind;
use crate::lease::{GrantPath, LostReason};

pub(super) struct Instruments {
    name: Arc<str>,
    acquired: Histograms<4>,
    recorded: Histograms<1>,
    refused: Histograms<{ ErrorKind::Config as usize + 1 }>,
    hold: Histogram,
    held: Gauge,
    lost: Counters<{ LOST.len() }>,
    rejections: Option<Counters<{ REJECTIONS.len() }>>,
    keyed_requests: Option<Counters<{ KEYED.len() }>>,
}

const LOST: [&str; 3] = ["expired", "taken", "max_hold"];

const REJECTIONS: [&str; 14] = [
    "held",
    "timed_out",
    "queue_full",
    "missing_key",
    "invalid_key",
    "too_many_keys",
    "misconfigured",
    "unavailable",
    "lost",
    "mismatch",
    "too_large",
    "incomplete",
    "unreadable",
    "not_kept",
];

const KEYED: [&str; 5] = ["first", "replayed", "in_progress", "mismatch", "failed"];

impl Instruments {
    fn register(name: &Arc<str>, role: Role) -> Self {
        let label = || Arc::clone(name);
        Self {
            name: label(),
            acquired: Histograms::new(),
            recorded: Histograms::new(),
            refused: Histograms::new(),
            hold: metrics::histogram!(catalogue::HOLD_DURATION, "name" => label()),
            held: metrics::gauge!(catalogue::HELD, "name" => label()),
            lost: Counters::register(catalogue::LOST, "reason", LOST, Some(name)),
            rejections: (role != Role::Manager).then(|| {
                Counters::register(catalogue::REJECTIONS, "reason", REJECTIONS, Some(name))
            }),
            keyed_requests: (role == Role::IdempotencyLayer).then(|| {
                let metric = catalogue::IDEMPOTENCY_REQUESTS;
                Counters::register(metric, "outcome", KEYED, Some(name))
            }),
        }
    }

    fn attempts(&self, outcome: &'static str, path: &'static str) -> Histogram {
        let metric = catalogue::ACQUIRE_DURATION;
        let name = Arc::clone(&self.name);
        metrics::histogram!(metric, "name" => name, "outcome" => outcome, "path" => path)
    }
}

impl Meter {
    fn instruments(&self) -> Option<&Instruments> {
        let register = || Instruments::register(&self.0.name, self.0.role);
        self.0.instruments.get(register)
    }

    /// Returns whether there is a recorder.
    #[cfg(not(feature = "tracing"))]
    pub(in crate::observe) fn is_on(&self) -> bool {
        self.instruments().is_some()
    }

    pub(in crate::observe) fn acquired(&self, path: GrantPath, waited: &Stopwatch) {
        if let Some(instruments) = self.instruments() {
            let register = || instruments.attempts("acquired", path.as_str());
            let attempts = instruments.acquired.get(path as usize, register);
            attempts.record(waited.elapsed());
        }
    }

    pub(in crate::observe) fn recorded(&self, waited: &Stopwatch) {
        if let Some(instruments) = self.instruments() {
            let register = || instruments.attempts("recorded", "none");
            let attempts = instruments.recorded.get(0, register);
            attempts.record(waited.elapsed());
        }
    }

    pub(in crate::observe) fn refused(&self, kind: ErrorKind, waited: &Stopwatch) {
        if let Some(instruments) = self.instruments() {
            let register = || instruments.attempts(kind.as_str(), "none");
            let attempts = instruments.refused.get(kind as usize, register);
            attempts.record(waited.elapsed());
        }
    }

    pub(in crate::observe) fn held(&self) {
        if let Some(instruments) = self.instruments() {
            instruments.held.increment(1);
        }
    }

    pub(in crate::observe) fn ended(&self, held: &Stopwatch) {
        if let Some(instruments) = self.instruments() {
            instruments.held.decrement(1);
            instruments.hold.record(held.elapsed());
        }
    }

    pub(in crate::observe) fn lost(&self, reason: LostReason) {
        if let Some(instruments) = self.instruments() {
            let index = match reason {
                LostReason::Expired | LostReason::Released => 0,
                LostReason::Taken => 1,
                LostReason::MaxHold => 2,
            };
            instruments.lost.increment(index);
        }
    }

    pub(in crate::observe) fn rejected(&self, kind: RejectionKind) {
        let rejections = self.instruments().and_then(|all| all.rejections.as_ref());
        if let Some(rejections) = rejections {
            rejections.increment(match kind {
                RejectionKind::Held => 0,
                RejectionKind::TimedOut => 1,
                RejectionKind::QueueFull => 2,
                RejectionKind::MissingKey => 3,
                RejectionKind::InvalidKey => 4,
                RejectionKind::TooManyKeys => 5,
                RejectionKind::Misconfigured => 6,
                RejectionKind::Unavailable => 7,
                RejectionKind::Lost => 8,
                RejectionKind::Mismatch => 9,
                RejectionKind::TooLarge => 10,
                RejectionKind::Incomplete => 11,
                RejectionKind::Unreadable => 12,
                RejectionKind::NotKept => 13,
            });
        }
    }

    pub(in crate::observe) fn keyed_request(&self, what: Repetition) {
        let requests = self.instruments();
        if let Some(requests) = requests.and_then(|all| all.keyed_requests.as_ref()) {
            requests.increment(what as usize);
        }
    }
}
