//! [`ResponseBody`]: keeps the lock until the response has been sent.

use std::fmt;
use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tower::BoxError;

use super::collect::is_last;
use super::held_lock::{BoxFuture, HeldLock};
use crate::error::Error;
use crate::http::Content;

/// A frame, an error, or the end of a body.
type NextFrame = Option<Result<Frame<Bytes>, BoxError>>;

pin_project! {
    /// The body of a response of a [`DistributedLock`](super::DistributedLock): that of the service
    /// inside, or of a rejection.
    ///
    /// With [`Hold::Body`](super::Hold::Body) it holds the lock until it ends or is dropped,
    /// whichever is first.
    ///
    /// # Errors
    ///
    /// Passes on the errors of the body inside. With [`OnLost::Cancel`](super::OnLost::Cancel), it
    /// ends with an [`Error`] of kind [`Lost`](crate::ErrorKind::Lost) when the lock is lost, so
    /// that the client notices that the body is not complete.
    pub struct ResponseBody<B> {
        // Dropped in this order: the work ends before its lock does.
        #[pin]
        content: Content<B>,
        lock: Lock,
    }
}

enum Lock {
    None,
    Held {
        lock: HeldLock,
        release_first: bool,
        /// How many bytes the client still expects, if it counts them.
        left: Option<u64>,
    },
    /// The last frame is kept back until Redis has released the lock.
    Releasing {
        released: BoxFuture<Result<(), Error>>,
        last: NextFrame,
    },
}

impl<B> ResponseBody<B> {
    pub(super) fn unlocked(content: Content<B>) -> Self {
        let lock = Lock::None;
        Self { content, lock }
    }

    /// Makes a body that holds the lock until its end. With `release_first`, its last frame waits
    /// until Redis has released the lock.
    pub(super) fn locked(
        content: Content<B>,
        lock: HeldLock,
        release_first: bool,
        last_byte: Option<u64>,
    ) -> Self {
        let lock = Lock::Held {
            lock,
            release_first,
            left: last_byte,
        };
        Self { content, lock }
    }
}

impl<B> Body for ResponseBody<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<NextFrame> {
        let mut this = self.project();
        match this.lock {
            Lock::None => return this.content.poll_frame(cx),
            Lock::Releasing { .. } => {}
            Lock::Held { lock, left, .. } => {
                let frame = ready!(poll_under_lock(this.content.as_mut(), lock, cx));
                let is_end = match &frame {
                    Some(Ok(frame)) => is_last(frame, left) || this.content.is_end_stream(),
                    Some(Err(_)) | None => true,
                };
                if !is_end {
                    return Poll::Ready(frame);
                }
                // The body has ended, and is dropped: the work ends before its lock does.
                this.content.set(Content::fixed(Bytes::new()));
                if let Some(frame) = this.lock.end(frame) {
                    return Poll::Ready(frame);
                }
            }
        }
        this.lock.poll_released(cx)
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
            Lock::Releasing { last, .. } => {
                let data = match last {
                    Some(Ok(frame)) => frame.data_ref().map_or(0, Bytes::len),
                    Some(Err(_)) | None => 0,
                };
                SizeHint::with_exact(data as u64)
            }
        }
    }
}

/// Polls the body for its next frame, unless the lock is lost: then that is the error.
fn poll_under_lock<B>(
    content: Pin<&mut Content<B>>,
    lock: &mut HeldLock,
    cx: &mut Context<'_>,
) -> Poll<NextFrame>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let end = |lost: Error| Some(Err(lost.into()));
    if let Some(lost) = lock.loss() {
        return Poll::Ready(end(lost));
    }
    match lock.enter(|| content.poll_frame(cx)) {
        // The body may have blocked its thread for longer than the lease.
        Poll::Ready(frame) => Poll::Ready(lock.loss().map_or(frame, end)),
        Poll::Pending => lock.poll_lost(cx).map(end),
    }
}

impl Lock {
    /// Begins the release of the lock. Returns the last frame if it may be sent at once; otherwise
    /// [`poll_released`](Self::poll_released) returns it.
    fn end(&mut self, last: NextFrame) -> Option<NextFrame> {
        match mem::replace(self, Self::None) {
            Self::Held {
                lock,
                release_first: true,
                ..
            } => {
                let released = lock.release();
                *self = Self::Releasing { released, last };
                None
            }
            // A lock that is still held is released in the background.
            Self::Held { .. } | Self::Releasing { .. } | Self::None => Some(last),
        }
    }

    /// Waits until Redis has released the lock. Returns the last frame, or an error if it turns out
    /// that the lock was lost.
    fn poll_released(&mut self, cx: &mut Context<'_>) -> Poll<NextFrame> {
        let Self::Releasing { released, last } = self else {
            return Poll::Ready(None);
        };
        let last = match ready!(released.as_mut().poll(cx)) {
            Err(lost) => Some(Err(lost.into())),
            Ok(()) => last.take(),
        };
        *self = Self::None;
        Poll::Ready(last)
    }
}

/// An empty body, without a lock: layers outside that answer a request themselves need one, such as
/// `Timeout`, `Cors` and `ValidateRequestHeader` of tower-http.
impl<B> Default for ResponseBody<B> {
    fn default() -> Self {
        Self::unlocked(Content::fixed(Bytes::new()))
    }
}

impl<B> fmt::Debug for ResponseBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseBody")
            .field("is_locked", &matches!(self.lock, Lock::Held { .. }))
            .finish_non_exhaustive()
    }
}
