//! What the store tells unasked.

use super::super::State;
use super::Machine;
use crate::store::{Command, Granted, Notice};

impl<W, R, S: Default> Machine<'_, W, R, S> {
    /// The store has sent a notice.
    pub(crate) fn notice(&mut self, notice: Notice) {
        match notice {
            Notice::Changed => self.changed(),
            Notice::Granted(granted) => self.granted(granted),
            Notice::Contended { token } => self.contended(token),
        }
    }

    /// Another client changed or deleted the lock.
    fn changed(&mut self) {
        match &mut self.slot.state {
            State::Queued { .. } => self.acquire_again(false),
            State::Acquiring { recheck, .. } => *recheck = true,
            State::Holding(_) => self.check(),
            State::Idle | State::Backoff { .. } => {}
        }
    }

    /// The store gave the lock to a token of this process.
    fn granted(&mut self, granted: Granted) {
        let token = granted.token;
        match &mut self.slot.state {
            State::Queued { token: queued, .. } if *queued == token => self.hold_granted(granted),
            State::Acquiring {
                attempt, recheck, ..
            } if attempt.token == token => *recheck = true,
            // The reply to an acquire has said so already.
            State::Holding(holding) if holding.token == token => {}
            _ => self.release_stray(token),
        }
    }

    /// Another process waits for the lock that this token holds.
    fn contended(&mut self, token: u64) {
        match &mut self.slot.state {
            State::Queued { token: queued, .. } if *queued == token => {
                self.acquire_again(false);
            }
            State::Acquiring {
                attempt, contended, ..
            } if attempt.token == token => *contended = true,
            State::Holding(holding) if holding.token == token => self.contend(),
            _ => self.release_stray(token),
        }
    }

    /// Releases a lock that the store has given to this process, and that no request here uses: the
    /// grant came too late, or an acquire was carried out after its own release, over a connection
    /// that broke. The lock goes to the next in the queue.
    fn release_stray(&mut self, token: u64) {
        self.send(Command::Release {
            token,
            contended: true,
            queued: false,
            reply: S::default(),
        });
    }

    /// The store has a new connection. Notices may have been missed: the slot renews or acquires.
    pub(crate) fn reconnected(&mut self) {
        match &mut self.slot.state {
            // The lease was not renewed while there was no connection.
            State::Holding(holding) if !holding.renewing => self.renew(),
            State::Holding(holding) => holding.recheck = true,
            State::Queued { .. } => self.acquire_again(false),
            State::Backoff { .. } => self.acquire_after_failure(),
            State::Idle | State::Acquiring { .. } => {}
        }
    }
}
