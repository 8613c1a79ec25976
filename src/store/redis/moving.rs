//! [`Moving`]: a command about a slot that moves to another server of its cluster, key by key.
//!
//! Until the slot has arrived, its primary has those keys that have not left yet. For any other, it
//! replies `ASK`, and names the new server. The command then goes to that server, behind `ASKING`,
//! in one write.
//!
//! A take is about two keys, which leave at different times: the lock, and the slot's counter of
//! fences. Each is asked for where it is.
//!
//! | The primary has | A take | |
//! |---|---|---|
//! | both | takes the lock and draws a fence there | one write |
//! | neither | does both at the new server | two |
//! | the counter | takes the lock at the new server, then draws a fence at the primary | three |
//! | the lock | finds it held. If it took the lock just before, it draws a fence at the new server | |
//!
//! What makes that safe:
//!
//! - A primary whose slot moves creates no key in it: what it replied `ASK` for stays away. Nothing
//!   is asked of the new server before the primary has said `ASK` for the same key, so no key is
//!   ever at both. (Two counters would give a fence twice, and `MIGRATE` would fail.)
//! - A fence is drawn behind the reply that gave the lock, and no sooner. So it is larger than that
//!   of any earlier holder, and those of later ones are larger.
//! - The lease counts from the write that took the lock, however late its fence comes. A take whose
//!   fence does not come in time has failed as unknown, and the manager releases its token.
//! - A release that was submitted behind its take follows it on the same way: the primary's replies
//!   come in order, the router passes them on in that order, and the new server has one connection.
//! - Only commands about one key go to the new server, and those that renew a share. Others are
//!   about keys of which one may be missing there: it would reply `TRYAGAIN`.
//! - What the new server does not carry out starts again at the slot's primary, after a pause.
//!
//! What it relies on is that the slot is not taken back by force. If an operator makes the primary
//! keep it (`CLUSTER SETSLOT … STABLE`) without moving the keys back, the primary gives locks anew
//! that are held at the other server, with this module or without.

use redis::RedisError;

use crate::clock::Time;

/// Where a command stands, whose slot is on its way.
#[derive(Debug, Default)]
pub(super) struct Moving {
    /// The server to which it goes in place of the slot's primary.
    pub(super) to: Option<ToldAddress>,
    /// Whether the primary has said that the counter of fences has left, too.
    pub(super) fence_left: bool,
    /// The lock is the token's. Only its fence is missing.
    pub(super) taken: Option<Taken>,
}

/// A lock that was taken without a fence.
#[derive(Clone, Copy, Debug)]
pub(super) struct Taken {
    /// When the command was sent that took it: the lease counts from there.
    pub(super) sent_at: Time,
    pub(super) contended: bool,
}

/// Why a command is to go elsewhere.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Redirect {
    /// Nothing was done. Another server has the slot, or this one cannot use it now.
    Later,
    /// Nothing was done. The slot is on its way to that server, and the key is not here.
    Ask { to: ToldAddress, fence_left: bool },
    /// The lock was taken. Its fence is at that server, or at the slot's primary.
    Fence {
        contended: bool,
        at: Option<ToldAddress>,
    },
}

/// A server, as another server tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ToldAddress {
    /// Empty: the host of the server that told.
    pub(super) host: String,
    pub(super) port: u16,
}

impl ToldAddress {
    /// Reads where to ask: `ASK 3999 127.0.0.1:6381`. `None`: it is another error.
    pub(super) fn asked(error: &RedisError) -> Option<Self> {
        if error.code() != Some("ASK") {
            return None;
        }
        let (host, port) = error.redirect_node()?.0.rsplit_once(':')?;
        Some(Self {
            // Redis 7 says `?` where hosts are told by names, and has none.
            host: host.trim_matches('?').to_owned(),
            port: port.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use redis::{Value, parse_redis_value};

    use super::*;

    fn error(reply: &str) -> RedisError {
        let value = parse_redis_value(format!("-{reply}\r\n").as_bytes());
        Value::extract_error(value.unwrap()).unwrap_err()
    }

    #[test]
    fn only_ask_says_where_to_ask() {
        let told = |host: &str, port| {
            let host = host.to_owned();
            Some(ToldAddress { host, port })
        };
        for (reply, expected) in [
            ("ASK 3999 127.0.0.1:6381", told("127.0.0.1", 6381)),
            ("ASK 3999 ::1:6381", told("::1", 6381)),
            ("ASK 3999 :6381", told("", 6381)),
            ("ASK 3999 ?:6381", told("", 6381)),
            (
                "ASK 3999 redis-2.internal:6381",
                told("redis-2.internal", 6381),
            ),
            ("ASK 3999 127.0.0.1", None),
            ("ASK 3999 127.0.0.1:x", None),
            ("ASK", None),
            ("MOVED 3999 127.0.0.1:6381", None),
            (
                "TRYAGAIN Multiple keys request during rehashing of slot",
                None,
            ),
        ] {
            assert_eq!(ToldAddress::asked(&error(reply)), expected, "{reply}");
        }
    }
}
