//! What holders do.

use std::time::Duration;

use super::super::{Effect, State};
use super::Machine;
use crate::lease::{Grant, GrantPath};
use crate::mode::Mode;
use crate::store::Command;

impl<W, R, S: Default> Machine<'_, W, R, S> {
    /// A holder is done. `reply` tells it how the release went. A share that no request holds then
    /// may linger, unless the holder wants to know that others find the lock free.
    pub(crate) fn finished(&mut self, grant: Grant, reply: S, may_linger: bool) {
        let Some(holding) = self.slot.state.held_by(grant.lease) else {
            self.release_lost(grant, reply);
            return;
        };
        let lease = grant.lease;
        let first = self.slot.waiters.first().map(|first| first.mode);
        if holding.mode.is_shared() {
            self.share_finished(lease, reply, may_linger);
        } else if first == Some(Mode::Exclusive) && holding.may_hand_on(self.env) {
            holding.hand_on();
            self.grant(GrantPath::Local);
            self.effects.push(Effect::HandedOn { lease, reply });
        } else {
            self.let_go(reply);
        }
    }

    /// One of those that share the lock is done. The last one leaves it to the next that wait. If
    /// none waits, the hold lingers.
    fn share_finished(&mut self, lease: u64, reply: S, may_linger: bool) {
        let State::Holding(holding) = &mut self.slot.state else {
            return;
        };
        let place = holding.place_of(lease);
        holding.holders.remove(place.expect("it holds the lock"));
        let is_kept = may_linger && self.slot.waiters.is_empty() && holding.may_admit(self.env);
        if holding.lingers() && !is_kept {
            self.let_go(reply);
        } else {
            holding.linger(self.env);
            self.effects.push(Effect::HandedOn { lease, reply });
        }
    }

    /// A holder is done, except that its record is still to be written, which takes at most `time`.
    pub(crate) fn recording(&mut self, lease: u64, time: Duration) {
        if let Some(holding) = self.slot.state.held_by(lease) {
            holding.prolong(self.env, time);
            self.extend_leases();
        }
    }

    /// A holder puts a record in the lock's place. `reply` tells it how that went. Returns whether
    /// the lock was still held here.
    pub(crate) fn completed(&mut self, grant: Grant, record: R, reply: S) -> bool {
        let Some(holding) = self.slot.state.held_by(grant.lease) else {
            self.release_lost(grant, reply);
            return false;
        };
        // However long its holder took, there must be time left: the store may refuse the record
        // for a moment.
        holding.complete(self.env);
        let token = holding.token;
        self.send(Command::Complete {
            token,
            record,
            reply,
        });
        true
    }

    /// Releases a lock that the slot gave up as lost: if it has not expired in the store yet,
    /// others need not wait until then.
    fn release_lost(&mut self, grant: Grant, reply: S) {
        let Grant { token, lease, .. } = grant;
        match self.slot.state.held_as(token) {
            // Others share it.
            Some(holding) if holding.mode.is_shared() => {
                self.effects.push(Effect::HandedOn { lease, reply });
                return;
            }
            // A record in flight, or a later lease, needs this token.
            Some(_) => return,
            None => {}
        }
        self.send(Command::Release {
            token,
            contended: false,
            queued: true,
            reply,
        });
    }
}
