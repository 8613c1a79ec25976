//! What the workers take locks with: this crate, or the textbook.

use std::sync::Arc;
use std::time::Duration;

use tower_distributed_lock::{Error, Lease, LockGuards, LockManager, LostReason};

use crate::textbook::{self, Textbook};

#[derive(Clone)]
pub enum Client {
    Crate(LockManager),
    Textbook(Arc<Textbook>),
}

/// The locks that are held together, in the order of their keys.
pub enum Held {
    Crate(LockGuards),
    Textbook(Vec<textbook::Held>),
}

impl Client {
    pub async fn acquire(&self, key: &str, wait: Option<Duration>) -> Result<Held, String> {
        match (self, wait) {
            (Self::Crate(locks), Some(wait)) => one(locks.acquire(key, wait).await),
            (Self::Crate(locks), None) => one(locks.try_acquire(key).await),
            (Self::Textbook(textbook), wait) => {
                let held = textbook.acquire(key, wait.unwrap_or_default()).await;
                textbooks(held.map(|held| vec![held]))
            }
        }
    }

    pub async fn share(&self, key: &str, wait: Option<Duration>) -> Result<Held, String> {
        match (self, wait) {
            (Self::Crate(locks), Some(wait)) => one(locks.acquire_shared(key, wait).await),
            (Self::Crate(locks), None) => one(locks.try_acquire_shared(key).await),
            (Self::Textbook(textbook), wait) => {
                let held = textbook.share(key, wait.unwrap_or_default()).await;
                textbooks(held.map(|held| vec![held]))
            }
        }
    }

    /// Takes all, or none. The keys are sorted.
    pub async fn acquire_all(&self, keys: &[&str], wait: Option<Duration>) -> Result<Held, String> {
        let keys = keys.iter().copied();
        match (self, wait) {
            (Self::Crate(locks), Some(wait)) => several(locks.acquire_all(keys, wait).await),
            (Self::Crate(locks), None) => several(locks.try_acquire_all(keys).await),
            (Self::Textbook(textbook), wait) => {
                textbooks(textbook.acquire_all(keys, wait.unwrap_or_default()).await)
            }
        }
    }

    pub async fn close(&self) {
        if let Self::Crate(locks) = self {
            locks.close().await;
        }
    }
}

fn one(result: Result<impl Into<LockGuards>, Error>) -> Result<Held, String> {
    several(result.map(Into::into))
}

fn several(result: Result<LockGuards, Error>) -> Result<Held, String> {
    let held = result.map(Held::Crate);
    held.map_err(|error| format!("{:?}", error.kind()))
}

fn textbooks(result: Result<Vec<textbook::Held>, &'static str>) -> Result<Held, String> {
    result.map(Held::Textbook).map_err(str::to_owned)
}

impl Held {
    /// Returns the fencing tokens.
    pub fn tokens(&self) -> Vec<u64> {
        match self {
            Self::Crate(guards) => guards.leases().iter().map(Lease::fencing_token).collect(),
            Self::Textbook(several) => several.iter().map(textbook::Held::token).collect(),
        }
    }

    /// Returns whether all are held.
    pub fn is_held(&self) -> bool {
        match self {
            Self::Crate(guards) => guards.is_held(),
            Self::Textbook(several) => several.iter().all(textbook::Held::is_held),
        }
    }

    /// For each lock, a future that resolves when it is lost, to a word why. Only this crate tells.
    pub fn lost(&self) -> Vec<impl Future<Output = Option<String>> + Send + use<>> {
        let leases: Vec<Option<Lease>> = match self {
            Self::Crate(guards) => guards.leases().iter().cloned().map(Some).collect(),
            Self::Textbook(several) => several.iter().map(|_| None).collect(),
        };
        let lost = |lease: Option<Lease>| async move {
            let reason = lease?.lost().await;
            (reason != LostReason::Released).then(|| format!("{reason:?}"))
        };
        leases.into_iter().map(lost).collect()
    }

    pub async fn release(self) -> String {
        match self {
            Self::Crate(guards) => match guards.release().await {
                Ok(()) => "Ok".to_owned(),
                Err(error) => format!("{:?}", error.kind()),
            },
            Self::Textbook(several) => {
                let mut worst = "Ok";
                for held in several {
                    match held.release().await {
                        "Ok" => {}
                        other => worst = other,
                    }
                }
                worst.to_owned()
            }
        }
    }
}
