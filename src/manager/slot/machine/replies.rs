//! What the store replies.

use std::time::Duration;

use super::super::{AcquireAttempt, Effect, Rules, State};
use super::Machine;
use crate::error::{Error, ErrorKind};
use crate::lease::LostReason;
use crate::store::{Command, Failure, Outcome, Reply};

impl<W, R, S: Default> Machine<'_, W, R, S> {
    /// A command has ended: with a reply of the store, or without one.
    pub(crate) fn replied(&mut self, command: Command<(), ()>, outcome: Outcome) {
        match command {
            Command::Acquire { token, .. } => self.acquire_replied(token, outcome),
            Command::Renew { token, .. } => self.renew_replied(token, &outcome),
            Command::Check { token } => self.check_replied(token, &outcome),
            Command::Complete { token, .. } => self.complete_replied(token, &outcome),
            Command::Release { .. } => {}
        }
    }

    fn acquire_replied(&mut self, token: u64, outcome: Outcome) {
        let (attempt, recheck, contended) = match self.slot.state {
            State::Acquiring {
                attempt,
                recheck,
                contended,
            } if attempt.token == token => (attempt, recheck, contended),
            // This acquire was given up, and its release submitted behind it. Redis may have
            // carried out the release first if the connection broke or the script had to be loaded
            // again.
            _ => {
                if let Ok(Reply::Acquired { .. }) = outcome.result {
                    self.release(token, true);
                }
                return;
            }
        };
        match outcome.result {
            Ok(Reply::Acquired {
                fence,
                contended: also,
            }) => {
                let contended = contended || also;
                match self.hold_acquired(attempt, fence, outcome.sent_at, contended) {
                    true => self.reject_impatient(ErrorKind::Held),
                    false => self.acquire_failed(attempt, &unavailable()),
                }
            }
            Ok(Reply::HeldElsewhere { remaining, foreign }) => {
                self.held_elsewhere(attempt, recheck, remaining, foreign);
            }
            Ok(Reply::Recorded(record)) => {
                self.slot.state = State::Idle;
                self.slot.impatient = 0;
                let waiters = self.slot.waiters.take_if(|_| true);
                self.effects
                    .extend(waiters.into_iter().map(|waiter| Effect::Replay {
                        waiter: waiter.handle,
                        record: record.clone(),
                    }));
            }
            // A reply to another kind of command: whatever it means, the token may have the lock.
            Ok(_) => {
                self.release(token, attempt.queued());
                self.acquire_failed(attempt, &unavailable());
            }
            Err(Failure { error, unknown }) => {
                // The token is never used again: its release may come late, over the connection
                // that broke.
                if unknown {
                    self.release(token, attempt.queued());
                }
                self.acquire_failed(attempt, &error);
            }
        }
    }

    /// Another process, or a client of another kind, has the lock.
    fn held_elsewhere(
        &mut self,
        attempt: AcquireAttempt,
        recheck: bool,
        remaining: Option<Duration>,
        foreign: bool,
    ) {
        let begins_to_wait = self.slot.first_acquires_only();
        let AcquireAttempt { token, mode, .. } = attempt;
        // A lock that a request cannot have alone may be one that those behind it can share.
        self.reject_impatient_if(ErrorKind::Held, |of| of == mode || mode.is_shared());
        let first = self.slot.waiters.first().map(|first| first.mode);
        if first.is_some_and(|first| first != mode) {
            if attempt.queue {
                self.release(token, true);
            }
            let token = self.env.next_id();
            self.acquire(attempt.in_mode(self.mode(), token));
            return;
        }
        self.reject_impatient(ErrorKind::Held);
        if begins_to_wait && !self.env.has_room {
            // Those behind it were counted when they came.
            if let Some(first) = self.slot.waiters.pop() {
                self.reject(first.handle, Error::of(ErrorKind::QueueFull));
            }
        }
        if self.slot.waiters.is_empty() {
            self.slot.state = State::Idle;
            if attempt.queue {
                self.release(token, true);
            }
        } else if !attempt.queue {
            self.acquire(AcquireAttempt::queue_up(token, mode, foreign));
        } else if recheck || foreign && !attempt.watch {
            self.acquire(AcquireAttempt::again(token, mode, foreign));
        } else {
            let poll_in =
                remaining.map_or(self.env.rules.ttl, |left| left + Duration::from_millis(1));
            self.slot.state = State::Queued {
                token,
                mode,
                poll_at: self.env.now + poll_in,
            };
        }
    }

    /// Ends an acquire that had no reply of any use. Requests that have just come are rejected.
    /// Those that waited before go on to wait.
    fn acquire_failed(&mut self, attempt: AcquireAttempt, error: &Error) {
        match attempt.fresh {
            true => self.reject_waiting(error),
            false => self.reject_impatient(ErrorKind::Unavailable),
        }
        let until = self.env.now + self.env.rules.backoff();
        self.slot.state = match self.slot.waiters.is_empty() {
            true => State::Idle,
            false => State::Backoff { until },
        };
    }

    fn renew_replied(&mut self, token: u64, outcome: &Outcome) {
        let Some(holding) = self.slot.state.held_as(token) else {
            return;
        };
        holding.renewing = false;
        match outcome.result {
            // The reply comes too late: the holder knows from the clock that the lock is lost.
            Ok(Reply::Renewed { .. }) if self.env.now >= holding.valid_until => {
                self.lose(LostReason::Expired);
            }
            Ok(Reply::Renewed { contended }) => {
                let valid_until = outcome.sent_at + Rules::validity(self.env.rules.ttl);
                holding.valid_until = holding.valid_until.max(valid_until);
                holding.renew_at = outcome.sent_at + self.env.rules.renewal;
                let recheck = holding.recheck;
                if holding.mode.is_shared() && !contended {
                    holding.calm(outcome.sent_at);
                }
                self.extend_leases();
                if contended {
                    self.contend();
                } else {
                    self.admit();
                }
                if recheck {
                    self.check();
                }
            }
            Ok(_) => self.found_gone(),
            // Not known to be lost: the lease is valid until it runs out. Renewed again soon.
            Err(_) => holding.renew_at = self.env.now + self.env.rules.soon(),
        }
    }

    fn check_replied(&mut self, token: u64, outcome: &Outcome) {
        let Some(holding) = self.slot.state.held_as(token) else {
            return;
        };
        holding.checking = false;
        match outcome.result {
            Ok(Reply::Intact) if holding.recheck => self.check(),
            Ok(Reply::Intact) => {}
            Ok(_) => self.found_gone(),
            // The next renewal finds out.
            Err(_) => holding.recheck = false,
        }
    }

    /// The store says that the lock is not this token's any more.
    fn found_gone(&mut self) {
        match &mut self.slot.state {
            // The record may be in the lock's place: the reply to the completion will say so. Until
            // then, there is nothing to renew.
            State::Holding(holding) if holding.completing => {
                holding.renew_at = holding.valid_until;
            }
            _ => self.lose(LostReason::Taken),
        }
    }

    /// A completion has ended.
    fn complete_replied(&mut self, token: u64, outcome: &Outcome) {
        match self.slot.state.held_as(token) {
            Some(holding) if holding.completing => {}
            _ => return,
        }
        if outcome.result.is_err() {
            self.release(token, false);
        }
        // Waiters get the record if it was put there, and the lock if it was lost.
        self.end_hold();
    }
}

fn unavailable() -> Error {
    Error::of(ErrorKind::Unavailable)
}
