//! What holders do.

use std::time::Duration;

use super::super::{Effect, State};
use super::Machine;
use crate::lease::{Grant, GrantPath};
use crate::store::Command;

impl<W, R, S: Default> Machine<'_, W, R, S> {
    /// A holder is done. `reply` tells it how the release went.
    pub(crate) fn finished(&mut self, grant: Grant, reply: S) {
        let Some(holding) = self.slot.state.held_by(grant.lease) else {
            self.release_lost(grant.token, reply);
            return;
        };
        if self.slot.waiters.is_empty() {
            let (token, contended) = (holding.token, holding.contended.is_some());
            self.slot.state = State::Idle;
            self.send(Command::Release {
                token,
                contended,
                queued: false,
                reply,
            });
        } else if holding.may_hand_on(self.env) {
            holding.hand_on(self.env);
            let holding = *holding;
            self.grant_first(holding, GrantPath::Local);
            self.effects.push(Effect::HandedOn { reply });
        } else {
            let (token, contended) = (holding.token, holding.contended.is_some());
            let release = Effect::Send(Command::Release {
                token,
                contended: true,
                queued: false,
                reply,
            });
            self.acquire_anew();
            // If other processes wait, the release goes behind that acquire: the next holder is to
            // learn from its grant that this process waits again. If none waits, the release goes
            // first, and the acquire takes the free lock.
            let place = self.effects.len() - usize::from(!contended);
            self.effects.insert(place, release);
        }
    }

    /// A holder is done, except that its record is still to be written, which takes at most `time`.
    pub(crate) fn recording(&mut self, lease: u64, time: Duration) {
        if let Some(holding) = self.slot.state.held_by(lease) {
            holding.prolong(self.env, time);
            let until = holding.until();
            self.effects.push(Effect::Extend { until });
        }
    }

    /// A holder puts a record in the lock's place. `reply` tells it how that went. Returns whether
    /// the lock was still held here.
    pub(crate) fn completed(&mut self, grant: Grant, record: R, reply: S) -> bool {
        let Some(holding) = self.slot.state.held_by(grant.lease) else {
            self.release_lost(grant.token, reply);
            return false;
        };
        holding.completing = true;
        // However long its holder took, there must be time left: the store may refuse the record
        // for a moment.
        holding.over_at = holding.over_at.max(self.env.now + self.env.rules.ttl);
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
    fn release_lost(&mut self, token: u64, reply: S) {
        // A record in flight, or a later lease, needs this token.
        if self.slot.holds(token) {
            return;
        }
        self.send(Command::Release {
            token,
            contended: false,
            queued: true,
            reply,
        });
    }
}
