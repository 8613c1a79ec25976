//! What the workers take locks with: this crate, or the textbook.

use std::sync::Arc;
use std::time::Duration;

use tower_distributed_lock::{LockGuard, LockManager, LostReason};

use crate::textbook::{self, Textbook};

#[derive(Clone)]
pub enum Client {
    Crate(LockManager),
    Textbook(Arc<Textbook>),
}

pub enum Held {
    Crate(LockGuard),
    Textbook(textbook::Held),
}

impl Client {
    pub async fn acquire(&self, key: &str, wait: Option<Duration>) -> Result<Held, String> {
        match (self, wait) {
            (Self::Crate(locks), Some(wait)) => locks.acquire(key, wait).await.map(Held::Crate),
            (Self::Crate(locks), None) => locks.try_acquire(key).await.map(Held::Crate),
            (Self::Textbook(textbook), wait) => {
                let held = textbook.acquire(key, wait.unwrap_or_default()).await;
                return held.map(Held::Textbook).map_err(str::to_owned);
            }
        }
        .map_err(|error| format!("{:?}", error.kind()))
    }

    pub async fn close(&self) {
        if let Self::Crate(locks) = self {
            locks.close().await;
        }
    }
}

impl Held {
    pub fn token(&self) -> u64 {
        match self {
            Self::Crate(guard) => guard.fencing_token(),
            Self::Textbook(held) => held.token(),
        }
    }

    pub fn is_held(&self) -> bool {
        match self {
            Self::Crate(guard) => guard.lease().is_held(),
            Self::Textbook(held) => held.is_held(),
        }
    }

    /// Resolves when the lock is lost, to a word why. Only this crate tells.
    pub fn lost(&self) -> impl Future<Output = Option<String>> + Send + use<> {
        let lease = match self {
            Self::Crate(guard) => Some(guard.lease().clone()),
            Self::Textbook(_) => None,
        };
        async move {
            let reason = lease?.lost().await;
            (reason != LostReason::Released).then(|| format!("{reason:?}"))
        }
    }

    pub async fn release(self) -> String {
        match self {
            Self::Crate(guard) => match guard.release().await {
                Ok(()) => "Ok".to_owned(),
                Err(error) => format!("{:?}", error.kind()),
            },
            Self::Textbook(held) => held.release().await.to_owned(),
        }
    }
}
