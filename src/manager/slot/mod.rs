//! The state machine of one key in one process: who holds, who waits, what is asked of the store.
//!
//! Pure: it gets events and the time, and returns [`Effect`]s. It has no I/O, no clock and no lock of its own, so
//! that it can be tested under any order of events.
//!
//! At any moment one token of this process at the most holds the lock in the store, waits there, or is
//! being asked for. Requests queue up here, in order of arrival, and the lease passes from one to the next.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use smallvec::SmallVec;

use super::waiters::Waiters;
use crate::clock::Time;
use crate::error::{Error, ErrorKind};
use crate::lease::{Grant, LostReason};
use crate::store::{Answer, Command, Failure, Granted, Notice, Outcome};

/// How many fencing tokens one fence of the store stands for: one for each hand-off in this process.
pub(crate) const HANDOFFS_PER_FENCE: u64 = 1 << 10;

/// How long waiters rest at the most when the store did not answer: the lock may be free.
const MAX_REST: Duration = Duration::from_secs(1);

/// The settings that decide what a slot does.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    /// Time to live of a lease in the store.
    pub(crate) ttl: Duration,
    /// Time between renewals.
    pub(crate) renewal: Duration,
    /// How long one holder may hold.
    pub(crate) max_hold: Duration,
    /// Time to live of a grant in the store, until its process says that it is there.
    pub(crate) grant_ttl: Duration,
    /// Waiters of this process for one key.
    pub(crate) max_waiters: usize,
    /// While another process waits: how many hand-offs in this process may go before it…
    pub(crate) burst: u32,
    /// …and for how long.
    pub(crate) burst_time: Duration,
}

impl Rules {
    /// How long a lease with that time to live is trusted, counted from before the store gave it.
    ///
    /// Less than the time to live by the rate at which two clocks may drift apart (1 % and 2 ms, the figures of
    /// the Redlock description) and by the time that the signal of a loss may take to be acted upon.
    pub(crate) fn trust(ttl: Duration) -> Duration {
        let drift = ttl / 100 + Duration::from_millis(2);
        ttl.saturating_sub(drift + Self::margin(ttl))
    }

    /// How long the signal of a loss may take to be acted upon.
    fn margin(ttl: Duration) -> Duration {
        (ttl / 20).min(Duration::from_millis(100))
    }

    /// When a holder that may hold until `limit` is told so by the clock, and when the lock can go to another then.
    fn ends_of_hold(&self, limit: Time) -> (Time, Time) {
        (limit, limit + Self::margin(self.ttl))
    }

    /// When a fresh lease is looked at for the first time: soon, because from then on the
    /// store tells at once when somebody else changes the lock.
    fn first_check(&self) -> Duration {
        self.renewal.min(Duration::from_millis(100))
    }

    /// When a grant is renewed for the first time: before long, as little of it may be left. Most
    /// holders of a lock that others wait for have passed it on before.
    fn first_renewal_of_grant(ttl: Duration) -> Duration {
        ttl / 40
    }

    /// A grant that is trusted for less than this is confirmed before it is acted upon.
    fn worth_acting_upon(ttl: Duration) -> Duration {
        ttl / 2
    }

    /// A lease that is trusted for less than this is not handed on.
    fn worth_handing_on(&self) -> Duration {
        self.grant_ttl / 4
    }

    /// When to try again what failed.
    fn soon(&self) -> Duration {
        self.renewal / 8
    }
}

/// What the machine needs from around it.
pub(crate) struct Env<'a> {
    pub(crate) now: Time,
    pub(crate) rules: &'a Rules,
    /// Source of tokens and lease numbers; never gives the same number twice.
    pub(crate) ids: &'a AtomicU64,
    /// Whether more requests of this process may wait, whatever their keys.
    pub(crate) has_room: bool,
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Waiting {
    /// How many requests.
    pub(crate) requests: usize,
    /// Whether a token of theirs is in the store's queue.
    pub(crate) in_store: bool,
}

impl Env<'_> {
    fn next_id(&self) -> u64 {
        self.ids.fetch_add(1, Ordering::Relaxed)
    }
}

/// What the machine wants done. `W` is whatever stands for a waiting request.
#[derive(Debug)]
pub(crate) enum Effect<W> {
    Send(Command),
    Grant {
        waiter: W,
        grant: Grant,
    },
    Reject {
        waiter: W,
        error: Error,
    },
    /// There is a record in the lock's place.
    Replay {
        waiter: W,
        record: Bytes,
    },
    /// The current holder's lease is good until then.
    Extend {
        until: Time,
    },
    /// The current holder has lost the lock.
    Lose {
        reason: LostReason,
    },
}

/// What follows from one event: rarely more than this.
pub(crate) type Effects<W> = SmallVec<[Effect<W>; 2]>;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Slot<W> {
    state: State,
    waiters: Waiters<Waiter<W>>,
    /// How many of them are not patient.
    impatient: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Waiter<W> {
    handle: W,
    patient: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum State {
    Idle,
    /// An acquire is on its way.
    Asking {
        question: Question,
        /// Ask once more if the answer is "held": the lock was granted or freed in the meantime.
        hinted: bool,
        /// Another process began to wait in the meantime.
        wanted: bool,
    },
    /// The store has this token in its queue. Ask again at `poll_at`, should no grant come.
    Queued {
        token: u64,
        poll_at: Time,
    },
    /// The store did not answer. Ask anew then.
    Resting {
        until: Time,
    },
    Held(Held),
}

/// See [`Command::Acquire`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Question {
    token: u64,
    queue: bool,
    watch: bool,
    again: bool,
    /// Nobody waits for the answer yet: the requests have just come.
    first: bool,
    /// The store has not said anything since the requests came, or since it failed them: the lock may
    /// well be free.
    unanswered: bool,
}

impl Question {
    fn first(token: u64, queue: bool) -> Self {
        Self {
            token,
            queue,
            watch: false,
            again: false,
            first: true,
            unanswered: true,
        }
    }

    /// For requests that wait already, with a token that the store has not seen yet.
    fn anew(token: u64) -> Self {
        Self {
            first: false,
            unanswered: false,
            ..Self::first(token, true)
        }
    }

    /// The same, after the store has failed to answer.
    fn after_failure(token: u64) -> Self {
        Self {
            unanswered: true,
            ..Self::anew(token)
        }
    }

    fn again(token: u64, watch: bool) -> Self {
        Self {
            token,
            queue: true,
            watch,
            again: true,
            first: false,
            unanswered: false,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Held {
    token: u64,
    lease: u64,
    fencing_token: u64,
    /// The last fencing token before the store has to give a new fence.
    last_fencing_token: u64,
    /// How long this process trusts that the store will not give the lock away.
    trusted_until: Time,
    /// Its holder knows from the clock that it is lost then.
    limit: Time,
    /// The lock is let go then: the holder has had the time to stop.
    over_at: Time,
    renew_at: Time,
    renewing: bool,
    checking: bool,
    /// Check once more after that: something changed in the meantime.
    hinted: bool,
    /// The holder is done, and its record is on its way to the lock's place. Until the store has said
    /// what became of that, the lock stays this token's: released, it would let another run begin.
    completing: bool,
    wanted: Option<Burst>,
}

/// The hand-offs that still go before another process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Burst {
    left: u32,
    ends: Time,
}

impl Burst {
    fn begin(env: &Env<'_>) -> Self {
        Self {
            left: env.rules.burst,
            ends: env.now + env.rules.burst_time,
        }
    }
}

impl State {
    fn held(&mut self, lease: u64) -> Option<&mut Held> {
        match self {
            Self::Held(held) if held.lease == lease && !held.completing => Some(held),
            _ => None,
        }
    }

    /// Under that name, in the store: for a holder, or for a record that is on its way.
    fn held_as(&mut self, token: u64) -> Option<&mut Held> {
        match self {
            Self::Held(held) if held.token == token => Some(held),
            _ => None,
        }
    }
}

impl<W> Default for Slot<W> {
    fn default() -> Self {
        Self {
            state: State::Idle,
            waiters: Waiters::default(),
            impatient: 0,
        }
    }
}

impl<W> Slot<W> {
    /// Who waits.
    pub(crate) fn waiting(&self) -> Waiting {
        let asks = matches!(self.state, State::Asking { question, .. } if question.first)
            && self.waiters.first().is_some_and(|first| first.patient);
        Waiting {
            requests: self.waiters.len() - self.impatient - usize::from(asks),
            in_store: matches!(self.state, State::Queued { .. }),
        }
    }

    /// Whether nothing would be forgotten if this slot were.
    pub(crate) fn is_idle(&self) -> bool {
        matches!(self.state, State::Idle)
    }

    /// Whether the lock is this token's, for a holder or for a record that is on its way.
    pub(crate) fn holds(&self, token: u64) -> bool {
        matches!(&self.state, State::Held(held) if held.token == token)
    }

    /// A request wants the lock: now (not `patient`), or as soon as it is its turn.
    pub(crate) fn request(
        &mut self,
        env: &Env<'_>,
        number: u64,
        handle: W,
        patient: bool,
        effects: &mut Effects<W>,
    ) {
        let reject = match self.state {
            State::Held(_) | State::Queued { .. } if !patient => Some(ErrorKind::Held),
            State::Resting { .. } if !patient => Some(ErrorKind::Unavailable),
            State::Idle => None,
            _ if patient && !(env.has_room && self.waiters.len() < env.rules.max_waiters) => {
                Some(ErrorKind::QueueFull)
            }
            _ => None,
        };
        if let Some(kind) = reject {
            effects.push(Effect::Reject {
                waiter: handle,
                error: Error::of(kind),
            });
            return;
        }
        self.impatient += usize::from(!patient);
        self.waiters.push(number, Waiter { handle, patient });
        if matches!(self.state, State::Idle) {
            self.ask(Question::first(env.next_id(), patient), effects);
        }
    }

    /// A request no longer wants the lock, and did not get it.
    pub(crate) fn cancel(&mut self, number: u64, effects: &mut Effects<W>) {
        let Some(waiter) = self.waiters.remove(number) else {
            return;
        };
        self.impatient -= usize::from(!waiter.patient);
        if !self.waiters.is_empty() {
            return;
        }
        // Whatever comes of the question, this follows it on the same connection.
        self.stop_asking(effects);
    }

    /// A holder is done. Returns whether that concerned a lock that was still held.
    pub(crate) fn finished(&mut self, env: &Env<'_>, lease: u64, effects: &mut Effects<W>) -> bool {
        let Some(held) = self.state.held(lease) else {
            return false;
        };
        if self.waiters.is_empty() {
            let (token, wanted) = (held.token, held.wanted.is_some());
            self.state = State::Idle;
            effects.push(Effect::Send(Command::Release { token, wanted }));
        } else if held.may_hand_on(env) {
            held.lease = env.next_id();
            held.fencing_token += 1;
            let limit = env.now + env.rules.max_hold;
            (held.limit, held.over_at) = env.rules.ends_of_hold(limit);
            if let Some(burst) = &mut held.wanted {
                burst.left -= 1;
            }
            let held = *held;
            self.grant_first(held, effects);
        } else {
            let release = Effect::Send(Command::Release {
                token: held.token,
                wanted: true,
            });
            // Behind the processes that wait: they are to learn from their grant that this one waits again. Where none does,
            // the lock is taken again at once.
            let in_line = held.wanted.is_some();
            self.ask(Question::anew(env.next_id()), effects);
            let place = effects.len() - usize::from(!in_line);
            effects.insert(place, release);
        }
        true
    }

    /// A holder is done, but for its record, for which it takes so much time at most.
    pub(crate) fn recording(
        &mut self,
        env: &Env<'_>,
        lease: u64,
        time: Duration,
        effects: &mut Effects<W>,
    ) {
        if let Some(held) = self.state.held(lease) {
            let limit = held.limit.max(env.now + time);
            (held.limit, held.over_at) = env.rules.ends_of_hold(limit);
            let until = held.grant().until;
            effects.push(Effect::Extend { until });
        }
    }

    /// A holder puts a record in the lock's place. Returns whether that concerned a lock that was still held.
    pub(crate) fn completed(
        &mut self,
        env: &Env<'_>,
        lease: u64,
        effects: &mut Effects<W>,
    ) -> bool {
        let Some(held) = self.state.held(lease) else {
            return false;
        };
        held.completing = true;
        // However long its holder took, the store may refuse it for a moment.
        held.over_at = held.over_at.max(env.now + env.rules.ttl);
        let token = held.token;
        effects.push(Effect::Send(Command::Complete { token }));
        true
    }

    /// The store answered, or did not.
    pub(crate) fn answered(
        &mut self,
        env: &Env<'_>,
        command: Command,
        outcome: Outcome,
        effects: &mut Effects<W>,
    ) {
        match command {
            Command::Acquire { token, .. } => self.acquire_answered(env, token, outcome, effects),
            Command::Renew { token } => self.renew_answered(env, token, &outcome, effects),
            Command::Check { token } => self.check_answered(env, token, &outcome, effects),
            Command::Complete { token } => self.complete_answered(env, token, &outcome, effects),
            Command::Release { .. } => {}
        }
    }

    fn acquire_answered(
        &mut self,
        env: &Env<'_>,
        token: u64,
        outcome: Outcome,
        effects: &mut Effects<W>,
    ) {
        let (question, hinted, wanted) = match self.state {
            State::Asking {
                question,
                hinted,
                wanted,
            } if question.token == token => (question, hinted, wanted),
            // It was given up, and its release sent: behind it, but nobody can be sure which came first if
            // the connection broke or the script had to be loaded again.
            _ => {
                if let Ok(Answer::Acquired { .. }) = outcome.result {
                    effects.push(release(token));
                }
                return;
            }
        };
        match outcome.result {
            Ok(Answer::Acquired {
                fence,
                wanted: more,
            }) => {
                let trusted_until = outcome.sent_at + Rules::trust(env.rules.ttl);
                if trusted_until <= env.now {
                    // The answer came too late to be of use.
                    effects.push(release(token));
                    self.acquire_failed(env, question, &unavailable(), effects);
                    return;
                }
                let renew_at = env.now + env.rules.first_check();
                let held = Held::new(env, token, fence, trusted_until, renew_at);
                self.hold(env, held, wanted || more, effects);
                self.reject_impatient(ErrorKind::Held, effects);
            }
            Ok(Answer::Held { remaining, foreign }) => {
                self.reject_impatient(ErrorKind::Held, effects);
                if question.first && question.queue && !env.has_room {
                    // Whoever asked would have to wait now, as those behind it do already.
                    effects.extend(self.waiters.pop().map(|first| Effect::Reject {
                        waiter: first.handle,
                        error: Error::of(ErrorKind::QueueFull),
                    }));
                }
                if self.waiters.is_empty() {
                    self.state = State::Idle;
                    if question.queue {
                        effects.push(release(token));
                    }
                } else if hinted || !question.queue || foreign && !question.watch {
                    self.ask(Question::again(token, foreign), effects);
                } else {
                    let poll_in =
                        remaining.map_or(env.rules.ttl, |left| left + Duration::from_millis(1));
                    self.state = State::Queued {
                        token,
                        poll_at: env.now + poll_in,
                    };
                }
            }
            Ok(Answer::Recorded(record)) => {
                self.state = State::Idle;
                self.impatient = 0;
                let waiters = self.waiters.take_if(|_| true);
                effects.extend(waiters.into_iter().map(|waiter| Effect::Replay {
                    waiter: waiter.handle,
                    record: record.clone(),
                }));
            }
            // No answer to an acquire: whatever it means, the token may have the lock.
            Ok(_) => {
                effects.push(release(token));
                self.acquire_failed(env, question, &unavailable(), effects);
            }
            Err(Failure { error, unknown }) => {
                // Never to be asked for again: on the old connection, the store may get a release for it at any time.
                if unknown {
                    effects.push(release(token));
                }
                self.acquire_failed(env, question, &error, effects);
            }
        }
    }

    /// There is no answer of any use. Requests that have just come are told so, those that wait already go on to wait.
    fn acquire_failed(
        &mut self,
        env: &Env<'_>,
        question: Question,
        error: &Error,
        effects: &mut Effects<W>,
    ) {
        match question.first {
            true => self.reject_waiting(error, effects),
            false => self.reject_impatient(ErrorKind::Unavailable, effects),
        }
        let until = env.now + env.rules.soon().min(MAX_REST);
        self.state = match self.waiters.is_empty() {
            true => State::Idle,
            false => State::Resting { until },
        };
    }

    /// The lock is ours: the first waiter gets it.
    fn hold(&mut self, env: &Env<'_>, mut held: Held, wanted: bool, effects: &mut Effects<W>) {
        held.wanted = wanted.then(|| Burst::begin(env));
        self.grant_first(held, effects);
    }

    /// The store gave the lock to the token that waits there.
    fn granted(&mut self, env: &Env<'_>, granted: Granted, effects: &mut Effects<W>) {
        let Granted {
            token,
            fence,
            ttl,
            wanted,
            after,
        } = granted;
        let ttl = ttl.min(env.rules.grant_ttl);
        let trusted_until = after.map(|after| after + Rules::trust(ttl));
        match trusted_until.filter(|until| *until > env.now + Rules::worth_acting_upon(ttl)) {
            Some(until) => {
                let renew_at = env.now + Rules::first_renewal_of_grant(ttl);
                let held = Held::new(env, token, fence, until, renew_at);
                self.hold(env, held, wanted, effects);
            }
            // It may have run out by now.
            None => self.ask(Question::again(token, false), effects),
        }
    }

    fn renew_answered(
        &mut self,
        env: &Env<'_>,
        token: u64,
        outcome: &Outcome,
        effects: &mut Effects<W>,
    ) {
        let Some(held) = self.state.held_as(token) else {
            return;
        };
        held.renewing = false;
        match outcome.result {
            // Its holder was told already.
            Ok(Answer::Renewed { .. }) if env.now >= held.trusted_until => {
                self.lose(env, LostReason::Expired, effects);
            }
            Ok(Answer::Renewed { wanted }) => {
                held.trusted_until = held
                    .trusted_until
                    .max(outcome.sent_at + Rules::trust(env.rules.ttl));
                held.renew_at = outcome.sent_at + env.rules.renewal;
                if wanted {
                    held.wanted.get_or_insert_with(|| Burst::begin(env));
                }
                let until = held.grant().until;
                effects.push(Effect::Extend { until });
                if held.hinted {
                    held.check(effects);
                }
            }
            Ok(_) => self.found_gone(env, effects),
            // Not known to be lost: the lease is good until it runs out. Try again soon.
            Err(_) => held.renew_at = env.now + env.rules.soon(),
        }
    }

    fn check_answered(
        &mut self,
        env: &Env<'_>,
        token: u64,
        outcome: &Outcome,
        effects: &mut Effects<W>,
    ) {
        let Some(held) = self.state.held_as(token) else {
            return;
        };
        held.checking = false;
        match outcome.result {
            Ok(Answer::Intact) if held.hinted => held.check(effects),
            Ok(Answer::Intact) => {}
            Ok(_) => self.found_gone(env, effects),
            // The next renewal tells.
            Err(_) => held.hinted = false,
        }
    }

    /// The store says that the lock is not this token's any more.
    fn found_gone(&mut self, env: &Env<'_>, effects: &mut Effects<W>) {
        match &mut self.state {
            // Its record may be in its place: the answer to the completion says so, and there is nothing to renew.
            State::Held(held) if held.completing => held.renew_at = held.trusted_until,
            _ => self.lose(env, LostReason::Taken, effects),
        }
    }

    /// It is known what became of a record.
    fn complete_answered(
        &mut self,
        env: &Env<'_>,
        token: u64,
        outcome: &Outcome,
        effects: &mut Effects<W>,
    ) {
        if !self
            .state
            .held_as(token)
            .is_some_and(|held| held.completing)
        {
            return;
        }
        if outcome.result.is_err() {
            effects.push(release(token));
        }
        // Waiters get the record if it was put there, and the lock if it was lost.
        self.let_go(env, effects);
    }

    /// What a waiter is told whose time is over: that others held the lock, or that it may well be free and the store did not
    /// say.
    pub(crate) fn overdue(&self) -> ErrorKind {
        match self.state {
            State::Asking { question, .. } if question.unanswered => ErrorKind::Unavailable,
            State::Resting { .. } => ErrorKind::Unavailable,
            _ => ErrorKind::TimedOut,
        }
    }

    /// The store told something unasked.
    pub(crate) fn notice(&mut self, env: &Env<'_>, notice: Notice, effects: &mut Effects<W>) {
        match (&mut self.state, notice) {
            (&mut State::Queued { token, .. }, Notice::Changed) => {
                self.ask(Question::again(token, false), effects);
            }
            (State::Asking { hinted, .. }, Notice::Changed) => *hinted = true,
            (State::Held(held), Notice::Changed) => held.check(effects),
            (State::Idle | State::Resting { .. }, Notice::Changed) => {}

            (&mut State::Queued { token, .. }, Notice::Granted(granted))
                if token == granted.token =>
            {
                self.granted(env, granted, effects);
            }
            (&mut State::Queued { token, .. }, Notice::Wanted { token: owner })
                if token == owner =>
            {
                self.ask(Question::again(token, false), effects);
            }
            (
                State::Asking {
                    question, hinted, ..
                },
                Notice::Granted(granted),
            ) if question.token == granted.token => {
                *hinted = true;
            }
            (
                State::Asking {
                    question, wanted, ..
                },
                Notice::Wanted { token },
            ) if question.token == token => {
                *wanted = true;
            }
            (State::Held(held), Notice::Wanted { token }) if held.token == token => {
                held.wanted.get_or_insert_with(|| Burst::begin(env));
            }
            // Its lock is known already.
            (State::Held(held), Notice::Granted(granted)) if held.token == granted.token => {}
            // Nobody here has that lock or waits for it: a grant that comes too late, or a command that was carried out
            // after its own release, on a connection that broke. It goes to the next.
            (_, Notice::Granted(Granted { token, .. }) | Notice::Wanted { token }) => {
                let wanted = true;
                effects.push(Effect::Send(Command::Release { token, wanted }));
            }
        }
    }

    /// Time has passed.
    pub(crate) fn tick(&mut self, env: &Env<'_>, effects: &mut Effects<W>) {
        match &mut self.state {
            State::Held(held) => {
                if env.now >= held.over_at {
                    self.lose(env, LostReason::MaxHold, effects);
                } else if env.now >= held.trusted_until {
                    self.lose(env, LostReason::Expired, effects);
                } else if env.now >= held.renew_at && !held.renewing {
                    held.renew(effects);
                }
            }
            State::Queued { token, poll_at } if env.now >= *poll_at => {
                let token = *token;
                self.ask(Question::again(token, false), effects);
            }
            State::Resting { until } if env.now >= *until => {
                self.ask(Question::after_failure(env.next_id()), effects);
            }
            _ => {}
        }
    }

    /// Notices may have been missed: look at what the store has.
    pub(crate) fn reconnected(&mut self, env: &Env<'_>, effects: &mut Effects<W>) {
        match &mut self.state {
            // The lease was not renewed as long as there was no connection.
            State::Held(held) if !held.renewing => held.renew(effects),
            State::Held(held) => held.hinted = true,
            State::Queued { token, .. } => {
                let token = *token;
                self.ask(Question::again(token, false), effects);
            }
            State::Resting { .. } => self.ask(Question::after_failure(env.next_id()), effects),
            State::Idle | State::Asking { .. } => {}
        }
    }

    /// When [`tick`](Self::tick) next has something to do here.
    pub(crate) fn next_tick(&self) -> Option<Time> {
        match &self.state {
            State::Held(held) => {
                let end = held.over_at.min(held.trusted_until);
                Some(if held.renewing {
                    end
                } else {
                    end.min(held.renew_at)
                })
            }
            State::Queued { poll_at, .. } => Some(*poll_at),
            State::Resting { until } => Some(*until),
            State::Idle | State::Asking { .. } => None,
        }
    }

    /// Answers every waiter with the same error; a holder stays.
    pub(crate) fn reject_all(&mut self, error: &Error, effects: &mut Effects<W>) {
        self.reject_waiting(error, effects);
        self.stop_asking(effects);
    }

    fn ask(&mut self, question: Question, effects: &mut Effects<W>) {
        self.state = State::Asking {
            question,
            hinted: false,
            wanted: false,
        };
        effects.push(Effect::Send(Command::Acquire {
            token: question.token,
            queue: question.queue,
            watch: question.watch,
            again: question.again,
        }));
    }

    /// Nobody here waits any longer. A holder stays.
    fn stop_asking(&mut self, effects: &mut Effects<W>) {
        let token = match self.state {
            State::Asking { question, .. } => Some(question.token),
            State::Queued { token, .. } => Some(token),
            State::Resting { .. } => None,
            State::Idle | State::Held(_) => return,
        };
        self.state = State::Idle;
        effects.extend(token.map(release));
    }

    fn lose(&mut self, env: &Env<'_>, reason: LostReason, effects: &mut Effects<W>) {
        let State::Held(held) = &self.state else {
            return;
        };
        // A holder that is done is not told.
        if !held.completing {
            effects.push(Effect::Lose { reason });
        }
        // Its holder has known the end from the clock, whatever it does, and had the time to stop: others need not wait until
        // the lease expires.
        if reason == LostReason::MaxHold {
            let (token, wanted) = (held.token, true);
            effects.push(Effect::Send(Command::Release { token, wanted }));
        }
        self.let_go(env, effects);
    }

    /// Nothing is held any more: those who wait ask anew.
    fn let_go(&mut self, env: &Env<'_>, effects: &mut Effects<W>) {
        self.state = State::Idle;
        if !self.waiters.is_empty() {
            self.ask(Question::anew(env.next_id()), effects);
        }
    }

    /// The first waiter holds the lock now. If there is none, it is released.
    fn grant_first(&mut self, held: Held, effects: &mut Effects<W>) {
        let Some(first) = self.waiters.pop() else {
            self.state = State::Idle;
            effects.push(release(held.token));
            return;
        };
        self.impatient -= usize::from(!first.patient);
        effects.push(Effect::Grant {
            waiter: first.handle,
            grant: held.grant(),
        });
        self.state = State::Held(held);
    }

    fn reject_waiting(&mut self, error: &Error, effects: &mut Effects<W>) {
        let waiters = self.waiters.take_if(|_| true);
        self.impatient = 0;
        effects.extend(waiters.into_iter().map(|waiter| Effect::Reject {
            waiter: waiter.handle,
            error: error.clone(),
        }));
    }

    fn reject_impatient(&mut self, kind: ErrorKind, effects: &mut Effects<W>) {
        if std::mem::take(&mut self.impatient) == 0 {
            return;
        }
        let impatient = self.waiters.take_if(|waiter| !waiter.patient);
        effects.extend(impatient.into_iter().map(|waiter| Effect::Reject {
            waiter: waiter.handle,
            error: Error::of(kind),
        }));
    }
}

fn unavailable() -> Error {
    Error::of(ErrorKind::Unavailable)
}

/// Gives up a token that may have nothing, or that nobody is known to wait for.
pub(super) fn release<W>(token: u64) -> Effect<W> {
    let wanted = false;
    Effect::Send(Command::Release { token, wanted })
}

impl Held {
    fn new(env: &Env<'_>, token: u64, fence: u64, trusted_until: Time, renew_at: Time) -> Self {
        let fencing_token = fence * HANDOFFS_PER_FENCE;
        let limit = env.now + env.rules.max_hold;
        let (limit, over_at) = env.rules.ends_of_hold(limit);
        Self {
            token,
            lease: env.next_id(),
            fencing_token,
            last_fencing_token: fencing_token + HANDOFFS_PER_FENCE - 1,
            trusted_until,
            limit,
            over_at,
            renew_at,
            renewing: false,
            checking: false,
            hinted: false,
            completing: false,
            wanted: None,
        }
    }

    fn may_hand_on(&self, env: &Env<'_>) -> bool {
        self.fencing_token < self.last_fencing_token
            && self.trusted_until > env.now + env.rules.worth_handing_on()
            && self
                .wanted
                .is_none_or(|burst| burst.left > 0 && env.now < burst.ends)
    }

    fn grant(&self) -> Grant {
        Grant {
            lease: self.lease,
            token: self.token,
            fencing_token: self.fencing_token,
            until: self.trusted_until.min(self.limit),
            limit: self.limit,
        }
    }

    /// Something may have happened to it.
    fn check<W>(&mut self, effects: &mut Effects<W>) {
        self.hinted = self.renewing || self.checking;
        if !self.hinted {
            self.checking = true;
            let token = self.token;
            effects.push(Effect::Send(Command::Check { token }));
        }
    }

    fn renew<W>(&mut self, effects: &mut Effects<W>) {
        (self.renewing, self.hinted) = (true, false);
        effects.push(Effect::Send(Command::Renew { token: self.token }));
    }
}

#[cfg(test)]
pub(crate) mod tests;
