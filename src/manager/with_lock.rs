//! [`LockManager::with_lock`]: work under a lock, which is stopped when the lock is lost.

use std::pin::pin;
use std::time::Duration;

use super::{LockGuard, LockManager};
use crate::error::{Error, ErrorKind};
use crate::key::IntoLockKey;
use crate::lease::Lease;

impl LockManager {
    /// Takes the lock within `wait`, runs the work, and releases the lock: [`acquire`], without a
    /// guard that must be watched. If the lock is lost, the work is stopped where it awaits.
    ///
    /// With a `wait` of zero it does not wait. If the returned future is dropped, the work is
    /// stopped, and the lock released.
    ///
    /// # Errors
    ///
    /// - [`ErrorKind::Lost`]: the lock was lost. The work was stopped, or went past the end of its
    ///   lease without awaiting; it may have overlapped with the next holder.
    /// - Any other kind: the lock was not acquired, and the work did not begin. The kinds are those
    ///   of [`acquire`], with [`ErrorKind::Held`] where `wait` is zero.
    ///
    /// What the work itself returns, a `Result` for instance, is the value.
    ///
    /// # Example
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_distributed_lock::{ErrorKind, LockManager};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// # let locks = LockManager::in_memory();
    /// # async fn pay_interest(fencing_token: u64) -> u64 { fencing_token }
    /// let wait = Duration::from_secs(30);
    /// let paid = locks.with_lock("accounts:7", wait, |lease| async move {
    ///     pay_interest(lease.fencing_token()).await
    /// });
    /// match paid.await {
    ///     Ok(paid) => println!("paid {paid}"),
    ///     Err(error) if error.kind() == ErrorKind::Lost => eprintln!("stopped half-way: {error}"),
    ///     Err(error) => eprintln!("not begun: {error}"),
    /// }
    /// # }
    /// ```
    ///
    /// [`acquire`]: Self::acquire
    pub async fn with_lock<K, F, W>(
        &self,
        key: K,
        wait: Duration,
        work: F,
    ) -> Result<W::Output, Error>
    where
        K: IntoLockKey,
        F: FnOnce(Lease) -> W,
        W: Future,
    {
        let guard = self.acquire(key, wait).await?;
        let done = run_under(&guard, work).await?;
        match guard.release().await {
            Err(error) if error.kind() == ErrorKind::Lost => Err(error),
            // The lease was valid when the work ended. A release that got no reply is tried again.
            _ => Ok(done),
        }
    }
}

/// Runs the work until it ends, or the lock is lost. It is dropped before this returns.
pub(super) async fn run_under<F, W>(guard: &LockGuard, work: F) -> Result<W::Output, Error>
where
    F: FnOnce(Lease) -> W,
    W: Future,
{
    let lost = || Error::of(ErrorKind::Lost);
    // Time may have passed since it was granted.
    if !guard.lease().is_held() {
        return Err(lost());
    }
    let done = {
        let work = pin!(work(guard.lease().clone()));
        tokio::select! {
            biased;
            _ = guard.lost() => None,
            done = work => Some(done),
        }
    };
    // Work that blocked its thread may have gone on for longer than its lease.
    done.filter(|_| guard.lease().is_held()).ok_or_else(lost)
}
