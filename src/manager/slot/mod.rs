//! The state machine of one key in one process: who holds, who waits, what the store is asked.
//!
//! It is pure: it gets events and the time, and returns [`Effect`]s. It has no I/O, no clock and no
//! mutex of its own, so that tests can put its events into any order.
//!
//! ```text
//!                 request               Acquired
//!        Idle ──────────────▶ Acquiring ─────────────▶ Holding ──┐ finished: the next
//!         ▲                    │ ▲ ▲ │                  ▲ │ ▲    │ waiter gets the lease
//!         │      HeldElsewhere │ │ │ │ failed           │ │ └────┘
//!         │                    ▼ │ │ ▼                  │ │
//!         │        ┌───────── Queued Backoff            │ │ finished, completed, or lost,
//!         │        │ Granted         (until it is over) │ │ while requests wait: Acquiring
//!         │        └────────────────────────────────────┘ │
//!         └───────────────────────────────────────────────┘
//!           from any state, as soon as no request waits and none holds
//! ```
//!
//! At any moment, at most one token of this process holds the lock in the store, waits in the
//! store's queue, or is in an acquire that is in flight. Requests wait here, in order of arrival,
//! and the lease passes from one to the next.
//!
//! [`Slot::on`] begins an event, and returns the [`Machine`] with one method for each. A slot that
//! [is idle](Slot::is_idle) afterwards may be forgotten; another wants a [tick](Machine::tick) at
//! its [`next_tick`](Slot::next_tick).

mod acquiring;
mod holding;
mod machine;
mod rules;

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use smallvec::SmallVec;

use self::acquiring::AcquireAttempt;
use self::holding::Holding;
pub(crate) use self::machine::Machine;
pub(crate) use self::rules::Rules;
use super::waiters::Waiters;
use crate::clock::Time;
use crate::error::Error;
use crate::lease::{Grant, LostReason};
use crate::store::Command;

/// What the machine needs from around it.
pub(crate) struct Env<'a> {
    pub(crate) now: Time,
    pub(crate) rules: &'a Rules,
    /// Source of tokens and lease numbers; never gives the same number twice.
    pub(crate) ids: &'a AtomicU64,
    /// Whether more requests of this process may wait, whatever their keys.
    pub(crate) has_room: bool,
}

impl Env<'_> {
    fn next_id(&self) -> u64 {
        self.ids.fetch_add(1, Ordering::Relaxed)
    }
}

/// What the machine wants done.
///
/// `W` stands for a waiting request. A record `R`, and `S`, which is told how a release or a
/// completion went, pass through the machine untouched.
#[derive(Debug)]
pub(crate) enum Effect<W, R, S> {
    /// Submit this to the store.
    Send(Command<R, S>),
    /// The waiter holds the lock.
    Grant { waiter: W, grant: Grant },
    /// The waiter does not get the lock.
    Reject { waiter: W, error: Error },
    /// The waiter gets the record that is in the lock's place.
    Replay { waiter: W, record: Bytes },
    /// The current holder's lease is valid until then.
    Extend { until: Time },
    /// The current holder has lost the lock.
    Lose { reason: LostReason },
    /// The lock went to the next request of this process: the release that was asked for is done.
    HandedOn { reply: S },
}

/// What follows from one event: rarely more than this.
pub(crate) type Effects<W, R, S> = SmallVec<[Effect<W, R, S>; 2]>;

/// One key in this process.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Slot<W> {
    state: State,
    waiters: Waiters<Waiter<W>>,
    /// How many of the waiters are not patient.
    impatient: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Waiter<W> {
    handle: W,
    /// Whether it waits for its turn. Otherwise it wants to know whether the lock is free now.
    patient: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum State {
    Idle,
    /// An acquire is in flight.
    Acquiring {
        attempt: AcquireAttempt,
        /// Acquire once more if the lock turns out to be held elsewhere: it was granted or freed in
        /// the meantime.
        recheck: bool,
        /// Another process began to wait in the meantime.
        contended: bool,
    },
    /// The store has this token in its queue. Acquire again at `poll_at`, should no grant come.
    Queued {
        token: u64,
        poll_at: Time,
    },
    /// The store did not answer. Acquire anew then.
    Backoff {
        until: Time,
    },
    Holding(Holding),
}

impl State {
    /// The hold of the holder with this lease, unless it is completing.
    fn held_by(&mut self, lease: u64) -> Option<&mut Holding> {
        match self {
            Self::Holding(holding) if holding.lease == lease && !holding.completing => {
                Some(holding)
            }
            _ => None,
        }
    }

    /// The hold that the store knows by this token: for a holder, or for a record in flight.
    fn held_as(&mut self, token: u64) -> Option<&mut Holding> {
        match self {
            Self::Holding(holding) if holding.token == token => Some(holding),
            _ => None,
        }
    }
}

/// The requests that wait for a slot.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Waiting {
    /// How many there are.
    pub(crate) requests: usize,
    /// Whether a token of theirs is in the store's queue.
    pub(crate) in_store: bool,
}

impl<W> Default for Slot<W> {
    fn default() -> Self {
        Self {
            state: State::Idle,
            waiters: Waiters::default(),
            impatient: 0,
        }
    }
}

impl<W> Slot<W> {
    /// Begins an event. What follows from it is added to `effects`.
    pub(crate) fn on<'a, R, S>(
        &'a mut self,
        env: &'a Env<'a>,
        effects: &'a mut Effects<W, R, S>,
    ) -> Machine<'a, W, R, S> {
        Machine::new(self, env, effects)
    }

    /// Returns who waits.
    pub(crate) fn waiting(&self) -> Waiting {
        let asks = matches!(self.state, State::Acquiring { attempt, .. } if attempt.first)
            && self.waiters.first().is_some_and(|first| first.patient);
        Waiting {
            requests: self.waiters.len() - self.impatient - usize::from(asks),
            in_store: matches!(self.state, State::Queued { .. }),
        }
    }

    /// Whether nothing would be lost if this slot were forgotten.
    pub(crate) fn is_idle(&self) -> bool {
        matches!(self.state, State::Idle)
    }

    /// Whether the lock is this token's, for a holder or for a record in flight.
    pub(crate) fn holds(&self, token: u64) -> bool {
        matches!(&self.state, State::Holding(holding) if holding.token == token)
    }

    /// Returns when [`Machine::tick`] next has something to do here.
    pub(crate) fn next_tick(&self) -> Option<Time> {
        match &self.state {
            State::Holding(holding) => Some(holding.next_tick()),
            State::Queued { poll_at, .. } => Some(*poll_at),
            State::Backoff { until } => Some(*until),
            State::Idle | State::Acquiring { .. } => None,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
