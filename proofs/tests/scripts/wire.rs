//! Names, tokens and events, as the server sees them.

use redis::{Cmd, Value, cmd};

use crate::model::{Process, Token};
use crate::programs::Event;
use crate::{EPOCH, FENCE, FOREIGN_TTL_MS, INBOX, OWNERS, PROCESSES, QUEUES, READERS, RECORDS};

pub(crate) fn id(process: Process) -> String {
    format!("{:032x}", 0xa0 + u32::from(process))
}

pub(crate) fn name_of(token: Token) -> String {
    match token {
        Token::Ours { process, number } => format!("{}:{number}", id(process)),
        other => unreachable!("{other:?} shares no lock"),
    }
}

pub(crate) fn inbox(process: Process) -> String {
    format!("{INBOX}{}", id(process))
}

pub(crate) fn process_of(token_or_inbox: &str) -> Option<Process> {
    (0..PROCESSES).find(|process| token_or_inbox.contains(&id(*process)))
}

/// Returns the token, and whether it has a mark.
pub(crate) fn token(bytes: &[u8]) -> (Token, bool) {
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

pub(crate) fn command(words: &[&str]) -> Cmd {
    let mut command = cmd(words[0]);
    command.arg(&words[1..]);
    command
}

/// Lets the lease of a reader expire.
pub(crate) const OVERDUE: &str = "local all = redis.call('ZRANGE', KEYS[1], '0', '-1')
table.sort(all)
if all[1] then
  redis.call('ZADD', KEYS[1], '1', all[1])
end";

impl Event {
    pub(crate) fn commands(self, key: usize, fence_ahead: u64) -> Vec<Cmd> {
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
    pub(crate) fn expiring(self, key: usize) -> Option<&'static str> {
        match self {
            Self::OwnerExpires => Some(OWNERS[key]),
            Self::QueueExpires => Some(QUEUES[key]),
            _ => None,
        }
    }
}

/// Returns the token, or what is in its place, and whether it has a mark.
pub(crate) fn owner(value: &Value) -> Option<(Token, bool)> {
    match value {
        Value::BulkString(bytes) => Some(token(bytes)),
        _ => None,
    }
}

pub(crate) fn text(value: &Value) -> Option<String> {
    match value {
        Value::BulkString(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
        Value::SimpleString(text) => Some(text.clone()),
        Value::Okay => Some("OK".to_owned()),
        _ => None,
    }
}
