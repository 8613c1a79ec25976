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
use crate::store::{Command, Failure, Granted, Notice, Reply};

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

/// One call for all commands, which are carried out in order.
pub(super) fn call<'a>(
    settings: &Settings,
    commands: impl ExactSizeIterator<Item = (&'a LockKey, &'a Command)> + Clone,
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

/// Reads the locks that these commands want to be told about when they change, one by one: Redis
/// tracks what is read, if the command before told it to. No more is read than a token has,
/// whatever stands there.
///
/// These are commands of their own, behind the script. What a script reads is tracked as well, but
/// Redis 7.0 would go through all keys of the batch for each one that the script reads. They are
/// not one transaction, which would need another right of an ACL user and keys of one Cluster slot.
pub(super) fn track<'a>(
    settings: &Settings,
    commands: impl Iterator<Item = (&'a LockKey, &'a Command)>,
) -> impl Iterator<Item = Cmd> {
    let tracked = commands.filter(|(_, command)| is_tracked(command));
    tracked.map(|(key, command)| {
        let lock_name = lock_name(&settings.prefix, key);
        let mut read = Cmd::new();
        match command {
            // Empty is not absent.
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

/// Whether what [`track`] read behind the script is what the reply to a command says: no other
/// client was in between.
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

/// A lock is named as other clients would name it; a record with a brace in front, as no lock is (a prefix holds none).
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

/// Names a part of a long record: in the record's slot of a Redis Cluster, and outside of the names
/// that locks and queues have.
pub(super) fn part_name(prefix: &str, key: &LockKey, id: &Uuid, number: usize) -> String {
    let key = key.as_str();
    format!("{{{prefix}{key}}}:part:{}:{number}", id.simple())
}

/// Turns a lock's name into that of its queue: outside of the names that locks have (a prefix holds
/// no brace), and in the lock's slot of a Redis Cluster.
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

/// Reads what the script returned: a reply to each of the commands, in order. A value of a form that
/// the script does not document is an error, whatever it may mean.
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

fn failure(message: impl Into<Arc<str>>, unknown: bool) -> Failure {
    Failure {
        error: Error::new(ErrorKind::Unavailable, message),
        unknown,
    }
}

/// What the integer says that stands above the operation's function in the script.
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

/// Whether that may be the reply to a command.
#[cfg(any(test, fuzzing))]
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

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::select;

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
        let name = |key: &LockKey| lock_name("lock:", key);
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
            contended: true,
            after,
        };
        assert_eq!(
            message("lock:", b"g12:1795000000000000:300:1:lock:a:b", after),
            Some((key.clone(), Notice::Granted(granted)))
        );
        assert_eq!(
            message("lock:", b"w7:lock:a:b", after),
            Some((key, Notice::Contended { token: 7 }))
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
        contended: false,
    };
    const COMPLETE: Command = Command::Complete { token: 1 };
    const RENEW: Command = Command::Renew { token: 1 };
    const COMMANDS: [Command; 4] = [ACQUIRE, RELEASE, COMPLETE, RENEW];

    #[test]
    fn replies_say_what_the_script_means() {
        let answer = |command, reply| answer(command, reply).unwrap();
        let held = |remaining: Option<u64>, foreign| Reply::HeldElsewhere {
            remaining: remaining.map(Duration::from_millis),
            foreign,
        };
        assert_eq!(answer(ACQUIRE, -(5 + 2 * 70)), held(Some(70), false));
        assert_eq!(answer(ACQUIRE, -6), held(Some(0), true));
        assert_eq!(answer(ACQUIRE, -(5 - 2)), held(None, false));
        assert_eq!(answer(ACQUIRE, -(5 - 2 + 1)), held(None, true));
        assert_eq!(
            answer(ACQUIRE, 2 * 9 + 1),
            Reply::Acquired {
                fence: 9,
                contended: true
            }
        );
        assert_eq!(answer(RENEW, 2), Reply::Renewed { contended: false });
        assert_eq!(answer(RENEW, 1), Reply::Gone);
        for (reply, had_it, granted) in [
            (1, false, false),
            (2, true, false),
            (3, false, true),
            (4, true, true),
        ] {
            let released = Reply::Released { had_it, granted };
            assert_eq!(answer(RELEASE, reply), released);
        }
    }

    /// What the script's reply to one command says.
    fn one(key: &LockKey, command: Command, reply: Value) -> Option<Result<Reply, Failure>> {
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

    fn values() -> impl Strategy<Value = Value> {
        let number = prop_oneof![
            8 => -10_i64..10,
            1 => any::<i64>(),
            1 => (-4_i64..4).prop_map(|more| 2 * MAX_FENCE as i64 + more),
        ];
        let value = prop_oneof![
            12 => number.prop_map(Value::Int),
            2 => any::<Vec<u8>>().prop_map(Value::BulkString),
            1 => Just(Value::Nil),
            1 => any::<bool>().prop_map(Value::Boolean),
            1 => any::<f64>().prop_map(Value::Double),
            1 => any::<String>().prop_map(Value::SimpleString),
            1 => Just(Value::Okay),
        ];
        value.prop_recursive(2, 8, 5, |value| vec(value, 0..6).prop_map(Value::Array))
    }

    proptest! {
        #[test]
        fn whatever_redis_replies_an_answer_fits_its_command(
            commands in vec((any::<bool>(), select(&COMMANDS[..])), 0..4),
            reply in prop_oneof![values(), vec(values(), 0..6).prop_map(Value::Array)],
        ) {
            let (lock, record) = (LockKey::new("a").unwrap(), LockKey::record(["a"]).unwrap());
            let commands: Vec<(&LockKey, Command)> = commands
                .into_iter()
                .map(|(is_lock, command)| (if is_lock { &lock } else { &record }, command))
                .collect();
            if let Ok(answers) = answers(commands.iter().copied(), reply) {
                prop_assert_eq!(answers.len(), commands.len());
                for ((key, command), answer) in commands.into_iter().zip(answers) {
                    prop_assert!(fits(key, command, &answer), "{:?}: {:?}", command, answer);
                }
            }
        }
    }
}
