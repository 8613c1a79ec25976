//! Reads bodies to their end, up to a limit.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::Poll;

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame};
use tower::BoxError;

use super::body::{IdempotencyBody, Rest};
use super::record::Whole;

/// Why a request's body is not here.
pub(super) enum NotRead {
    TooLong,
    Broken,
}

/// Reads a request's body. One that says that it is too long is not touched.
pub(super) async fn request<B>(body: B, limit: usize) -> Result<Whole, NotRead>
where
    B: Body<Data = Bytes>,
{
    if body.size_hint().lower() > limit as u64 {
        return Err(NotRead::TooLong);
    }
    let mut body = Box::pin(body);
    let mut frames = Frames::default();
    while let Some(frame) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        frames.push(frame.map_err(|_| NotRead::Broken)?);
        if frames.length > limit {
            return Err(NotRead::TooLong);
        }
    }
    Ok(frames.join())
}

/// What became of a response's body.
pub(super) enum Response<B> {
    Whole(Whole),
    /// It goes on for longer than it can be kept, or nobody knows for how long.
    Stream(IdempotencyBody<B>),
    /// It ends with an error.
    Broken(IdempotencyBody<B>),
}

/// Reads a response's body if it is known to end within the limit, or all of it is there at once.
pub(super) async fn response<B>(body: B, limit: usize) -> Response<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let hint = body.size_hint();
    if hint.lower() > limit as u64 {
        return Response::Stream(IdempotencyBody::through(body));
    }
    let may_wait = hint.exact().is_some();
    let mut body = Box::pin(body);
    let mut frames = Frames::default();
    loop {
        let next = poll_fn(|cx| match body.as_mut().poll_frame(cx) {
            Poll::Pending if !may_wait => Poll::Ready(None),
            frame => frame.map(Some),
        });
        match next.await {
            Some(None) => return Response::Whole(frames.join()),
            Some(Some(Ok(frame))) => {
                frames.push(frame);
                if frames.length <= limit {
                    continue;
                }
            }
            Some(Some(Err(error))) => {
                let rest = Rest::Error(error.into());
                return Response::Broken(IdempotencyBody::begun(frames.frames, rest));
            }
            None => {}
        }
        return Response::Stream(IdempotencyBody::begun(frames.frames, Rest::Body(body)));
    }
}

#[derive(Default)]
struct Frames {
    frames: VecDeque<Frame<Bytes>>,
    length: usize,
}

impl Frames {
    fn push(&mut self, frame: Frame<Bytes>) {
        self.length += frame.data_ref().map_or(0, Bytes::len);
        self.frames.push_back(frame);
    }

    fn join(self) -> Whole {
        let mut whole = Whole::default();
        let mut parts = Vec::with_capacity(self.frames.len());
        for frame in self.frames {
            match frame.into_data() {
                Ok(data) => parts.push(data),
                Err(frame) => whole.trailers = frame.into_trailers().ok(),
            }
        }
        whole.data = match parts.len() {
            1 => parts.remove(0),
            _ => {
                let mut joined = BytesMut::with_capacity(self.length);
                parts.iter().for_each(|part| joined.extend_from_slice(part));
                joined.freeze()
            }
        };
        whole
    }
}
