//! The grant: which requests get the lock that the store has given to this process.

use super::super::{AcquireAttempt, Effect, Holding, Rules, State};
use super::Machine;
use crate::clock::Time;
use crate::error::{Error, ErrorKind};
use crate::lease::GrantPath;
use crate::store::Granted;

impl<W, R, S: Default> Machine<'_, W, R, S> {
    /// Holds a lock that was acquired by a command sent then, unless its reply came too late to be
    /// of use. Returns whether it holds.
    pub(super) fn hold_acquired(
        &mut self,
        attempt: AcquireAttempt,
        fence: u64,
        sent_at: Time,
        contended: bool,
    ) -> bool {
        let AcquireAttempt { token, mode, .. } = attempt;
        let valid_until = sent_at + Rules::validity(self.env.rules.ttl);
        if valid_until <= self.env.now {
            self.release(token, mode.is_shared());
            return false;
        }
        let path = match attempt.for_new_requests {
            true => GrantPath::Uncontended,
            false => GrantPath::Polled,
        };
        if path == GrantPath::Polled {
            self.slot.expect_others(self.env);
        }
        let renew_at = self.env.now + self.env.rules.first_renewal(mode);
        let holding = Holding::new(
            self.env,
            token,
            mode,
            fence,
            valid_until,
            renew_at,
            contended,
        );
        self.slot.state = State::Holding(holding);
        self.grant(path);
        true
    }

    /// Holds a lock that the store has given to the token in its queue, if enough of that grant is
    /// left.
    pub(super) fn hold_granted(&mut self, granted: Granted) {
        let State::Queued { token, mode, .. } = self.slot.state else {
            return;
        };
        let ttl = granted.ttl.min(self.env.rules.grant_ttl);
        let valid_until = granted.after.map(|after| after + Rules::validity(ttl));
        let least = self.env.now + Rules::worth_acting_upon(ttl);
        match valid_until.filter(|until| *until > least) {
            Some(until) => {
                self.slot.expect_others(self.env);
                let renew_at = self.env.now + Rules::first_renewal_of_grant(ttl);
                let holding = Holding::new(
                    self.env,
                    token,
                    mode,
                    granted.fence,
                    until,
                    renew_at,
                    granted.contended,
                );
                self.slot.state = State::Holding(holding);
                self.grant(GrantPath::Granted);
            }
            // The grant may have run out by now.
            None => self.acquire_again(false),
        }
    }

    /// Gives the lock that the slot holds to the first waiter, or to all that would share it, up to
    /// the first that would not. Without a holder then, the lock is released.
    pub(super) fn grant(&mut self, path: GrantPath) {
        let State::Holding(holding) = &mut self.slot.state else {
            return;
        };
        let is_shared = holding.mode.is_shared();
        while let Some(first) = self.slot.waiters.first() {
            let is_in = match is_shared {
                true => first.mode.is_shared(),
                false => holding.holders.is_empty(),
            };
            if !is_in && (!is_shared || first.patient) {
                break;
            }
            let Some(first) = self.slot.waiters.pop() else {
                break;
            };
            self.slot.impatient -= usize::from(!first.patient);
            let waiter = first.handle;
            self.effects.push(match is_in {
                true => Effect::Grant {
                    waiter,
                    grant: holding.grant(self.env),
                    path,
                },
                // It would have the lock alone, now, and does not keep those behind it out.
                false => Effect::Reject {
                    waiter,
                    error: Error::of(ErrorKind::Held),
                },
            });
        }
        if holding.lingers() {
            self.let_go(S::default());
        }
    }
}
