//! One suite for every store: the same tests over memory, over Redis, and over a Redis Cluster.

use tower_distributed_lock::{IdempotencyLayer, LockManager, LockManagerBuilder};

use crate::support::{RedisServer, eventually, eventually_no_trace, is_fence, minute, names, run};
use crate::way::Way;

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
    way: Way,
}

impl Store {
    pub async fn in_memory() -> Self {
        Self {
            server: None,
            way: Way::Tcp,
        }
    }

    /// See [`Way::chosen`].
    pub async fn over_redis() -> Self {
        Self::over(Way::chosen().await)
    }

    pub async fn over_cluster() -> Self {
        Self::over(Way::cluster().await)
    }

    fn over((server, way): (RedisServer, Way)) -> Self {
        Self {
            server: Some(server),
            way,
        }
    }

    pub async fn manager(&self, builder: LockManagerBuilder) -> LockManager {
        match &self.server {
            Some(server) => self.way.connect(server, builder).await,
            None => builder.in_memory().unwrap(),
        }
    }

    /// Returns whether its managers come by the way that was chosen.
    pub async fn is_reached_as_chosen(&self) -> bool {
        match &self.server {
            Some(server) => self.way.is_taken(server).await,
            None => true,
        }
    }

    /// A manager with the default settings.
    pub async fn locks(&self) -> LockManager {
        self.manager(LockManager::builder()).await
    }
}

/// Two nodes over one Redis; or, in memory, one node that is asked twice.
pub struct Nodes {
    store: Store,
    pub one: LockManager,
    pub two: LockManager,
}

impl Nodes {
    pub async fn in_memory() -> Self {
        let one = minute().in_memory().unwrap();
        let two = one.clone();
        Self {
            store: Store::in_memory().await,
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
            store,
        }
    }

    /// `None`: in memory.
    pub fn server(&self) -> Option<&RedisServer> {
        self.store.server.as_ref()
    }

    /// Another manager of the same store; in memory, with locks of its own.
    pub async fn manager(&self, builder: LockManagerBuilder) -> LockManager {
        self.store.manager(builder).await
    }

    /// A third node; in memory, the one that there is.
    pub async fn third(&self) -> LockManager {
        match self.store.server {
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
        let Some(server) = self.server() else {
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
        let Some(server) = self.server() else {
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
        match self.server() {
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
