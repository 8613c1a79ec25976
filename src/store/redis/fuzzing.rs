//! What Redis sends, read from any bytes: see [`crate::fuzzing`].

#![allow(missing_docs)]

use std::time::Duration;

use redis::{Parser, Value};
use uuid::Uuid;

use super::Settings;
use super::commands::fits::fits;
use super::commands::{Epoch, Sent, Server, replies};
use super::manifest::Manifest;
use super::messages::message;
use super::names::{Names, key_of, lock_name};
use crate::key::LockKey;
use crate::mode::Mode;
use crate::store::{Command, Record};

const PREFIX: &str = "lock:";

/// Reads a message of the inbox, or the name of a key that was changed.
pub fn push(bytes: &[u8]) {
    if let Some((key, _)) = message(PREFIX, bytes, None) {
        assert!(!key.as_str().is_empty());
    }
    if let Ok(name) = std::str::from_utf8(bytes)
        && let Some(key) = key_of(PREFIX, name)
    {
        assert_eq!(lock_name(PREFIX, &key), name);
    }
}

/// Reads a manifest, which may be in a lock's place.
pub(crate) fn manifest(bytes: &[u8]) {
    if let Some(Ok(manifest)) = Manifest::decode(bytes) {
        assert_eq!(manifest.encode(), bytes);
    }
}

/// Reads the replies to a call, as they come to the driver.
pub fn reply(bytes: &[u8]) {
    let values = values(bytes);
    let settings = Settings {
        names: Names::new(PREFIX.to_owned(), Uuid::nil()),
        instance: String::new(),
        ttl: Duration::from_secs(30),
        grant_ttl: Duration::from_secs(10),
        command_timeout: Duration::from_secs(1),
        quarantine: true,
        min_replicas: 0,
    };
    let keys = [LockKey::new("a"), LockKey::record(["a"])].map(|key| key.expect("a key"));
    let commands = commands();
    for key in &keys {
        let sent = |command| Sent {
            key,
            command,
            is_repeated: false,
            moving: None,
        };
        let all: Vec<Sent<'_>> = commands.iter().map(sent).collect();
        // All at once, each alone, and none.
        let calls = [&all[..], &[]].into_iter().chain(all.chunks(1));
        for call in calls {
            for server in servers() {
                check(&settings, &server, call, &values);
            }
        }
    }
}

fn check(settings: &Settings, server: &Server, call: &[Sent<'_>], values: &[Value]) {
    let Ok(replies) = replies(settings, server, call.iter().copied(), values.to_vec()) else {
        return;
    };
    assert_eq!(replies.said.len(), call.len());
    for (sent, said) in call.iter().zip(&replies.said) {
        assert!(fits(sent.key, sent.command, said));
    }
}

/// Returns the values with which the bytes begin.
fn values(bytes: &[u8]) -> Vec<Value> {
    let (mut parser, mut rest) = (Parser::new(), bytes);
    std::iter::from_fn(|| parser.parse_value(&mut rest).ok()).collect()
}

/// Returns a command for each way in which one is put to Redis.
fn commands() -> Vec<Command> {
    let token = 1;
    let acquire = |queue, watch| Command::Acquire {
        token,
        mode: Mode::Exclusive,
        queue,
        watch,
        again: watch,
    };
    let release = |contended| Command::Release {
        token,
        contended,
        queued: false,
        reply: None,
    };
    let record = Record {
        content: "done".into(),
        retention: Duration::from_secs(60),
    };
    vec![
        acquire(false, false),
        acquire(true, false),
        acquire(true, true),
        Command::Acquire {
            token,
            mode: Mode::Shared,
            queue: true,
            watch: false,
            again: false,
        },
        Command::Renew {
            token,
            mode: Mode::Shared,
        },
        release(false),
        release(true),
        Command::Renew {
            token,
            mode: Mode::Exclusive,
        },
        Command::Check { token },
        Command::Complete {
            token,
            record,
            reply: None,
        },
    ]
}

/// Returns servers of each kind.
fn servers() -> impl Iterator<Item = Server> {
    (0..8).map(|bits| Server {
        takes_with_get: bits & 1 == 0,
        watches: bits & 2 == 0,
        seed: 1,
        epoch: (bits & 4 == 0).then(|| Epoch {
            home: 0,
            name: "{lock:}:epoch".to_owned(),
            value: b"e".to_vec(),
        }),
        may_give: true,
    })
}
