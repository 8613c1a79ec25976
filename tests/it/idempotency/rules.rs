//! What is a duplicate, and what is refused.

use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use http::{Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tower_distributed_lock::{
    IdempotencyLayer, LockManager,
    lock::{Rejection, RejectionKind},
};

use super::{WAIT, untouchable, with_payload};
use crate::nodes::Nodes;
use crate::once::{App, InnerRequest, Runs, body, post, post_to, whole};
use crate::support::{Gate, soon};

on_every_store! {
    Nodes:
    a_duplicate_gets_the_answer_of_the_first
    only_post_and_patch_with_a_key_are_looked_at
    quoted_and_bare_are_the_same_key
    the_same_key_with_another_payload_is_refused
    what_must_be_the_same_can_be_chosen
}

async fn a_duplicate_gets_the_answer_of_the_first(nodes: Nodes) {
    let runs = Runs::default();
    let [one, two] = nodes.layers().map(|layer| App::new(&layer, runs.handler()));
    one.send(post("k")).await.is_run(1);
    for app in [&one, &two, &one] {
        app.send(post("k")).await.is_replay_of(1);
    }
    two.send(post("other")).await.is_run(2);
    one.send(post("other")).await.is_replay_of(2);
    assert_eq!(runs.count(), 2);
    nodes.nothing_but_records_is_left().await;
}

async fn only_post_and_patch_with_a_key_are_looked_at(nodes: Nodes) {
    let runs = Runs::default();
    let app = App::new(&nodes.layer(), runs.handler());
    let request = |method: &Method, has_key: bool| {
        let mut request = Request::builder().method(method).uri("/a");
        if has_key {
            request = request.header("idempotency-key", format!("k-{method}"));
        }
        request.body(body("payload")).unwrap()
    };
    for method in [Method::POST, Method::PATCH] {
        let run = runs.count() + 1;
        app.send(request(&method, true)).await.is_run(run);
        app.send(request(&method, true)).await.is_replay_of(run);
        app.send(request(&method, false)).await.is_run(run + 1);
        app.send(request(&method, false)).await.is_run(run + 2);
    }
    for method in [
        Method::GET,
        Method::HEAD,
        Method::PUT,
        Method::DELETE,
        Method::OPTIONS,
    ] {
        for _ in 0..2 {
            let run = runs.count() + 1;
            app.send(request(&method, true)).await.is_run(run);
        }
    }
    // The bodies of other requests are not read before they run: each side sends its second frame
    // when it has the other's first.
    for (method, has_key) in [(Method::PUT, true), (Method::POST, false)] {
        let echo = App::new(&nodes.layer(), async |request: InnerRequest| {
            Ok(Response::new(whole(request.into_body())))
        });
        let (send, frames) = mpsc::unbounded_channel();
        let frames = UnboundedReceiverStream::new(frames);
        let frames = frames.map(|data| Ok::<_, Infallible>(Frame::data(Bytes::from(data))));
        let (parts, _) = request(&method, has_key).into_parts();
        let request = Request::from_parts(parts, whole(StreamBody::new(frames)));
        let response = soon("a response", echo.call(request)).await.unwrap();
        let mut back = response.into_body();
        for part in ["one", "two"] {
            send.send(part).unwrap();
            let frame = soon("a frame", back.frame()).await.unwrap().unwrap();
            assert_eq!(frame.into_data().unwrap(), part);
        }
        drop(send);
        assert!(soon("the end", back.frame()).await.is_none());
    }
}

#[tokio::test]
async fn a_missing_key_is_refused_where_one_is_required_before_the_body_is_read() {
    let runs = Runs::default();
    let layer = IdempotencyLayer::new(LockManager::in_memory()).require_key(true);
    let app = App::new(&layer, runs.handler());
    let request = Request::post("/a").body(untouchable()).unwrap();
    let answer = app.send(request).await;
    answer.is_refused(400);
    let rejection = answer.head.extensions.get::<Rejection>().unwrap();
    assert_eq!(rejection.kind(), RejectionKind::MissingKey);
    assert_eq!(answer.head.headers.get("retry-after"), None);
    assert_eq!(runs.count(), 0);
    app.send(post("k")).await.is_run(1);
    // Only requests with the right method are looked at.
    let request = Request::get("/a").body(body("")).unwrap();
    app.send(request).await.is_run(2);
}

async fn quoted_and_bare_are_the_same_key(nodes: Nodes) {
    let runs = Runs::default();
    let app = App::new(&nodes.layer(), runs.handler());
    app.send(post("\"8e03978e\"")).await.is_run(1);
    app.send(post("8e03978e")).await.is_replay_of(1);
    let longest = "x".repeat(255);
    app.send(post(&longest)).await.is_run(2);
    app.send(post(&format!("\"{longest}\"")))
        .await
        .is_replay_of(2);
}

#[tokio::test]
async fn an_invalid_key_is_refused_before_the_body_is_read() {
    let runs = Runs::default();
    let too_long = "x".repeat(256);
    for required in [false, true] {
        let layer = IdempotencyLayer::new(LockManager::in_memory()).require_key(required);
        let app = App::new(&layer, runs.handler());
        for values in [
            &[&b""[..]][..],
            &[b"\"\""],
            &[too_long.as_bytes()],
            &[b"a b"],
            &[b"\"a b\""],
            &[b"\"a"],
            &[b"\"a\"; p=1"],
            &[b"\xc3\xa9"],
            &[b"a\tb"],
            &[b"a", b"b"],
            &[b"a", b"a"],
        ] {
            let mut request = Request::post("/a");
            for value in values {
                request = request.header("idempotency-key", *value);
            }
            let request = request.body(untouchable()).unwrap();
            app.send(request).await.is_refused(400);
        }
    }
    assert_eq!(runs.count(), 0);
}

async fn the_same_key_with_another_payload_is_refused(nodes: Nodes) {
    let (runs, gate) = (Runs::default(), Gate::new());
    let [one, two] = nodes
        .layers()
        .map(|layer| App::new(&layer.wait(WAIT), runs.gated(&gate)));
    let first = one.begin(with_payload("k", "payload")).await;
    gate.arrived().await;
    // A request that waits is compared once there is a record.
    let other = two.begin(with_payload("k", "another")).await;
    let same = two.begin(with_payload("k", "payload")).await;
    gate.open();
    soon("a response", first).await.unwrap().is_run(1);
    soon("a response", other).await.unwrap().is_refused(422);
    soon("a response", same).await.unwrap().is_replay_of(1);
    for app in [&one, &two] {
        for payload in ["", "payloa", "payload "] {
            let answer = app.send(with_payload("k", payload)).await;
            answer.is_refused(422);
            let rejection = answer.head.extensions.get::<Rejection>().unwrap();
            assert_eq!(rejection.kind(), RejectionKind::Mismatch);
            assert_eq!(answer.head.headers.get("retry-after"), None);
        }
        app.send(with_payload("k", "payload")).await.is_replay_of(1);
    }
    assert_eq!(runs.count(), 1);
}

async fn what_must_be_the_same_can_be_chosen(nodes: Nodes) {
    let runs = Runs::default();
    let layer = nodes.layer().fingerprint(|parts, body| {
        let query = parts.uri.query().unwrap_or_default();
        [query.as_bytes(), b"\0", &body.to_ascii_lowercase()].concat()
    });
    let app = App::new(&layer, runs.handler());
    let request = |query: &str, payload: &'static str| {
        post_to(&format!("/a?{query}"), "k").map(|_| body(payload))
    };
    app.send(request("x=1", "payload")).await.is_run(1);
    app.send(request("x=1", "PAYLOAD")).await.is_replay_of(1);
    app.send(request("x=2", "payload")).await.is_refused(422);
    app.send(request("x=1", "other")).await.is_refused(422);
    // By default, the query does not count.
    let app = App::new(&nodes.layer(), runs.handler());
    app.send(post_to("/b?x=1", "k")).await.is_run(2);
    app.send(post_to("/b?x=2", "k")).await.is_replay_of(2);
}

#[tokio::test]
async fn refusals_can_be_replaced_and_never_show_the_key() {
    let layer = IdempotencyLayer::new(LockManager::in_memory());
    let runs = Runs::default();
    for layer in [
        layer.clone(),
        layer.rejection(|rejection| {
            let mut response = rejection.to_response();
            *response.status_mut() = StatusCode::IM_A_TEAPOT;
            response
        }),
    ] {
        let app = App::new(&layer, runs.handler());
        app.send(post("secret-key")).await;
        let answer = app.send(with_payload("secret-key", "another")).await;
        let is_replaced = answer.status() == 418;
        assert!(is_replaced || answer.status() == 422);
        let rejection = answer.head.extensions.get::<Rejection>().unwrap();
        assert_eq!(rejection.kind(), RejectionKind::Mismatch);
        assert!(!format!("{answer:?}").contains("secret-key"));
    }
}

#[tokio::test]
async fn bad_settings_panic_when_they_are_set() {
    let layer = IdempotencyLayer::new(LockManager::in_memory());
    let (millisecond, day) = (Duration::from_millis(1), Duration::from_secs(24 * 3600));
    let fits = |set: &dyn Fn(IdempotencyLayer) -> IdempotencyLayer| {
        let layer = layer.clone();
        catch_unwind(AssertUnwindSafe(|| drop(set(layer)))).is_ok()
    };
    assert!(!fits(&|layer| layer.wait(day + millisecond)));
    assert!(fits(&|layer| layer.wait(Duration::ZERO).wait(day)));
    assert!(!fits(&|layer| layer.retention(Duration::from_millis(999))));
    assert!(!fits(&|layer| layer.retention(365 * day + millisecond)));
    assert!(fits(&|layer| layer
        .retention(Duration::from_secs(1))
        .retention(365 * day)));
    let most = 256 << 20;
    assert!(!fits(&|layer| layer.max_request_body(most + 1)));
    assert!(!fits(&|layer| layer.max_response_body(most + 1)));
    assert!(fits(&|layer| layer
        .max_request_body(most)
        .max_response_body(most)));
    assert!(!fits(&|_| IdempotencyLayer::webhook(
        LockManager::in_memory(),
        "no header"
    )));
    assert!(!fits(&|_| IdempotencyLayer::webhook(
        LockManager::in_memory(),
        ""
    )));
}
