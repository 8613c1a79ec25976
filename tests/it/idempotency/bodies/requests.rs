//! The bodies of requests.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http_body::{Frame, SizeHint};
use http_body_util::{BodyExt, StreamBody};
use tower_distributed_lock::{
    IdempotencyLayer, LockManager,
    lock::{Rejection, RejectionKind},
};

use super::{Breaks, data, frames, trailers};
use crate::once::{App, InnerRequest, Runs, body, post, post_to, text, whole};

#[tokio::test]
async fn a_request_that_is_too_long_is_refused_before_it_runs() {
    const LIMIT: usize = 1000;
    let runs = Runs::default();
    let layer = IdempotencyLayer::new(LockManager::in_memory()).max_request_body(LIMIT);
    let app = App::new(
        &layer,
        runs.then(|run, request: InnerRequest| async move {
            let content = whole(request.into_body()).collect().await.unwrap();
            assert_eq!(content.to_bytes().len(), LIMIT);
            Ok(text(format!("run {run}")))
        }),
    );
    // A body that tells that it is too long is not read.
    let says = post("k").map(|_| {
        whole(Known {
            length: LIMIT as u64 + 1,
        })
    });
    let chunks = |count: usize| {
        // Once too much was read, nothing more is.
        let chunks = stream::iter(vec![vec![0; LIMIT / 2]; count]).map(data);
        let chunks = chunks.chain(stream::poll_fn(move |_| match count {
            2 => Poll::Ready(None),
            _ => panic!("read on"),
        }));
        post("k").map(|_| whole(StreamBody::new(chunks.map(Ok::<_, Infallible>))))
    };
    for request in [says, chunks(3)] {
        let answer = app.send(request).await;
        answer.is_refused(413);
        let rejection = answer.head.extensions.get::<Rejection>().unwrap();
        assert_eq!(rejection.kind(), RejectionKind::TooLarge);
        assert_eq!(runs.count(), 0);
    }
    app.send(chunks(2)).await.is_run(1);
    app.send(post("k").map(|_| body(vec![0; LIMIT])))
        .await
        .is_replay_of(1);
}

/// A body that only tells its length.
struct Known {
    length: u64,
}

impl http_body::Body for Known {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        panic!("the body was read")
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.length)
    }
}

#[tokio::test]
async fn a_request_that_breaks_half_way_does_not_run() {
    let runs = Runs::default();
    let app = App::new(
        &IdempotencyLayer::new(LockManager::in_memory()),
        runs.handler(),
    );
    for is_known in [true, false] {
        let parts = vec!["two", "one"];
        let request = post("k").map(|_| whole(Breaks { parts, is_known }));
        let answer = app.send(request).await;
        answer.is_refused(400);
        let rejection = answer.head.extensions.get::<Rejection>().unwrap();
        assert_eq!(rejection.kind(), RejectionKind::Incomplete);
    }
    assert_eq!(runs.count(), 0);
    app.send(post("k")).await.is_run(1);
}

#[tokio::test]
async fn the_service_inside_gets_the_whole_request() {
    let sum = trailers(&[("x-sum", "42")]);
    let expected = sum.clone();
    let app = App::new(
        &IdempotencyLayer::new(LockManager::in_memory()),
        move |request: InnerRequest| {
            let expected = expected.clone();
            async move {
                assert_eq!(request.method(), "POST");
                assert_eq!(request.uri(), "/a?q=1");
                assert_eq!(request.headers()["idempotency-key"], "k");
                assert_eq!(request.extensions().get::<u32>(), Some(&7));
                let content = whole(request.into_body()).collect().await.unwrap();
                assert_eq!(content.trailers(), Some(&expected));
                Ok(text(content.to_bytes()))
            }
        },
    );
    let content = frames([data("one "), data(""), data("two"), Frame::trailers(sum)]);
    let mut request = post_to("/a?q=1", "k").map(|_| content);
    request.extensions_mut().insert(7_u32);
    assert_eq!(app.send(request).await.body, "one two");
}
