//! [`HeldLock`]: the lock of one request.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use crate::error::ErrorKind;
use crate::http::OnLost;
use crate::lease::{Lease, LostReason};
use crate::manager::LockGuard;

/// `Sync`, so that response bodies are: boxed bodies often have to be.
pub(super) type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send + Sync>>;

/// A lock that a request holds, and the signal of its loss. Released when dropped.
pub(super) struct HeldLock {
    guard: LockGuard,
    /// Made when it is first waited for: most requests end before.
    lost: Option<BoxFuture<LostReason>>,
    on_lost: OnLost,
    #[cfg(feature = "tracing")]
    span: tracing::Span,
}

impl HeldLock {
    pub(super) fn new(mut guard: LockGuard, on_lost: OnLost) -> Self {
        guard.offer();
        Self {
            #[cfg(feature = "tracing")]
            span: crate::observe::span(guard.lease()),
            guard,
            lost: None,
            on_lost,
        }
    }

    /// Waits until the request must end because the lock is lost: never, with [`OnLost::Continue`].
    pub(super) fn poll_lost(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.on_lost == OnLost::Continue {
            return Poll::Pending;
        }
        let lost = self.lost.get_or_insert_with(|| {
            let lease: Lease = self.guard.lease().clone();
            Box::pin(async move { lease.lost().await })
        });
        if ready!(lost.as_mut().poll(cx)) == LostReason::Released && self.is_taken_over() {
            // It ended as it should, and cannot be lost any more.
            self.on_lost = OnLost::Continue;
            return Poll::Pending;
        }
        Poll::Ready(())
    }

    /// Whether the request must end because the lock is lost. It reads the clock, and is never
    /// late.
    pub(super) fn is_lost(&self) -> bool {
        self.on_lost == OnLost::Cancel
            && match self.guard.lease().lost_reason() {
                None => false,
                Some(LostReason::Released) => !self.is_taken_over(),
                Some(_) => true,
            }
    }

    /// Whether the handler releases the lock, and not the layer.
    pub(super) fn is_taken_over(&self) -> bool {
        self.guard.lease().is_taken_over()
    }

    /// Releases the lock. Returns whether the request must end because the lock was lost before.
    pub(super) fn release(self) -> BoxFuture<bool> {
        Box::pin(async move {
            if self.guard.lease().withdraw() {
                return false;
            }
            let released = self.guard.release().await;
            let is_lost = released.is_err_and(|error| error.kind() == ErrorKind::Lost);
            self.on_lost == OnLost::Cancel && is_lost
        })
    }

    /// Runs a piece of the request's work in the lock's span.
    pub(super) fn enter<T>(&self, work: impl FnOnce() -> T) -> T {
        #[cfg(feature = "tracing")]
        let _entered = self.span.enter();
        work()
    }
}
