//! Under hyper alone.

use std::convert::Infallible;

use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderValue, Request, Response, Version};
use http_body::Frame;
use hyper::body::Incoming;
use tower::{Layer, service_fn};
use tower_distributed_lock::idempotency::IdempotencyBody;

use super::ask;
use crate::idempotency::bodies::{data, frames, trailers};
use crate::nodes::Nodes;
use crate::once::{Answer, Runs, text};
use crate::servers::{client, hyper_on};

on_every_store! {
    Nodes:
    hyper_over_http_1_and_2
    trailers_are_replayed_over_http_1
    trailers_are_replayed_over_http_2
}

/// The layer itself is what hyper serves, with nothing around it.
async fn hyper_over(nodes: &Nodes, version: Version, path: &str) -> [Answer; 3] {
    let runs = Runs::default();
    let counted = runs.clone();
    let handler = service_fn(move |request: Request<IdempotencyBody<Incoming>>| {
        counted.one_more();
        async move {
            Ok::<_, Infallible>(match request.uri().path() {
                "/fixed" => text("fixed"),
                _ => {
                    let sum = Frame::trailers(trailers(&[("x-sum", "42")]));
                    let mut response = Response::new(frames([data("one "), data("two"), sum]));
                    let announced = HeaderValue::from_static("x-sum");
                    response.headers_mut().insert("trailer", announced);
                    response
                }
            })
        }
    });
    let [one, two] = nodes.layers().map(|layer| layer.layer(handler.clone()));
    let (one, two) = (hyper_on(one, version).await, hyper_on(two, version).await);
    let client = client(version);
    let key = format!("{version:?}");
    let answers = [
        ask(&client, one, path, &key, "payload").await,
        ask(&client, one, path, &key, "payload").await,
        ask(&client, two, path, &key, "payload").await,
    ];
    assert_eq!(runs.count(), 1);
    for (number, answer) in answers.iter().enumerate() {
        assert_eq!(answer.head.version, version);
        assert_eq!((answer.status(), answer.is_replay()), (200, number > 0));
    }
    answers
}

async fn hyper_over_http_1_and_2(nodes: Nodes) {
    for version in [Version::HTTP_11, Version::HTTP_2] {
        for answer in hyper_over(&nodes, version, "/fixed").await {
            assert_eq!(answer.head.headers[CONTENT_LENGTH], "5");
            assert!(!answer.head.headers.contains_key(TRANSFER_ENCODING));
            assert_eq!(answer.body, "fixed");
        }
    }
}

async fn has_trailers(nodes: &Nodes, version: Version) {
    for (number, answer) in hyper_over(nodes, version, "/trailers")
        .await
        .into_iter()
        .enumerate()
    {
        assert_eq!(answer.body, "one two");
        assert!(!answer.head.headers.contains_key(CONTENT_LENGTH));
        let sum = trailers(&[("x-sum", "42")]);
        assert_eq!(answer.trailers, Some(sum), "answer {number}");
    }
}

async fn trailers_are_replayed_over_http_1(nodes: Nodes) {
    has_trailers(&nodes, Version::HTTP_11).await;
}

async fn trailers_are_replayed_over_http_2(nodes: Nodes) {
    has_trailers(&nodes, Version::HTTP_2).await;
}
