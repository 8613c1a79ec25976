//! Several commands as one script call, and back.

use std::fmt::Write as _;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use redis::{Cmd, RedisError, Value};
use uuid::Uuid;

use super::Settings;
use crate::clock::Time;
use crate::error::{Error, ErrorKind};
use crate::key::{Kind, LockKey};
use crate::store::{Answer, Command, Failure, Granted, Notice, Record};

/// The crate's script, with the SHA-1 that Redis knows it by.
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

/// Whether Redis is to find the script by its hash, or gets it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    ByHash,
    Whole,
}

const QUARANTINED: &str = "Redis lost data, or another server took over: no lock is given until those who had one before must have \
                           lost it";

/// How the name of a record ends.
const RECORD: &str = ":record";

/// More bytes than the longest token has.
const MAX_TOKEN: usize = 64;

/// Lua's numbers are exact up to here.
const MAX_FENCE: u64 = 1 << 53;

/// One call for all commands, which are carried out in order. A completion comes with its record.
pub(super) fn call<'a>(
    settings: &Settings,
    commands: impl ExactSizeIterator<Item = (&'a LockKey, Command, Option<&'a Record>)> + Clone,
    how: Call,
) -> Cmd {
    let count = commands.len();
    let mut call = Cmd::with_capacity(9 + 4 * count, 256 + 192 * count);
    match how {
        Call::ByHash => call.arg("EVALSHA").arg(script().script.get_hash()),
        Call::Whole => call.arg("EVAL").arg(script().source),
    };
    call.arg(2 + 2 * count);
    let mut name = String::with_capacity(128);
    for what in ["fence", "epoch"] {
        name.clear();
        let _ = write!(name, "{{{}}}:{what}", settings.prefix);
        call.arg(&name);
    }
    for (key, ..) in commands.clone() {
        name.clear();
        write_owner_name(&mut name, &settings.prefix, key);
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
    for (key, command, record) in commands {
        let (operation, token) = match command {
            Command::Acquire { token, queue, .. } => match (key.kind(), queue) {
                (Kind::Lock, false) => ("acquire", token),
                (Kind::Lock, true) => ("queue", token),
                (Kind::Record, false) => ("claim", token),
                (Kind::Record, true) => ("claim and queue", token),
            },
            Command::Release { token, .. } => ("release", token),
            Command::Complete { token } => ("complete", token),
            Command::Renew { token } => ("renew", token),
            Command::Check { token } => ("check", token),
        };
        call.arg(operation);
        name.clear();
        let _ = write!(name, "{}:{token}", settings.manager.simple());
        call.arg(&name);
        if let Command::Complete { .. } = command {
            let record = record.expect("a completion has a record");
            call.arg(&record.content[..]);
            call.arg(record.retention.as_millis() as u64);
        }
    }
    call
}

/// Reads the owners that these commands want to be told about when they change, one by one:
/// whatever is read, Redis watches, if the command before told it so. No more is read than a token
/// has, whatever stands there.
///
/// Commands of their own, behind the script: what a script reads is watched as well, but a Redis
/// 7.0 would go through all keys of the batch for each one that it reads. Not one transaction,
/// which would need another right of an ACL user and keys of one Cluster slot.
pub(super) fn look<'a>(
    settings: &Settings,
    commands: impl Iterator<Item = (&'a LockKey, Command)>,
) -> impl Iterator<Item = Cmd> {
    let watched = commands.filter(|(_, command)| is_watched(*command));
    watched.map(|(key, command)| {
        let owner = owner_name(&settings.prefix, key);
        let mut look = Cmd::new();
        match command {
            // Empty is not absent.
            Command::Acquire { .. } => look.arg("EXISTS").arg(owner),
            _ => look.arg("GETRANGE").arg(owner).arg(0).arg(MAX_TOKEN),
        };
        look
    })
}

pub(super) fn is_watched(command: Command) -> bool {
    matches!(
        command,
        Command::Renew { .. } | Command::Check { .. } | Command::Acquire { watch: true, .. }
    )
}

/// Whether what [`look`] saw behind the script is what the answer to a command says: nobody was in between.
pub(super) fn is_as_left(
    settings: &Settings,
    command: Command,
    answer: &Answer,
    seen: &Value,
) -> bool {
    match (command, answer) {
        (Command::Renew { token }, Answer::Renewed { .. })
        | (Command::Check { token }, Answer::Intact) => {
            let owner = format!("{}:{token}", settings.manager.simple());
            matches!(seen, Value::BulkString(seen) if *seen == owner.as_bytes())
        }
        (Command::Acquire { .. }, Answer::Held { .. }) => *seen != Value::Int(0),
        _ => true,
    }
}

/// A lock is named as other clients would name it; a record with a brace in front, as no lock is (a prefix holds none).
fn write_owner_name(name: &mut String, prefix: &str, key: &LockKey) {
    let key_text = key.as_str();
    let _ = match key.kind() {
        Kind::Lock => write!(name, "{prefix}{key_text}"),
        Kind::Record => write!(name, "{{{prefix}{key_text}}}{RECORD}"),
    };
}

pub(super) fn owner_name(prefix: &str, key: &LockKey) -> String {
    let mut name = String::new();
    write_owner_name(&mut name, prefix, key);
    name
}

/// Names a part of a long record: in the record's slot of a Redis Cluster, and outside of the names
/// that owners and queues have.
pub(super) fn part_name(prefix: &str, key: &LockKey, id: &Uuid, number: usize) -> String {
    let key = key.as_str();
    format!("{{{prefix}{key}}}:part:{}:{number}", id.simple())
}

/// Turns an owner's name into that of its queue: outside of the names that owners have (a prefix holds no brace), and
/// in the owner's slot of a Redis Cluster.
fn write_queue_name(owner: &mut String) {
    let tag = owner.find('{').and_then(|open| {
        let length = owner[open + 1..].find('}')?;
        (length > 0).then(|| owner[open..=open + 1 + length].to_owned())
    });
    match tag {
        Some(tag) => owner.insert_str(0, &format!("{tag}:queue:")),
        None if owner.contains(['{', '}']) => owner.insert_str(0, "{}:queue:"),
        None => {
            owner.insert(0, '{');
            owner.push_str("}:queue");
        }
    }
}

/// Reads the script's reply: a result for each of the commands, in order. A reply of a form that
/// the script does not document is an error, whatever it may mean.
pub(super) fn answers<'a>(
    commands: impl ExactSizeIterator<Item = (&'a LockKey, Command)>,
    reply: Value,
) -> Result<Vec<Result<Answer, Failure>>, RedisError> {
    let Value::Array(mut values) = reply.extract_error()? else {
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
            (_, Value::Int(reply)) => answer(command, reply).map(Ok),
            (Command::Acquire { .. }, Value::BulkString(record)) if key.kind() == Kind::Record => {
                Some(Ok(Answer::Recorded(record.into())))
            }
            _ => None,
        })
        .map(|result| result.ok_or_else(unexpected))
        .collect()
}

fn failure(message: impl Into<Arc<str>>, unknown: bool) -> Failure {
    Failure {
        error: Error::new(ErrorKind::Unavailable, message),
        unknown,
    }
}

/// What the integer says that stands above the operation's function in the script.
fn answer(command: Command, reply: i64) -> Option<Answer> {
    let number = reply.unsigned_abs();
    Some(match (command, reply) {
        (Command::Acquire { .. }, ..=-3) => Answer::Held {
            remaining: ((number - 1) / 2).checked_sub(2).map(Duration::from_millis),
            foreign: number.is_multiple_of(2),
        },
        (Command::Acquire { .. }, 2..) if number / 2 <= MAX_FENCE => Answer::Acquired {
            fence: number / 2,
            wanted: number % 2 == 1,
        },
        (Command::Renew { .. } | Command::Check { .. } | Command::Complete { .. }, 1) => {
            Answer::Gone
        }
        (Command::Check { .. }, 2) => Answer::Intact,
        (Command::Complete { .. }, 2) => Answer::Completed,
        (Command::Renew { .. }, 2..=3) => Answer::Renewed { wanted: reply == 3 },
        (Command::Release { .. }, 1..=4) => Answer::Released {
            had_it: reply % 2 == 0,
            granted: reply > 2,
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

/// Reads what came into the inbox, and was sent `after` that time: the key it is about, and what happened.
pub(super) fn message(
    prefix: &str,
    payload: &[u8],
    after: Option<Time>,
) -> Option<(LockKey, Notice)> {
    let payload = std::str::from_utf8(payload).ok()?;
    let (head, rest) = payload.split_once(':')?;
    let (kind, token) = head.split_at_checked(1)?;
    let token = token.parse().ok()?;
    let (notice, owner) = match kind {
        "g" => {
            let (fence, rest) = rest.split_once(':')?;
            let (ttl, rest) = rest.split_once(':')?;
            let (wanted, owner) = rest.split_once(':')?;
            let granted = Granted {
                token,
                fence: fence
                    .parse()
                    .ok()
                    .filter(|fence| (1..=MAX_FENCE).contains(fence))?,
                ttl: Duration::from_millis(ttl.parse().ok()?),
                wanted: wanted == "1",
                after,
            };
            (Notice::Granted(granted), owner)
        }
        "w" => (Notice::Wanted { token }, rest),
        "c" => (Notice::Changed, rest),
        _ => return None,
    };
    Some((key_of(prefix, owner)?, notice))
}

/// The key whose owner has this name.
pub(super) fn key_of(prefix: &str, owner: &str) -> Option<LockKey> {
    let (kind, name) = match owner.strip_prefix('{') {
        Some(record) => {
            let name = record.strip_suffix(RECORD)?.strip_suffix('}')?;
            (Kind::Record, name)
        }
        None => (Kind::Lock, owner),
    };
    LockKey::from_store(kind, name.strip_prefix(prefix)?)
}

/// Whether that may be the answer to a command.
#[cfg(any(fuzzing, all(test, feature = "properties")))]
pub(super) fn fits(key: &LockKey, command: Command, answer: &Result<Answer, Failure>) -> bool {
    let Ok(answer) = answer else {
        return true;
    };
    let is_record = key.kind() == Kind::Record;
    match command {
        Command::Acquire { .. } => match answer {
            Answer::Acquired { fence, .. } => (1..=MAX_FENCE).contains(fence),
            Answer::Held { .. } => true,
            Answer::Recorded(_) => is_record,
            _ => false,
        },
        Command::Release { .. } => matches!(answer, Answer::Released { .. }),
        Command::Complete { .. } => matches!(answer, Answer::Completed | Answer::Gone),
        Command::Renew { .. } => matches!(answer, Answer::Renewed { .. } | Answer::Gone),
        Command::Check { .. } => matches!(answer, Answer::Intact | Answer::Gone),
    }
}

#[cfg(all(test, feature = "properties"))]
mod properties;

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(owner: &str) -> String {
        let mut name = owner.to_owned();
        write_queue_name(&mut name);
        name
    }

    #[test]
    fn a_queue_lies_in_the_slot_of_its_owner_and_outside_of_the_owners_names() {
        assert_eq!(queue("lock:a"), "{lock:a}:queue");
        assert_eq!(queue("lock:{u}1"), "{u}:queue:lock:{u}1");
        assert_eq!(queue("lock:{}1"), "{}:queue:lock:{}1");
    }

    #[test]
    fn a_record_is_named_as_no_lock_and_no_queue_is() {
        let name = |key: &LockKey| owner_name("lock:", key);
        let record = LockKey::record(["a{b}", "c"]).unwrap();
        assert_eq!(name(&record), "{lock:a%7Bb%7D:c}:record");
        assert_eq!(
            queue(&name(&record)),
            "{lock:a%7Bb%7D:c}:queue:{lock:a%7Bb%7D:c}:record"
        );
        assert_eq!(key_of("lock:", &name(&record)), Some(record.clone()));
        let part = part_name("lock:", &record, &Uuid::from_u128(0xa), 12);
        assert_eq!(
            part,
            "{lock:a%7Bb%7D:c}:part:0000000000000000000000000000000a:12"
        );
        assert_eq!(key_of("lock:", &part), None);
        for text in ["a:c", "{lock:a:c}:record", "a:c}:record"] {
            let lock = LockKey::new(text).unwrap();
            assert_eq!(name(&lock), format!("lock:{text}"));
            assert_eq!(key_of("lock:", &name(&lock)), Some(lock));
        }
        let record = LockKey::record(["a:c"]).unwrap();
        assert!(record != LockKey::new(record.as_str()).unwrap());
        assert_eq!(key_of("lock:", "{lock:a"), None);
        assert_eq!(key_of("lock:", "{other:a}:record"), None);
    }

    #[test]
    fn keys_with_braces_cannot_reach_the_queue_of_another() {
        let owners = [
            "lock:{lock:x}:queue",
            "lock:x}:queue:lock:{lock:x",
            "lock:{}:queue:lock:x",
            "lock:x",
            "lock:{lock:x}",
        ];
        let mut names: Vec<String> = owners.iter().map(|owner| queue(owner)).collect();
        names.extend(owners.map(str::to_owned));
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn messages_are_read_and_nonsense_is_passed_over() {
        let key = LockKey::new("a:b").unwrap();
        let after = Some(Time::from_nanos(5));
        let granted = Granted {
            token: 12,
            fence: 1_795_000_000_000_000,
            ttl: Duration::from_millis(300),
            wanted: true,
            after,
        };
        assert_eq!(
            message("lock:", b"g12:1795000000000000:300:1:lock:a:b", after),
            Some((key.clone(), Notice::Granted(granted)))
        );
        assert_eq!(
            message("lock:", b"w7:lock:a:b", after),
            Some((key, Notice::Wanted { token: 7 }))
        );
        let record = LockKey::record(["a", "b"]).unwrap();
        assert_eq!(
            message("lock:", b"c7:{lock:a:b}:record", after),
            Some((record, Notice::Changed))
        );
        for nonsense in [
            &b"g:lock:a"[..],
            b"w7:other:a",
            b"x1:lock:a",
            b"\xff",
            b"",
            b"w7:lock:",
            b"g7:lock:a",
            b"g7:1:300:1:other:a",
            b"g7:1:lock:a",
            b"g7:9007199254740993:300:1:lock:a",
        ] {
            assert_eq!(message("lock:", nonsense, None), None);
        }
    }

    const ACQUIRE: Command = Command::Acquire {
        token: 1,
        queue: true,
        watch: false,
        again: false,
    };
    const RELEASE: Command = Command::Release {
        token: 1,
        wanted: false,
    };
    const COMPLETE: Command = Command::Complete { token: 1 };
    const RENEW: Command = Command::Renew { token: 1 };
    pub(super) const COMMANDS: [Command; 4] = [ACQUIRE, RELEASE, COMPLETE, RENEW];

    #[test]
    fn replies_say_what_the_script_means() {
        let answer = |command, reply| answer(command, reply).unwrap();
        let held = |remaining: Option<u64>, foreign| Answer::Held {
            remaining: remaining.map(Duration::from_millis),
            foreign,
        };
        assert_eq!(answer(ACQUIRE, -(5 + 2 * 70)), held(Some(70), false));
        assert_eq!(answer(ACQUIRE, -6), held(Some(0), true));
        assert_eq!(answer(ACQUIRE, -(5 - 2)), held(None, false));
        assert_eq!(answer(ACQUIRE, -(5 - 2 + 1)), held(None, true));
        assert_eq!(
            answer(ACQUIRE, 2 * 9 + 1),
            Answer::Acquired {
                fence: 9,
                wanted: true
            }
        );
        assert_eq!(answer(RENEW, 2), Answer::Renewed { wanted: false });
        assert_eq!(answer(RENEW, 1), Answer::Gone);
        for (reply, had_it, granted) in [
            (1, false, false),
            (2, true, false),
            (3, false, true),
            (4, true, true),
        ] {
            let released = Answer::Released { had_it, granted };
            assert_eq!(answer(RELEASE, reply), released);
        }
    }

    /// What the script's reply to one command says.
    fn one(key: &LockKey, command: Command, reply: Value) -> Option<Result<Answer, Failure>> {
        let mut answers = answers([(key, command)].into_iter(), reply).ok()?;
        assert_eq!(answers.len(), 1);
        answers.pop()
    }

    #[test]
    fn a_reply_that_the_script_does_not_document_is_refused() {
        let lock = LockKey::new("a").unwrap();
        let record = LockKey::record(["a"]).unwrap();
        let too_much = 2 * (MAX_FENCE as i64 + 1);
        for command in COMMANDS {
            let refuses = |reply: Value| one(&lock, command, reply).is_none();
            assert!(refuses(Value::Nil));
            assert!(refuses(Value::Int(2)));
            assert!(refuses(Value::Array(vec![])));
            for value in [
                Value::Nil,
                Value::BulkString(b"x".to_vec()),
                Value::SimpleString("OK".to_owned()),
                Value::Array(vec![Value::Int(2)]),
                Value::Double(2.0),
                Value::Int(too_much),
                Value::Int(i64::MAX),
            ] {
                assert!(refuses(Value::Array(vec![value])), "{command:?}");
            }
            // Behind it comes a text, and nothing else.
            assert!(refuses(Value::Array(vec![Value::Int(2); 2])));
        }
        let refuses = |key, command, replies: &[i64]| {
            replies
                .iter()
                .all(|reply| one(key, command, Value::Array(vec![Value::Int(*reply)])).is_none())
        };
        for key in [&lock, &record] {
            assert!(refuses(key, ACQUIRE, &[1]));
        }
        assert!(refuses(&lock, RELEASE, &[-1, -2, 5, 6]));
        assert!(refuses(&lock, COMPLETE, &[-1, -2, 3]));
        assert!(refuses(&lock, RENEW, &[-1, -2, -3, i64::MIN, 4]));
        for command in [RELEASE, COMPLETE, RENEW] {
            let text = Value::Array(vec![Value::BulkString(b"x".to_vec())]);
            assert!(one(&record, command, text).is_none());
        }
    }

    #[test]
    fn an_error_says_whether_the_token_has_got_something() {
        let key = LockKey::new("a").unwrap();
        let failure = |command, reply| {
            let reason = Value::BulkString(b"OOM".to_vec());
            let reply = Value::Array(vec![Value::Int(reply), reason]);
            one(&key, command, reply).unwrap().unwrap_err()
        };
        for command in COMMANDS {
            let failure = failure(command, 0);
            assert!(!failure.unknown && failure.error.to_string().contains("OOM"));
        }
        assert!(failure(ACQUIRE, -2).unknown);
        assert!(!failure(ACQUIRE, -1).unknown, "quarantined");
    }
}
