//! Under hyper alone.

use std::convert::Infallible;

use bytes::Bytes;
use futures_util::stream;
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use tower::{Service, ServiceBuilder, service_fn};
use tower_distributed_lock::{Lease, LockManager};

use super::{ask, http_requests_exclude_each_other, layer, text};
use crate::lock::LayerOn;
use crate::nodes::Nodes;
use crate::servers::{client, hyper_on};
use crate::support::soon;

on_every_store! {
    Nodes:
    hyper_over_http_1
    hyper_over_http_2
}

async fn hyper_over(nodes: Nodes, version: Version) {
    http_requests_exclude_each_other(&nodes, version, |layer, gate| async move {
        let handler = service_fn(move |req: Request<Incoming>| {
            let gate = gate.clone();
            async move {
                let text = match req.uri().path() {
                    "/free" => "free",
                    _ => {
                        assert!(req.extensions().get::<Lease>().is_some());
                        gate.pass().await;
                        "gated"
                    }
                };
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(text))))
            }
        });
        let free = handler.clone();
        let locked = ServiceBuilder::new().layer(layer).service(handler);
        let either = service_fn(move |req: Request<Incoming>| {
            let (mut free, mut locked) = (free.clone(), locked.clone());
            async move {
                match req.uri().path() {
                    "/free" => Ok::<_, Infallible>(free.call(req).await?.map(BodyExt::boxed)),
                    _ => Ok(locked.call(req).await?.map(|body| {
                        body.map_err(|error| -> Infallible { panic!("{error}") })
                            .boxed()
                    })),
                }
            }
        });
        hyper_on(either, version).await
    })
    .await;
}

async fn hyper_over_http_1(nodes: Nodes) {
    hyper_over(nodes, Version::HTTP_11).await;
}

async fn hyper_over_http_2(nodes: Nodes) {
    hyper_over(nodes, Version::HTTP_2).await;
}

/// The layer itself is what hyper serves, with nothing around it.
#[tokio::test]
async fn lengths_and_trailers_get_through() {
    for release_first in [false, true] {
        for version in [Version::HTTP_11, Version::HTTP_2] {
            let locks = LockManager::in_memory();
            let handler = service_fn(async |req: Request<Incoming>| {
                let mut trailers = HeaderMap::new();
                trailers.insert("x-sum", HeaderValue::from_static("42"));
                let frames = match req.uri().path() {
                    "/fixed" => {
                        return Ok::<_, Infallible>(Response::new(Full::from("fixed").boxed()));
                    }
                    _ => vec![
                        Frame::data(Bytes::from("one ")),
                        Frame::data(Bytes::from("two")),
                        Frame::trailers(trailers),
                    ],
                };
                let frames = stream::iter(frames.into_iter().map(Ok::<_, Infallible>));
                let mut response = Response::new(BodyExt::boxed(StreamBody::new(frames)));
                let announced = HeaderValue::from_static("x-sum");
                response.headers_mut().insert("trailer", announced);
                Ok(response)
            });
            let layer = layer(&locks).release_before_response(release_first);
            let address = hyper_on(layer.layer_on(handler), version).await;
            let client = client(version);
            let fixed = ask(&client, address, "/fixed").await;
            assert_eq!(fixed.version(), version);
            assert_eq!(fixed.headers()[CONTENT_LENGTH], "5");
            assert_eq!(text(fixed).await, "fixed");
            let mut request = Request::new(Full::default());
            *request.uri_mut() = format!("http://{address}/trailers").parse().unwrap();
            let te = HeaderValue::from_static("trailers");
            request.headers_mut().insert("te", te);
            let response = soon("a response", client.request(request)).await.unwrap();
            assert_eq!(response.status(), StatusCode::OK);
            assert!(!response.headers().contains_key(CONTENT_LENGTH));
            let body = soon("the body", response.into_body().collect())
                .await
                .unwrap();
            assert_eq!(body.trailers().unwrap()["x-sum"], "42");
            assert_eq!(body.to_bytes(), "one two");
            assert!(locks.try_acquire("a").await.is_ok());
        }
    }
}
