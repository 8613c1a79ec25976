//! A service that notices a breach of the contract of [`Service`].

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::marker::PhantomData;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::Response;
use http_body_util::Full;
use tower::Service;

/// As strict as the contract allows: a clone is not ready, and one call uses readiness up.
pub struct Strict<R> {
    is_ready: bool,
    requests: PhantomData<fn(R)>,
}

impl<R> Default for Strict<R> {
    fn default() -> Self {
        Self {
            is_ready: false,
            requests: PhantomData,
        }
    }
}

impl<R> Clone for Strict<R> {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl<R> Service<R> for Strict<R> {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.is_ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: R) -> Self::Future {
        assert!(
            std::mem::take(&mut self.is_ready),
            "called without being ready"
        );
        ready(Ok(Response::new(Full::from("done"))))
    }
}
