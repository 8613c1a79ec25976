//! Which replies fit a command, whatever Redis sends.

use super::{Kind, LockKey, MAX_FENCE, Said};
use crate::store::{Command, Reply};

/// Returns whether the manager may get this for such a command.
pub(in crate::store::redis) fn fits(key: &LockKey, command: &Command, said: &Said) -> bool {
    let is_release = matches!(command, Command::Release { .. });
    if said.is_to_be_granted && !is_release || said.is_changed && is_release {
        return false;
    }
    let Ok(reply) = &said.result else {
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
