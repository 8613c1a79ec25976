//! Questions about locks.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Core, LockManager};
use crate::clock::Time;
use crate::error::Error;
use crate::inspect::{LockCursor, LockPage, LockReport, LockStats};
use crate::key::IntoLockKey;
use crate::lease::Lease;

impl LockManager {
    /// Returns what this process knows of its own locks. It asks no one, and costs next to nothing.
    ///
    /// # Example
    ///
    /// ```
    /// # use tower_distributed_lock::{Error, LockManager};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Error> {
    /// # let locks = LockManager::in_memory();
    /// let guard = locks.try_acquire("account:7").await?;
    /// assert_eq!(locks.stats().held, 1);
    /// # drop(guard);
    /// # Ok(()) }
    /// ```
    pub fn stats(&self) -> LockStats {
        let core = &self.core;
        LockStats {
            held: core.held.load(Ordering::Relaxed),
            waiting: core.waiting.load(Ordering::Relaxed),
            queued: core.queued.load(Ordering::Relaxed),
            is_store_up: core.store.is_available(),
            is_draining: core.is_draining(),
        }
    }

    /// Waits until Redis has replied, over the connection that locks are taken on; in a Cluster,
    /// until each primary has. Returns how long that took. For a readiness probe.
    ///
    /// # Errors
    ///
    /// - [`Unavailable`](crate::ErrorKind::Unavailable) if Redis does not reply within the [command
    ///   timeout](crate::LockManagerBuilder::command_timeout), or gives no locks: after it lost
    ///   data, with [`quarantine`](crate::LockManagerBuilder::quarantine), or without memory. Also
    ///   if the manager [drains](Self::drain).
    /// - [`Closed`](crate::ErrorKind::Closed) if the manager is closed.
    ///
    /// # Example
    ///
    /// ```
    /// use axum::{Router, http::StatusCode, routing::get};
    /// use tower_distributed_lock::LockManager;
    ///
    /// fn health(locks: LockManager) -> Router {
    ///     Router::new().route("/ready", get(async move || match locks.ping().await {
    ///         Ok(_) => StatusCode::OK,
    ///         Err(_) => StatusCode::SERVICE_UNAVAILABLE,
    ///     }))
    /// }
    /// # let _ = health;
    /// ```
    pub async fn ping(&self) -> Result<Duration, Error> {
        self.core.gives_locks()?;
        let began = Time::now();
        self.core.ensure_running();
        self.core.store.ping().await?;
        Ok(Time::now().since(began))
    }

    /// Returns what is known of a lock: who holds it, for how much longer, and who waits.
    ///
    /// It asks Redis two or three times, over the connection that long records use. Redis has to
    /// allow `CLIENT LIST` to tell the names of processes.
    ///
    /// # Errors
    ///
    /// [`Unavailable`](crate::ErrorKind::Unavailable) if Redis cannot be asked,
    /// [`InvalidKey`](crate::ErrorKind::InvalidKey) if the key is empty,
    /// [`Closed`](crate::ErrorKind::Closed) if the manager is.
    ///
    /// # Example
    ///
    /// ```
    /// # use tower_distributed_lock::{Error, LockManager};
    /// # async fn show(locks: &LockManager) -> Result<(), Error> {
    /// let report = locks.inspect("account:7").await?;
    /// for process in &report.waiting {
    ///     println!("{process} waits{}", if process.is_alive { "" } else { ", but is gone" });
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn inspect<K>(&self, key: K) -> Result<LockReport, Error>
    where
        K: IntoLockKey,
    {
        let key = key.into_lock_key()?;
        self.core.answers_questions()?;
        let mut report = self.core.store.inspect(&key).await?;
        self.core.add_own_lease(&mut report);
        Ok(report)
    }

    /// Returns some of all locks under this manager's prefix, and where the next ones are.
    ///
    /// A page is what one `SCAN` of Redis finds among about 100 of its keys, so it may be empty
    /// though more follow. Of a Cluster, one primary is listed after the other. A lock that is
    /// taken or released meanwhile may be missing, and so may one whose slot moves or whose primary
    /// is replaced; and a lock may be there twice. The list is for people who look for something,
    /// not for code that is to act.
    ///
    /// # Errors
    ///
    /// [`Unavailable`](crate::ErrorKind::Unavailable) if Redis cannot be asked, or a slot of a
    /// Cluster is on its way: ask for the same page again. [`Closed`](crate::ErrorKind::Closed) if
    /// the manager is.
    ///
    /// # Example
    ///
    /// ```
    /// use tower_distributed_lock::inspect::LockCursor;
    /// # use tower_distributed_lock::{Error, LockManager};
    ///
    /// # async fn show(locks: &LockManager) -> Result<(), Error> {
    /// let mut cursor = Some(LockCursor::locks());
    /// while let Some(here) = cursor {
    ///     let page = locks.list(here).await?;
    ///     for lock in &page.locks {
    ///         println!("{:?}: {:?}", lock.key, lock.occupant);
    ///     }
    ///     cursor = page.next;
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn list(&self, cursor: LockCursor) -> Result<LockPage, Error> {
        self.core.answers_questions()?;
        let mut page = self.core.store.list(cursor).await?;
        page.locks.retain(|report| !report.is_free());
        for report in &mut page.locks {
            self.core.add_own_lease(report);
        }
        Ok(page)
    }
}

impl Core {
    /// Adds what this process knows of its own holder.
    fn add_own_lease(&self, report: &mut LockReport) {
        let mut holders = report.occupant.holders().iter_mut();
        if let Some(holder) = holders.find(|holder| holder.process.is_this)
            && let Some(lease) = self.lease_on(&report.key)
        {
            holder.fencing_token = Some(lease.fencing_token());
            holder.held_for = Some(self.held_for(&lease));
        }
    }

    /// Returns for how long a lock has been held.
    pub(super) fn held_for(&self, lease: &Lease) -> Duration {
        let max_hold = self.rules.max_hold.as_nanos() as u64;
        let began = lease.grant().limit.as_nanos().saturating_sub(max_hold);
        Time::now().since(Time::from_nanos(began))
    }
}
