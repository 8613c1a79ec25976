//! The cheapest recipe that is written by hand.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use redis::RedisResult;
use redis::aio::{ConnectionLike, MultiplexedConnection};

use crate::test_support::RedisServer;

const RELEASE: &str =
    "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0";

/// `SET name token NX PX ttl` takes the lock, a compare-and-delete by `EVALSHA` releases it, on one
/// multiplexed connection that all clones share, or on one to each server of a cluster.
#[derive(Clone)]
pub struct Recipe<C = MultiplexedConnection> {
    redis: C,
    shared: Arc<Shared>,
}

struct Shared {
    /// What tells the script to Redis.
    hash: String,
    tokens: Tokens,
}

/// Numbers behind a prefix that no other process has.
pub struct Tokens {
    prefix: u64,
    next: AtomicU64,
}

impl Recipe {
    pub async fn new(server: &RedisServer) -> Self {
        Self::connect(&server.url()).await.unwrap()
    }

    pub async fn connect(url: &str) -> RedisResult<Self> {
        Self::on(connection(url).await?).await
    }
}

impl<C: ConnectionLike + Clone + Send + 'static> Recipe<C> {
    pub async fn on(mut redis: C) -> RedisResult<Self> {
        let mut load = redis::cmd("SCRIPT");
        let hash = load
            .arg("LOAD")
            .arg(RELEASE)
            .query_async(&mut redis)
            .await?;
        let tokens = Tokens::new();
        Ok(Self {
            redis,
            shared: Arc::new(Shared { hash, tokens }),
        })
    }

    /// Takes the lock if it is free, and returns the token.
    pub async fn try_acquire(&mut self, name: &str) -> RedisResult<Option<String>> {
        let token = self.shared.tokens.next();
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
        let released: u32 = redis::cmd("EVALSHA")
            .arg(&self.shared.hash)
            .arg(1)
            .arg(name)
            .arg(token)
            .query_async(&mut self.redis)
            .await?;
        Ok(released == 1)
    }

    /// Releases the lock without waiting for it.
    pub fn release_in_background(mut self, name: String, token: String) {
        tokio::spawn(async move {
            assert!(self.release(&name, &token).await.unwrap());
        });
    }
}

impl Tokens {
    pub fn new() -> Self {
        Self {
            prefix: uuid::Uuid::new_v4().as_u64_pair().0,
            next: AtomicU64::new(0),
        }
    }

    pub fn next(&self) -> String {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        format!("{:x}:{number}", self.prefix)
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
