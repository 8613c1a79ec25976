//! What Redis sends, read from whatever bytes there are: see [`crate::fuzzing`].

#![allow(missing_docs)]

use super::batch;
use super::manifest::Manifest;
use crate::key::LockKey;
use crate::store::Command;

const PREFIX: &str = "lock:";

/// A message in the inbox, or the name of a key that was changed.
pub fn push(bytes: &[u8]) {
    if let Some((key, _)) = batch::message(PREFIX, bytes, None) {
        assert!(!key.as_str().is_empty());
    }
    if let Ok(owner) = std::str::from_utf8(bytes)
        && let Some(key) = batch::key_of(PREFIX, owner)
    {
        assert_eq!(batch::owner_name(PREFIX, &key), owner);
    }
}

/// What may stand in a lock's place, and lead to a record.
pub(crate) fn manifest(bytes: &[u8]) {
    if let Some(Ok(manifest)) = Manifest::decode(bytes) {
        assert_eq!(manifest.encode(), bytes);
    }
}

/// A reply of the script, as it comes over the wire.
pub fn reply(bytes: &[u8]) {
    let token = 1;
    let commands = [
        Command::Acquire {
            token,
            queue: true,
            watch: false,
            again: false,
        },
        Command::Release {
            token,
            wanted: false,
        },
        Command::Renew { token },
        Command::Complete { token },
    ];
    let keys = [LockKey::new("a"), LockKey::record(["a"])].map(|key| key.expect("a key"));
    for key in &keys {
        let commands = commands.iter().map(|command| (key, *command));
        if let Ok(value) = redis::parse_redis_value(bytes)
            && let Ok(answers) = batch::answers(commands.clone(), value)
        {
            assert_eq!(answers.len(), commands.len());
            for ((key, command), answer) in commands.zip(answers) {
                assert!(batch::fits(key, command, &answer));
            }
        }
    }
}
