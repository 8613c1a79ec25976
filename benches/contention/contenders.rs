//! The locks that are compared, behind one interface.

use std::collections::HashMap;
use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::Duration;

use distributed_lock_core::traits::{DistributedLock, LockHandle, LockProvider};
use distributed_lock_redis::{RedisLockHandle, RedisLockProvider};
use tokio::sync::{Mutex, OwnedMutexGuard, OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};
use tower_distributed_lock::{LockGuard, LockManager};

use crate::random;
use crate::support::orders::text;
use crate::support::recipe::Recipe;

/// Longer than any workload takes.
const PATIENCE: Duration = Duration::from_secs(3600);
const TTL: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Ours,
    /// Readers share the lock.
    Shared,
    /// `SET NX PX` and a compare-and-delete, tried again after 1 to 5 ms.
    Recipe,
    /// With a delay of up to 5 ms between tries, in place of its default of up to 200 ms.
    Rslock,
    /// Its `acquire` does not wait for a lock that is held: it is tried again like the recipe.
    DistributedLockRedis,
    /// One `tokio::sync::Mutex`, whatever the key: the limit of what one process can do.
    Mutex,
    /// A map of local Mutexes.
    Mutexes,
    /// One `tokio::sync::RwLock` in each process, which keeps no other process out.
    RwLock,
}

impl Kind {
    pub const ON_REDIS: [Self; 4] = [
        Self::Ours,
        Self::Recipe,
        Self::Rslock,
        Self::DistributedLockRedis,
    ];

    pub const OF_READERS: [Self; 3] = [Self::Shared, Self::Ours, Self::RwLock];

    pub fn name(self) -> &'static str {
        match self {
            Self::Ours => "this crate",
            Self::Shared => "this crate, shared",
            Self::Recipe => "SET NX PX by hand",
            Self::Rslock => "rslock",
            Self::DistributedLockRedis => "distributed-lock-redis",
            Self::Mutex => "tokio Mutex",
            Self::Mutexes => "map of tokio Mutexes",
            Self::RwLock => "tokio RwLock",
        }
    }

    /// Finds the kind of this name, which has `_` for blanks.
    pub fn parse(word: &str) -> Option<Self> {
        let kinds = Self::ON_REDIS.into_iter().chain(Self::OF_READERS);
        kinds.into_iter().find(|kind| kind.word() == word)
    }

    pub fn word(self) -> String {
        self.name().replace(' ', "_")
    }
}

#[derive(Clone)]
pub enum Contender {
    Ours(LockManager),
    Shared(LockManager),
    RwLock(Arc<RwLock<()>>),
    Recipe(Recipe),
    Rslock(rslock::LockManager),
    DistributedLockRedis(Arc<RedisLockProvider>),
    Mutex(Arc<Mutex<()>>),
    Mutexes(Arc<StdMutex<HashMap<String, Arc<Mutex<()>>>>>),
}

pub enum Held {
    Ours(LockGuard),
    Recipe(Recipe, String, String),
    Rslock(rslock::LockGuard),
    DistributedLockRedis(RedisLockHandle),
    Local(OwnedMutexGuard<()>),
    Reading(OwnedRwLockReadGuard<()>),
    Writing(OwnedRwLockWriteGuard<()>),
}

impl Contender {
    pub async fn connect(kind: Kind, url: &str) -> Result<Self, String> {
        Ok(match kind {
            Kind::Ours => Self::Ours(LockManager::connect(url).await.map_err(text)?),
            Kind::Shared => Self::Shared(LockManager::connect(url).await.map_err(text)?),
            Kind::RwLock => Self::RwLock(Arc::default()),
            Kind::Recipe => Self::Recipe(Recipe::connect(url).await.map_err(text)?),
            Kind::Rslock => {
                let mut locks = rslock::LockManager::new(vec![url]);
                locks.set_retry(u32::MAX, Duration::from_millis(5));
                Self::Rslock(locks)
            }
            Kind::DistributedLockRedis => {
                let provider = RedisLockProvider::new(url).await.map_err(text)?;
                Self::DistributedLockRedis(Arc::new(provider))
            }
            Kind::Mutex => Self::Mutex(Arc::default()),
            Kind::Mutexes => Self::Mutexes(Arc::default()),
        })
    }

    pub async fn acquire(&self, key: &str) -> Result<Held, String> {
        match self {
            Self::Ours(locks) | Self::Shared(locks) => {
                let guard = locks.acquire(key, PATIENCE).await.map_err(text)?;
                Ok(Held::Ours(guard))
            }
            Self::RwLock(lock) => Ok(Held::Writing(Arc::clone(lock).write_owned().await)),
            Self::Mutex(mutex) => Ok(Held::Local(Arc::clone(mutex).lock_owned().await)),
            Self::Mutexes(mutexes) => {
                let mutex = {
                    let mut mutexes = mutexes.lock().unwrap_or_else(PoisonError::into_inner);
                    match mutexes.get(key) {
                        Some(mutex) => Arc::clone(mutex),
                        None => Arc::clone(mutexes.entry(key.to_owned()).or_default()),
                    }
                };
                Ok(Held::Local(mutex.lock_owned().await))
            }
            // In a box, so that the futures of the others are no larger for it.
            others => Box::pin(others.acquire_by_polling(key)).await,
        }
    }

    /// Takes the lock to read, if the contender makes a difference.
    pub async fn acquire_to_read(&self, key: &str) -> Result<Held, String> {
        match self {
            Self::Shared(locks) => {
                let guard = locks.acquire_shared(key, PATIENCE).await.map_err(text)?;
                Ok(Held::Ours(guard))
            }
            Self::RwLock(lock) => Ok(Held::Reading(Arc::clone(lock).read_owned().await)),
            _ => self.acquire(key).await,
        }
    }

    async fn acquire_by_polling(&self, key: &str) -> Result<Held, String> {
        match self {
            Self::Recipe(recipe) => {
                let (mut recipe, name) = (recipe.clone(), format!("hand:{key}"));
                loop {
                    if let Some(token) = recipe.try_acquire(&name).await.map_err(text)? {
                        return Ok(Held::Recipe(recipe, name, token));
                    }
                    pause().await;
                }
            }
            Self::Rslock(locks) => {
                let guard = locks.acquire(key, TTL).await.map_err(text)?;
                Ok(Held::Rslock(guard))
            }
            Self::DistributedLockRedis(provider) => {
                let lock = provider.create_lock(key);
                loop {
                    if let Some(handle) = lock.try_acquire().await.map_err(text)? {
                        return Ok(Held::DistributedLockRedis(handle));
                    }
                    pause().await;
                }
            }
            _ => unreachable!("these do not poll"),
        }
    }

    pub async fn close(self) {
        if let Self::Ours(locks) | Self::Shared(locks) = self {
            locks.close().await;
        }
    }
}

impl Held {
    /// Returns the fencing token, or zero for a lock that has none.
    pub fn fencing_token(&self) -> u64 {
        match self {
            Self::Ours(guard) => guard.fencing_token(),
            _ => 0,
        }
    }

    /// Releases the lock, without waiting for it where the contender allows that.
    pub async fn release(self) -> Result<(), String> {
        match self {
            Self::Ours(guard) => drop(guard),
            Self::Local(guard) => drop(guard),
            Self::Reading(guard) => drop(guard),
            Self::Writing(guard) => drop(guard),
            others => return Box::pin(others.release_and_wait()).await,
        }
        Ok(())
    }

    async fn release_and_wait(self) -> Result<(), String> {
        match self {
            Self::Recipe(mut recipe, name, token) => {
                match recipe.release(&name, &token).await.map_err(text)? {
                    true => Ok(()),
                    false => Err("the lock had expired".to_owned()),
                }
            }
            Self::Rslock(guard) => {
                guard.release().await;
                Ok(())
            }
            Self::DistributedLockRedis(handle) => handle.release().await.map_err(text),
            Self::Ours(_) | Self::Local(_) | Self::Reading(_) | Self::Writing(_) => {
                unreachable!("these do not wait")
            }
        }
    }
}

/// Waits for as long as the recipes do between two tries.
async fn pause() {
    let time = Duration::from_micros(1000 + random::shared() % 4000);
    tokio::time::sleep(time).await;
}
