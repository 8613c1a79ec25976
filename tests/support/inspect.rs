//! What stands in Redis, read over a connection of the test's own.

use std::time::Duration;

use redis::aio::MultiplexedConnection;

use super::eventually;

/// Carries out a command whose words have spaces between them.
pub async fn run(redis: &MultiplexedConnection, command: &str) -> redis::Value {
    let mut words = command.split(' ');
    let mut cmd = redis::cmd(words.next().unwrap());
    for word in words {
        cmd.arg(word);
    }
    cmd.query_async(&mut redis.clone()).await.unwrap()
}

/// Like [`run`], for a reply that is a text.
pub async fn text(redis: &MultiplexedConnection, command: &str) -> String {
    redis::from_redis_value(run(redis, command).await).unwrap()
}

pub async fn value(redis: &MultiplexedConnection, key: &str) -> Option<String> {
    redis::cmd("GET")
        .arg(key)
        .query_async(&mut redis.clone())
        .await
        .unwrap()
}

/// The keys that match a pattern.
pub async fn names(redis: &MultiplexedConnection, pattern: &str) -> Vec<String> {
    redis::cmd("KEYS")
        .arg(pattern)
        .query_async(&mut redis.clone())
        .await
        .unwrap()
}

/// How long a key lives on. Fails the test if it has no expiry, or is not there.
pub async fn expires_in(redis: &MultiplexedConnection, key: &str) -> Duration {
    let left: i64 = redis::cmd("PTTL")
        .arg(key)
        .query_async(&mut redis.clone())
        .await
        .unwrap();
    assert!(left > 0, "it has no expiry, or is not there: {left}");
    Duration::from_millis(left as u64)
}

/// How many processes wait in Redis for a key.
pub async fn queue_length(redis: &MultiplexedConnection, key: &str) -> usize {
    redis::cmd("LLEN")
        .arg(format!("{{lock:{key}}}:queue"))
        .query_async(&mut redis.clone())
        .await
        .unwrap()
}

/// Waits until so many processes wait in Redis for a key.
pub async fn eventually_queued(redis: &MultiplexedConnection, key: &str, processes: usize) {
    let what = format!("{processes} processes wait in Redis for {key:?}");
    eventually(&what, || async {
        queue_length(redis, key).await == processes
    })
    .await;
}

/// Waits until nothing of ours is left in Redis but the fence: no lock and no queue.
pub async fn eventually_no_trace(redis: &MultiplexedConnection) {
    eventually("no lock and no queue is left in Redis", || async {
        let names = names(redis, "*").await;
        names.iter().all(|name| is_fence(name))
    })
    .await;
}

/// Whether that is the name of a counter of fences: the server's, or that of a cluster's slot.
pub fn is_fence(name: &str) -> bool {
    name == "{lock:}:fence" || name.starts_with('{') && name.ends_with("}:lock:fence")
}

/// The connections of the server's clients, one line each.
pub async fn clients(redis: &MultiplexedConnection) -> Vec<String> {
    let list = text(redis, "CLIENT LIST").await;
    list.lines().map(str::to_owned).collect()
}

/// A number from the section `stats` of INFO.
pub async fn statistic(redis: &MultiplexedConnection, name: &str) -> u64 {
    let stats = text(redis, "INFO stats").await;
    let line = stats.lines().find_map(|line| {
        let value = line.strip_prefix(name)?;
        value.strip_prefix(':')
    });
    line.unwrap().trim().parse().unwrap()
}

/// How many keys Redis watches for its clients.
pub async fn watched_keys(redis: &MultiplexedConnection) -> u64 {
    statistic(redis, "tracking_total_keys").await
}

/// How often the server has carried out a command.
pub async fn calls(redis: &MultiplexedConnection, command: &str) -> u64 {
    calls_in(&text(redis, "INFO commandstats").await, command)
}

/// How many values the server has set, except those of the counter of fences: an `EVAL` raises it,
/// as often as time goes by.
pub async fn sets(redis: &MultiplexedConnection) -> u64 {
    let stats = text(redis, "INFO commandstats").await;
    calls_in(&stats, "set") - calls_in(&stats, "eval")
}

/// How many scripts the server has run that it knew. Connections are made ready, and the counter of
/// fences is raised, by scripts that it does not keep: these do not count.
pub async fn script_calls(redis: &MultiplexedConnection) -> u64 {
    calls(redis, "evalsha").await
}

fn calls_in(stats: &str, command: &str) -> u64 {
    let calls = stats.lines().find_map(|line| {
        let calls = line.strip_prefix(&format!("cmdstat_{command}:calls="))?;
        calls.split(',').next()?.parse().ok()
    });
    calls.unwrap_or(0)
}
