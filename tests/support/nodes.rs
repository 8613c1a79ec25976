//! One suite for every store: the same tests over memory, over Redis, and over a Redis Cluster.

use tower_distributed_lock::{IdempotencyLayer, LockManager, LockManagerBuilder};

use crate::support::{
    Cluster, RedisServer, eventually, eventually_no_trace, is_fence, minute, names, run,
};

/// Runs each of these tests over memory, over Redis, and over a cluster. They take the fixture that
/// is named first: a [`Store`] or [`Nodes`].
macro_rules! on_every_store {
    ($fixture:ident: $($name:ident)*) => {
        mod over_memory {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(super::$fixture::in_memory().await).await;
            })*
        }
        mod over_redis {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(super::$fixture::over_redis().await).await;
            })*
        }
        mod over_cluster {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(super::$fixture::over_cluster().await).await;
            })*
        }
    };
}

/// A store, which managers with any settings can have.
pub struct Store {
    /// `None`: managers keep their locks in memory, each its own.
    pub server: Option<RedisServer>,
    is_cluster: bool,
}

impl Store {
    pub async fn in_memory() -> Self {
        Self {
            server: None,
            is_cluster: false,
        }
    }

    pub async fn over_redis() -> Self {
        let server = RedisServer::start().await;
        Self {
            server: Some(server),
            is_cluster: false,
        }
    }

    /// A cluster of one server, which has all slots: commands for keys of several slots are errors
    /// there, as in any cluster.
    pub async fn over_cluster() -> Self {
        let mut cluster = Cluster::start(1, 0).await;
        Self {
            server: cluster.servers.pop(),
            is_cluster: true,
        }
    }

    pub async fn manager(&self, builder: LockManagerBuilder) -> LockManager {
        manager(self.server.as_ref(), self.is_cluster, builder).await
    }

    /// A manager with the default settings.
    pub async fn locks(&self) -> LockManager {
        self.manager(LockManager::builder()).await
    }
}

async fn manager(
    server: Option<&RedisServer>,
    is_cluster: bool,
    builder: LockManagerBuilder,
) -> LockManager {
    match server {
        Some(server) if is_cluster => {
            let builder = builder.quarantine(false); // its servers are new
            builder.connect_cluster([server.url()]).await.unwrap()
        }
        Some(server) => builder.connect(server.url()).await.unwrap(),
        None => builder.in_memory().unwrap(),
    }
}

/// Two nodes over one Redis; or, in memory, one node that is asked twice.
pub struct Nodes {
    pub server: Option<RedisServer>,
    is_cluster: bool,
    pub one: LockManager,
    pub two: LockManager,
}

impl Nodes {
    pub async fn in_memory() -> Self {
        let one = minute().in_memory().unwrap();
        let two = one.clone();
        Self {
            server: None,
            is_cluster: false,
            one,
            two,
        }
    }

    pub async fn over_redis() -> Self {
        Self::over(Store::over_redis().await).await
    }

    pub async fn over_cluster() -> Self {
        Self::over(Store::over_cluster().await).await
    }

    async fn over(store: Store) -> Self {
        Self {
            one: store.manager(minute()).await,
            two: store.manager(minute()).await,
            is_cluster: store.is_cluster,
            server: store.server,
        }
    }

    /// Another manager of the same store; in memory, with locks of its own.
    pub async fn manager(&self, builder: LockManagerBuilder) -> LockManager {
        manager(self.server.as_ref(), self.is_cluster, builder).await
    }

    /// A third node; in memory, the one that there is.
    pub async fn third(&self) -> LockManager {
        match self.server {
            Some(_) => self.manager(minute()).await,
            None => self.one.clone(),
        }
    }

    /// An idempotency layer for each node.
    pub fn layers(&self) -> [IdempotencyLayer; 2] {
        [&self.one, &self.two].map(|locks| IdempotencyLayer::new(locks.clone()))
    }

    /// The first node's.
    pub fn layer(&self) -> IdempotencyLayer {
        IdempotencyLayer::new(self.one.clone())
    }

    /// Waits until node two has its place in the queue of the only key that a request waits for.
    pub async fn both_wait(&self) {
        let Some(server) = &self.server else {
            return;
        };
        let redis = server.client().await;
        eventually("the other node waits", || async {
            match &names(&redis, "*:queue:*").await[..] {
                [queue] => run(&redis, &format!("LLEN {queue}")).await == redis::Value::Int(1),
                _ => false,
            }
        })
        .await;
    }

    /// Waits until nothing but records is left in Redis.
    pub async fn nothing_but_records_is_left(&self) {
        let Some(server) = &self.server else {
            return;
        };
        let redis = server.client().await;
        eventually("nothing but records is left", || async {
            for name in names(&redis, "*").await {
                let is_record = name.ends_with("}:record") && {
                    let value: Vec<u8> = redis::cmd("GET")
                        .arg(&name)
                        .query_async(&mut redis.clone())
                        .await
                        .unwrap();
                    value.starts_with(b"TDLR")
                };
                if !is_record && !is_fence(&name) {
                    return false;
                }
            }
            true
        })
        .await;
    }

    /// Waits until nothing is left of any lock. In memory, the lock `a` stands for all.
    pub async fn are_at_rest(&self) {
        match &self.server {
            Some(server) => eventually_no_trace(&server.client().await).await,
            None => {
                eventually("the lock is free", || async {
                    self.one.try_acquire("a").await.is_ok()
                })
                .await;
            }
        }
    }
}
