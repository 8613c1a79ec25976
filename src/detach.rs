//! Middleware that lets a request run to its end when its client leaves.
//!
//! A server drops the future of a request whose client has gone away. The work stops where it
//! awaits, perhaps half done, and a lock that it holds is released. [`DetachLayer`] runs each
//! request in a task of its own, which goes on.
//!
//! Place it *outside* a [`DistributedLockLayer`](crate::DistributedLockLayer): the request then
//! runs to its end with its lock. Inside it would be wrong: the lock would be released while the
//! work goes on. An [`IdempotencyLayer`](crate::IdempotencyLayer) needs none: it does the same for
//! the requests that it runs, unless they run under a lock already.

use std::fmt;
use std::panic::resume_unwind;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::task::JoinHandle;
use tower::Service;
use tower_layer::Layer;

/// Runs each request in a task of its own, which goes on when the client leaves.
///
/// It belongs outside a [`DistributedLockLayer`](crate::DistributedLockLayer): see the
/// [module](self).
///
/// Only the handler is detached: a response body that the client no longer reads is dropped. A
/// handler that panics does so for its caller too, if that is still there.
///
/// # Panics
///
/// The service panics if it is called outside a tokio runtime.
///
/// # Example
///
/// ```
/// use axum::{Router, routing::post};
/// use tower::ServiceBuilder;
/// use tower_distributed_lock::{DetachLayer, DistributedLockLayer, LockManager, key};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let locks = LockManager::in_memory();
/// let app: Router = Router::new().route("/orders/{id}", post(|| async {})).route_layer(
///     ServiceBuilder::new()
///         .layer(DetachLayer::new()) // the first layer of a ServiceBuilder is the outermost
///         .layer(DistributedLockLayer::new(locks, key::path("/orders/{id}"))),
/// );
/// # let _ = app;
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default)]
#[must_use = "a layer does nothing until it wraps a service"]
pub struct DetachLayer {
    _private: (),
}

impl DetachLayer {
    /// Makes the layer. It has no settings.
    pub fn new() -> Self {
        Self::default()
    }
}

impl<S> Layer<S> for DetachLayer {
    type Service = Detach<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Detach { inner }
    }
}

/// Runs each request of the service inside in a task of its own. Made by a [`DetachLayer`].
#[derive(Clone, Debug)]
pub struct Detach<S> {
    inner: S,
}

impl<S> Detach<S> {
    /// Returns a reference to the service inside.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// Returns a mutable reference to the service inside. A request that is sent through it stops
    /// when its client leaves.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// Returns the service inside. Requests that were called before run to their end.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<S, R> Service<R> for Detach<S>
where
    S: Service<R>,
    S::Future: Send + 'static,
    S::Response: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = DetachFuture<S::Response, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> Self::Future {
        DetachFuture::spawn(self.inner.call(request))
    }
}

/// The response of a [`Detach`]. Dropped before it is ready, it leaves the request running.
pub struct DetachFuture<T, E> {
    task: JoinHandle<Result<T, E>>,
}

impl<T: Send + 'static, E: Send + 'static> DetachFuture<T, E> {
    /// Starts the work in a task of its own, in the current span.
    pub(crate) fn spawn(work: impl Future<Output = Result<T, E>> + Send + 'static) -> Self {
        Self {
            task: tokio::spawn(crate::observe::in_current_span(work)),
        }
    }
}

impl<T, E> Future for DetachFuture<T, E> {
    type Output = Result<T, E>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match ready!(Pin::new(&mut self.task).poll(cx)) {
            Ok(result) => Poll::Ready(result),
            Err(error) if error.is_panic() => resume_unwind(error.into_panic()),
            // The runtime is shutting down, and this task with it.
            Err(_) => Poll::Pending,
        }
    }
}

impl<T, E> fmt::Debug for DetachFuture<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DetachFuture").finish_non_exhaustive()
    }
}
