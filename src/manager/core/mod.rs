//! [`Core`]: what all clones of a manager share.
//!
//! Each request, holder, reply of the store and tick of the clock is an [event] of one key.

mod event;
mod slots;
#[cfg(feature = "inspector")]
mod survey;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, oneshot};

use self::slots::Slots;
#[cfg(feature = "inspector")]
pub(crate) use self::survey::LocalLock;
use super::guard::LockGuard;
use super::slot::Rules;
use crate::clock::Time;
use crate::error::{Error, ErrorKind};
use crate::key::LockKey;
use crate::lease::{Lease, LostReason};
use crate::mode::Mode;
use crate::observe::{self, ManagerMeters, Meter, Role};
use crate::shield::shielded;
use crate::store::{Command, Events, Notice, Outcome, Record, ReplySender, Store};
use crate::sync::WakeAt;

pub(crate) struct Core {
    /// Tells this manager from the others in the process.
    pub(crate) id: u64,
    pub(super) store: Store,
    pub(super) rules: Rules,
    pub(super) command_timeout: Duration,
    /// How many keys a request may take at once.
    pub(super) max_keys: usize,
    slots: Slots,
    /// Numbers for tokens, leases and waiters, each used once.
    ids: AtomicU64,
    /// Keys whose lock this process has.
    pub(super) held: AtomicUsize,
    /// Requests that wait.
    pub(super) waiting: AtomicUsize,
    /// How many requests may wait.
    max_waiters: usize,
    /// Keys that are in a queue of the store.
    pub(super) queued: AtomicUsize,
    /// Clones of the manager.
    pub(super) handles: AtomicUsize,
    pub(super) is_closed: AtomicBool,
    /// Whether no more locks are given out, though some are held.
    pub(super) is_draining: AtomicBool,
    pub(super) is_running: AtomicBool,
    /// Notified whenever the background task ends. After the manager was closed, it ends when
    /// everything is done. Then also notified when a slot becomes idle.
    pub(super) stopped: Notify,
    pub(super) meters: ManagerMeters,
    /// Locks that are taken without a layer are counted under this.
    pub(super) meter: Meter,
    /// When the background task next visits the slots, as [`Time`] in nanoseconds.
    pub(super) next_visit: WakeAt,
}

pub(super) type TakeResult = Result<Taken, Error>;
type DecisionSender = oneshot::Sender<TakeResult>;

pub(in crate::manager) struct Waiter {
    decision: DecisionSender,
    /// What its lock is counted under.
    meter: Meter,
}

/// What a request gets.
pub(super) enum Taken {
    Lock(LockGuard),
    /// What is in the lock's place: see [`Store::fetch`].
    Record(Bytes),
}

/// A request for a lock that its slot has not decided on yet. Cancelled if it is dropped.
pub(super) struct Request<'a> {
    core: &'a Arc<Core>,
    key: &'a LockKey,
    number: u64,
    pub(super) decision: oneshot::Receiver<TakeResult>,
    pub(super) is_decided: bool,
    pub(super) is_patient: bool,
}

impl Request<'_> {
    /// Returns what was decided at once, as the slot need not ask the store.
    pub(super) fn decided(&mut self) -> Option<TakeResult> {
        let decision = self.decision.try_recv().ok()?;
        self.is_decided = true;
        Some(decision)
    }

    /// Gives up waiting. Returns the kind of error for a caller whose time is over.
    pub(super) fn give_up(mut self) -> ErrorKind {
        self.is_decided = true;
        let (number, is_available) = (self.number, self.core.store.is_available());
        let overdue = self.core.with_slot(self.key, |machine| {
            let overdue = machine.overdue(is_available);
            machine.cancel(number);
            Some(overdue)
        });
        overdue.unwrap_or(ErrorKind::Unavailable)
    }
}

impl Drop for Request<'_> {
    fn drop(&mut self) {
        if !self.is_decided {
            // A dropped sender would call the waker, which may panic, while the slot is locked.
            self.decision.close();
            let number = self.number;
            self.core
                .with_slot(self.key, |machine| machine.cancel(number));
        }
    }
}

impl Core {
    pub(super) fn new(
        store: Store,
        rules: Rules,
        command_timeout: Duration,
        max_keys: usize,
        max_waiters: usize,
    ) -> Arc<Self> {
        static MANAGERS: AtomicU64 = AtomicU64::new(0);
        Arc::new(Self {
            id: MANAGERS.fetch_add(1, Ordering::Relaxed),
            store,
            rules,
            command_timeout,
            max_keys,
            slots: Slots::new(),
            ids: AtomicU64::new(1),
            held: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            max_waiters,
            queued: AtomicUsize::new(0),
            handles: AtomicUsize::new(0),
            is_closed: AtomicBool::new(false),
            is_draining: AtomicBool::new(false),
            is_running: AtomicBool::new(false),
            stopped: Notify::new(),
            meters: ManagerMeters::default(),
            meter: Meter::unnamed(Role::Manager),
            next_visit: WakeAt::new(),
        })
    }

    pub(super) fn request<'a>(
        self: &'a Arc<Self>,
        key: &'a LockKey,
        patient: bool,
        mode: Mode,
        meter: &Meter,
    ) -> Result<Request<'a>, Error> {
        self.gives_locks()?;
        let (sender, decision) = oneshot::channel();
        let waiter = Waiter {
            decision: sender,
            meter: meter.clone(),
        };
        let number = self.with_slot(key, |machine| {
            // Taken while the slot is locked: numbers rise in order of arrival.
            let number = machine.next_id();
            machine.request(number, waiter, patient, mode);
            // Whoever stops the giving has every slot locked once, before or after this.
            if let Err(error) = self.gives_locks() {
                machine.reject_all(&error);
            }
            number
        });
        self.ensure_running();
        Ok(Request {
            core: self,
            key,
            number,
            decision,
            is_decided: false,
            is_patient: patient,
        })
    }

    /// Ends a holder's lease: it released the lock, or dropped its guard.
    pub(super) fn finish(self: &Arc<Self>, lease: &Lease, reply: Option<ReplySender>) {
        lease.end(LostReason::Released);
        let (grant, may_linger) = (lease.grant(), reply.is_none());
        self.with_slot(lease.key(), |machine| {
            machine.finished(grant, reply, may_linger);
        });
        self.lease_ended(lease);
    }

    /// Lets a holder keep its lease while its record is written, for at most `time`.
    pub(super) fn recording(self: &Arc<Self>, lease: &Lease, time: Duration) {
        let grant = lease.grant();
        self.with_slot(lease.key(), |machine| machine.recording(grant.lease, time));
    }

    /// Ends a holder's lease with a record in the lock's place. Returns whether the lock was still
    /// held here.
    pub(super) fn complete(
        self: &Arc<Self>,
        lease: &Lease,
        record: Record,
        reply: ReplySender,
    ) -> bool {
        lease.end(LostReason::Released);
        let grant = lease.grant();
        let was_held = self.with_slot(lease.key(), |machine| {
            machine.completed(grant, record, Some(reply))
        });
        self.lease_ended(lease);
        was_held
    }

    fn lease_ended(self: &Arc<Self>, lease: &Lease) {
        shielded(|| {
            // The holder may know from the clock what the slot has not noticed.
            if let Some(reason) = lease
                .noticed_end()
                .filter(|why| *why != LostReason::Released)
            {
                observe::lost(&self.meters, lease, reason);
            }
            observe::released(&self.meters, lease);
        });
        // The background task may have ended: the manager was closed, and only this lease was left,
        // which was lost.
        self.ensure_running();
    }

    /// Returns the lease of the holder in this process, if there is one: of the first, if several
    /// share the lock.
    pub(super) fn lease_on(&self, key: &LockKey) -> Option<Lease> {
        let shard = self.slots.shard_of(key);
        let lease = shard.get(key)?.leases.first().cloned();
        lease.filter(Lease::is_held)
    }

    /// Returns how many shards there are to [tick](Self::tick).
    pub(super) fn shards(&self) -> usize {
        self.slots.shards()
    }

    /// Ticks the slots of a shard that have something to do by now. Returns when the first of the
    /// others will have.
    pub(super) fn tick(self: &Arc<Self>, shard: usize, now: Time) -> Option<Time> {
        let (mut due, mut next) = (Vec::new(), None);
        for (key, entry) in self.slots.shard(shard).iter() {
            match entry.slot.next_tick() {
                Some(at) if at <= now => due.push(key.clone()),
                at => next = at.into_iter().chain(next).min(),
            }
        }
        for key in due {
            self.with_slot(&key, |machine| {
                machine.tick();
            });
        }
        next
    }

    /// Returns whether no more requests can come.
    pub(super) fn is_ending(&self) -> bool {
        self.is_closed.load(Ordering::Acquire) || self.handles.load(Ordering::Acquire) == 0
    }

    /// Returns whether nothing is held, waited for, or in flight.
    pub(super) fn is_at_rest(&self) -> bool {
        self.slots.is_empty() && self.store.is_drained()
    }

    /// Wakes the background task, which may have nothing left to do.
    pub(super) fn wake(&self) {
        self.next_visit.wake();
        self.store.wake();
    }
}

/// Passes what the store tells on to the slots.
pub(super) struct StoreEvents<'a>(pub(super) &'a Arc<Core>);

impl Events for StoreEvents<'_> {
    fn replied(&self, key: &LockKey, command: Command<(), ()>, outcome: Outcome) {
        shielded(|| observe::replied(&self.0.meters, key, &command, &outcome));
        if !matches!(command, Command::Release { .. }) {
            self.0
                .with_slot(key, |machine| machine.replied(command, outcome));
        }
    }

    fn notice(&self, key: &LockKey, notice: Notice) {
        self.0.with_slot(key, |machine| machine.notice(notice));
    }

    fn reconnected(&self) {
        self.0.with_every_slot(|machine| {
            machine.reconnected();
        });
    }

    fn all_changed(&self) {
        self.0
            .with_every_slot(|machine| machine.notice(Notice::Changed));
    }

    fn is_held(&self, key: &LockKey, token: u64) -> bool {
        let shard = self.0.slots.shard_of(key);
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
