//! [`Held`]: the lock of one request.

use std::pin::Pin;
use std::task::{Context, Poll};

use crate::error::ErrorKind;
use crate::http::OnLost;
use crate::lease::{Lease, LostReason};
use crate::manager::LockGuard;

/// `Sync`, so that bodies are: boxed bodies often have to be.
pub(crate) type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send + Sync>>;

/// A lock held by a request, and the signal of its loss.
pub(crate) struct Held {
    guard: LockGuard,
    /// Made when it is first waited for: most requests are over before.
    lost: Option<BoxFuture<LostReason>>,
    on_lost: OnLost,
    #[cfg(feature = "tracing")]
    span: tracing::Span,
}

impl Held {
    pub(super) fn new(guard: LockGuard, on_lost: OnLost) -> Self {
        Self {
            #[cfg(feature = "tracing")]
            span: crate::trace::span(guard.key(), guard.fencing_token()),
            guard,
            lost: None,
            on_lost,
        }
    }

    /// Whether the request must end because the lock is lost. If not, the task is woken when it must.
    pub(crate) fn poll_lost(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.on_lost == OnLost::Continue {
            return Poll::Pending;
        }
        let lost = self.lost.get_or_insert_with(|| {
            let lease: Lease = self.guard.lease().clone();
            Box::pin(async move { lease.lost().await })
        });
        lost.as_mut().poll(cx).map(drop)
    }

    /// Whether that is so by now, without waiting for it.
    pub(crate) fn is_lost(&self) -> bool {
        self.on_lost == OnLost::Cancel && !self.guard.lease().is_held()
    }

    /// Releases the lock, and tells whether the request must end because it was lost before.
    pub(crate) fn release(self) -> BoxFuture<bool> {
        Box::pin(async move {
            let released = self.guard.release().await;
            let is_lost = released.is_err_and(|error| error.kind() == ErrorKind::Lost);
            self.on_lost == OnLost::Cancel && is_lost
        })
    }

    pub(crate) fn enter<T>(&self, poll: impl FnOnce() -> T) -> T {
        #[cfg(feature = "tracing")]
        let _entered = self.span.enter();
        poll()
    }
}
