//! [`Machine`]: what a slot does at each event.

mod grant;
mod holders;
mod notices;
mod replies;
mod requests;

use super::holding::Holder;
use super::{AcquireAttempt, Effect, Effects, Env, Slot, State, Waiter};
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
                if holding
                    .holders
                    .first()
                    .is_some_and(|one| now >= one.over_at)
                {
                    self.lose_overdue();
                } else if now >= holding.valid_until {
                    self.lose(LostReason::Expired);
                } else if holding.lingers() && now >= holding.lingers_until {
                    self.let_go(S::default());
                } else if now >= holding.renew_at && !holding.renewing && !holding.lingers() {
                    self.renew();
                }
            }
            State::Queued { poll_at, .. } if now >= *poll_at => self.acquire_again(false),
            State::Backoff { until } if now >= *until => self.acquire_after_failure(),
            State::Idle if !self.slot.expects_others(self.env) => self.slot.wanted_until = None,
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
        let (token, mode) = (self.env.next_id(), self.mode());
        self.acquire(AcquireAttempt::anew(token, mode));
    }

    fn acquire_after_failure(&mut self) {
        let (token, mode) = (self.env.next_id(), self.mode());
        self.acquire(AcquireAttempt::after_failure(token, mode));
    }

    /// Acquires with the token that is in the store's queue.
    fn acquire_again(&mut self, watch: bool) {
        if let State::Queued { token, mode, .. } = self.slot.state {
            self.acquire(AcquireAttempt::again(token, mode, watch));
        }
    }

    /// Returns the mode of the request that is first in line.
    fn mode(&self) -> Mode {
        let first = self.slot.waiters.first();
        first.map_or_else(Mode::default, |first| first.mode)
    }

    /// Acquires in another mode if that of the first request in line is another one now.
    fn follow_first(&mut self) {
        let mode = self.mode();
        let attempt = match self.slot.state {
            State::Acquiring { attempt, .. } if attempt.mode != mode => attempt,
            State::Queued {
                token, mode: of, ..
            } if of != mode => AcquireAttempt::again(token, of, false),
            _ => return,
        };
        self.stop_acquiring();
        let token = self.env.next_id();
        self.acquire(attempt.in_mode(mode, token));
    }

    /// Gives up the slot's token, as no request waits any longer. A holder stays.
    fn stop_acquiring(&mut self) {
        let given_up = match self.slot.state {
            State::Acquiring { attempt, .. } => Some((attempt.token, attempt.queued())),
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
        if holding.lingers() {
            self.let_go(S::default());
            return;
        }
        (holding.renewing, holding.recheck) = (true, false);
        let (token, mode) = (holding.token, holding.mode);
        self.send(Command::Renew { token, mode });
    }

    /// Checks a held lock to which something may have happened.
    fn check(&mut self) {
        let State::Holding(holding) = &mut self.slot.state else {
            return;
        };
        holding.recheck = holding.renewing || holding.checking;
        if holding.recheck {
            return;
        }
        if holding.mode.is_shared() {
            self.renew();
        } else {
            holding.checking = true;
            let token = holding.token;
            self.send(Command::Check { token });
        }
    }

    /// Another process waits for the lock.
    fn contend(&mut self) {
        if let State::Holding(holding) = &mut self.slot.state {
            holding.contend(self.env);
            if holding.lingers() {
                self.let_go(S::default());
            }
        }
    }

    /// Tells all holders until when they have the lock now.
    fn extend_leases(&mut self) {
        if let State::Holding(holding) = &self.slot.state {
            let leases = holding.leases();
            self.effects
                .extend(leases.map(|(lease, until)| Effect::Extend { lease, until }));
        }
    }

    /// All holders have lost the lock.
    fn lose(&mut self, reason: LostReason) {
        let State::Holding(holding) = &self.slot.state else {
            return;
        };
        // No holder is left to release it, and a renewal may have been carried out meanwhile.
        if holding.lingers() {
            self.let_go(S::default());
            return;
        }
        // A holder whose record is in flight is done, and need not be told.
        if !holding.completing {
            let leases = holding.leases();
            self.effects
                .extend(leases.map(|(lease, _)| Effect::Lose { lease, reason }));
        }
        self.end_hold();
    }

    /// Those lose the lock that have held it for as long as they may. They have known the end from
    /// the clock, whatever they do, and have had the time to stop: if none is left that shares the
    /// lock, others need not wait until the lease expires.
    fn lose_overdue(&mut self) {
        let State::Holding(holding) = &mut self.slot.state else {
            return;
        };
        let now = self.env.now;
        let is_over = |holder: &&Holder| now >= holder.over_at;
        let count = holding.holders.iter().take_while(is_over).count();
        let (reason, completing) = (LostReason::MaxHold, holding.completing);
        for Holder { lease, .. } in holding.holders.drain(..count) {
            if !completing {
                self.effects.push(Effect::Lose { lease, reason });
            }
        }
        if holding.lingers() {
            let token = holding.token;
            self.send(Command::Release {
                token,
                contended: true,
                queued: false,
                reply: S::default(),
            });
            self.end_hold();
        }
    }

    /// Releases the lock. Requests that wait acquire anew.
    fn let_go(&mut self, reply: S) {
        let State::Holding(holding) = &self.slot.state else {
            return;
        };
        let (token, is_shared) = (holding.token, holding.mode.is_shared());
        let (contended, waits) = (holding.contended.is_some(), !self.slot.waiters.is_empty());
        if contended {
            self.slot.expect_others(self.env);
        }
        let release = Effect::Send(Command::Release {
            token,
            contended: waits || self.slot.expects_others(self.env),
            queued: is_shared,
            reply,
        });
        self.end_hold();
        // If other processes wait, the release goes behind that acquire: the next holder is to
        // learn from its grant that this process waits again. If none waits, the release goes
        // first, and the acquire takes the free lock.
        let place = self.effects.len() - usize::from(waits && !contended);
        self.effects.insert(place, release);
    }

    /// Ends the hold. Requests that wait acquire anew.
    fn end_hold(&mut self) {
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
        self.reject_impatient_if(kind, |_| true);
    }

    fn reject_impatient_if(&mut self, kind: ErrorKind, is_out: impl Fn(Mode) -> bool) {
        if self.slot.impatient == 0 {
            return;
        }
        let is_out = |waiter: &Waiter<W>| !waiter.patient && is_out(waiter.mode);
        for waiter in self.slot.waiters.take_if(is_out) {
            self.slot.impatient -= 1;
            self.reject(waiter.handle, Error::of(kind));
        }
    }
}
