//! Calls, as the crate makes them, and what it does with their replies.

use std::fmt::Debug;

use redis::{Cmd, Value, cmd};

use crate::model::{Message, Process, Reply, Server, Times, Token};
use crate::programs::{Call, Kind, Operation, Settings};
use crate::wire::{command, id, token};
use crate::{
    Check, EPOCH, FENCE, INBOX, MAX_FENCE, OWNERS, QUEUES, READERS, RECORDS, RETENTION_MS, SCRIPTS,
    Script, TIMES, ensure,
};

/// One command of a call.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Piece {
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
    /// So many takes.
    Count(u64),
    /// Before a connection is used.
    Quarantine(Settings),
    /// The read of the epoch.
    Epoch,
}

/// What a process knows of its connection.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    pub(crate) settings: Settings,
    /// What the counter of fences had when it connected. `None`: it could not be seeded, and so no
    /// lock may be given.
    pub(crate) seed: Option<u64>,
    /// The epoch then, with quarantine.
    pub(crate) epoch: Option<Value>,
}

impl Link {
    pub(crate) fn new(settings: Settings) -> Self {
        Self {
            settings,
            seed: None,
            epoch: None,
        }
    }

    pub(crate) fn server(&self, may_give: bool, is_seed_due: bool) -> Server {
        Server {
            floor: match is_seed_due {
                true => MAX_FENCE,
                false => self.seed.unwrap_or_default(),
            },
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
    pub(crate) fn pieces(&self, link: &Link, slip: Option<Slip>) -> Vec<Piece> {
        let mut pieces = Vec::new();
        if self.is_seed_due && self.takes() > 0 && slip != Some(Slip::NoSeedWithCalls) {
            pieces.push(Piece::Seed);
        }
        for operation in &self.operations {
            let piece = match operation.kind {
                _ if self.is_take(operation) => match self.takes_with_get {
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
        if self.takes() > 0 {
            pieces.push(Piece::Count(self.takes()));
        }
        let mut kinds = self.operations.iter().map(|operation| operation.kind);
        if kinds.any(Kind::is_acquire) {
            pieces.extend(link.epoch.as_ref().map(|_| Piece::Epoch));
        }
        pieces
    }

    /// Returns whether it is a command of Redis, behind which its fence is counted.
    fn is_take(&self, operation: &Operation) -> bool {
        let is_plain = matches!(
            operation.kind,
            Kind::Acquire {
                queue: false,
                again: false,
                ..
            }
        );
        is_plain && !self.is_repeated
    }

    pub(crate) fn takes(&self) -> u64 {
        let takes = self.operations.iter().filter(|one| self.is_take(one));
        takes.count() as u64
    }
}

/// The scripts as they are, or with a mistake, and their hashes.
#[derive(Clone, Debug)]
pub(crate) struct Sources {
    pub(crate) sources: [String; SCRIPTS.len()],
    pub(crate) hashes: [String; SCRIPTS.len()],
    pub(crate) slip: Option<Slip>,
}

/// A mistake in what is made of replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slip {
    /// All takes of a write get its last fence.
    AllGetTheLastFence,
    /// The block of fences begins behind its first one.
    BlockBeginsLate,
    /// The block of fences begins with the last one that was counted before.
    BlockBeginsEarly,
    /// One take of a write is counted, however many there are.
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
    pub(crate) fn new(sources: [String; SCRIPTS.len()], slip: Option<Slip>) -> Self {
        let hash = |source: &String| redis::Script::new(source).get_hash().to_owned();
        let hashes = sources.each_ref().map(hash);
        Self {
            sources,
            hashes,
            slip,
        }
    }

    pub(crate) fn as_they_are() -> Self {
        Self::new(SCRIPTS.map(str::to_owned), None)
    }

    pub(crate) fn load(&self) -> Vec<Cmd> {
        let load = |source: &String| command(&["SCRIPT", "LOAD", source]);
        self.sources.iter().map(load).collect()
    }

    pub(crate) fn seed(&self) -> Cmd {
        let mut seed = cmd("EVAL");
        let source = &self.sources[Script::Seed as usize];
        seed.arg(source).arg(1).arg(FENCE);
        seed
    }

    pub(crate) fn quarantine(&self, settings: Settings) -> Cmd {
        let mut quarantine = cmd("EVAL");
        let source = &self.sources[Script::Quarantine as usize];
        quarantine.arg(source).arg(1).arg(EPOCH);
        quarantine.arg(settings.ttl_ms);
        quarantine
    }

    pub(crate) fn command(&self, call: &Call, server: Server, piece: Piece) -> Cmd {
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
            Piece::Count(takes) => {
                let takes = match self.slip {
                    Some(Slip::OneIsCounted) => 1,
                    _ => takes,
                };
                let mut count = cmd("INCRBY");
                count.arg(FENCE).arg(takes);
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
                    Script::Acquire | Script::Share => &[lock(&of), queue, readers, FENCE],
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
                        run.arg(ttl).arg(INBOX).arg(server.floor);
                        run.arg(u8::from(queue)).arg(u8::from(may_be_record));
                    }
                    (Script::Grant, _) => {
                        run.arg(call.times.grant_ttl_ms).arg(INBOX);
                        run.arg(server.floor).arg(u8::from(server.may_give));
                    }
                    (_, Kind::Share { queue }) => {
                        run.arg(ttl).arg(INBOX).arg(server.floor);
                        run.arg(u8::from(queue));
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

pub(crate) fn is_error(value: &Value, code: &str) -> bool {
    matches!(value, Value::ServerError(error) if error.code() == code)
}

/// A piece that was carried out, as its client sees it.
#[derive(Clone, Debug)]
pub(crate) struct Done {
    pub(crate) piece: Piece,
    pub(crate) times: Times,
    pub(crate) server: Server,
    /// What the counter of fences had when its client connected.
    pub(crate) seed: u64,
    pub(crate) value: Value,
    /// What those that got their lock are given, if all of the call counts.
    pub(crate) fences: Vec<u64>,
    /// Whether it is the first of its call.
    pub(crate) is_first: bool,
    /// Whether the fences of the call are to be above the clock.
    pub(crate) is_seed_due: bool,
}

/// Carries out a call, and what follows from its replies. `send` sends commands in one write, and
/// `tell` hears what came of each.
pub(crate) fn carry_out(
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
        let is_due = call.is_seed_due && sources.slip != Some(Slip::NoSeedWithCalls);
        let server = link.server(call.may_give, is_due);
        let seed = link.seed.unwrap_or_default();
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
                (Piece::Count(takes), Value::Int(count)) => {
                    last = Some(*count as u64);
                    is_lost |= (*count as u64) < seed + takes
                        && sources.slip != Some(Slip::LostCounterIsUsed);
                }
                (Piece::Script(Script::Acquire | Script::Share, _), value) => {
                    is_lost |= drawn(value).is_some_and(|fence| fence <= seed);
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
            fences = share_out(last, call.takes(), got, sources.slip);
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
            seed,
            fences: match piece {
                Piece::Count(_) => std::mem::take(&mut fences),
                Piece::Script(Script::Acquire | Script::Share, _) if !is_unknown && !is_lost => {
                    drawn(&value).into_iter().collect()
                }
                _ => Vec::new(),
            },
            value,
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
pub(crate) fn connect(
    sources: &Sources,
    link: &mut Link,
    send: &mut impl FnMut(&[Cmd]) -> Vec<Value>,
    tell: &mut impl FnMut(Vec<Done>) -> Check,
) -> Check {
    (link.seed, link.epoch) = (None, None);
    let server = link.server(false, false);
    let mut put = |piece, command: Cmd| {
        let value = send(&[command]).remove(0);
        tell(vec![Done {
            piece,
            times: TIMES[0],
            server,
            seed: 0,
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

/// Returns whether a take got its lock.
pub(crate) fn has_got(piece: Piece, value: &Value) -> bool {
    match piece {
        Piece::Take(_) => *value == Value::Nil,
        Piece::TakeUnread(_) => *value == Value::Okay,
        _ => false,
    }
}

/// Returns the fence that a script drew for its token, if that got its lock.
pub(crate) fn drawn(value: &Value) -> Option<u64> {
    match value {
        Value::Array(drawn) => match drawn[..] {
            [Value::Int(fence), Value::Int(_)] => u64::try_from(fence).ok(),
            _ => None,
        },
        _ => None,
    }
}

/// Shares out the block of fences among those takes that got their lock.
pub(crate) fn share_out(last: u64, takes: u64, got: u64, slip: Option<Slip>) -> Vec<u64> {
    let first = match slip {
        Some(Slip::AllGetTheLastFence) => return vec![last; got as usize],
        Some(Slip::BlockBeginsLate) => last - takes + 2,
        Some(Slip::BlockBeginsEarly) => last - takes,
        _ => last - takes + 1,
    };
    (first..first + got).collect()
}

/// Returns the reply to an operation, as the comments in the scripts say it, and nothing else.
pub(crate) fn reply(script: Script, of: &Operation, value: &Value) -> Result<Reply, String> {
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
        Value::Array(parts) if matches!(script, Script::Acquire | Script::Share) => {
            return match parts[..] {
                [Value::Int(_), Value::Int(waiting @ (0 | 1))] => Ok(Reply::Acquired {
                    fence: drawn(value),
                    contended: waiting == 1,
                }),
                _ => Err(nonsense()),
            };
        }
        _ => return Err(nonsense()),
    };
    Ok(match (script, number) {
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
pub(crate) fn taken(of: &Operation, value: &Value) -> Result<Reply, String> {
    let held = |foreign| Reply::Held {
        remaining_ms: None,
        foreign,
    };
    match value {
        Value::Nil => Ok(Reply::Acquired {
            fence: None,
            contended: false,
        }),
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
pub(crate) fn message(process: Process, payload: &str) -> Option<(usize, Message)> {
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
