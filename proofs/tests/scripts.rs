//! The lock's script against a model of it: whatever clients do, and in any order, both reply,
//! publish and keep the same.

#[path = "model/redis.rs"]
mod model;
#[path = "../../tests/support/mod.rs"]
mod support;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt::Debug;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use model::{Message, Mutation, Owner, Process, Record, Redis, Reply, Times, Token};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use redis::{Cmd, Connection, ConnectionLike, Value, cmd};
use support::{PATIENCE, RedisServer};

const SCRIPT: &str = include_str!("../../src/store/redis/scripts/lock.lua");

// The names that the crate gives to its keys and channels, with the prefix `lock:`.
const FENCE: &str = "{lock:}:fence";
const EPOCH: &str = "{lock:}:epoch";
const INBOX: &str = "lock:inbox:";
const OWNERS: [&str; 2] = ["lock:a", "lock:{u}b"];
const QUEUES: [&str; 2] = ["{lock:a}:queue", "{u}:queue:lock:{u}b"];

const PROCESSES: Process = 3;
const NUMBERS: [u64; 2] = [1, u64::MAX];

/// Values that clients of another kind write. Some are nearly a token of ours.
const FOREIGN: [&str; 9] = [
    "",
    "somebody",
    "x:1",
    "a0:1",
    "000000000000000000000000000000a0",
    "000000000000000000000000000000a0:",
    "000000000000000000000000000000a0:1x",
    "0000000000000000000000000000000a0:1",
    "000000000000000000000000000000g0:1",
];

/// Records, which are put in a lock's place: any bytes that are no token. None is among `FOREIGN`.
const RECORDS: [&[u8]; 2] = [
    b"\x01\0\xff\r\n:\"1",
    b"000000000000000000000000000000a0:-1",
];

// None of them runs out by itself. No two are alike within the tolerance, nor are the queue's
// times, which follow from them.
const TIMES: [Times; 2] = [
    Times {
        ttl_ms: 60_000,
        grant_ttl_ms: 20_000,
    },
    Times {
        ttl_ms: 43_000,
        grant_ttl_ms: 30_000,
    },
];
const FOREIGN_TTL_MS: u64 = 100_000;
const RETENTION_MS: u64 = 150_000;
const TOLERANCE_MS: u64 = 5_000;

type Check = Result<(), String>;

fn ensure(holds: bool, otherwise: impl FnOnce() -> String) -> Check {
    if holds { Ok(()) } else { Err(otherwise()) }
}

fn same<T: PartialEq + Debug>(what: &str, real: &T, model: &T) -> Check {
    ensure(real == model, || {
        format!("{what}: the server has {real:?}, the model {model:?}")
    })
}

// What is generated.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Acquire,
    Queue,
    Claim,
    ClaimAndQueue,
    Release,
    Complete(Record),
    Renew,
    Check,
}

#[derive(Clone, Copy, Debug)]
struct Operation {
    kind: Kind,
    key: usize,
    process: Process,
    number: u64,
}

/// Events besides the script's calls, for the keys of one lock or for all.
#[derive(Clone, Copy, Debug)]
enum Event {
    ForeignTakes(&'static str),
    ForeignSets(&'static str),
    ForeignQueues(&'static str),
    OwnerDeleted,
    OwnerPersisted,
    OwnerExpires,
    OwnerOfWrongType,
    QueueDeleted,
    QueueExpires,
    QueueOfWrongType,
    FenceOfWrongType,
    /// The clock is set back, as far as the script can tell: the fence that it remembers is ahead.
    ClockSetBack,
    Flushed,
}

#[derive(Clone, Debug)]
enum Step {
    /// With one of two settings.
    Batch(Times, Vec<Operation>),
    Listens(Process, bool),
    Happens(Event, usize),
    /// The server forgets the script.
    ScriptFlushed,
}

fn key() -> impl Strategy<Value = usize> {
    prop_oneof![4 => Just(0), 1 => Just(1)]
}

fn operation(process: impl Strategy<Value = Process>) -> impl Strategy<Value = Operation> {
    let kind = prop_oneof![
        5 => Just(Kind::Queue),
        3 => Just(Kind::ClaimAndQueue),
        5 => Just(Kind::Release),
        2 => (0..RECORDS.len() as Record).prop_map(Kind::Complete),
        2 => Just(Kind::Renew),
        1 => Just(Kind::Check),
        1 => Just(Kind::Acquire),
        1 => Just(Kind::Claim),
    ];
    (kind, key(), process, select(&NUMBERS[..])).prop_map(|(kind, key, process, number)| {
        Operation {
            kind,
            key,
            process,
            number,
        }
    })
}

fn plain_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => select(&FOREIGN[..]).prop_map(Event::ForeignTakes),
        1 => select(&FOREIGN[..]).prop_map(Event::ForeignSets),
        1 => select(&FOREIGN[..]).prop_map(Event::ForeignQueues),
        2 => Just(Event::OwnerDeleted),
        1 => Just(Event::OwnerPersisted),
        1 => Just(Event::QueueDeleted),
        1 => Just(Event::Flushed),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        12 => plain_event(),
        2 => Just(Event::OwnerExpires),
        1 => Just(Event::QueueExpires),
        1 => Just(Event::OwnerOfWrongType),
        1 => Just(Event::QueueOfWrongType),
        1 => Just(Event::FenceOfWrongType),
        1 => Just(Event::ClockSetBack),
    ]
}

fn batch(process: impl Strategy<Value = Process>) -> impl Strategy<Value = Step> {
    let operations = vec(operation(process), 1..=4);
    (select(&TIMES[..]), operations).prop_map(|(times, batch)| Step::Batch(times, batch))
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        20 => batch(0..PROCESSES),
        3 => (0..PROCESSES, any::<bool>()).prop_map(|(process, does)| Step::Listens(process, does)),
        8 => (event(), key()).prop_map(|(event, key)| Step::Happens(event, key)),
        1 => Just(Step::ScriptFlushed),
    ];
    vec(step, 1..=40)
}

/// The calls of each process, and then those of a client of another kind, all at the same time.
fn programs() -> impl Strategy<Value = Vec<Vec<Step>>> {
    let process = |process| {
        let step = prop_oneof![
            8 => batch(Just(process)),
            1 => any::<bool>().prop_map(move |does| Step::Listens(process, does)),
        ];
        vec(step, 5..=25)
    };
    let foreign = (plain_event(), key()).prop_map(|(event, key)| Step::Happens(event, key));
    (process(0), process(1), process(2), vec(foreign, 0..=8))
        .prop_map(|(a, b, c, foreign)| vec![a, b, c, foreign])
}

// The same, as the server sees it.

fn id(process: Process) -> String {
    format!("{:032x}", 0xa0 + u32::from(process))
}

fn inbox(process: Process) -> String {
    format!("{INBOX}{}", id(process))
}

fn process_of(token_or_inbox: &str) -> Option<Process> {
    (0..PROCESSES).find(|process| token_or_inbox.contains(&id(*process)))
}

fn token(bytes: &[u8]) -> Token {
    let ours = |text: &str| {
        (0..PROCESSES).find_map(|process| {
            let number = text.strip_prefix(&id(process))?.strip_prefix(':')?;
            let number = number.parse().ok()?;
            Some(Token::Ours { process, number })
        })
    };
    let record = || (0..).zip(RECORDS).find(|(_, record)| *record == bytes);
    std::str::from_utf8(bytes)
        .ok()
        .and_then(ours)
        .or_else(|| record().map(|(record, _)| Token::Record(record)))
        .unwrap_or(Token::Foreign)
}

/// The call that the crate makes for a batch.
fn call(how: &str, script: &str, times: Times, batch: &[Operation]) -> Cmd {
    let mut call = cmd(how);
    call.arg(script).arg(2 + 2 * batch.len());
    call.arg(FENCE).arg(EPOCH);
    for operation in batch {
        call.arg(OWNERS[operation.key]).arg(QUEUES[operation.key]);
    }
    // Without a quarantine.
    let (ttl, grant_ttl) = (times.ttl_ms, times.grant_ttl_ms);
    call.arg(INBOX).arg(ttl).arg(grant_ttl).arg(0);
    for operation in batch {
        let Operation {
            process, number, ..
        } = operation;
        let kind = match operation.kind {
            Kind::Acquire => "acquire",
            Kind::Queue => "queue",
            Kind::Claim => "claim",
            Kind::ClaimAndQueue => "claim and queue",
            Kind::Release => "release",
            Kind::Complete(_) => "complete",
            Kind::Renew => "renew",
            Kind::Check => "check",
        };
        call.arg(kind).arg(format!("{}:{number}", id(*process)));
        if let Kind::Complete(record) = operation.kind {
            call.arg(RECORDS[usize::from(record)]).arg(RETENTION_MS);
        }
    }
    call
}

fn command(words: &[&str]) -> Cmd {
    let mut command = cmd(words[0]);
    command.arg(&words[1..]);
    command
}

impl Event {
    fn commands(self, key: usize, fence_ahead: u64) -> Vec<Cmd> {
        let (owner, queue) = (OWNERS[key], QUEUES[key]);
        let (ttl, fence) = (FOREIGN_TTL_MS.to_string(), fence_ahead.to_string());
        let commands: &[&[&str]] = match self {
            Self::ForeignTakes(text) => &[&["SET", owner, text, "NX", "PX", &ttl]],
            Self::ForeignSets(text) => &[&["SET", owner, text]],
            Self::ForeignQueues(text) => &[&["RPUSH", queue, text]],
            Self::OwnerDeleted => &[&["DEL", owner]],
            Self::OwnerPersisted => &[&["PERSIST", owner]],
            Self::OwnerExpires => &[&["PEXPIRE", owner, "1"]],
            Self::OwnerOfWrongType => &[&["DEL", owner], &["RPUSH", owner, "x"]],
            Self::QueueDeleted => &[&["DEL", queue]],
            Self::QueueExpires => &[&["PEXPIRE", queue, "1"]],
            Self::QueueOfWrongType => &[&["SET", queue, "x"]],
            Self::FenceOfWrongType => &[&["DEL", FENCE], &["RPUSH", FENCE, "x"]],
            Self::ClockSetBack => &[&["SET", FENCE, &fence]],
            Self::Flushed => &[&["FLUSHALL"]],
        };
        commands.iter().map(|words| command(words)).collect()
    }

    /// The key that expires soon after.
    fn expiring(self, key: usize) -> Option<&'static str> {
        match self {
            Self::OwnerExpires => Some(OWNERS[key]),
            Self::QueueExpires => Some(QUEUES[key]),
            _ => None,
        }
    }
}

/// Returns the value that the server has for a token, or in its place.
fn owner(value: &Value) -> Option<Token> {
    match value {
        Value::BulkString(bytes) => Some(token(bytes)),
        _ => None,
    }
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::BulkString(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
        Value::SimpleString(text) => Some(text.clone()),
        Value::Okay => Some("OK".to_owned()),
        _ => None,
    }
}

/// Returns the reply to an operation, as the comments in the script say it, and nothing else.
fn reply(kind: Kind, value: &Value) -> Result<Reply, String> {
    let nonsense = || format!("{value:?} is no reply to {kind:?}");
    let is_claim = matches!(kind, Kind::Claim | Kind::ClaimAndQueue);
    let number = match value {
        Value::Int(number) => *number,
        Value::BulkString(record) if is_claim => return Ok(Reply::Recorded(token(record))),
        _ => return Err(nonsense()),
    };
    let held = |number: u64| Reply::Held {
        remaining_ms: (number / 2).checked_sub(2),
        foreign: number % 2 == 1,
    };
    Ok(match (kind, number) {
        (_, 0) => Reply::Failed { got: false },
        (Kind::Release, 1..=4) => Reply::Released {
            had_it: number % 2 == 0,
            granted: number > 2,
        },
        (Kind::Complete(_) | Kind::Renew | Kind::Check, 1) => Reply::Gone,
        (Kind::Check, 2) => Reply::Intact,
        (Kind::Complete(_), 2) => Reply::Completed,
        (Kind::Renew, 2..=3) => Reply::Renewed {
            contended: number == 3,
        },
        (Kind::Release | Kind::Complete(_) | Kind::Renew | Kind::Check, _) => {
            return Err(nonsense());
        }
        (_, 2..) => Reply::Acquired {
            fence: number as u64 / 2,
            contended: number % 2 == 1,
        },
        (_, -2) => Reply::Failed { got: true },
        (_, ..=-3) => held(number.unsigned_abs() - 1),
        _ => return Err(nonsense()),
    })
}

fn replies(batch: &[Operation], value: &Value) -> Result<Vec<Reply>, String> {
    let nonsense = || format!("the script answers {value:?}");
    let Value::Array(values) = value else {
        return Err(nonsense());
    };
    let replies = batch.iter().zip(values);
    let replies = replies.map(|(operation, value)| reply(operation.kind, value));
    let replies = replies.collect::<Result<Vec<_>, _>>()?;
    let failed = |reply: &Reply| matches!(reply, Reply::Failed { .. });
    let failures = usize::from(replies.iter().any(failed));
    ensure(values.len() == batch.len() + failures, nonsense)?;
    let reason = values.get(batch.len()).map(text);
    ensure(
        reason.is_none_or(|text| text.is_some_and(|text| text.contains("WRONGTYPE"))),
        nonsense,
    )?;
    Ok(replies)
}

/// Reads the lock that a message is about, and the message.
fn message(process: Process, payload: &str) -> Option<(usize, Message)> {
    let (head, rest) = payload.split_once(':')?;
    let number = head.get(1..)?.parse().ok()?;
    let (message, owner) = match &head[..1] {
        "w" => (Message::Contended { process, number }, rest),
        "c" => (Message::Completed { process, number }, rest),
        "g" => {
            let mut parts = rest.splitn(4, ':');
            let fence = parts.next()?.parse().ok()?;
            let ttl_ms = parts.next()?.parse().ok()?;
            let contended = match parts.next()? {
                "0" => false,
                "1" => true,
                _ => return None,
            };
            let granted = Message::Granted {
                process,
                number,
                fence,
                ttl_ms,
                contended,
            };
            (granted, parts.next()?)
        }
        _ => return None,
    };
    let key = OWNERS.iter().position(|name| *name == owner)?;
    Some((key, message))
}

// Expectations.

/// When something happened, by the server's clock.
#[derive(Clone, Copy, Debug)]
struct Window {
    from_us: u64,
    to_us: u64,
}

impl Window {
    fn now_ms(self) -> u64 {
        self.from_us / 1000
    }

    /// How much higher than the model's a fence may be. The model has the time of the window's
    /// beginning.
    fn slack_us(self) -> u64 {
        self.to_us - self.now_ms() * 1000
    }
}

/// A fence that was given out.
#[derive(Debug)]
struct Fence {
    seen: Seen,
    model: u64,
    time: Window,
}

#[derive(Debug)]
enum Seen {
    Reply(u64),
    /// In this message of the inbox.
    Message(Process, usize),
}

/// The models of all locks, and the inboxes and fences that are expected of the server.
struct Oracle {
    mutation: Option<Mutation>,
    locks: [Redis; 2],
    /// The locks' fences have one memory.
    last_fence: u64,
    listening: [bool; PROCESSES as usize],
    inboxes: [Vec<(usize, Message)>; PROCESSES as usize],
    /// The fences given out since the inboxes were last looked at, in order.
    fences: Vec<Fence>,
    highest_fence: u64,
}

impl Oracle {
    fn new(mutation: Option<Mutation>) -> Self {
        Self {
            mutation,
            locks: [Redis::new(mutation), Redis::new(mutation)],
            last_fence: 0,
            listening: [true; PROCESSES as usize],
            inboxes: Default::default(),
            fences: Vec::new(),
            highest_fence: 0,
        }
    }

    fn operate(&mut self, now_ms: u64, times: Times, operation: &Operation) -> model::Outcome {
        let Operation {
            process, number, ..
        } = *operation;
        let token = Token::Ours { process, number };
        let is_there = |process| self.listening[usize::from(process)];
        let lock = &mut self.locks[operation.key];
        lock.last_fence = self.last_fence;
        let outcome = match operation.kind {
            Kind::Acquire => lock.acquire(now_ms, times, token, false),
            Kind::Queue => lock.acquire(now_ms, times, token, true),
            Kind::Claim => lock.claim(now_ms, times, token, false),
            Kind::ClaimAndQueue => lock.claim(now_ms, times, token, true),
            Kind::Release => lock.release(now_ms, times, token, is_there),
            Kind::Complete(record) => lock.complete(now_ms, token, record, RETENTION_MS),
            Kind::Renew => lock.renew(now_ms, times, token),
            Kind::Check => lock.check(now_ms, token),
        };
        self.last_fence = lock.last_fence;
        outcome
    }

    /// Compares the replies, and notes the inboxes and fences that must follow.
    fn batch(&mut self, time: Window, times: Times, batch: &[Operation], value: &Value) -> Check {
        for (operation, reply) in batch.iter().zip(replies(batch, value)?) {
            let outcome = self.operate(time.now_ms(), times, operation);
            self.compare(time, operation, reply, outcome.reply)?;
            for message in outcome.messages {
                self.expect(time, operation.key, message);
            }
        }
        Ok(())
    }

    fn compare(&mut self, time: Window, of: &Operation, mut real: Reply, model: Reply) -> Check {
        match (&mut real, model) {
            (Reply::Acquired { fence, .. }, Reply::Acquired { fence: model, .. }) => {
                let seen = Seen::Reply(*fence);
                self.fences.push(Fence { seen, model, time });
                *fence = model;
            }
            (
                Reply::Held { remaining_ms, .. },
                Reply::Held {
                    remaining_ms: model,
                    ..
                },
            ) => {
                ensure(is_about(*remaining_ms, model), || {
                    format!("{of:?}: {remaining_ms:?} ms remain, in the model {model:?}")
                })?;
                *remaining_ms = model;
            }
            _ => {}
        }
        same(&format!("{of:?}"), &real, &model)
    }

    fn expect(&mut self, time: Window, key: usize, message: Message) {
        let process = message.process();
        if !self.listening[usize::from(process)] {
            return;
        }
        let inbox = &mut self.inboxes[usize::from(process)];
        if let Message::Granted { fence: model, .. } = message {
            let seen = Seen::Message(process, inbox.len());
            self.fences.push(Fence { seen, model, time });
        }
        inbox.push((key, message));
    }

    /// Compares what has come into the inboxes, and the fences there and in the replies.
    fn inboxes(&mut self, payloads: &[Vec<String>]) -> Check {
        let mut fences = Vec::new();
        for (process, payloads) in (0..).zip(payloads) {
            let mut expected = std::mem::take(&mut self.inboxes[usize::from(process)]);
            let read = payloads.iter().map(|payload| {
                message(process, payload).ok_or_else(|| format!("no message: {payload:?}"))
            });
            let real = read.collect::<Result<Vec<_>, _>>()?;
            fences.push(real.iter().map(|(_, message)| fence_of(*message)).collect());
            for ((_, expected), (_, real)) in expected.iter_mut().zip(&real) {
                put_fence(expected, fence_of(*real));
            }
            same(&format!("inbox of {process}"), &real, &expected)?;
        }
        self.check_fences(&fences)
    }

    fn check_fences(&mut self, in_messages: &[Vec<u64>]) -> Check {
        for given in std::mem::take(&mut self.fences) {
            let fence = match given.seen {
                Seen::Reply(fence) => fence,
                Seen::Message(process, index) => in_messages[usize::from(process)][index],
            };
            let most = given.model + given.time.slack_us();
            let wrong = |why| format!("the fence {fence} {why}: {given:?}");
            ensure((given.model..=most).contains(&fence), || {
                wrong("is not the model's")
            })?;
            // Checked once more without the model, which a mutation may have changed.
            if self.mutation != Some(Mutation::FencesByIncrement) {
                ensure(fence >= given.time.from_us, || wrong("is behind the clock"))?;
                ensure(fence > self.highest_fence, || wrong("does not rise"))?;
            }
            self.highest_fence = fence;
        }
        Ok(())
    }

    fn happens(&mut self, time: Window, event: Event, key: usize, fence_ahead: u64) {
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
            Event::FenceOfWrongType => self.fence_replaced(time, true, 0),
            Event::ClockSetBack => self.fence_replaced(time, false, fence_ahead),
            Event::Flushed => {
                self.locks.iter_mut().for_each(Redis::flush_all);
                self.fence_replaced(time, false, 0);
            }
        }
    }

    fn fence_replaced(&mut self, time: Window, is_wrong: bool, fence: u64) {
        self.last_fence = fence;
        for lock in &mut self.locks {
            lock.wrong_type.fence = is_wrong;
        }
        // Nothing helps against a clock that is set back and a memory that is lost.
        if fence == 0 && self.highest_fence > time.from_us {
            self.highest_fence = 0;
        }
    }

    /// Compares what the server has under the lock's keys: the answers to `look`.
    fn keys(&self, now_ms: u64, key: usize, found: &[Value]) -> Check {
        let lock = &self.locks[key];
        let [real, owner_ttl, queue, queue_ttl] = found else {
            return Err(format!("found {found:?}"));
        };
        let name = OWNERS[key];
        if lock.wrong_type.owner {
            return ensure(is_wrong_type(real), || format!("{name}: found {real:?}"));
        }
        let model = lock.owner.map(|owner| owner.token);
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
        same(name, &real, &lock.queue)?;
        let expires = (!lock.queue.is_empty()).then_some(lock.queue_expires_ms);
        time_to_live(name, queue_ttl, expires, now_ms)
    }

    /// Compares the fence that the server remembers, once all fences so far are known.
    fn remembered(&mut self, time: Window, found: &Value) -> Check {
        if self.locks[0].wrong_type.fence {
            return ensure(is_wrong_type(found), || format!("{FENCE}: found {found:?}"));
        }
        let real = match text(found) {
            Some(text) => text.parse().map_err(|error| format!("{text:?}: {error}"))?,
            None => 0,
        };
        let least = self.last_fence;
        let most = match least {
            0 => 0,
            least => least + time.slack_us(),
        };
        ensure((least..=most).contains(&real), || {
            format!("{FENCE} is {real}, in the model {least}")
        })?;
        let is_new = real == 0 || self.mutation == Some(Mutation::FencesByIncrement);
        ensure(is_new || real >= self.highest_fence, || {
            format!("{FENCE} is {real} after {}", self.highest_fence)
        })?;
        self.last_fence = real;
        Ok(())
    }
}

fn fence_of(message: Message) -> u64 {
    match message {
        Message::Granted { fence, .. } => fence,
        Message::Contended { .. } | Message::Completed { .. } => 0,
    }
}

fn put_fence(message: &mut Message, new: u64) {
    if let Message::Granted { fence, .. } = message {
        *fence = new;
    }
}

fn is_about(real: Option<u64>, model: Option<u64>) -> bool {
    match (real, model) {
        (Some(real), Some(model)) => real.abs_diff(model) <= TOLERANCE_MS,
        (real, model) => real == model,
    }
}

fn is_wrong_type(value: &Value) -> bool {
    matches!(value, Value::ServerError(error) if error.code() == "WRONGTYPE")
}

/// Compares a reply of `PTTL`. The model has `None` for a key that is not there, and `Some(None)`
/// for one without expiry.
fn time_to_live(name: &str, real: &Value, model: Option<Option<u64>>, now_ms: u64) -> Check {
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

// The server and its clients.

/// A connection of a process, on which it listens.
struct Inbox {
    connection: Connection,
    channel: String,
    payloads: Vec<String>,
}

impl Inbox {
    /// Takes all messages before the reply. Those that were published before it are among them.
    fn ask(&mut self, words: &[&str]) {
        let packed = command(words).get_packed_command();
        self.connection.send_packed_command(&packed).unwrap();
        loop {
            let answer = self.connection.recv_response().unwrap();
            let Value::Array(parts) = &answer else {
                return;
            };
            match (text(&parts[0]).as_deref(), parts.last()) {
                (Some("message"), Some(payload)) => self.payloads.push(text(payload).unwrap()),
                _ => return,
            }
        }
    }

    fn listen(&mut self, does: bool) {
        let channel = self.channel.clone();
        let command = if does { "SUBSCRIBE" } else { "UNSUBSCRIBE" };
        self.ask(&[command, &channel]);
    }

    fn take(&mut self) -> Vec<String> {
        self.ask(&["PING"]);
        std::mem::take(&mut self.payloads)
    }
}

struct World {
    script: redis::Script,
    source: String,
    /// Returns whether the server has the script.
    is_known: bool,
    client: Connection,
    inboxes: Vec<Inbox>,
    server: RedisServer,
}

fn connect(server: &RedisServer) -> Connection {
    let client = redis::Client::open(server.url()).unwrap();
    let connection = client.get_connection().unwrap();
    connection.set_read_timeout(Some(PATIENCE)).unwrap();
    connection
}

/// Carries out some commands at once. Errors are among the replies.
fn ask(client: &mut Connection, commands: &[Cmd]) -> Vec<Value> {
    let packed: Vec<u8> = commands.iter().flat_map(Cmd::get_packed_command).collect();
    client
        .req_packed_commands(&packed, 0, commands.len())
        .unwrap()
}

fn micros(time: &Value) -> u64 {
    let (seconds, micros): (u64, u64) = redis::from_redis_value(time.clone()).unwrap();
    seconds * 1_000_000 + micros
}

impl World {
    fn start(source: &str) -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let server = runtime.block_on(RedisServer::start());
        let inboxes = (0..PROCESSES).map(|process| Inbox {
            connection: connect(&server),
            channel: inbox(process),
            payloads: Vec::new(),
        });
        Self {
            script: redis::Script::new(source),
            source: source.to_owned(),
            is_known: false,
            client: connect(&server),
            inboxes: inboxes.collect(),
            server,
        }
    }

    /// Carries out the commands, and returns when that was.
    fn timed(&mut self, mut commands: Vec<Cmd>) -> (Window, Vec<Value>) {
        commands.insert(0, cmd("TIME"));
        commands.push(cmd("TIME"));
        let mut answers = ask(&mut self.client, &commands);
        let time = Window {
            from_us: micros(&answers.remove(0)),
            to_us: micros(&answers.pop().unwrap()),
        };
        (time, answers)
    }

    /// All locks are free, and all processes listen.
    fn begin(&mut self) {
        ask(&mut self.client, &[cmd("FLUSHALL")]);
        for inbox in &mut self.inboxes {
            inbox.listen(true);
            inbox.take();
        }
    }

    fn evaluate(&mut self, times: Times, batch: &[Operation]) -> Result<(Window, Value), String> {
        let by_hash = call("EVALSHA", self.script.get_hash(), times, batch);
        if self.is_known {
            let (time, mut answers) = self.timed(vec![by_hash]);
            return Ok((time, answers.remove(0)));
        }
        let whole = call("EVAL", &self.source, times, batch);
        let (time, mut answers) = self.timed(vec![by_hash, whole]);
        self.is_known = true;
        let answer = answers.remove(1);
        match &answers[0] {
            Value::ServerError(error) if error.code() == "NOSCRIPT" => Ok((time, answer)),
            other => Err(format!("a script that is not there answers {other:?}")),
        }
    }

    fn step(&mut self, oracle: &mut Oracle, step: &Step) -> Check {
        match step {
            Step::Batch(times, batch) => {
                let (time, answer) = self.evaluate(*times, batch)?;
                oracle.batch(time, *times, batch, &answer)?;
                self.compare(oracle, time)?;
            }
            Step::Listens(process, does) => {
                self.inboxes[usize::from(*process)].listen(*does);
                oracle.listening[usize::from(*process)] = *does;
            }
            Step::Happens(event, key) => self.happens(oracle, *event, *key)?,
            Step::ScriptFlushed => {
                ask(&mut self.client, &[command(&["SCRIPT", "FLUSH"])]);
                self.is_known = false;
            }
        }
        Ok(())
    }

    fn happens(&mut self, oracle: &mut Oracle, event: Event, key: usize) -> Check {
        let (time, _) = self.timed(vec![]);
        let fence_ahead = time.to_us.max(oracle.highest_fence) + 1_000_000;
        let (time, _) = self.timed(event.commands(key, fence_ahead));
        if let Some(name) = event.expiring(key) {
            self.wait_until_gone(name);
        }
        oracle.happens(time, event, key, fence_ahead);
        self.compare(oracle, time)
    }

    fn wait_until_gone(&mut self, name: &str) {
        let started = Instant::now();
        while ask(&mut self.client, &[command(&["EXISTS", name])]) != [Value::Int(0)] {
            assert!(started.elapsed() < PATIENCE, "{name} does not expire");
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Compares all that can be seen.
    fn compare(&mut self, oracle: &mut Oracle, time: Window) -> Check {
        let payloads: Vec<_> = self.inboxes.iter_mut().map(Inbox::take).collect();
        oracle.inboxes(&payloads)?;
        let (now, fence) = self.compare_keys(oracle)?;
        let from_us = time.from_us;
        let to_us = now.to_us;
        oracle.remembered(Window { from_us, to_us }, &fence)
    }

    /// Compares the locks' keys. Returns what the server has under the fence's.
    fn compare_keys(&mut self, oracle: &Oracle) -> Result<(Window, Value), String> {
        let mut look = vec![command(&["GET", FENCE])];
        for (owner, queue) in OWNERS.iter().zip(&QUEUES) {
            look.push(command(&["GET", owner]));
            look.push(command(&["PTTL", owner]));
            look.push(command(&["LRANGE", queue, "0", "-1"]));
            look.push(command(&["PTTL", queue]));
        }
        let (time, found) = self.timed(look);
        for (key, found) in found[1..].chunks(4).enumerate() {
            oracle.keys(time.now_ms(), key, found)?;
        }
        Ok((time, found[0].clone()))
    }

    /// Takes the steps one by one, and compares after each.
    fn run(&mut self, mutation: Option<Mutation>, steps: &[Step]) -> Check {
        self.begin();
        let mut oracle = Oracle::new(mutation);
        for (index, step) in steps.iter().enumerate() {
            self.step(&mut oracle, step)
                .map_err(|error| format!("step {index}: {error}"))?;
        }
        Ok(())
    }
}

/// Several clients at the same time, and one that sees in which order the server serves them.
struct Crowd {
    world: World,
    clients: Vec<Connection>,
    monitor: Connection,
    /// How often the server turned from one process's batch to another's.
    turns: usize,
}

impl Crowd {
    fn start(source: &str) -> Self {
        let world = World::start(source);
        let clients = (0..=PROCESSES).map(|_| connect(&world.server)).collect();
        let mut monitor = connect(&world.server);
        let packed = cmd("MONITOR").get_packed_command();
        monitor.send_packed_command(&packed).unwrap();
        monitor.recv_response().unwrap();
        Self {
            world,
            clients,
            monitor,
            turns: 0,
        }
    }

    /// Returns the commands of clients since the last call, in the server's order, without those of
    /// scripts.
    fn order(&mut self) -> Vec<(u64, Vec<String>)> {
        ask(&mut self.world.client, &[command(&["ECHO", "so far"])]);
        let mut order = Vec::new();
        loop {
            let line = text(&self.monitor.recv_response().unwrap()).unwrap();
            let (time, words) = served(&line).unwrap_or_else(|| panic!("{line:?}"));
            if words[0] == "ECHO" {
                return order;
            }
            if !line.contains(" lua] ") {
                order.push((time, words));
            }
        }
    }

    fn run(&mut self, programs: &[Vec<Step>]) -> Check {
        self.world.begin();
        let load = command(&["SCRIPT", "LOAD", &self.world.source]);
        ask(&mut self.world.client, &[load]);
        self.order();
        let mut answers = self.at_once(programs);
        let order = self.order();
        self.replay(programs, &order, &mut answers)
    }

    /// Runs the programs at the same time. Returns the answers to each one's batches.
    fn at_once(&mut self, programs: &[Vec<Step>]) -> Vec<VecDeque<Value>> {
        let sha = self.world.script.get_hash();
        let barrier = &Barrier::new(programs.len());
        let mut inboxes = self.world.inboxes.iter_mut();
        std::thread::scope(|scope| {
            let clients = self.clients.iter_mut();
            let threads = programs.iter().zip(clients).map(|(program, client)| {
                let inbox = inboxes.next();
                scope.spawn(move || {
                    barrier.wait();
                    run_program(program, sha, client, inbox)
                })
            });
            let threads: Vec<_> = threads.collect();
            let answers = threads.into_iter().map(|thread| thread.join().unwrap());
            answers.collect()
        })
    }

    fn replay(
        &mut self,
        programs: &[Vec<Step>],
        order: &[(u64, Vec<String>)],
        answers: &mut [VecDeque<Value>],
    ) -> Check {
        let mut oracle = Oracle::new(None);
        let mut programs: Vec<_> = programs.iter().map(|program| program.iter()).collect();
        let mut last = None;
        for (served_us, words) in order {
            // The script's clock may be a little behind the time at which the server says that it
            // served the call.
            let time = Window {
                from_us: served_us - 100_000,
                to_us: served_us + PATIENCE.as_micros() as u64,
            };
            let client = match words[0].as_str() {
                // The first one counts: after its token, there may be a record that looks like
                // another's.
                "EVALSHA" | "SUBSCRIBE" | "UNSUBSCRIBE" => {
                    words.iter().find_map(|word| process_of(word))
                }
                "SET" | "RPUSH" | "DEL" | "PERSIST" | "FLUSHALL" => Some(PROCESSES),
                _ => continue,
            };
            let client = usize::from(client.unwrap());
            match programs[client].next().unwrap() {
                Step::Batch(times, batch) => {
                    let answer = answers[client].pop_front().unwrap();
                    oracle.batch(time, *times, batch, &answer)?;
                    self.turns += usize::from(last.replace(client) != Some(client));
                }
                Step::Listens(process, does) => {
                    oracle.listening[usize::from(*process)] = *does;
                }
                Step::Happens(event, key) => oracle.happens(time, *event, *key, 0),
                Step::ScriptFlushed => {}
            }
        }
        let left = programs.iter().map(ExactSizeIterator::len).sum::<usize>();
        same("steps that nobody saw", &left, &0)?;
        let inboxes = self.world.inboxes.iter_mut();
        let payloads: Vec<_> = inboxes.map(Inbox::take).collect();
        oracle.inboxes(&payloads)?;
        self.world.compare_keys(&oracle).map(drop)
    }
}

fn run_program(
    program: &[Step],
    sha: &str,
    client: &mut Connection,
    mut inbox: Option<&mut Inbox>,
) -> VecDeque<Value> {
    let mut answers = VecDeque::new();
    for step in program {
        match step {
            Step::Batch(times, batch) => {
                answers.extend(ask(client, &[call("EVALSHA", sha, *times, batch)]));
            }
            Step::Listens(_, does) => inbox.as_mut().unwrap().listen(*does),
            Step::Happens(event, key) => drop(ask(client, &event.commands(*key, 0))),
            Step::ScriptFlushed => {}
        }
    }
    answers
}

/// A line of `MONITOR`: the time in µs, and the command.
fn served(line: &str) -> Option<(u64, Vec<String>)> {
    let (time, rest) = line.split_once(" [")?;
    let (seconds, micros) = time.split_once('.')?;
    let time = seconds.parse::<u64>().ok()? * 1_000_000 + micros.parse::<u64>().ok()?;
    let words = rest.split_once("] \"")?.1.strip_suffix('"')?;
    Some((time, words.split("\" \"").map(str::to_owned).collect()))
}

// The properties.

fn config(cases: u32) -> Config {
    Config {
        cases,
        failure_persistence: None,
        max_shrink_iters: 2000,
        ..Config::default()
    }
}

fn fail(error: String) -> TestCaseError {
    TestCaseError::fail(error)
}

#[test]
fn whatever_clients_do_the_script_answers_tells_and_keeps_what_the_model_does() {
    let world = RefCell::new(World::start(SCRIPT));
    TestRunner::new(config(100))
        .run(&steps(), |steps| {
            world.borrow_mut().run(None, &steps).map_err(fail)
        })
        .unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn clients_at_the_same_time_are_served_as_if_one_after_the_other() {
    const CASES: u32 = 40;
    let crowd = RefCell::new(Crowd::start(SCRIPT));
    TestRunner::new(config(CASES))
        .run(&programs(), |programs| {
            crowd.borrow_mut().run(&programs).map_err(fail)
        })
        .unwrap_or_else(|error| panic!("{error}"));
    let turns = crowd.borrow().turns;
    assert!(turns > 5 * CASES as usize, "only {turns} turns");
}

// The comparison can fail: it notices every mistake that is put into the script.

/// The same cases in every run.
fn repeatable(cases: u32) -> TestRunner {
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let config = Config {
        max_shrink_iters: 0,
        ..config(cases)
    };
    TestRunner::new_with_rng(config, rng)
}

/// The script with one thing in it replaced.
fn changed(from: &str, to: &str) -> String {
    assert_eq!(SCRIPT.matches(from).count(), 1, "not once there: {from}");
    let changed = SCRIPT.replace(from, to);
    assert_ne!(changed, SCRIPT);
    changed
}

/// The number of cases within which a mistake must be noticed.
const ENOUGH: u32 = 200;

/// Returns whether one of the cases ends differently than in the model. A panic does not count.
fn is_noticed<T: Debug>(cases: impl Strategy<Value = T>, mut run: impl FnMut(&T) -> Check) -> bool {
    let (run, noticed) = (RefCell::new(&mut run), Cell::new(false));
    let result = repeatable(ENOUGH).run(&cases, |case| {
        let result = run.borrow_mut()(&case);
        noticed.set(result.is_err());
        result.map_err(fail)
    });
    result.is_err() && noticed.get()
}

fn is_noticed_in_steps(source: &str) -> bool {
    let mut world = World::start(source);
    is_noticed(steps(), |steps| world.run(None, steps))
}

/// Asserts that the mistake is noticed, and that it is the model's mistake of that name.
fn is_the_models(mutation: Mutation, source: &str) {
    assert!(is_noticed_in_steps(source));
    let world = RefCell::new(World::start(source));
    repeatable(30)
        .run(&steps(), |steps| {
            world.borrow_mut().run(Some(mutation), &steps).map_err(fail)
        })
        .unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn a_release_without_a_look_at_the_token_is_noticed() {
    is_the_models(
        Mutation::ReleaseWithoutTokenCheck,
        &changed("  if current ~= token then", "  if not current then"),
    );
}

#[test]
fn a_renewal_that_writes_the_lock_is_noticed() {
    let from = "\
  if read(lock_name) ~= token then
    return 1
  end
  call('PEXPIRE', lock_name, ttl)
";
    let to = "  call('SET', lock_name, token, 'PX', ttl)\n";
    is_the_models(Mutation::RenewalRecreates, &changed(from, to));
}

#[test]
fn a_fence_that_is_only_counted_up_is_noticed() {
    let from = "local function next_fence()\n";
    let to = "local function next_fence()\n  do return call('INCR', clock) end\n";
    is_the_models(Mutation::FencesByIncrement, &changed(from, to));
}

#[test]
fn a_second_place_in_the_queue_is_noticed() {
    let from = "not call('LPOS', queue, token) and ";
    is_the_models(Mutation::NoQueueOnce, &changed(from, ""));
}

#[test]
fn a_grant_to_a_process_that_is_gone_is_noticed() {
    let from = "if process and is_there(process) then";
    let to = "if process then";
    is_the_models(Mutation::GrantsToTheGone, &changed(from, to));
}

#[test]
fn a_completion_without_a_look_at_the_token_is_noticed() {
    is_the_models(
        Mutation::CompletionWithoutTokenCheck,
        &changed("elseif current ~= token then", "elseif not current then"),
    );
}

#[test]
fn a_completion_that_tells_nobody_is_noticed() {
    let from = "tell(process, 'c' .. number .. ':' .. lock_name)";
    is_the_models(Mutation::CompletionInSilence, &changed(from, ""));
}

#[test]
fn a_queue_that_another_s_settings_shorten_is_noticed() {
    let from = "if call('PTTL', queue) < lasts then";
    is_the_models(Mutation::QueueIsShortened, &changed(from, "do"));
}

/// Small slips that have no name in the model, one for each thing that is compared.
#[rustfmt::skip]
const SLIPS: [(&str, &str); 44] = [
    // Fences.
    ("1000000 + now[2]", "1000000"),
    ("fence = fence + 1", "fence = fence + 0"),
    ("math.max(stored, 1 + ", "math.max(stored, 0 + "),
    ("if fence and fence ~= stored then", "if false then"),
    // Which tokens are ours.
    ("and #process == 32", ""),
    ("'^(%x+):(%d+)$'", "'^(%x+):(%d+)'"),
    ("(process and 0 or 1)", "0"),
    // How long things live.
    ("'NX', 'PX', ttl)", "'NX')"),
    ("'PX', grant_ttl)", "'PX', ttl)"),
    ("math.max(remaining, 0) + 3 * ttl", "3 * ttl"),
    ("    call('PEXPIRE', lock_name, ttl)\n    return", "    return"),
    ("  call('PEXPIRE', lock_name, ttl)\n  return 2", "  return 2"),
    ("return -(5 + 2 * remaining", "return -(5 + 2 * grant_ttl"),
    // The queue.
    ("call('RPUSH', queue, token)", "call('LPUSH', queue, token)"),
    ("waiting - call('LREM', queue, 0, token)", "waiting"),
    ("    call('LREM', queue, 0, token)\n    if current", "    if current"),
    ("    token = call('LPOP', queue)\n  end", "    return false\n  end"),
    ("  if current then\n    call('DEL', lock_name)\n  end\n", ""),
    ("return reply + 2", "return reply"),
    // Whether others wait.
    ("may_queue and call('LLEN', queue) or 0", "0"),
    ("2 * next_fence() + some(waiting)", "2 * next_fence()"),
    ("2 * next_fence() + some(call('LLEN', queue))", "2 * next_fence()"),
    ("return 2 + some(call('LLEN', queue))", "return 2"),
    ("local contended = some(call('LLEN', queue))", "local contended = 0"),
    // Records.
    ("(current ~= '' or call('EXISTS', lock_name) == 1) and current", "current ~= '' and current"),
    ("if may_be_record and not process then", "if may_be_record then"),
    ("if may_be_record and not process then", "if not process then"),
    ("  if current == record then\n    return 2\n  elseif", "  if"),
    ("'PX', retention)", "'PX', ttl)"),
    ("  call('DEL', queue)\n", ""),
    ("LRANGE', queue, 0, -1", "LRANGE', queue, 0, 0"),
    // Messages.
    ("if length == 1 and process then", "if length and process then"),
    ("'w' .. number", "'w1'"),
    ("'c' .. number", "'c1'"),
    ("number, fence, grant_ttl", "1, fence, grant_ttl"),
    ("number, fence, grant_ttl", "number, fence, ttl"),
    // Checks.
    ("  return read(lock_name) == token and 2 or 1", "  return call('PEXPIRE', lock_name, ttl) == 1 and 2 or 1"),
    ("== token and 2 or 1", "and 2 or 1"),
    // Errors.
    ("local ok, reason = pcall(carry_out_the_rest)", "local ok, reason = true, carry_out_the_rest()"),
    ("replies[number + 1] = failure", ""),
    ("    replies[number] = got and -2 or 0\n", ""),
    ("replies[number] = got and -2 or 0", "replies[number] = 0"),
    ("at + 2, false", "at + 2, got"),
    ("'PX', ttl) then\n    got = true", "'PX', ttl) then"),
];

#[test]
fn every_slip_is_noticed() {
    for (from, to) in SLIPS {
        let source = changed(from, to);
        assert!(is_noticed_in_steps(&source), "{from} => {to}");
    }
}

/// Holds for any value that another client put in the place of a lock or a record.
#[test]
fn no_more_is_answered_than_shows_that_it_is_too_long_for_a_record() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let server = runtime.block_on(RedisServer::start());
    let mut client = connect(&server);
    let (key, process, number) = (0, 0, 1);
    let long = "x".repeat(1 << 20);
    ask(&mut client, &[command(&["SET", OWNERS[key], &long])]);
    for (kind, expected) in [
        (
            Kind::Claim,
            Value::BulkString(long.as_bytes()[..16385].into()),
        ),
        (
            Kind::ClaimAndQueue,
            Value::BulkString(long.as_bytes()[..16385].into()),
        ),
        (Kind::Acquire, Value::Int(-4)),
        (Kind::Complete(0), Value::Int(1)),
        (Kind::Renew, Value::Int(1)),
        (Kind::Check, Value::Int(1)),
        (Kind::Release, Value::Int(1)),
    ] {
        let operation = Operation {
            kind,
            key,
            process,
            number,
        };
        let replies = ask(&mut client, &[call("EVAL", SCRIPT, TIMES[0], &[operation])]);
        assert_eq!(replies, [Value::Array(vec![expected])], "{kind:?}");
        let length = ask(&mut client, &[command(&["STRLEN", OWNERS[key]])]);
        assert_eq!(length, [Value::Int(1 << 20)]);
    }
}

#[test]
fn a_mistake_is_also_noticed_among_clients_at_the_same_time() {
    for (from, to) in [
        ("  if current ~= token then", "  if not current then"),
        ("elseif current ~= token then", "elseif not current then"),
        ("if process and is_there(process) then", "if process then"),
    ] {
        let mut crowd = Crowd::start(&changed(from, to));
        assert!(
            is_noticed(programs(), |programs| crowd.run(programs)),
            "{from} => {to}"
        );
    }
}
