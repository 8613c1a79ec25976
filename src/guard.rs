//! A lock that is held: [`LockGuard`] for whoever holds it, [`Lease`] for whoever wants to look.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::clock::Time;
use crate::error::{Error, ErrorKind};
use crate::key::LockKey;
use crate::manager::Core;
use crate::manager::slot::{Grant, LostReason};
use crate::shield::shielded;
use crate::store::{Receipt, Record};
use crate::sync::{HELD, Term};

/// A held lock. It is held, and its lease renewed, for as long as this value lives.
///
/// `Drop` releases it in the background: it does not block, does not panic, and works outside of a runtime.
/// [`release`](Self::release) does the same, and tells how that went.
///
/// ```
/// # use tower_distributed_lock::LockManager;
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower_distributed_lock::Error> {
/// let locks = LockManager::in_memory();
/// let guard = locks.try_acquire("account:7").await?;
/// // … one at a time, on all nodes …
/// guard.release().await?;
/// # Ok(()) }
/// ```
#[must_use = "the lock is released as soon as its guard is dropped"]
pub struct LockGuard {
    core: Arc<Core>,
    lease: Lease,
    is_finished: bool,
}

/// A view of a held lock: cheap to clone, and in the extensions of every request that runs under a lock.
///
/// It does not keep the lock held.
///
/// ```
/// use axum::Extension;
/// use tower_distributed_lock::Lease;
///
/// async fn transfer(Extension(lease): Extension<Lease>) -> String {
///     // Send it along with every write: storage that remembers the highest token it has
///     // seen can refuse a write from a holder that lost the lock without knowing.
///     format!("writing with fencing token {}", lease.fencing_token())
/// }
/// # let _ = transfer;
/// ```
#[derive(Clone)]
pub struct Lease(Arc<State>);

struct State {
    manager: u64,
    key: LockKey,
    grant: Grant,
    #[cfg(feature = "tracing")]
    acquired: Time,
    /// Until when the lease is trusted, as [`Time`] in nanoseconds, and the [`code`] of why it ended.
    term: Term,
}

fn code(reason: LostReason) -> u8 {
    match reason {
        LostReason::Expired => 1,
        LostReason::Taken => 2,
        LostReason::MaxHold => 3,
        LostReason::Released => 4,
    }
}

fn reason(code: u8) -> Option<LostReason> {
    match code {
        HELD => None,
        1 => Some(LostReason::Expired),
        2 => Some(LostReason::Taken),
        3 => Some(LostReason::MaxHold),
        _ => Some(LostReason::Released),
    }
}

impl Lease {
    pub(crate) fn new(manager: u64, key: LockKey, grant: Grant) -> Self {
        Self(Arc::new(State {
            manager,
            key,
            grant,
            #[cfg(feature = "tracing")]
            acquired: Time::now(),
            term: Term::new(grant.until.as_nanos()),
        }))
    }

    /// What is locked.
    pub fn key(&self) -> &LockKey {
        &self.0.key
    }

    /// A number that is larger for every later holder of this key, in this process or another.
    ///
    /// It stays so when the lease expires, when Redis restarts without its data and when a replica is promoted, unless the
    /// server's clock was set back *and* the data lost in one go, or the clocks of the two servers differ by more
    /// than the failover took. It always fits an `i64`.
    pub fn fencing_token(&self) -> u64 {
        self.0.grant.fencing_token
    }

    /// Whether the lock is certainly held at this moment. It reads the clock and is never late.
    pub fn is_held(&self) -> bool {
        self.lost_reason().is_none()
    }

    /// Why the lock is no longer held, `None` while it is.
    pub fn lost_reason(&self) -> Option<LostReason> {
        let ended = || self.0.term.ended(|until| self.late(until));
        // The end is written down before those who wait for it are woken.
        reason(shielded(ended).unwrap_or_else(ended))
    }

    /// How much longer the lock is certainly held, unless it is renewed before then or taken away.
    pub fn remaining(&self) -> Duration {
        match self.is_held() {
            true => self.until().since(Time::now()),
            false => Duration::ZERO,
        }
    }

    /// Waits until the lock is no longer held.
    ///
    /// That is told before Redis could have given the lock to somebody else: the lease is counted from before
    /// its command was sent, and 1 % of it, and a margin, are kept back. If somebody deletes or overwrites the lock
    /// in Redis, it is told at the next renewal at the latest.
    pub async fn lost(&self) -> LostReason {
        loop {
            let over = self.0.term.over();
            if let Some(reason) = self.lost_reason() {
                return reason;
            }
            tokio::select! {
                () = over => {}
                () = tokio::time::sleep_until(self.until().instant()) => {}
            }
        }
    }

    fn until(&self) -> Time {
        Time::from_nanos(self.0.term.until())
    }

    /// Why it is lost if it was good until then, should that be over.
    fn late(&self, until: u64) -> Option<u8> {
        let now = Time::now_for_certain();
        (now >= Time::from_nanos(until)).then(|| match now >= self.0.grant.limit {
            true => code(LostReason::MaxHold),
            false => code(LostReason::Expired),
        })
    }

    /// How long it has been held.
    #[cfg(feature = "tracing")]
    pub(crate) fn age(&self) -> Duration {
        Time::now().since(self.0.acquired)
    }

    pub(crate) fn extend(&self, until: Time) {
        let late = |until| self.late(until);
        shielded(|| self.0.term.extend(until.as_nanos(), late));
    }

    pub(crate) fn end(&self, why: LostReason) {
        shielded(|| self.0.term.end(code(why)));
    }

    /// Whether this is a lease on that key, by that manager.
    pub(crate) fn is_on(&self, manager: u64, key: &LockKey) -> bool {
        self.0.manager == manager && self.0.key == *key
    }

    pub(crate) fn grant(&self) -> Grant {
        self.0.grant
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("key", self.key())
            .field("fencing_token", &self.fencing_token())
            .field("lost_reason", &self.lost_reason())
            .finish()
    }
}

impl LockGuard {
    pub(crate) fn new(core: Arc<Core>, lease: Lease) -> Self {
        Self {
            core,
            lease,
            is_finished: false,
        }
    }

    /// A view of this lock, to hand to others.
    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    /// What is locked.
    pub fn key(&self) -> &LockKey {
        self.lease.key()
    }

    /// See [`Lease::fencing_token`].
    pub fn fencing_token(&self) -> u64 {
        self.lease.fencing_token()
    }

    /// Waits until the lock is no longer held: see [`Lease::lost`].
    pub async fn lost(&self) -> LostReason {
        self.lease.lost().await
    }

    /// Releases the lock, and tells whether it was still ours.
    ///
    /// If another request of this process waits for it, it gets the lock without Redis being asked, and "still
    /// ours" means that no loss was noticed.
    ///
    /// The lock is released all the same if this future is dropped.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Lost`] if the lock was not ours any more, [`ErrorKind::Unavailable`] if Redis did not say. In both
    /// cases, what was done under the lock may have overlapped with another holder.
    pub async fn release(mut self) -> Result<(), Error> {
        let (receipt, released) = oneshot::channel();
        let held = self.lease.is_held();
        self.finish(Some(receipt));
        match timeout(self.core.command_timeout, released).await {
            Ok(Ok(Ok(()))) if !held => Err(Error::of(ErrorKind::Lost)),
            Ok(Ok(result)) => result,
            Ok(Err(_)) | Err(_) => Err(Error::of(ErrorKind::Unavailable)),
        }
    }

    /// Puts a record in the lock's place, and tells whether it is there. If it is long and the
    /// store cannot keep it, a short one takes its place that is made by `instead`.
    ///
    /// The lock stays held while the store writes a long record.
    pub(crate) async fn complete(
        self,
        mut record: Record,
        instead: impl FnOnce() -> Bytes,
    ) -> Result<(), Error> {
        let Some(time) = self.core.store.time_to_put_aside(&record) else {
            return self.put(record).await;
        };
        let (core, lease) = (Arc::clone(&self.core), self.lease.clone());
        core.recording(&lease, time);
        let hold = lease.grant().limit.since(Time::now());
        let aside = core
            .store
            .put_aside(lease.key(), &record, hold, lease.lost());
        match aside.await {
            Ok(manifest) => {
                record.content = manifest.encode();
                let result = self.put(record).await;
                if matches!(&result, Err(error) if error.kind() == ErrorKind::Lost) {
                    core.store.discard(lease.key(), manifest).await;
                }
                result
            }
            Err(error) => {
                if lease.is_held() {
                    crate::trace::not_kept(lease.key(), &error);
                }
                record.content = instead();
                self.put(record).await
            }
        }
    }

    /// Puts a short record in the lock's place. It is tried for as long as the lock may be ours,
    /// even if this future is dropped.
    async fn put(mut self, record: Record) -> Result<(), Error> {
        let (receipt, completed) = oneshot::channel();
        self.is_finished = true;
        if !self.core.complete(&self.lease, record, receipt) {
            return Err(Error::of(ErrorKind::Lost));
        }
        match timeout(self.core.command_timeout, completed).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) | Err(_) => Err(Error::of(ErrorKind::Unavailable)),
        }
    }

    fn finish(&mut self, receipt: Option<Receipt>) {
        if !std::mem::replace(&mut self.is_finished, true) {
            self.core.finish(&self.lease, receipt);
        }
    }
}

impl Drop for LockGuard {
    fn drop(&mut self) {
        self.finish(None);
    }
}

impl fmt::Debug for LockGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LockGuard").field(&self.lease).finish()
    }
}
