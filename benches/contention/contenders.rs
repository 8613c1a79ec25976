//! The locks that are compared, behind one interface.

use std::collections::HashMap;
use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::Duration;

use distributed_lock_core::traits::{
    DistributedLock, DistributedReaderWriterLock, LockHandle, LockProvider,
    ReaderWriterLockProvider,
};
use distributed_lock_redis::{
    RedisLockHandle, RedisLockProvider, RedisReadLockHandle, RedisWriteLockHandle,
};
use tokio::sync::{Mutex, OwnedMutexGuard, OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};
use tower_distributed_lock::{LockGuard, LockManager};

use crate::by_hand::{self, ByHand};
use crate::random;
use crate::support::orders::text;
use crate::support::recipe::Recipe;

/// Longer than any workload takes.
const PATIENCE: Duration = Duration::from_secs(3600);
const TTL: Duration = Duration::from_secs(10);

/// How many hand-offs in a process go before another process that waits, and for how long. These
/// are the defaults of this crate.
pub const BURST: u32 = 16;
pub const BURST_TIME: Duration = Duration::from_millis(50);

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
    /// A counter of readers and a writer's key, tried again like the recipe: see [`ByHand`].
    ReadersByHand,
    /// Its lock for readers and writers, tried again like the recipe.
    DistributedReaders,
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

    pub const OF_READERS: [Self; 5] = [
        Self::Shared,
        Self::Ours,
        Self::RwLock,
        Self::ReadersByHand,
        Self::DistributedReaders,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Ours => "this crate",
            Self::Shared => "this crate, shared",
            Self::Recipe => "SET NX PX by hand",
            Self::Rslock => "rslock",
            Self::DistributedLockRedis => "distributed-lock-redis",
            Self::ReadersByHand => "readers by hand",
            Self::DistributedReaders => "distributed-lock-redis",
            Self::Mutex => "tokio Mutex",
            Self::Mutexes => "map of tokio Mutexes",
            Self::RwLock => "tokio RwLock",
        }
    }

    /// Finds the kind of this [word](Self::word).
    pub fn parse(word: &str) -> Option<Self> {
        let kinds = Self::ON_REDIS.into_iter().chain(Self::OF_READERS);
        kinds.into_iter().find(|kind| kind.word() == word)
    }

    pub fn word(self) -> String {
        format!("{self:?}")
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
    ReadersByHand(ByHand),
    DistributedReaders(Arc<RedisLockProvider>),
    Mutex(Arc<Mutex<()>>),
    Mutexes(Arc<StdMutex<HashMap<String, Arc<Mutex<()>>>>>),
}

pub enum Held {
    Ours(LockGuard),
    Recipe(Recipe, String, String),
    Rslock(rslock::LockGuard),
    DistributedLockRedis(RedisLockHandle),
    ByHand(ByHand, by_hand::Held),
    DistributedRead(RedisReadLockHandle),
    DistributedWrite(RedisWriteLockHandle),
    Local(OwnedMutexGuard<()>),
    Reading(OwnedRwLockReadGuard<()>),
    Writing(OwnedRwLockWriteGuard<()>),
}

impl Contender {
    pub async fn connect(kind: Kind, url: &str) -> Result<Self, String> {
        Ok(match kind {
            Kind::Ours => Self::Ours(manager(url).await?),
            Kind::Shared => Self::Shared(manager(url).await?),
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
            Kind::ReadersByHand => Self::ReadersByHand(ByHand::connect(url).await.map_err(text)?),
            Kind::DistributedReaders => {
                let provider = RedisLockProvider::new(url).await.map_err(text)?;
                Self::DistributedReaders(Arc::new(provider))
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
            others => Box::pin(others.acquire_to_read_by_polling(key)).await,
        }
    }

    async fn acquire_to_read_by_polling(&self, key: &str) -> Result<Held, String> {
        match self {
            Self::ReadersByHand(by_hand) => loop {
                if let Some(held) = by_hand.try_read(key).await.map_err(text)? {
                    return Ok(Held::ByHand(by_hand.clone(), held));
                }
                pause().await;
            },
            Self::DistributedReaders(provider) => {
                let lock = provider.create_reader_writer_lock(key);
                loop {
                    if let Some(handle) = lock.try_acquire_read().await.map_err(text)? {
                        return Ok(Held::DistributedRead(handle));
                    }
                    pause().await;
                }
            }
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
            Self::ReadersByHand(by_hand) => loop {
                if let Some(held) = by_hand.try_write(key).await.map_err(text)? {
                    return Ok(Held::ByHand(by_hand.clone(), held));
                }
                pause().await;
            },
            Self::DistributedReaders(provider) => {
                let lock = provider.create_reader_writer_lock(key);
                loop {
                    if let Some(handle) = lock.try_acquire_write().await.map_err(text)? {
                        return Ok(Held::DistributedWrite(handle));
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
            Self::ByHand(by_hand, held) => match by_hand.release(held).await.map_err(text)? {
                true => Ok(()),
                false => Err("the lock had expired".to_owned()),
            },
            Self::DistributedRead(handle) => handle.release().await.map_err(text),
            Self::DistributedWrite(handle) => handle.release().await.map_err(text),
            Self::Ours(_) | Self::Local(_) | Self::Reading(_) | Self::Writing(_) => {
                unreachable!("these do not wait")
            }
        }
    }
}

async fn manager(url: &str) -> Result<LockManager, String> {
    let builder = LockManager::builder().burst(BURST, BURST_TIME);
    builder.connect(url).await.map_err(text)
}

/// Waits for as long as the recipes do between two tries.
async fn pause() {
    let time = Duration::from_micros(1000 + random::shared() % 4000);
    tokio::time::sleep(time).await;
}
