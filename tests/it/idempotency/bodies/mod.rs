//! What is sent through the idempotency layer: heads, bodies and trailers, and their limits.

mod lengths;
mod not_kept;
mod replays;
mod requests;

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::stream;
use http::header::{CONTENT_TYPE, HeaderName};
use http::{HeaderMap, HeaderValue, Response};
use http_body::{Frame, SizeHint};
use http_body_util::StreamBody;

use crate::nodes::Nodes;
use crate::once::{self, Answer, App, Body, InnerRequest, whole};

/// The app on both nodes.
fn on_both<F, R>(nodes: &Nodes, handler: F) -> [App; 2]
where
    F: Fn(InnerRequest) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = once::Result> + Send + 'static,
{
    nodes
        .layers()
        .map(|layer| App::new(&layer, handler.clone()))
}

/// Returns the headers as a list, field by field, in order.
fn fields(headers: &HeaderMap) -> Vec<(String, Vec<u8>)> {
    let fields = headers.iter();
    fields
        .map(|(name, value)| (name.to_string(), value.as_bytes().to_vec()))
        .collect()
}

pub fn trailers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
    let fields = fields.iter().map(|(name, value)| {
        (
            HeaderName::from_static(name),
            HeaderValue::from_static(value),
        )
    });
    fields.collect()
}

/// A body whose end is not known, though all of it is there.
pub fn frames(frames: impl IntoIterator<Item = Frame<Bytes>>) -> Body {
    let frames: Vec<_> = frames.into_iter().map(Ok::<_, Infallible>).collect();
    whole(StreamBody::new(stream::iter(frames)))
}

pub fn data(data: impl Into<Bytes>) -> Frame<Bytes> {
    Frame::data(data.into())
}

fn with_body(content: Body) -> Response<Body> {
    let response = Response::builder().status(201);
    let response = response
        .header(CONTENT_TYPE, "application/x")
        .header("x-kept", "yes");
    let response = response
        .header("content-encoding", "x")
        .header("content-digest", "x");
    response.body(content).unwrap()
}

/// It has the status and the headers, but neither the body nor the headers that describe it.
#[track_caller]
fn is_not_kept(answer: &Answer) {
    assert_eq!((answer.status(), answer.is_replay()), (201, true));
    assert_eq!(answer.head.headers["idempotent-body"], "not-kept");
    assert_eq!(answer.head.headers["x-kept"], "yes");
    assert!(answer.body.is_empty());
    assert_eq!(answer.trailers, None);
    let mut names = answer.head.headers.keys();
    assert!(names.all(|name| !name.as_str().starts_with("content-")));
}

/// A body that tells ten bytes, sends some of them, and breaks.
struct Breaks {
    parts: Vec<&'static str>,
    is_known: bool,
}

impl http_body::Body for Breaks {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        Poll::Ready(Some(match self.parts.pop() {
            Some(part) => Ok(data(part)),
            None => Err(std::io::Error::other("broken")),
        }))
    }

    fn size_hint(&self) -> SizeHint {
        match self.is_known {
            true => SizeHint::with_exact(10),
            false => SizeHint::default(),
        }
    }
}
