//! [`InspectorBody`]: what an inspector responds with.

use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::events::Events;

/// The body of an [`Inspector`](super::Inspector)'s response: the page, JSON, or events that go on.
pub struct InspectorBody(Kind);

enum Kind {
    Whole(Bytes),
    Events(Box<Events>),
}

impl InspectorBody {
    pub(super) fn whole(content: impl Into<Bytes>) -> Self {
        Self(Kind::Whole(content.into()))
    }

    pub(super) fn events(events: Events) -> Self {
        Self(Kind::Events(Box::new(events)))
    }
}

impl Body for InspectorBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let data = match &mut self.0 {
            Kind::Whole(content) if content.is_empty() => Poll::Ready(None),
            Kind::Whole(content) => Poll::Ready(Some(std::mem::take(content))),
            Kind::Events(events) => events.poll_next(cx),
        };
        data.map(|data| data.map(|data| Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(&self.0, Kind::Whole(content) if content.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Whole(content) => SizeHint::with_exact(content.len() as u64),
            Kind::Events(_) => SizeHint::default(),
        }
    }
}

impl fmt::Debug for InspectorBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InspectorBody").finish_non_exhaustive()
    }
}
