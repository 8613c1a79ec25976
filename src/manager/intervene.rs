//! What an operator does to locks: takes one from its holder, and lets none be taken any more.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Core, LockManager};
use crate::error::{Error, ErrorKind};
use crate::key::IntoLockKey;
use crate::store::Notice;

impl LockManager {
    /// Takes a lock from its holder, whatever process that is. The next process that waits gets it
    /// at once, with a larger fencing token. Returns whether there was a holder.
    ///
    /// The holder is told that it has lost the lock ([`LostReason::Taken`](crate::LostReason)) as
    /// soon as the message reaches its process; a request under a layer is then stopped. A client
    /// of another kind is not told.
    ///
    /// # Warning
    ///
    /// Until the holder has heard of it, there are two. What it writes in that time must be refused
    /// by its [fencing token](crate::Lease::fencing_token). Use this for a holder that hangs, and
    /// not in code that could wait.
    ///
    /// # Errors
    ///
    /// - [`ErrorKind::Held`] if a stored response is in the lock's place: this does not delete it.
    /// - [`ErrorKind::Unavailable`] if Redis cannot be reached. The lock may have been released.
    /// - [`ErrorKind::InvalidKey`] if the key is empty, [`ErrorKind::Closed`] if the manager is.
    ///
    /// # Example
    ///
    /// ```
    /// # use tower_distributed_lock::{Error, LockManager, LostReason};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Error> {
    /// # let locks = LockManager::in_memory();
    /// let hanging = locks.try_acquire("account:7").await?;
    /// assert!(locks.force_release("account:7").await?);
    /// assert_eq!(hanging.lost().await, LostReason::Taken);
    /// # Ok(()) }
    /// ```
    pub async fn force_release<K>(&self, key: K) -> Result<bool, Error>
    where
        K: IntoLockKey,
    {
        let key = key.into_lock_key()?;
        self.core.answers_questions()?;
        let was_held = self.core.store.force_release(&key).await?;
        // The task may have ended meanwhile, with the manager: the lock is still to be given to the
        // next process.
        self.core.ensure_running();
        // A holder of this process need not wait for the message.
        self.core
            .with_slot(&key, |machine| machine.notice(Notice::Changed));
        Ok(was_held)
    }

    /// Lets no more locks be taken by this process, before it shuts down: new requests, and those
    /// that wait, are told that locks are [unavailable](ErrorKind::Unavailable), which the layers
    /// answer with 503. Locks that are held stay held, and are renewed.
    ///
    /// A load balancer that sees those responses, or a failing [`ping`](Self::ping), sends requests
    /// elsewhere. [`close`](Self::close) then waits for the holders. There is no way back.
    ///
    /// # Example
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_distributed_lock::LockManager;
    /// # async fn shut_down(locks: LockManager) {
    /// locks.drain();
    /// // … wait until the load balancer has noticed, and stop the server …
    /// let _ = tokio::time::timeout(Duration::from_secs(10), locks.close()).await;
    /// # }
    /// ```
    pub fn drain(&self) {
        self.core.is_draining.store(true, Ordering::SeqCst);
        let draining = draining();
        self.core
            .with_every_slot(|machine| machine.reject_all(&draining));
    }

    /// Returns whether it takes no more locks.
    pub(crate) fn is_draining(&self) -> bool {
        self.core.is_draining()
    }
}

impl Core {
    /// Makes the store able to answer questions. Fails if the manager is closed.
    pub(super) fn answers_questions(self: &Arc<Self>) -> Result<(), Error> {
        if self.is_closed.load(Ordering::Acquire) {
            return Err(Error::of(ErrorKind::Closed));
        }
        self.ensure_running();
        Ok(())
    }

    /// Fails if no more locks are given out.
    pub(super) fn gives_locks(self: &Arc<Self>) -> Result<(), Error> {
        if self.is_closed.load(Ordering::Acquire) {
            return Err(Error::of(ErrorKind::Closed));
        }
        match self.is_draining.load(Ordering::Acquire) {
            true => Err(draining()),
            false => Ok(()),
        }
    }

    pub(super) fn is_draining(&self) -> bool {
        self.is_draining.load(Ordering::Acquire) || self.is_closed.load(Ordering::Acquire)
    }
}

fn draining() -> Error {
    Error::new(
        ErrorKind::Unavailable,
        "this process is about to shut down, and takes no more locks",
    )
}
