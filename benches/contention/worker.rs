//! The worker's side of a process of its own.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use redis::RedisResult;
use redis::aio::MultiplexedConnection;

use crate::contenders::{Contender, Kind};
use crate::load::{self, Keys, Load, Work};
use crate::memory;
use crate::support::clock;
use crate::support::figures::median;
use crate::support::orders::{Obey, obey_all, text};
use crate::support::recipe::{client, connection};

pub fn run(url: &str) {
    obey_all(Worker {
        url: url.to_owned(),
        connected: None,
    });
}

struct Worker {
    url: String,
    connected: Option<(Contender, MultiplexedConnection)>,
}

impl Obey for Worker {
    async fn obey(&mut self, words: &[&str]) -> Result<String, String> {
        match *words {
            ["connect", kind] => {
                let kind = Kind::parse(kind).ok_or("no such contender")?;
                let contender = Contender::connect(kind, &self.url).await?;
                // Some contenders connect, or load their scripts, only at their first use.
                let key = format!("first:{}", std::process::id());
                contender.acquire(&key).await?.release().await?;
                let redis = connection(&self.url).await.map_err(text)?;
                self.connected = Some((contender, redis));
                Ok("ready".to_owned())
            }
            ["ping", count] => ping(&self.url, count.parse().map_err(text)?).await,
            ["hop", inbox, other, count] => {
                let count = count.parse().map_err(text)?;
                let times = hop(&self.url, inbox, other, count).await;
                Ok(median(&mut times.map_err(text)?).to_string())
            }
            ["alternate", key, until] => {
                let until = clock::instant(until.parse().map_err(text)?);
                let (contender, _) = self.connected()?;
                alternate(contender, key, until).await
            }
            ["count", key, tasks, hold_us, from, until] => {
                let (contender, redis) = self.connected()?;
                let hold = Duration::from_micros(hold_us.parse().map_err(text)?);
                let load = Load {
                    tasks: tasks.parse().map_err(text)?,
                    keys: Keys::One(key.to_owned()),
                    work: Work::Count(redis.clone(), format!("count:{key}"), hold),
                    reads: 0,
                    seed: 0,
                    from: clock::instant(from.parse().map_err(text)?),
                    until: clock::instant(until.parse().map_err(text)?),
                };
                Ok(load::run(contender, &load).await?.to_string())
            }
            ["read", key, tasks, reads, from, until] => {
                let (contender, _) = self.connected()?;
                let load = Load {
                    tasks: tasks.parse().map_err(text)?,
                    keys: Keys::One(key.to_owned()),
                    work: Work::Sleep(Duration::from_millis(1)),
                    reads: reads.parse().map_err(text)?,
                    // Otherwise, all processes would write at the same moments.
                    seed: u64::from(std::process::id()) << 8,
                    from: clock::instant(from.parse().map_err(text)?),
                    until: clock::instant(until.parse().map_err(text)?),
                };
                Ok(load::run(contender, &load).await?.to_string())
            }
            ["wait", tasks] => memory::wait(&self.url, tasks.parse().map_err(text)?).await,
            ["hold", keys] => memory::hold(&self.url, keys.parse().map_err(text)?).await,
            _ => Err(format!("unknown order: {words:?}")),
        }
    }
}

impl Worker {
    fn connected(&self) -> Result<&(Contender, MultiplexedConnection), String> {
        let connected = self.connected.as_ref();
        connected.ok_or_else(|| "not connected".to_owned())
    }
}

/// Returns the median round trip, in ns.
async fn ping(url: &str, count: usize) -> Result<String, String> {
    let mut redis = connection(url).await.map_err(text)?;
    let mut times = Vec::new();
    for _ in 0..count {
        let started = Instant::now();
        let ping = redis::cmd("PING");
        ping.exec_async(&mut redis).await.map_err(text)?;
        times.push(started.elapsed().as_nanos() as f64);
    }
    Ok(median(&mut times).to_string())
}

/// Sends a message back and forth between two processes. Returns the times that one way takes, in
/// ns.
async fn hop(url: &str, inbox: &str, other: &str, count: usize) -> RedisResult<Vec<f64>> {
    let mut redis = connection(url).await?;
    let mut pubsub = client(url)?.get_async_pubsub().await?;
    pubsub.subscribe(inbox).await?;
    let mut messages = pubsub.on_message();
    let publish = redis::cmd("PUBLISH").arg(other).arg("").to_owned();
    let mut times = Vec::new();
    let mut started = Instant::now();
    // The first process to come has no one to speak to yet: the second begins.
    publish.exec_async(&mut redis).await?;
    while times.len() < count && messages.next().await.is_some() {
        times.push(started.elapsed().as_nanos() as f64 / 2.0);
        started = Instant::now();
        publish.exec_async(&mut redis).await?;
    }
    Ok(times)
}

/// Takes the lock again as soon as it has released it. Returns for each section when it began, when
/// it ended, and its fencing token.
async fn alternate(contender: &Contender, key: &str, until: Instant) -> Result<String, String> {
    let mut sections = Vec::new();
    while Instant::now() < until {
        let acquire = contender.acquire(key);
        let held =
            match tokio::time::timeout_at((until + Duration::from_secs(1)).into(), acquire).await {
                Ok(held) => held?,
                Err(_) => break,
            };
        let acquired = clock::nanos();
        let token = held.fencing_token();
        let released = clock::nanos();
        held.release().await?;
        sections.push(format!("{acquired},{released},{token}"));
    }
    Ok(sections.join(" "))
}
