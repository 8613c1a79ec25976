//! The textbook recipe, by hand.

use std::sync::Arc;

use redis::RedisResult;
use redis::aio::MultiplexedConnection;

use crate::test_support::RedisServer;

/// `SET name token NX PX ttl` takes the lock, a compare-and-delete by `EVALSHA` releases it. Both
/// are awaited, on one multiplexed connection that all clones share.
#[derive(Clone)]
pub struct Recipe {
    redis: MultiplexedConnection,
    release: Arc<redis::Script>,
}

impl Recipe {
    pub async fn new(server: &RedisServer) -> Self {
        Self::connect(&server.url()).await.unwrap()
    }

    pub async fn connect(url: &str) -> RedisResult<Self> {
        let release = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0";
        Ok(Self {
            redis: connection(url).await?,
            release: Arc::new(redis::Script::new(release)),
        })
    }

    /// Takes the lock if it is free, and returns the token.
    pub async fn try_acquire(&mut self, name: &str) -> RedisResult<Option<String>> {
        let token = uuid::Uuid::new_v4().simple().to_string();
        let taken: bool = redis::cmd("SET")
            .arg(name)
            .arg(&token)
            .arg("NX")
            .arg("PX")
            .arg(10_000)
            .query_async(&mut self.redis)
            .await?;
        Ok(taken.then_some(token))
    }

    /// Returns whether there was something to release.
    pub async fn release(&mut self, name: &str, token: &str) -> RedisResult<bool> {
        let released: u32 = self
            .release
            .key(name)
            .arg(token)
            .invoke_async(&mut self.redis)
            .await?;
        Ok(released == 1)
    }
}

/// Opens a connection with the settings that the crate gives its own.
pub async fn connection(url: &str) -> RedisResult<MultiplexedConnection> {
    client(url)?.get_multiplexed_async_connection().await
}

pub fn client(url: &str) -> RedisResult<redis::Client> {
    use redis::IntoConnectionInfo;
    let tcp = redis::io::tcp::TcpSettings::default().set_nodelay(true);
    redis::Client::open(url.into_connection_info()?.set_tcp_settings(tcp))
}
