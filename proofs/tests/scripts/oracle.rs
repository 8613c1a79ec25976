//! [`Oracle`]: what the server is expected to reply, to publish and to keep.

use std::collections::HashMap;
use std::fmt::Debug;

use redis::Value;

use crate::calls::{Done, Link, Piece, is_error, message, reply, taken};
use crate::model::{Epoch, Message, Mutation, Owner, Process, Redis, Reply, Token};
use crate::programs::{Event, Kind, Operation, Settings};
use crate::wire::{name_of, owner, text, token};
use crate::{
    Check, EPOCH, FENCE, FOREIGN_TTL_MS, OWNERS, PROCESSES, QUEUES, READERS, RETENTION_MS, Script,
    TOLERANCE_MS, ensure, same,
};

/// When something happened, by the server's clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    pub(crate) from_us: u64,
    pub(crate) to_us: u64,
}

impl Window {
    pub(crate) fn now_ms(self) -> u64 {
        self.from_us / 1000
    }

    pub(crate) fn clock_us(self) -> u64 {
        self.from_us
    }

    /// How much higher than the model's a fence may be. The model has the time of the window's
    /// beginning.
    pub(crate) fn slack_us(self) -> u64 {
        self.to_us - self.from_us
    }
}

/// A fence that was given out.
#[derive(Debug)]
pub(crate) struct Fence {
    pub(crate) seen: Seen,
    pub(crate) least: u64,
    pub(crate) most: u64,
}

#[derive(Debug)]
pub(crate) enum Seen {
    Share(u64),
    /// In this message of the inbox.
    Message(Process, usize),
}

/// The models of all locks, and the inboxes and fences that are expected of the server.
pub(crate) struct Oracle {
    pub(crate) mutation: Option<Mutation>,
    pub(crate) locks: [Redis; 2],
    /// The locks' fences have one counter.
    pub(crate) last_fence: u64,
    /// How much higher it may be than the model's, which has the time of a window's beginning.
    pub(crate) slack_us: u64,
    /// By client: what it knows of its connection.
    pub(crate) links: [Link; PROCESSES as usize],
    /// By client: the epoch when it connected.
    pub(crate) epochs: [Option<Epoch>; PROCESSES as usize],
    /// The servers' replication ids, by their numbers.
    pub(crate) servers: HashMap<u8, String>,
    /// What the server has saved.
    pub(crate) saved: ([Redis; 2], u64),
    /// By client: when its call was begun.
    pub(crate) began_us: [u64; PROCESSES as usize],
    /// By client: whether its call gave fences out.
    pub(crate) has_given: [bool; PROCESSES as usize],
    /// By client: whether the take of its call took the lock that is read next.
    pub(crate) has_taken: [bool; PROCESSES as usize],
    /// By client: how many takes of its call got their lock.
    pub(crate) got: [usize; PROCESSES as usize],
    pub(crate) listening: [bool; PROCESSES as usize],
    pub(crate) inboxes: [Vec<(usize, Message)>; PROCESSES as usize],
    /// The fences given out since the inboxes were last looked at, in order.
    pub(crate) fences: Vec<Fence>,
    pub(crate) highest_fence: u64,
}

impl Oracle {
    pub(crate) fn new(mutation: Option<Mutation>) -> Self {
        Self {
            mutation,
            locks: [Redis::new(mutation), Redis::new(mutation)],
            last_fence: 0,
            slack_us: 0,
            links: Default::default(),
            epochs: [None; PROCESSES as usize],
            servers: HashMap::new(),
            saved: ([Redis::new(mutation), Redis::new(mutation)], 0),
            began_us: [0; PROCESSES as usize],
            has_given: [false; PROCESSES as usize],
            has_taken: [false; PROCESSES as usize],
            got: [0; PROCESSES as usize],
            listening: [true; PROCESSES as usize],
            inboxes: Default::default(),
            fences: Vec::new(),
            highest_fence: 0,
        }
    }

    /// One command of a client's call was carried out.
    pub(crate) fn done(&mut self, time: Window, client: Process, done: &Done) -> Check {
        if done.is_first {
            self.began_us[usize::from(client)] = time.from_us;
            self.has_given[usize::from(client)] = false;
        }
        if is_error(&done.value, "NOSCRIPT") {
            return Ok(());
        }
        let (now_ms, times, value) = (time.now_ms(), done.times, &done.value);
        let of = match done.piece {
            Piece::Seed => return self.seeded(time, value),
            Piece::Count(takes) => return self.counted(client, takes, done),
            Piece::Quarantine(settings) => return self.quarantined(time, client, settings, value),
            Piece::Epoch => return self.epoch_read(client, value),
            Piece::Take(of)
            | Piece::TakeUnread(of)
            | Piece::ReadHolder(of)
            | Piece::Check(of)
            | Piece::Script(_, of) => of,
        };
        let Operation {
            process, number, ..
        } = of;
        let token = Token::Ours { process, number };
        let client = usize::from(client);
        let (queue, may_be_record) = match of.kind {
            Kind::Acquire {
                queue,
                may_be_record,
                ..
            } => (queue, may_be_record),
            Kind::Share { queue } => (queue, false),
            _ => (false, false),
        };
        let lock = &mut self.locks[of.key];
        lock.last_fence = self.last_fence;
        let is_there = |process| self.listening[usize::from(process)];
        let outcome = match done.piece {
            Piece::Take(_) => lock.take(now_ms, times, token, may_be_record),
            Piece::TakeUnread(_) => {
                let taken = lock.take_unread(now_ms, times, token);
                self.has_taken[client] = taken;
                self.got[client] += usize::from(taken);
                let expected = if taken { Value::Okay } else { Value::Nil };
                return same(&format!("{of:?}"), value, &expected);
            }
            Piece::ReadHolder(_) | Piece::Check(_) => {
                let found = lock.read(now_ms);
                return is_found(value, found).map_err(|error| format!("{of:?}: {error}"));
            }
            Piece::Script(script, _) => match script {
                Script::Acquire => {
                    let server = done.server;
                    lock.acquire(time.clock_us(), times, token, server, queue, may_be_record)
                }
                Script::Share => {
                    lock.share(time.clock_us(), times, token, done.server, queue, is_there)
                }
                Script::RenewShared => lock.renew_shared(now_ms, times, token),
                Script::Release => lock.release(now_ms, token),
                Script::Grant => lock.grant(time.clock_us(), times, token, done.server, is_there),
                Script::Renew => lock.renew(now_ms, times, token),
                Script::Complete => match of.kind {
                    Kind::Complete(record) => lock.complete(now_ms, token, record, RETENTION_MS),
                    _ => unreachable!("a completion has a record"),
                },
                Script::Seed | Script::Quarantine => unreachable!("it is about no lock"),
            },
            Piece::Seed | Piece::Count(_) | Piece::Quarantine(_) | Piece::Epoch => {
                unreachable!("they are about no lock")
            }
        };
        if lock.last_fence > self.last_fence + 1 || lock.last_fence < self.last_fence {
            self.slack_us = time.slack_us();
        } else if lock.last_fence > self.last_fence && done.is_seed_due {
            // The clock may have been ahead of the counter by then.
            self.slack_us = self.slack_us.max(time.slack_us());
        }
        self.last_fence = lock.last_fence;
        let is_take = matches!(outcome.reply, Reply::Acquired { fence: None, .. });
        self.got[client] += usize::from(is_take);
        if let Reply::Acquired {
            fence: Some(model), ..
        } = outcome.reply
        {
            self.drawn(client, model, done);
        }
        let reply = match done.piece {
            Piece::Script(script, _) => reply(script, &of, value)?,
            _ => taken(&of, value)?,
        };
        compare(&of, reply, outcome.reply)?;
        for message in outcome.messages {
            self.expect(of.key, message);
        }
        Ok(())
    }

    pub(crate) fn seeded(&mut self, time: Window, value: &Value) -> Check {
        let lock = &mut self.locks[0];
        lock.last_fence = self.last_fence;
        let Some(model) = lock.seed(time.clock_us()) else {
            return ensure(is_wrong_type(value), || format!("a seed is {value:?}"));
        };
        let slack = match model == self.last_fence {
            true => self.slack_us.max(time.slack_us()),
            false => time.slack_us(),
        };
        self.counter_is(value, model, slack)
    }

    pub(crate) fn quarantined(
        &mut self,
        time: Window,
        client: Process,
        settings: Settings,
        value: &Value,
    ) -> Check {
        let (from_ms, to_ms) = (time.from_us / 1000, time.to_us / 1000);
        let known = self.locks[0].epoch;
        let mut model = self.locks[0].quarantine(from_ms, settings.ttl_ms);
        let is_kept =
            known == Some(model) && self.mutation != Some(Mutation::QuarantineStartsAgain);
        let slack_ms = if is_kept { 0 } else { to_ms - from_ms };
        let wrong = || format!("a quarantine is {value:?}, in the model {model:?}");
        let Value::Array(parts) = value else {
            return Err(wrong());
        };
        let [epoch, Value::Int(remaining)] = &parts[..] else {
            return Err(wrong());
        };
        let (server, ends_ms) = epoch_of(epoch).ok_or_else(wrong)?;
        let is_so = (model.ends_ms..=model.ends_ms + slack_ms).contains(&ends_ms)
            && (from_ms..=to_ms).contains(&ends_ms.saturating_add_signed(-remaining));
        ensure(is_so, wrong)?;
        self.is_server(model.server, &server)?;
        model.ends_ms = ends_ms;
        self.locks[0].epoch = Some(model);
        self.epochs[usize::from(client)] = Some(model);
        Ok(())
    }

    /// Each server has an id of its own.
    pub(crate) fn is_server(&mut self, number: u8, id: &str) -> Check {
        let is_new = !self.servers.contains_key(&number);
        let is_known = self.servers.values().any(|known| known == id);
        ensure(!(is_new && is_known), || {
            format!(
                "the epoch is of {id}, in the model of {number}: {:?}",
                self.servers
            )
        })?;
        let known = self.servers.entry(number).or_insert_with(|| id.to_owned());
        same("the epoch's server", &id, &known.as_str())
    }

    /// Compares the epoch.
    pub(crate) fn epoch_is(&self, value: &Value) -> Check {
        let real = epoch_of(value);
        let model = self.locks[0].epoch.map(|epoch| {
            let id = self.servers.get(&epoch.server).cloned();
            (id.unwrap_or_default(), epoch.ends_ms)
        });
        same(EPOCH, &real, &model)
    }

    /// A client whose epoch is another by now uses nothing of its call.
    pub(crate) fn epoch_read(&mut self, client: Process, value: &Value) -> Check {
        let client = usize::from(client);
        let is_another = self.locks[0].epoch != self.epochs[client];
        ensure(!(is_another && self.has_given[client]), || {
            format!("fences are used, and the epoch is {value:?}")
        })?;
        self.epoch_is(value)
    }

    /// The counter of fences is seen.
    pub(crate) fn counter_is(&mut self, value: &Value, model: u64, slack: u64) -> Check {
        let real = match value {
            Value::Int(real) => *real as u64,
            _ => return Err(format!("the counter is {value:?}")),
        };
        ensure((model..=model + slack).contains(&real), || {
            format!("the counter is {real}, in the model {model}, and {slack} more at most")
        })?;
        (self.last_fence, self.slack_us) = (real, 0);
        Ok(())
    }

    /// A script has drawn a fence for its token.
    fn drawn(&mut self, client: usize, model: u64, done: &Done) {
        self.has_given[client] |= !done.fences.is_empty();
        for fence in &done.fences {
            let seen = Seen::Share(*fence);
            let (least, most) = (model, model + self.slack_us);
            self.fences.push(Fence { seen, least, most });
        }
    }

    pub(crate) fn counted(&mut self, client: Process, takes: u64, done: &Done) -> Check {
        let got = std::mem::take(&mut self.got[usize::from(client)]);
        self.has_given[usize::from(client)] |= !done.fences.is_empty();
        let lock = &mut self.locks[0];
        lock.last_fence = self.last_fence;
        let Some(model) = lock.count(takes) else {
            let value = &done.value;
            return ensure(is_wrong_type(value), || format!("a count is {value:?}"));
        };
        self.counter_is(&done.value, model, self.slack_us)?;
        if !done.fences.is_empty() {
            same("takes that got their lock", &done.fences.len(), &got)?;
        }
        let client = usize::from(client);
        let clock = match done.is_seed_due && self.mutation.is_none() {
            true => self.began_us[client],
            false => 0,
        };
        for fence in &done.fences {
            let seen = Seen::Share(*fence);
            let (least, most) = (clock.max(done.seed + 1), self.last_fence);
            self.fences.push(Fence { seen, least, most });
        }
        Ok(())
    }

    pub(crate) fn expect(&mut self, key: usize, message: Message) {
        let process = message.process();
        if !self.listening[usize::from(process)] {
            return;
        }
        let inbox = &mut self.inboxes[usize::from(process)];
        if let Message::Granted { fence: model, .. } = message {
            let seen = Seen::Message(process, inbox.len());
            let (least, most) = (model, model + self.slack_us);
            self.fences.push(Fence { seen, least, most });
        }
        inbox.push((key, message));
    }

    /// Compares what has come into the inboxes, and the fences there and in the replies.
    pub(crate) fn inboxes(&mut self, payloads: &[Vec<String>]) -> Check {
        let mut fences = Vec::new();
        for (process, payloads) in (0..).zip(payloads) {
            let mut expected = std::mem::take(&mut self.inboxes[usize::from(process)]);
            let read = payloads.iter().map(|payload| {
                message(process, payload).ok_or_else(|| format!("no message: {payload:?}"))
            });
            let mut real = read.collect::<Result<Vec<_>, _>>()?;
            sort_wanted(&mut real);
            sort_wanted(&mut expected);
            fences.push(real.iter().map(|(_, message)| fence_of(*message)).collect());
            for ((_, expected), (_, real)) in expected.iter_mut().zip(&real) {
                put_fence(expected, fence_of(*real));
            }
            same(&format!("inbox of {process}"), &real, &expected)?;
        }
        self.check_fences(&fences)
    }

    pub(crate) fn check_fences(&mut self, in_messages: &[Vec<u64>]) -> Check {
        for given in std::mem::take(&mut self.fences) {
            let fence = match given.seen {
                Seen::Share(fence) => fence,
                Seen::Message(process, index) => in_messages[usize::from(process)][index],
            };
            let wrong = |why| format!("the fence {fence} {why}: {given:?}");
            ensure((given.least..=given.most).contains(&fence), || {
                wrong("is not the model's")
            })?;
            // Checked once more without the model, which a mutation may have changed.
            if !self.expects_fences_to_fall() {
                ensure(fence > self.highest_fence, || wrong("does not rise"))?;
            }
            self.highest_fence = fence;
        }
        Ok(())
    }

    pub(crate) fn expects_fences_to_fall(&self) -> bool {
        matches!(
            self.mutation,
            Some(Mutation::FencesByIncrement | Mutation::FencesFromLostCounter)
        )
    }

    pub(crate) fn happens(&mut self, time: Window, event: Event, key: usize, fence_ahead: u64) {
        let lock = &mut self.locks[key];
        match event {
            Event::ForeignTakes(_) => drop(lock.foreign_takes(time.now_ms(), FOREIGN_TTL_MS)),
            Event::ForeignSets(_) => lock.foreign_sets(None),
            Event::ForeignQueues(_) => lock.foreign_queues(),
            Event::OwnerDeleted | Event::OwnerExpires => lock.delete_owner(),
            Event::OwnerPersisted => lock.persist_owner(),
            Event::OwnerOfWrongType => {
                lock.delete_owner();
                lock.wrong_type.owner = true;
            }
            Event::QueueDeleted | Event::QueueExpires => lock.delete_queue(),
            Event::QueueOfWrongType => {
                lock.delete_queue();
                lock.wrong_type.queue = true;
            }
            Event::ReadersDeleted => lock.delete_readers(),
            Event::ReaderOverdue => lock.reader_overdue(name_of),
            Event::FenceOfWrongType => self.fence_replaced(time, true, 0),
            Event::FenceDeleted => self.fence_replaced(time, false, 0),
            Event::ClockSetBack => self.fence_replaced(time, false, fence_ahead),
            Event::Flushed => {
                self.locks.iter_mut().for_each(Redis::flush_all);
                self.fence_replaced(time, false, 0);
            }
            Event::EpochReplaced(_) | Event::EpochSpoilt => self.locks[0].epoch = None,
            Event::TakenOver => self.locks[0].take_over(),
        }
    }

    pub(crate) fn saves(&mut self) {
        self.saved = (self.locks.clone(), self.last_fence);
    }

    /// The server was killed, and has what it saved. Nothing is on its way: all was compared.
    pub(crate) fn restarted(&mut self, time: Window) {
        let server = self.locks[0].server;
        let (locks, fence) = self.saved.clone();
        self.locks = locks;
        self.locks[0].server = server;
        self.locks[0].take_over();
        self.fence_replaced(time, self.locks[0].wrong_type.fence, fence);
    }

    pub(crate) fn fence_replaced(&mut self, time: Window, is_wrong: bool, fence: u64) {
        (self.last_fence, self.slack_us) = (fence, 0);
        for lock in &mut self.locks {
            lock.wrong_type.fence = is_wrong;
        }
        // Nothing helps against a clock that is set back and a counter that is lost.
        if fence < self.highest_fence && self.highest_fence > time.from_us {
            self.highest_fence = 0;
        }
    }

    /// Compares what the server has under the lock's keys: the answers to `look`.
    pub(crate) fn keys(&self, now_ms: u64, key: usize, found: &[Value]) -> Check {
        let lock = &self.locks[key];
        let [real, owner_ttl, queue, queue_ttl, readers, readers_ttl] = found else {
            return Err(format!("found {found:?}"));
        };
        let name = OWNERS[key];
        if lock.wrong_type.owner {
            return ensure(is_wrong_type(real), || format!("{name}: found {real:?}"));
        }
        let model = lock.owner.map(|owner| (owner.token, owner.is_marked));
        same(name, &owner(real), &model)?;
        let expires = lock.owner.map(|Owner { expires_ms, .. }| expires_ms);
        time_to_live(name, owner_ttl, expires, now_ms)?;

        let name = QUEUES[key];
        if lock.wrong_type.queue {
            return ensure(is_wrong_type(queue), || format!("{name}: found {queue:?}"));
        }
        let Value::Array(queue) = queue else {
            return Err(format!("{name}: found {queue:?}"));
        };
        let real: Vec<_> = queue.iter().filter_map(owner).collect();
        let model: Vec<_> = lock.queue.iter().map(|token| (*token, false)).collect();
        same(name, &real, &model)?;
        let expires = (!lock.queue.is_empty()).then_some(lock.queue_expires_ms);
        time_to_live(name, queue_ttl, expires, now_ms)?;

        let name = READERS[key];
        let mut real: Vec<(String, f64)> = redis::from_redis_value(readers.clone())
            .map_err(|error| format!("{name}: found {readers:?}: {error}"))?;
        let model = lock.readers.iter().copied();
        let mut model: Vec<(String, u64)> = model
            .map(|(token, expires)| (name_of(token), expires))
            .collect();
        real.sort_by(|(one, _), (next, _)| one.cmp(next));
        model.sort();
        let are_same = real.len() == model.len()
            && real.iter().zip(&model).all(|(real, model)| {
                real.0 == model.0 && is_about(Some(real.1 as u64), Some(model.1))
            });
        ensure(are_same, || {
            format!("{name}: the server has {real:?}, the model {model:?}")
        })?;
        let expires = (!lock.readers.is_empty()).then_some(lock.readers_expire_ms);
        time_to_live(name, readers_ttl, expires, now_ms)
    }

    /// Compares the epoch and the counter of fences.
    pub(crate) fn counter(&mut self, [found, epoch]: [Value; 2]) -> Check {
        self.epoch_is(&epoch)?;
        let found = &found;
        if self.locks[0].wrong_type.fence {
            return ensure(is_wrong_type(found), || format!("{FENCE}: found {found:?}"));
        }
        let real = match text(found) {
            Some(text) => text.parse().map_err(|error| format!("{text:?}: {error}"))?,
            None => 0,
        };
        self.counter_is(&Value::Int(real), self.last_fence, self.slack_us)
    }
}

pub(crate) fn compare(of: &Operation, mut real: Reply, model: Reply) -> Check {
    if let (
        Reply::Held { remaining_ms, .. },
        Reply::Held {
            remaining_ms: model,
            ..
        },
    ) = (&mut real, model)
    {
        ensure(is_about(*remaining_ms, model), || {
            format!("{of:?}: {remaining_ms:?} ms remain, in the model {model:?}")
        })?;
        *remaining_ms = model;
    }
    // A fence that is used is compared by itself.
    if let (Reply::Acquired { fence, .. }, Reply::Acquired { fence: model, .. }) =
        (&mut real, model)
        && fence.is_some() == model.is_some()
    {
        *fence = model;
    }
    same(&format!("{of:?}"), &real, &model)
}

/// Compares what a read found in a lock's place. Nothing and an empty value look the same.
pub(crate) fn is_found(value: &Value, model: Option<Option<Owner>>) -> Check {
    let is_so = match (value, model) {
        (_, None) => is_wrong_type(value),
        (Value::BulkString(bytes), Some(owner)) => match owner {
            _ if bytes.is_empty() => owner.is_none_or(|owner| owner.token == Token::Foreign),
            Some(owner) => token(bytes) == (owner.token, owner.is_marked),
            None => false,
        },
        _ => false,
    };
    ensure(is_so, || format!("found {value:?}, in the model {model:?}"))
}

/// Reads an epoch: the server's replication id, and when the quarantine ends.
pub(crate) fn epoch_of(value: &Value) -> Option<(String, u64)> {
    let text = text(value)?;
    let (server, ends) = text.split_once(' ')?;
    let is_hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
    (server.len() == 40 && is_hex(server)).then_some(())?;
    Some((server.to_owned(), ends.parse().ok()?))
}

/// Puts messages into a fixed order that tell all that share a lock the same: theirs is that of
/// their leases, to the ms.
pub(crate) fn sort_wanted(messages: &mut [(usize, Message)]) {
    let number = |(_, message): &(usize, Message)| match message {
        Message::Contended { number, .. } => Some(*number),
        _ => None,
    };
    let same = |one: &(usize, Message), next: &(usize, Message)| {
        one.0 == next.0 && number(one).is_some() && number(next).is_some()
    };
    for wanted in messages.chunk_by_mut(same) {
        wanted.sort_by_key(number);
    }
}

pub(crate) fn fence_of(message: Message) -> u64 {
    match message {
        Message::Granted { fence, .. } => fence,
        Message::Contended { .. } | Message::Completed { .. } => 0,
    }
}

pub(crate) fn put_fence(message: &mut Message, new: u64) {
    if let Message::Granted { fence, .. } = message {
        *fence = new;
    }
}

pub(crate) fn is_about(real: Option<u64>, model: Option<u64>) -> bool {
    match (real, model) {
        (Some(real), Some(model)) => real.abs_diff(model) <= TOLERANCE_MS,
        (real, model) => real == model,
    }
}

pub(crate) fn is_wrong_type(value: &Value) -> bool {
    is_error(value, "WRONGTYPE")
}

/// Compares a reply of `PTTL`. The model has `None` for a key that is not there, and `Some(None)`
/// for one without expiry.
pub(crate) fn time_to_live(
    name: &str,
    real: &Value,
    model: Option<Option<u64>>,
    now_ms: u64,
) -> Check {
    let holds = match (real, model) {
        (Value::Int(-2), None) | (Value::Int(-1), Some(None)) => true,
        (Value::Int(real @ 0..), Some(Some(expires))) => {
            is_about(Some(*real as u64), Some(expires.saturating_sub(now_ms)))
        }
        _ => false,
    };
    ensure(holds, || {
        format!("{name} lives for {real:?} ms, in the model until {model:?}, and it is {now_ms}")
    })
}
