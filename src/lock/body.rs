//! [`ResponseBody`]: keeps the lock until the response has been sent.

use std::fmt;
use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tower::BoxError;

use super::held::{BoxFuture, Held};
use crate::error::{Error, ErrorKind};
use crate::http::{Content, Frames, Rest};

/// How much memory a body may take in several frames until it is released, in bytes.
const KEPT_BACK: usize = 64 * 1024;

pin_project! {
    /// The body of a response of a [`DistributedLock`](crate::lock::DistributedLock): that of the service inside, or of a rejection.
    ///
    /// With [`Hold::Body`](crate::lock::Hold::Body) it holds the lock until its end or until it is dropped, whichever is first.
    ///
    /// # Errors
    ///
    /// Those of the body inside; and, with [`OnLost::Cancel`](crate::lock::OnLost::Cancel), an [`Error`] of kind
    /// [`ErrorKind::Lost`] when the lock is lost, so that the client notices that the body is not whole.
    pub struct ResponseBody<B> {
        // Dropped in order: the work ends before its lock does.
        #[pin]
        content: Content<B>,
        lock: Lock,
    }
}

enum Lock {
    None,
    Held {
        held: Held,
        release_first: bool,
        /// Bytes left until the client takes the body for whole, if it counts them.
        left: Option<u64>,
    },
    /// The end of the body is kept back until the lock is released.
    Releasing {
        is_lost: BoxFuture<bool>,
        end: Option<Result<Frame<Bytes>, BoxError>>,
    },
}

impl<B> ResponseBody<B> {
    pub(crate) fn unlocked(content: Content<B>) -> Self {
        let lock = Lock::None;
        Self { content, lock }
    }

    pub(crate) fn locked(
        content: Content<B>,
        held: Held,
        release_first: bool,
        left: Option<u64>,
    ) -> Self {
        let lock = Lock::Held {
            held,
            release_first,
            left,
        };
        Self { content, lock }
    }
}

/// Takes what is there of a body at once, and tells whether it is at its end.
///
/// In one piece, as a server then sends it with its head; or as it came, with more behind it.
pub(crate) fn take<B>(
    body: B,
    last_byte: Option<u64>,
    held: &Held,
    cx: &mut Context<'_>,
) -> (Content<B>, bool)
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let mut body = Box::pin(body);
    let mut begun = Frames::default();
    let mut left = last_byte;
    // A body that is there already may be of any size, if it is one frame.
    while begun.count() < 2 || begun.memory() <= KEPT_BACK {
        let Poll::Ready(frame) = held.enter(|| body.as_mut().poll_frame(cx)) else {
            break;
        };
        let is_last = match frame {
            None => true,
            Some(Err(error)) => {
                let rest = Rest::Error(error.into());
                return (Content::Begun { begun, rest }, true);
            }
            Some(Ok(frame)) => {
                let is_last = is_last(&frame, &mut left) || body.is_end_stream();
                begun.push(frame);
                is_last
            }
        };
        if is_last && left.is_some_and(|left| left > 0) {
            // The client is to notice: no length is told but that of the head.
            let rest = Rest::End;
            return (Content::Begun { begun, rest }, true);
        }
        if is_last {
            let mut whole = begun.join();
            if let Some(end) = last_byte {
                whole.data.truncate(end as usize);
            }
            return (Content::Whole { whole }, true);
        }
        if held.is_lost() {
            break;
        }
    }
    let rest = Rest::Body(body);
    (Content::Begun { begun, rest }, false)
}

/// Whether the client takes this frame for the last, of a body with so many bytes left before it.
fn is_last(frame: &Frame<Bytes>, left: &mut Option<u64>) -> bool {
    if let (Some(left), Some(data)) = (left.as_mut(), frame.data_ref()) {
        *left = left.saturating_sub(data.len() as u64);
    }
    frame.is_trailers() || *left == Some(0)
}

fn lost() -> BoxError {
    Error::of(ErrorKind::Lost).into()
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
        if let Lock::Held { held, left, .. } = this.lock {
            let frame = match held.poll_lost(cx) {
                Poll::Ready(()) => None,
                Poll::Pending => {
                    let frame = held.enter(|| this.content.as_mut().poll_frame(cx));
                    Some(ready!(frame))
                }
            };
            // It may have blocked its thread for longer than the lease.
            let frame = match frame.filter(|_| !held.is_lost()) {
                Some(frame) => frame,
                None => Some(Err(lost())),
            };
            let is_last = match &frame {
                Some(Ok(frame)) => is_last(frame, left) || this.content.is_end_stream(),
                Some(Err(_)) | None => true,
            };
            if !is_last {
                return Poll::Ready(frame);
            }
            // The body is at an end, and dropped: its work ends before its lock does.
            this.content.set(Content::fixed(Bytes::new()));
            match mem::replace(this.lock, Lock::None) {
                Lock::Held {
                    held,
                    release_first: true,
                    ..
                } => {
                    let is_lost = held.release();
                    *this.lock = Lock::Releasing {
                        is_lost,
                        end: frame,
                    };
                }
                _ => return Poll::Ready(frame),
            }
        }
        let Lock::Releasing { is_lost, end } = this.lock else {
            return this.content.poll_frame(cx);
        };
        let end = match ready!(is_lost.as_mut().poll(cx)) {
            true => Some(Err(lost())),
            false => end.take(),
        };
        *this.lock = Lock::None;
        Poll::Ready(end)
    }

    fn is_end_stream(&self) -> bool {
        match &self.lock {
            Lock::None | Lock::Held { .. } => self.content.is_end_stream(),
            Lock::Releasing { .. } => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.lock {
            Lock::None | Lock::Held { .. } => self.content.size_hint(),
            Lock::Releasing { end, .. } => {
                let data = match end {
                    Some(Ok(frame)) => frame.data_ref().map_or(0, Bytes::len),
                    Some(Err(_)) | None => 0,
                };
                SizeHint::with_exact(data as u64)
            }
        }
    }
}

impl<B> fmt::Debug for ResponseBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseBody")
            .field("is_locked", &matches!(self.lock, Lock::Held { .. }))
            .finish_non_exhaustive()
    }
}
