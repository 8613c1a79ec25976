//! The commands on their way to Redis: which go next, which are kept, which have failed.

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use super::RedisStore;
use crate::clock::Time;
use crate::error::{Error, ErrorKind};
use crate::key::LockKey;
use crate::store::{Answer, Command, Events, Failure, Farewell, Outcome, settled};

/// Script calls on their way at once. What is submitted meanwhile goes out together, in the next.
pub(super) const MAX_CALLS: usize = 2;
/// Commands in one call: bounds how long the script keeps Redis from its other clients, and, as no
/// record that comes along is long, its bytes.
const MAX_COMMANDS: usize = 128;
/// With more commands queued than this, all go out together.
const FEW: usize = 8;

#[derive(Debug, Default)]
pub(super) struct Queue {
    pub(super) commands: VecDeque<Pending>,
    pub(super) next_number: u64,
}

/// A command that has no answer yet.
#[derive(Debug)]
pub(super) struct Pending {
    /// In order of submission.
    pub(super) number: u64,
    pub(super) key: LockKey,
    pub(super) command: Command,
    pub(super) farewell: Farewell,
    pub(super) submitted: Time,
    /// How often it has been sent. It may have been carried out as often.
    pub(super) attempts: u32,
    /// A release that let others go first, once.
    pub(super) has_waited: bool,
}

/// The calls that have no reply yet, in the order in which they were sent and will be answered.
///
/// Dropped, it puts them back into the queue: whatever they did, they may do again.
pub(super) struct OnTheWay<'a> {
    pub(super) store: &'a RedisStore,
    pub(super) calls: VecDeque<(Time, Vec<Pending>)>,
    /// Releases that Redis refused. They are tried again.
    pub(super) refused: Vec<Pending>,
}

impl<'a> OnTheWay<'a> {
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
            .on_the_way
            .fetch_sub(call.1.len(), Ordering::AcqRel);
        call
    }

    pub(super) fn push(&mut self, sent_at: Time, commands: Vec<Pending>) {
        self.store
            .on_the_way
            .fetch_add(commands.len(), Ordering::AcqRel);
        self.calls.push_back((sent_at, commands));
    }

    /// Gives up waiting for the replies: all calls go back into the queue, to be sent again.
    pub(super) fn recall(&mut self) {
        let mut commands = Vec::new();
        while !self.calls.is_empty() {
            commands.extend(self.pop().1);
        }
        self.store.put_back(commands);
    }

    /// Keeps a release to try it again.
    pub(super) fn keep(&mut self, release: Pending) {
        self.store.on_the_way.fetch_add(1, Ordering::AcqRel);
        self.refused.push(release);
    }

    pub(super) fn retry(&mut self) {
        let refused = std::mem::take(&mut self.refused);
        self.store
            .on_the_way
            .fetch_sub(refused.len(), Ordering::AcqRel);
        self.store.put_back(refused);
    }
}

impl Drop for OnTheWay<'_> {
    fn drop(&mut self) {
        self.recall();
        self.retry();
    }
}

impl RedisStore {
    pub(super) fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts back what was sent on a connection that is gone, in order.
    pub(super) fn put_back(&self, mut commands: Vec<Pending>) {
        let mut queue = self.queue();
        commands.extend(queue.commands.drain(..));
        commands.sort_unstable_by_key(|pending| pending.number);
        queue.commands = commands.into();
    }

    /// Fails what has been in the queue for too long, if anything has.
    pub(super) fn fail_overdue(&self, events: &impl Events) {
        let limit = self.settings.command_timeout;
        let now = Time::now();
        let overdue = |pending: &Pending| now.since(pending.submitted) > limit;
        if self.queue().commands.front().is_some_and(overdue) {
            self.fail_if(overdue, &no_answer(&limit), events);
        }
    }

    /// Whether releases were held back just now.
    pub(super) fn has_releases_waiting(&self) -> bool {
        self.queue()
            .commands
            .front()
            .is_some_and(|pending| pending.has_waited)
    }

    /// What goes out with the next call: all that is queued, in order. While that is little, releases that nobody is
    /// known to wait for let others go first, once, and while one of the `calls` is on its way.
    pub(super) fn take_commands(&self, calls: usize) -> Option<Vec<Pending>> {
        let mut queue = self.queue();
        // Shared out among the calls that may go now, so that Redis works on one while we do on another.
        let length = queue.commands.len();
        let count = length
            .div_ceil(MAX_CALLS - calls)
            .max(FEW)
            .min(length)
            .min(MAX_COMMANDS);
        let mut taken: Vec<Pending> = queue.commands.drain(..count).collect();
        if length <= FEW {
            let urgent: Vec<LockKey> = taken
                .iter()
                .filter(|pending| !pending.can_wait())
                .map(|pending| pending.key.clone())
                .collect();
            if !urgent.is_empty() || calls > 0 {
                // By key: two commands for one stay in order.
                taken = taken
                    .into_iter()
                    .filter_map(|pending| match urgent.contains(&pending.key) {
                        true => Some(pending),
                        false => {
                            let has_waited = true;
                            queue.commands.push_back(Pending {
                                has_waited,
                                ..pending
                            });
                            None
                        }
                    })
                    .collect();
            }
        }
        drop(queue);
        for pending in &mut taken {
            pending.attempts += 1;
        }
        (!taken.is_empty()).then_some(taken)
    }

    /// Fails commands in the queue, but for those that end a hold: they stay for as long as there may be a lock.
    pub(super) fn fail_if(
        &self,
        fails: impl Fn(&Pending) -> bool,
        error: &Error,
        events: &impl Events,
    ) {
        let now = Time::now();
        let queued = std::mem::take(&mut self.queue().commands);
        let (failed, kept): (Vec<Pending>, Vec<Pending>) =
            queued
                .into_iter()
                .partition(|pending| match pending.ends_hold() {
                    true => self.has_expired(pending, now),
                    false => fails(pending),
                });
        // What was never sent needs no release.
        let unsent: HashSet<u64> = failed
            .iter()
            .filter_map(|pending| match pending.command {
                Command::Acquire { token, .. } if !pending.is_known_there() => Some(token),
                _ => None,
            })
            .collect();
        let (needless, kept) = kept.into_iter().partition(|pending| match pending.command {
            Command::Release { token, .. } => unsent.contains(&token),
            _ => false,
        });
        self.put_back(kept);
        for pending in failed.into_iter().chain(needless) {
            let unknown = pending.is_known_there();
            let error = error.clone();
            pending.finish(now, Err(Failure { error, unknown }), events);
        }
    }

    /// Whether there is no lock left to release or to complete.
    pub(super) fn has_expired(&self, pending: &Pending, now: Time) -> bool {
        now.since(pending.submitted) > self.settings.ttl
    }

    /// The commands of a call fail, but for those that end a hold: they are put back.
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
            // An earlier attempt may have been carried out.
            let unknown = is_unknown || pending.attempts > 1 || pending.is_asked_again();
            let error = error.clone();
            pending.finish(sent_at, Err(Failure { error, unknown }), events);
        }
    }
}

impl Pending {
    /// Whether it is worth trying again for as long as there may be a lock.
    pub(super) fn ends_hold(&self) -> bool {
        matches!(
            self.command,
            Command::Release { .. } | Command::Complete { .. }
        )
    }

    /// Whether nobody waits for what this does.
    fn can_wait(&self) -> bool {
        matches!(self.command, Command::Release { wanted: false, .. })
            && self.farewell.receipt.is_none()
            && !self.has_waited
    }

    /// Whether the token of an acquire may be known to Redis.
    fn is_known_there(&self) -> bool {
        self.attempts > 0 || self.is_asked_again()
    }

    fn is_asked_again(&self) -> bool {
        matches!(self.command, Command::Acquire { again: true, .. })
    }

    pub(super) fn finish(
        self,
        sent_at: Time,
        result: Result<Answer, Failure>,
        events: &impl Events,
    ) {
        if let Some(receipt) = self.farewell.receipt {
            let _ = receipt.send(match result {
                // Perhaps by an earlier attempt, whose answer was lost.
                Ok(Answer::Released { had_it: false, .. }) if self.attempts > 1 => {
                    Err(Error::of(ErrorKind::Unavailable))
                }
                _ => settled(&result),
            });
        }
        events.answered(&self.key, self.command, Outcome { sent_at, result });
    }
}

pub(super) fn no_answer(limit: &Duration) -> Error {
    Error::new(
        ErrorKind::Unavailable,
        format!("Redis did not answer within {limit:?}"),
    )
}
