//! Reads bodies to their end, up to a limit.

use std::future::poll_fn;
use std::task::Poll;

use bytes::Bytes;
use http::response::Parts;
use http_body::Body;
use tower::BoxError;

use super::body::IdempotencyBody;
use crate::http::{Frames, Joined, Protocol, Rest, Whole};

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

/// What became of a response's body.
pub(super) enum Response<B> {
    Whole(Whole),
    /// It goes on for longer than it can be kept, or nobody knows for how long.
    Stream(IdempotencyBody<B>),
    /// It ends with an error, or is not as long as its head says.
    Broken(IdempotencyBody<B>),
}

/// Reads a response's body if it is known to end within the limit, or all of it is there at once.
pub(super) async fn response<B>(
    head: &Parts,
    body: B,
    limit: usize,
    protocol: Protocol,
) -> Response<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let hint = body.size_hint();
    let length = protocol.content_length(head);
    let last_byte = protocol.last_byte(head);
    if hint.lower().max(length.unwrap_or(0)) > limit as u64 {
        return Response::Stream(IdempotencyBody::through(body));
    }
    let may_wait = hint.exact().or(length).is_some();
    let mut body = Box::pin(body);
    let mut frames = Frames::default();
    loop {
        let read = frames.length() as u64;
        if let Some(end) = last_byte.filter(|end| read >= *end) {
            let mut whole = frames.join();
            whole.data.truncate(end as usize);
            return Response::Whole(whole);
        }
        let next = poll_fn(|cx| match body.as_mut().poll_frame(cx) {
            Poll::Pending if !may_wait => Poll::Ready(None),
            frame => frame.map(Some),
        });
        match next.await {
            // A client that was promised another length does not take this for the whole.
            Some(None) if length.is_some_and(|length| length != read) => {
                return Response::Broken(IdempotencyBody::begun(frames, Rest::End));
            }
            Some(None) => return Response::Whole(frames.join()),
            Some(Some(Ok(frame))) => {
                frames.push(frame);
                frames.merge_small();
                if frames.length() <= limit {
                    continue;
                }
            }
            Some(Some(Err(error))) => {
                let rest = Rest::Error(error.into());
                return Response::Broken(IdempotencyBody::begun(frames, rest));
            }
            None => {}
        }
        return Response::Stream(IdempotencyBody::begun(frames, Rest::Body(body)));
    }
}
