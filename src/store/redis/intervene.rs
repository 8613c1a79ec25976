//! A lock that is taken from its holder.

use super::commands::{MARK, MAX_TOKEN, is_shared, token_of};
use super::driver::regrant;
use super::names::{lock_name, readers_name};
use super::{RedisStore, scripts};
use crate::clock::Time;
use crate::error::{Error, ErrorKind};
use crate::key::{Kind, LockKey};

/// The number of a token that has nothing: the manager's own begin at 1.
const NO_TOKEN: u64 = 0;

impl RedisStore {
    /// See [`Store::force_release`](crate::store::Store::force_release).
    pub(crate) async fn force_release(&self, key: &LockKey) -> Result<bool, Error> {
        let names = &self.settings.names;
        let lock = lock_name(&names.prefix, key);
        let mut read = redis::pipe();
        read.cmd("GETRANGE").arg(&lock).arg(0).arg(MAX_TOKEN);
        let value: Vec<u8> = self.ask(read).await?.pop().unwrap_or_default();
        // Empty is not absent.
        let mut exists = redis::pipe();
        exists.cmd("EXISTS").arg(&lock);
        if value.is_empty() && !self.ask(exists).await?.contains(&true) {
            return Ok(false);
        }
        let token = token_of(&value);
        let readers = self.readers(key, &value).await?;
        if token.is_none() && (key.kind() == Kind::Record || value.len() > MAX_TOKEN) {
            return Err(Error::new(
                ErrorKind::Held,
                "what is in the lock's place is no lock: a stored response, or a long value of another client",
            ));
        }
        let mut release = redis::pipe();
        // Only what was read is released, not what may have come in its place. A process that has
        // begun to wait meanwhile has marked it.
        let mut held = token.map_or(value.clone(), |token| token.unmarked.into());
        for _ in 0..2 {
            let release = release.cmd("EVAL").arg(scripts::RELEASE.source);
            release.arg(1).arg(&lock).arg(&held);
            held.push(MARK);
        }
        let readers = readers.iter().filter_map(|reader| token_of(reader));
        for holder in token.into_iter().chain(readers) {
            // A holder looks at its lock when it hears that it has changed.
            let inbox = format!("{}{}", names.inboxes, holder.process);
            let changed = format!("c{}:{lock}", holder.number);
            release.cmd("PUBLISH").arg(inbox).arg(changed);
        }
        let replies: Vec<i64> = self.ask(release).await?;
        // The driver knows whether locks may be given at this time, and which fence is next.
        let _ = self.submit(Time::now(), key, regrant(NO_TOKEN));
        Ok(replies.iter().take(2).any(|said| *said == 2))
    }

    /// Returns the tokens that share a lock with this value.
    async fn readers(&self, key: &LockKey, value: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
        if !is_shared(key, value) {
            return Ok(Vec::new());
        }
        let readers = readers_name(&lock_name(&self.settings.names.prefix, key));
        let mut read = redis::pipe();
        read.cmd("ZRANGE").arg(readers).arg(0).arg(-1);
        Ok(self.ask(read).await?.pop().unwrap_or_default())
    }
}
