//! A body that does what a test tells it to.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::ready;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, Response};
use http_body::{Body, Frame, SizeHint};
use tower::{Service, service_fn};
use tower_distributed_lock::{DistributedLockLayer, lock::ResponseBody};

use super::{LayerOn, Request, request};
use crate::support::soon;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Step {
    Data(&'static str),
    /// The body knows that this is its last frame.
    Last(&'static str),
    Trailers,
    Error,
    /// The body is at its end before it is polled.
    Empty,
    /// The next frame is not ready at once.
    Later,
    Never,
}

/// A body that takes these steps.
pub struct Scripted {
    steps: VecDeque<Step>,
    is_over: bool,
    pub on_drop: Option<Box<dyn FnOnce() + Send>>,
}

impl Scripted {
    pub fn new(steps: &[Step]) -> Self {
        Self {
            steps: steps.iter().copied().collect(),
            is_over: steps == [Step::Empty],
            on_drop: None,
        }
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        if let Some(on_drop) = self.on_drop.take() {
            on_drop();
        }
    }
}

impl Body for Scripted {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        Poll::Ready(match self.steps.pop_front() {
            None | Some(Step::Empty) => None,
            Some(Step::Later) => {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            Some(Step::Data(text)) => Some(Ok(Frame::data(Bytes::from(text)))),
            Some(Step::Last(text)) => {
                self.is_over = true;
                Some(Ok(Frame::data(Bytes::from(text))))
            }
            Some(Step::Trailers) => {
                let mut trailers = HeaderMap::new();
                trailers.insert("x-trailer", "true".parse().unwrap());
                Some(Ok(Frame::trailers(trailers)))
            }
            Some(Step::Error) => Some(Err(std::io::Error::other("broken"))),
            Some(Step::Never) => return Poll::Pending,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.is_over
    }

    fn size_hint(&self) -> SizeHint {
        let left = self.steps.iter().map(|step| match step {
            Step::Data(text) | Step::Last(text) => text.len() as u64,
            _ => 0,
        });
        SizeHint::with_exact(left.sum())
    }
}

pub type ScriptedResponse = Response<ResponseBody<Scripted>>;

pub async fn answer_with(layer: &DistributedLockLayer, steps: &[Step]) -> ScriptedResponse {
    let steps = steps.to_vec();
    let handler = service_fn(move |_: Request| {
        ready(Ok::<_, Infallible>(Response::new(Scripted::new(&steps))))
    });
    soon("the head", layer.layer_on(handler).call(request()))
        .await
        .unwrap()
}
