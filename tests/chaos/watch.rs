//! Looks at Redis from outside, all along: which locks it has, and how many commands it carries
//! out.

use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Pipeline, RedisResult};

use crate::clock::{MS, nanos};
use crate::faults::Scene;
use crate::history::What;
use crate::requests::KEYS;
use crate::support::connect_patiently;
use crate::worker::named;

const PAUSE: Duration = Duration::from_millis(40);
/// Commands are counted at every so many looks.
const COUNTS: u64 = 12;

/// Redis, or this process, did not get to run for longer than that.
const SLOW: u64 = 20 * MS;

/// Goes on until it is aborted.
pub async fn watch(scene: Arc<Scene>, databases: u32) {
    loop {
        let url = scene.servers[0].lock().await.url();
        let mut watch = Watch {
            scene: &scene,
            own: 0,
        };
        // Redis closes this connection too when it is told to close all.
        let _ = watch.look(&url, databases).await;
        tokio::time::sleep(PAUSE).await;
    }
}

struct Watch<'a> {
    scene: &'a Scene,
    /// Commands of its own since it counted.
    own: u64,
}

impl Watch<'_> {
    async fn look(&mut self, url: &str, databases: u32) -> RedisResult<()> {
        let mut redis = connect_patiently(url).await?;
        let mut last = self.count(&mut redis).await?;
        loop {
            for _ in 0..COUNTS {
                tokio::time::sleep(PAUSE).await;
                for database in 0..databases {
                    self.locks(&mut redis, database).await?;
                }
            }
            let (before, commands) = last;
            last = self.count(&mut redis).await?;
            let (at, until) = last;
            let log = &self.scene.log;
            let count = until - commands;
            log.write(at, What::Commands, 0, count, before, "");
        }
    }

    async fn locks(&mut self, redis: &mut MultiplexedConnection, database: u32) -> RedisResult<()> {
        let mut look = Pipeline::new();
        look.cmd("SELECT").arg(database).ignore();
        look.cmd("TIME");
        for key in KEYS {
            look.cmd("GET").arg(format!("lock:{key}"));
            look.cmd("PTTL").arg(format!("lock:{key}"));
            let readers = format!("{{lock:{key}}}:readers");
            look.cmd("ZRANGE")
                .arg(readers)
                .arg(&["0", "-1", "WITHSCORES"]);
        }
        let before = nanos();
        let mut answers: Vec<redis::Value> = look.query_async(redis).await?;
        self.own += look.len() as u64;
        let log = &self.scene.log;
        if nanos() - before > SLOW {
            log.since(before, What::Stall, 0, 0, "");
        }
        let (seconds, micros): (u64, u64) = redis::from_redis_value(answers.remove(0))?;
        let now = seconds * 1000 + micros / 1000;
        let seen = |key: &str, left: u64, value: &str| {
            let text = format!("{} {value}", named(database, key));
            log.since(before, What::Seen, 0, left * MS, &text);
        };
        for (key, answers) in KEYS.iter().zip(answers.chunks(3)) {
            let value: Option<String> = redis::from_redis_value(answers[0].clone())?;
            let left: i64 = redis::from_redis_value(answers[1].clone())?;
            let readers: Vec<(String, f64)> = redis::from_redis_value(answers[2].clone())?;
            if let (Some(value), Ok(left)) = (value, u64::try_from(left))
                && !value.starts_with("shared")
            {
                seen(key, left, &value);
            }
            for (reader, ends) in readers {
                if let Some(left @ 1..) = (ends as u64).checked_sub(now) {
                    seen(key, left, &format!("{reader} shared"));
                }
            }
        }
        Ok(())
    }

    /// How many commands were carried out since the server began, but for those of this look, and
    /// when.
    async fn count(&mut self, redis: &mut MultiplexedConnection) -> RedisResult<(u64, u64)> {
        let mut info = redis::cmd("INFO");
        let info: String = info.arg("commandstats").query_async(redis).await?;
        let calls = info.lines().filter_map(|line| {
            let (_, calls) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
            calls.split(',').next()?.parse::<u64>().ok()
        });
        let all: u64 = calls.sum();
        let others = all.saturating_sub(self.own);
        self.own += 1;
        Ok((nanos(), others))
    }
}
