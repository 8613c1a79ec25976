//! [`IdempotencyFuture`]: one request on its way through the middleware.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::Response;
use pin_project_lite::pin_project;

use super::body::IdempotencyBody;

pin_project! {
    /// The response of an [`Idempotency`](super::Idempotency).
    ///
    /// If this is dropped before it is ready, a request with a key goes on to its end, and its
    /// response is stored, if it runs; if it waits, it stops waiting. A request without a key is
    /// dropped with its handler.
    pub struct IdempotencyFuture<F, T, E> {
        #[pin]
        state: State<F, T, E>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F, T, E> {
        Passthrough { #[pin] inner: F },
        Once { once: BoxFuture<Result<T, E>> },
    }
}

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl<F, T, E> IdempotencyFuture<F, T, E> {
    /// Makes the response to a request that does not concern the layer.
    pub(super) fn passthrough(inner: F) -> Self {
        let state = State::Passthrough { inner };
        Self { state }
    }

    /// Makes the response to a request that may have a key.
    pub(super) fn once(once: impl Future<Output = Result<T, E>> + Send + 'static) -> Self {
        let once: BoxFuture<_> = Box::pin(once);
        let state = State::Once { once };
        Self { state }
    }
}

impl<F, B, E> Future for IdempotencyFuture<F, Response<IdempotencyBody<B>>, E>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<IdempotencyBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProj::Passthrough { inner } => inner
                .poll(cx)
                .map_ok(|response| response.map(IdempotencyBody::passthrough)),
            StateProj::Once { once } => once.as_mut().poll(cx),
        }
    }
}

impl<F, T, E> fmt::Debug for IdempotencyFuture<F, T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdempotencyFuture").finish_non_exhaustive()
    }
}
