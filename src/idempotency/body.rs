//! [`IdempotencyBody`]: a body that is here already, or one that passes through.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tower::BoxError;

use super::record::Whole;

pin_project! {
    /// The body of the requests and of the responses of an [`Idempotency`](super::Idempotency): one that was read to its
    /// end before, or that of the other side, as it is.
    pub struct IdempotencyBody<B> {
        #[pin]
        content: Content<B>,
    }
}

pin_project! {
    #[project = ContentProj]
    enum Content<B> {
        Whole { data: Bytes, trailers: Option<HeaderMap> },
        Through { #[pin] body: B },
        // What was read of it already goes first.
        Begun { begun: VecDeque<Frame<Bytes>>, rest: Rest<B> },
    }
}

/// What comes behind the frames that were read.
pub(super) enum Rest<B> {
    Body(Pin<Box<B>>),
    Error(BoxError),
    End,
}

impl<B> IdempotencyBody<B> {
    pub(super) fn whole(whole: Whole) -> Self {
        let Whole { data, trailers } = whole;
        let content = Content::Whole { data, trailers };
        Self { content }
    }

    pub(super) fn through(body: B) -> Self {
        let content = Content::Through { body };
        Self { content }
    }

    pub(super) fn begun(begun: VecDeque<Frame<Bytes>>, rest: Rest<B>) -> Self {
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
        match self.project().content.project() {
            ContentProj::Whole { data, .. } if !data.is_empty() => {
                Poll::Ready(Some(Ok(Frame::data(std::mem::take(data)))))
            }
            ContentProj::Whole { trailers, .. } => Poll::Ready(
                trailers
                    .take()
                    .map(|trailers| Ok(Frame::trailers(trailers))),
            ),
            ContentProj::Through { body } => body.poll_frame(cx).map_err(Into::into),
            ContentProj::Begun { begun, rest } => match begun.pop_front() {
                Some(frame) => Poll::Ready(Some(Ok(frame))),
                None => match rest {
                    Rest::Body(body) => body.as_mut().poll_frame(cx).map_err(Into::into),
                    Rest::Error(_) => {
                        let Rest::Error(error) = std::mem::replace(rest, Rest::End) else {
                            unreachable!("matched above");
                        };
                        Poll::Ready(Some(Err(error)))
                    }
                    Rest::End => Poll::Ready(None),
                },
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Whole { data, trailers } => data.is_empty() && trailers.is_none(),
            Content::Through { body } => body.is_end_stream(),
            Content::Begun { begun, rest } => {
                begun.is_empty()
                    && match rest {
                        Rest::Body(body) => body.is_end_stream(),
                        Rest::Error(_) => false,
                        Rest::End => true,
                    }
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            // With a length announced, HTTP/1 has no place for trailers.
            Content::Whole { data, trailers } => match trailers {
                None => SizeHint::with_exact(data.len() as u64),
                Some(_) => at_least(data.len()),
            },
            Content::Through { body } => body.size_hint(),
            Content::Begun { begun, .. } => at_least(
                begun
                    .iter()
                    .filter_map(Frame::data_ref)
                    .map(Bytes::len)
                    .sum(),
            ),
        }
    }
}

fn at_least(length: usize) -> SizeHint {
    let mut hint = SizeHint::new();
    hint.set_lower(length as u64);
    hint
}

impl<B> fmt::Debug for IdempotencyBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdempotencyBody").finish_non_exhaustive()
    }
}
