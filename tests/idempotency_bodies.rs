//! The idempotency layer and what is sent through it: replays, bodies, limits, and the servers that it is made for.

mod common;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::DefaultBodyLimit;
use axum::middleware::{Next, from_fn};
use axum::{Json, Router, routing};
use bytes::Bytes;
use common::once::{Answer, App, Body, Inside, Runs, body, post, post_to, text, whole};
use common::{Gate, OnDrop, RedisServer, eventually, minute, soon};
use futures_util::{StreamExt, poll, stream};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, SET_COOKIE, TRANSFER_ENCODING};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream, UnboundedReceiverStream};
use tonic::codegen::Service;
use tonic::server::NamedService;
use tonic::service::LayerExt;
use tonic::transport::{Channel, Server};
use tonic::{Code, Status};
use tonic_prost::ProstCodec;
use tower::{Layer, service_fn};
use tower_distributed_lock::idempotency::IdempotencyBody;
use tower_distributed_lock::{
    IdempotencyLayer, LockManager,
    lock::{Rejection, RejectionKind},
};

struct Nodes {
    _server: Option<RedisServer>,
    one: LockManager,
    two: LockManager,
}

impl Nodes {
    async fn in_memory() -> Self {
        let one = minute().in_memory().unwrap();
        let two = one.clone();
        Self {
            _server: None,
            one,
            two,
        }
    }

    async fn over_redis() -> Self {
        let server = RedisServer::start().await;
        Self {
            one: minute().connect(&server.url()).await.unwrap(),
            two: minute().connect(&server.url()).await.unwrap(),
            _server: Some(server),
        }
    }

    fn layers(&self) -> [IdempotencyLayer; 2] {
        [&self.one, &self.two].map(|locks| IdempotencyLayer::new(locks.clone()))
    }
}

macro_rules! on_every_store {
    ($($name:ident)*) => {
        mod over_memory {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(super::Nodes::in_memory().await).await;
            })*
        }
        mod over_redis {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(super::Nodes::over_redis().await).await;
            })*
        }
    };
}

on_every_store! {
    a_replay_has_the_head_of_the_first_answer
    fields_of_the_connection_are_not_replayed
    a_replay_has_the_body_and_the_trailers_of_the_first_answer
    final_answers_are_remembered_and_others_are_not
    what_is_final_can_be_chosen
    an_answer_of_a_known_length_that_is_too_long_is_not_kept
    an_answer_of_unknown_length_passes_through_as_it_comes
    an_answer_of_unknown_length_that_is_there_at_once_is_kept
    an_answer_whose_length_its_head_tells_is_read_to_its_end
    an_answer_that_is_not_as_long_as_its_head_says
    a_length_that_tells_nothing_of_the_body_is_not_waited_for
    an_answer_that_breaks_is_not_remembered
    a_grpc_answer_counts_as_its_code_says
    a_grpc_answer_that_is_not_kept_is_a_status
    axum_layer_and_route_layer
    hyper_over_http_1_and_2
    trailers_are_replayed_over_http_1
    trailers_are_replayed_over_http_2
    tonic_server_layer
    tonic_service_layer
}

/// The app on both nodes.
fn on_both<F, R>(nodes: &Nodes, handler: F) -> [App; 2]
where
    F: Fn(Inside) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = common::once::Result> + Send + 'static,
{
    nodes
        .layers()
        .map(|layer| App::new(&layer, handler.clone()))
}

/// As a list that can be compared: field by field, in order.
fn fields(headers: &HeaderMap) -> Vec<(String, Vec<u8>)> {
    let fields = headers.iter();
    fields
        .map(|(name, value)| (name.to_string(), value.as_bytes().to_vec()))
        .collect()
}

// Replays.

async fn a_replay_has_the_head_of_the_first_answer(nodes: Nodes) {
    let runs = Runs::default();
    let [one, two] = on_both(
        &nodes,
        runs.then(|_, _| async {
            let mut response = text("made");
            *response.status_mut() = StatusCode::CREATED;
            let headers = response.headers_mut();
            // Two, and not one with a comma.
            for cookie in ["z=1; Path=/", "a=2, b", "m=3"] {
                headers.append(SET_COOKIE, HeaderValue::from_static(cookie));
            }
            headers.insert("location", HeaderValue::from_static("/a/7"));
            headers.insert("x-empty", HeaderValue::from_static(""));
            headers.insert(
                "x-binary",
                HeaderValue::from_bytes(b"\xff\xfe\x80").unwrap(),
            );
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
            Ok(response)
        }),
    );
    let first = one.send(post("k")).await;
    assert_eq!((first.status(), first.is_replay()), (201, false));
    for app in [&one, &two] {
        let mut replay = app.send(post("k")).await;
        assert!(replay.is_replay());
        assert_eq!(replay.status(), 201);
        let cookies = replay.head.headers.get_all(SET_COOKIE).iter();
        let cookies: Vec<_> = cookies.map(HeaderValue::as_bytes).collect();
        assert_eq!(cookies, [&b"z=1; Path=/"[..], b"a=2, b", b"m=3"]);
        replay.head.headers.remove("idempotent-replayed");
        assert_eq!(fields(&replay.head.headers), fields(&first.head.headers));
        assert_eq!(replay.body, "made");
    }
    assert_eq!(runs.count(), 1);
}

async fn fields_of_the_connection_are_not_replayed(nodes: Nodes) {
    let runs = Runs::default();
    let [one, two] = on_both(
        &nodes,
        runs.then(|_, _| async {
            let mut response = text("");
            let headers = response.headers_mut();
            for (name, value) in [
                ("connection", "close, X-Named"),
                ("connection", "x-too"),
                ("keep-alive", "timeout=5"),
                ("proxy-connection", "x"),
                ("te", "trailers"),
                ("transfer-encoding", "chunked"),
                ("upgrade", "h2c"),
                ("x-named", "1"),
                ("x-too", "2"),
                ("x-kept", "3"),
            ] {
                let name = HeaderName::from_static(name);
                headers.append(name, HeaderValue::from_static(value));
            }
            Ok(response)
        }),
    );
    let first = one.send(post("k")).await;
    assert_eq!(first.head.headers.len(), 10);
    for app in [&one, &two] {
        let replay = app.send(post("k")).await;
        assert!(replay.is_replay());
        let left = fields(&replay.head.headers);
        let names: Vec<&str> = left.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["x-kept", "idempotent-replayed"]);
    }
}

fn trailers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
    let fields = fields.iter().map(|(name, value)| {
        (
            HeaderName::from_static(name),
            HeaderValue::from_static(value),
        )
    });
    fields.collect()
}

/// A body whose end is not known, though all of it is there.
fn frames(frames: impl IntoIterator<Item = Frame<Bytes>>) -> Body {
    let frames: Vec<_> = frames.into_iter().map(Ok::<_, Infallible>).collect();
    whole(StreamBody::new(stream::iter(frames)))
}

fn data(data: impl Into<Bytes>) -> Frame<Bytes> {
    Frame::data(data.into())
}

async fn a_replay_has_the_body_and_the_trailers_of_the_first_answer(nodes: Nodes) {
    let binary: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    let sum = || trailers(&[("x-sum", "42"), ("x-more", "1")]);
    let make = {
        let binary = binary.clone();
        move |path: &str| match path {
            "/binary" => text(binary.clone()),
            "/empty" => text(""),
            "/none" => {
                let mut response = text("");
                *response.status_mut() = StatusCode::NO_CONTENT;
                response
            }
            "/frames" => Response::new(frames(binary.chunks(7000).map(|part| data(part.to_vec())))),
            "/trailers" => Response::new(frames([
                data("one "),
                data("two"),
                Frame::trailers(trailers(&[("x-sum", "42"), ("x-more", "1")])),
            ])),
            _ => Response::new(frames([Frame::trailers(trailers(&[
                ("x-sum", "42"),
                ("x-more", "1"),
            ]))])),
        }
    };
    let runs = Runs::default();
    let [one, two] = on_both(
        &nodes,
        runs.then(move |_, request| std::future::ready(Ok(make(request.uri().path())))),
    );
    for (path, status, content, trailers) in [
        ("/binary", 200, &binary[..], None),
        ("/empty", 200, b"", None),
        ("/none", 204, b"", None),
        ("/frames", 200, &binary, None),
        ("/trailers", 200, b"one two", Some(sum())),
        ("/trailers-only", 200, b"", Some(sum())),
    ] {
        for (number, app) in [&one, &one, &two].into_iter().enumerate() {
            let response = soon("an answer", app.call(post_to(path, "k")))
                .await
                .unwrap();
            // It is known how long it is, unless there are trailers behind it.
            let length = trailers.is_none().then_some(content.len() as u64);
            assert_eq!(response.body().size_hint().exact(), length);
            let is_empty = content.is_empty() && trailers.is_none();
            assert_eq!(response.body().is_end_stream(), is_empty);
            let answer = Answer::of(response).await;
            assert_eq!(answer.is_replay(), number > 0);
            assert_eq!(answer.status(), status);
            assert_eq!(answer.body, content, "{path}");
            assert_eq!(answer.trailers, trailers);
            assert_eq!(answer.head.headers.get("idempotent-body"), None);
        }
    }
    assert_eq!(runs.count(), 6);
}

async fn final_answers_are_remembered_and_others_are_not(nodes: Nodes) {
    let runs = Runs::default();
    let [one, two] = on_both(
        &nodes,
        runs.then(|run, request| {
            let status = request.uri().path()[1..].parse().unwrap();
            let mut response = text(format!("run {run}"));
            *response.status_mut() = StatusCode::from_u16(status).unwrap();
            std::future::ready(Ok(response))
        }),
    );
    for status in [
        200, 201, 202, 301, 303, 400, 401, 403, 404, 409, 410, 418, 422,
    ] {
        let path = format!("/{status}");
        let first = one.send(post_to(&path, "k")).await;
        assert_eq!((first.status(), first.is_replay()), (status, false));
        for app in [&one, &two] {
            let replay = app.send(post_to(&path, "k")).await;
            assert_eq!((replay.status(), replay.is_replay()), (status, true));
            assert_eq!(replay.body, first.body);
        }
    }
    for status in [408, 425, 429, 500, 502, 503, 504, 599] {
        let path = format!("/{status}");
        // Free before the client has its answer: it may try again at once, and anywhere.
        for app in [&one, &two, &one] {
            let answer = app.send(post_to(&path, "k")).await;
            assert_eq!((answer.status(), answer.is_replay()), (status, false));
            assert_eq!(answer.body, format!("run {}", runs.count()));
        }
    }
    assert_eq!(runs.count(), 13 + 3 * 8);
}

async fn what_is_final_can_be_chosen(nodes: Nodes) {
    let runs = Runs::default();
    let handler = runs.then(|run, request| {
        let status = request.uri().path()[1..].parse().unwrap();
        let mut response = text(format!("run {run}"));
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        std::future::ready(Ok(response))
    });
    let [app, _] = nodes.layers().map(|layer| {
        let layer = layer.remember(|status| status != StatusCode::NOT_FOUND);
        App::new(&layer, handler.clone())
    });
    for (path, is_final) in [("/404", false), ("/500", true), ("/200", true)] {
        assert!(!app.send(post_to(path, "k")).await.is_replay());
        assert_eq!(app.send(post_to(path, "k")).await.is_replay(), is_final);
    }
}

// Answers that are not kept.

/// Status and headers, and no body, nor what was said of it.
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
        let response = soon("an answer", one.call(post(&key))).await.unwrap();
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
    // What is there at first is too long, or within the limit and not all of it.
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
        // It is not at its end, and counts as completed.
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

/// A body whose frames come one after the other, and of whose length it says nothing: a proxy's.
fn in_time(frames: impl IntoIterator<Item = &'static str>) -> Body {
    let (send, frames_sent) = mpsc::channel(1);
    let frames: Vec<_> = frames.into_iter().collect();
    tokio::spawn(async move {
        for frame in frames {
            tokio::task::yield_now().await;
            if frame == NEVER {
                send.closed().await;
            }
            let frame = match frame {
                BROKEN => Err(std::io::Error::other(BROKEN)),
                frame => Ok(data(frame)),
            };
            let _ = send.send(frame).await;
        }
    });
    whole(StreamBody::new(ReceiverStream::new(frames_sent)))
}

/// The rest of the body does not come.
const NEVER: &str = "never";
const BROKEN: &str = "broken";

fn sized(length: &str, content: Body) -> Response<Body> {
    let response = Response::builder().header(CONTENT_LENGTH, length);
    response.body(content).unwrap()
}

fn post_over(version: Version, key: &str) -> Request<Body> {
    let mut request = post(key);
    *request.version_mut() = version;
    request
}

async fn an_answer_whose_length_its_head_tells_is_read_to_its_end(nodes: Nodes) {
    const LIMIT: usize = 100;
    for version in [Version::HTTP_11, Version::HTTP_2] {
        for (length, frames, is_kept) in [
            ("7", &["one ", "two"][..], true),
            ("0", &[], true),
            ("101", &["one ", "two"], false),
            // No length, or no one length.
            ("+7", &["one ", "two"], false),
            ("7 ", &["one ", "two"], false),
            // A client of HTTP/1 does not wait for more.
            ("7", &["one ", "two", NEVER], version == Version::HTTP_11),
        ] {
            if frames.last() == Some(&NEVER) && !is_kept {
                continue;
            }
            let runs = Runs::default();
            let handler = runs.then(move |_, _| {
                std::future::ready(Ok(sized(length, in_time(frames.iter().copied()))))
            });
            let [one, two] = nodes
                .layers()
                .map(|layer| App::new(&layer.max_response_body(LIMIT), handler.clone()));
            let key = format!("{version:?} {length} {}", frames.len()).replace(' ', "_");
            let first = one.send(post_over(version, &key)).await;
            assert_eq!((first.status(), first.is_replay()), (200, false));
            let content = if length == "0" { "" } else { "one two" };
            assert_eq!(first.body, content, "{key}");
            for app in [&one, &two] {
                let replay = app.send(post_over(version, &key)).await;
                assert!(replay.is_replay());
                let not_kept = replay.head.headers.get("idempotent-body");
                assert_eq!(not_kept.is_none(), is_kept, "{key}");
                assert_eq!(replay.body, if is_kept { content } else { "" }, "{key}");
            }
            assert_eq!(runs.count(), 1);
        }
    }
}

async fn an_answer_that_is_not_as_long_as_its_head_says(nodes: Nodes) {
    use Version as V;
    for (version, frames, received, is_kept) in [
        // Too short: its client knows that it has not got all.
        (V::HTTP_11, &["one"][..], Ok("one"), false),
        (V::HTTP_2, &["one"], Ok("one"), false),
        // Too long: in HTTP/1, its client has what it was told, and knows of no more.
        (V::HTTP_11, &["one ", "two, three"], Ok("one two"), true),
        (
            V::HTTP_2,
            &["one ", "two, three"],
            Ok("one two, three"),
            false,
        ),
        (V::HTTP_11, &["one ", BROKEN], Err(BROKEN), false),
        (V::HTTP_2, &["one ", BROKEN], Err(BROKEN), false),
    ] {
        // As it is known that it ends, or as it is there at once.
        for is_there in [false, true] {
            if is_there && received.is_err() {
                continue;
            }
            let runs = Runs::default();
            let handler = runs.then(move |_, _| {
                let content = match is_there {
                    false => in_time(frames.iter().copied()),
                    true => self::frames(frames.iter().map(|frame| data(*frame))),
                };
                std::future::ready(Ok(sized("7", content)))
            });
            let [one, two] = on_both(&nodes, handler);
            let key = format!("{version:?}{}{is_there}", frames.concat()).replace(' ', "");
            for (number, app) in [&one, &two].into_iter().enumerate() {
                let call = app.call(post_over(version, &key));
                let response = soon("a head", call).await.unwrap();
                let is_replay = response.headers().contains_key("idempotent-replayed");
                assert_eq!(is_replay, is_kept && number > 0, "{key}");
                // A server must not announce another length than the head has.
                let hint = response.body().size_hint().exact();
                assert!(hint.is_none_or(|length| length == 7), "{key}: {hint:?}");
                let body = soon("the body", response.into_body().collect()).await;
                match received {
                    Ok(text) => assert_eq!(body.unwrap().to_bytes(), text, "{key}"),
                    Err(error) => assert_eq!(body.unwrap_err().to_string(), error),
                }
            }
            assert_eq!(runs.count(), if is_kept { 1 } else { 2 }, "{key}");
        }
    }
}

/// What it would have been for a GET, or is in the client's cache.
async fn a_length_that_tells_nothing_of_the_body_is_not_waited_for(nodes: Nodes) {
    for (method, status) in [("HEAD", 200), ("POST", 304), ("POST", 204)] {
        let runs = Runs::default();
        let handler = runs.then(move |_, _| {
            let mut response = sized("1000", body(""));
            *response.status_mut() = status.try_into().unwrap();
            std::future::ready(Ok(response))
        });
        let layers = [&nodes.one, &nodes.two]
            .map(|locks| IdempotencyLayer::webhook(locks.clone(), "idempotency-key"));
        for (number, layer) in layers.into_iter().enumerate() {
            let app = App::new(&layer, handler.clone());
            let mut request = post(&status.to_string());
            *request.method_mut() = method.parse().unwrap();
            let answer = app.send(request).await;
            assert_eq!((answer.status(), answer.is_replay()), (status, number > 0));
            assert_eq!(answer.head.headers[CONTENT_LENGTH], "1000");
            assert_eq!(answer.head.headers.get("idempotent-body"), None);
            assert!(answer.body.is_empty());
        }
        assert_eq!(runs.count(), 1);
    }
}

/// Ten bytes, as it says, of which it sends some.
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

async fn a_grpc_answer_counts_as_its_code_says(nodes: Nodes) {
    let runs = Runs::default();
    let handler = runs.then(|_, request| {
        let (place, code) = request.uri().path()[1..].split_once('/').unwrap();
        let mut fields = HeaderMap::new();
        fields.insert("grpc-status", code.parse().unwrap());
        let mut response = Response::builder();
        let content = match place {
            "head" => {
                *response.headers_mut().unwrap() = fields;
                body("")
            }
            _ => frames([data("message"), Frame::trailers(fields)]),
        };
        std::future::ready(Ok(response.body(content).unwrap()))
    });
    let [one, two] = on_both(&nodes, handler);
    for place in ["head", "trailers"] {
        for code in 0..=16 {
            // CANCELLED, UNKNOWN, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, ABORTED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE,
            // DATA_LOSS.
            let is_final = ![1, 2, 4, 8, 10, 12, 13, 14, 15].contains(&code);
            for (number, app) in [&one, &two].into_iter().enumerate() {
                let mut request = post_to(&format!("/{place}/{code}"), "k");
                let headers = request.headers_mut();
                headers.insert(CONTENT_TYPE, "application/grpc".parse().unwrap());
                let answer = app.send(request).await;
                let is_replay = number > 0 && is_final;
                assert_eq!(answer.is_replay(), is_replay, "{place} {code}");
                let mut fields = match place {
                    "head" => &answer.head.headers,
                    _ => answer.trailers.as_ref().unwrap(),
                }
                .get_all("grpc-status")
                .iter();
                assert_eq!(fields.next().unwrap(), code.to_string().as_str());
            }
        }
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

// Requests.

#[tokio::test]
async fn a_request_that_is_too_long_is_refused_before_it_runs() {
    const LIMIT: usize = 1000;
    let runs = Runs::default();
    let layer = IdempotencyLayer::new(LockManager::in_memory()).max_request_body(LIMIT);
    let app = App::new(
        &layer,
        runs.then(|run, request: Inside| async move {
            let content = whole(request.into_body()).collect().await.unwrap();
            assert_eq!(content.to_bytes().len(), LIMIT);
            Ok(text(format!("run {run}")))
        }),
    );
    // One that says so is not looked at.
    let says = post("k").map(|_| {
        whole(Known {
            length: LIMIT as u64 + 1,
        })
    });
    let chunks = |count: usize| {
        // Where too much was read, nothing more is.
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

/// Only says how long it is.
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
        move |request: Inside| {
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

// Over real sockets.

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

async fn axum_on(router: Router) -> SocketAddr {
    let (listener, address) = listen().await;
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

async fn hyper_on<S, B>(service: S, version: Version) -> SocketAddr
where
    S: Service<Request<Incoming>, Response = Response<B>, Future: Send, Error: Send>
        + Clone
        + Send
        + 'static,
    S::Error: Into<tower::BoxError>,
    B: http_body::Body<Data = Bytes, Error: Into<tower::BoxError>> + Send + 'static,
{
    let (listener, address) = listen().await;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let io = TokioIo::new(stream);
            let service = TowerToHyperService::new(service.clone());
            tokio::spawn(async move {
                let _ = match version {
                    Version::HTTP_2 => {
                        hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                            .serve_connection(io, service)
                            .await
                    }
                    _ => {
                        hyper::server::conn::http1::Builder::new()
                            .serve_connection(io, service)
                            .await
                    }
                };
            });
        }
    });
    address
}

fn client(version: Version) -> Client<HttpConnector, Full<Bytes>> {
    Client::builder(TokioExecutor::new())
        .http2_only(version == Version::HTTP_2)
        .build_http()
}

async fn ask(
    client: &Client<HttpConnector, Full<Bytes>>,
    address: SocketAddr,
    path: &str,
    key: &str,
    content: impl Into<Bytes>,
) -> Answer {
    let request = Request::post(format!("http://{address}{path}"))
        .header("idempotency-key", key)
        .header("te", "trailers")
        .header(CONTENT_TYPE, "application/json");
    let request = request.body(Full::new(content.into())).unwrap();
    let response = soon("an answer", client.request(request)).await.unwrap();
    Answer::of(response.map(whole)).await
}

async fn axum_layer_and_route_layer(nodes: Nodes) {
    let (runs, gate) = (Runs::default(), Gate::new());
    let router = |layer: IdempotencyLayer, by_route: bool| {
        let (counted, gate) = (runs.clone(), gate.clone());
        let gated = routing::post(move |Json(number): Json<u32>| {
            let (counted, gate) = (counted.clone(), gate.clone());
            async move {
                gate.pass().await;
                let run = counted.one_more();
                ([("x-run", run.to_string())], format!("{number}"))
            }
        });
        let counted = runs.clone();
        let none = routing::post(move |content: Bytes| async move {
            assert_eq!(content, "1");
            counted.one_more();
            StatusCode::NO_CONTENT
        });
        let router = Router::new().route("/gated", gated).route("/none", none);
        match by_route {
            true => router.route_layer(layer),
            false => router.layer(layer),
        }
    };
    for by_route in [false, true] {
        let [one, two] = nodes.layers().map(|layer| router(layer, by_route));
        let (one, two) = (axum_on(one).await, axum_on(two).await);
        let client = client(Version::HTTP_11);
        let key = format!("\"{by_route}\"");
        let first = tokio::spawn({
            let (client, key) = (client.clone(), key.clone());
            async move { ask(&client, one, "/gated", &key, "7").await }
        });
        gate.arrived().await;
        for address in [one, two] {
            let refused = ask(&client, address, "/gated", &key, "7").await;
            refused.is_refused(409);
            assert!(refused.head.headers.contains_key(CONTENT_LENGTH));
        }
        gate.open();
        let first = soon("an answer", first).await.unwrap();
        assert_eq!((first.status(), first.is_replay()), (200, false));
        assert_eq!(first.head.headers[CONTENT_LENGTH], "1");
        for address in [one, two] {
            let replay = ask(&client, address, "/gated", &key, "7").await;
            assert!(replay.is_replay());
            assert_eq!(replay.body, "7");
            assert_eq!(replay.head.headers["x-run"], first.head.headers["x-run"]);
            assert_eq!(replay.head.headers[CONTENT_LENGTH], "1");
            assert!(!replay.head.headers.contains_key(TRANSFER_ENCODING));
            ask(&client, address, "/gated", &key, "8")
                .await
                .is_refused(422);
        }
        // What axum itself says of a body is an answer like another.
        let nonsense = format!("nonsense-{by_route}");
        for is_replay in [false, true] {
            let answer = ask(&client, one, "/gated", &nonsense, "x").await;
            assert_eq!((answer.status(), answer.is_replay()), (400, is_replay));
        }
        let runs_before = runs.count();
        for (number, address) in [one, one, two].into_iter().enumerate() {
            let answer = ask(&client, address, "/none", &key, "1").await;
            assert_eq!((answer.status(), answer.is_replay()), (204, number > 0));
            assert!(answer.body.is_empty());
        }
        assert_eq!(runs.count(), runs_before + 1);
        // By route, what is not there is not looked at.
        let unknown = ask(&client, one, "/unknown", &key, "1").await;
        assert_eq!((unknown.status(), unknown.is_replay()), (404, false));
        let unknown = ask(&client, two, "/unknown", &key, "1").await;
        assert_eq!((unknown.status(), unknown.is_replay()), (404, !by_route));
    }
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

/// One HTTP/1.1 connection, by hand.
struct Raw(BufReader<TcpStream>);

impl Raw {
    async fn connect(address: SocketAddr) -> Self {
        Self(BufReader::new(TcpStream::connect(address).await.unwrap()))
    }

    async fn send(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).await.unwrap();
    }

    /// The status line of the next head, which is read to its end, and the length of what follows.
    async fn head(&mut self) -> (String, usize) {
        let mut next = async || {
            let mut line = String::new();
            soon("a line", self.0.read_line(&mut line)).await.unwrap();
            line.trim_end().to_ascii_lowercase()
        };
        let (status, mut length) = (next().await, 0);
        loop {
            let line = next().await;
            match line.strip_prefix("content-length: ") {
                Some(value) => length = value.parse().unwrap(),
                None if line.is_empty() => return (status, length),
                None => {}
            }
        }
    }

    async fn answer(&mut self) -> (String, String) {
        let (status, length) = self.head().await;
        let mut content = vec![0; length];
        soon("a body", self.0.read_exact(&mut content))
            .await
            .unwrap();
        (status, String::from_utf8(content).unwrap())
    }
}

#[tokio::test]
async fn who_expects_to_be_told_to_go_on_is_told_so_unless_the_head_is_refused() {
    let runs = Runs::default();
    let counted = runs.clone();
    let layer = IdempotencyLayer::new(LockManager::in_memory());
    let layer = layer.require_key(true).max_request_body(10);
    let echo = routing::post(async move |content: String| {
        counted.one_more();
        content
    });
    let address = axum_on(Router::new().route("/a", echo).route_layer(layer)).await;
    let head = |key: &str, length: usize| {
        format!(
            "POST /a HTTP/1.1\r\nhost: x\r\n{key}content-length: {length}\r\nexpect: 100-continue\r\n\r\n"
        )
    };
    let key = "idempotency-key: k\r\n";
    let mut client = Raw::connect(address).await;
    for _ in 0..2 {
        client.send(&head(key, 7)).await;
        assert_eq!(client.head().await.0, "http/1.1 100 continue");
        client.send("payload").await;
        let (status, content) = client.answer().await;
        assert_eq!((&*status, &*content), ("http/1.1 200 ok", "payload"));
    }
    assert_eq!(runs.count(), 1);
    for (key, length, status) in [
        ("", 7, "http/1.1 400 bad request"),
        ("idempotency-key: \r\n", 7, "http/1.1 400 bad request"),
        (key, 11, "http/1.1 413 payload too large"),
    ] {
        let mut client = Raw::connect(address).await;
        client.send(&head(key, length)).await;
        assert_eq!(client.head().await.0, status);
    }
    // One that does not say its length is read until it is too long.
    let mut client = Raw::connect(address).await;
    let chunked =
        "POST /a HTTP/1.1\r\nhost: x\r\nidempotency-key: l\r\ntransfer-encoding: chunked\r\n\r\n";
    client.send(chunked).await;
    client.send("6\r\nabcdef\r\n6\r\nghijkl\r\n").await;
    assert_eq!(client.head().await.0, "http/1.1 413 payload too large");
    assert_eq!(runs.count(), 1);
}

#[tokio::test]
async fn a_smaller_limit_of_the_extractors_inside_still_holds() {
    let (runs, layer) = (
        Runs::default(),
        IdempotencyLayer::new(LockManager::in_memory()),
    );
    let counted = runs.clone();
    let echo = routing::post(async move |content: Bytes| {
        counted.one_more();
        content
    });
    let router = Router::new().route("/a", echo).route_layer(layer);
    let address = axum_on(router.layer(DefaultBodyLimit::max(10))).await;
    let client = client(Version::HTTP_11);
    for is_replay in [false, true] {
        let answer = ask(&client, address, "/a", "long", "payload that is too long").await;
        // It is axum that says so.
        assert_eq!((answer.status(), answer.is_replay()), (413, is_replay));
        assert_ne!(
            answer.head.headers[CONTENT_TYPE],
            "application/problem+json"
        );
        let answer = ask(&client, address, "/a", "short", "payload").await;
        assert_eq!((answer.status(), answer.is_replay()), (200, is_replay));
    }
    assert_eq!(runs.count(), 1);
}

#[tokio::test]
async fn who_leaves_over_a_socket_finds_the_answer_later() {
    let (runs, gate) = (Runs::default(), Gate::new());
    let layer = IdempotencyLayer::new(LockManager::in_memory());
    let (counted, passed) = (runs.clone(), gate.clone());
    let handler = routing::post(async move || {
        passed.pass().await;
        format!("run {}", counted.one_more())
    });
    // Outside of the layer, it is noticed that the client has left.
    let (note, has_left) = OnDrop::new();
    let note = Arc::new(Mutex::new(Some(note)));
    let outside = from_fn(move |request: axum::extract::Request, next: Next| {
        let note = note.lock().unwrap().take();
        async move {
            let _note = note;
            next.run(request).await
        }
    });
    let router = Router::new().route("/a", handler);
    let router = router.route_layer(layer.wait(Duration::from_secs(3600)));
    let address = axum_on(router.layer(outside)).await;
    let mut leaves = Raw::connect(address).await;
    let request = "POST /a HTTP/1.1\r\nhost: x\r\nidempotency-key: k\r\ncontent-length: 0\r\n\r\n";
    leaves.send(request).await;
    gate.arrived().await;
    drop(leaves);
    eventually("it is noticed", async || has_left.load(Ordering::SeqCst)).await;
    let client = client(Version::HTTP_11);
    let mut later = Box::pin(ask(&client, address, "/a", "k", ""));
    assert!(poll!(&mut later).is_pending());
    gate.open();
    later.await.is_replay_of(1);
}

// tonic.

#[derive(Clone, PartialEq, prost::Message)]
struct Text {
    #[prost(string, tag = "1")]
    text: String,
}

/// What tonic's code generator would make of a service with one method.
#[derive(Clone)]
struct Echo {
    gate: Gate,
    runs: Runs,
}

impl NamedService for Echo {
    const NAME: &'static str = "test.Echo";
}

type TonicBody = tonic::body::Body;
type TonicFuture = Pin<Box<dyn Future<Output = Result<Response<TonicBody>, Infallible>> + Send>>;

impl<B> Service<Request<B>> for Echo
where
    B: http_body::Body<Data = Bytes, Error: Into<tower::BoxError> + Send> + Send + 'static,
{
    type Response = Response<TonicBody>;
    type Error = Infallible;
    type Future = TonicFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> TonicFuture {
        let Self { gate, runs } = self.clone();
        let request = request.map(TonicBody::new);
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(ProstCodec::<Text, Text>::default());
            let method = service_fn(move |request: tonic::Request<Text>| {
                let (gate, runs) = (gate.clone(), runs.clone());
                async move {
                    gate.pass().await;
                    let run = runs.one_more();
                    let Text { text } = request.into_inner();
                    match text.as_str() {
                        "fail" => Err(Status::not_found(format!("run {run}"))),
                        "busy" => Err(Status::unavailable(format!("run {run}"))),
                        _ => Ok(tonic::Response::new(Text {
                            text: format!("{text}, run {run}"),
                        })),
                    }
                }
            });
            Ok(grpc.unary(method, request).await)
        })
    }
}

struct EchoClient(tonic::client::Grpc<Channel>);

impl EchoClient {
    async fn connect(address: SocketAddr) -> Self {
        let channel = Channel::from_shared(format!("http://{address}")).unwrap();
        Self(tonic::client::Grpc::new(channel.connect().await.unwrap()))
    }

    /// The answer, and whether it is a replay.
    async fn unary(&self, key: &'static str, text: &str) -> (Result<String, Status>, bool) {
        let mut grpc = self.0.clone();
        grpc.ready().await.unwrap();
        let path = PathAndQuery::from_static("/test.Echo/Unary");
        let text = text.to_owned();
        let mut request = tonic::Request::new(Text { text });
        request
            .metadata_mut()
            .insert("idempotency-key", key.parse().unwrap());
        let call = grpc.unary(request, path, ProstCodec::<Text, Text>::default());
        let answer = soon("an answer", call).await;
        let metadata = match &answer {
            Ok(response) => response.metadata(),
            Err(status) => status.metadata(),
        };
        let is_replay = metadata.contains_key("idempotent-replayed");
        (answer.map(|answer| answer.into_inner().text), is_replay)
    }
}

async fn tonic_unary(nodes: Nodes, is_around_server: bool) {
    let (runs, gate) = (Runs::default(), Gate::new());
    let [one, two] = nodes.layers().map(|layer| async {
        let (listener, address) = listen().await;
        let incoming = TcpListenerStream::new(listener);
        let echo = Echo {
            gate: gate.clone(),
            runs: runs.clone(),
        };
        match is_around_server {
            true => {
                let server = Server::builder().layer(layer).add_service(echo);
                tokio::spawn(server.serve_with_incoming(incoming));
            }
            false => {
                let server = Server::builder().add_service(layer.named_layer(echo));
                tokio::spawn(server.serve_with_incoming(incoming));
            }
        }
        EchoClient::connect(address).await
    });
    let (one, two) = (one.await, two.await);
    let first = one.unary("k", "text");
    let duplicates = async {
        gate.arrived().await;
        for client in [&one, &two] {
            let (answer, is_replay) = client.unary("k", "text").await;
            let status = answer.unwrap_err();
            assert_eq!((status.code(), is_replay), (Code::Aborted, false));
            assert_eq!(
                status.message(),
                "a request with this idempotency key is still running"
            );
        }
        gate.open();
    };
    let ((answer, is_replay), ()) = tokio::join!(first, duplicates);
    assert_eq!((&*answer.unwrap(), is_replay), ("text, run 1", false));
    for client in [&one, &two] {
        // With its trailers: without them, it would be no answer.
        let (answer, is_replay) = client.unary("k", "text").await;
        assert_eq!((&*answer.unwrap(), is_replay), ("text, run 1", true));
        let (answer, _) = client.unary("k", "other").await;
        assert_eq!(answer.unwrap_err().code(), Code::InvalidArgument);
    }
    // NOT_FOUND is final, UNAVAILABLE is not.
    for _ in 0..3 {
        gate.open();
    }
    for (number, client) in [&one, &one, &two].into_iter().enumerate() {
        let (answer, is_replay) = client.unary("f", "fail").await;
        let status = answer.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::NotFound, "run 2"));
        assert_eq!(is_replay, number > 0);
    }
    for (client, message) in [(&one, "run 3"), (&two, "run 4")] {
        let (answer, is_replay) = client.unary("b", "busy").await;
        let status = answer.unwrap_err();
        let said = (status.code(), status.message());
        assert_eq!(said, (Code::Unavailable, message));
        assert!(!is_replay);
    }
    assert_eq!(runs.count(), 4);
}

async fn tonic_server_layer(nodes: Nodes) {
    tonic_unary(nodes, true).await;
}

async fn tonic_service_layer(nodes: Nodes) {
    tonic_unary(nodes, false).await;
}
