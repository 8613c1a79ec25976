//! Several commands as one script call, and the replies to them.

use std::fmt::Write as _;
use std::sync::OnceLock;
use std::time::Duration;

use redis::{Cmd, RedisError, Value};
use uuid::Uuid;

use super::Settings;
use crate::clock::Time;
use crate::error::{Error, ErrorKind};
use crate::key::{Kind, LockKey};
use crate::store::{Command, Failure, Granted, Notice, Reply};

/// The crate's script, and the SHA-1 by which Redis knows it.
pub(super) struct Script {
    source: &'static str,
    script: redis::Script,
}

impl Script {
    pub(super) fn source(&self) -> &'static str {
        self.source
    }
}

pub(super) fn script() -> &'static Script {
    static SCRIPT: OnceLock<Script> = OnceLock::new();
    SCRIPT.get_or_init(|| {
        let source = include_str!("scripts/lock.lua");
        Script {
            source,
            script: redis::Script::new(source),
        }
    })
}

/// Whether Redis finds the script by its hash, or gets its source again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    ByHash,
    BySource,
}

const QUARANTINED: &str = "Redis lost data, or another server took over: no lock is given until those who had one before must have \
                           lost it";

/// The end of every record's name.
const RECORD: &str = ":record";

/// More bytes than the longest token has.
const MAX_TOKEN: usize = 64;

/// Lua's numbers are exact up to this one.
const MAX_FENCE: u64 = 1 << 53;

/// Returns one call for all commands, which Redis carries out in order.
pub(super) fn call<'a>(
    settings: &Settings,
    commands: impl ExactSizeIterator<Item = (&'a LockKey, &'a Command)> + Clone,
    how: Call,
) -> Cmd {
    let count = commands.len();
    let mut call = Cmd::with_capacity(9 + 4 * count, 256 + 192 * count);
    match how {
        Call::ByHash => call.arg("EVALSHA").arg(script().script.get_hash()),
        Call::BySource => call.arg("EVAL").arg(script().source),
    };
    call.arg(2 + 2 * count);
    let mut name = String::with_capacity(128);
    for what in ["fence", "epoch"] {
        name.clear();
        let _ = write!(name, "{{{}}}:{what}", settings.prefix);
        call.arg(&name);
    }
    for (key, _) in commands.clone() {
        name.clear();
        write_lock_name(&mut name, &settings.prefix, key);
        call.arg(&name);
        write_queue_name(&mut name);
        call.arg(&name);
    }
    call.arg(settings.inbox_prefix());
    call.arg(settings.ttl.as_millis() as u64);
    call.arg(settings.grant_ttl.as_millis() as u64);
    call.arg(match settings.quarantine {
        true => settings.ttl.as_millis() as u64,
        false => 0,
    });
    for (key, command) in commands {
        let (operation, token) = match *command {
            Command::Acquire { token, queue, .. } => match (key.kind(), queue) {
                (Kind::Lock, false) => ("acquire", token),
                (Kind::Lock, true) => ("queue", token),
                (Kind::Record, false) => ("claim", token),
                (Kind::Record, true) => ("claim and queue", token),
            },
            Command::Release { token, .. } => ("release", token),
            Command::Complete { token, .. } => ("complete", token),
            Command::Renew { token } => ("renew", token),
            Command::Check { token } => ("check", token),
        };
        call.arg(operation);
        name.clear();
        let _ = write!(name, "{}:{token}", settings.manager.simple());
        call.arg(&name);
        if let Command::Complete { record, .. } = command {
            call.arg(&record.content[..]);
            call.arg(record.retention.as_millis() as u64);
        }
    }
    call
}

/// Returns one read for each lock whose next change these commands ask to be told of. Redis tracks
/// the key of a read that follows `CLIENT CACHING YES`. A read takes no more bytes than a token
/// has, whatever is in the lock's place.
///
/// The reads are commands of their own, behind the script. Redis tracks the reads of a script as
/// well, but Redis 7.0 would go through all keys of the batch for each key that the script reads.
/// The reads and the script are no transaction: an ACL user would need one more right, and all keys
/// would have to be in one Cluster slot.
pub(super) fn track<'a>(
    settings: &Settings,
    commands: impl Iterator<Item = (&'a LockKey, &'a Command)>,
) -> impl Iterator<Item = Cmd> {
    let tracked = commands.filter(|(_, command)| is_tracked(command));
    tracked.map(|(key, command)| {
        let lock_name = lock_name(&settings.prefix, key);
        let mut read = Cmd::new();
        match command {
            // GETRANGE cannot tell an empty value from none.
            Command::Acquire { .. } => read.arg("EXISTS").arg(lock_name),
            _ => read.arg("GETRANGE").arg(lock_name).arg(0).arg(MAX_TOKEN),
        };
        read
    })
}

pub(super) fn is_tracked<R, S>(command: &Command<R, S>) -> bool {
    matches!(
        command,
        Command::Renew { .. } | Command::Check { .. } | Command::Acquire { watch: true, .. }
    )
}

/// Returns whether the read of [`track`] behind the script has found what the reply to the command
/// says. Otherwise, another client has changed the lock in between.
pub(super) fn is_as_left(
    settings: &Settings,
    command: &Command,
    reply: &Reply,
    seen: &Value,
) -> bool {
    match (command, reply) {
        (Command::Renew { token }, Reply::Renewed { .. })
        | (Command::Check { token }, Reply::Intact) => {
            let holder = format!("{}:{token}", settings.manager.simple());
            matches!(seen, Value::BulkString(seen) if *seen == holder.as_bytes())
        }
        (Command::Acquire { .. }, Reply::HeldElsewhere { .. }) => *seen != Value::Int(0),
        _ => true,
    }
}

/// Writes the name of a key's lock. A lock has the name that other clients would give it. A record
/// has a brace in front, as no lock has: a prefix holds no brace.
fn write_lock_name(name: &mut String, prefix: &str, key: &LockKey) {
    let key_text = key.as_str();
    let _ = match key.kind() {
        Kind::Lock => write!(name, "{prefix}{key_text}"),
        Kind::Record => write!(name, "{{{prefix}{key_text}}}{RECORD}"),
    };
}

pub(super) fn lock_name(prefix: &str, key: &LockKey) -> String {
    let mut name = String::new();
    write_lock_name(&mut name, prefix, key);
    name
}

/// Returns the name of a part of a long record. It is in the record's slot of a Redis Cluster, and
/// no name of a lock or a queue.
pub(super) fn part_name(prefix: &str, key: &LockKey, id: &Uuid, number: usize) -> String {
    let key = key.as_str();
    format!("{{{prefix}{key}}}:part:{}:{number}", id.simple())
}

/// Turns a lock name into the name of its queue. That is no name of a lock, as a prefix holds no
/// brace, and it is in the lock's slot of a Redis Cluster.
fn write_queue_name(lock_name: &mut String) {
    let tag = lock_name.find('{').and_then(|open| {
        let length = lock_name[open + 1..].find('}')?;
        (length > 0).then(|| lock_name[open..=open + 1 + length].to_owned())
    });
    match tag {
        Some(tag) => lock_name.insert_str(0, &format!("{tag}:queue:")),
        None if lock_name.contains(['{', '}']) => lock_name.insert_str(0, "{}:queue:"),
        None => {
            lock_name.insert(0, '{');
            lock_name.push_str("}:queue");
        }
    }
}

/// Reads what the script returned: a reply to each command, in order. A value of a form that the
/// script does not document is an error, whatever it may mean.
pub(super) fn replies<'a, R: 'a, S: 'a>(
    commands: impl ExactSizeIterator<Item = (&'a LockKey, &'a Command<R, S>)>,
    returned: Value,
) -> Result<Vec<Result<Reply, Failure>>, RedisError> {
    let Value::Array(mut values) = returned.extract_error()? else {
        return Err(unexpected());
    };
    if values.len() < commands.len() {
        return Err(unexpected());
    }
    let reason = match &values.split_off(commands.len())[..] {
        [] => None,
        [Value::BulkString(reason)] => Some(String::from_utf8_lossy(reason).into_owned()),
        _ => return Err(unexpected()),
    };
    let refused = |unknown| {
        let reason = reason.as_deref().unwrap_or("no reason given");
        failure(format!("Redis refused: {reason}"), unknown)
    };
    commands
        .zip(values)
        .map(|((key, command), value)| match (command, value) {
            (_, Value::Int(0)) => Some(Err(refused(false))),
            (Command::Acquire { .. }, Value::Int(-2)) => Some(Err(refused(true))),
            (Command::Acquire { .. }, Value::Int(-1)) => Some(Err(failure(QUARANTINED, false))),
            (_, Value::Int(number)) => reply(command, number).map(Ok),
            (Command::Acquire { .. }, Value::BulkString(record)) if key.kind() == Kind::Record => {
                Some(Ok(Reply::Recorded(record.into())))
            }
            _ => None,
        })
        .map(|result| result.ok_or_else(unexpected))
        .collect()
}

fn failure(message: impl Into<Box<str>>, unknown: bool) -> Failure {
    Failure {
        error: Error::new(ErrorKind::Unavailable, message),
        unknown,
    }
}

/// Reads an integer, which the script documents above the function of each operation.
fn reply<R, S>(command: &Command<R, S>, returned: i64) -> Option<Reply> {
    let number = returned.unsigned_abs();
    Some(match (command, returned) {
        (Command::Acquire { .. }, ..=-3) => Reply::HeldElsewhere {
            remaining: ((number - 1) / 2).checked_sub(2).map(Duration::from_millis),
            foreign: number.is_multiple_of(2),
        },
        (Command::Acquire { .. }, 2..) if number / 2 <= MAX_FENCE => Reply::Acquired {
            fence: number / 2,
            contended: number % 2 == 1,
        },
        (Command::Renew { .. } | Command::Check { .. } | Command::Complete { .. }, 1) => {
            Reply::Gone
        }
        (Command::Check { .. }, 2) => Reply::Intact,
        (Command::Complete { .. }, 2) => Reply::Completed,
        (Command::Renew { .. }, 2..=3) => Reply::Renewed {
            contended: returned == 3,
        },
        (Command::Release { .. }, 1..=4) => Reply::Released {
            had_it: returned % 2 == 0,
            granted: returned > 2,
        },
        _ => return None,
    })
}

fn unexpected() -> RedisError {
    RedisError::from((
        redis::ErrorKind::UnexpectedReturnType,
        "the lock script's reply has an unexpected form",
    ))
}

/// Reads a message from the inbox that was sent `after` that time: which key it is about, and what
/// happened.
pub(super) fn message(
    prefix: &str,
    payload: &[u8],
    after: Option<Time>,
) -> Option<(LockKey, Notice)> {
    let payload = std::str::from_utf8(payload).ok()?;
    let (head, rest) = payload.split_once(':')?;
    let (kind, token) = head.split_at_checked(1)?;
    let token = token.parse().ok()?;
    let (notice, lock_name) = match kind {
        "g" => {
            let (fence, rest) = rest.split_once(':')?;
            let (ttl, rest) = rest.split_once(':')?;
            let (contended, lock_name) = rest.split_once(':')?;
            let granted = Granted {
                token,
                fence: fence
                    .parse()
                    .ok()
                    .filter(|fence| (1..=MAX_FENCE).contains(fence))?,
                ttl: Duration::from_millis(ttl.parse().ok()?),
                contended: contended == "1",
                after,
            };
            (Notice::Granted(granted), lock_name)
        }
        "w" => (Notice::Contended { token }, rest),
        "c" => (Notice::Changed, rest),
        _ => return None,
    };
    Some((key_of(prefix, lock_name)?, notice))
}

/// Returns the key whose lock has this name.
pub(super) fn key_of(prefix: &str, lock_name: &str) -> Option<LockKey> {
    let (kind, name) = match lock_name.strip_prefix('{') {
        Some(record) => {
            let name = record.strip_suffix(RECORD)?.strip_suffix('}')?;
            (Kind::Record, name)
        }
        None => (Kind::Lock, lock_name),
    };
    LockKey::from_store(kind, name.strip_prefix(prefix)?)
}

/// Returns whether that may be the reply to the command.
#[cfg(any(fuzzing, all(test, feature = "properties")))]
pub(super) fn fits<R, S>(
    key: &LockKey,
    command: &Command<R, S>,
    reply: &Result<Reply, Failure>,
) -> bool {
    let Ok(reply) = reply else {
        return true;
    };
    let is_record = key.kind() == Kind::Record;
    match command {
        Command::Acquire { .. } => match reply {
            Reply::Acquired { fence, .. } => (1..=MAX_FENCE).contains(fence),
            Reply::HeldElsewhere { .. } => true,
            Reply::Recorded(_) => is_record,
            _ => false,
        },
        Command::Release { .. } => matches!(reply, Reply::Released { .. }),
        Command::Complete { .. } => matches!(reply, Reply::Completed | Reply::Gone),
        Command::Renew { .. } => matches!(reply, Reply::Renewed { .. } | Reply::Gone),
        Command::Check { .. } => matches!(reply, Reply::Intact | Reply::Gone),
    }
}

#[cfg(all(test, feature = "properties"))]
mod properties;

#[cfg(test)]
mod tests;
