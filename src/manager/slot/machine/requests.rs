//! What requests do that wait for the lock, or want to.

use super::super::{AcquireAttempt, Effect, State, Waiter};
use super::Machine;
use crate::error::{Error, ErrorKind};
use crate::lease::GrantPath;
use crate::mode::Mode;

impl<W, R, S: Default> Machine<'_, W, R, S> {
    /// Returns a number that was never used before.
    pub(crate) fn next_id(&self) -> u64 {
        self.env.next_id()
    }

    /// A request for the lock has come: for now (not `patient`), or for when it is its turn; alone,
    /// or to share it.
    pub(crate) fn request(&mut self, number: u64, handle: W, patient: bool, mode: Mode) {
        if let State::Holding(holding) = &mut self.slot.state {
            let may_join = mode.is_shared() && self.slot.waiters.is_empty();
            if may_join && holding.may_admit(self.env) {
                let grant = holding.grant(self.env);
                self.effects.push(Effect::Grant {
                    waiter: handle,
                    grant,
                    path: GrantPath::Local,
                });
                return;
            }
            if holding.lingers() {
                self.let_go(S::default());
            }
        }
        let reject = match self.slot.state {
            State::Holding(_) | State::Queued { .. } if !patient => Some(ErrorKind::Held),
            State::Backoff { .. } if !patient => Some(ErrorKind::Unavailable),
            State::Idle => None,
            _ if patient && !self.has_room() => Some(ErrorKind::QueueFull),
            _ => None,
        };
        if let Some(kind) = reject {
            self.reject(handle, Error::of(kind));
            return;
        }
        self.slot.impatient += usize::from(!patient);
        let waiter = Waiter {
            handle,
            patient,
            mode,
        };
        self.slot.waiters.push(number, waiter);
        if matches!(self.slot.state, State::Idle) {
            let token = self.env.next_id();
            self.acquire(match patient && self.slot.expects_others(self.env) {
                true => AcquireAttempt::first_in_queue(token, mode),
                false => AcquireAttempt::first(token, mode),
            });
        }
    }

    /// Returns whether one more request may wait.
    fn has_room(&self) -> bool {
        self.env.has_room && self.slot.waiters.len() < self.env.rules.max_waiters
    }

    /// A request that did not get the lock has given up.
    pub(crate) fn cancel(&mut self, number: u64) {
        let Some(waiter) = self.slot.waiters.remove(number) else {
            return;
        };
        self.slot.impatient -= usize::from(!waiter.patient);
        if self.slot.waiters.is_empty() {
            // Whatever the acquire gets, the release behind it gives back.
            self.stop_acquiring();
        } else {
            self.follow_first();
            self.admit();
        }
    }

    /// Lets those in that share the lock, and are first in line now.
    pub(super) fn admit(&mut self) {
        let State::Holding(holding) = &self.slot.state else {
            return;
        };
        if holding.may_admit(self.env) && !self.slot.waiters.is_empty() {
            self.grant(GrantPath::Local);
        }
    }

    /// Returns the error for a waiter whose time is over. Either others held the lock, or the lock
    /// may well be free, and the store has not replied, or cannot.
    pub(crate) fn overdue(&self, is_store_available: bool) -> ErrorKind {
        match &self.slot.state {
            // For that, the store is not needed.
            State::Holding(holding) if self.env.now < holding.valid_until => ErrorKind::TimedOut,
            State::Acquiring { attempt, .. } if attempt.unanswered => ErrorKind::Unavailable,
            State::Backoff { .. } => ErrorKind::Unavailable,
            _ if !is_store_available => ErrorKind::Unavailable,
            _ => ErrorKind::TimedOut,
        }
    }

    /// Rejects every waiter with the same error. A holder stays. A hold without one ends.
    pub(crate) fn reject_all(&mut self, error: &Error) {
        self.reject_waiting(error);
        self.stop_acquiring();
        if matches!(&self.slot.state, State::Holding(holding) if holding.lingers()) {
            self.let_go(S::default());
        }
    }
}
