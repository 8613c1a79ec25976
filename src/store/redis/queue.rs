//! [`Queue`]: the commands for Redis that are to be sent. [`InFlight`]: those that have been sent.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use super::RedisStore;
use crate::clock::Time;
use crate::error::{Error, ErrorKind};
use crate::key::{Kind, LockKey};
use crate::shield::shielded;
use crate::store::{Command, Events, Failure, Outcome, Reply, settled};

/// Script calls in flight at once. Commands that are submitted meanwhile go out together, in the
/// next call.
const FEW_CALLS: usize = 2;
/// Up to so many calls may be in flight while each of them is full, and about locks alone:
/// otherwise, a long queue would wait for one round trip after the other. Records are longer, and
/// Redis closes a connection for which it has to buffer too much.
const MAX_CALLS: usize = 16;
/// Commands in one call. This bounds how long the script keeps Redis from its other clients, and
/// how many bytes the call has, as no record in it is long.
const MAX_COMMANDS: usize = 128;
/// With more commands queued than this, all go out together.
const FEW: usize = 8;

/// The commands that are to be sent, in two lines, each in order of submission. Of the two commands
/// in front, the one with the lower number goes first.
///
/// There are two lines so that commands that fail or expire are always at the front of one. An
/// outage may leave any number of releases behind, which must not be gone through for every
/// command.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Releases and completions. They stay for as long as there may be a lock.
    ends: VecDeque<Pending>,
    others: VecDeque<Pending>,
    next_number: u64,
}

impl Queue {
    /// Adds a command behind all others.
    pub(super) fn push(&mut self, mut pending: Pending) {
        pending.number = self.next_number;
        self.next_number += 1;
        self.line(&pending).push_back(pending);
    }

    /// Puts commands back where they were. They were sent, and so are older than most that are
    /// queued.
    fn put_back(&mut self, commands: Vec<Pending>) {
        for pending in commands.into_iter().rev() {
            let line = self.line(&pending);
            let at = line.partition_point(|queued| queued.number < pending.number);
            line.insert(at, pending);
        }
    }

    fn pop(&mut self) -> Option<Pending> {
        let number = |line: &VecDeque<Pending>| line.front().map_or(u64::MAX, |first| first.number);
        match number(&self.ends) < number(&self.others) {
            true => self.ends.pop_front(),
            false => self.others.pop_front(),
        }
    }

    fn line(&mut self, pending: &Pending) -> &mut VecDeque<Pending> {
        match pending.ends_hold() {
            true => &mut self.ends,
            false => &mut self.others,
        }
    }

    fn len(&self) -> usize {
        self.ends.len() + self.others.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns whether an acquire was submitted since the last call, which had `seen` all commands
    /// before that number.
    pub(super) fn has_new_acquire(&self, seen: &mut u64) -> bool {
        let since = std::mem::replace(seen, self.next_number);
        let newest_first = self.others.iter().rev();
        newest_first
            .take_while(|pending| pending.number >= since)
            .any(|pending| matches!(pending.command, Command::Acquire { .. }))
    }

    /// Takes the releases of acquires that have failed and were never sent. Each was submitted
    /// behind its acquire.
    fn take_needless(&mut self, failed: &[Pending]) -> Vec<Pending> {
        let unsent = failed.iter().filter_map(|pending| match pending.command {
            Command::Acquire { token, .. } if !pending.is_known_there() => {
                Some((token, pending.number))
            }
            _ => None,
        });
        let unsent: HashMap<u64, u64> = unsent.collect();
        let Some(first) = unsent.values().min() else {
            return Vec::new();
        };
        let behind = self.ends.partition_point(|end| end.number < *first);
        let behind = self.ends.split_off(behind);
        let (needless, kept) = behind.into_iter().partition(|end| match end.command {
            Command::Release { token, .. } => unsent.contains_key(&token),
            _ => false,
        });
        self.ends.extend::<Vec<_>>(kept);
        needless
    }
}

/// Takes commands from the front of a line.
fn take_while(
    line: &mut VecDeque<Pending>,
    is_one: impl Fn(&Pending) -> bool,
) -> impl Iterator<Item = Pending> {
    std::iter::from_fn(move || match line.front() {
        Some(first) if is_one(first) => line.pop_front(),
        _ => None,
    })
}

/// A command that has no reply yet.
#[derive(Debug)]
pub(super) struct Pending {
    /// Counts up in order of submission.
    pub(super) number: u64,
    pub(super) key: LockKey,
    pub(super) command: Command,
    pub(super) submitted: Time,
    /// How often the command has been sent. It may have been carried out as often.
    pub(super) attempts: u32,
    /// Whether it is a release that has let other commands go first, which it does once.
    pub(super) has_waited: bool,
}

/// The calls that have no reply yet, in the order in which they were sent, which is that of the
/// replies.
///
/// When this is dropped, the commands go back into the queue: to carry one out twice does no harm.
pub(super) struct InFlight<'a> {
    pub(super) store: &'a RedisStore,
    pub(super) calls: VecDeque<(Time, Vec<Pending>)>,
    /// Releases and completions that Redis refused. They are tried again.
    pub(super) refused: Vec<Pending>,
}

impl<'a> InFlight<'a> {
    pub(super) fn new(store: &'a RedisStore) -> Self {
        Self {
            store,
            calls: VecDeque::new(),
            refused: Vec::new(),
        }
    }

    pub(super) fn pop(&mut self) -> (Time, Vec<Pending>) {
        let call = self.calls.pop_front().expect("a reply belongs to a call");
        self.store
            .in_flight
            .fetch_sub(call.1.len(), Ordering::AcqRel);
        call
    }

    pub(super) fn push(&mut self, sent_at: Time, commands: Vec<Pending>) {
        self.store
            .in_flight
            .fetch_add(commands.len(), Ordering::AcqRel);
        self.calls.push_back((sent_at, commands));
    }

    /// Puts the commands of all calls back into the queue, to be sent again.
    pub(super) fn recall(&mut self) {
        let mut commands = Vec::new();
        while !self.calls.is_empty() {
            commands.extend(self.pop().1);
        }
        self.store.put_back(commands);
    }

    /// Keeps a release or a completion that Redis refused, to try it again. Later commands for its
    /// key may overtake it, and find the lock held until then. Its token has no later hold, so it
    /// can end nothing that began meanwhile.
    pub(super) fn keep(&mut self, end: Pending) {
        self.store.in_flight.fetch_add(1, Ordering::AcqRel);
        self.refused.push(end);
    }

    pub(super) fn retry(&mut self) {
        let refused = std::mem::take(&mut self.refused);
        self.store
            .in_flight
            .fetch_sub(refused.len(), Ordering::AcqRel);
        self.store.put_back(refused);
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.recall();
        self.retry();
    }
}

impl RedisStore {
    pub(super) fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts back commands that were sent, or taken to be sent, in order.
    pub(super) fn put_back(&self, commands: Vec<Pending>) {
        self.queue().put_back(commands);
    }

    /// Fails the commands that have been in the queue for longer than the command timeout.
    pub(super) fn fail_overdue(&self, events: &impl Events) {
        let limit = self.settings.command_timeout;
        let now = Time::now();
        let overdue = |pending: &Pending| now.since(pending.submitted) > limit;
        let failed = self.take_failing(overdue, events);
        if !failed.is_empty() {
            finish_all(failed, &no_reply(&limit), events);
        }
    }

    /// Returns whether releases stay in the queue so that other commands go first.
    pub(super) fn has_releases_waiting(&self) -> bool {
        let queue = self.queue();
        queue.ends.front().is_some_and(|first| first.has_waited)
    }

    /// Takes the commands of the next call, in order, if a call may go out behind the `calls` that
    /// are in flight. If few commands are queued, releases for which no process and no caller is
    /// known to wait let others go first: once, and only behind other commands or a call in flight.
    ///
    /// Commands for one key go in order of submission. All commands that are taken are older than
    /// all that stay, except the releases that let others go first, and with those stay all
    /// commands of this call for their keys.
    pub(super) fn take_commands(&self, calls: usize) -> Option<Vec<Pending>> {
        let mut queue = self.queue();
        let length = queue.len();
        let may_go = calls < FEW_CALLS || calls < MAX_CALLS && length >= MAX_COMMANDS;
        if !may_go {
            return None;
        }
        // Shared out among the calls that may go now, so that Redis works on one of them while this
        // process works on another.
        let share = length.div_ceil(FEW_CALLS.saturating_sub(calls).max(1));
        let count = share.clamp(FEW, MAX_COMMANDS);
        let mut taken: Vec<Pending> = std::iter::from_fn(|| queue.pop()).take(count).collect();
        if calls >= FEW_CALLS && taken.iter().any(Pending::is_about_record) {
            queue.put_back(taken);
            return None;
        }
        if length <= FEW {
            let urgent: Vec<LockKey> = taken
                .iter()
                .filter(|pending| !pending.can_wait())
                .map(|pending| pending.key.clone())
                .collect();
            if !urgent.is_empty() || calls > 0 {
                // By key, so that two commands for one key stay in order.
                let (go, mut wait): (Vec<_>, Vec<_>) = taken
                    .into_iter()
                    .partition(|pending| urgent.contains(&pending.key));
                for pending in &mut wait {
                    pending.has_waited = true;
                }
                queue.put_back(wait);
                taken = go;
            }
        }
        drop(queue);
        for pending in &mut taken {
            pending.attempts += 1;
        }
        (!taken.is_empty()).then_some(taken)
    }

    /// Fails the commands at the front of the queue for which `fails` holds. Those that end a hold
    /// stay for as long as there may be a lock.
    pub(super) fn fail_first(
        &self,
        fails: impl Fn(&Pending) -> bool,
        error: &Error,
        events: &impl Events,
    ) {
        finish_all(self.take_failing(fails, events), error, events);
    }

    fn take_failing(&self, fails: impl Fn(&Pending) -> bool, events: &impl Events) -> Vec<Pending> {
        let now = Time::now();
        let mut queue = self.queue();
        let mut failing: Vec<Pending> = take_while(&mut queue.others, fails).collect();
        let over = take_while(&mut queue.ends, |end| self.has_expired(end, now));
        let over: Vec<Pending> = over.collect();
        // An acquire that was never sent needs no release.
        let needless = queue.take_needless(&failing);
        failing.extend(needless);
        // `is_over` locks a slot, and a locked slot that submits a command locks the queue.
        drop(queue);
        let (over, go_on) = over
            .into_iter()
            .partition(|end| self.is_over(end, now, events));
        self.put_back(go_on);
        failing.extend::<Vec<_>>(over);
        failing
    }

    /// Returns whether no lock is left to release or to complete. For a completion, the slot is
    /// asked: it renews the lease, which then lasts for longer than a time to live.
    pub(super) fn is_over(&self, pending: &Pending, now: Time, events: &impl Events) -> bool {
        let is_held = || match pending.command {
            Command::Complete { token, .. } => events.is_held(&pending.key, token),
            _ => false,
        };
        self.has_expired(pending, now) && !is_held()
    }

    fn has_expired(&self, pending: &Pending, now: Time) -> bool {
        now.since(pending.submitted) > self.settings.ttl
    }

    /// Fails the commands of a call. Those that end a hold are put back.
    pub(super) fn fail(
        &self,
        (sent_at, commands): (Time, Vec<Pending>),
        error: &Error,
        is_unknown: bool,
        events: &impl Events,
    ) {
        let (ends, others) = commands.into_iter().partition(Pending::ends_hold);
        self.put_back(ends);
        for pending in others {
            let unknown = is_unknown || pending.may_have_been_carried_out_before();
            let error = error.clone();
            pending.finish(sent_at, Err(Failure { error, unknown }), events);
        }
    }
}

impl Pending {
    pub(super) fn ends_hold(&self) -> bool {
        self.command.ends_hold()
    }

    fn is_about_record(&self) -> bool {
        self.key.kind() == Kind::Record
    }

    /// Returns whether no process and no caller is known to wait for this command, and it has not
    /// let others go first yet.
    fn can_wait(&self) -> bool {
        let is_awaited = !matches!(
            self.command,
            Command::Release {
                contended: false,
                reply: None,
                ..
            }
        );
        !is_awaited && !self.has_waited
    }

    /// Returns whether Redis may know the token of an acquire.
    fn is_known_there(&self) -> bool {
        self.attempts > 0 || self.is_repeated()
    }

    /// Returns whether an attempt before the one that failed may have been carried out.
    pub(super) fn may_have_been_carried_out_before(&self) -> bool {
        self.attempts > 1 || self.is_repeated()
    }

    fn is_repeated(&self) -> bool {
        matches!(self.command, Command::Acquire { again: true, .. })
    }

    pub(super) fn finish(
        self,
        sent_at: Time,
        result: Result<Reply, Failure>,
        events: &impl Events,
    ) {
        let settled = match result {
            // An earlier attempt, whose reply was lost, may have released it.
            Ok(Reply::Released { had_it: false, .. }) if self.attempts > 1 => {
                Err(Error::of(ErrorKind::Unavailable))
            }
            _ => settled(&result),
        };
        let outcome = Outcome { sent_at, result };
        events.replied(&self.key, self.command.bare(), outcome);
        // Behind the slot's event: the next request of the caller must find the slot as it now is.
        if let Command::Release { reply, .. } | Command::Complete { reply, .. } = self.command
            && let Some(reply) = reply
        {
            shielded(|| reply.send(settled));
        }
    }
}

/// Fails commands that are in the queue, and not in flight.
fn finish_all(failed: Vec<Pending>, error: &Error, events: &impl Events) {
    let now = Time::now();
    for pending in failed {
        let unknown = pending.is_known_there();
        let error = error.clone();
        pending.finish(now, Err(Failure { error, unknown }), events);
    }
}

pub(super) fn no_reply(limit: &Duration) -> Error {
    Error::new(
        ErrorKind::Unavailable,
        format!("Redis did not reply within {limit:?}"),
    )
}

#[cfg(all(test, feature = "properties"))]
mod properties;

#[cfg(test)]
mod tests;
