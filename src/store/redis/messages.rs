//! What other processes send to this one's inbox.

use std::time::Duration;

use super::commands::MAX_FENCE;
use super::names::key_of;
use crate::clock::Time;
use crate::key::LockKey;
use crate::store::{Granted, Notice};

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

