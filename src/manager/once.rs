//! [`LockManager::once`]: work that is done once on all nodes, and remembered.

use std::time::Duration;

use bytes::Bytes;

use super::with_lock::run_under;
use super::{Claimed, LockManager};
use crate::error::{Error, ErrorKind};
use crate::key::{IntoLockKey, Kind, LockKey};
use crate::lease::Lease;
use crate::observe;
use crate::store::Record;

/// What is remembered of work that is done. It is neither a token nor a response.
const DONE: Bytes = Bytes::from_static(b"done");
const SECOND: Duration = Duration::from_secs(1);
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// What became of work that is to be done once: see [`LockManager::once`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[must_use = "the work may have failed, or run on another node"]
pub enum Once<T, E> {
    /// It ran here, and is remembered.
    Ran(T),
    /// It ran here and failed. It is not remembered: the next call runs it again.
    Failed(E),
    /// It was done before, here or on another node.
    AlreadyDone,
    /// It is running at this moment, in another task or on another node.
    ///
    /// It is not done yet. If that node dies, no other runs it before [`once`](LockManager::once)
    /// is called again.
    Running,
}

impl LockManager {
    /// Does work once on all nodes, and remembers for the time of `retention` that it is done: for
    /// a job that every node starts each night. The value stays here; the other nodes learn that
    /// the work is done.
    ///
    /// While it runs, the work holds a lock of its own, which has nothing to do with the lock of
    /// the same key. If that is lost, the work is stopped where it awaits. So it is when it has
    /// taken
    /// [`max_hold`](crate::LockManagerBuilder::max_hold), by default five minutes: give longer jobs
    /// a manager with a longer one.
    ///
    /// If the returned future is dropped, the work is stopped, and may run again.
    ///
    /// Work that must have its effect exactly once needs more than this: see
    /// [the guide](crate::_guide::exactly_once).
    ///
    /// # Errors
    ///
    /// - [`ErrorKind::Lost`]: the lock was lost while the work ran, or the work was done and Redis
    ///   did not confirm that it is recorded. It may run again.
    /// - [`ErrorKind::Config`]: `retention` is shorter than a second or longer than a year.
    /// - [`ErrorKind::Unavailable`], [`ErrorKind::InvalidKey`], [`ErrorKind::Closed`]: the work did
    ///   not begin, as for [`try_acquire`](Self::try_acquire).
    ///
    /// # Example
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_distributed_lock::{Error, LockManager, Once};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Error> {
    /// # let locks = LockManager::in_memory();
    /// # async fn send_the_report() -> Result<u32, std::io::Error> { Ok(3) }
    /// // The date is in the key, so that it runs again tomorrow.
    /// let (key, retention) = ("report:2026-11-29", Duration::from_secs(3 * 24 * 3600));
    /// match locks.once(key, retention, |_lease| send_the_report()).await? {
    ///     Once::Ran(mails) => println!("sent {mails} mails"),
    ///     Once::Failed(error) => eprintln!("failed, and may be tried again: {error}"),
    ///     Once::AlreadyDone | Once::Running => println!("another node does it"),
    ///     _ => {}
    /// }
    /// let again = locks.once(key, retention, |_lease| send_the_report()).await?;
    /// assert!(matches!(again, Once::AlreadyDone));
    ///
    /// assert!(locks.forget(key).await?);
    /// # Ok(()) }
    /// ```
    pub async fn once<K, F, W, T, E>(
        &self,
        key: K,
        retention: Duration,
        work: F,
    ) -> Result<Once<T, E>, Error>
    where
        K: IntoLockKey,
        F: FnOnce(Lease) -> W,
        W: Future<Output = Result<T, E>>,
    {
        let key = once_key(&key.into_lock_key()?)?;
        if !(SECOND..=YEAR).contains(&retention) {
            return Err(Error::new(
                ErrorKind::Config,
                format!("retention must be between a second and a year, not {retention:?}"),
            ));
        }
        let guard = match self.claim(&self.core.meter, &key, None).await {
            Ok(Claimed::Lock(guard)) => guard,
            Ok(Claimed::Record(_) | Claimed::Damaged(_)) => return Ok(Once::AlreadyDone),
            Err(error) if error.kind() == ErrorKind::Held => return Ok(Once::Running),
            Err(error) => return Err(error),
        };
        let value = match run_under(&guard, work).await? {
            Ok(value) => value,
            Err(error) => {
                // Another node may try again as soon as this returns.
                let _ = guard.release().await;
                return Ok(Once::Failed(error));
            }
        };
        let content = DONE;
        let record = Record { content, retention };
        match guard.complete(record, || DONE).await {
            Ok(()) => Ok(Once::Ran(value)),
            Err(error) => {
                observe::not_recorded(&key, &error);
                Err(Error::caused_by(
                    ErrorKind::Lost,
                    format!("the work was done, but may be done again: {error}"),
                    error,
                ))
            }
        }
    }

    /// Deletes what is remembered under a key, so that its work, or its request, runs again.
    /// Returns whether anything was. What runs at this moment goes on, and is remembered when it
    /// ends.
    ///
    /// The key of [`once`](Self::once) is the one that it was called with. That of a response of an
    /// [`IdempotencyLayer`](crate::IdempotencyLayer) is its [scope] and its idempotency key,
    /// joined; the default scope is itself joined, of the method and the path. If a key was used
    /// for both, both are deleted.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unavailable`], [`ErrorKind::InvalidKey`] and [`ErrorKind::Closed`], as for
    /// [`try_acquire`](Self::try_acquire).
    ///
    /// # Example
    ///
    /// ```
    /// # use tower_distributed_lock::{Error, LockKey, LockManager};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Error> {
    /// # let locks = LockManager::in_memory();
    /// // A stored response to `POST /payments` with `Idempotency-Key: order-42`.
    /// let scope = LockKey::join(["POST", "/payments"])?;
    /// let was_there = locks.forget(LockKey::join([scope.as_str(), "order-42"])?).await?;
    /// # assert!(!was_there);
    /// # Ok(()) }
    /// ```
    ///
    /// [scope]: crate::IdempotencyLayer::scope
    pub async fn forget<K>(&self, key: K) -> Result<bool, Error>
    where
        K: IntoLockKey,
    {
        let key = key.into_lock_key()?;
        self.core.answers_questions()?;
        let store = &self.core.store;
        let response = LockKey::from_store(Kind::Record, key.as_str());
        let had_response = match response {
            Some(response) => store.forget(&response).await?,
            None => false,
        };
        Ok(store.forget(&once_key(&key)?).await? || had_response)
    }
}

/// A single part: the keys of responses have two, and so are others.
fn once_key(key: &LockKey) -> Result<LockKey, Error> {
    LockKey::record([key.as_str()])
}
