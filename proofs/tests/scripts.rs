//! The crate's commands and scripts against a model of them: whatever clients do, and in any order,
//! both reply, publish and keep the same.
//!
//! Keys and arguments are those of `src/store/redis/commands.rs`. What the crate does with a call
//! that found no scripts, a counter that was lost, or a lock with a mark, is done here, too.

#[path = "model/redis.rs"]
mod model;
#[path = "../../tests/support/mod.rs"]
mod support;

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::fmt::Debug;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use model::{Epoch, Message, Mutation, Owner, Process, Record, Redis, Reply, Server, Times, Token};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use redis::{Cmd, Connection, ConnectionLike, Value, cmd};
use support::{PATIENCE, RedisServer};

/// One script for each operation that no command of Redis does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Script {
    Acquire,
    Share,
    Release,
    Grant,
    Renew,
    RenewShared,
    Complete,
    Seed,
    Quarantine,
}

const SCRIPTS: [&str; 9] = [
    concat!(
        include_str!("../../src/store/redis/scripts/acquire.lua"),
        include_str!("../../src/store/redis/scripts/parts/queue.lua"),
    ),
    concat!(
        include_str!("../../src/store/redis/scripts/share.lua"),
        include_str!("../../src/store/redis/scripts/parts/queue.lua"),
    ),
    include_str!("../../src/store/redis/scripts/release.lua"),
    concat!(
        include_str!("../../src/store/redis/scripts/grant.lua"),
        include_str!("../../src/store/redis/scripts/parts/to_a_writer.lua"),
        include_str!("../../src/store/redis/scripts/parts/to_readers.lua"),
    ),
    include_str!("../../src/store/redis/scripts/renew.lua"),
    include_str!("../../src/store/redis/scripts/renew_shared.lua"),
    include_str!("../../src/store/redis/scripts/complete.lua"),
    include_str!("../../src/store/redis/scripts/seed.lua"),
    include_str!("../../src/store/redis/scripts/quarantine.lua"),
];

// The names that the crate gives to its keys and channels, with the prefix `lock:`.
const FENCE: &str = "{lock:}:fence";
const EPOCH: &str = "{lock:}:epoch";
const INBOX: &str = "lock:inbox:";
const OWNERS: [&str; 2] = ["lock:a", "lock:{u}b"];
const QUEUES: [&str; 2] = ["{lock:a}:queue", "{u}:queue:lock:{u}b"];
const READERS: [&str; 2] = ["{lock:a}:readers", "{u}:readers:lock:{u}b"];

const PROCESSES: Process = 3;
const NUMBERS: [u64; 2] = [1, u64::MAX];

/// Values that clients of another kind write. Some are nearly a token of ours.
const FOREIGN: [&str; 11] = [
    "",
    "somebody",
    "x:1",
    "a0:1",
    "000000000000000000000000000000a0",
    "000000000000000000000000000000a0:",
    "000000000000000000000000000000a0:1x",
    "000000000000000000000000000000a0:1!!",
    "000000000000000000000000000000a0:!",
    "0000000000000000000000000000000a0:1",
    "000000000000000000000000000000g0:1",
];

/// Values that are no epoch, and that another client writes in its place.
const NO_EPOCHS: [&str; 3] = ["", "0", "g0 1700000000000"];

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
    Acquire {
        queue: bool,
        /// An earlier acquire had the same token.
        again: bool,
        may_be_record: bool,
    },
    Release {
        /// Whether the lock may be granted at once: it is known that processes wait, or the token
        /// may be in the queue.
        grants: bool,
    },
    Share {
        queue: bool,
    },
    Complete(Record),
    Renew,
    RenewShared,
    Check,
}

impl Kind {
    fn is_acquire(self) -> bool {
        matches!(self, Self::Acquire { .. } | Self::Share { .. })
    }
}

#[derive(Clone, Copy, Debug)]
struct Operation {
    kind: Kind,
    key: usize,
    process: Process,
    number: u64,
}

/// What goes out in one write.
#[derive(Clone, Debug)]
struct Call {
    /// Whose connection it is.
    client: Process,
    operations: Vec<Operation>,
    times: Times,
    /// Whether `SET` takes `NX` and `GET` together.
    takes_with_get: bool,
    /// Whether the counter of fences is raised to the clock first.
    is_seed_due: bool,
    may_give: bool,
    /// Whether all was sent before.
    is_repeated: bool,
    /// Whether the scripts come with it.
    by_source: bool,
}

/// Events besides calls, for the keys of one lock or for all.
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
    ReadersDeleted,
    /// The lease of one of those that share the lock expires: of the first by its name.
    ReaderOverdue,
    FenceOfWrongType,
    FenceDeleted,
    /// The clock is set back, as far as scripts can tell: the counter of fences is ahead.
    ClockSetBack,
    Flushed,
    EpochReplaced(&'static str),
    EpochSpoilt,
    /// Another server with the same data takes over, as far as scripts can tell.
    TakenOver,
}

#[derive(Clone, Debug)]
enum Step {
    Call(Call),
    /// A new connection, on which the counter of fences is seeded.
    Connects(Process, Settings),
    Listens(Process, bool),
    Happens(Event, usize),
    /// The server forgets the scripts.
    ScriptsFlushed,
    /// The server saves its data.
    Saves,
    /// The server is killed and started again. What it did not save is lost. All connect again.
    Restarts,
}

/// What a process is set to when it connects.
#[derive(Clone, Copy, Debug)]
struct Settings {
    ttl_ms: u64,
    quarantine: bool,
}

fn key() -> impl Strategy<Value = usize> {
    prop_oneof![4 => Just(0), 1 => Just(1)]
}

fn kind(shares: bool) -> impl Strategy<Value = Kind> {
    let share = |weight| if shares { weight } else { 0 };
    let acquire = prop_oneof![
        4 => Just((false, false)),
        5 => Just((true, false)),
        3 => Just((true, true)),
        1 => Just((false, true)),
    ];
    let acquire =
        (acquire, any::<bool>()).prop_map(|((queue, again), may_be_record)| Kind::Acquire {
            queue,
            again,
            may_be_record,
        });
    prop_oneof![
        10 => acquire,
        share(12) => any::<bool>().prop_map(|queue| Kind::Share { queue }),
        5 => any::<bool>().prop_map(|grants| Kind::Release { grants }),
        2 => (0..RECORDS.len() as Record).prop_map(Kind::Complete),
        2 => Just(Kind::Renew),
        share(2) => Just(Kind::RenewShared),
        1 => Just(Kind::Check),
    ]
}

fn operation(shares: bool) -> impl Strategy<Value = Operation> {
    (kind(shares), key(), select(&NUMBERS[..])).prop_map(|(kind, key, number)| Operation {
        kind,
        key,
        process: 0,
        number,
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
        1 => Just(Event::FenceDeleted),
        1 => Just(Event::Flushed),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        12 => plain_event(),
        2 => Just(Event::OwnerExpires),
        1 => Just(Event::QueueExpires),
        1 => Just(Event::ReadersDeleted),
        3 => Just(Event::ReaderOverdue),
        1 => Just(Event::OwnerOfWrongType),
        1 => Just(Event::QueueOfWrongType),
        1 => Just(Event::FenceOfWrongType),
        1 => Just(Event::ClockSetBack),
        1 => select(&NO_EPOCHS[..]).prop_map(Event::EpochReplaced),
        1 => Just(Event::EpochSpoilt),
        2 => Just(Event::TakenOver),
    ]
}

fn connects(process: impl Strategy<Value = Process>) -> impl Strategy<Value = Step> {
    let times = select(&TIMES[..]);
    (process, times, any::<bool>()).prop_map(|(process, times, quarantine)| {
        let ttl_ms = times.ttl_ms;
        Step::Connects(process, Settings { ttl_ms, quarantine })
    })
}

fn call(client: impl Strategy<Value = Process>, shares: bool) -> impl Strategy<Value = Step> {
    let often = || prop_oneof![5 => Just(true), 1 => Just(false)];
    let facts = (often(), often().prop_map(|not| !not), often());
    let operations = vec(operation(shares), 1..=4);
    (client, select(&TIMES[..]), facts, operations).prop_map(
        |(client, times, (takes_with_get, is_seed_due, may_give), mut operations)| {
            for operation in &mut operations {
                operation.process = client;
            }
            Step::Call(Call {
                client,
                operations,
                times,
                takes_with_get,
                is_seed_due,
                may_give,
                is_repeated: false,
                by_source: false,
            })
        },
    )
}

/// In every other program, no process shares a lock.
fn steps() -> impl Strategy<Value = Vec<Step>> {
    prop_oneof![steps_of(false), steps_of(true)]
}

fn steps_of(shares: bool) -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        40 => call(0..PROCESSES, shares),
        4 => connects(0..PROCESSES),
        6 => (0..PROCESSES, any::<bool>()).prop_map(|(process, does)| Step::Listens(process, does)),
        18 => (event(), key()).prop_map(|(event, key)| Step::Happens(event, key)),
        2 => Just(Step::ScriptsFlushed),
        2 => Just(Step::Saves),
        1 => Just(Step::Restarts),
    ];
    vec(step, 1..=40)
}

/// The calls of each process, and then those of a client of another kind, all at the same time.
fn programs() -> impl Strategy<Value = Vec<Vec<Step>>> {
    let process = |process| {
        let step = prop_oneof![
            8 => call(Just(process), true),
            1 => connects(Just(process)),
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

fn name_of(token: Token) -> String {
    match token {
        Token::Ours { process, number } => format!("{}:{number}", id(process)),
        other => unreachable!("{other:?} shares no lock"),
    }
}

fn inbox(process: Process) -> String {
    format!("{INBOX}{}", id(process))
}

fn process_of(token_or_inbox: &str) -> Option<Process> {
    (0..PROCESSES).find(|process| token_or_inbox.contains(&id(*process)))
}

/// Returns the token, and whether it has a mark.
fn token(bytes: &[u8]) -> (Token, bool) {
    let ours = |text: &str| {
        if text == "shared" {
            return Some(Token::Shared);
        }
        let (text, shares) = match text.strip_suffix('s') {
            Some(text) => (text, true),
            None => (text, false),
        };
        (0..PROCESSES).find_map(|process| {
            let number = text.strip_prefix(&id(process))?.strip_prefix(':')?;
            let number = number.parse().ok()?;
            Some(match shares {
                true => Token::Reader { process, number },
                false => Token::Ours { process, number },
            })
        })
    };
    let marked = |text: &str| match text.strip_suffix('!') {
        Some(text) => Some((ours(text)?, true)),
        None => Some((ours(text)?, false)),
    };
    let record = || (0..).zip(RECORDS).find(|(_, record)| *record == bytes);
    std::str::from_utf8(bytes)
        .ok()
        .and_then(marked)
        .or_else(|| record().map(|(record, _)| (Token::Record(record), false)))
        .unwrap_or((Token::Foreign, false))
}

fn command(words: &[&str]) -> Cmd {
    let mut command = cmd(words[0]);
    command.arg(&words[1..]);
    command
}

/// Lets the lease of a reader expire.
const OVERDUE: &str = "local all = redis.call('ZRANGE', KEYS[1], '0', '-1')
table.sort(all)
if all[1] then
  redis.call('ZADD', KEYS[1], '1', all[1])
end";

impl Event {
    fn commands(self, key: usize, fence_ahead: u64) -> Vec<Cmd> {
        let (owner, queue, readers) = (OWNERS[key], QUEUES[key], READERS[key]);
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
            Self::ReadersDeleted => &[&["DEL", readers]],
            Self::ReaderOverdue => &[&["EVAL", OVERDUE, "1", readers]],
            Self::FenceOfWrongType => &[&["DEL", FENCE], &["RPUSH", FENCE, "x"]],
            Self::FenceDeleted => &[&["DEL", FENCE]],
            Self::ClockSetBack => &[&["SET", FENCE, &fence]],
            Self::Flushed => &[&["FLUSHALL"]],
            Self::EpochReplaced(text) => &[&["SET", EPOCH, text]],
            Self::EpochSpoilt => &[&["APPEND", EPOCH, " "]],
            Self::TakenOver => &[&["DEBUG", "CHANGE-REPL-ID"]],
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

/// Returns the token, or what is in its place, and whether it has a mark.
fn owner(value: &Value) -> Option<(Token, bool)> {
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

// Calls, as the crate makes them, and what it does with their replies.

/// One command of a call.
#[derive(Clone, Copy, Debug)]
enum Piece {
    Seed,
    /// `SET NX GET`.
    Take(Operation),
    /// `SET NX`, where a read follows.
    TakeUnread(Operation),
    /// The read behind that: what is in the lock's place.
    ReadHolder(Operation),
    /// The read of a check.
    Check(Operation),
    Script(Script, Operation),
    /// So many acquires.
    Count(u64),
    /// Before a connection is used.
    Quarantine(Settings),
    /// The read of the epoch.
    Epoch,
}

/// What a process knows of its connection.
#[derive(Clone, Debug)]
struct Link {
    settings: Settings,
    /// What the counter of fences had when it connected. `None`: it could not be seeded, and so no
    /// lock may be given.
    seed: Option<u64>,
    /// The epoch then, with quarantine.
    epoch: Option<Value>,
}

impl Link {
    fn new(settings: Settings) -> Self {
        Self {
            settings,
            seed: None,
            epoch: None,
        }
    }

    fn server(&self, may_give: bool) -> Server {
        Server {
            seed: self.seed.unwrap_or_default(),
            may_give: may_give && self.seed.is_some(),
        }
    }
}

impl Default for Link {
    fn default() -> Self {
        Self::new(Settings {
            ttl_ms: TIMES[0].ttl_ms,
            quarantine: true,
        })
    }
}

impl Call {
    fn pieces(&self, link: &Link, slip: Option<Slip>) -> Vec<Piece> {
        let mut pieces = Vec::new();
        if self.is_seed_due && slip != Some(Slip::NoSeedWithCalls) {
            pieces.push(Piece::Seed);
        }
        for operation in &self.operations {
            let piece = match operation.kind {
                Kind::Acquire {
                    queue: false,
                    again: false,
                    ..
                } if !self.is_repeated => match self.takes_with_get {
                    true => Piece::Take(*operation),
                    false => {
                        pieces.push(Piece::TakeUnread(*operation));
                        Piece::ReadHolder(*operation)
                    }
                },
                Kind::Acquire { .. } => Piece::Script(Script::Acquire, *operation),
                Kind::Share { .. } => Piece::Script(Script::Share, *operation),
                Kind::Release { grants: false } => Piece::Script(Script::Release, *operation),
                Kind::Release { grants: true } => Piece::Script(Script::Grant, *operation),
                Kind::Complete(_) => Piece::Script(Script::Complete, *operation),
                Kind::Renew => Piece::Script(Script::Renew, *operation),
                Kind::RenewShared => Piece::Script(Script::RenewShared, *operation),
                Kind::Check => Piece::Check(*operation),
            };
            pieces.push(piece);
        }
        match self.acquires() {
            0 => {}
            acquires => {
                pieces.push(Piece::Count(acquires));
                pieces.extend(link.epoch.as_ref().map(|_| Piece::Epoch));
            }
        }
        pieces
    }

    fn acquires(&self) -> u64 {
        let is_acquire = |operation: &&Operation| operation.kind.is_acquire();
        self.operations.iter().filter(is_acquire).count() as u64
    }
}

/// The scripts as they are, or with a mistake, and their hashes.
#[derive(Clone, Debug)]
struct Sources {
    sources: [String; SCRIPTS.len()],
    hashes: [String; SCRIPTS.len()],
    slip: Option<Slip>,
}

/// A mistake in what is made of replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slip {
    /// All acquires of a write get its last fence.
    AllGetTheLastFence,
    /// The block of fences begins behind its first one.
    BlockBeginsLate,
    /// The block of fences begins with the last one that was counted before.
    BlockBeginsEarly,
    /// One acquire of a write is counted, however many there are.
    OneIsCounted,
    /// A counter that was lost is taken for the old one.
    LostCounterIsUsed,
    /// A new connection goes on with the counter as it is.
    NoSeedAtConnect,
    /// The counter is not raised to the clock where that is due.
    NoSeedWithCalls,
    /// Another epoch is taken for the one that was there at connect.
    AnotherEpochIsUsed,
}

impl Sources {
    fn new(sources: [String; SCRIPTS.len()], slip: Option<Slip>) -> Self {
        let hash = |source: &String| redis::Script::new(source).get_hash().to_owned();
        let hashes = sources.each_ref().map(hash);
        Self {
            sources,
            hashes,
            slip,
        }
    }

    fn as_they_are() -> Self {
        Self::new(SCRIPTS.map(str::to_owned), None)
    }

    fn load(&self) -> Vec<Cmd> {
        let load = |source: &String| command(&["SCRIPT", "LOAD", source]);
        self.sources.iter().map(load).collect()
    }

    fn seed(&self) -> Cmd {
        let mut seed = cmd("EVAL");
        let source = &self.sources[Script::Seed as usize];
        seed.arg(source).arg(1).arg(FENCE);
        seed
    }

    fn quarantine(&self, settings: Settings) -> Cmd {
        let mut quarantine = cmd("EVAL");
        let source = &self.sources[Script::Quarantine as usize];
        quarantine.arg(source).arg(1).arg(EPOCH);
        quarantine.arg(settings.ttl_ms);
        quarantine
    }

    fn command(&self, call: &Call, server: Server, piece: Piece) -> Cmd {
        let token =
            |operation: &Operation| format!("{}:{}", id(operation.process), operation.number);
        let (ttl, lock) = (call.times.ttl_ms, |of: &Operation| OWNERS[of.key]);
        match piece {
            Piece::Seed => self.seed(),
            Piece::Quarantine(settings) => self.quarantine(settings),
            Piece::Epoch => command(&["GET", EPOCH]),
            Piece::Take(of) | Piece::TakeUnread(of) => {
                let mut take = cmd("SET");
                take.arg(lock(&of)).arg(token(&of)).arg("NX");
                if let Piece::Take(_) = piece {
                    take.arg("GET");
                }
                take.arg("PX").arg(ttl);
                take
            }
            Piece::ReadHolder(of) => command(&["GETRANGE", lock(&of), "0", "16384"]),
            Piece::Check(of) => command(&["GETRANGE", lock(&of), "0", "64"]),
            Piece::Count(acquires) => {
                let acquires = match self.slip {
                    Some(Slip::OneIsCounted) => 1,
                    _ => acquires,
                };
                let mut count = cmd("INCRBY");
                count.arg(FENCE).arg(acquires);
                count
            }
            Piece::Script(script, of) => {
                let mut run = match call.by_source {
                    true => cmd("EVAL"),
                    false => cmd("EVALSHA"),
                };
                match call.by_source {
                    true => run.arg(&self.sources[script as usize]),
                    false => run.arg(&self.hashes[script as usize]),
                };
                let (queue, readers) = (QUEUES[of.key], READERS[of.key]);
                let keys: &[&str] = match script {
                    Script::Release | Script::Renew => &[lock(&of)],
                    Script::RenewShared => &[lock(&of), readers],
                    Script::Complete => &[lock(&of), queue],
                    Script::Acquire | Script::Share => &[lock(&of), queue, readers],
                    Script::Grant => &[lock(&of), queue, FENCE, readers],
                    Script::Seed | Script::Quarantine => unreachable!("it is about no lock"),
                };
                run.arg(keys.len()).arg(keys).arg(token(&of));
                match (script, of.kind) {
                    (
                        _,
                        Kind::Acquire {
                            queue,
                            may_be_record,
                            ..
                        },
                    ) => {
                        run.arg(ttl).arg(INBOX);
                        run.arg(u8::from(queue)).arg(u8::from(may_be_record));
                    }
                    (Script::Grant, _) => {
                        run.arg(call.times.grant_ttl_ms).arg(INBOX);
                        run.arg(server.seed).arg(u8::from(server.may_give));
                    }
                    (_, Kind::Share { queue }) => {
                        run.arg(ttl).arg(INBOX).arg(u8::from(queue));
                    }
                    (_, Kind::Renew | Kind::RenewShared) => drop(run.arg(ttl)),
                    (_, Kind::Complete(record)) => {
                        run.arg(RECORDS[usize::from(record)]).arg(RETENTION_MS);
                        run.arg(INBOX);
                    }
                    _ => {}
                }
                run
            }
        }
    }
}

fn is_error(value: &Value, code: &str) -> bool {
    matches!(value, Value::ServerError(error) if error.code() == code)
}

/// A piece that was carried out, as its client sees it.
#[derive(Clone, Debug)]
struct Done {
    piece: Piece,
    times: Times,
    server: Server,
    value: Value,
    /// What those that got their lock are given, if all of the call counts.
    fences: Vec<u64>,
    /// Whether it is the first of its call.
    is_first: bool,
    /// Whether the fences of the call are to be above the clock.
    is_seed_due: bool,
}

/// Carries out a call, and what follows from its replies. `send` sends commands in one write, and
/// `tell` hears what came of each.
fn carry_out(
    sources: &Sources,
    call: &Call,
    link: &mut Link,
    send: &mut impl FnMut(&[Cmd]) -> Vec<Value>,
    tell: &mut impl FnMut(Vec<Done>) -> Check,
) -> Check {
    let mut call = call.clone();
    for _ in 0..20 {
        if link.seed.is_none() {
            connect(sources, link, send, tell)?;
        }
        if link.seed.is_none() {
            call.operations
                .retain(|operation| !operation.kind.is_acquire());
        }
        let server = link.server(call.may_give);
        let pieces = call.pieces(link, sources.slip);
        let command = |piece: &Piece| sources.command(&call, server, *piece);
        let commands: Vec<Cmd> = pieces.iter().map(command).collect();
        let values = send(&commands);
        let is_unknown = values.iter().any(|value| is_error(value, "NOSCRIPT"));
        ensure(!(is_unknown && call.by_source), || {
            "a script that came along is not known".to_owned()
        })?;
        let (mut last, mut is_lost) = (None, false);
        for (piece, value) in pieces.iter().zip(&values) {
            match (piece, value) {
                (Piece::Count(acquires), Value::Int(count)) => {
                    last = Some(*count as u64);
                    is_lost |= (*count as u64) < server.seed + acquires
                        && sources.slip != Some(Slip::LostCounterIsUsed);
                }
                (Piece::Epoch, epoch) => {
                    is_lost |= link.epoch.as_ref() != Some(epoch)
                        && sources.slip != Some(Slip::AnotherEpochIsUsed);
                }
                _ => {}
            }
        }
        let mut fences = Vec::new();
        if let Some(last) = last
            && !is_unknown
            && !is_lost
        {
            let got = pieces.iter().zip(&values);
            let got = got.filter(|(piece, value)| has_got(**piece, value)).count() as u64;
            fences = share_out(last, call.acquires(), got, sources.slip);
        }
        let to_be_granted: Vec<Operation> = pieces
            .iter()
            .zip(&values)
            .filter_map(|(piece, value)| match (piece, value) {
                (Piece::Script(Script::Release, of), Value::Int(3)) => Some(Operation {
                    kind: Kind::Release { grants: true },
                    ..*of
                }),
                _ => None,
            })
            .collect();
        let mut is_first = true;
        let done = pieces.into_iter().zip(values).map(|(piece, value)| Done {
            piece,
            times: call.times,
            server,
            value,
            fences: match piece {
                Piece::Count(_) => std::mem::take(&mut fences),
                _ => Vec::new(),
            },
            is_first: std::mem::take(&mut is_first),
            is_seed_due: call.is_seed_due,
        });
        tell(done.collect())?;
        if is_unknown || is_lost {
            call.is_repeated = true;
            call.by_source = is_unknown;
            if is_lost {
                connect(sources, link, send, tell)?;
            }
        } else if to_be_granted.is_empty() {
            return Ok(());
        } else {
            call.operations = to_be_granted;
            call.is_repeated = false;
            call.is_seed_due = false;
        }
    }
    Err(format!("{call:?} goes on for ever"))
}

/// Asks for the epoch and seeds the counter of fences, as a new connection does.
fn connect(
    sources: &Sources,
    link: &mut Link,
    send: &mut impl FnMut(&[Cmd]) -> Vec<Value>,
    tell: &mut impl FnMut(Vec<Done>) -> Check,
) -> Check {
    (link.seed, link.epoch) = (None, None);
    let server = link.server(false);
    let mut put = |piece, command: Cmd| {
        let value = send(&[command]).remove(0);
        tell(vec![Done {
            piece,
            times: TIMES[0],
            server,
            value: value.clone(),
            fences: Vec::new(),
            is_first: true,
            is_seed_due: false,
        }])?;
        Ok::<_, String>(value)
    };
    if link.settings.quarantine {
        let quarantine = sources.quarantine(link.settings);
        let value = put(Piece::Quarantine(link.settings), quarantine)?;
        if let Value::Array(mut parts) = value {
            link.epoch = Some(parts.swap_remove(0));
        }
    }
    let seed = match sources.slip {
        Some(Slip::NoSeedAtConnect) => command(&["INCRBY", FENCE, "0"]),
        _ => sources.seed(),
    };
    if let Value::Int(new) = put(Piece::Seed, seed)? {
        link.seed = Some(new as u64);
    }
    Ok(())
}

/// Returns whether an acquire got its lock.
fn has_got(piece: Piece, value: &Value) -> bool {
    match piece {
        Piece::Take(_) => *value == Value::Nil,
        Piece::TakeUnread(_) => *value == Value::Okay,
        Piece::Script(Script::Acquire | Script::Share, _) => {
            matches!(value, Value::Int(1 | 2))
        }
        _ => false,
    }
}

/// Shares out the block of fences among those that got their lock.
fn share_out(last: u64, acquires: u64, got: u64, slip: Option<Slip>) -> Vec<u64> {
    let first = match slip {
        Some(Slip::AllGetTheLastFence) => return vec![last; got as usize],
        Some(Slip::BlockBeginsLate) => last - acquires + 2,
        Some(Slip::BlockBeginsEarly) => last - acquires,
        _ => last - acquires + 1,
    };
    (first..first + got).collect()
}

/// Returns the reply to an operation, as the comments in the scripts say it, and nothing else.
fn reply(script: Script, of: &Operation, value: &Value) -> Result<Reply, String> {
    let nonsense = || format!("{value:?} is no reply to {script:?}");
    let number = match value {
        Value::Int(number) => *number,
        Value::BulkString(record)
            if matches!(
                of.kind,
                Kind::Acquire {
                    may_be_record: true,
                    ..
                }
            ) =>
        {
            return Ok(Reply::Recorded(token(record).0));
        }
        Value::ServerError(error) if error.code() == "WRONGTYPE" => return Ok(Reply::Failed),
        _ => return Err(nonsense()),
    };
    Ok(match (script, number) {
        (Script::Acquire | Script::Share, 1 | 2) => Reply::Acquired {
            contended: number == 2,
        },
        (Script::Acquire | Script::Share, ..=-3) => {
            let number = number.unsigned_abs();
            Reply::Held {
                remaining_ms: ((number - 1) / 2).checked_sub(2),
                foreign: number.is_multiple_of(2),
            }
        }
        (Script::Release, 3) => Reply::Marked,
        (Script::Release, 1 | 2) => Reply::Released {
            had_it: number == 2,
            granted: false,
        },
        (Script::Grant, 1..=4) => Reply::Released {
            had_it: number % 2 == 0,
            granted: number > 2,
        },
        (Script::Renew | Script::RenewShared | Script::Complete, 1) => Reply::Gone,
        (Script::Renew | Script::RenewShared, 2 | 3) => Reply::Renewed {
            contended: number == 3,
        },
        (Script::Complete, 2) => Reply::Completed,
        _ => return Err(nonsense()),
    })
}

/// Returns the reply to a take: what was in the lock's place.
fn taken(of: &Operation, value: &Value) -> Result<Reply, String> {
    let held = |foreign| Reply::Held {
        remaining_ms: None,
        foreign,
    };
    match value {
        Value::Nil => Ok(Reply::Acquired { contended: false }),
        Value::BulkString(bytes) => Ok(match (token(bytes).0, of.kind) {
            (Token::Ours { .. }, _) => held(false),
            (
                there,
                Kind::Acquire {
                    may_be_record: true,
                    ..
                },
            ) => Reply::Recorded(there),
            (Token::Shared, _) => held(false),
            _ => held(true),
        }),
        Value::ServerError(error) if error.code() == "WRONGTYPE" => Ok(Reply::Failed),
        _ => Err(format!("{value:?} is no reply to a take")),
    }
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

    fn clock_us(self) -> u64 {
        self.from_us
    }

    /// How much higher than the model's a fence may be. The model has the time of the window's
    /// beginning.
    fn slack_us(self) -> u64 {
        self.to_us - self.from_us
    }
}

/// A fence that was given out.
#[derive(Debug)]
struct Fence {
    seen: Seen,
    least: u64,
    most: u64,
}

#[derive(Debug)]
enum Seen {
    Share(u64),
    /// In this message of the inbox.
    Message(Process, usize),
}

/// The models of all locks, and the inboxes and fences that are expected of the server.
struct Oracle {
    mutation: Option<Mutation>,
    locks: [Redis; 2],
    /// The locks' fences have one counter.
    last_fence: u64,
    /// How much higher it may be than the model's, which has the time of a window's beginning.
    slack_us: u64,
    /// By client: what it knows of its connection.
    links: [Link; PROCESSES as usize],
    /// By client: the epoch when it connected.
    epochs: [Option<Epoch>; PROCESSES as usize],
    /// The servers' replication ids, by their numbers.
    servers: HashMap<u8, String>,
    /// What the server has saved.
    saved: ([Redis; 2], u64),
    /// By client: when its call was begun.
    began_us: [u64; PROCESSES as usize],
    /// By client: whether its call gave fences out.
    has_given: [bool; PROCESSES as usize],
    /// By client: whether the take of its call took the lock that is read next.
    has_taken: [bool; PROCESSES as usize],
    /// By client: how many acquires of its call got their lock.
    got: [usize; PROCESSES as usize],
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
    fn done(&mut self, time: Window, client: Process, done: &Done) -> Check {
        if done.is_first {
            self.began_us[usize::from(client)] = time.from_us;
        }
        if is_error(&done.value, "NOSCRIPT") {
            return Ok(());
        }
        let (now_ms, times, value) = (time.now_ms(), done.times, &done.value);
        let of = match done.piece {
            Piece::Seed => return self.seeded(time, value),
            Piece::Count(acquires) => return self.counted(client, acquires, done),
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
                Script::Acquire => lock.acquire(now_ms, times, token, queue, may_be_record),
                Script::Share => lock.share(now_ms, times, token, queue),
                Script::RenewShared => lock.renew_shared(now_ms, times, token),
                Script::Release => lock.release(now_ms, token),
                Script::Grant => {
                    let is_there = |process| self.listening[usize::from(process)];
                    lock.grant(time.clock_us(), times, token, done.server, is_there)
                }
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
        }
        self.last_fence = lock.last_fence;
        self.got[client] += usize::from(matches!(outcome.reply, Reply::Acquired { .. }));
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

    fn seeded(&mut self, time: Window, value: &Value) -> Check {
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

    fn quarantined(
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
    fn is_server(&mut self, number: u8, id: &str) -> Check {
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
    fn epoch_is(&self, value: &Value) -> Check {
        let real = epoch_of(value);
        let model = self.locks[0].epoch.map(|epoch| {
            let id = self.servers.get(&epoch.server).cloned();
            (id.unwrap_or_default(), epoch.ends_ms)
        });
        same(EPOCH, &real, &model)
    }

    /// A client whose epoch is another by now uses nothing of its call.
    fn epoch_read(&mut self, client: Process, value: &Value) -> Check {
        let client = usize::from(client);
        let is_another = self.locks[0].epoch != self.epochs[client];
        ensure(!(is_another && self.has_given[client]), || {
            format!("fences are used, and the epoch is {value:?}")
        })?;
        self.epoch_is(value)
    }

    /// The counter of fences is seen.
    fn counter_is(&mut self, value: &Value, model: u64, slack: u64) -> Check {
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

    fn counted(&mut self, client: Process, acquires: u64, done: &Done) -> Check {
        let got = std::mem::take(&mut self.got[usize::from(client)]);
        self.has_given[usize::from(client)] = !done.fences.is_empty();
        let lock = &mut self.locks[0];
        lock.last_fence = self.last_fence;
        let Some(model) = lock.count(acquires) else {
            let value = &done.value;
            return ensure(is_wrong_type(value), || format!("a count is {value:?}"));
        };
        self.counter_is(&done.value, model, self.slack_us)?;
        if !done.fences.is_empty() {
            same("acquires that got their lock", &done.fences.len(), &got)?;
        }
        let client = usize::from(client);
        let clock = match done.is_seed_due && self.mutation.is_none() {
            true => self.began_us[client],
            false => 0,
        };
        for fence in &done.fences {
            let seen = Seen::Share(*fence);
            let (least, most) = (clock.max(done.server.seed + 1), self.last_fence);
            self.fences.push(Fence { seen, least, most });
        }
        Ok(())
    }

    fn expect(&mut self, key: usize, message: Message) {
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
    fn inboxes(&mut self, payloads: &[Vec<String>]) -> Check {
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

    fn check_fences(&mut self, in_messages: &[Vec<u64>]) -> Check {
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

    fn expects_fences_to_fall(&self) -> bool {
        matches!(
            self.mutation,
            Some(Mutation::FencesByIncrement | Mutation::GrantFromLostCounter)
        )
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

    fn saves(&mut self) {
        self.saved = (self.locks.clone(), self.last_fence);
    }

    /// The server was killed, and has what it saved. Nothing is on its way: all was compared.
    fn restarted(&mut self, time: Window) {
        let server = self.locks[0].server;
        let (locks, fence) = self.saved.clone();
        self.locks = locks;
        self.locks[0].server = server;
        self.locks[0].take_over();
        self.fence_replaced(time, self.locks[0].wrong_type.fence, fence);
    }

    fn fence_replaced(&mut self, time: Window, is_wrong: bool, fence: u64) {
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
    fn keys(&self, now_ms: u64, key: usize, found: &[Value]) -> Check {
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
    fn counter(&mut self, [found, epoch]: [Value; 2]) -> Check {
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

fn compare(of: &Operation, mut real: Reply, model: Reply) -> Check {
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
    same(&format!("{of:?}"), &real, &model)
}

/// Compares what a read found in a lock's place. Nothing and an empty value look the same.
fn is_found(value: &Value, model: Option<Option<Owner>>) -> Check {
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
fn epoch_of(value: &Value) -> Option<(String, u64)> {
    let text = text(value)?;
    let (server, ends) = text.split_once(' ')?;
    let is_hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
    (server.len() == 40 && is_hex(server)).then_some(())?;
    Some((server.to_owned(), ends.parse().ok()?))
}

/// Puts messages into a fixed order that tell all that share a lock the same: theirs is that of
/// their leases, to the ms.
fn sort_wanted(messages: &mut [(usize, Message)]) {
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
    is_error(value, "WRONGTYPE")
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
    fn all(server: &RedisServer) -> Vec<Self> {
        let inbox = |process| Self {
            connection: connect_to(server),
            channel: inbox(process),
            payloads: Vec::new(),
        };
        (0..PROCESSES).map(inbox).collect()
    }

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
    sources: Sources,
    client: Connection,
    inboxes: Vec<Inbox>,
    /// Whether the server has a snapshot.
    has_saved: bool,
    server: RedisServer,
    runtime: tokio::runtime::Runtime,
}

fn connect_to(server: &RedisServer) -> Connection {
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

/// Carries out the commands in one write, and returns when that was.
fn timed(client: &mut Connection, commands: &[Cmd]) -> (Window, Vec<Value>) {
    let mut timed = vec![cmd("TIME")];
    timed.extend_from_slice(commands);
    timed.push(cmd("TIME"));
    let mut answers = ask(client, &timed);
    let time = Window {
        from_us: micros(&answers.remove(0)),
        to_us: micros(&answers.pop().unwrap()),
    };
    (time, answers)
}

impl World {
    fn start(sources: Sources) -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let server = runtime.block_on(RedisServer::start());
        Self {
            sources,
            client: connect_to(&server),
            inboxes: Inbox::all(&server),
            has_saved: false,
            server,
            runtime,
        }
    }

    /// All locks are free, all processes listen, and the server knows the scripts.
    fn begin(&mut self) {
        ask(&mut self.client, &[cmd("FLUSHALL")]);
        if std::mem::take(&mut self.has_saved) {
            ask(&mut self.client, &[cmd("SAVE")]);
        }
        ask(&mut self.client, &self.sources.load());
        for inbox in &mut self.inboxes {
            inbox.listen(true);
            inbox.take();
        }
    }

    fn step(&mut self, oracle: &mut Oracle, step: &Step) -> Check {
        match step {
            Step::Call(call) => {
                self.act(oracle, call.client, Some(call))?;
                self.compare(oracle)?;
            }
            Step::Connects(process, settings) => {
                ask(&mut self.client, &self.sources.load());
                oracle.links[usize::from(*process)] = Link::new(*settings);
                self.act(oracle, *process, None)?;
                self.compare(oracle)?;
            }
            Step::Listens(process, does) => {
                self.inboxes[usize::from(*process)].listen(*does);
                oracle.listening[usize::from(*process)] = *does;
            }
            Step::Happens(event, key) => self.happens(oracle, *event, *key)?,
            Step::ScriptsFlushed => {
                ask(&mut self.client, &[command(&["SCRIPT", "FLUSH"])]);
            }
            Step::Saves => {
                self.has_saved = true;
                let saved = ask(&mut self.client, &[cmd("SAVE")]);
                same("a save", &saved, &vec![Value::Okay])?;
                oracle.saves();
            }
            Step::Restarts => self.restart(oracle)?,
        }
        Ok(())
    }

    fn restart(&mut self, oracle: &mut Oracle) -> Check {
        self.server.kill();
        self.runtime.block_on(self.server.restart());
        self.client = connect_to(&self.server);
        self.inboxes = Inbox::all(&self.server);
        for (inbox, does) in self.inboxes.iter_mut().zip(oracle.listening) {
            inbox.listen(does);
        }
        let (time, _) = timed(&mut self.client, &[]);
        oracle.restarted(time);
        self.compare(oracle)?;
        for process in 0..PROCESSES {
            self.act(oracle, process, None)?;
        }
        self.compare(oracle)
    }

    /// A client makes a call, or else a new connection.
    fn act(&mut self, oracle: &mut Oracle, client: Process, call: Option<&Call>) -> Check {
        let Self {
            sources,
            client: connection,
            ..
        } = self;
        let mut link = oracle.links[usize::from(client)].clone();
        let window = Cell::new(None);
        let mut send = |commands: &[Cmd]| {
            let (time, values) = timed(connection, commands);
            window.set(Some(time));
            values
        };
        let mut tell = |all: Vec<Done>| {
            let time = window.get().expect("all was sent");
            all.iter()
                .try_for_each(|done| oracle.done(time, client, done))
        };
        let result = match call {
            Some(call) => carry_out(sources, call, &mut link, &mut send, &mut tell),
            None => connect(sources, &mut link, &mut send, &mut tell),
        };
        oracle.links[usize::from(client)] = link;
        result
    }

    fn happens(&mut self, oracle: &mut Oracle, event: Event, key: usize) -> Check {
        let (time, _) = timed(&mut self.client, &[]);
        let fence_ahead = time.to_us.max(oracle.highest_fence) + 1_000_000;
        let (time, _) = timed(&mut self.client, &event.commands(key, fence_ahead));
        if let Some(name) = event.expiring(key) {
            self.wait_until_gone(name);
        }
        oracle.happens(time, event, key, fence_ahead);
        self.compare(oracle)
    }

    fn wait_until_gone(&mut self, name: &str) {
        let started = Instant::now();
        while ask(&mut self.client, &[command(&["EXISTS", name])]) != [Value::Int(0)] {
            assert!(started.elapsed() < PATIENCE, "{name} does not expire");
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Compares all that can be seen.
    fn compare(&mut self, oracle: &mut Oracle) -> Check {
        let payloads: Vec<_> = self.inboxes.iter_mut().map(Inbox::take).collect();
        oracle.inboxes(&payloads)?;
        let counters = self.compare_keys(oracle)?;
        oracle.counter(counters)
    }

    /// Compares the locks' keys. Returns what the server has under the fence's and the epoch's.
    fn compare_keys(&mut self, oracle: &Oracle) -> Result<[Value; 2], String> {
        let mut look = vec![command(&["GET", FENCE]), command(&["GET", EPOCH])];
        for ((owner, queue), readers) in OWNERS.iter().zip(&QUEUES).zip(&READERS) {
            look.push(command(&["GET", owner]));
            look.push(command(&["PTTL", owner]));
            look.push(command(&["LRANGE", queue, "0", "-1"]));
            look.push(command(&["PTTL", queue]));
            look.push(command(&["ZRANGE", readers, "0", "-1", "WITHSCORES"]));
            look.push(command(&["PTTL", readers]));
        }
        let (time, found) = timed(&mut self.client, &look);
        for (key, found) in found[2..].chunks(6).enumerate() {
            oracle.keys(time.now_ms(), key, found)?;
        }
        Ok([found[0].clone(), found[1].clone()])
    }

    /// Takes the steps one by one, and compares after each.
    fn run(&mut self, mutation: Option<Mutation>, steps: &[Step]) -> Check {
        self.begin();
        let mut oracle = Oracle::new(mutation);
        for process in 0..PROCESSES {
            self.act(&mut oracle, process, None)?;
        }
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
    /// By address.
    numbers: HashMap<String, Process>,
    monitor: Connection,
    /// How often the server turned from one process's commands to another's.
    turns: usize,
}

/// A command that the server carried out, as `MONITOR` tells it.
struct Served {
    at_us: u64,
    /// The client's address.
    by: String,
    words: Vec<String>,
    /// The clock that its script read, if it set the counter of fences to that.
    clock_us: Option<u64>,
}

impl Crowd {
    fn start(sources: Sources) -> Self {
        let world = World::start(sources);
        let mut clients: Vec<_> = (0..=PROCESSES).map(|_| connect_to(&world.server)).collect();
        let numbers = clients.iter_mut().map(address).zip(0..).collect();
        let mut monitor = connect_to(&world.server);
        let packed = cmd("MONITOR").get_packed_command();
        monitor.send_packed_command(&packed).unwrap();
        monitor.recv_response().unwrap();
        Self {
            world,
            clients,
            numbers,
            monitor,
            turns: 0,
        }
    }

    /// Returns the commands of clients since the last call, in the server's order.
    fn order(&mut self) -> Vec<Served> {
        ask(&mut self.world.client, &[command(&["ECHO", "so far"])]);
        let mut order: Vec<Served> = Vec::new();
        loop {
            let line = text(&self.monitor.recv_response().unwrap()).unwrap();
            let served = served(&line).unwrap_or_else(|| panic!("{line:?}"));
            if served.words[0] == "ECHO" {
                return order;
            }
            if served.by != "lua" {
                order.push(served);
            } else if served
                .words
                .starts_with(&["SET".to_owned(), FENCE.to_owned()])
            {
                let script = order.last_mut().expect("a script was called");
                script.clock_us = served.words[2].parse().ok();
            }
        }
    }

    fn run(&mut self, programs: &[Vec<Step>]) -> Check {
        self.world.begin();
        self.order();
        let mut done = self.at_once(programs)?;
        let order = self.order();
        self.replay(programs, &order, &mut done)
    }

    /// Runs the programs at the same time. Returns what came of each one's commands.
    fn at_once(&mut self, programs: &[Vec<Step>]) -> Result<Vec<VecDeque<Done>>, String> {
        let sources = &self.world.sources;
        let barrier = &Barrier::new(programs.len());
        let mut inboxes = self.world.inboxes.iter_mut();
        std::thread::scope(|scope| {
            let clients = self.clients.iter_mut();
            let threads = programs.iter().zip(clients).map(|(program, client)| {
                let inbox = inboxes.next();
                scope.spawn(move || {
                    barrier.wait();
                    run_program(program, sources, client, inbox)
                })
            });
            let threads: Vec<_> = threads.collect();
            let done = threads.into_iter().map(|thread| thread.join().unwrap());
            done.collect()
        })
    }

    fn replay(
        &mut self,
        programs: &[Vec<Step>],
        order: &[Served],
        done: &mut [VecDeque<Done>],
    ) -> Check {
        let mut oracle = Oracle::new(None);
        let mut foreign = programs[usize::from(PROCESSES)].iter();
        let mut last = None;
        for served in order {
            // A script's clock may be a little off the time at which the server says that it
            // served the call. Where it matters, it is known.
            let time = Window {
                from_us: served.clock_us.unwrap_or(served.at_us - 100_000),
                to_us: served.clock_us.unwrap_or(served.at_us + 100_000),
            };
            match self.numbers.get(&served.by) {
                Some(&client) if client < PROCESSES => {
                    let done = done[usize::from(client)].pop_front().unwrap();
                    oracle.done(time, client, &done)?;
                    self.turns += usize::from(last.replace(client) != Some(client));
                }
                Some(_) => match foreign.next().unwrap() {
                    Step::Happens(event, key) => oracle.happens(time, *event, *key, 0),
                    other => unreachable!("{other:?} is no event"),
                },
                None => {
                    let does = match served.words[0].as_str() {
                        "SUBSCRIBE" => true,
                        "UNSUBSCRIBE" => false,
                        _ => continue,
                    };
                    let process = process_of(&served.words[1]).unwrap();
                    oracle.listening[usize::from(process)] = does;
                }
            }
        }
        let left = done.iter().map(VecDeque::len).sum::<usize>() + foreign.len();
        same("steps that the server did not see", &left, &0)?;
        let inboxes = self.world.inboxes.iter_mut();
        let payloads: Vec<_> = inboxes.map(Inbox::take).collect();
        oracle.inboxes(&payloads)?;
        self.world.compare_keys(&oracle).map(drop)
    }
}

fn address(client: &mut Connection) -> String {
    let info = text(&ask(client, &[command(&["CLIENT", "INFO"])])[0]).unwrap();
    let address = info.split(' ').find_map(|word| word.strip_prefix("addr="));
    address.expect("a client has an address").to_owned()
}

/// Sends commands one by one, so that others' come in between.
fn run_program(
    program: &[Step],
    sources: &Sources,
    client: &mut Connection,
    mut inbox: Option<&mut Inbox>,
) -> Result<VecDeque<Done>, String> {
    let (mut all, mut link) = (VecDeque::new(), Link::default());
    let client = RefCell::new(client);
    let mut send = |commands: &[Cmd]| {
        let commands = commands.iter();
        let values =
            commands.flat_map(|one| ask(&mut client.borrow_mut(), std::slice::from_ref(one)));
        values.collect::<Vec<_>>()
    };
    let mut tell = |done| {
        all.extend(done);
        Ok(())
    };
    if inbox.is_some() {
        connect(sources, &mut link, &mut send, &mut tell)?;
    }
    for step in program {
        match step {
            Step::Call(call) => carry_out(sources, call, &mut link, &mut send, &mut tell)?,
            Step::Connects(_, settings) => {
                link = Link::new(*settings);
                connect(sources, &mut link, &mut send, &mut tell)?;
            }
            Step::Listens(_, does) => inbox.as_mut().unwrap().listen(*does),
            Step::Happens(event, key) => {
                drop(ask(&mut client.borrow_mut(), &event.commands(*key, 0)));
            }
            Step::ScriptsFlushed | Step::Saves | Step::Restarts => {}
        }
    }
    Ok(all)
}

/// Reads a line of `MONITOR`.
fn served(line: &str) -> Option<Served> {
    let (time, rest) = line.split_once(" [")?;
    let (seconds, micros) = time.split_once('.')?;
    let (by, words) = rest.split_once("] \"")?;
    let words = words.strip_suffix('"')?.split("\" \"");
    Some(Served {
        at_us: seconds.parse::<u64>().ok()? * 1_000_000 + micros.parse::<u64>().ok()?,
        by: by.split_once(' ')?.1.to_owned(),
        words: words.map(str::to_owned).collect(),
        clock_us: None,
    })
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
fn whatever_clients_do_redis_replies_tells_and_keeps_what_the_model_does() {
    let world = RefCell::new(World::start(Sources::as_they_are()));
    TestRunner::new(config(100))
        .run(&steps(), |steps| {
            world.borrow_mut().run(None, &steps).map_err(fail)
        })
        .unwrap_or_else(|error| panic!("{error}"));
}

/// One command of a process.
fn one(client: Process, kind: Kind) -> Step {
    Step::Call(Call {
        client,
        operations: vec![Operation {
            kind,
            key: 0,
            process: client,
            number: 1,
        }],
        times: TIMES[0],
        takes_with_get: true,
        is_seed_due: false,
        may_give: true,
        is_repeated: false,
        by_source: false,
    })
}

/// Asserts that these steps hold, and do not with that change.
fn only_without(steps: &[Step], script: Script, from: &str, to: &str) {
    let mut world = World::start(Sources::as_they_are());
    world.run(None, steps).unwrap();
    let mut world = World::start(changed(script, from, to));
    world.run(None, steps).unwrap_err();
}

#[test]
fn a_reader_at_the_head_of_the_queue_joins_those_that_share() {
    let share = Kind::Share { queue: true };
    let acquire = Kind::Acquire {
        queue: false,
        again: false,
        may_be_record: false,
    };
    // The first waits for a lease that expires; the second shares the free lock.
    let steps = [
        one(0, acquire),
        one(1, share),
        Step::Happens(Event::OwnerExpires, 0),
        one(2, share),
        one(1, share),
    ];
    only_without(&steps, Script::Share, "first == waits or ", "");
}

#[test]
fn no_reader_is_let_in_where_no_lock_may_be_given() {
    let share = Kind::Share { queue: true };
    let acquire = Kind::Acquire {
        queue: true,
        again: false,
        may_be_record: false,
    };
    let mut gives_up = one(1, Kind::Release { grants: true });
    if let Step::Call(call) = &mut gives_up {
        call.may_give = false;
    }
    let steps = [one(0, share), one(1, acquire), one(2, share), gives_up];
    only_without(
        &steps,
        Script::Grant,
        "may_give and call('LINDEX'",
        "call('LINDEX'",
    );
}

#[test]
fn a_grant_to_readers_begins_with_none() {
    let share = Kind::Share { queue: true };
    let acquire = Kind::Acquire {
        queue: false,
        again: false,
        may_be_record: false,
    };
    // The lock of the first is deleted. It does not share that of the last.
    let steps = [
        one(0, share),
        Step::Happens(Event::OwnerDeleted, 0),
        one(1, acquire),
        one(2, share),
        one(1, Kind::Release { grants: true }),
        one(0, Kind::RenewShared),
    ];
    only_without(&steps, Script::Grant, "  call('DEL', readers)\n", "");
}

/// A take does not look into the queue, and leaves no mark.
#[test]
fn those_who_waited_for_a_lease_that_expired_are_told_of_a_record() {
    let acquire = |queue| Kind::Acquire {
        queue,
        again: false,
        may_be_record: true,
    };
    let steps = [
        one(0, acquire(false)),
        one(1, acquire(true)),
        Step::Happens(Event::OwnerExpires, 0),
        one(2, acquire(false)),
        one(2, Kind::Complete(0)),
    ];
    // Where only a marked lock's waiters are told, this fails.
    let from = "for _, waiting in";
    let to = "if value == token then return 2 end\nfor _, waiting in";
    only_without(&steps, Script::Complete, from, to);
}

#[test]
fn clients_at_the_same_time_are_served_as_if_one_after_the_other() {
    const CASES: u32 = 40;
    let crowd = RefCell::new(Crowd::start(Sources::as_they_are()));
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

/// The scripts, with one thing in one of them replaced.
fn changed(script: Script, from: &str, to: &str) -> Sources {
    changed_in(Sources::as_they_are(), script, from, to)
}

fn changed_in(sources: Sources, script: Script, from: &str, to: &str) -> Sources {
    let mut sources = sources.sources;
    let source = &mut sources[script as usize];
    assert_eq!(source.matches(from).count(), 1, "not once there: {from}");
    *source = source.replace(from, to);
    Sources::new(sources, None)
}

/// The number of cases within which a mistake must be noticed.
const ENOUGH: u32 = 600;

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

fn is_noticed_in_steps(sources: Sources) -> bool {
    let mut world = World::start(sources);
    is_noticed(steps(), |steps| world.run(None, steps))
}

/// Asserts that the mistake is noticed, and that it is the model's mistake of that name.
fn is_the_models(mutation: Mutation, sources: Sources) {
    assert!(is_noticed_in_steps(sources.clone()), "{mutation:?}");
    let world = RefCell::new(World::start(sources));
    repeatable(30)
        .run(&steps(), |steps| {
            world.borrow_mut().run(Some(mutation), &steps).map_err(fail)
        })
        .unwrap_or_else(|error| panic!("{mutation:?}: {error}"));
}

#[test]
fn a_release_without_a_look_at_the_token_is_noticed() {
    let from = "if value == ARGV[1] then";
    let to = "if redis.call('EXISTS', KEYS[1]) == 1 then";
    is_the_models(
        Mutation::ReleaseWithoutTokenCheck,
        changed(Script::Release, from, to),
    );
    let from = "(value == token or value == token .. '!')";
    let to = "call('EXISTS', lock) == 1";
    is_the_models(
        Mutation::GrantWithoutTokenCheck,
        changed(Script::Grant, from, to),
    );
}

#[test]
fn a_release_that_deletes_a_marked_lock_is_noticed() {
    let from = "if value == ARGV[1] then";
    let to = "if value == ARGV[1] or value == ARGV[1] .. '!' then";
    is_the_models(
        Mutation::ReleaseOfMarked,
        changed(Script::Release, from, to),
    );
}

#[test]
fn a_renewal_that_writes_the_lock_is_noticed() {
    let from = "\
if reply > 1 then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return reply";
    let to = "\
redis.call('SET', KEYS[1], reply == 3 and value or ARGV[1], 'PX', ARGV[2])
return math.max(reply, 2)";
    is_the_models(Mutation::RenewalRecreates, changed(Script::Renew, from, to));
}

#[test]
fn a_counter_that_does_not_follow_the_clock_is_noticed() {
    let from = "  counter = string.format('%.0f', clock)\n  redis.call('SET', KEYS[1], counter)\n";
    let to = "  counter = redis.call('INCRBY', KEYS[1], 0)\n";
    is_the_models(Mutation::FencesByIncrement, changed(Script::Seed, from, to));
}

#[test]
fn a_grant_from_a_counter_that_was_lost_is_noticed() {
    let from = "if fence <= tonumber(ARGV[4]) then";
    is_the_models(
        Mutation::GrantFromLostCounter,
        changed(Script::Grant, from, "if false then"),
    );
}

#[test]
fn a_second_place_in_the_queue_is_noticed() {
    // It fails as before where there is no queue to look into.
    let from = "if not call('LPOS', queue, waits) then";
    let to = "if call('LLEN', queue) then";
    is_the_models(Mutation::NoQueueOnce, changed(Script::Acquire, from, to));
}

#[test]
fn a_grant_to_a_process_that_is_gone_is_noticed() {
    let from = "if process and call('PUBSUB', 'NUMSUB', ARGV[3] .. process)[2] > 0 then";
    let to = "if process and #process == 32 then";
    let sources = changed(Script::Grant, from, to);
    let from = "if call('PUBSUB', 'NUMSUB', ARGV[3] .. process)[2] > 0 then";
    let to = "if #process == 32 then";
    let sources = changed_in(sources, Script::Grant, from, to);
    is_the_models(Mutation::GrantsToTheGone, sources);
}

#[test]
fn a_completion_without_a_look_at_the_token_is_noticed() {
    let from = "elseif value ~= token and value ~= token .. '!' then";
    let to = "elseif call('EXISTS', lock) == 0 then";
    is_the_models(
        Mutation::CompletionWithoutTokenCheck,
        changed(Script::Complete, from, to),
    );
}

#[test]
fn a_completion_that_tells_no_waiter_is_noticed() {
    let from = "call('PUBLISH', ARGV[4] .. process, 'c' .. number .. ':' .. lock)";
    is_the_models(
        Mutation::CompletionInSilence,
        changed(Script::Complete, from, ""),
    );
}

#[test]
fn a_completion_that_tells_waiters_only_of_a_marked_lock_is_noticed() {
    let from = "for _, waiting in";
    let to = "if value == token then return 2 end\nfor _, waiting in";
    is_the_models(
        Mutation::CompletionTrustsTheMark,
        changed(Script::Complete, from, to),
    );
}

#[test]
fn a_quarantine_that_looks_only_for_lost_data_is_noticed() {
    let from = "if known ~= server then";
    is_the_models(
        Mutation::EpochOfAnotherServer,
        changed(Script::Quarantine, from, "if not known then"),
    );
}

#[test]
fn a_quarantine_that_begins_with_every_connection_is_noticed() {
    let from = "if known ~= server then";
    is_the_models(
        Mutation::QuarantineStartsAgain,
        changed(Script::Quarantine, from, "do"),
    );
}

#[test]
fn a_queue_that_another_s_settings_shorten_is_noticed() {
    let from = "if call('PTTL', queue) < lasts then";
    is_the_models(
        Mutation::QueueIsShortened,
        changed(Script::Acquire, from, "do"),
    );
}

#[test]
fn a_mark_that_is_not_set_is_noticed() {
    let from = "    call('SET', lock, value .. '!', 'KEEPTTL')\n";
    is_the_models(Mutation::NoMark, changed(Script::Acquire, from, ""));
    let from = "waiting == 1 and next .. '!' or next, 'PX'";
    is_the_models(
        Mutation::GrantWithoutMark,
        changed(Script::Grant, from, "next, 'PX'"),
    );
}

#[test]
fn a_mark_that_is_lost_is_noticed() {
    let from = "redis.call('PEXPIRE', KEYS[1], ARGV[2])";
    let to = "redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])";
    is_the_models(
        Mutation::RenewalRemovesMark,
        changed(Script::Renew, from, to),
    );
    let from = "  call('PEXPIRE', lock, ttl)\n";
    let to = "  call('SET', lock, token, 'PX', ttl)\n";
    is_the_models(
        Mutation::RepeatRemovesMark,
        changed(Script::Acquire, from, to),
    );
}

#[test]
fn a_repeated_acquire_that_does_not_renew_is_noticed() {
    let from = "  call('PEXPIRE', lock, ttl)\n";
    is_the_models(
        Mutation::RepeatDoesNotRenew,
        changed(Script::Acquire, from, ""),
    );
}

#[test]
fn a_reader_that_gets_past_a_writer_is_noticed() {
    let from = "(not first or first == waits or call('ZSCORE', readers, token))";
    is_the_models(
        Mutation::ReaderPastWriter,
        changed(Script::Share, from, "(first ~= {})"),
    );
}

#[test]
fn a_writer_that_gets_the_lock_while_readers_have_it_is_noticed() {
    let from = "is_shared = call('EXISTS', readers) == 1";
    is_the_models(
        Mutation::WriterAmongReaders,
        changed(Script::Grant, from, "is_shared = false"),
    );
}

#[test]
fn a_renewal_for_all_readers_is_noticed() {
    let from = "call('PEXPIRE', readers, lasts)";
    let to = "for _, all in ipairs(call('ZRANGE', readers, '0', '-1')) do \
              call('ZADD', readers, call('ZSCORE', readers, token), all) end\n\
              call('PEXPIRE', readers, lasts)";
    is_the_models(
        Mutation::RenewalProlongsAll,
        changed(Script::RenewShared, from, to),
    );
}

#[test]
fn readers_that_are_let_in_one_by_one_are_noticed() {
    let from = "  next = call('LINDEX', queue, '0')\n";
    let to = "  next = #given == 0 and call('LINDEX', queue, '0')\n";
    let sources = changed(Script::Grant, from, to);
    let from = "may_give and call('LINDEX'";
    let to = "may_give and #given == 0 and call('LINDEX'";
    let sources = changed_in(sources, Script::Grant, from, to);
    is_the_models(Mutation::ReadersOneByOne, sources);
}

/// Small slips that have no name in the model, one for each thing that is compared.
#[rustfmt::skip]
const SLIPS: [(Script, &str, &str); 116] = [
    // Fences.
    (Script::Seed, "* 1000000 + now[2]", "* 1000000"),
    (Script::Seed, "if not counter or tonumber(counter) < clock then", "if true then"),
    (Script::Seed, "if not counter or tonumber(counter) < clock then", "if not counter then"),
    (Script::Grant, "local fence = call('INCR', KEYS[3])", "local fence = tonumber(ARGV[4]) + 1"),
    (Script::Grant, "call('INCR', KEYS[3])", "call('INCRBY', KEYS[3], 2)"),
    (Script::Grant, "call('INCR', KEYS[3])", "call('GET', KEYS[3]) or 0; fence = tonumber(fence)"),
    (Script::Grant, "* 1000000 + now[2]", "* 1000000"),
    (Script::Grant, "    call('SET', KEYS[3], string.format('%.0f', fence))\n", ""),
    // Which tokens are ours.
    (Script::Acquire, "if process and #process ~= 32 then", "if false then"),
    (Script::Acquire, "'^(%x+):(%d+)(!?)$'", "'^(%x+):(%d+)(!?)'"),
    (Script::Acquire, "'^(%x+):(%d+)(!?)$'", "'^(%x+):(%d*)(!?)$'"),
    (Script::Acquire, "'^(%x+):(%d+)(!?)$'", "'^(%x+):(%d+)(!*)$'"),
    (Script::Acquire, "((process or is_shared) and 0 or 1)", "0"),
    (Script::Acquire, "elseif value == token or value == token .. '!' then", "elseif value == token then"),
    (Script::Acquire, "elseif value == token or value == token .. '!' then", "elseif value == token .. '!' then"),
    (Script::Renew, " or value == ARGV[1] .. '!' and 3", ""),
    (Script::Grant, "(value == token or value == token .. '!')", "(value == token)"),
    (Script::Grant, "(value == token or value == token .. '!')", "(value == token .. '!')"),
    (Script::Complete, "elseif value ~= token and value ~= token .. '!' then", "elseif value ~= token then"),
    // How long things live.
    (Script::Acquire, "or token, 'PX', ttl)", "or token)"),
    (Script::Acquire, "'!', 'KEEPTTL')", "'!')"),
    (Script::Acquire, "'!', 'KEEPTTL')", "'!', 'PX', ttl)"),
    (Script::Grant, "'PX', ARGV[2])", "'PX', 3 * ARGV[2])"),
    (Script::Acquire, "math.max(remaining, 0) + 3 * ttl", "3 * ttl"),
    (Script::Acquire, "    call('PEXPIRE', queue, lasts)\n", ""),
    (Script::Renew, "  redis.call('PEXPIRE', KEYS[1], ARGV[2])\n", ""),
    (Script::Acquire, "return -(5 + 2 * remaining", "return -(5 + 2 * ttl"),
    (Script::Complete, "'PX', ARGV[3])", "'PX', 1000 + ARGV[3] / 2)"),
    // The queue.
    (Script::Acquire, "call('RPUSH', queue, waits)", "call('LPUSH', queue, waits)"),
    (Script::Acquire, "  call('LREM', queue, '0', token)\n", ""),
    (Script::Grant, "call('LREM', queue, '0', token) == 0", "true"),
    (Script::Grant, "    call('LREM', queue, '0', token .. 's')\n", ""),
    (Script::Grant, "  next = call('LPOP', queue)\n", "  next = nil\n"),
    (Script::Grant, "  next = call('LINDEX', queue, '0')\n", "  next = nil\n"),
    (Script::Grant, "not is_shared and call('LPOP', queue)", "not is_shared and call('RPOP', queue)"),
    (Script::Grant, "may_give and call('LINDEX', queue, '0')", "may_give and call('LINDEX', queue, '-1')"),
    (Script::Grant, "may_give and not", "not"),
    (Script::Grant, "local next, reads = may_give and not is_shared and call('LPOP', queue), nil", "local next, reads = false, nil"),
    (Script::Grant, "next = may_give and call('LINDEX', queue, '0')", "next = false"),
    (Script::Grant, "if had == 1 then\n    call('DEL', lock)", "if false then\n    call('DEL', lock)"),
    (Script::Grant, "(given[1] and 2 or 0)", "0"),
    (Script::Release, "  redis.call('DEL', KEYS[1])\n", ""),
    (Script::Release, "and 3 or 1", "and 2 or 1"),
    // Marks.
    (Script::Acquire, "waiting == 1 and token .. '!' or token", "token"),
    (Script::Acquire, "waiting == 1 and token .. '!' or token", "token .. '!'"),
    (Script::Acquire, "if process and mark == '' then", "if process then"),
    (Script::Acquire, "if process and mark == '' then", "if mark == '' then"),
    (Script::Acquire, "if process and mark == '' then", "if not process then call('SET', lock, value .. '!', 'KEEPTTL') end\n  if process and mark == '' then"),
    (Script::Acquire, "local waiting = call('EXISTS', queue)", "local waiting = 0"),
    (Script::Acquire, "return value == token and 1 or 2", "return 1"),
    (Script::Grant, "waiting == 1 and next .. '!' or next, 'PX'", "next .. '!', 'PX'"),
    (Script::Renew, "'!' and 3 or 1", "'!' and 2 or 1"),
    // Records.
    (Script::Acquire, "value == '' and call('EXISTS', lock) == 0", "value == ''"),
    (Script::Acquire, "if ARGV[5] == '1' and not process then", "if ARGV[5] == '1' then"),
    (Script::Acquire, "if ARGV[5] == '1' and not process then", "if not process then"),
    (Script::Complete, "if value == record then\n  return 2\nelseif", "if"),
    (Script::Complete, "call('DEL', queue)\n", ""),
    (Script::Complete, "call('DEL', queue)\n", "if value ~= token then call('DEL', queue) end\n"),
    (Script::Complete, "ipairs(call('LRANGE', queue, '0', '-1'))", "ipairs(value ~= token and call('LRANGE', queue, '0', '-1') or {})"),
    (Script::Complete, "LRANGE', queue, '0', '-1'", "LRANGE', queue, '0', '0'"),
    // Messages.
    (Script::Acquire, "'!', 'KEEPTTL')\n    call('PUBLISH', ARGV[3] .. process, 'w' .. number .. ':' .. lock)\n", "'!', 'KEEPTTL')\n"),
    (Script::Acquire, "'!', 'KEEPTTL')\n    call('PUBLISH', ARGV[3] .. process, 'w' .. number", "'!', 'KEEPTTL')\n    call('PUBLISH', ARGV[3] .. process, 'w1'"),
    (Script::Complete, "'c' .. number", "'c1'"),
    (Script::Grant, "number, fence, ARGV[2], waiting", "1, fence, ARGV[2], waiting"),
    (Script::Grant, "number, fence, ARGV[2], waiting", "number, fence, ARGV[2], 0"),
    // Those that share.
    (Script::Share, "  call('DEL', readers)\n", ""),
    (Script::Share, "(value == 'shared' or value == 'shared!')", "(value == 'shared')"),
    (Script::Share, " and call('EXISTS', readers) == 1", ""),
    (Script::Share, "  call('LREM', queue, '0', waits)\n", ""),
    (Script::Share, "math.max(call('PTTL', lock), ttl)", "ttl"),
    (Script::Share, "math.floor(time[2] / 1000) + ttl", "math.floor(time[2] / 1000)"),
    (Script::Share, "  call('PEXPIRE', readers, lasts)\n", ""),
    (Script::Share, "waiting == 1 and 'shared!' or 'shared'", "'shared'"),
    (Script::Share, "waiting == 1 and 'shared!' or 'shared'", "'shared!'"),
    (Script::Share, "return 1 + waiting", "return 1"),
    (Script::Share, " or call('ZSCORE', readers, token)", ""),
    (Script::Share, "if not call('LPOS', queue, waits) then", "do"),
    (Script::Share, "call('RPUSH', queue, waits)", "call('RPUSH', queue, token)"),
    (Script::Share, "if call('PTTL', queue) < lasts then", "if true then"),
    (Script::Share, "math.max(remaining, 0) + 3 * ttl", "3 * ttl"),
    (Script::Share, "if process and mark == '' then", "if false then"),
    (Script::Share, "    call('SET', lock, value .. '!', 'KEEPTTL')\n", ""),
    (Script::Share, "    call('SET', lock, value .. '!', 'KEEPTTL')\n    call('PUBLISH', ARGV[3] .. process, 'w' .. number .. ':' .. lock)\n", "    call('SET', lock, value .. '!', 'KEEPTTL')\n"),
    (Script::Share, "(process or is_shared)", "process"),
    (Script::Share, "(process or is_shared)", "is_shared"),
    (Script::RenewShared, "or not call('ZSCORE', readers, token) ", ""),
    (Script::RenewShared, "value ~= 'shared' and value ~= 'shared!' or ", ""),
    (Script::RenewShared, "value ~= 'shared' and value ~= 'shared!'", "value ~= 'shared'"),
    (Script::RenewShared, "math.max(call('PTTL', lock), ARGV[2])", "ARGV[2]"),
    (Script::RenewShared, "+ ARGV[2], token)", ", token)"),
    (Script::RenewShared, "call('PEXPIRE', readers, lasts)\n", ""),
    (Script::RenewShared, "call('PEXPIRE', lock, lasts)\n", ""),
    (Script::RenewShared, "and 2 or 3", "and 2 or 2"),
    (Script::Acquire, "  call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now)\n", ""),
    (Script::Acquire, "is_shared = first ~= nil", "is_shared = true"),
    (Script::Acquire, "is_shared and first - now or remaining", "remaining"),
    (Script::Acquire, "    call('SET', lock, 'shared!', 'KEEPTTL')\n", ""),
    (Script::Acquire, "'shared!', 'KEEPTTL')", "'shared!')"),
    (Script::Acquire, "call('ZRANGE', KEYS[3], '0', '-1')", "call('ZRANGE', KEYS[3], '0', '0')"),
    (Script::Acquire, "((process or is_shared) and 0 or 1)", "(process and 0 or 1)"),
    (Script::Grant, "had = call('ZREM', readers, token)", "had = 0"),
    (Script::Grant, "call('ZREMRANGEBYSCORE', readers, '-inf'", "call('ZREMRANGEBYSCORE', readers, '-inf', '-inf') call('ZCOUNT', readers, '-inf'"),
    (Script::Grant, "is_shared = call('EXISTS', readers) == 1", "is_shared = false"),
    (Script::Grant, "if not is_shared and (value", "if (value"),
    (Script::Grant, "math.floor(time[2] / 1000) + ARGV[2]", "math.floor(time[2] / 1000)"),
    (Script::Grant, "'-1', '-1', 'WITHSCORES'", "'0', '0', 'WITHSCORES'"),
    (Script::Grant, "call('PEXPIREAT', readers, last)\n", ""),
    (Script::Grant, "call('PEXPIREAT', lock, last)\n", ""),
    (Script::Grant, "waiting == 1 and 'shared!' or 'shared'", "'shared'"),
    // Quarantine.
    (Script::Quarantine, "  redis.call('SET', KEYS[1], epoch)\n", ""),
    (Script::Quarantine, "ends = now + ARGV[1]", "ends = now"),
    (Script::Quarantine, "ends = now + ARGV[1]", "ends = (ends or now) + ARGV[1]"),
    (Script::Quarantine, "time[1] * 1000 + math.floor(time[2] / 1000)", "time[1] * 1000 + time[2] * 0"),
    (Script::Quarantine, "'^(%x+) (%d+)$'", "'^(%x+) (%d+)'"),
    (Script::Quarantine, "return { epoch, ends - now }", "return { epoch, tonumber(ARGV[1]) }"),
    (Script::Quarantine, "return { epoch, ends - now }", "return { epoch, 0 }"),
];

#[test]
fn every_slip_is_noticed() {
    let mut unnoticed = Vec::new();
    for (script, from, to) in SLIPS {
        if !is_noticed_in_steps(changed(script, from, to)) {
            unnoticed.push((script, from, to));
        }
    }
    assert!(unnoticed.is_empty(), "{unnoticed:#?}");
}

#[test]
fn every_mistake_with_fences_and_epochs_is_noticed() {
    for slip in [
        Slip::AllGetTheLastFence,
        Slip::BlockBeginsLate,
        Slip::BlockBeginsEarly,
        Slip::OneIsCounted,
        Slip::LostCounterIsUsed,
        Slip::NoSeedAtConnect,
        Slip::NoSeedWithCalls,
        Slip::AnotherEpochIsUsed,
    ] {
        let sources = Sources::new(SCRIPTS.map(str::to_owned), Some(slip));
        assert!(is_noticed_in_steps(sources), "{slip:?}");
    }
}

/// Holds for any value that another client put in the place of a lock or a record. Only `SET … GET`
/// has no bound.
#[test]
fn no_more_is_answered_than_shows_that_it_is_too_long_for_a_record() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let server = runtime.block_on(RedisServer::start());
    let mut client = connect_to(&server);
    let (key, process, number) = (0, 0, 1);
    let long = "x".repeat(1 << 20);
    ask(&mut client, &[command(&["SET", OWNERS[key], &long])]);
    let start = |length: usize| Value::BulkString(long.as_bytes()[..length].into());
    let acquire = |queue, again, may_be_record| Kind::Acquire {
        queue,
        again,
        may_be_record,
    };
    for (kind, expected) in [
        (acquire(true, false, true), start(16385)),
        (acquire(false, true, true), start(16385)),
        (acquire(false, true, false), Value::Int(-4)),
        (acquire(false, false, true), start(16385)),
        (acquire(false, false, false), start(16385)),
        (Kind::Complete(0), Value::Int(1)),
        (Kind::Renew, Value::Int(1)),
        (Kind::Share { queue: true }, Value::Int(-4)),
        (Kind::RenewShared, Value::Int(1)),
        (Kind::Check, start(65)),
        (Kind::Release { grants: false }, Value::Int(1)),
        (Kind::Release { grants: true }, Value::Int(1)),
    ] {
        let operation = Operation {
            kind,
            key,
            process,
            number,
        };
        let call = Call {
            client: process,
            operations: vec![operation],
            times: TIMES[0],
            takes_with_get: false,
            is_seed_due: false,
            may_give: true,
            is_repeated: false,
            by_source: true,
        };
        let mut pieces = call.pieces(&Link::default(), None);
        pieces.retain(|piece| !matches!(piece, Piece::Count(_)));
        let sources = Sources::as_they_are();
        let server = Link::default().server(true);
        let commands = pieces
            .iter()
            .map(|piece| sources.command(&call, server, *piece));
        let replies = ask(&mut client, &commands.collect::<Vec<_>>());
        assert_eq!(replies.last(), Some(&expected), "{kind:?}");
        let length = ask(&mut client, &[command(&["STRLEN", OWNERS[key]])]);
        assert_eq!(length, [Value::Int(1 << 20)]);
    }
}

#[test]
fn a_mistake_is_also_noticed_among_clients_at_the_same_time() {
    let numsub = "if process and call('PUBSUB', 'NUMSUB', ARGV[3] .. process)[2] > 0 then";
    let release = "if value == ARGV[1] then";
    for (script, from, to) in [
        (Script::Release, release, "if value ~= '' then"),
        (Script::Grant, numsub, "if process then"),
        (
            Script::Grant,
            "waiting == 1 and next .. '!' or next, 'PX'",
            "next, 'PX'",
        ),
    ] {
        let mut crowd = Crowd::start(changed(script, from, to));
        assert!(
            is_noticed(programs(), |programs| crowd.run(programs)),
            "{from} => {to}"
        );
    }
}
