//! What must be true of every case, at any moment and in the end.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{
    A_TICK, A_WHILE, BOTH, COMMAND_TIMEOUT, Held, Kind, Link, NAMES, NEIGHBOUR, Running, World,
};
use crate::clock::Time;
use crate::error::{Error, ErrorKind};
use crate::key::LockKey;
use crate::lease::LostReason;
use crate::manager::core::tests::program::MANAGERS;
use crate::manager::slot::tests::Standing;
use crate::store::Command;
use crate::store::fake::Token;

impl World {
    /// Judges what must be true at any moment.
    pub(super) fn judge(&mut self) {
        if self.wrong.is_some() {
            return;
        }
        let now = Time::now();
        let is_late = |running: &&Running| {
            running
                .deadline
                .is_some_and(|deadline| deadline + A_TICK < now)
        };
        let late = self.tasks.iter().filter(is_late).count();
        self.must(late == 0, || format!("{late} are not done in time"));
        self.judge_guards(now);
        self.judge_losses(now);
        self.judge_meaning();
        self.judge_watchers();
        self.judge_completions(now);
        self.judge_renewals();
        self.judge_counters();
    }

    /// A lock that a guard says is held is held in its slot, and in the server, and by no other
    /// guard, unless both share it.
    fn judge_guards(&mut self, now: Time) {
        let is_excused = self.lost_data || self.was_deceived();
        let mut wrong = None;
        for (at, Held { guard, manager, .. }) in self.guards.iter().enumerate() {
            if !guard.lease().is_held() {
                continue;
            }
            let token = guard.lease().grant().token;
            let of_guard = Token {
                process: *manager,
                number: token,
            };
            if !self.links[*manager].holds(guard.key(), token) {
                wrong = Some("its slot does not hold it");
            } else if !is_excused && !self.truth.holders(guard.key(), now).contains(&of_guard) {
                wrong = Some("the server does not have it");
            }
            let mode = guard.lease().mode();
            let same = |held: &Held| {
                let share = mode.is_shared() && held.guard.lease().mode().is_shared();
                held.guard.key() == guard.key() && !share
            };
            let others = self.guards[..at].iter().filter(|held| same(held));
            if others.clone().any(|held| held.guard.lease().is_held()) && !is_excused {
                wrong = Some("another guard holds it, too");
            }
            if let Some(wrong) = wrong {
                let what = format!("{guard:?} says that it is held, and {wrong}");
                self.wrong = Some(what);
                return;
            }
        }
    }

    /// A lease runs out only where it could not be renewed.
    fn judge_losses(&mut self, now: Time) {
        let is_excused = self.lost_data || self.was_deceived();
        let mut wrong = None;
        for held in &mut self.guards {
            let reason = held.guard.lease().lost_reason();
            if reason.is_none() || std::mem::replace(&mut held.is_lost, true) {
                continue;
            }
            let trouble = self.links[held.manager].last_trouble.max(self.unserved);
            let is_excused = is_excused || now <= trouble + A_WHILE;
            if !is_excused && reason != Some(LostReason::MaxHold) {
                wrong = Some(format!(
                    "{:?} is lost though the server was there",
                    held.guard
                ));
            }
        }
        self.must(wrong.is_none(), || wrong.unwrap_or_default());
    }

    /// A request that waits for a lock gets it when the lock has expired.
    pub(super) fn judge_patience(&mut self, manager: usize, key: usize, kind: ErrorKind) {
        let (name, now) = (&NAMES[key], Time::now());
        let is_free = self.truth.value(name, now).is_none();
        let Some(expired) = self.truth.expired.get(name).copied() else {
            return;
        };
        let link = &self.links[manager];
        let since = expired.max(link.last_trouble).max(self.unserved);
        // The process waits for the remaining time that a reply named, counted from that reply.
        let soon = since + COMMAND_TIMEOUT + A_WHILE;
        let is_excused = self.lost_data || self.was_deceived() || now <= soon;
        let is_wrong = kind == ErrorKind::TimedOut && is_free && !is_excused;
        self.must(!is_wrong, || {
            format!("a request of manager {manager} waited for key {key}, which had expired")
        });
    }

    /// Redis is said to be away only where it was.
    pub(super) fn judge_refusal(&mut self, manager: usize, key: usize, error: &Error) {
        let link = &self.links[manager];
        let mut is_excused = link.had_trouble || link.was_deceived;
        // Its wait was over before any reply.
        link.pending(|pending| {
            is_excused |=
                matches!(pending.command, Command::Acquire { .. }) && pending.key == NAMES[key];
        });
        self.must(error.kind() != ErrorKind::Unavailable || is_excused, || {
            format!("the store is there, and manager {manager} says {error}")
        });
    }

    /// A slot that is not idle has a request, a holder or a record in flight.
    fn judge_meaning(&mut self) {
        for number in 0..MANAGERS {
            for (key, name) in NAMES.iter().enumerate() {
                let core = &self.links[number].core;
                let slots = core.slots.shard_of(name);
                let Some(standing) = slots.get(name).map(|entry| entry.slot.stands_for()) else {
                    continue;
                };
                drop(slots);
                let is_meant = match standing {
                    Standing::Nothing => false,
                    Standing::Waiters => self.waits(number, key) || self.takes_both(number, key),
                    Standing::Lingering | Standing::Memory => true,
                    Standing::Holder { token } => {
                        let is_guarded = self.guards.iter().any(|held| {
                            held.manager == number
                                && held.guard.key() == name
                                && held.guard.lease().grant().token == token
                        });
                        is_guarded || self.takes_both(number, key)
                    }
                    Standing::Record { token } => {
                        let mut is_in_flight = false;
                        self.links[number].pending(|pending| {
                            is_in_flight |= pending.key == *name
                                && pending.command.bare() == completion_of(token);
                        });
                        is_in_flight
                    }
                };
                self.must(is_meant, || {
                    format!(
                        "the slot of key {key} in manager {number} has no request, holder or record"
                    )
                });
            }
        }
    }

    fn waits(&self, number: usize, key: usize) -> bool {
        self.tasks.iter().any(|running| match running.kind {
            Kind::Take { manager, key: of } => manager == number && of == key,
            _ => false,
        })
    }

    /// Returns whether a request wants this lock together with the other: it may hold this one, or
    /// wait for it, or neither.
    fn takes_both(&self, number: usize, key: usize) -> bool {
        BOTH.contains(&key)
            && self.tasks.iter().any(|running| match running.kind {
                Kind::TakeBoth { manager } => manager == number,
                _ => false,
            })
    }

    fn judge_watchers(&mut self) {
        let watched = self.tasks.iter().filter_map(|running| match &running.kind {
            Kind::Watch { manager, lease } if !lease.is_held() => {
                let shares_touchy = self.touchy.contains(&(*manager, lease.grant().lease));
                (!shares_touchy).then_some(lease)
            }
            _ => None,
        });
        let untold = watched.count();
        self.must(untold == 0, || {
            format!("{untold} were not told that a lock is lost")
        });
    }

    /// The slot of a record that is in flight keeps the lock, for as long as its lease is valid.
    fn judge_completions(&mut self, now: Time) {
        let links = &self.links;
        let mut given_up = false;
        self.completions.retain(|completion| {
            let link = &links[completion.manager];
            let mut is_pending = false;
            link.pending(|pending| {
                is_pending |= pending.key == completion.key
                    && pending.command.bare() == completion_of(completion.token);
            });
            let valid_until = link.valid_until.get(&completion.token);
            let is_valid = now < completion.until && valid_until.is_some_and(|until| now < *until);
            let is_kept = link.holds(&completion.key, completion.token);
            given_up |= is_pending && is_valid && !is_kept;
            is_pending && is_valid
        });
        self.must(!given_up, || {
            "a slot gave up a lock whose record is in flight".to_owned()
        });
    }

    /// A token is renewed only for a holder, or for a record in flight.
    fn judge_renewals(&mut self) {
        let before = std::mem::take(&mut self.renewed);
        for (number, link) in self.links.iter().enumerate() {
            let mut completing = HashSet::new();
            link.pending(|pending| match pending.command {
                Command::Complete { token, .. } => drop(completing.insert((number, token))),
                Command::Renew { token, .. } => drop(self.renewed.insert((number, token))),
                _ => {}
            });
            let is_on_the_way = |(number, token): (usize, u64)| {
                let holds = |key: &usize| self.links[number].holds(&NAMES[*key], token);
                BOTH.iter()
                    .any(|key| self.takes_both(number, *key) && holds(key))
            };
            let is_meant = |renewed: &(usize, u64)| {
                completing.contains(renewed)
                    || is_on_the_way(*renewed)
                    || self
                        .guards
                        .iter()
                        .any(|held| (held.manager, held.guard.lease().grant().token) == *renewed)
            };
            let new = self.renewed.difference(&before);
            let mut needless = new.filter(|renewed| renewed.0 == number && !is_meant(renewed));
            if let (Some((_, token)), None) = (needless.next(), &self.wrong) {
                self.wrong = Some(format!("token {token} is renewed without a holder"));
            }
        }
    }

    fn judge_counters(&mut self) {
        for number in 0..MANAGERS {
            let core = Arc::clone(&self.links[number].core);
            let (mut held, mut waiting, mut queued) = (0, 0, 0);
            for name in NAMES.iter() {
                if let Some(entry) = core.slots.shard_of(name).get(name) {
                    let entry = entry.slot.census();
                    held += usize::from(entry.is_held);
                    waiting += entry.waiting;
                    queued += usize::from(entry.in_store);
                }
            }
            let counted = (
                core.held.load(Ordering::Relaxed),
                core.waiting.load(Ordering::Relaxed),
                core.queued.load(Ordering::Relaxed),
            );
            self.must(counted == (held, waiting, queued), || {
                format!(
                    "{held} are held, {waiting} wait and {queued} queue, and counted are {counted:?}"
                )
            });
        }
    }

    /// Once all replies are in, and before any time passes: each lock that the server has for a
    /// manager has a holder, managers whose requests wait are in the queue, and no other is.
    pub(super) fn judge_quiet(&mut self) {
        let is_excused = |link: &Link| link.left_something || link.was_deceived;
        if self.lost_data || self.links.iter().any(is_excused) || self.wrong.is_some() {
            return;
        }
        let now = Time::now();
        for (key, name) in NAMES.iter().enumerate() {
            let current = self.truth.value(name, now).cloned();
            let queue = self.truth.queue(name, now).to_vec();
            for token in self.truth.holders(name, now) {
                let holds = |held: &Held| {
                    held.manager == token.process
                        && held.guard.key() == name
                        && held.guard.lease().grant().token == token.number
                };
                let mut is_held = token.process == NEIGHBOUR
                    || self.guards.iter().any(holds)
                    || self.takes_both(token.process, key);
                if let Some(link) = self.links.get(token.process) {
                    is_held |= self.lingers(token.process, name);
                    // Its release was refused a while ago, and is tried again soon.
                    link.pending(|pending| is_held |= pending.ends_hold() && pending.key == *name);
                }
                self.must(is_held, || {
                    format!("{token:?} has key {key} without a holder")
                });
            }
            // No notice tells of an expiry: a waiting process acquires again soon.
            let may_be_free = current.is_some() || self.truth.expired.contains_key(name);
            for number in 0..MANAGERS {
                let is_in_queue = queue.iter().any(|token| token.process == number);
                let waits = self.waits(number, key);
                let may_wait = waits || self.takes_both(number, key);
                self.must(may_wait || !is_in_queue, || {
                    format!("manager {number} is in the queue of key {key}, and no request waits")
                });
                let had_trouble = self.links[number].had_trouble;
                self.must(may_be_free || had_trouble || !waits, || {
                    format!("a request waits for key {key}, which is free")
                });
                let core = &self.links[number].core;
                let slots = core.slots.shard_of(name);
                let is_queued = slots
                    .get(name)
                    .is_some_and(|entry| entry.slot.census().in_store);
                drop(slots);
                self.must(is_in_queue || !is_queued || !may_be_free, || {
                    format!("manager {number} waits in the queue of key {key}, and is not there")
                });
            }
        }
    }

    fn lingers(&self, number: usize, name: &LockKey) -> bool {
        let slots = self.links[number].core.slots.shard_of(name);
        let standing = slots.get(name).map(|entry| entry.slot.stands_for());
        matches!(standing, Some(Standing::Lingering))
    }

    pub(super) fn judge_end(&mut self) {
        let left = self.tasks.len();
        self.must(left == 0, || format!("{left} tasks are not done"));
        let now = Time::now();
        for name in NAMES.iter() {
            let current = self.truth.value(name, now).cloned();
            let queue = self.truth.queue(name, now).to_vec();
            self.must(current.is_none() && queue.is_empty(), || {
                format!("{name:?}: the server still has {current:?}, and waiting {queue:?}")
            });
        }
        for number in 0..MANAGERS {
            let core = Arc::clone(&self.links[number].core);
            let counted = (
                core.waiting.load(Ordering::Relaxed),
                core.queued.load(Ordering::Relaxed),
            );
            let is_at_rest = core.is_at_rest();
            self.must(counted == (0, 0) && is_at_rest, || {
                format!("manager {number} is not at rest ({is_at_rest}), or counts {counted:?}")
            });
        }
    }
}

fn completion_of(token: u64) -> Command<(), ()> {
    Command::Complete {
        token,
        record: (),
        reply: (),
    }
}
