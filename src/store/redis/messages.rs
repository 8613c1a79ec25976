//! What other processes send to this one's inbox.

use std::time::Duration;

use super::commands::MAX_FENCE;
use super::names::key_of;
use crate::clock::Time;
use crate::key::LockKey;
use crate::store::{Granted, Notice};

/// Reads what came into the inbox, and was sent `after` that time: the key it is about, and what
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
