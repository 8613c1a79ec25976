//! [`Machine`]: what a slot does at each event.

mod grant;
mod holders;
mod notices;
mod replies;
mod requests;

use super::{AcquireAttempt, Effect, Effects, Env, Slot, State};
use crate::error::{Error, ErrorKind};
use crate::lease::LostReason;
use crate::mode::Mode;
use crate::store::Command;

/// A slot during one event: made by [`Slot::on`].
pub(crate) struct Machine<'a, W, R, S> {
    slot: &'a mut Slot<W>,
    env: &'a Env<'a>,
    effects: &'a mut Effects<W, R, S>,
}

impl<'a, W, R, S> Machine<'a, W, R, S> {
    pub(super) fn new(
        slot: &'a mut Slot<W>,
        env: &'a Env<'a>,
        effects: &'a mut Effects<W, R, S>,
    ) -> Self {
        Self { slot, env, effects }
    }
}

/// The clock.
impl<W, R, S: Default> Machine<'_, W, R, S> {
    /// Time has passed.
    pub(crate) fn tick(&mut self) {
        let now = self.env.now;
        match &self.slot.state {
            State::Holding(holding) => {
                if now >= holding.over_at {
                    self.lose(LostReason::MaxHold);
                } else if now >= holding.valid_until {
                    self.lose(LostReason::Expired);
                } else if now >= holding.renew_at && !holding.renewing {
                    self.renew();
                }
            }
            State::Queued { token, poll_at } if now >= *poll_at => {
                let token = *token;
                self.acquire(AcquireAttempt::again(token, false));
            }
            State::Backoff { until } if now >= *until => self.acquire_after_failure(),
            _ => {}
        }
    }
}

/// Steps that several events share.
impl<W, R, S: Default> Machine<'_, W, R, S> {
    fn send(&mut self, command: Command<R, S>) {
        self.effects.push(Effect::Send(command));
    }

    fn acquire(&mut self, attempt: AcquireAttempt) {
        self.slot.state = State::Acquiring {
            attempt,
            recheck: false,
            contended: false,
        };
        self.send(attempt.command());
    }

    fn acquire_anew(&mut self) {
        let token = self.env.next_id();
        self.acquire(AcquireAttempt::anew(token));
    }

    fn acquire_after_failure(&mut self) {
        let token = self.env.next_id();
        self.acquire(AcquireAttempt::after_failure(token));
    }

    /// Gives up the slot's token, as no request waits any longer. A holder stays.
    fn stop_acquiring(&mut self) {
        let given_up = match self.slot.state {
            State::Acquiring { attempt, .. } => Some((attempt.token, attempt.queue)),
            State::Queued { token, .. } => Some((token, true)),
            State::Backoff { .. } => None,
            State::Idle | State::Holding(_) => return,
        };
        self.slot.state = State::Idle;
        if let Some((token, queued)) = given_up {
            self.release(token, queued);
        }
    }

    /// Releases a token that may have nothing, or whose lock no process is known to wait for.
    fn release(&mut self, token: u64, queued: bool) {
        self.send(Command::Release {
            token,
            contended: false,
            queued,
            reply: S::default(),
        });
    }

    fn renew(&mut self) {
        let State::Holding(holding) = &mut self.slot.state else {
            return;
        };
        (holding.renewing, holding.recheck) = (true, false);
        let token = holding.token;
        self.send(Command::Renew {
            token,
            mode: Mode::Exclusive,
        });
    }

    /// Checks a held lock to which something may have happened.
    fn check(&mut self) {
        let State::Holding(holding) = &mut self.slot.state else {
            return;
        };
        holding.recheck = holding.renewing || holding.checking;
        if !holding.recheck {
            holding.checking = true;
            let token = holding.token;
            self.send(Command::Check { token });
        }
    }

    fn lose(&mut self, reason: LostReason) {
        let State::Holding(holding) = self.slot.state else {
            return;
        };
        // A holder whose record is in flight is done, and need not be told.
        if !holding.completing {
            self.effects.push(Effect::Lose { reason });
        }
        // The holder has known the end from the clock, whatever it does, and has had the time to
        // stop: others need not wait until the lease expires.
        if reason == LostReason::MaxHold {
            self.send(Command::Release {
                token: holding.token,
                contended: true,
                queued: false,
                reply: S::default(),
            });
        }
        self.let_go();
    }

    /// Ends the hold. Requests that wait acquire anew.
    fn let_go(&mut self) {
        self.slot.state = State::Idle;
        if !self.slot.waiters.is_empty() {
            self.acquire_anew();
        }
    }

    fn reject(&mut self, waiter: W, error: Error) {
        self.effects.push(Effect::Reject { waiter, error });
    }

    fn reject_waiting(&mut self, error: &Error) {
        self.slot.impatient = 0;
        for waiter in self.slot.waiters.take_if(|_| true) {
            self.reject(waiter.handle, error.clone());
        }
    }

    fn reject_impatient(&mut self, kind: ErrorKind) {
        if std::mem::take(&mut self.slot.impatient) == 0 {
            return;
        }
        for waiter in self.slot.waiters.take_if(|waiter| !waiter.patient) {
            self.reject(waiter.handle, Error::of(kind));
        }
    }
}
