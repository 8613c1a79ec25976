//! [`Queue`]: the commands for Redis that are to be sent.

use std::collections::{HashMap, VecDeque};
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use super::RedisStore;
use super::in_flight::InFlightCall;
use super::pending::Pending;
use crate::clock::Time;
use crate::error::{Error, ErrorKind};
use crate::store::{Command, Events, Failure};

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
    /// How many callers are about to add more, which is to go out together with what is there.
    held_back: usize,
}

/// Commands that are kept back for others to come.
#[must_use]
pub(crate) struct HeldBack<'a>(&'a RedisStore);

impl Drop for HeldBack<'_> {
    fn drop(&mut self) {
        self.0.queue().held_back -= 1;
        self.0.submitted.notify();
    }
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

    /// Returns whether there are only releases that no process and no caller is known to wait for.
    fn can_wait(&self) -> bool {
        self.others.is_empty() && self.ends.iter().all(Pending::can_wait)
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

impl RedisStore {
    pub(super) fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a command.
    pub(super) fn take_over(&self, pending: Pending) {
        self.queue().push(pending);
        self.submitted.notify();
    }

    /// See [`Store::hold_back`](crate::store::Store::hold_back).
    pub(crate) fn hold_back(&self) -> HeldBack<'_> {
        self.queue().held_back += 1;
        HeldBack(self)
    }

    /// Takes all commands, in order.
    pub(super) fn take_all(&self) -> Vec<Pending> {
        let mut queue = self.queue();
        std::iter::from_fn(|| queue.pop()).collect()
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

    /// Takes the commands of the next call, in order of submission, if a call may go out behind the
    /// `calls` that are in flight. Releases for which no process and no caller is known to wait go
    /// along with other commands, or when no call is in flight: mostly, the next request is there
    /// before that, and one write does for both.
    pub(super) fn take_commands(&self, calls: usize) -> Option<Vec<Pending>> {
        let mut queue = self.queue();
        let length = queue.len();
        let may_go = calls < FEW_CALLS || calls < MAX_CALLS && length >= MAX_COMMANDS;
        let can_wait = calls > 0 && length <= FEW && queue.can_wait();
        if !may_go || can_wait || queue.held_back > 0 {
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
        let over = take_while(&mut queue.ends, |end| {
            end.has_expired(now, self.settings.ttl)
        });
        let over: Vec<Pending> = over.collect();
        // An acquire that was never sent needs no release.
        let needless = queue.take_needless(&failing);
        failing.extend(needless);
        // `is_over` locks a slot, and a locked slot that submits a command locks the queue.
        drop(queue);
        let (over, go_on) = over
            .into_iter()
            .partition(|end| end.is_over(now, self.settings.ttl, events));
        self.put_back(go_on);
        failing.extend::<Vec<_>>(over);
        failing
    }

    /// Fails the commands of a call. Those that end a hold are put back.
    pub(super) fn fail(
        &self,
        call: InFlightCall,
        error: &Error,
        is_unknown: bool,
        events: &impl Events,
    ) {
        let (ends, others) = call.commands.into_iter().partition(Pending::ends_hold);
        self.put_back(ends);
        for pending in others {
            let unknown = is_unknown || pending.may_have_been_carried_out_before();
            let error = error.clone();
            pending.finish(call.sent_at, Err(Failure { error, unknown }), events);
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
