//! [`ResponseBody`]: keeps the lock until the response has been sent.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tower::BoxError;

use crate::error::{Error, ErrorKind};
use crate::future::{BoxFuture, Held};

pin_project! {
    /// The body of a response of a [`DistributedLock`](crate::DistributedLock): that of the service inside, or of a rejection.
    ///
    /// With [`Hold::Body`](crate::Hold::Body) it holds the lock until its end or until it is dropped, whichever is first.
    ///
    /// # Errors
    ///
    /// Those of the body inside; and, with [`OnLost::Cancel`](crate::OnLost::Cancel), an [`Error`] of kind
    /// [`ErrorKind::Lost`] when the lock is lost, so that the client notices that the body is not whole.
    pub struct ResponseBody<B> {
        // Dropped in order: the work ends before its lock does.
        #[pin]
        content: Content<B>,
        held: Option<Held>,
        release_first: bool,
        releasing: Option<Releasing>,
        // Bytes left of the length that the headers announce: without them, the client has the whole body.
        announced: Option<u64>,
    }
}

pin_project! {
    #[project = ContentProj]
    enum Content<B> {
        Inner { #[pin] body: B },
        Fixed { bytes: Option<Bytes> },
    }
}

/// The end of the body, kept back until the lock is released.
struct Releasing {
    released: BoxFuture<()>,
    last: Option<Frame<Bytes>>,
}

impl<B> ResponseBody<B> {
    pub(crate) fn fixed(bytes: Bytes) -> Self {
        let content = Content::Fixed {
            bytes: Some(bytes).filter(|bytes| !bytes.is_empty()),
        };
        Self::new(content, None)
    }

    pub(crate) fn passed(body: B) -> Self {
        Self::new(Content::Inner { body }, None)
    }

    pub(crate) fn locked(body: B, held: Held, release_first: bool, announced: Option<u64>) -> Self {
        Self {
            release_first,
            announced,
            ..Self::new(Content::Inner { body }, Some(held))
        }
    }

    fn new(content: Content<B>, held: Option<Held>) -> Self {
        Self {
            content,
            held,
            release_first: false,
            releasing: None,
            announced: None,
        }
    }
}

impl<B> Body for ResponseBody<B>
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
        let mut this = self.project();
        if this.releasing.is_none() {
            let mut body = match this.content.as_mut().project() {
                ContentProj::Inner { body } => body,
                ContentProj::Fixed { bytes } => {
                    return Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes))));
                }
            };
            let Some(held) = this.held else {
                return body.poll_frame(cx).map_err(Into::into);
            };
            if held.poll_lost(cx).is_ready() {
                this.content.set(Content::Fixed { bytes: None });
                *this.held = None;
                return Poll::Ready(Some(Err(Error::of(ErrorKind::Lost).into())));
            }
            let frame = ready!(held.enter(|| body.as_mut().poll_frame(cx)));
            let is_last = match &frame {
                Some(Ok(frame)) => {
                    if let (Some(left), Some(data)) = (this.announced.as_mut(), frame.data_ref()) {
                        *left = left.saturating_sub(data.len() as u64);
                    }
                    frame.is_trailers() || *this.announced == Some(0) || body.is_end_stream()
                }
                Some(Err(_)) | None => true,
            };
            if !is_last {
                return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
            }
            // The body is at an end, and dropped: its work ends before its lock does.
            this.content.set(Content::Fixed { bytes: None });
            let held = this.held.take().filter(|_| *this.release_first);
            let last = match frame {
                Some(Ok(last)) => Some(last),
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                None => None,
            };
            let Some(held) = held else {
                return Poll::Ready(last.map(Ok));
            };
            let released = held.release();
            *this.releasing = Some(Releasing { released, last });
        }
        let Some(releasing) = this.releasing else {
            return Poll::Ready(None);
        };
        ready!(releasing.released.as_mut().poll(cx));
        let last = releasing.last.take();
        *this.releasing = None;
        Poll::Ready(last.map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Inner { body } => body.is_end_stream(),
            Content::Fixed { bytes } => self.releasing.is_none() && bytes.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        let kept_back = self.releasing.as_ref().map(|releasing| {
            let data = releasing.last.as_ref().and_then(Frame::data_ref);
            data.map_or(0, Bytes::len)
        });
        match (&self.content, kept_back) {
            (_, Some(length)) => SizeHint::with_exact(length as u64),
            (Content::Inner { body }, None) => body.size_hint(),
            (Content::Fixed { bytes }, None) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64)
            }
        }
    }
}

impl<B> fmt::Debug for ResponseBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseBody")
            .field("is_locked", &self.held.is_some())
            .finish_non_exhaustive()
    }
}
