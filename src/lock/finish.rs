//! [`finish`]: decides what happens to a response, and when its lock is released.

use std::task::Context;

use bytes::Bytes;
use http::Response;
use http_body::Body;
use tower::BoxError;

use super::body::ResponseBody;
use super::collect::collect_ready;
use super::config::{Config, Hold};
use super::held_lock::{BoxFuture, HeldLock};
use crate::error::Error;
use crate::http::{Content, Protocol};

/// What happens to a response that the service returned under its lock.
pub(super) enum Finish<B> {
    /// It is sent at once.
    Respond(Response<ResponseBody<B>>),
    /// It is sent when Redis has released the lock.
    Release {
        released: BoxFuture<Result<(), Error>>,
        response: Response<ResponseBody<B>>,
    },
    /// It is not sent: a lock is lost.
    Lost(Error),
}

/// Decides what happens to a response, and when its lock is released.
pub(super) fn finish<B>(
    config: &Config,
    protocol: Protocol,
    lock: HeldLock,
    response: Response<B>,
    cx: &mut Context<'_>,
) -> Finish<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    // A handler that ran past its lease, as it blocked its thread, has not succeeded.
    if let Some(lost) = lock.loss() {
        drop(response); // The work ends before its lock does.
        return Finish::Lost(lost);
    }
    let hold_until = hold_until(config, protocol, &lock, response, cx);
    // Neither has a body that blocked while its first frames were read.
    if let Some(lost) = lock.loss() {
        drop(hold_until);
        return Finish::Lost(lost);
    }
    match hold_until {
        HoldUntil::Head(response) if config.release_before_response => Finish::Release {
            released: lock.release(),
            response: response.map(ResponseBody::unlocked),
        },
        HoldUntil::Head(response) => {
            drop(lock);
            Finish::Respond(response.map(ResponseBody::unlocked))
        }
        HoldUntil::BodyEnd(response, last_byte) => {
            let release_first = config.release_before_response;
            Finish::Respond(
                response
                    .map(|content| ResponseBody::locked(content, lock, release_first, last_byte)),
            )
        }
    }
}

/// Until when a response needs its lock.
enum HoldUntil<B> {
    /// No longer: what is left of it can be sent without the lock.
    Head(Response<Content<B>>),
    /// Until its body ends, or the client has received so many bytes.
    BodyEnd(Response<Content<B>>, Option<u64>),
}

/// Decides until when a response needs its lock. With `release_before_response`, reads what is
/// there of its body.
fn hold_until<B>(
    config: &Config,
    protocol: Protocol,
    lock: &HeldLock,
    response: Response<B>,
    cx: &mut Context<'_>,
) -> HoldUntil<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let (head, body) = response.into_parts();
    let last_byte = protocol.last_byte(&head);
    let (content, is_over) = if config.hold == Hold::Head || lock.is_taken_over() {
        (Content::Passthrough { body }, true)
    } else if body.is_end_stream() {
        (Content::fixed(Bytes::new()), true)
    } else if last_byte == Some(0) || !protocol.has_body(&head) {
        // The body is dropped here: the work ends before its lock does.
        let length = body.size_hint().exact();
        (Content::Unsent { length }, true)
    } else if config.release_before_response {
        collect_ready(body, last_byte, lock, cx)
    } else {
        (Content::Passthrough { body }, false)
    };
    let response = Response::from_parts(head, content);
    match is_over {
        true => HoldUntil::Head(response),
        false => HoldUntil::BodyEnd(response, last_byte),
    }
}
