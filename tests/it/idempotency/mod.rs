//! The idempotency layer: what is a duplicate, who runs, who waits, who is refused, and what is
//! replayed.

mod bodies;
mod layers;
mod long_records;
mod one_run;
mod rules;
mod scopes;
mod stacks;
mod trouble;
mod waiting;
mod webhook_example;

use std::convert::Infallible;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use http::Request;
use http_body::Frame;
use http_body_util::StreamBody;

use crate::once::{Body, body, post, whole};

/// Longer than any test.
const WAIT: Duration = Duration::from_secs(3600);

fn with_payload(key: &str, payload: &'static str) -> Request<Body> {
    post(key).map(|_| body(payload))
}

/// A body that must not be looked at.
fn untouchable() -> Body {
    let frames = futures_util::stream::poll_fn(|_| -> Poll<Option<Result<_, Infallible>>> {
        panic!("the body was read")
    });
    whole(StreamBody::new(
        frames.map(|frame: Result<Frame<Bytes>, Infallible>| frame),
    ))
}

/// The name in Redis of the key `k` of [`post`].
const RECORD: &str = "{lock:POST%3A/a:k}:record";
