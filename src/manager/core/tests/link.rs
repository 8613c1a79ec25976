//! [`Link`]: what is in flight between a manager and the server. It does what the driver of a real
//! store does, command by command, and goes wrong in every way in which that may.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::super::{Core, StoreEvents};
use super::program::{Fate, Tamper};
use super::tasks::unwinds;
use crate::clock::Time;
use crate::error::{Error, ErrorKind};
use crate::key::LockKey;
use crate::manager::slot::Rules;
use crate::store::fake::{Answer, Client, FakeStore, Pending, Truth};
use crate::store::{Command, Events, Failure, Granted, Notice, Outcome, Record, Reply, Store};

/// How long until a release or completion that the server refused is tried again.
const RETRY: Duration = Duration::from_millis(100);

pub(super) struct Link {
    pub(super) core: Arc<Core>,
    client: Client,
    /// Sent, and not carried out yet.
    calls: VecDeque<Call>,
    /// Replies and notices that have not arrived yet.
    incoming: VecDeque<Incoming>,
    /// Commands that were sent on a connection that broke, and not carried out yet.
    late: VecDeque<Late>,
    /// Releases and completions that the server refused.
    refused: Vec<Pending>,
    retry_at: Option<Time>,
    /// By key: the token from which the lock last passed to another process, and when that grant
    /// must have expired.
    passed_on: HashMap<LockKey, (u64, Time)>,
    /// When the newest command with a reply was sent.
    observed: Time,
    pub(super) dates_grants: bool,
    pub(super) refuses_records: bool,
    /// The connection has broken, or a command has failed: a request may then fail, too.
    pub(super) had_trouble: bool,
    /// When that was the last time.
    pub(super) last_trouble: Time,
    /// The server may have something for a token that no slot has: a command was carried out late,
    /// or a release given up.
    pub(super) left_something: bool,
    /// Replies or notices were not true.
    pub(super) was_deceived: bool,
    /// By token: until when its lease is valid at least, by the replies that its slot got.
    pub(super) valid_until: HashMap<u64, Time>,
    /// The reply to the second command of each call is lost, and its outcome never told.
    pub(super) drops_replies: bool,
}

struct Call {
    sent_at: Time,
    commands: Vec<Pending>,
    /// What the server said to those that were carried out, which are the first ones.
    answers: Vec<Answer>,
    /// The last of the fences that the acquires share, once all commands were carried out.
    last_fence: u64,
}

impl Call {
    /// Returns how many acquires it has.
    fn takes(&self) -> u64 {
        let is_take = |pending: &&Pending| matches!(pending.command, Command::Acquire { .. });
        self.commands.iter().filter(is_take).count() as u64
    }

    /// Shares out the fences among the acquires that got their lock.
    fn share_out(&mut self) {
        let first = self.last_fence + 1 - self.takes();
        let fences = self.answers.iter_mut().filter_map(|answer| match answer {
            Answer::Reply(Reply::Acquired { fence, .. }) => Some(fence),
            _ => None,
        });
        for (fence, next) in fences.zip(first..) {
            *fence = next;
        }
    }
}

/// A command on a connection that broke.
struct Late {
    key: LockKey,
    command: Command<Record, ()>,
    is_repeated: bool,
}

enum Incoming {
    Replies(Call),
    Notice(LockKey, Notice),
    AllChanged,
}

impl Link {
    pub(super) fn new(core: Arc<Core>, process: usize, truth: &mut Truth) -> Self {
        let client = Client {
            process,
            ttl: core.rules.ttl,
            grant_ttl: core.rules.grant_ttl,
            seed: truth.connected(process, Time::now()),
        };
        let link = Self {
            core,
            client,
            calls: VecDeque::new(),
            incoming: VecDeque::new(),
            late: VecDeque::new(),
            refused: Vec::new(),
            retry_at: None,
            passed_on: HashMap::new(),
            observed: Time::now(),
            dates_grants: true,
            refuses_records: false,
            had_trouble: false,
            last_trouble: Time::now(),
            left_something: false,
            was_deceived: false,
            valid_until: HashMap::new(),
            drops_replies: false,
        };
        link.store().set_connected(true);
        link
    }

    pub(super) fn store(&self) -> &FakeStore {
        match &self.core.store {
            Store::Fake(fake) => fake,
            _ => unreachable!("a case has a fake store"),
        }
    }

    /// Calls the manager, as a driver does.
    fn tell(&self, event: impl FnOnce(&StoreEvents<'_>)) {
        unwinds(|| event(&StoreEvents(&self.core)));
    }

    pub(super) fn send(&mut self) {
        let mut commands = match self.store().is_connected() {
            true => std::mem::take(&mut *self.store().commands()),
            false => return,
        };
        if !commands.is_empty() {
            for pending in &mut commands {
                pending.attempts += 1;
            }
            let sent_at = Time::now();
            self.calls.push_back(Call {
                sent_at,
                commands,
                answers: Vec::new(),
                last_fence: 0,
            });
        }
    }

    /// The server carries out what is left of the oldest call.
    pub(super) fn carry_out(&mut self, truth: &mut Truth) -> Option<()> {
        while self.carry_out_next(truth)? {}
        Some(())
    }

    /// The server carries out the next command of the oldest call, or counts its acquires if all
    /// commands were carried out. Returns whether more of the call is left.
    pub(super) fn carry_out_next(&mut self, truth: &mut Truth) -> Option<bool> {
        let call = self.calls.front_mut()?;
        let now = Time::now();
        let is_left = match call.commands.get(call.answers.len()) {
            Some(pending) => {
                let is_completion = matches!(pending.command, Command::Complete { .. });
                call.answers
                    .push(match is_completion && self.refuses_records {
                        true => Answer::Refused,
                        false => {
                            let (key, command) = (&pending.key, &pending.command);
                            truth.execute(self.client, now, key, command, pending.is_repeated())
                        }
                    });
                true
            }
            None => {
                call.last_fence = truth.count(call.takes(), now);
                false
            }
        };
        // The notices that the call led to arrive before its reply.
        let is_ours = |(to, ..): &mut (usize, LockKey, Notice)| *to == self.client.process;
        for (_, key, notice) in truth.notices.extract_if(.., is_ours) {
            self.incoming.push_back(Incoming::Notice(key, notice));
        }
        if !is_left {
            let call = self.calls.pop_front()?;
            self.incoming.push_back(Incoming::Replies(call));
        }
        Some(is_left)
    }

    /// The server has forgotten the scripts: it carries out only those of the commands in flight
    /// that need none. All are sent again.
    pub(super) fn forget_scripts(&mut self, truth: &mut Truth) {
        let now = Time::now();
        let mut again = Vec::new();
        for call in std::mem::take(&mut self.calls) {
            for pending in &call.commands[call.answers.len()..] {
                let needs_none = match pending.command {
                    Command::Acquire {
                        queue,
                        watch,
                        again,
                        ..
                    } => !(queue || watch || again || pending.is_repeated()),
                    _ => false,
                };
                if needs_none {
                    let (key, command) = (&pending.key, &pending.command);
                    truth.execute(self.client, now, key, command, false);
                }
            }
            truth.count(call.takes(), now);
            again.extend(call.commands);
        }
        self.put_back(again);
    }

    fn trouble(&mut self) {
        self.had_trouble = true;
        self.last_trouble = Time::now();
    }

    pub(super) fn carry_out_late(&mut self, truth: &mut Truth) -> Option<()> {
        let late = self.late.pop_front()?;
        self.left_something = true;
        let (key, command) = (&late.key, &late.command);
        truth.execute(self.client, Time::now(), key, command, late.is_repeated);
        Some(())
    }

    /// The server sends this process a notice.
    pub(super) fn push(&mut self, key: LockKey, notice: Notice) {
        if self.store().is_connected() {
            self.incoming.push_back(Incoming::Notice(key, notice));
        }
    }

    pub(super) fn push_all_changed(&mut self) {
        if self.store().is_connected() {
            self.incoming.push_back(Incoming::AllChanged);
        }
    }

    pub(super) fn is_quiet(&self) -> bool {
        self.calls.is_empty()
            && self.incoming.is_empty()
            && (self.store().commands().is_empty() || !self.store().is_connected())
    }

    /// Returns whether nothing is queued, in flight, or left on a connection that broke.
    pub(super) fn is_over(&self) -> bool {
        let is_sent = self.calls.is_empty() && self.incoming.is_empty() && self.late.is_empty();
        is_sent && self.refused.is_empty() && self.store().commands().is_empty()
    }

    /// The oldest reply or notice in flight arrives.
    pub(super) fn deliver(&mut self, truth: &mut Truth, tamper: Tamper) -> Option<()> {
        match self.incoming.pop_front()? {
            Incoming::Replies(call) => {
                let takes = call.takes();
                if takes > 0 && call.last_fence < self.client.seed + takes {
                    // The server has lost its data.
                    self.incoming.push_front(Incoming::Replies(call));
                    self.break_off(truth, Fate::SentAgain, true);
                } else {
                    self.deliver_reply(call, tamper);
                }
            }
            Incoming::Notice(key, mut notice) => {
                if let Notice::Granted(Granted { after, .. }) = &mut notice {
                    *after = after.or(self.dates_grants.then_some(self.observed));
                }
                self.tell(|events| events.notice(&key, notice));
            }
            Incoming::AllChanged => self.tell(|events| events.all_changed()),
        }
        Some(())
    }

    fn deliver_reply(&mut self, mut call: Call, tamper: Tamper) {
        let (sent_at, now) = (call.sent_at, Time::now());
        call.share_out();
        self.observed = self.observed.max(sent_at);
        let count = call.commands.len();
        let mut to_be_granted = Vec::new();
        let answered = call.commands.into_iter().zip(call.answers);
        for (place, (mut pending, mut answer)) in answered.enumerate() {
            match tamper {
                Tamper::Unfit {
                    command,
                    reply: number,
                } if command % count == place => {
                    self.was_deceived = true;
                    answer = Answer::Reply(unfit(number));
                }
                Tamper::Twice { command } if command % count == place => {
                    if let Answer::Reply(reply) = &answer {
                        self.was_deceived = true;
                        let outcome = Outcome {
                            sent_at,
                            result: Ok(reply.clone()),
                        };
                        let (key, command) = (&pending.key, pending.command.bare());
                        self.tell(|events| events.replied(key, command, outcome));
                    }
                }
                Tamper::Error { command } if command % count == place => {
                    self.trouble();
                    answer = Answer::Refused;
                }
                _ if self.drops_replies && place == 1 => continue,
                _ => {}
            }
            match answer {
                Answer::Reply(reply) => self.finish(pending, sent_at, Ok(reply)),
                Answer::ToBeGranted => {
                    pending.grant_next();
                    to_be_granted.push(pending);
                }
                Answer::Refused if pending.ends_hold() && !self.is_needless(&pending, now) => {
                    self.refused.push(pending);
                    self.retry_at.get_or_insert(now + RETRY);
                }
                Answer::Refused => {
                    self.left_something |= pending.ends_hold();
                    self.finish(pending, sent_at, Err(failure(true)));
                }
            }
        }
        self.put_back(to_be_granted);
    }

    fn finish(&mut self, pending: Pending, sent_at: Time, result: Result<Reply, Failure>) {
        let now = Time::now();
        match (pending.command.bare(), &result) {
            (Command::Release { token, .. }, Ok(Reply::Released { granted: true, .. })) => {
                let expires = now + self.client.grant_ttl + Duration::from_millis(1);
                self.passed_on.insert(pending.key.clone(), (token, expires));
            }
            (Command::Acquire { token, .. }, Ok(Reply::Acquired { .. })) => {
                self.valid_until
                    .insert(token, sent_at + Rules::validity(self.client.ttl));
            }
            (Command::Renew { token, .. }, Ok(Reply::Renewed { .. })) => {
                let until = sent_at + Rules::validity(self.client.ttl);
                let valid_until = self.valid_until.get_mut(&token);
                if let Some(valid_until) = valid_until.filter(|valid_until| **valid_until > now) {
                    *valid_until = until.max(*valid_until);
                }
            }
            _ => {}
        }
        let settled = pending.settled(&result);
        let (key, command) = (&pending.key, pending.command.bare());
        self.tell(|events| events.replied(key, command, Outcome { sent_at, result }));
        if let Command::Release { reply, .. } | Command::Complete { reply, .. } = pending.command
            && let Some(reply) = reply
        {
            let _ = crate::shield::shielded(|| reply.send(settled));
        }
    }

    fn is_needless(&self, pending: &Pending, now: Time) -> bool {
        now.since(pending.submitted) > self.client.ttl
            && !match pending.command {
                Command::Complete { token, .. } => self.holds(&pending.key, token),
                _ => false,
            }
    }

    pub(super) fn holds(&self, key: &LockKey, token: u64) -> bool {
        StoreEvents(&self.core).is_held(key, token)
    }

    /// The connection breaks. The server may carry out `late` what was sent on it.
    pub(super) fn break_off(&mut self, truth: &mut Truth, fate: Fate, late: bool) {
        if !self.store().is_connected() {
            return;
        }
        self.trouble();
        self.store().set_connected(false);
        truth.disconnected(self.client.process);
        let mut without_reply = Vec::new();
        for incoming in std::mem::take(&mut self.incoming) {
            if let Incoming::Replies(call) = incoming {
                without_reply.push(call);
            }
        }
        let calls = std::mem::take(&mut self.calls);
        let mut releases = Vec::new();
        let in_flight = calls.iter().flat_map(|call| {
            let places = call.commands.iter().enumerate();
            places.map(|(place, pending)| (pending, place < call.answers.len()))
        });
        for (pending, is_carried_out) in in_flight {
            let key = pending.key.clone();
            if late && !is_carried_out {
                self.late.push_back(Late {
                    key: key.clone(),
                    command: pending.command.carrying(Record::clone, ()),
                    is_repeated: pending.is_repeated(),
                });
            }
            if let Command::Acquire { token, .. } = pending.command {
                releases.push(Late {
                    key,
                    command: regrant(token, ()),
                    is_repeated: false,
                });
            }
        }
        if fate == Fate::GivenUp && late {
            self.late.extend(releases);
        }
        without_reply.extend(calls);
        let mut again = Vec::new();
        for call in without_reply {
            for pending in call.commands {
                let is_kept = match fate {
                    Fate::SentAgain => pending.attempts < 2,
                    Fate::Fail | Fate::GivenUp => false,
                };
                match is_kept || pending.ends_hold() {
                    true => again.push(pending),
                    false => self.finish(pending, call.sent_at, Err(failure(true))),
                }
            }
        }
        again.append(&mut self.refused);
        self.retry_at = None;
        self.put_back(again);
    }

    fn put_back(&mut self, commands: Vec<Pending>) {
        self.store().commands().splice(0..0, commands);
    }

    pub(super) fn reconnect(&mut self, truth: &mut Truth) {
        if !self.store().is_connected() {
            self.client.seed = truth.connected(self.client.process, Time::now());
            self.observed = Time::now();
            self.last_trouble = self.observed;
            self.tell(|events| events.reconnected());
            self.store().set_connected(true);
        }
    }

    /// Fails queued commands. Those that end a hold stay for as long as there may be a lock.
    pub(super) fn fail_queued(&mut self, fails: impl Fn(&Pending) -> bool) {
        self.trouble();
        let now = Time::now();
        let queued = std::mem::take(&mut *self.store().commands());
        let (failed, kept): (Vec<_>, Vec<_>) =
            queued
                .into_iter()
                .partition(|pending| match pending.ends_hold() {
                    true => self.is_needless(pending, now),
                    false => fails(pending),
                });
        let unsent: HashSet<u64> = failed
            .iter()
            .filter_map(|pending| match pending.command {
                Command::Acquire { token, .. } if !pending.is_known_there() => Some(token),
                _ => None,
            })
            .collect();
        let (needless, kept): (Vec<_>, Vec<_>) =
            kept.into_iter().partition(|pending| match pending.command {
                Command::Release { token, .. } => unsent.contains(&token),
                _ => false,
            });
        self.put_back(kept);
        self.left_something |= failed.iter().any(Pending::ends_hold);
        for pending in failed.into_iter().chain(needless) {
            let unknown = pending.is_known_there();
            self.finish(pending, now, Err(failure(unknown)));
        }
    }

    /// Returns when [`pass_time`](Self::pass_time) next has something to do.
    pub(super) fn next(&self) -> Option<Time> {
        let timeout = self.core.command_timeout;
        let oldest_call = self.incoming.iter().filter_map(|incoming| match incoming {
            Incoming::Replies(call) => Some(call.sent_at),
            _ => None,
        });
        let oldest_call = oldest_call.chain(self.calls.front().map(|call| call.sent_at));
        let commands = self.store().commands();
        let queued = commands
            .iter()
            .filter(|pending| !pending.ends_hold())
            .map(|pending| pending.submitted);
        let oldest = oldest_call.chain(queued).min();
        let overdue = oldest.map(|oldest| oldest + timeout);
        let regrants = self.passed_on.values().map(|(_, at)| *at);
        regrants.chain(overdue).chain(self.retry_at).min()
    }

    /// Does what is due by now: commands that are late fail, those that were refused are tried
    /// again, and grants that expired are passed on.
    pub(super) fn pass_time(&mut self, truth: &mut Truth) {
        let now = Time::now();
        let timeout = self.core.command_timeout;
        let is_late = |since: Time| since + timeout <= now;
        let has_late_call = self.calls.iter().any(|call| is_late(call.sent_at))
            || self.incoming.iter().any(|incoming| match incoming {
                Incoming::Replies(call) => is_late(call.sent_at),
                _ => false,
            });
        if has_late_call {
            self.break_off(truth, Fate::GivenUp, true);
        }
        let is_overdue = |pending: &Pending| is_late(pending.submitted);
        let has_overdue = |pending: &Pending| !pending.ends_hold() && is_overdue(pending);
        let has_overdue = self.store().commands().iter().any(has_overdue);
        if has_overdue {
            self.fail_queued(is_overdue);
        }
        if self.retry_at.is_some_and(|at| at <= now) {
            self.retry_at = None;
            let refused = std::mem::take(&mut self.refused);
            self.put_back(refused);
        }
        for (key, (token, _)) in self.passed_on.extract_if(|_, (_, at)| *at <= now) {
            let Store::Fake(store) = &self.core.store else {
                unreachable!("a case has a fake store");
            };
            store.submit(now, &key, regrant(token, None));
        }
    }

    /// Visits all commands that have no outcome yet, wherever they are.
    pub(super) fn pending(&self, mut visit: impl FnMut(&Pending)) {
        self.store().commands().iter().for_each(&mut visit);
        self.refused.iter().for_each(&mut visit);
        for call in &self.calls {
            call.commands.iter().for_each(&mut visit);
        }
        for incoming in &self.incoming {
            if let Incoming::Replies(call) = incoming {
                call.commands.iter().for_each(&mut visit);
            }
        }
    }

    pub(super) fn show_busy(&self) {
        let is_busy = !self.calls.is_empty()
            || !self.refused.is_empty()
            || self
                .incoming
                .iter()
                .any(|incoming| matches!(incoming, Incoming::Replies(_)));
        self.store().set_busy(is_busy);
    }
}

/// Returns a release that gives a lock that is free to the next in the queue.
fn regrant<R, S>(token: u64, reply: S) -> Command<R, S> {
    Command::Release {
        token,
        contended: true,
        queued: true,
        reply,
    }
}

fn failure(unknown: bool) -> Failure {
    Failure {
        error: Error::of(ErrorKind::Unavailable),
        unknown,
    }
}

/// Returns some reply, which may or may not fit the command.
fn unfit(number: usize) -> Reply {
    match number {
        0 => Reply::Intact,
        1 => Reply::Gone,
        2 => Reply::Completed,
        3 => Reply::Renewed { contended: true },
        4 => Reply::Released {
            had_it: true,
            granted: true,
        },
        5 => Reply::Recorded(bytes::Bytes::new()),
        6 => Reply::HeldElsewhere {
            remaining: None,
            foreign: true,
        },
        _ => Reply::Acquired {
            fence: 1,
            contended: true,
        },
    }
}
