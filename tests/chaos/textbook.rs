//! The textbook's lock: `SET NX PX`, a script that compares and deletes, one that compares and
//! prolongs; readers in a sorted set by expiry, that a writer waits for; several keys one after the
//! other. And its classic mistakes, to show that the checker finds them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use redis::Script;
use redis::aio::MultiplexedConnection;

use crate::clock::nanos;
use crate::support::connect_patiently;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    None,
    /// Releases without a look at whose lock it is.
    ReleasesBlindly,
    /// Renews with `SET PX`: that creates the lock again if it has gone, or is another's.
    RenewsBlindly,
    /// Counts the time to live from the reply rather than from before the command.
    TrustsFromTheReply,
    /// Fences by `INCR`, which starts again from one when the data is lost.
    CountsFences,
    /// Now and then goes on to renew what was given back, for some time, and releases nothing.
    ForgetsToStop,
    /// The first reader that leaves lets the writers in, though others read.
    FirstReaderUnlocks,
    /// Of several keys, keeps those that it had when one of the others could not be had in time.
    KeepsAPart,
}

impl Flaw {
    pub const ALL: [Self; 8] = [
        Self::None,
        Self::ReleasesBlindly,
        Self::RenewsBlindly,
        Self::TrustsFromTheReply,
        Self::CountsFences,
        Self::ForgetsToStop,
        Self::FirstReaderUnlocks,
        Self::KeepsAPart,
    ];
}

/// Their keys: the lock, the set of its readers, the fence.
const ACQUIRE: &str = "
    local now = redis.call('TIME')
    redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now[1] * 1000 + math.floor(now[2] / 1000))
    if redis.call('EXISTS', KEYS[2]) == 1 then return 0 end
    if not redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return 0 end
    if ARGV[3] == 'count' then return redis.call('INCR', KEYS[3]) end
    local fence = math.max(now[1] * 1000000 + now[2], 1 + (redis.call('GET', KEYS[3]) or 0))
    redis.call('SET', KEYS[3], string.format('%.0f', fence))
    return fence";
const SHARE: &str = "
    if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
    local now = redis.call('TIME')
    local ends = now[1] * 1000 + math.floor(now[2] / 1000) + ARGV[2]
    redis.call('ZADD', KEYS[2], ends, ARGV[1])
    redis.call('PEXPIRE', KEYS[2], math.max(redis.call('PTTL', KEYS[2]), ARGV[2]))
    if ARGV[3] == 'count' then return redis.call('INCR', KEYS[3]) end
    local fence = math.max(now[1] * 1000000 + now[2], 1 + (redis.call('GET', KEYS[3]) or 0))
    redis.call('SET', KEYS[3], string.format('%.0f', fence))
    return fence";
const RELEASE: &str = "
    if ARGV[2] ~= 'blindly' and redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
    return redis.call('DEL', KEYS[1])";
const RENEW: &str = "
    if ARGV[3] == 'blindly' then redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) return 1 end
    if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
    return redis.call('PEXPIRE', KEYS[1], ARGV[2])";
const LEAVE: &str = "
    if not redis.call('ZSCORE', KEYS[2], ARGV[1]) then return 0 end
    if ARGV[2] == 'all' then return redis.call('DEL', KEYS[2]) end
    return redis.call('ZREM', KEYS[2], ARGV[1])";
const STAY: &str = "
    if not redis.call('ZSCORE', KEYS[2], ARGV[1]) then return 0 end
    local now = redis.call('TIME')
    local ends = now[1] * 1000 + math.floor(now[2] / 1000) + ARGV[2]
    redis.call('ZADD', KEYS[2], ends, ARGV[1])
    return redis.call('PEXPIRE', KEYS[2], math.max(redis.call('PTTL', KEYS[2]), ARGV[2]))";

/// It is never in a hurry.
const TIMEOUT: Duration = Duration::from_secs(3);

pub struct Textbook {
    url: String,
    /// What the tokens of this process begin with.
    process: uuid::Uuid,
    tokens: AtomicU64,
    connection: Mutex<Option<MultiplexedConnection>>,
    ttl: Duration,
    flaw: Flaw,
}

impl Textbook {
    pub fn new(url: &str, ttl: Duration, flaw: Flaw) -> Arc<Self> {
        Arc::new(Self {
            url: url.to_owned(),
            process: uuid::Uuid::new_v4(),
            tokens: AtomicU64::new(1),
            connection: Mutex::default(),
            ttl,
            flaw,
        })
    }

    pub async fn acquire(
        self: &Arc<Self>,
        key: &str,
        wait: Duration,
    ) -> Result<Held, &'static str> {
        self.take(key, false, nanos() + wait.as_nanos() as u64)
            .await
    }

    pub async fn share(self: &Arc<Self>, key: &str, wait: Duration) -> Result<Held, &'static str> {
        self.take(key, true, nanos() + wait.as_nanos() as u64).await
    }

    /// One after the other.
    pub async fn acquire_all(
        self: &Arc<Self>,
        keys: impl Iterator<Item = &str>,
        wait: Duration,
    ) -> Result<Vec<Held>, &'static str> {
        let deadline = nanos() + wait.as_nanos() as u64;
        let mut all: Vec<Held> = Vec::new();
        for key in keys {
            match self.take(key, false, deadline).await {
                Ok(held) => all.push(held),
                Err(why) => {
                    for held in all {
                        match self.flaw {
                            Flaw::KeepsAPart => held.forget_for_some_time(),
                            _ => _ = held.release().await,
                        }
                    }
                    return Err(why);
                }
            }
        }
        Ok(all)
    }

    async fn take(
        self: &Arc<Self>,
        key: &str,
        shared: bool,
        deadline: u64,
    ) -> Result<Held, &'static str> {
        loop {
            let number = self.tokens.fetch_add(1, Ordering::Relaxed);
            let sent = nanos();
            let how = if self.flaw == Flaw::CountsFences {
                "count"
            } else {
                "clock"
            };
            let mut lease = Lease {
                textbook: Arc::clone(self),
                names: [
                    format!("lock:{key}"),
                    format!("{{lock:{key}}}:readers"),
                    "fence".to_owned(),
                ],
                shared,
                token: format!("{}:{number}", self.process.simple()),
                fence: 0,
                until: AtomicU64::new(0),
            };
            let script = if shared { SHARE } else { ACQUIRE };
            match lease.call(script, &[&self.ttl_ms(), how]).await {
                Some(0) => {}
                Some(fence) => {
                    lease.fence = fence;
                    lease.trust(sent);
                    let lease = Arc::new(lease);
                    let renewing = tokio::spawn(renew(Arc::clone(&lease), u32::MAX));
                    return Ok(Held { lease, renewing });
                }
                None => {
                    // It may have been taken all the same.
                    tokio::spawn(async move { lease.release().await });
                    return Err("Unavailable");
                }
            }
            let pause = Duration::from_micros(2000 + nanos() / 100 % 10_000);
            if nanos() + pause.as_nanos() as u64 > deadline {
                return Err("TimedOut");
            }
            tokio::time::sleep(pause).await;
        }
    }

    fn ttl_ms(&self) -> String {
        self.ttl.as_millis().to_string()
    }

    /// Returns the script's number, if it comes in time.
    async fn call(&self, script: &str, keys: &[String], args: &[&str]) -> Option<u64> {
        let answer = tokio::time::timeout(TIMEOUT, async {
            let mut connection = self.connect().await?;
            let script = Script::new(script);
            let mut call = script.prepare_invoke();
            call.key(keys).arg(args);
            call.invoke_async(&mut connection).await.ok()
        });
        let answer = answer.await.ok().flatten();
        if answer.is_none() {
            // A new connection next time.
            self.connection.lock().unwrap().take();
        }
        answer
    }

    async fn connect(&self) -> Option<MultiplexedConnection> {
        if let Some(connection) = &*self.connection.lock().unwrap() {
            return Some(connection.clone());
        }
        let connection = connect_patiently(&self.url).await.ok()?;
        *self.connection.lock().unwrap() = Some(connection.clone());
        Some(connection)
    }
}

struct Lease {
    textbook: Arc<Textbook>,
    /// Of the lock, the set of its readers, and the fence.
    names: [String; 3],
    shared: bool,
    token: String,
    fence: u64,
    until: AtomicU64,
}

/// How often what is not held any more is renewed, where that is the mistake.
const IN_VAIN: u32 = 9;

impl Lease {
    fn trust(&self, sent: u64) {
        let ttl = self.textbook.ttl.as_nanos() as u64;
        let until = match self.textbook.flaw {
            Flaw::TrustsFromTheReply => nanos() + ttl,
            _ => sent + ttl - ttl / 20 - 2_000_000,
        };
        self.until.store(until, Ordering::SeqCst);
    }

    fn forgets_to_stop(&self) -> bool {
        self.textbook.flaw == Flaw::ForgetsToStop && self.fence.is_multiple_of(8)
    }

    /// Returns the script's number, if it comes in time. The token is its first argument.
    async fn call(&self, script: &str, args: &[&str]) -> Option<u64> {
        let args = [&[self.token.as_str()], args].concat();
        self.textbook.call(script, &self.names, &args).await
    }

    async fn release(&self) -> Option<u64> {
        let flaw = self.textbook.flaw;
        match self.shared {
            true if flaw == Flaw::FirstReaderUnlocks => self.call(LEAVE, &["all"]).await,
            true => self.call(LEAVE, &[""]).await,
            false if flaw == Flaw::ReleasesBlindly => self.call(RELEASE, &["blindly"]).await,
            false => self.call(RELEASE, &[""]).await,
        }
    }

    async fn renew(&self) -> Option<u64> {
        let ttl = &self.textbook.ttl_ms();
        match self.shared {
            true => self.call(STAY, &[ttl]).await,
            false if self.textbook.flaw == Flaw::RenewsBlindly => {
                self.call(RENEW, &[ttl, "blindly"]).await
            }
            false => self.call(RENEW, &[ttl, ""]).await,
        }
    }
}

async fn renew(lease: Arc<Lease>, times: u32) {
    let times = if lease.forgets_to_stop() {
        IN_VAIN
    } else {
        times
    };
    for _ in 0..times {
        tokio::time::sleep(lease.textbook.ttl / 3).await;
        let sent = nanos();
        match lease.renew().await {
            Some(0) => {
                lease.until.store(0, Ordering::SeqCst);
                return;
            }
            Some(_) => lease.trust(sent),
            None => {}
        }
    }
}

pub struct Held {
    lease: Arc<Lease>,
    renewing: tokio::task::JoinHandle<()>,
}

impl Held {
    pub fn token(&self) -> u64 {
        self.lease.fence
    }

    pub fn is_held(&self) -> bool {
        nanos() < self.lease.until.load(Ordering::SeqCst)
    }

    pub async fn release(self) -> &'static str {
        if self.lease.forgets_to_stop() {
            return "Ok";
        }
        self.renewing.abort();
        match self.lease.release().await {
            Some(1) => "Ok",
            Some(_) => "Lost",
            None => "Unavailable",
        }
    }

    /// Leaves it to itself, renewed.
    fn forget_for_some_time(self) {
        tokio::spawn(renew(Arc::clone(&self.lease), IN_VAIN));
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if !self.lease.forgets_to_stop() {
            self.renewing.abort();
        }
    }
}
