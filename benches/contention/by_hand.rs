//! A lock that readers share, as it is written by hand: in Redis, a counter of readers and a key
//! for the writer, which two pairs of scripts keep. Tried again after 1 to 5 ms.
//!
//! So that a stream of readers does not keep writers out, a writer that is refused leaves a key
//! that keeps new readers out for a moment. There is no renewal, and the counter says nothing of
//! who reads: a reader that dies keeps writers out until the counter expires.

use std::sync::Arc;

use redis::aio::MultiplexedConnection;
use redis::{RedisResult, Script};

use crate::support::recipe::{Tokens, connection};

/// Their keys: the writer's, the counter, and the one of a writer that waits.
const READ: &str = "
    if redis.call('EXISTS', KEYS[1], KEYS[3]) > 0 then return 0 end
    redis.call('INCR', KEYS[2])
    return redis.call('PEXPIRE', KEYS[2], 10000)";
const LEAVE: &str = "
    if redis.call('DECR', KEYS[2]) <= 0 then redis.call('DEL', KEYS[2]) end
    return 1";
const WRITE: &str = "
    if redis.call('EXISTS', KEYS[1], KEYS[2]) > 0 then
      redis.call('SET', KEYS[3], '1', 'PX', 10)
      return 0
    end
    redis.call('SET', KEYS[1], ARGV[1], 'PX', 10000)
    redis.call('DEL', KEYS[3])
    return 1";
const RELEASE: &str =
    "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0";

#[derive(Clone)]
pub struct ByHand {
    redis: MultiplexedConnection,
    shared: Arc<Shared>,
}

struct Shared {
    read: Script,
    leave: Script,
    write: Script,
    release: Script,
    tokens: Tokens,
}

/// What is held, of which key.
pub struct Held {
    key: String,
    /// `None`: it reads.
    token: Option<String>,
}

impl ByHand {
    pub async fn connect(url: &str) -> RedisResult<Self> {
        let redis = connection(url).await?;
        let shared = Shared {
            read: Script::new(READ),
            leave: Script::new(LEAVE),
            write: Script::new(WRITE),
            release: Script::new(RELEASE),
            tokens: Tokens::new(),
        };
        let shared = Arc::new(shared);
        Ok(Self { redis, shared })
    }

    pub async fn try_read(&self, key: &str) -> RedisResult<Option<Held>> {
        let may = self.run(&self.shared.read, key, "").await?;
        let held = || Held {
            key: key.to_owned(),
            token: None,
        };
        Ok(may.then(held))
    }

    pub async fn try_write(&self, key: &str) -> RedisResult<Option<Held>> {
        let token = self.shared.tokens.next();
        let may = self.run(&self.shared.write, key, &token).await?;
        let held = || Held {
            key: key.to_owned(),
            token: Some(token),
        };
        Ok(may.then(held))
    }

    /// Returns whether there was something to release.
    pub async fn release(&self, held: Held) -> RedisResult<bool> {
        match held.token {
            Some(token) => self.run(&self.shared.release, &held.key, &token).await,
            None => self.run(&self.shared.leave, &held.key, "").await,
        }
    }

    async fn run(&self, script: &Script, key: &str, token: &str) -> RedisResult<bool> {
        let names = ["writer", "readers", "wanted"].map(|what| format!("hand:{what}:{key}"));
        let mut call = script.prepare_invoke();
        call.key(&names[..]).arg(token);
        let said: u32 = call.invoke_async(&mut self.redis.clone()).await?;
        Ok(said == 1)
    }
}
