//! One event of a key: the slot is locked, its effects are carried out, and callers are told
//! afterwards.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use smallvec::SmallVec;

use super::slots::Entry;
use super::{Core, DecisionSender, Taken, Waiter};
use crate::clock::Time;
use crate::error::Error;
use crate::key::LockKey;
use crate::lease::{GrantPath, Lease, LostReason};
use crate::manager::guard::LockGuard;
use crate::manager::slot::{self, Census, Effect, Env};
use crate::observe;
use crate::shield::shielded;
use crate::store::{Command, Record, ReplySender};

type Effects = slot::Effects<Waiter, Record, Option<ReplySender>>;
pub(in crate::manager) type Machine<'a> = slot::Machine<'a, Waiter, Record, Option<ReplySender>>;

/// What callers are told once the slot is unlocked.
#[derive(Default)]
struct Outbox {
    settled: SmallVec<[(ReplySender, Result<(), Error>); 1]>,
    lost: SmallVec<[(Lease, LostReason); 1]>,
    decided: SmallVec<[(DecisionSender, Decision); 1]>,
    hand_ons: usize,
    /// Boxed: it is large, and never there.
    given_up: Option<Box<Entry>>,
}

/// What a waiter gets. Holds a `Lease`, not a `LockGuard`: dropping a guard here would lock the
/// shard again.
enum Decision {
    Granted(Lease),
    Recorded(Bytes),
    Rejected(Error),
}

impl Core {
    /// Lets an event happen to a key's slot, and carries out the effects.
    ///
    /// This function does not panic. A slot that does is given up, with the lock that it holds and
    /// the requests that wait there: no other key must suffer from it.
    pub(in crate::manager) fn with_slot<T: Default>(
        self: &Arc<Self>,
        key: &LockKey,
        event: impl FnOnce(&mut Machine<'_>) -> T,
    ) -> T {
        let env = Env {
            now: Time::now(),
            rules: &self.rules,
            ids: &self.ids,
            has_room: self.waiting.load(Ordering::Relaxed) < self.max_waiters,
        };
        let mut outbox = Outbox::default();
        let mut new = None;
        let mut shard = self.slots.shard_of(key);
        let entry = match shard.get_mut(key) {
            Some(entry) => entry,
            None => new.insert(Entry::default()),
        };
        let before = entry.slot.census();
        let result = shielded(|| {
            let mut effects = Effects::new();
            let result = event(&mut entry.slot.on(&env, &mut effects));
            self.carry_out(key, entry, &env, effects, &mut outbox);
            result
        });
        let result = result.unwrap_or_else(|| {
            outbox.given_up = Some(Box::new(self.give_up(key, entry, env.now)));
            T::default()
        });
        let after = entry.slot.census();
        self.count(before, after);
        if entry.slot.is_idle() {
            // They have ended, and would keep this core.
            entry.leases.clear();
        }
        if let Some(at) = entry.slot.next_tick() {
            self.next_visit.wake_by(at.as_nanos());
        }
        // A manager that ends waits for no memory.
        let is_over = entry.slot.is_empty() || entry.slot.is_idle() && self.is_ending();
        match (new, is_over) {
            (Some(entry), false) => {
                shard.insert(key.clone(), entry);
            }
            (None, true) => {
                shard.remove(key);
            }
            _ => {}
        }
        drop(shard);
        if is_over && self.is_ending() {
            self.wake();
            shielded(|| self.stopped.notify_waiters());
        }
        shielded(|| observe::waiting(&self.meters, key, before.waiting, after.waiting));
        self.tell(key, outbox);
        result
    }

    /// Lets an event happen to every slot.
    pub(in crate::manager) fn with_every_slot(self: &Arc<Self>, event: impl Fn(&mut Machine<'_>)) {
        for shard in 0..self.slots.shards() {
            let keys: Vec<LockKey> = self.slots.shard(shard).keys().cloned().collect();
            for key in keys {
                self.with_slot(&key, &event);
            }
        }
    }

    /// Submits the commands while the slot is locked: their order must be that of the events.
    fn carry_out(
        self: &Arc<Self>,
        key: &LockKey,
        entry: &mut Entry,
        env: &Env<'_>,
        mut effects: Effects,
        outbox: &mut Outbox,
    ) {
        // The driver, on another thread, would take the first alone.
        let sends = |effect: &&Effect<_, _, _>| matches!(effect, Effect::Send(_));
        let has_several = effects.iter().filter(sends).count() > 1;
        let _held_back = has_several.then(|| self.store.hold_back());
        while !effects.is_empty() {
            for effect in std::mem::take(&mut effects) {
                match effect {
                    Effect::Send(command) => {
                        let bare = command.bare();
                        let Some(done) = self.store.submit(env.now, key, command) else {
                            continue;
                        };
                        let mut machine = entry.slot.on(env, &mut effects);
                        machine.replied(bare, done.outcome);
                        if let Some(notice) = done.notice {
                            machine.notice(notice);
                        }
                        outbox.settled.extend(done.settled);
                    }
                    Effect::Grant {
                        waiter: Waiter { decision, meter },
                        grant,
                        path,
                    } => {
                        let is_handed_on = path == GrantPath::Local && !grant.mode.is_shared();
                        outbox.hand_ons += usize::from(is_handed_on);
                        let lease = Lease::new(Arc::clone(self), key.clone(), grant, path, meter);
                        entry.add(lease.clone());
                        outbox.decided.push((decision, Decision::Granted(lease)));
                    }
                    Effect::Replay { waiter, record } => {
                        outbox
                            .decided
                            .push((waiter.decision, Decision::Recorded(record)));
                    }
                    Effect::Reject { waiter, error } => {
                        outbox
                            .decided
                            .push((waiter.decision, Decision::Rejected(error)));
                    }
                    Effect::Extend { lease, until } => {
                        if let Some(lease) = entry.lease(lease) {
                            lease.extend(until);
                        }
                    }
                    Effect::Lose { lease, reason } => {
                        if let Some(lease) = entry.take(lease) {
                            // Now, while the slot is locked: afterwards, another holder may get the
                            // lock.
                            lease.end(reason);
                            outbox.lost.push((lease, reason));
                        }
                    }
                    Effect::HandedOn { lease, reply } => {
                        entry.take(lease);
                        outbox.settled.extend(reply.map(|reply| (reply, Ok(()))));
                    }
                }
            }
        }
    }

    /// Puts an idle slot in the place of one that panicked, and releases the lock that the broken
    /// one may hold.
    fn give_up(&self, key: &LockKey, entry: &mut Entry, now: Time) -> Entry {
        let broken = std::mem::take(entry);
        if let Some(lease) = broken.leases.first() {
            let release = Command::Release {
                token: lease.grant().token,
                contended: true,
                queued: false,
                reply: None,
            };
            self.store.submit(now, key, release);
        }
        broken
    }

    fn count(&self, before: Census, after: Census) {
        count(&self.held, before.is_held.into(), after.is_held.into());
        count(&self.waiting, before.waiting, after.waiting);
        count(&self.queued, before.in_store.into(), after.in_store.into());
    }

    /// Tells callers what happened. The slot is unlocked by now: their wakers and subscribers may
    /// do anything.
    fn tell(&self, key: &LockKey, outbox: Outbox) {
        for (reply, result) in outbox.settled {
            shielded(|| reply.send(result));
        }
        for (lease, reason) in outbox.lost {
            shielded(|| observe::lost(&self.meters, &lease, reason));
        }
        for _ in 0..outbox.hand_ons {
            shielded(|| observe::handed_on(&self.meters));
        }
        for (sender, decision) in outbox.decided {
            if let Decision::Granted(lease) = &decision {
                shielded(|| observe::held(&self.meters, lease));
            }
            // If the waiter is gone, its guard is dropped, which passes the lock on.
            shielded(|| {
                sender.send(match decision {
                    Decision::Granted(lease) => Ok(Taken::Lock(LockGuard::new(lease))),
                    Decision::Recorded(record) => Ok(Taken::Record(record)),
                    Decision::Rejected(error) => Err(error),
                })
            });
        }
        if let Some(broken) = outbox.given_up {
            shielded(|| observe::slot_given_up(key));
            for lease in &broken.leases {
                lease.end(LostReason::Expired);
            }
            // Its waiters fail as their senders are dropped.
            shielded(|| drop(broken.slot));
        }
    }
}

fn count(total: &AtomicUsize, before: usize, after: usize) {
    if after > before {
        total.fetch_add(after - before, Ordering::Relaxed);
    } else if after < before {
        total.fetch_sub(before - after, Ordering::Relaxed);
    }
}
