//! [`LockGuard`]: a lock that is held.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::Core;
use crate::clock::Time;
use crate::error::{Error, ErrorKind};
use crate::key::LockKey;
use crate::lease::{Lease, LostReason};
use crate::store::{Record, ReplySender};

/// A held lock. It is held, and its lease renewed, for as long as this value lives.
///
/// Dropping it releases the lock in the background: that does not block, does not panic, and works
/// outside of a runtime. [`release`](Self::release) does the same, and tells how that went.
///
/// Nothing stops the caller when the lock is lost: it has to watch [`lost`](Self::lost), or to have
/// the storage check the [fencing token](Self::fencing_token).
///
/// # Example
///
/// ```
/// # use tower_distributed_lock::LockManager;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), tower_distributed_lock::Error> {
/// let locks = LockManager::in_memory();
/// let guard = locks.try_acquire("account:7").await?;
/// tokio::select! {
///     () = work() => guard.release().await?,
///     reason = guard.lost() => eprintln!("stopped: the lock was lost ({reason:?})"),
/// }
/// # Ok(()) }
/// # async fn work() {}
/// ```
#[must_use = "the lock is released as soon as its guard is dropped"]
pub struct LockGuard {
    lease: Lease,
    is_finished: bool,
    /// Whether the handler may take the lock over, so that this guard does not release it.
    is_offered: bool,
}

impl LockGuard {
    pub(crate) fn new(lease: Lease) -> Self {
        Self {
            lease,
            is_finished: false,
            is_offered: false,
        }
    }

    /// Lets the handler [take the lock over](Lease::take_over).
    pub(crate) fn offer(&mut self) {
        self.lease.offer();
        self.is_offered = true;
    }

    /// Returns a view of this lock, to hand to other tasks. It does not keep the lock held.
    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    /// Returns what is locked.
    pub fn key(&self) -> &LockKey {
        self.lease.key()
    }

    /// Returns a number that is larger for every later holder: see [`Lease::fencing_token`].
    pub fn fencing_token(&self) -> u64 {
        self.lease.fencing_token()
    }

    /// Waits until the lock is no longer held, and returns why: see [`Lease::lost`].
    pub async fn lost(&self) -> LostReason {
        self.lease.lost().await
    }

    /// Releases the lock, and tells whether this guard still held it.
    ///
    /// If another request of this process waits for the lock, it gets the lock without Redis being
    /// asked. If others of this process [share](crate::Mode::Shared) it, they keep it. Then success
    /// means that no loss was noticed.
    ///
    /// The lock is released all the same if this future is dropped.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Lost`] if the lock was lost before, [`ErrorKind::Unavailable`] if Redis did not
    /// say so within the [command timeout](crate::LockManagerBuilder::command_timeout). In both
    /// cases, what was done under the lock may have overlapped with another holder.
    pub async fn release(self) -> Result<(), Error> {
        self.begin_release().await
    }

    /// Releases the lock. The future tells whether this guard still held it.
    pub(super) fn begin_release(mut self) -> impl Future<Output = Result<(), Error>> + use<> {
        let (reply, released) = oneshot::channel();
        let held = self.lease.is_held();
        self.finish(Some(reply));
        let released = timeout(self.core().command_timeout, released);
        async move {
            match released.await {
                Ok(Ok(Ok(()))) if !held => Err(Error::of(ErrorKind::Lost)),
                Ok(Ok(result)) => result,
                Ok(Err(_)) | Err(_) => Err(Error::of(ErrorKind::Unavailable)),
            }
        }
    }

    /// Gives a lock that was [taken over](Lease::take_over) back to its layer. It is released if
    /// the layer has gone meanwhile.
    pub(crate) fn give_back(mut self) {
        self.is_finished = self.lease.give_back();
    }

    pub(super) fn core(&self) -> &Arc<Core> {
        self.lease.core()
    }

    /// Puts a record in the lock's place, and tells whether it is there. If it is long and the
    /// store cannot keep it, `instead` makes a short one, which is put there.
    pub(crate) async fn complete(
        self,
        record: Record,
        instead: impl FnOnce() -> Bytes,
    ) -> Result<(), Error> {
        match self.core().store.time_to_put_aside(&record) {
            None => self.put(record).await,
            // Boxed: few records are long, and the task of every run would be by kilobytes larger.
            Some(time) => Box::pin(self.put_long(record, time, instead)).await,
        }
    }

    /// Puts a record aside, and its manifest in the lock's place, or what `instead` makes. The lock
    /// stays held while the store writes the record, for at most `time`.
    async fn put_long(
        self,
        mut record: Record,
        time: Duration,
        instead: impl FnOnce() -> Bytes,
    ) -> Result<(), Error> {
        let (core, lease) = (Arc::clone(self.core()), self.lease.clone());
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
                    crate::observe::not_kept(lease.key(), &error);
                }
                record.content = instead();
                self.put(record).await
            }
        }
    }

    /// Puts a short record in the lock's place. The store tries for as long as this guard may hold
    /// the lock, even if this future is dropped.
    async fn put(mut self, record: Record) -> Result<(), Error> {
        let (reply, completed) = oneshot::channel();
        self.is_finished = true;
        if !self.core().complete(&self.lease, record, reply) {
            return Err(Error::of(ErrorKind::Lost));
        }
        match timeout(self.core().command_timeout, completed).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) | Err(_) => Err(Error::of(ErrorKind::Unavailable)),
        }
    }

    fn finish(&mut self, reply: Option<ReplySender>) {
        let is_finished = std::mem::replace(&mut self.is_finished, true);
        let is_taken_over = self.is_offered && self.lease.withdraw();
        if !is_finished && !is_taken_over {
            self.core().finish(&self.lease, reply);
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
