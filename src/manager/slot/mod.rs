//! The state machine of one key in one process: which request holds the lock, which requests wait
//! for it, and which commands go to the store.
//!
//! It is pure: it gets events and the time, and returns [`Effect`]s. It has no I/O, no clock and no
//! mutex of its own, so that tests can put its events into any order.
//!
//! ```text
//!           request               Acquired
//!    Idle ───────────▶ Acquiring ──────────▶ Holding ──┐ finished: the next request
//!                      │ ▲  ▲ │ ▲             │ ▲  ▲   │ here gets the lease
//!                      │ │  │ │ └─────────────┘ │  └───┘
//!        HeldElsewhere │ │  │ │ ended, while    │
//!                      │ │  │ │ requests wait   │
//!                      │ │  │ │                 │
//!                      ▼ │  │ ▼ failed          │
//!                    Queued Backoff             │
//!                      │                        │
//!                      └────────────────────────┘
//!                                Granted
//! ```
//!
//! - Any state becomes `Idle` as soon as no request waits, none holds, and no record is in flight;
//!   a shared hold, a moment later.
//! - `Acquiring`, where the lock is held elsewhere: acquires once more if the first acquire did not
//!   queue, if a client of another kind has the lock and is not watched yet, or if the lock was
//!   granted or changed in the meantime.
//! - `Acquiring`, where the acquire failed: requests that have just come are refused. Those that
//!   waited before back off.
//! - `Queued` acquires again, with the same token: at `poll_at`, after the store has reconnected,
//!   when a notice says that the lock has changed or that the token has it, and when too little of
//!   a grant is left.
//! - `Backoff` acquires with a new token: when it is over, or when the store has reconnected.
//! - A process that was given the lock by another, or gave it to one, expects that to happen again
//!   soon. For a moment, its acquires queue at once, and its releases look into the queue: each
//!   saves a round trip if another process waits, and costs Redis a little more if none does.
//! - A slot acquires in the mode of the request that is first in line. When another becomes first,
//!   whose mode is another one, the slot gives up its token, and acquires with a new one.
//! - `Holding` a share: all requests at the front that share have it, up to the first that does
//!   not. One that comes later joins them, unless another waits, here or in another process. A hold
//!   without holders lingers: it ends soon, or at once when it is wanted.
//! - `Holding` ends when its holder has finished and the lease cannot go to the next request here,
//!   when a completion has ended, and when the lock is lost. Requests that wait then acquire with a
//!   new token.
//!
//! A slot has one token at a time: it holds the lock in the store, waits in the store's queue, or
//! is in an acquire that is in flight. Every other token of this process has been given up, and is
//! in no later acquire. Requests wait here, in order of arrival, and the lease passes from one to
//! the next.
//!
//! [`Slot::on`] begins an event, and returns the [`Machine`] with one method for each. A slot that
//! [is empty](Slot::is_empty) afterwards may be forgotten. Any other needs a [tick](Machine::tick)
//! at its [`next_tick`](Slot::next_tick).

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
use crate::lease::{Grant, GrantPath, LostReason};
use crate::mode::Mode;
use crate::store::Command;

/// What the machine needs to know besides its slot.
pub(crate) struct Env<'a> {
    pub(crate) now: Time,
    pub(crate) rules: &'a Rules,
    /// Source of the numbers of tokens, leases and requests. Each is used once.
    pub(crate) ids: &'a AtomicU64,
    /// Whether more requests of this process may wait, whatever their keys.
    pub(crate) has_room: bool,
}

impl Env<'_> {
    fn next_id(&self) -> u64 {
        self.ids.fetch_add(1, Ordering::Relaxed)
    }
}

/// What is to be done after an event.
///
/// `W` stands for a waiting request. `R` is a record, and `S` tells a caller how its release or
/// completion went: both pass through the machine untouched.
#[derive(Debug)]
pub(crate) enum Effect<W, R, S> {
    /// The command goes to the store.
    Send(Command<R, S>),
    /// The waiter holds the lock.
    Grant {
        waiter: W,
        grant: Grant,
        path: GrantPath,
    },
    /// The waiter does not get the lock.
    Reject { waiter: W, error: Error },
    /// The waiter gets the record that is in the lock's place.
    Replay { waiter: W, record: Bytes },
    /// This holder's lease is valid until `until`.
    Extend { lease: u64, until: Time },
    /// This holder has lost the lock.
    Lose { lease: u64, reason: LostReason },
    /// The release of this holder is done without the store: this process keeps the lock, for its
    /// next request, or for others that share it.
    HandedOn { lease: u64, reply: S },
}

/// The effects of one event: rarely more than two.
pub(crate) type Effects<W, R, S> = SmallVec<[Effect<W, R, S>; 2]>;

/// One key in this process.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Slot<W> {
    state: State,
    waiters: Waiters<Waiter<W>>,
    /// How many of the waiters are not patient.
    impatient: usize,
    /// Until then, other processes are likely to want the lock: one wanted it a moment ago.
    wanted_until: Option<Time>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Waiter<W> {
    handle: W,
    /// Whether the request waits for its turn. Otherwise it is refused unless the lock is free now.
    patient: bool,
    mode: Mode,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum State {
    Idle,
    /// An acquire is in flight.
    Acquiring {
        attempt: AcquireAttempt,
        /// Acquire once more if the reply says that the lock is held elsewhere: it was granted or
        /// changed in the meantime.
        recheck: bool,
        /// Another process began to wait for this token's lock in the meantime.
        contended: bool,
    },
    /// The store has this token in its queue. Acquire again at `poll_at` if no grant has come.
    Queued {
        token: u64,
        mode: Mode,
        poll_at: Time,
    },
    /// The acquire failed. The next one, with a new token, follows at `until`.
    Backoff {
        until: Time,
    },
    Holding(Holding),
}

impl State {
    /// Returns the hold with this lease, unless its record is in flight.
    fn held_by(&mut self, lease: u64) -> Option<&mut Holding> {
        match self {
            Self::Holding(holding) if holding.place_of(lease).is_some() && !holding.completing => {
                Some(holding)
            }
            _ => None,
        }
    }

    /// Returns the hold with this token: that of a holder, or of a record in flight.
    fn held_as(&mut self, token: u64) -> Option<&mut Holding> {
        match self {
            Self::Holding(holding) if holding.token == token => Some(holding),
            _ => None,
        }
    }
}

/// What there is to count of a slot.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Census {
    /// Whether this process has the lock.
    pub(crate) is_held: bool,
    /// How many requests wait.
    pub(crate) waiting: usize,
    /// Whether their token is in the store's queue.
    pub(crate) in_store: bool,
}

impl<W> Default for Slot<W> {
    fn default() -> Self {
        Self {
            state: State::Idle,
            waiters: Waiters::default(),
            impatient: 0,
            wanted_until: None,
        }
    }
}

impl<W> Slot<W> {
    /// Begins an event, which adds its effects to `effects`.
    pub(crate) fn on<'a, R, S>(
        &'a mut self,
        env: &'a Env<'a>,
        effects: &'a mut Effects<W, R, S>,
    ) -> Machine<'a, W, R, S> {
        Machine::new(self, env, effects)
    }

    /// Returns what there is to count.
    pub(crate) fn census(&self) -> Census {
        Census {
            is_held: matches!(self.state, State::Holding(_)),
            waiting: self.waiters.len() - self.impatient - usize::from(self.first_acquires_only()),
            in_store: matches!(self.state, State::Queued { .. }),
        }
    }

    /// Returns whether the first request acquires, and does not wait yet: until the first reply,
    /// the lock may be free.
    fn first_acquires_only(&self) -> bool {
        matches!(self.state, State::Acquiring { attempt, .. } if attempt.for_new_requests)
            && self.waiters.first().is_some_and(|first| first.patient)
    }

    /// Returns whether this process has the lock, and knows that another one waits for it.
    #[cfg(feature = "inspector")]
    pub(crate) fn is_contended(&self) -> bool {
        matches!(&self.state, State::Holding(holding) if holding.contended.is_some())
    }

    /// Returns whether no request holds the lock or waits for it, and no record is in flight.
    pub(crate) fn is_idle(&self) -> bool {
        matches!(self.state, State::Idle)
    }

    /// Returns whether nothing would be lost if this slot were forgotten.
    pub(crate) fn is_empty(&self) -> bool {
        self.is_idle() && self.wanted_until.is_none()
    }

    /// Other processes are likely to want the lock soon, as one did just now.
    fn expect_others(&mut self, env: &Env<'_>) {
        self.wanted_until = Some(env.now + env.rules.memory());
    }

    fn expects_others(&self, env: &Env<'_>) -> bool {
        self.wanted_until.is_some_and(|until| env.now < until)
    }

    /// Returns whether the lock is this token's, for a holder or for a record in flight.
    pub(crate) fn holds(&self, token: u64) -> bool {
        matches!(&self.state, State::Holding(holding) if holding.token == token)
    }

    /// Returns when [`Machine::tick`] next has something to do here.
    pub(crate) fn next_tick(&self) -> Option<Time> {
        match &self.state {
            State::Holding(holding) => Some(holding.next_tick()),
            State::Queued { poll_at, .. } => Some(*poll_at),
            State::Backoff { until } => Some(*until),
            State::Idle => self.wanted_until,
            State::Acquiring { .. } => None,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
