//! [`HeldLock`]: the locks of one request.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use crate::error::{Error, ErrorKind};
use crate::http::OnLost;
use crate::lease::Lease;
use crate::manager::LockGuards;

/// `Sync`, so that response bodies are: boxed bodies often have to be.
pub(super) type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send + Sync>>;

/// The locks that a request holds, mostly one, and the signal of their loss. To lose one is to lose
/// all. Released when dropped.
pub(super) struct HeldLock {
    guards: LockGuards,
    /// Made when it is first waited for: most requests end before.
    lost: Option<BoxFuture<()>>,
    on_lost: OnLost,
    #[cfg(feature = "tracing")]
    span: tracing::Span,
}

impl HeldLock {
    pub(super) fn new(mut guards: LockGuards, on_lost: OnLost) -> Self {
        guards.offer();
        Self {
            #[cfg(feature = "tracing")]
            span: crate::observe::span(guards.leases().as_slice()),
            guards,
            lost: None,
            on_lost,
        }
    }

    /// Waits until the request must end because a lock is lost: never, with [`OnLost::Continue`].
    pub(super) fn poll_lost(&mut self, cx: &mut Context<'_>) -> Poll<Error> {
        if self.on_lost == OnLost::Continue {
            return Poll::Pending;
        }
        let lost = self.lost.get_or_insert_with(|| {
            let leases = self.guards.leases().clone();
            Box::pin(async move { leases.lost_to_layer().await })
        });
        ready!(lost.as_mut().poll(cx));
        Poll::Ready(self.loss().unwrap_or_else(|| Error::of(ErrorKind::Lost)))
    }

    /// Whether the request must end because a lock is lost. It reads the clock, and is never late.
    pub(super) fn is_lost(&self) -> bool {
        self.on_lost == OnLost::Cancel && self.guards.leases().iter().any(Lease::is_lost_to_layer)
    }

    /// Returns why the request must end, if it must because a lock is lost.
    pub(super) fn loss(&self) -> Option<Error> {
        let leases = self.guards.leases();
        self.is_lost().then(|| leases.loss())
    }

    /// Whether the handler releases the locks, and not the layer.
    pub(super) fn is_taken_over(&self) -> bool {
        self.guards.leases().iter().all(Lease::is_taken_over)
    }

    /// Releases the locks. Fails if the request must end because one was lost before.
    pub(super) fn release(mut self) -> BoxFuture<Result<(), Error>> {
        Box::pin(async move {
            self.guards.withdraw();
            match self.guards.release().await {
                Err(error) if error.kind() == ErrorKind::Lost && self.on_lost == OnLost::Cancel => {
                    Err(error)
                }
                _ => Ok(()),
            }
        })
    }

    /// Runs a piece of the request's work in the lock's span.
    pub(super) fn enter<T>(&self, work: impl FnOnce() -> T) -> T {
        #[cfg(feature = "tracing")]
        let _entered = self.span.enter();
        work()
    }
}
