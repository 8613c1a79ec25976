//! [`Lease`]: a view of a lock that is held.

#[cfg(feature = "axum")]
mod extract;
mod offer;
mod several;
mod terms;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

#[cfg(feature = "axum")]
pub use self::extract::MissingLease;
use self::offer::Offer;
pub use self::several::Leases;
pub use self::terms::LostReason;
pub(crate) use self::terms::{Grant, GrantPath};
use crate::clock::Time;
use crate::key::LockKey;
use crate::manager::{Core, LockGuard};
use crate::mode::Mode;
use crate::observe::{Meter, Stopwatch};
use crate::shield::shielded;
use crate::sync::{LeaseExpiry, VALID};

/// A view of a held lock: cheap to clone, and in the extensions of every request that runs under a
/// lock. With the feature `axum`, it is an extractor: a handler takes a `Lease`, or an
/// `Option<Lease>`.
///
/// It does not keep the lock held. A handler that must not go on without the lock, in code that
/// does not await, looks at [`is_held`](Self::is_held) before each step that matters.
///
/// # Example
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
    core: Arc<Core>,
    key: LockKey,
    grant: Grant,
    #[cfg_attr(
        not(any(feature = "tracing", feature = "metrics", feature = "inspector")),
        allow(dead_code)
    )]
    path: GrantPath,
    #[cfg_attr(
        not(any(feature = "tracing", feature = "metrics", feature = "inspector")),
        allow(dead_code)
    )]
    meter: Meter,
    #[cfg_attr(not(any(feature = "tracing", feature = "metrics")), allow(dead_code))]
    age: Stopwatch,
    /// Whether its end, by a loss or a release, was told.
    is_end_told: AtomicBool,
    /// Until when the lease is valid, as [`Time`] in nanoseconds, and the [`code`] of why it ended.
    expiry: LeaseExpiry,
    /// Whether the handler may have a guard, while a layer has one.
    offer: Offer,
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
        VALID => None,
        1 => Some(LostReason::Expired),
        2 => Some(LostReason::Taken),
        3 => Some(LostReason::MaxHold),
        _ => Some(LostReason::Released),
    }
}

impl Lease {
    pub(crate) fn new(
        core: Arc<Core>,
        key: LockKey,
        grant: Grant,
        path: GrantPath,
        meter: Meter,
    ) -> Self {
        Self(Arc::new(State {
            core,
            key,
            grant,
            path,
            age: Stopwatch::of_hold(&meter),
            meter,
            is_end_told: AtomicBool::new(false),
            expiry: LeaseExpiry::new(grant.until.as_nanos()),
            offer: Offer::default(),
        }))
    }

    /// Returns what is locked.
    pub fn key(&self) -> &LockKey {
        &self.0.key
    }

    /// Returns a number that is larger for every later holder of this key, in this process or
    /// another. Those that [share](Mode::Shared) it may have the same one.
    ///
    /// Send it along with every write, and have the storage refuse a write whose token is lower
    /// than one that it has seen. Compare tokens of one key only. The token always fits an `i64`.
    ///
    /// Tokens go on rising when the lease expires, when Redis restarts without its data and when a
    /// replica is promoted, unless the server's clock was set back *and* the data lost in one go,
    /// or the clocks of the two servers differ by more than the failover took.
    pub fn fencing_token(&self) -> u64 {
        self.0.grant.fencing_token
    }

    /// Returns whether the lock is held alone, or shared.
    pub fn mode(&self) -> Mode {
        self.0.grant.mode
    }

    /// Returns whether the lock is certainly held at this moment. It reads the clock, and is never
    /// late.
    pub fn is_held(&self) -> bool {
        self.lost_reason().is_none()
    }

    /// Returns why the lock is no longer held, `None` while it is.
    pub fn lost_reason(&self) -> Option<LostReason> {
        let ended = || self.0.expiry.ended(|until| self.late(until));
        // The end is written down before the tasks that wait for it are woken.
        reason(shielded(ended).unwrap_or_else(ended))
    }

    /// Returns how much longer the lock is certainly held if it is neither renewed before then nor
    /// taken away. Zero once it is lost.
    pub fn remaining(&self) -> Duration {
        match self.is_held() {
            true => self.until().since(Time::now()),
            false => Duration::ZERO,
        }
    }

    /// Waits until the lock is no longer held, and returns why.
    ///
    /// It returns before Redis can have given the lock to another holder: the lease is counted from
    /// before its command was sent, and 1 % of it, 2 ms and a margin (a twentieth of the time to
    /// live, at most 100 ms) are kept back. If another client deletes or overwrites the lock in
    /// Redis, it returns at the next renewal at the latest.
    ///
    /// # Example
    ///
    /// ```
    /// use tower_distributed_lock::Lease;
    ///
    /// /// Reads what another service sends for as long as the lock is held.
    /// async fn follow(lease: &Lease) {
    ///     tokio::select! {
    ///         () = read_events() => {}
    ///         reason = lease.lost() => eprintln!("stopped: {reason:?}"),
    ///     }
    /// }
    /// # async fn read_events() {}
    /// ```
    pub async fn lost(&self) -> LostReason {
        loop {
            let ended = self.0.expiry.notified();
            if let Some(reason) = self.lost_reason() {
                return reason;
            }
            tokio::select! {
                () = ended => {}
                () = tokio::time::sleep_until(self.until().instant()) => {}
            }
        }
    }

    /// Takes the lock over from the [`DistributedLockLayer`](crate::DistributedLockLayer) that
    /// holds it for this request: it stays held for as long as the returned guard lives, and the
    /// layer no longer releases it. For work that goes on after the response, such as a WebSocket.
    ///
    /// Returns `None` if the layer has no lock to give: it was taken over before, or is lost, or
    /// the layer has released it; or this lease is of a guard, or of an
    /// [`IdempotencyLayer`](crate::IdempotencyLayer).
    ///
    /// Of several locks, this takes over one, and the layer goes on to hold the others:
    /// [`Leases::take_over`] takes over all.
    ///
    /// The layer still stops the handler when the lock is lost. Nothing stops what goes on after
    /// the response: it has to watch [`LockGuard::lost`]. A lock is lost when it has been held for
    /// [`max_hold`](crate::LockManagerBuilder::max_hold), by default five minutes.
    ///
    /// # Example
    ///
    /// ```
    /// use axum::Extension;
    /// use axum::http::StatusCode;
    /// use tower_distributed_lock::Lease;
    ///
    /// async fn begin_export(Extension(lease): Extension<Lease>) -> StatusCode {
    ///     let Some(guard) = lease.take_over() else {
    ///         return StatusCode::SERVICE_UNAVAILABLE;
    ///     };
    ///     tokio::spawn(async move {
    ///         tokio::select! {
    ///             () = export() => {}
    ///             reason = guard.lost() => eprintln!("stopped: the lock was lost ({reason:?})"),
    ///         }
    ///         // The guard is dropped here, and releases the lock.
    ///     });
    ///     StatusCode::ACCEPTED
    /// }
    /// # async fn export() {}
    /// # let _ = begin_export;
    /// ```
    pub fn take_over(&self) -> Option<LockGuard> {
        if !self.is_held() {
            return None;
        }
        let is_accepted = self.0.offer.accept();
        is_accepted.then(|| LockGuard::new(self.clone()))
    }

    /// Lets the handler [take the lock over](Self::take_over).
    pub(crate) fn offer(&self) {
        self.0.offer.make();
    }

    /// Gives a lock back that was taken over. Returns whether the layer is still there to hold it.
    pub(crate) fn give_back(&self) -> bool {
        self.0.offer.give_back()
    }

    /// Ends the offer. Returns whether the handler has taken the lock over.
    pub(crate) fn withdraw(&self) -> bool {
        self.0.offer.withdraw()
    }

    /// Returns whether the handler has taken the lock over.
    pub(crate) fn is_taken_over(&self) -> bool {
        self.0.offer.is_accepted()
    }

    /// Returns whether the layer that holds this lock has lost it. A lock that the handler has
    /// taken over and released is not lost.
    pub(crate) fn is_lost_to_layer(&self) -> bool {
        match self.lost_reason() {
            None => false,
            Some(LostReason::Released) => !self.is_taken_over(),
            Some(_) => true,
        }
    }

    /// Waits until the layer that holds this lock has lost it.
    pub(crate) async fn lost_to_layer(&self) {
        self.lost().await;
        if !self.is_lost_to_layer() {
            // It ended as it should, and cannot be lost any more.
            std::future::pending::<()>().await;
        }
    }

    fn until(&self) -> Time {
        Time::from_nanos(self.0.expiry.valid_until())
    }

    /// Returns the reason for the loss, if `until` has passed.
    fn late(&self, until: u64) -> Option<u8> {
        let now = Time::now_for_certain();
        (now >= Time::from_nanos(until)).then(|| match now >= self.0.grant.limit {
            true => code(LostReason::MaxHold),
            false => code(LostReason::Expired),
        })
    }

    /// Measures how long the lock has been held.
    #[cfg(any(feature = "tracing", feature = "metrics"))]
    pub(crate) fn age(&self) -> &Stopwatch {
        &self.0.age
    }

    /// Returns what this lock is counted under.
    #[cfg(any(feature = "tracing", feature = "metrics", feature = "inspector"))]
    pub(crate) fn meter(&self) -> &Meter {
        &self.0.meter
    }

    /// Returns how the lock came.
    #[cfg(any(feature = "tracing", feature = "metrics", feature = "inspector"))]
    pub(crate) fn path(&self) -> GrantPath {
        self.0.path
    }

    /// Returns true the first time: a lock that is lost is released afterwards, and ends once.
    pub(crate) fn is_first_end(&self) -> bool {
        !self.0.is_end_told.swap(true, Ordering::Relaxed)
    }

    /// Returns why the lease ended, as far as that was noticed. Does not read the clock.
    pub(crate) fn noticed_end(&self) -> Option<LostReason> {
        reason(self.0.expiry.ended(|_| None))
    }

    pub(crate) fn extend(&self, until: Time) {
        let late = |until| self.late(until);
        shielded(|| self.0.expiry.extend(until.as_nanos(), late));
    }

    pub(crate) fn end(&self, why: LostReason) {
        shielded(|| self.0.expiry.end(code(why)));
    }

    /// Returns whether this is a lease on that key, by that manager.
    pub(crate) fn is_on(&self, manager: u64, key: &LockKey) -> bool {
        self.0.core.id == manager && self.0.key == *key
    }

    pub(crate) fn grant(&self) -> Grant {
        self.0.grant
    }

    /// Returns what the managers share of which this lock is.
    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.0.core
    }
}

// A panic leaves no half of a change behind: a lease is changed by single writes to atomics, and
// the manager's core expects panics of its callers.
impl std::panic::UnwindSafe for State {}
impl std::panic::RefUnwindSafe for State {}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("key", self.key())
            .field("fencing_token", &self.fencing_token())
            .field("lost_reason", &self.lost_reason())
            .finish()
    }
}
