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
    let mut joined = Joined::default();
    let mut trailers = None;
    while let Some(frame) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        match frame.map_err(|_| NotRead::Broken)?.into_data() {
            Ok(data) => joined.push(data),
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
        if joined.length() > limit {
            return Err(NotRead::TooLong);
        }
    }
    let data = joined.finish();
    Ok(Whole { data, trailers })
}

/// Data in one piece. The first is not copied, as mostly it is all.
#[derive(Default)]
struct Joined {
    first: Bytes,
    all: BytesMut,
}

impl Joined {
    fn push(&mut self, data: Bytes) {
        if self.length() == 0 {
            self.first = data;
            return;
        }
        if self.all.is_empty() {
            self.all.extend_from_slice(&self.first);
        }
        self.all.extend_from_slice(&data);
    }

    fn length(&self) -> usize {
        self.first.len().max(self.all.len())
    }

    fn finish(self) -> Bytes {
        match self.all.is_empty() {
            true => self.first,
            false => self.all.freeze(),
        }
    }
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
        let mut joined = Joined::default();
        let mut trailers = None;
        for frame in self.frames {
            match frame.into_data() {
                Ok(data) => joined.push(data),
                Err(frame) => trailers = frame.into_trailers().ok(),
            }
        }
        let data = joined.finish();
        Whole { data, trailers }
    }
}
