//! [`IdempotencyBody`]: a body that is here already, or one that passes through.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tower::BoxError;

use crate::http::{Content, Frames, Rest, Whole};

pin_project! {
    /// The body of the requests and of the responses of an [`Idempotency`](super::Idempotency): one that was read to its
    /// end before, or that of the other side, as it is.
    pub struct IdempotencyBody<B> {
        #[pin]
        content: Content<B>,
    }
}

impl<B> IdempotencyBody<B> {
    pub(super) fn whole(whole: Whole) -> Self {
        let content = Content::Whole { whole };
        Self { content }
    }

    pub(super) fn through(body: B) -> Self {
        let content = Content::Through { body };
        Self { content }
    }

    pub(super) fn begun(begun: Frames, rest: Rest<B>) -> Self {
        let content = Content::Begun { begun, rest };
        Self { content }
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

impl<B> fmt::Debug for IdempotencyBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdempotencyBody").finish_non_exhaustive()
    }
}
