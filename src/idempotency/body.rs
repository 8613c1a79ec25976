//! [`IdempotencyBody`]: a body that was read before, or one that passes through.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tower::BoxError;

use crate::http::{Collected, Content, Frames, Rest};

pin_project! {
    /// The body of the requests that an [`Idempotency`](super::Idempotency) passes on, and of the
    /// responses that it returns: one that was read to its end before, or that of the other side.
    ///
    /// # Errors
    ///
    /// Passes on the errors of the body of the other side.
    pub struct IdempotencyBody<B> {
        #[pin]
        content: Content<B>,
    }
}

impl<B> IdempotencyBody<B> {
    pub(super) fn passthrough(body: B) -> Self {
        let content = Content::Passthrough { body };
        Self { content }
    }

    pub(super) fn collected(collected: Collected) -> Self {
        let content = Content::Collected { collected };
        Self { content }
    }

    /// Makes a body whose first frames were read.
    pub(super) fn prefixed(prefix: Frames, rest: Rest<B>) -> Self {
        let content = Content::Prefixed { prefix, rest };
        Self { content }
    }

    /// Makes a body of data without trailers.
    pub(super) fn fixed(data: Bytes) -> Self {
        Self::collected(Collected::fixed(data))
    }
}

impl<B> Body for IdempotencyBody<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.project().content.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.content.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.content.size_hint()
    }
}

/// An empty body: layers outside that answer a request themselves need one, such as `Timeout`,
/// `Cors` and `ValidateRequestHeader` of tower-http.
impl<B> Default for IdempotencyBody<B> {
    fn default() -> Self {
        Self::fixed(Bytes::new())
    }
}

impl<B> fmt::Debug for IdempotencyBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdempotencyBody").finish_non_exhaustive()
    }
}
