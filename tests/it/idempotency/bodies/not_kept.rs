//! Responses whose body is not kept, or that are not remembered at all.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::Response;
use http::header::CONTENT_TYPE;
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt, StreamBody};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tower_distributed_lock::lock::{Rejection, RejectionKind};

use super::{Breaks, data, frames, is_not_kept, on_both, trailers, with_body};
use crate::nodes::Nodes;
use crate::once::{Answer, App, Runs, body, post, whole};
use crate::support::soon;

on_every_store! {
    Nodes:
    an_answer_of_a_known_length_that_is_too_long_is_not_kept
    an_answer_of_unknown_length_passes_through_as_it_comes
    an_answer_of_unknown_length_that_is_there_at_once_is_kept
    an_answer_that_breaks_is_not_remembered
    a_grpc_answer_that_is_not_kept_is_a_status
}

async fn an_answer_of_a_known_length_that_is_too_long_is_not_kept(nodes: Nodes) {
    const LIMIT: usize = 1000;
    let content = |length| -> Vec<u8> { (0..=255).cycle().take(length).collect() };
    for (length, is_kept) in [(LIMIT, true), (LIMIT + 1, false), (100_000, false)] {
        let runs = Runs::default();
        let [one, two] = nodes.layers().map(|layer| {
            let layer = layer.max_response_body(LIMIT);
            let handler =
                runs.then(move |_, _| async move { Ok(with_body(body(content(length)))) });
            App::new(&layer, handler)
        });
        let key = length.to_string();
        let response = soon("a response", one.call(post(&key))).await.unwrap();
        assert_eq!(response.body().size_hint().exact(), Some(length as u64));
        let first = Answer::of(response).await;
        assert_eq!((first.status(), first.is_replay()), (201, false));
        assert_eq!(first.head.headers[CONTENT_TYPE], "application/x");
        assert_eq!(first.head.headers.get("idempotent-body"), None);
        assert_eq!(first.body, content(length));
        for app in [&one, &two] {
            let replay = app.send(post(&key)).await;
            match is_kept {
                true => assert_eq!(replay.body, content(length)),
                false => is_not_kept(&replay),
            }
        }
        assert_eq!(runs.count(), 1);
    }
}

async fn an_answer_of_unknown_length_passes_through_as_it_comes(nodes: Nodes) {
    // The first frames are too long, or within the limit but not the whole.
    for begin in [10, 5000] {
        let runs = Runs::default();
        let (send, rest) = mpsc::unbounded_channel::<Frame<Bytes>>();
        let rest = Arc::new(Mutex::new(Some(rest)));
        let handler = runs.then(move |_, _| {
            let begin = [vec![1; begin / 2], vec![2; begin / 2]].map(data);
            let rest = rest.lock().unwrap().take().unwrap();
            let frames = stream::iter(begin).chain(UnboundedReceiverStream::new(rest));
            let frames = frames.map(Ok::<_, Infallible>);
            std::future::ready(Ok(with_body(whole(StreamBody::new(frames)))))
        });
        let [one, two] = nodes
            .layers()
            .map(|layer| App::new(&layer.max_response_body(1000), handler.clone()));
        let key = begin.to_string();
        let response = soon("a head", one.call(post(&key))).await.unwrap();
        assert_eq!(response.status(), 201);
        assert_eq!(response.headers()[CONTENT_TYPE], "application/x");
        let mut body = response.into_body();
        let mut next = async || soon("a frame", body.frame()).await.unwrap().unwrap();
        for byte in [1, 2] {
            let frame = next().await.into_data().unwrap();
            assert_eq!(frame, vec![byte; begin / 2]);
        }
        // The response has not ended, and counts as completed.
        for app in [&one, &two] {
            is_not_kept(&app.send(post(&key)).await);
        }
        send.send(data("more")).unwrap();
        assert_eq!(next().await.into_data().unwrap(), "more");
        let sum = trailers(&[("x-sum", "42")]);
        send.send(Frame::trailers(sum.clone())).unwrap();
        assert_eq!(next().await.into_trailers().unwrap(), sum);
        drop(send);
        assert!(soon("the end", body.frame()).await.is_none());
        is_not_kept(&two.send(post(&key)).await);
        assert_eq!(runs.count(), 1);
    }
}

async fn an_answer_of_unknown_length_that_is_there_at_once_is_kept(nodes: Nodes) {
    let sum = || trailers(&[("grpc-status", "0"), ("x-sum", "42")]);
    let runs = Runs::default();
    let [one, two] = on_both(
        &nodes,
        runs.then(move |_, _| {
            let content = frames([data("one "), data("two"), Frame::trailers(sum())]);
            let response = Response::builder().header(CONTENT_TYPE, "application/grpc");
            std::future::ready(Ok(response.body(content).unwrap()))
        }),
    );
    let call = || {
        let mut request = post("k");
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, "application/grpc".parse().unwrap());
        request
    };
    for (number, app) in [&one, &one, &two].into_iter().enumerate() {
        let answer = app.send(call()).await;
        assert_eq!((answer.status(), answer.is_replay()), (200, number > 0));
        assert_eq!(answer.body, "one two");
        assert_eq!(answer.trailers, Some(sum()));
        assert_eq!(answer.head.headers[CONTENT_TYPE], "application/grpc");
    }
    assert_eq!(runs.count(), 1);
}

async fn an_answer_that_breaks_is_not_remembered(nodes: Nodes) {
    for is_known in [true, false] {
        let runs = Runs::default();
        let [one, two] = on_both(
            &nodes,
            runs.then(move |_, _| {
                let parts = vec!["two", "one"];
                let response = Response::new(whole(Breaks { parts, is_known }));
                std::future::ready(Ok(response))
            }),
        );
        for app in [&one, &two] {
            let call = app.call(post(&is_known.to_string()));
            let response = soon("a head", call).await.unwrap();
            assert!(!response.headers().contains_key("idempotent-replayed"));
            let mut body = response.into_body();
            for part in ["one", "two"] {
                let frame = body.frame().await.unwrap().unwrap();
                assert_eq!(frame.into_data().unwrap(), part);
            }
            let error = body.frame().await.unwrap().unwrap_err();
            assert_eq!(error.to_string(), "broken");
            assert!(body.frame().await.is_none());
        }
        assert_eq!(runs.count(), 2);
    }
}

async fn a_grpc_answer_that_is_not_kept_is_a_status(nodes: Nodes) {
    let runs = Runs::default();
    let handler = runs.then(|_, _| {
        let frames = stream::iter([data("message")]).chain(stream::pending());
        let frames = frames.map(Ok::<_, Infallible>);
        std::future::ready(Ok(with_body(whole(StreamBody::new(frames)))))
    });
    let [one, two] = on_both(&nodes, handler);
    let call = || {
        let mut request = post("k");
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, "application/grpc".parse().unwrap());
        request
    };
    let first = soon("a head", one.call(call())).await.unwrap();
    for app in [&one, &two] {
        let answer = app.send(call()).await;
        assert_eq!((answer.status(), answer.is_replay()), (200, false));
        assert_eq!(answer.head.headers["grpc-status"], "6");
        let rejection = answer.head.extensions.get::<Rejection>().unwrap();
        assert_eq!(rejection.kind(), RejectionKind::NotKept);
    }
    drop(first);
    assert_eq!(runs.count(), 1);
}
