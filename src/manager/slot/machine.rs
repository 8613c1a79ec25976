//! [`Machine`]: what a slot does at each event.

use std::time::Duration;

use super::{AcquireAttempt, Effect, Effects, Env, Holding, Rules, Slot, State, Waiter};
use crate::error::{Error, ErrorKind};
use crate::lease::{Grant, LostReason};
use crate::store::{Command, Failure, Granted, Notice, Outcome, Reply};

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

/// Requests.
impl<W, R, S: Default> Machine<'_, W, R, S> {
    /// Returns a number that was never used before.
    pub(crate) fn next_id(&self) -> u64 {
        self.env.next_id()
    }

    /// A request for the lock has come: for now (not `patient`), or for when it is its turn.
    pub(crate) fn request(&mut self, number: u64, handle: W, patient: bool) {
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
        self.slot.waiters.push(number, Waiter { handle, patient });
        if matches!(self.slot.state, State::Idle) {
            let token = self.env.next_id();
            self.acquire(AcquireAttempt::first(token, patient));
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
        }
    }

    /// Returns the error for a waiter whose time is over. Either others held the lock, or the lock
    /// may well be free, and the store has not replied.
    pub(crate) fn overdue(&self) -> ErrorKind {
        match self.slot.state {
            State::Acquiring { attempt, .. } if attempt.unanswered => ErrorKind::Unavailable,
            State::Backoff { .. } => ErrorKind::Unavailable,
            _ => ErrorKind::TimedOut,
        }
    }

    /// Rejects every waiter with the same error. A holder stays.
    pub(crate) fn reject_all(&mut self, error: &Error) {
        self.reject_waiting(error);
        self.stop_acquiring();
    }
}

/// Holders.
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
                reply,
            });
        } else if holding.may_hand_on(self.env) {
            holding.hand_on(self.env);
            let holding = *holding;
            self.grant_first(holding);
            self.effects.push(Effect::HandedOn { reply });
        } else {
            let (token, contended) = (holding.token, holding.contended.is_some());
            let release = Effect::Send(Command::Release {
                token,
                contended: true,
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
            reply,
        });
    }
}

/// The store.
impl<W, R, S: Default> Machine<'_, W, R, S> {
    /// A command has ended: with a reply of the store, or without one.
    pub(crate) fn replied(&mut self, command: Command<(), ()>, outcome: Outcome) {
        match command {
            Command::Acquire { token, .. } => self.acquire_replied(token, outcome),
            Command::Renew { token } => self.renew_replied(token, &outcome),
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
                    self.release(token);
                }
                return;
            }
        };
        match outcome.result {
            Ok(Reply::Acquired {
                fence,
                contended: also,
            }) => {
                let valid_until = outcome.sent_at + Rules::validity(self.env.rules.ttl);
                if valid_until <= self.env.now {
                    // The reply came too late to be of use.
                    self.release(token);
                    self.acquire_failed(attempt, &unavailable());
                    return;
                }
                let renew_at = self.env.now + self.env.rules.first_renewal();
                let contended = contended || also;
                let holding =
                    Holding::new(self.env, token, fence, valid_until, renew_at, contended);
                self.grant_first(holding);
                self.reject_impatient(ErrorKind::Held);
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
                self.release(token);
                self.acquire_failed(attempt, &unavailable());
            }
            Err(Failure { error, unknown }) => {
                // The token is never used again: its release may come late, over the connection
                // that broke.
                if unknown {
                    self.release(token);
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
        self.reject_impatient(ErrorKind::Held);
        if attempt.first && attempt.queue && !self.env.has_room {
            // Until now, the first request did not count as waiting: the lock might have been free.
            // Those behind it did.
            if let Some(first) = self.slot.waiters.pop() {
                self.reject(first.handle, Error::of(ErrorKind::QueueFull));
            }
        }
        let token = attempt.token;
        if self.slot.waiters.is_empty() {
            self.slot.state = State::Idle;
            if attempt.queue {
                self.release(token);
            }
        } else if recheck || !attempt.queue || foreign && !attempt.watch {
            self.acquire(AcquireAttempt::again(token, foreign));
        } else {
            let poll_in =
                remaining.map_or(self.env.rules.ttl, |left| left + Duration::from_millis(1));
            self.slot.state = State::Queued {
                token,
                poll_at: self.env.now + poll_in,
            };
        }
    }

    /// Ends an acquire that had no reply of any use. Requests that have just come are rejected.
    /// Those that waited before go on to wait.
    fn acquire_failed(&mut self, attempt: AcquireAttempt, error: &Error) {
        match attempt.first {
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
                if contended {
                    holding.contend(self.env);
                }
                let (until, recheck) = (holding.until(), holding.recheck);
                self.effects.push(Effect::Extend { until });
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
            self.release(token);
        }
        // Waiters get the record if it was put there, and the lock if it was lost.
        self.let_go();
    }

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
            State::Queued { token, .. } => {
                let token = *token;
                self.acquire(AcquireAttempt::again(token, false));
            }
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

    fn hold_granted(&mut self, granted: Granted) {
        let Granted { token, fence, .. } = granted;
        let ttl = granted.ttl.min(self.env.rules.grant_ttl);
        let valid_until = granted.after.map(|after| after + Rules::validity(ttl));
        let least = self.env.now + Rules::worth_acting_upon(ttl);
        match valid_until.filter(|until| *until > least) {
            Some(until) => {
                let renew_at = self.env.now + Rules::first_renewal_of_grant(ttl);
                let contended = granted.contended;
                let holding = Holding::new(self.env, token, fence, until, renew_at, contended);
                self.grant_first(holding);
            }
            // The grant may have run out by now.
            None => self.acquire(AcquireAttempt::again(token, false)),
        }
    }

    /// Another process waits for the lock that this token holds.
    fn contended(&mut self, token: u64) {
        match &mut self.slot.state {
            State::Queued { token: queued, .. } if *queued == token => {
                self.acquire(AcquireAttempt::again(token, false));
            }
            State::Acquiring {
                attempt, contended, ..
            } if attempt.token == token => *contended = true,
            State::Holding(holding) if holding.token == token => holding.contend(self.env),
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
            reply: S::default(),
        });
    }

    /// The store has a new connection. Notices may have been missed: the slot renews or acquires.
    pub(crate) fn reconnected(&mut self) {
        match &mut self.slot.state {
            // The lease was not renewed while there was no connection.
            State::Holding(holding) if !holding.renewing => self.renew(),
            State::Holding(holding) => holding.recheck = true,
            State::Queued { token, .. } => {
                let token = *token;
                self.acquire(AcquireAttempt::again(token, false));
            }
            State::Backoff { .. } => self.acquire_after_failure(),
            State::Idle | State::Acquiring { .. } => {}
        }
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
        let token = match self.slot.state {
            State::Acquiring { attempt, .. } => Some(attempt.token),
            State::Queued { token, .. } => Some(token),
            State::Backoff { .. } => None,
            State::Idle | State::Holding(_) => return,
        };
        self.slot.state = State::Idle;
        if let Some(token) = token {
            self.release(token);
        }
    }

    /// Releases a token that may have nothing, or whose lock no process is known to wait for.
    fn release(&mut self, token: u64) {
        self.send(Command::Release {
            token,
            contended: false,
            reply: S::default(),
        });
    }

    fn renew(&mut self) {
        let State::Holding(holding) = &mut self.slot.state else {
            return;
        };
        (holding.renewing, holding.recheck) = (true, false);
        let token = holding.token;
        self.send(Command::Renew { token });
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

    /// Gives the lock to the first waiter. Without one, the lock is released.
    fn grant_first(&mut self, holding: Holding) {
        let Some(first) = self.slot.waiters.pop() else {
            self.slot.state = State::Idle;
            self.release(holding.token);
            return;
        };
        self.slot.impatient -= usize::from(!first.patient);
        self.effects.push(Effect::Grant {
            waiter: first.handle,
            grant: holding.grant(),
        });
        self.slot.state = State::Holding(holding);
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

fn unavailable() -> Error {
    Error::of(ErrorKind::Unavailable)
}
