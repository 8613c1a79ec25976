//! The textbook's lock: `SET NX PX`, a script that compares and deletes, one that compares and
//! prolongs. And its classic mistakes, to show that the checker finds them.

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
}

impl Flaw {
    pub const ALL: [Self; 6] = [
        Self::None,
        Self::ReleasesBlindly,
        Self::RenewsBlindly,
        Self::TrustsFromTheReply,
        Self::CountsFences,
        Self::ForgetsToStop,
    ];
}

const ACQUIRE: &str = "
    if not redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return 0 end
    if ARGV[3] == 'count' then return redis.call('INCR', KEYS[2]) end
    local now = redis.call('TIME')
    local fence = math.max(now[1] * 1000000 + now[2], 1 + (redis.call('GET', KEYS[2]) or 0))
    redis.call('SET', KEYS[2], string.format('%.0f', fence))
    return fence";
const RELEASE: &str = "
    if ARGV[2] ~= 'blindly' and redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
    return redis.call('DEL', KEYS[1])";
const RENEW: &str = "
    if ARGV[3] == 'blindly' then redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) return 1 end
    if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
    return redis.call('PEXPIRE', KEYS[1], ARGV[2])";

/// It is never in a hurry.
const TIMEOUT: Duration = Duration::from_secs(3);

pub struct Textbook {
    url: String,
    connection: Mutex<Option<MultiplexedConnection>>,
    ttl: Duration,
    flaw: Flaw,
}

impl Textbook {
    pub fn new(url: &str, ttl: Duration, flaw: Flaw) -> Arc<Self> {
        Arc::new(Self {
            url: url.to_owned(),
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
        let name = format!("lock:{key}");
        let deadline = nanos() + wait.as_nanos() as u64;
        loop {
            let token = uuid::Uuid::new_v4().simple().to_string();
            let sent = nanos();
            let how = if self.flaw == Flaw::CountsFences {
                "count"
            } else {
                "clock"
            };
            let mut lease = Lease {
                textbook: Arc::clone(self),
                name: name.clone(),
                token,
                fence: 0,
                until: AtomicU64::new(0),
            };
            let keys = [name.as_str(), "fence"];
            match self
                .call(ACQUIRE, &keys, &[&lease.token, &self.ttl_ms(), how])
                .await
            {
                Some(0) => {}
                Some(fence) => {
                    lease.fence = fence;
                    lease.trust(sent);
                    let lease = Arc::new(lease);
                    let renewing = tokio::spawn(renew(Arc::clone(&lease)));
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
    async fn call(&self, script: &str, keys: &[&str], args: &[&str]) -> Option<u64> {
        let answer = tokio::time::timeout(TIMEOUT, async {
            let mut connection = self.connect().await?;
            let script = Script::new(script);
            let mut call = script.prepare_invoke();
            keys.iter().for_each(|key| {
                call.key(key);
            });
            args.iter().for_each(|arg| {
                call.arg(arg);
            });
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
    name: String,
    token: String,
    fence: u64,
    until: AtomicU64,
}

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

    async fn release(&self) -> Option<u64> {
        let how = if self.textbook.flaw == Flaw::ReleasesBlindly {
            "blindly"
        } else {
            ""
        };
        self.textbook
            .call(RELEASE, &[&self.name], &[&self.token, how])
            .await
    }
}

async fn renew(lease: Arc<Lease>) {
    let textbook = &lease.textbook;
    let how = if textbook.flaw == Flaw::RenewsBlindly {
        "blindly"
    } else {
        ""
    };
    let most = if lease.forgets_to_stop() { 9 } else { u32::MAX };
    for _ in 0..most {
        tokio::time::sleep(textbook.ttl / 3).await;
        let sent = nanos();
        let args = [lease.token.as_str(), &textbook.ttl_ms(), how];
        match textbook.call(RENEW, &[&lease.name], &args).await {
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
}

impl Drop for Held {
    fn drop(&mut self) {
        if !self.lease.forgets_to_stop() {
            self.renewing.abort();
        }
    }
}
