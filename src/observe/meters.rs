//! [`ManagerMeters`]: what is counted of a manager, whatever the names of its locks, and its
//! journal.

#[cfg(feature = "inspector")]
use std::sync::OnceLock;

#[cfg(feature = "metrics")]
use self::instruments::Instruments;
#[cfg(feature = "inspector")]
use super::Journal;
#[cfg(feature = "metrics")]
use super::series::Handles;

#[derive(Default)]
pub(crate) struct ManagerMeters {
    #[cfg(feature = "metrics")]
    instruments: Handles<Instruments>,
    /// None until an inspector is made.
    #[cfg(feature = "inspector")]
    journal: OnceLock<Journal>,
}

impl ManagerMeters {
    /// Returns the journal, which is kept from now on.
    #[cfg(feature = "inspector")]
    pub(crate) fn journal(&self) -> &Journal {
        self.journal.get_or_init(Journal::new)
    }

    #[cfg(feature = "inspector")]
    pub(super) fn note(&self, note: impl FnOnce(&Journal)) {
        if let Some(journal) = self.journal.get() {
            note(journal);
        }
    }

    /// Returns whether a journal is kept.
    #[cfg(any(feature = "tracing", feature = "metrics", feature = "inspector"))]
    #[cfg_attr(
        not(feature = "inspector"),
        allow(clippy::unused_self, clippy::missing_const_for_fn)
    )]
    pub(super) fn has_journal(&self) -> bool {
        #[cfg(feature = "inspector")]
        let has_journal = self.journal.get().is_some();
        #[cfg(not(feature = "inspector"))]
        let has_journal = false;
        has_journal
    }
}

#[cfg(feature = "metrics")]
pub(super) use self::instruments::{quarantined, store_up};

#[cfg(feature = "metrics")]
mod instruments {
    use metrics::Gauge;

    use super::super::catalogue;
    use super::super::series::{Counters, Histograms};
    use super::ManagerMeters;
    use crate::clock::Time;
    use crate::store::{Command, Outcome, Reply};

    pub(super) struct Instruments {
        waiters: Gauge,
        renewals: Counters<3>,
        handoffs: Counters<2>,
        commands: Histograms<10>,
    }

    const RENEWALS: [&str; 3] = ["renewed", "gone", "failed"];
    const HANDOFFS: [&str; 2] = ["local", "remote"];

    impl Instruments {
        fn register() -> Self {
            let renewals = Counters::register(catalogue::RENEWALS, "outcome", RENEWALS, None);
            let handoffs = Counters::register(catalogue::HANDOFFS, "to", HANDOFFS, None);
            Self {
                waiters: metrics::gauge!(catalogue::WAITERS),
                renewals,
                handoffs,
                commands: Histograms::new(),
            }
        }
    }

    impl ManagerMeters {
        fn instruments(&self) -> Option<&Instruments> {
            self.instruments.get(Instruments::register)
        }

        pub(in crate::observe) fn waiting(&self, before: usize, after: usize) {
            if let Some(instruments) = self.instruments() {
                let more = after as f64 - before as f64;
                instruments.waiters.increment(more);
            }
        }

        pub(in crate::observe) fn handed_on(&self) {
            if let Some(instruments) = self.instruments() {
                instruments.handoffs.increment(0);
            }
        }

        pub(in crate::observe) fn granted_away(&self) {
            if let Some(instruments) = self.instruments() {
                instruments.handoffs.increment(1);
            }
        }

        pub(in crate::observe) fn renewed(&self, outcome: &Outcome) {
            if let Some(instruments) = self.instruments() {
                instruments.renewals.increment(match outcome.result {
                    Ok(Reply::Renewed { .. }) => 0,
                    Ok(_) => 1,
                    Err(_) => 2,
                });
            }
        }

        pub(in crate::observe) fn replied(&self, command: &Command<(), ()>, outcome: &Outcome) {
            let Some(instruments) = self.instruments() else {
                return;
            };
            let (index, command) = match command {
                Command::Acquire { .. } => (0, "acquire"),
                Command::Release { .. } => (1, "release"),
                Command::Complete { .. } => (2, "complete"),
                Command::Renew { .. } => (3, "renew"),
                Command::Check { .. } => (4, "check"),
            };
            let (index, outcome_of) = match outcome.result {
                Ok(_) => (2 * index, "ok"),
                Err(_) => (2 * index + 1, "failed"),
            };
            let register = || {
                let metric = catalogue::COMMAND_DURATION;
                metrics::histogram!(metric, "command" => command, "outcome" => outcome_of)
            };
            let took = Time::now().since(outcome.sent_at);
            instruments.commands.get(index, register).record(took);
        }
    }

    /// These change so rarely that their handles are not kept. So they also count if the recorder
    /// was installed late.
    pub(in crate::observe) fn store_up(server: &str, value: f64) {
        catalogue::describe();
        set(catalogue::STORE_UP, server, value);
    }

    pub(in crate::observe) fn quarantined(server: &str, is_quarantined: bool) {
        set(
            catalogue::QUARANTINE,
            server,
            u8::from(is_quarantined).into(),
        );
    }

    fn set(metric: &'static str, server: &str, value: f64) {
        metrics::gauge!(metric, "server" => server.to_owned()).set(value);
    }
}
