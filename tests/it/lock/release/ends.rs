//! Requests that come to an end of their own.

use std::io;

use axum::body::Body;
use axum::routing::any;
use axum::{Extension, Router};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderMap, Method, Request, Response, StatusCode, Version};
use http_body::Frame;
use http_body_util::{Empty, StreamBody};
use hyper::body::Incoming;
use tower::{Layer, Service, service_fn};
use tower_distributed_lock::Lease;

use super::client::{Http, get};
use super::{Guarded, Stage, VERSIONS, serve};
use crate::servers::{axum_on, hyper_on};
use crate::support::value;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_response() {
    let mut stage = Stage::new().await;
    let address = serve(&stage, stage.handler(async || "done")).await;
    for version in VERSIONS {
        let mut client = get(address, version).await;
        stage.gate.arrived().await;
        stage.is_held().await;
        stage.gate.open();
        assert_eq!(client.status().await, Some(StatusCode::OK));
        let received = client.rest().await;
        assert!(received.is_whole);
        assert_eq!(received.text, "done");
        stage.is_over().await;
        stage.work_ended_under_its_lock().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn before_a_response_if_that_is_wanted() {
    let stage = Stage::new().await;
    let layer = stage.layer().release_before_response(true);
    let router = Router::new().route("/", stage.handler(async || "done"));
    let address = axum_on(router.layer(layer)).await;
    for _ in 0..50 {
        for version in VERSIONS {
            let mut client = get(address, version).await;
            stage.gate.arrived().await;
            stage.is_held().await;
            stage.gate.open();
            assert_eq!(client.status().await, Some(StatusCode::OK));
            assert!(client.rest().await.is_whole);
            // At once, not eventually.
            assert_eq!(value(&stage.redis, "lock:a").await, None);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_an_error_of_the_handler() {
    let mut stage = Stage::new().await;
    let failing = async || (StatusCode::INTERNAL_SERVER_ERROR, "no");
    let address = serve(&stage, stage.handler(failing)).await;
    for version in VERSIONS {
        let mut client = get(address, version).await;
        stage.gate.arrived().await;
        stage.is_held().await;
        stage.gate.open();
        let status = client.status().await;
        assert_eq!(status, Some(StatusCode::INTERNAL_SERVER_ERROR));
        assert_eq!(client.rest().await.text, "no");
        stage.is_over().await;
        stage.work_ended_under_its_lock().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_an_error_of_the_service() {
    let mut stage = Stage::new().await;
    for version in VERSIONS {
        let (works, gate) = (stage.works.clone(), stage.gate.clone());
        let failing = service_fn(move |req: Request<Incoming>| {
            let work = works.on(req.extensions().get::<Lease>().unwrap().clone());
            let gate = gate.clone();
            async move {
                let _work = work;
                gate.pass().await;
                Err::<Response<Empty<Bytes>>, _>(io::Error::other("no response"))
            }
        });
        let address = hyper_on(stage.layer().layer(failing), version).await;
        let mut client = get(address, version).await;
        stage.gate.arrived().await;
        stage.is_held().await;
        stage.gate.open();
        assert_eq!(client.status().await, None);
        stage.is_over().await;
        stage.work_ended_under_its_lock().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_panic_in_the_handler() {
    let mut stage = Stage::new().await;
    let panicking = async || -> &'static str { panic!("a handler that panics, for a test") };
    let address = serve(&stage, stage.handler(panicking)).await;
    for version in VERSIONS {
        let mut client = get(address, version).await;
        stage.gate.arrived().await;
        stage.is_held().await;
        stage.gate.open();
        assert_eq!(client.status().await, None);
        stage.is_over().await;
        stage.work_ended_under_its_lock().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_panic_in_the_body() {
    let mut stage = Stage::new().await;
    let panicking = || stream::once(async { panic!("a body that panics, for a test") });
    let address = serve(&stage, stage.body_handler(panicking)).await;
    for version in VERSIONS {
        let mut client = get(address, version).await;
        assert_eq!(client.status().await, Some(StatusCode::OK));
        client.first().await;
        stage.gate.arrived().await;
        stage.is_held().await;
        stage.gate.open();
        assert!(!client.rest().await.is_whole);
        stage.is_over().await;
        stage.work_ended_under_its_lock().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_an_error_of_the_body() {
    let stage = Stage::new().await;
    let failing = || stream::iter([Err(io::Error::other("a body that fails"))]);
    let address = serve(&stage, stage.body_handler(failing)).await;
    for version in VERSIONS {
        let mut client = get(address, version).await;
        assert_eq!(client.status().await, Some(StatusCode::OK));
        client.first().await;
        stage.gate.arrived().await;
        stage.is_held().await;
        stage.gate.open();
        assert!(!client.rest().await.is_whole);
        stage.is_over().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_body_of_unknown_length_and_not_before() {
    let stage = Stage::new().await;
    let more = || stream::iter([Ok(Frame::data(Bytes::from("second")))]);
    let address = serve(&stage, stage.body_handler(more)).await;
    for version in VERSIONS {
        let mut client = get(address, version).await;
        assert_eq!(client.status().await, Some(StatusCode::OK));
        client.first().await;
        stage.gate.arrived().await;
        stage.is_held().await;
        stage.gate.open();
        let received = client.rest().await;
        assert!(received.is_whole);
        assert!(received.text.contains("second"));
        stage.is_over().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_trailers() {
    for release_first in [false, true] {
        let stage = Stage::new().await;
        let trailers = || {
            let sum = HeaderMap::from_iter([("x-sum".parse().unwrap(), "42".parse().unwrap())]);
            // A server that asked for more after the trailers would wait for ever.
            stream::iter([Ok(Frame::trailers(sum))]).chain(stream::pending())
        };
        let layer = stage.layer().release_before_response(release_first);
        let announce = axum::middleware::map_response(async |mut response: Response<Body>| {
            let name = "x-sum".parse().unwrap();
            response.headers_mut().insert("trailer", name);
            response
        });
        let router = Router::new().route("/", stage.body_handler(trailers));
        let address = axum_on(router.layer(layer).layer(announce)).await;
        for version in VERSIONS {
            let mut client = get(address, version).await;
            assert_eq!(client.status().await, Some(StatusCode::OK));
            client.first().await;
            stage.gate.arrived().await;
            stage.is_held().await;
            stage.gate.open();
            let received = client.rest().await;
            assert!(received.is_whole);
            assert_eq!(received.trailers.unwrap()["x-sum"], "42");
            stage.is_over().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_body_whose_length_a_header_tells() {
    let stage = Stage::new().await;
    // By the header there is nothing left to read; by the stream there may be.
    let (works, gate) = (stage.works.clone(), stage.gate.clone());
    let handler = any(move |Extension(lease): Extension<Lease>| {
        let (work, gate) = (works.on(lease), gate.clone());
        async move {
            gate.pass().await;
            let frames = Guarded {
                frames: stream::iter([Ok(Frame::data(Bytes::from("sized")))])
                    .chain(stream::pending())
                    .boxed(),
                _work: work,
            };
            (
                [("content-length", "5")],
                Body::new(StreamBody::new(frames)),
            )
        }
    });
    let address = serve(&stage, handler).await;
    let mut client = get(address, Version::HTTP_11).await;
    stage.gate.arrived().await;
    stage.is_held().await;
    stage.gate.open();
    assert_eq!(client.status().await, Some(StatusCode::OK));
    let received = client.rest().await;
    assert!(received.is_whole);
    assert_eq!(received.text, "sized");
    stage.is_over().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_an_empty_body() {
    let mut stage = Stage::new().await;
    for handler in [
        stage.handler(async || ()),
        stage.handler(async || StatusCode::NO_CONTENT),
        stage.handler(async || Body::new(Empty::new())),
    ] {
        let address = serve(&stage, handler).await;
        for version in VERSIONS {
            let mut client = get(address, version).await;
            stage.gate.arrived().await;
            stage.is_held().await;
            stage.gate.open();
            assert!(client.status().await.unwrap().is_success());
            assert_eq!(client.rest().await.text, "");
            stage.is_over().await;
            stage.work_ended_under_its_lock().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_response_whose_body_is_never_asked_for() {
    let mut stage = Stage::new().await;
    // A body that would never end.
    let endless = |status: StatusCode| {
        move || async move {
            let frames = stream::pending::<io::Result<Frame<Bytes>>>();
            (status, Body::new(StreamBody::new(frames)))
        }
    };
    for (method, status) in [
        (Method::HEAD, StatusCode::OK),
        (Method::GET, StatusCode::NO_CONTENT),
        (Method::GET, StatusCode::NOT_MODIFIED),
    ] {
        let router = Router::new().route("/", stage.handler(endless(status)));
        // Once with axum's own treatment of HEAD, and once with hyper's alone.
        let by_axum = axum_on(router.clone().layer(stage.layer())).await;
        let by_hyper = service_fn(move |req: Request<Incoming>| {
            let mut router = router.clone();
            async move { router.call(req).await }
        });
        let by_hyper = hyper_on(stage.layer().layer(by_hyper), Version::HTTP_11).await;
        for address in [by_axum, by_hyper] {
            let mut client = Http::start(address, Version::HTTP_11, method.clone()).await;
            stage.gate.arrived().await;
            stage.is_held().await;
            stage.gate.open();
            assert_eq!(client.status().await, Some(status));
            assert_eq!(client.rest().await.text, "");
            stage.is_over().await;
            stage.work_ended_under_its_lock().await;
        }
    }
}
