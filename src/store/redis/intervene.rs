//! A lock that is taken from its holder.

use super::commands::token_of;
use super::names::{lock_name, queue_name};
use super::{RedisStore, scripts};
use crate::error::{Error, ErrorKind};
use crate::key::{Kind, LockKey};

impl RedisStore {
    /// See [`Store::force_release`](crate::store::Store::force_release).
    pub(crate) async fn force_release(&self, key: &LockKey) -> Result<bool, Error> {
        let names = &self.settings.names;
        let lock = lock_name(&names.prefix, key);
        let mut read = redis::pipe();
        read.cmd("GETRANGE").arg(&lock).arg(0).arg(64);
        let value: Vec<u8> = self.ask(read).await?.pop().unwrap_or_default();
        if value.is_empty() {
            return Ok(false);
        }
        let token = token_of(&value);
        if token.is_none() && (key.kind() == Kind::Record || value.len() > 64) {
            return Err(Error::new(
                ErrorKind::Held,
                "what is in the lock's place is no lock: a stored response, or a long value of another client",
            ));
        }
        let may_give = self.may_give().await?;
        let mut release = redis::pipe();
        // The counter of fences may be lost: what is given must be larger than all before.
        let fence = names.fence(names.slot(key));
        let seed = release.cmd("EVAL").arg(scripts::SEED.source);
        seed.arg(1).arg(&*fence);
        let grant = release.cmd("EVAL").arg(scripts::GRANT.source);
        grant.arg(3).arg(&lock).arg(queue_name(&lock)).arg(&*fence);
        // Only what was read is released, not what may have come in its place.
        grant.arg(token.map_or(&value[..], |token| token.unmarked.as_bytes()));
        grant.arg(self.settings.grant_ttl.as_millis() as u64);
        grant.arg(&names.inboxes);
        grant.arg(0).arg(u8::from(may_give));
        if let Some(token) = token {
            // The holder looks at its lock when it hears that it has changed.
            let inbox = format!("{}{}", names.inboxes, token.process);
            let changed = format!("c{}:{lock}", token.number);
            release.cmd("PUBLISH").arg(inbox).arg(changed);
        }
        let replies: Vec<i64> = self.ask(release).await?;
        // 1, + 1 if the token had the lock, + 2 if the lock went to the next.
        Ok(replies.get(1).is_some_and(|said| said % 2 == 0))
    }

    /// Returns whether the next in the queue may get a lock: not in quarantine.
    async fn may_give(&self) -> Result<bool, Error> {
        if !self.settings.quarantine {
            return Ok(true);
        }
        let mut quarantine = redis::pipe();
        let look = quarantine.cmd("EVAL").arg(scripts::QUARANTINE.source);
        look.arg(1).arg(&self.settings.names.epoch);
        let longest = self.settings.ttl + self.address.longest_zombie();
        look.arg(longest.as_millis() as u64);
        let remaining: Vec<(Vec<u8>, i64)> = self.ask(quarantine).await?;
        Ok(remaining.iter().all(|(_, remaining)| *remaining <= 0))
    }
}
