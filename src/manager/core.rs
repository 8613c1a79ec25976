//! What all clones of a manager share: the slots, and the store.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use smallvec::SmallVec;
use tokio::sync::{Notify, oneshot};

use super::guard::LockGuard;
use super::slot::{self, Effect, Effects, Env, Rules, Slot};
use crate::clock::Time;
use crate::error::{Error, ErrorKind};
use crate::key::LockKey;
use crate::lease::{Lease, LostReason};
use crate::shield::shielded;
use crate::store::{Command, Events, Farewell, Notice, Outcome, Receipt, Record, Store};
use crate::sync::Alarm;

/// Keys that share a mutex. Many, so that requests for different keys do not wait for each other.
const SHARDS: usize = 64;

pub(crate) struct Core {
    /// Tells this manager from the others in the process.
    pub(crate) id: u64,
    pub(crate) store: Store,
    pub(super) rules: Rules,
    pub(crate) command_timeout: Duration,
    shards: Box<[Shard]>,
    /// Numbers for tokens, leases and waiters, each used once.
    ids: AtomicU64,
    /// Requests that wait.
    waiting: AtomicUsize,
    /// How many may.
    max_waiters: usize,
    /// Keys that are in a queue of the store.
    queued: AtomicUsize,
    /// Clones of the manager.
    pub(super) handles: AtomicUsize,
    pub(super) is_closed: AtomicBool,
    pub(super) is_running: AtomicBool,
    /// The background task has done everything that there was to do after the manager was closed.
    pub(super) stopped: Notify,
    /// When the background task looks at the slots next, as [`Time`] in nanoseconds.
    pub(super) look: Alarm,
}

type Slots = HashMap<LockKey, Entry, BuildHasherDefault<Prehashed>>;
type Shard = Mutex<Slots>;
type Answer = Result<Taken, Error>;
type Waiter = oneshot::Sender<Answer>;

/// What a request gets.
pub(crate) enum Taken {
    Held(LockGuard),
    /// There is this in the lock's place: see [`Store::fetch`].
    Recorded(Bytes),
}

#[derive(Default)]
struct Entry {
    slot: Slot<Waiter>,
    /// The current holder's.
    lease: Option<Lease>,
}

/// An [`Answer`], as long as its slot is locked: a guard could not be dropped there.
enum Answered {
    Granted(Lease),
    Recorded(Bytes),
    Rejected(Error),
}

/// What others are told of an event.
#[derive(Default)]
struct Told {
    lost: Vec<(Lease, LostReason)>,
    answers: SmallVec<[(Waiter, Answered); 1]>,
}

/// A request for a lock, as long as it has no answer. Cancelled if it is dropped.
pub(super) struct Request<'a> {
    core: &'a Arc<Core>,
    key: &'a LockKey,
    number: u64,
    pub(super) answer: oneshot::Receiver<Answer>,
    pub(super) is_answered: bool,
}

impl Request<'_> {
    /// Gives up waiting. Returns what there is to say then.
    pub(super) fn give_up(mut self) -> ErrorKind {
        self.is_answered = true;
        let number = self.number;
        let overdue = self.core.with_slot(self.key, |slot, _, effects| {
            let overdue = slot.overdue();
            slot.cancel(number, effects);
            Some(overdue)
        });
        match overdue {
            Some(kind) if self.core.store.is_available() => kind,
            // The lock may well be free.
            _ => ErrorKind::Unavailable,
        }
    }
}

impl Drop for Request<'_> {
    fn drop(&mut self) {
        if !self.is_answered {
            // Else its waker, which may panic, would be called while the slot is locked.
            self.answer.close();
            let number = self.number;
            self.core.with_slot(self.key, |slot, _, effects| {
                slot.cancel(number, effects);
            });
        }
    }
}

impl Core {
    pub(super) fn new(
        store: Store,
        rules: Rules,
        command_timeout: Duration,
        max_waiters: usize,
    ) -> Arc<Self> {
        static MANAGERS: AtomicU64 = AtomicU64::new(0);
        Arc::new(Self {
            id: MANAGERS.fetch_add(1, Ordering::Relaxed),
            store,
            rules,
            command_timeout,
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            ids: AtomicU64::new(1),
            waiting: AtomicUsize::new(0),
            max_waiters,
            queued: AtomicUsize::new(0),
            handles: AtomicUsize::new(0),
            is_closed: AtomicBool::new(false),
            is_running: AtomicBool::new(false),
            stopped: Notify::new(),
            look: Alarm::new(),
        })
    }

    pub(super) fn request<'a>(
        self: &'a Arc<Self>,
        key: &'a LockKey,
        patient: bool,
    ) -> Result<Request<'a>, Error> {
        if self.is_closed.load(Ordering::Acquire) {
            return Err(Error::of(ErrorKind::Closed));
        }
        let (reply, answer) = oneshot::channel();
        let number = self.with_slot(key, |slot, env, effects| {
            let number = env.ids.fetch_add(1, Ordering::Relaxed);
            slot.request(env, number, reply, patient, effects);
            number
        });
        self.ensure_running();
        Ok(Request {
            core: self,
            key,
            number,
            answer,
            is_answered: false,
        })
    }

    /// How long a request that does not wait may be without an answer. The store tells within twice the command timeout,
    /// or that it cannot say; behind that, whatever drives it does not run. A store in memory answers at once.
    pub(super) fn answers_within(&self) -> Option<Duration> {
        match &self.store {
            Store::Memory(_) => None,
            Store::Redis(_) => Some(3 * self.command_timeout),
            #[cfg(all(test, feature = "properties"))]
            Store::Fake(_) => Some(3 * self.command_timeout),
        }
    }

    /// Ends a holder's lease: it released the lock, or dropped its guard.
    pub(crate) fn finish(self: &Arc<Self>, lease: &Lease, receipt: Option<Receipt>) {
        lease.end(LostReason::Released);
        let grant = lease.grant();
        let record = None;
        let farewell = Farewell { receipt, record };
        self.with_slot_and(farewell, lease.key(), |slot, env, effects| {
            if !slot.finished(env, grant.lease, effects) {
                // The slot gave it up as lost. If it has not expired yet, others need not wait until then.
                effects.push(slot::release(grant.token));
            }
        });
        shielded(|| crate::trace::released(lease));
        // It had ended, if the manager was closed and this lease was all that was left, and lost.
        self.ensure_running();
    }

    /// Lets a holder keep its lease while its record is written, for so much time at most.
    pub(crate) fn recording(self: &Arc<Self>, lease: &Lease, time: Duration) {
        let grant = lease.grant();
        self.with_slot(lease.key(), |slot, env, effects| {
            slot.recording(env, grant.lease, time, effects);
        });
    }

    /// Ends a holder's lease with a record in the lock's place. Returns whether the lock was still held here.
    pub(crate) fn complete(
        self: &Arc<Self>,
        lease: &Lease,
        record: Record,
        receipt: Receipt,
    ) -> bool {
        lease.end(LostReason::Released);
        let grant = lease.grant();
        let farewell = Farewell {
            receipt: Some(receipt),
            record: Some(record),
        };
        let was_held = self.with_slot_and(farewell, lease.key(), |slot, env, effects| {
            let was_held = slot.completed(env, grant.lease, effects);
            if !was_held {
                effects.push(slot::release(grant.token));
            }
            was_held
        });
        shielded(|| crate::trace::released(lease));
        self.ensure_running();
        was_held
    }

    fn with_slot<R: Default>(
        self: &Arc<Self>,
        key: &LockKey,
        event: impl FnOnce(&mut Slot<Waiter>, &Env<'_>, &mut Effects<Waiter>) -> R,
    ) -> R {
        self.with_slot_and(Farewell::default(), key, event)
    }

    /// Lets an event happen to a key's slot, and carries out what follows from it. The farewell goes with the
    /// command that ends the hold; if none does, the lock was handed on here.
    ///
    /// It does not panic. A slot that does is given up, and with it what it holds and who waits there: no other key
    /// is to suffer from it.
    fn with_slot_and<R: Default>(
        self: &Arc<Self>,
        mut farewell: Farewell,
        key: &LockKey,
        event: impl FnOnce(&mut Slot<Waiter>, &Env<'_>, &mut Effects<Waiter>) -> R,
    ) -> R {
        let env = Env {
            now: Time::now(),
            rules: &self.rules,
            ids: &self.ids,
            has_room: self.waiting.load(Ordering::Relaxed) < self.max_waiters,
        };
        let mut told = Told::default();
        let mut given_up = None;
        let mut new = None;
        let mut shard = self.shard(key);
        let entry = match shard.get_mut(key) {
            Some(entry) => entry,
            None => new.insert(Entry::default()),
        };
        let before = entry.slot.waiting();
        let result = shielded(|| {
            let mut effects = Effects::new();
            let result = event(&mut entry.slot, &env, &mut effects);
            self.carry_out(key, entry, &env, effects, &mut farewell, &mut told);
            result
        });
        let result = result.unwrap_or_else(|| {
            let broken = std::mem::take(entry);
            if let Some(lease) = &broken.lease {
                let token = lease.grant().token;
                let release = Command::Release {
                    token,
                    wanted: true,
                };
                self.store
                    .submit(env.now, key, release, Farewell::default());
            }
            given_up = Some(broken);
            R::default()
        });
        let after = entry.slot.waiting();
        count(&self.waiting, before.requests, after.requests);
        count(&self.queued, before.in_store.into(), after.in_store.into());
        if let Some(at) = entry.slot.next_tick() {
            self.look.by(at.as_nanos());
        }
        let is_idle = entry.slot.is_idle();
        match (new, is_idle) {
            (Some(entry), false) => {
                shard.insert(key.clone(), entry);
            }
            (None, true) => {
                shard.remove(key);
                if self.is_ending() {
                    self.wake();
                }
            }
            _ => {}
        }
        drop(shard);
        if let Some(receipt) = farewell.receipt {
            shielded(|| receipt.send(Ok(())));
        }
        self.tell(told);
        if let Some(broken) = given_up {
            shielded(|| crate::trace::slot_given_up(key));
            if let Some(lease) = broken.lease {
                lease.end(LostReason::Expired);
            }
            // Its waiters are told as they are dropped.
            shielded(|| drop(broken.slot));
        }
        result
    }

    /// Hands over the commands while the slot is locked: their order must be that of the events.
    fn carry_out(
        &self,
        key: &LockKey,
        entry: &mut Entry,
        env: &Env<'_>,
        mut effects: Effects<Waiter>,
        farewell: &mut Farewell,
        told: &mut Told,
    ) {
        while !effects.is_empty() {
            for effect in std::mem::take(&mut effects) {
                match effect {
                    Effect::Send(command) => {
                        let farewell = match command {
                            Command::Complete { .. } => std::mem::take(farewell),
                            Command::Release { .. } => Farewell {
                                receipt: farewell.receipt.take(),
                                record: None,
                            },
                            _ => Farewell::default(),
                        };
                        if let Some((outcome, notice)) =
                            self.store.submit(env.now, key, command, farewell)
                        {
                            entry.slot.answered(env, command, outcome, &mut effects);
                            if let Some(notice) = notice {
                                entry.slot.notice(env, notice, &mut effects);
                            }
                        }
                    }
                    Effect::Grant { waiter, grant } => {
                        let lease = Lease::new(self.id, key.clone(), grant);
                        entry.lease = Some(lease.clone());
                        told.answers.push((waiter, Answered::Granted(lease)));
                    }
                    Effect::Replay { waiter, record } => {
                        told.answers.push((waiter, Answered::Recorded(record)));
                    }
                    Effect::Reject { waiter, error } => {
                        told.answers.push((waiter, Answered::Rejected(error)));
                    }
                    Effect::Extend { until } => {
                        if let Some(lease) = &entry.lease {
                            lease.extend(until);
                        }
                    }
                    Effect::Lose { reason } => {
                        if let Some(lease) = entry.lease.take() {
                            // Now, and not when the slot is free again: another may get the lock.
                            lease.end(reason);
                            told.lost.push((lease, reason));
                        }
                    }
                }
            }
        }
    }

    /// Tells others what happened, when the slot is not locked any more: what they do then is up to them.
    fn tell(self: &Arc<Self>, told: Told) {
        for (lease, reason) in told.lost {
            shielded(|| crate::trace::lost(&lease, reason));
        }
        for (waiter, answer) in told.answers {
            // A waiter that is gone drops its guard, which passes the lock on.
            shielded(|| {
                waiter.send(match answer {
                    Answered::Granted(lease) => {
                        Ok(Taken::Held(LockGuard::new(Arc::clone(self), lease)))
                    }
                    Answered::Recorded(record) => Ok(Taken::Recorded(record)),
                    Answered::Rejected(error) => Err(error),
                })
            });
        }
    }

    /// Lets an event happen to every slot.
    pub(super) fn with_every_slot(
        self: &Arc<Self>,
        event: impl Fn(&mut Slot<Waiter>, &Env<'_>, &mut Effects<Waiter>),
    ) {
        for shard in &self.shards {
            let keys: Vec<LockKey> = lock(shard).keys().cloned().collect();
            for key in keys {
                self.with_slot(&key, &event);
            }
        }
    }

    pub(super) fn shards(&self) -> usize {
        self.shards.len()
    }

    /// Tells the slots of a shard the time, if they have something to do by now. Returns when the first of the others has.
    pub(super) fn tick(self: &Arc<Self>, shard: usize, now: Time) -> Option<Time> {
        let (mut due, mut next) = (Vec::new(), None);
        for (key, entry) in lock(&self.shards[shard]).iter() {
            match entry.slot.next_tick() {
                Some(at) if at <= now => due.push(key.clone()),
                at => next = at.into_iter().chain(next).min(),
            }
        }
        for key in due {
            self.with_slot(&key, Slot::tick);
        }
        next
    }

    /// No more locks will be asked for.
    pub(super) fn is_ending(&self) -> bool {
        self.is_closed.load(Ordering::Acquire) || self.handles.load(Ordering::Acquire) == 0
    }

    /// Nothing is held, waited for, or on its way.
    pub(super) fn is_at_rest(&self) -> bool {
        self.shards.iter().all(|shard| lock(shard).is_empty()) && self.store.is_drained()
    }

    /// Makes the background task look whether its time has come.
    pub(super) fn wake(&self) {
        self.look.wake();
        if let Store::Redis(redis) = &self.store {
            redis.wake();
        }
    }

    fn shard(&self, key: &LockKey) -> MutexGuard<'_, Slots> {
        // Bits that the map itself does not begin with.
        let index = (key.hashed() >> 32) as usize % SHARDS;
        lock(&self.shards[index])
    }
}

fn lock(shard: &Shard) -> MutexGuard<'_, Slots> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

fn count(total: &AtomicUsize, before: usize, after: usize) {
    if after > before {
        total.fetch_add(after - before, Ordering::Relaxed);
    } else if after < before {
        total.fetch_sub(before - after, Ordering::Relaxed);
    }
}

/// Passes on the hash that a [`LockKey`] was made with.
#[derive(Default)]
struct Prehashed(u64);

impl Hasher for Prehashed {
    fn write(&mut self, _: &[u8]) {
        unreachable!("a key writes its hash");
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// What the store calls.
pub(super) struct StoreEvents<'a>(pub(super) &'a Arc<Core>);

impl Events for StoreEvents<'_> {
    fn answered(&self, key: &LockKey, command: Command, outcome: Outcome) {
        if !matches!(command, Command::Release { .. }) {
            self.0.with_slot(key, |slot, env, effects| {
                slot.answered(env, command, outcome, effects);
            });
        }
    }

    fn notice(&self, key: &LockKey, notice: Notice) {
        self.0.with_slot(key, |slot, env, effects| {
            slot.notice(env, notice, effects);
        });
    }

    fn reconnected(&self) {
        self.0.with_every_slot(Slot::reconnected);
    }

    fn all_changed(&self) {
        self.0.with_every_slot(|slot, env, effects| {
            slot.notice(env, Notice::Changed, effects);
        });
    }

    fn is_held(&self, key: &LockKey, token: u64) -> bool {
        let shard = self.0.shard(key);
        shard.get(key).is_some_and(|entry| entry.slot.holds(token))
    }

    fn awaits_grants(&self) -> bool {
        self.0.queued.load(Ordering::Relaxed) > 0
    }
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core").finish_non_exhaustive()
    }
}

#[cfg(all(test, feature = "properties"))]
mod tests;
