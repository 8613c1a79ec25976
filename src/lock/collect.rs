//! [`collect_ready`]: takes what is there of a body at once.

use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame};
use tower::BoxError;

use super::held_lock::HeldLock;
use crate::http::{Content, Frames, Rest};

/// How much memory a body of several frames may take while it is kept back, in bytes.
const KEPT_BACK: usize = 64 * 1024;

/// Takes what is there of a body at once. Returns whether that is all of it.
///
/// All of it becomes one frame, which a server then sends together with the head. Otherwise the
/// frames stay as they came, with the rest of the body behind them.
pub(super) fn collect_ready<B>(
    body: B,
    last_byte: Option<u64>,
    lock: &HeldLock,
    cx: &mut Context<'_>,
) -> (Content<B>, bool)
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let mut body = Box::pin(body);
    let mut prefix = Frames::default();
    let mut left = last_byte;
    // A single frame may be of any size: it is in memory already.
    while prefix.count() < 2 || prefix.memory() <= KEPT_BACK {
        let Poll::Ready(frame) = lock.enter(|| body.as_mut().poll_frame(cx)) else {
            break;
        };
        let is_end = match frame {
            None => true,
            Some(Err(error)) => {
                let rest = Rest::Error(error.into());
                return (Content::Prefixed { prefix, rest }, true);
            }
            Some(Ok(frame)) => {
                let is_end = is_last(&frame, &mut left) || body.is_end_stream();
                prefix.push(frame);
                is_end
            }
        };
        if is_end && left.is_some_and(|left| left > 0) {
            // Shorter than its head says. It gets no length of its own, so that the client notices.
            let rest = Rest::End;
            return (Content::Prefixed { prefix, rest }, true);
        }
        if is_end {
            let mut collected = prefix.collect();
            if let Some(end) = last_byte {
                collected.data.truncate(end as usize);
            }
            return (Content::Collected { collected }, true);
        }
        if lock.is_lost() {
            break;
        }
    }
    let rest = Rest::Body(body);
    (Content::Prefixed { prefix, rest }, false)
}

/// Whether the client takes this frame for the last one. `left` counts down the bytes that the
/// client still expects, if it counts them.
pub(super) fn is_last(frame: &Frame<Bytes>, left: &mut Option<u64>) -> bool {
    if let (Some(left), Some(data)) = (left.as_mut(), frame.data_ref()) {
        *left = left.saturating_sub(data.len() as u64);
    }
    frame.is_trailers() || *left == Some(0)
}
