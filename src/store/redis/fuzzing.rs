//! What Redis sends, read from any bytes: see [`crate::fuzzing`].

#![allow(missing_docs)]

use super::batch;
use super::manifest::Manifest;
use crate::key::LockKey;
use crate::store::Command;

const PREFIX: &str = "lock:";

/// Reads a message of the inbox, or the name of a key that was changed.
pub fn push(bytes: &[u8]) {
    if let Some((key, _)) = batch::message(PREFIX, bytes, None) {
        assert!(!key.as_str().is_empty());
    }
    if let Ok(name) = std::str::from_utf8(bytes)
        && let Some(key) = batch::key_of(PREFIX, name)
    {
        assert_eq!(batch::lock_name(PREFIX, &key), name);
    }
}

/// Reads a manifest, which may be in a lock's place.
pub(crate) fn manifest(bytes: &[u8]) {
    if let Some(Ok(manifest)) = Manifest::decode(bytes) {
        assert_eq!(manifest.encode(), bytes);
    }
}

/// Reads a reply of the script, as it comes to the driver.
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
            contended: false,
            reply: (),
        },
        Command::Renew { token },
        Command::Complete {
            token,
            record: (),
            reply: (),
        },
    ];
    let keys = [LockKey::new("a"), LockKey::record(["a"])].map(|key| key.expect("a key"));
    for key in &keys {
        let commands = commands.iter().map(|command| (key, command));
        if let Ok(value) = redis::parse_redis_value(bytes)
            && let Ok(replies) = batch::replies(commands.clone(), value)
        {
            assert_eq!(replies.len(), commands.len());
            for ((key, command), reply) in commands.zip(replies) {
                assert!(batch::fits(key, command, &reply));
            }
        }
    }
}
