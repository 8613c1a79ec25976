//! The storage that the lock protects: it remembers the highest fencing token of each key, and
//! refuses a lower one. It is in a redis-server of its own, that no fault touches.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Script};

const WRITE: &str = "
    local seen = tonumber(redis.call('HGET', KEYS[1], 'fence') or 0)
    if tonumber(ARGV[1]) < seen then return 0 end
    redis.call('HSET', KEYS[1], 'fence', ARGV[1])
    redis.call('RPUSH', KEYS[1] .. ':log', ARGV[1])
    return 1";

/// Those that share a lock have no order among themselves: they leave nothing behind.
const READ: &str = "
    local seen = tonumber(redis.call('HGET', KEYS[1], 'fence') or 0)
    return tonumber(ARGV[1]) < seen and 0 or 1";

#[derive(Clone)]
pub struct Store(MultiplexedConnection);

impl Store {
    pub async fn connect(url: &str) -> Self {
        // A process that was stopped would find that its replies are late.
        let patient = AsyncConnectionConfig::new()
            .set_response_timeout(None)
            .set_connection_timeout(Some(Duration::from_secs(20)));
        let client = Client::open(url).unwrap();
        let connection = client.get_multiplexed_async_connection_with_config(&patient);
        Self(connection.await.unwrap())
    }

    /// Whether it was accepted.
    pub async fn write(&mut self, key: &str, token: u64) -> bool {
        self.run(WRITE, key, token).await
    }

    /// Whether no later holder has written.
    pub async fn read(&mut self, key: &str, token: u64) -> bool {
        self.run(READ, key, token).await
    }

    async fn run(&mut self, script: &str, key: &str, token: u64) -> bool {
        let script = Script::new(script);
        let mut call = script.key(key);
        let accepted: u32 = call.arg(token).invoke_async(&mut self.0).await.unwrap();
        accepted == 1
    }

    /// The tokens of all writes that it accepted, in order.
    pub async fn accepted(&mut self) -> Vec<(String, Vec<u64>)> {
        let logs: Vec<String> = redis::cmd("KEYS")
            .arg("*:log")
            .query_async(&mut self.0)
            .await
            .unwrap();
        let mut accepted = Vec::new();
        for log in logs {
            let mut range = redis::cmd("LRANGE");
            let tokens = range
                .arg(&log)
                .arg(0)
                .arg(-1)
                .query_async(&mut self.0)
                .await;
            accepted.push((log, tokens.unwrap()));
        }
        accepted
    }
}
