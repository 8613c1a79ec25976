//! [`LockManager::acquire_all`]: several locks at once, all or none.
//!
//! Requests wait for locks in one order, that of [`LockKeys`]: one that waits for a key has only
//! smaller ones. So there is no circle of requests that wait for each other, whatever the order in
//! which each names its keys.
//!
//! Waiting one after the other would take a round trip per key. As the locks are free as a rule,
//! all are first taken at once, without waiting. If one is refused, those before it are kept, those
//! behind it are given back, and only then is it waited for.

use std::time::Duration;

use super::guards::Guards;
use super::{LockGuards, LockManager, decision, lock};
use crate::clock::Time;
use crate::error::{Error, ErrorKind};
use crate::key::{IntoLockKey, LockKey, LockKeys};
use crate::mode::Mode;
use crate::observe::{self, Meter, Stopwatch};

impl LockManager {
    /// Takes several locks if all of them are free, and none otherwise. They are taken at once: in
    /// Redis, that is one round trip.
    ///
    /// Two calls at the same moment that want some of the same keys may both be refused, if each
    /// finds one that the other has just taken. To have one of them succeed, wait:
    /// [`acquire_all`](Self::acquire_all).
    ///
    /// # Example
    ///
    /// ```
    /// # use tower_distributed_lock::{Error, ErrorKind, LockManager};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Error> {
    /// # let locks = LockManager::in_memory();
    /// let guards = locks.try_acquire_all([("account", 9), ("account", 7)]).await?;
    /// let other = locks.try_acquire_all([("account", 7), ("account", 8)]).await.unwrap_err();
    /// assert_eq!(other.kind(), ErrorKind::Held);
    /// assert_eq!(other.key().unwrap().as_str(), "account:7");
    /// # drop(guards);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// Like [`try_acquire`](Self::try_acquire), and [`Error::key`] tells which key was refused.
    /// Also [`ErrorKind::TooManyKeys`] if there are more than
    /// [`max_keys`](crate::LockManagerBuilder::max_keys), and [`ErrorKind::MissingKey`] if there is
    /// none.
    pub async fn try_acquire_all<I>(&self, keys: I) -> Result<LockGuards, Error>
    where
        I: IntoIterator<Item: IntoLockKey>,
    {
        let keys = LockKeys::new(keys)?;
        self.take_all(&self.core.meter, keys, None, Mode::Exclusive)
            .await
    }

    /// Takes several locks as soon as they are free, all of them within `wait`, or none. Calls that
    /// want the same keys do not deadlock, whatever the order in which each names them. A key that
    /// is named twice is locked once.
    ///
    /// If all are free, they are taken at once: in Redis, that is one round trip. Otherwise, they
    /// are waited for one after the other, in the order of their bytes. Those that are taken by
    /// then are held, and renewed, while the next is waited for: others wait for them meanwhile,
    /// and [`max_hold`](crate::LockManagerBuilder::max_hold) runs from when the first was taken.
    /// One that is lost meanwhile is waited for again.
    ///
    /// With a `wait` of zero, it does what [`try_acquire_all`](Self::try_acquire_all) does. A
    /// caller that gives up, by dropping the future, leaves the queue and releases what it had.
    ///
    /// # Deadlocks through other calls
    ///
    /// The order is kept within one call. A task that holds a lock, and waits for another by
    /// another call, can deadlock with one that does so the other way round: both end when their
    /// wait is over. Name all keys in one call.
    ///
    /// # Example
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_distributed_lock::{Error, LockManager};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Error> {
    /// # let locks = LockManager::in_memory();
    /// let accounts = [9, 7, 12];
    /// let keys = accounts.map(|id| ("account", id));
    /// let guards = locks.acquire_all(keys, Duration::from_secs(5)).await?;
    /// let lease = guards.leases().get(("account", 7)).expect("it is one of the keys");
    /// println!("writing to the account 7 with fencing token {}", lease.fencing_token());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// Like [`acquire`](Self::acquire), and [`Error::key`] tells which key was refused, or waited
    /// for last. Also [`ErrorKind::TooManyKeys`] if there are more than
    /// [`max_keys`](crate::LockManagerBuilder::max_keys), and [`ErrorKind::MissingKey`] if there is
    /// none.
    pub async fn acquire_all<I>(&self, keys: I, wait: Duration) -> Result<LockGuards, Error>
    where
        I: IntoIterator<Item: IntoLockKey>,
    {
        let keys = LockKeys::new(keys)?;
        self.take_all(&self.core.meter, keys, Some(wait), Mode::Exclusive)
            .await
    }

    pub(crate) async fn take_all(
        &self,
        meter: &Meter,
        keys: LockKeys,
        wait: Option<Duration>,
        mode: Mode,
    ) -> Result<LockGuards, Error> {
        let keys = keys.as_slice();
        let attempt = async {
            let waited = Stopwatch::of_wait(&self.core.meters, meter);
            let result = self.take_sorted(meter, keys, wait, mode).await;
            match &result {
                Ok(guards) => guards
                    .leases()
                    .iter()
                    .for_each(|lease| observe::acquired(&self.core.meters, lease, &waited)),
                Err(error) => {
                    let key = error.key().unwrap_or(&keys[0]);
                    observe::refused(&self.core.meters, key, meter, error, &waited);
                }
            }
            result
        };
        observe::acquiring(keys, meter, attempt).await
    }

    async fn take_sorted(
        &self,
        meter: &Meter,
        keys: &[LockKey],
        wait: Option<Duration>,
        mode: Mode,
    ) -> Result<LockGuards, Error> {
        let max = self.core.max_keys;
        if keys.len() > max {
            let many = keys.len();
            return Err(Error::new(
                ErrorKind::TooManyKeys,
                format!("{many} keys are to be locked at once: max_keys allows {max}"),
            ));
        }
        let limit = Limit::begin(wait);
        // Those of the first keys, in their order.
        let mut guards = Guards::with_capacity(keys.len());
        let refused = |error: Error, at: usize| match error.kind() {
            ErrorKind::Closed => error,
            _ => error.about(&keys[at]),
        };
        if keys.len() > 1 || !limit.is_patient() {
            let taken = self.take_free(meter, keys, mode, &limit, &mut guards).await;
            let may_wait = |error: &Error| limit.is_patient() && error.kind() == ErrorKind::Held;
            if let Err(error) = taken
                && !may_wait(&error)
            {
                return Err(refused(error, guards.len()));
            }
        }
        while limit.is_patient() {
            // Nothing has been done under a lock that was lost meanwhile. What comes behind it is
            // given back before it is waited for again.
            let lost = guards.iter().position(|guard| !guard.lease().is_held());
            guards.truncate(lost.unwrap_or(keys.len()));
            let next = guards.len();
            let Some(key) = keys.get(next) else {
                break;
            };
            let taken = match limit.left() {
                Some(Duration::ZERO) => Err(Error::of(ErrorKind::TimedOut)),
                left => self.request(meter, key, left, mode).await.and_then(lock),
            };
            guards.push(taken.map_err(|error| refused(error, next))?);
        }
        Ok(LockGuards::new(guards))
    }

    /// Takes locks that are free, all at once. `guards` gets those before the first that is not.
    async fn take_free(
        &self,
        meter: &Meter,
        keys: &[LockKey],
        mode: Mode,
        limit: &Limit,
        guards: &mut Guards,
    ) -> Result<(), Error> {
        let mut asked = Vec::with_capacity(keys.len());
        let held_back = self.core.store.hold_back();
        for key in keys {
            let mut request = self.core.request(key, false, mode, meter)?;
            let decided = request.decided();
            let is_refused = matches!(decided, Some(Err(_)));
            asked.push((request, decided));
            if is_refused {
                // What comes behind it would have to be given back.
                break;
            }
        }
        drop(held_back);
        // All may have been decided at once: other tasks are to have their turn.
        tokio::task::consume_budget().await;
        let within = self.core.store.replies_within();
        let asked_at = Time::now();
        for (request, decided) in asked {
            let taken = match decided {
                Some(decided) => decided,
                None => {
                    let since = Time::now().since(asked_at);
                    let within = within.map(|within| within.saturating_sub(since));
                    let left = within.into_iter().chain(limit.left()).min();
                    decision(request, left).await
                }
            };
            guards.push(taken.and_then(lock)?);
        }
        Ok(())
    }
}

/// How long a call may wait, counted from its beginning.
struct Limit {
    began: Time,
    /// `None`: not at all.
    wait: Option<Duration>,
}

impl Limit {
    fn begin(wait: Option<Duration>) -> Self {
        Self {
            began: Time::now(),
            wait: wait.filter(|wait| !wait.is_zero()),
        }
    }

    fn is_patient(&self) -> bool {
        self.wait.is_some()
    }

    fn left(&self) -> Option<Duration> {
        let since = Time::now().since(self.began);
        self.wait.map(|wait| wait.saturating_sub(since))
    }
}
