//! The grant: which request gets the lock that the store has given to this process.

use super::super::{AcquireAttempt, Effect, Holding, Rules, State};
use super::Machine;
use crate::clock::Time;
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
        let valid_until = sent_at + Rules::validity(self.env.rules.ttl);
        if valid_until <= self.env.now {
            self.release(attempt.token, false);
            return false;
        }
        let token = attempt.token;
        let path = match attempt.for_new_requests {
            true => GrantPath::Uncontended,
            false => GrantPath::Polled,
        };
        let renew_at = self.env.now + self.env.rules.first_renewal();
        let holding = Holding::new(self.env, token, fence, valid_until, renew_at, contended);
        self.grant_first(holding, path);
        true
    }

    /// Holds a lock that the store has given to a token in its queue, if enough of that grant is
    /// left.
    pub(super) fn hold_granted(&mut self, granted: Granted) {
        let Granted { token, fence, .. } = granted;
        let ttl = granted.ttl.min(self.env.rules.grant_ttl);
        let valid_until = granted.after.map(|after| after + Rules::validity(ttl));
        let least = self.env.now + Rules::worth_acting_upon(ttl);
        match valid_until.filter(|until| *until > least) {
            Some(until) => {
                let renew_at = self.env.now + Rules::first_renewal_of_grant(ttl);
                let contended = granted.contended;
                let holding = Holding::new(self.env, token, fence, until, renew_at, contended);
                self.grant_first(holding, GrantPath::Granted);
            }
            // The grant may have run out by now.
            None => self.acquire(AcquireAttempt::again(token, false)),
        }
    }

    /// Gives the lock to the first waiter. Without one, the lock is released.
    pub(super) fn grant_first(&mut self, holding: Holding, path: GrantPath) {
        let Some(first) = self.slot.waiters.pop() else {
            self.slot.state = State::Idle;
            self.release(holding.token, false);
            return;
        };
        self.slot.impatient -= usize::from(!first.patient);
        self.effects.push(Effect::Grant {
            waiter: first.handle,
            grant: holding.grant(),
            path,
        });
        self.slot.state = State::Holding(holding);
    }
}
