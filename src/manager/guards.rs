//! [`LockGuards`]: several locks that are held together.

use std::fmt;
use std::mem;
use std::sync::Arc;

use smallvec::{SmallVec, smallvec};

use super::LockGuard;
use crate::error::{Error, ErrorKind};
use crate::lease::{Leases, LostReason};

/// Several locks that are held together: see [`LockManager::acquire_all`]. They are held, and their
/// leases renewed, for as long as this value lives.
///
/// Dropping it releases them all in the background, as [`LockGuard`] does for one.
/// [`release`](Self::release) does the same, and tells how that went.
///
/// To lose one of them is to lose all: [`lost`](Self::lost) then returns. The others stay held
/// until this value is dropped, so that the caller can stop before others go on.
///
/// [`LockManager::acquire_all`]: crate::LockManager::acquire_all
///
/// # Example
///
/// ```
/// # use std::time::Duration;
/// # use tower_distributed_lock::LockManager;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), tower_distributed_lock::Error> {
/// let locks = LockManager::in_memory();
/// let guards = locks.acquire_all(["account:7", "account:9"], Duration::from_secs(5)).await?;
/// for lease in guards.leases() {
///     println!("holding {:?} with fencing token {}", lease.key(), lease.fencing_token());
/// }
/// tokio::select! {
///     () = work() => guards.release().await?,
///     reason = guards.lost() => eprintln!("stopped: a lock was lost ({reason:?})"),
/// }
/// # Ok(()) }
/// # async fn work() {}
/// ```
#[must_use = "the locks are released as soon as their guards are dropped"]
pub struct LockGuards {
    guards: Guards,
    leases: Leases,
}

/// Most requests lock one key, and need no memory on the heap for that.
pub(crate) type Guards = SmallVec<[LockGuard; 1]>;

impl LockGuards {
    pub(crate) fn new(guards: Guards) -> Self {
        let leases = Leases::new(guards.iter().map(|guard| guard.lease().clone()));
        Self { guards, leases }
    }

    /// Returns a view of these locks, with a [fencing token](crate::Lease::fencing_token) for each.
    /// It does not keep them held.
    pub fn leases(&self) -> &Leases {
        &self.leases
    }

    /// Returns whether all the locks are certainly held at this moment.
    pub fn is_held(&self) -> bool {
        self.leases.is_held()
    }

    /// Waits until one of the locks is no longer held, and returns why: see
    /// [`Lease::lost`](crate::Lease::lost).
    pub async fn lost(&self) -> LostReason {
        self.leases.lost().await
    }

    /// Releases the locks, and tells whether this guard still held them all: see
    /// [`LockGuard::release`].
    ///
    /// They are released all the same if this future is dropped.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Lost`] if one was lost before, [`ErrorKind::Unavailable`] if Redis did not say
    /// so of all within the [command timeout](crate::LockManagerBuilder::command_timeout). In both
    /// cases, what was done under the locks may have overlapped with another holder.
    pub async fn release(mut self) -> Result<(), Error> {
        let is_one = self.guards.len() == 1;
        let releasing: SmallVec<[_; 1]> = together(mem::take(&mut self.guards), |guards| {
            let begin = |guard: LockGuard| (guard.key().clone(), guard.begin_release());
            guards.into_iter().map(begin).collect()
        });
        let mut failed: Option<Error> = None;
        for (key, releasing) in releasing {
            let Err(error) = releasing.await else {
                continue;
            };
            // That one was lost is the worst news.
            if failed
                .as_ref()
                .is_none_or(|failed| failed.kind() != ErrorKind::Lost)
            {
                failed = Some(if is_one { error } else { error.about(&key) });
            }
        }
        failed.map_or(Ok(()), Err)
    }

    #[cfg(all(test, feature = "properties"))]
    pub(crate) fn into_guards(mut self) -> Guards {
        mem::take(&mut self.guards)
    }

    /// Lets the handler [take the locks over](Leases::take_over).
    pub(crate) fn offer(&mut self) {
        self.guards.iter_mut().for_each(LockGuard::offer);
    }

    /// Parts with the locks that the handler has taken over. It can take over no more of them.
    pub(crate) fn withdraw(&mut self) {
        self.guards.retain(|guard| !guard.lease().withdraw());
    }
}

/// Ends holds in such a way that their releases go out in one write.
fn together<T>(guards: Guards, end: impl FnOnce(Guards) -> T) -> T {
    let core = match guards.as_slice() {
        [first, _, ..] => Some(Arc::clone(first.core())),
        _ => None,
    };
    let _held_back = core.as_ref().and_then(|core| core.store.hold_back());
    end(guards)
}

impl From<LockGuard> for LockGuards {
    fn from(guard: LockGuard) -> Self {
        Self::new(smallvec![guard])
    }
}

impl Drop for LockGuards {
    fn drop(&mut self) {
        together(mem::take(&mut self.guards), drop);
    }
}

impl fmt::Debug for LockGuards {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LockGuards").field(&self.leases).finish()
    }
}
