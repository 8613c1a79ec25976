//! Reads bodies to their end, up to a limit.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

use bytes::Bytes;
use http::response::Parts;
use http_body::Body;
use tower::BoxError;

use super::body::IdempotencyBody;
use crate::http::{Collected, Frames, Joined, Protocol, Rest};

/// Why a request's body was not read to its end.
pub(super) enum RequestError {
    TooLarge,
    Incomplete,
}

/// Reads a request's body. One that says that it is too long is not read at all.
pub(super) async fn read_request<B>(body: B, limit: usize) -> Result<Collected, RequestError>
where
    B: Body<Data = Bytes>,
{
    if body.size_hint().lower() > limit as u64 {
        return Err(RequestError::TooLarge);
    }
    let mut body = pin!(body);
    let mut joined = Joined::default();
    let mut trailers = None;
    while let Some(frame) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        match frame.map_err(|_| RequestError::Incomplete)?.into_data() {
            Ok(data) => joined.push(data),
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
        if joined.length() > limit {
            return Err(RequestError::TooLarge);
        }
    }
    let data = joined.finish();
    Ok(Collected { data, trailers })
}

/// How far a response's body was read.
pub(super) enum ResponseRead<B> {
    /// To its end.
    Collected(Collected),
    /// Not to its end: it is longer than what can be kept, or its length is unknown.
    Stream(IdempotencyBody<B>),
    /// It ends with an error, or is not as long as its head says.
    Broken(IdempotencyBody<B>),
}

/// Reads a response's body if it is known to end within the limit, or all of it is there at once.
pub(super) async fn read_response<B>(
    head: &Parts,
    body: B,
    limit: usize,
    protocol: Protocol,
) -> ResponseRead<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let hint = body.size_hint();
    let length = protocol.content_length(head);
    let last_byte = protocol.last_byte(head);
    if hint.lower().max(length.unwrap_or(0)) > limit as u64 {
        return ResponseRead::Stream(IdempotencyBody::passthrough(body));
    }
    let may_wait = hint.exact().or(length).is_some();
    let mut body = Box::pin(body);
    let mut frames = Frames::default();
    loop {
        let read = frames.length() as u64;
        if let Some(end) = last_byte.filter(|end| read >= *end) {
            let mut collected = frames.collect();
            collected.data.truncate(end as usize);
            return ResponseRead::Collected(collected);
        }
        let next = poll_fn(|cx| match body.as_mut().poll_frame(cx) {
            Poll::Pending if !may_wait => Poll::Ready(None),
            frame => frame.map(Some),
        });
        match next.await {
            // A client that was promised another length does not take this body for complete.
            Some(None) if length.is_some_and(|length| length != read) => {
                return ResponseRead::Broken(IdempotencyBody::prefixed(frames, Rest::End));
            }
            Some(None) => return ResponseRead::Collected(frames.collect()),
            Some(Some(Ok(frame))) => {
                frames.push(frame);
                frames.merge_small();
                if frames.length() <= limit {
                    continue;
                }
            }
            Some(Some(Err(error))) => {
                let rest = Rest::Error(error.into());
                return ResponseRead::Broken(IdempotencyBody::prefixed(frames, rest));
            }
            None => {}
        }
        return ResponseRead::Stream(IdempotencyBody::prefixed(frames, Rest::Body(body)));
    }
}
