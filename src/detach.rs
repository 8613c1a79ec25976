//! [`DetachLayer`]: requests that run to their end.

use std::fmt;
use std::panic::resume_unwind;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::task::JoinHandle;
use tower::Service;
use tower_layer::Layer;

/// Runs each request in a task of its own, which goes on when the client leaves.
///
/// A server drops the future of a request whose client has gone away, and the work stops where it awaits, half
/// done perhaps. Put this layer *outside* of a [`DistributedLockLayer`](crate::DistributedLockLayer), and the request runs to
/// its end, with its lock. Inside it would be wrong: the lock would be released while the work goes on.
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
///
/// Only the handler is detached: a body that nobody reads is dropped. A handler that panics does so for its caller
/// too, if that is still there. Requests must be made inside of a tokio runtime.
#[derive(Clone, Copy, Debug, Default)]
#[must_use = "a layer does nothing until it wraps a service"]
pub struct DetachLayer {
    _private: (),
}

impl DetachLayer {
    /// The layer. It has no settings.
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

/// The response of a [`Detach`].
pub struct DetachFuture<T, E> {
    task: JoinHandle<Result<T, E>>,
}

impl<T: Send + 'static, E: Send + 'static> DetachFuture<T, E> {
    pub(crate) fn spawn(work: impl Future<Output = Result<T, E>> + Send + 'static) -> Self {
        Self {
            task: tokio::spawn(crate::trace::in_current_span(work)),
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
