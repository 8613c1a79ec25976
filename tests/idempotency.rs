//! The rules of the idempotency layer, over every store: what is a duplicate, who runs, who waits, who is refused.

mod common;

use std::collections::HashSet;
use std::convert::Infallible;
use std::future::ready;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::once::{Answer, App, Body, Failed, Inside, Runs, body, post, post_to, text, whole};
use common::{Gate, RedisServer, eventually, minute, run, script_calls, soon};
use futures_util::future::join_all;
use futures_util::{FutureExt, StreamExt, poll};
use http::{Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_distributed_lock::{
    DistributedLockLayer, ErrorKind, IdempotencyLayer, LockManager, key,
    lock::{Rejection, RejectionKind},
};

/// Longer than any test.
const WAIT: Duration = Duration::from_secs(3600);

/// Two nodes over one Redis, or one node that is asked twice.
struct Nodes {
    server: Option<RedisServer>,
    one: LockManager,
    two: LockManager,
}

impl Nodes {
    async fn in_memory() -> Self {
        let one = minute().in_memory().unwrap();
        let two = one.clone();
        Self {
            server: None,
            one,
            two,
        }
    }

    async fn over_redis() -> Self {
        let server = RedisServer::start().await;
        Self {
            one: minute().connect(&server.url()).await.unwrap(),
            two: minute().connect(&server.url()).await.unwrap(),
            server: Some(server),
        }
    }

    fn layers(&self) -> [IdempotencyLayer; 2] {
        [&self.one, &self.two].map(|locks| IdempotencyLayer::new(locks.clone()))
    }

    fn layer(&self) -> IdempotencyLayer {
        IdempotencyLayer::new(self.one.clone())
    }

    /// Node two has its place in the queue of the only key that anybody waits for.
    async fn both_wait(&self) {
        let Some(server) = &self.server else {
            return;
        };
        let redis = server.client().await;
        eventually("the other node waits", || async {
            let queues: Vec<String> = names(&redis, "*:queue:*").await;
            match &queues[..] {
                [queue] => run(&redis, &format!("LLEN {queue}")).await == redis::Value::Int(1),
                _ => false,
            }
        })
        .await;
    }

    /// Nothing but records is left in Redis.
    async fn nothing_but_records_is_left(&self) {
        let Some(server) = &self.server else {
            return;
        };
        let redis = server.client().await;
        eventually("nothing but records is left", || async {
            for name in names(&redis, "*").await {
                let is_record = name.ends_with("}:record") && {
                    let value: Vec<u8> = redis::cmd("GET")
                        .arg(&name)
                        .query_async(&mut redis.clone())
                        .await
                        .unwrap();
                    value.starts_with(b"TDLR")
                };
                if !is_record && name != "{lock:}:fence" {
                    return false;
                }
            }
            true
        })
        .await;
    }
}

async fn names(redis: &redis::aio::MultiplexedConnection, pattern: &str) -> Vec<String> {
    let mut keys = redis::cmd("KEYS");
    keys.arg(pattern);
    keys.query_async(&mut redis.clone()).await.unwrap()
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
    a_duplicate_gets_the_answer_of_the_first
    only_post_and_patch_with_a_key_are_looked_at
    quoted_and_bare_are_the_same_key
    the_same_key_with_another_payload_is_refused
    what_must_be_the_same_can_be_chosen
    a_duplicate_of_a_request_that_runs_is_refused_at_once
    a_duplicate_that_waits_gets_the_answer_of_the_first
    one_completion_wakes_all_who_wait_on_every_node
    when_a_run_fails_one_who_waits_runs_and_the_others_get_its_answer
    a_wait_ends_with_a_refusal
    a_grpc_call_waits_no_longer_than_its_client
    the_same_key_with_another_method_or_path_is_another
    the_same_key_of_another_caller_is_another
    scopes_and_keys_do_not_run_together
    a_lock_and_a_record_are_never_the_same
    webhooks_have_their_own_rules
    the_key_can_be_in_the_body
    five_hundred_simultaneous_duplicates_run_once
    a_request_runs_on_when_its_client_leaves
    who_leaves_while_waiting_leaves_nothing
    who_leaves_at_any_moment_leaves_nothing_that_runs_twice
    a_handler_that_panics_does_so_for_its_caller_and_frees_the_key
    the_error_of_the_service_inside_comes_through_and_frees_the_key
    applied_twice_it_looks_once
    a_lock_inside_says_that_the_request_did_not_run
    once_for_each_event_and_one_at_a_time_for_each_account
}

// What is a duplicate.

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
    // Others are not read before they run: each side sends its second frame when it has the other's first.
    for (method, has_key) in [(Method::PUT, true), (Method::POST, false)] {
        let echo = App::new(&nodes.layer(), async |request: Inside| {
            Ok(Response::new(whole(request.into_body())))
        });
        let (send, frames) = mpsc::unbounded_channel();
        let frames = UnboundedReceiverStream::new(frames);
        let frames = frames.map(|data| Ok::<_, Infallible>(Frame::data(Bytes::from(data))));
        let (parts, _) = request(&method, has_key).into_parts();
        let request = Request::from_parts(parts, whole(StreamBody::new(frames)));
        let response = soon("an answer", echo.call(request)).await.unwrap();
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

/// A body that must not be looked at.
fn untouchable() -> Body {
    let frames = futures_util::stream::poll_fn(|_| -> Poll<Option<Result<_, Infallible>>> {
        panic!("the body was read")
    });
    whole(StreamBody::new(
        frames.map(|frame: Result<Frame<Bytes>, Infallible>| frame),
    ))
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
    assert_eq!(rejection.kind(), RejectionKind::InvalidKey);
    assert_eq!(answer.head.headers.get("retry-after"), None);
    assert_eq!(runs.count(), 0);
    app.send(post("k")).await.is_run(1);
    // Of those that are looked at.
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

fn with_body(key: &str, payload: &'static str) -> Request<Body> {
    post(key).map(|_| body(payload))
}

async fn the_same_key_with_another_payload_is_refused(nodes: Nodes) {
    let (runs, gate) = (Runs::default(), Gate::new());
    let [one, two] = nodes
        .layers()
        .map(|layer| App::new(&layer.wait(WAIT), runs.gated(&gate)));
    let first = one.begin(with_body("k", "payload")).await;
    gate.arrived().await;
    // One that waits finds out when there is something to compare.
    let other = two.begin(with_body("k", "another")).await;
    let same = two.begin(with_body("k", "payload")).await;
    gate.open();
    soon("an answer", first).await.unwrap().is_run(1);
    soon("an answer", other).await.unwrap().is_refused(422);
    soon("an answer", same).await.unwrap().is_replay_of(1);
    for app in [&one, &two] {
        for payload in ["", "payloa", "payload "] {
            let answer = app.send(with_body("k", payload)).await;
            answer.is_refused(422);
            let rejection = answer.head.extensions.get::<Rejection>().unwrap();
            assert_eq!(rejection.kind(), RejectionKind::Mismatch);
            assert_eq!(answer.head.headers.get("retry-after"), None);
        }
        app.send(with_body("k", "payload")).await.is_replay_of(1);
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

// Who waits.

async fn a_duplicate_of_a_request_that_runs_is_refused_at_once(nodes: Nodes) {
    let (runs, gate) = (Runs::default(), Gate::new());
    let [one, two] = nodes
        .layers()
        .map(|layer| App::new(&layer, runs.gated(&gate)));
    let first = one.begin(post("k")).await;
    gate.arrived().await;
    for app in [&one, &two] {
        let answer = app.send(post("k")).await;
        answer.is_refused(409);
        let rejection = answer.head.extensions.get::<Rejection>().unwrap();
        assert_eq!(rejection.kind(), RejectionKind::Held);
        let again: u32 = answer.head.headers["retry-after"]
            .to_str()
            .unwrap()
            .parse()
            .unwrap();
        assert!(again > 0);
    }
    if let Some(server) = &nodes.server {
        // What runs here is known here. (The first renewal, to look at it, comes in between.)
        let redis = server.client().await;
        eventually("the lease has been looked at", || async {
            script_calls(&redis).await >= 3
        })
        .await;
        let before = script_calls(&redis).await;
        for _ in 0..100 {
            one.send(post("k")).await.is_refused(409);
        }
        assert_eq!(script_calls(&redis).await, before);
    }
    gate.open();
    soon("an answer", first).await.unwrap().is_run(1);
    two.send(post("k")).await.is_replay_of(1);
    assert_eq!(runs.count(), 1);
}

async fn a_duplicate_that_waits_gets_the_answer_of_the_first(nodes: Nodes) {
    let (runs, gate) = (Runs::default(), Gate::new());
    let [one, two] = nodes
        .layers()
        .map(|layer| App::new(&layer.wait(WAIT), runs.gated(&gate)));
    for (app, key) in [(&one, "k"), (&two, "l")] {
        let first = one.begin(post(key)).await;
        gate.arrived().await;
        let mut second = app.begin(post(key)).await;
        if std::ptr::eq(app, &two) {
            nodes.both_wait().await;
        }
        assert!(poll!(&mut second).is_pending());
        gate.open();
        let run = runs.count();
        soon("an answer", first).await.unwrap().is_run(run);
        let second = soon("the same answer", second).await.unwrap();
        second.is_replay_of(run);
    }
    assert!(gate.nobody_else());
    assert_eq!(runs.count(), 2);
    nodes.nothing_but_records_is_left().await;
}

async fn one_completion_wakes_all_who_wait_on_every_node(nodes: Nodes) {
    let (runs, gate) = (Runs::default(), Gate::new());
    let [one, two] = nodes
        .layers()
        .map(|layer| App::new(&layer.wait(WAIT), runs.gated(&gate)));
    let first = one.begin(post("k")).await;
    gate.arrived().await;
    let mut waiting = Vec::new();
    for app in [&one, &two] {
        for _ in 0..20 {
            waiting.push(app.begin(post("k")).await);
        }
    }
    nodes.both_wait().await;
    let calls = async || match &nodes.server {
        Some(server) => script_calls(&server.client().await).await,
        None => 0,
    };
    let before = calls().await;
    gate.open();
    soon("an answer", first).await.unwrap().is_run(1);
    for waiter in waiting {
        soon("the same answer", waiter)
            .await
            .unwrap()
            .is_replay_of(1);
    }
    assert_eq!(runs.count(), 1);
    // The completion, a look from each node, and perhaps a renewal that was due.
    let calls = calls().await - before;
    assert!(calls <= 5, "{calls} calls");
    nodes.nothing_but_records_is_left().await;
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Failure {
    ServerError,
    Error,
    Panic,
}

async fn when_a_run_fails_one_who_waits_runs_and_the_others_get_its_answer(nodes: Nodes) {
    for failure in [Failure::ServerError, Failure::Error, Failure::Panic] {
        let (runs, gate) = (Runs::default(), Gate::new());
        let handler = runs.then({
            let gate = gate.clone();
            move |run, _| {
                let gate = gate.clone();
                async move {
                    gate.pass().await;
                    let mut response = text(format!("run {run}"));
                    match failure {
                        _ if run > 1 => {}
                        Failure::ServerError => {
                            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
                        }
                        Failure::Error => return Err(Failed(7)),
                        Failure::Panic => panic!("as asked"),
                    }
                    Ok(response)
                }
            }
        });
        let [one, two] = nodes
            .layers()
            .map(|layer| App::new(&layer.wait(WAIT), handler.clone()));
        let key = format!("{failure:?}");
        let first = tokio::spawn(one.call(post(&key)));
        gate.arrived().await;
        let mut waiting = Vec::new();
        for app in [&one, &two] {
            for _ in 0..10 {
                waiting.push(app.begin(post(&key)).await);
            }
        }
        nodes.both_wait().await;
        gate.open();
        match (failure, soon("an answer", first).await) {
            (Failure::ServerError, Ok(Ok(response))) => {
                let answer = Answer::of(response).await;
                assert_eq!((answer.status(), answer.is_replay()), (500, false));
            }
            (Failure::Error, Ok(Err(error))) => assert_eq!(error, Failed(7)),
            (Failure::Panic, Err(error)) => assert!(error.is_panic()),
            (_, other) => panic!("{failure:?}: {other:?}"),
        }
        gate.arrived().await;
        assert!(gate.nobody_else());
        gate.open();
        let mut answers = Vec::new();
        for waiter in waiting {
            answers.push(soon("an answer", waiter).await.unwrap());
        }
        let (replays, firsts): (Vec<_>, Vec<_>) = answers.iter().partition(|it| it.is_replay());
        assert_eq!((firsts.len(), replays.len()), (1, 19));
        firsts[0].is_run(2);
        replays.iter().for_each(|replay| replay.is_replay_of(2));
        assert_eq!(runs.count(), 2);
    }
    nodes.nothing_but_records_is_left().await;
}

async fn a_wait_ends_with_a_refusal(nodes: Nodes) {
    let (runs, gate) = (Runs::default(), Gate::new());
    let wait = Duration::from_millis(50);
    let [one, two] = nodes
        .layers()
        .map(|layer| App::new(&layer.wait(wait), runs.gated(&gate)));
    let first = tokio::spawn(one.call(post("k")));
    gate.arrived().await;
    for app in [&one, &two] {
        let started = Instant::now();
        let answer = app.send(post("k")).await;
        assert!(started.elapsed() >= wait);
        answer.is_refused(409);
        assert!(answer.head.headers.contains_key("retry-after"));
        let rejection = answer.head.extensions.get::<Rejection>().unwrap();
        assert_eq!(rejection.kind(), RejectionKind::TimedOut);
    }
    gate.open();
    soon("an answer", first).await.unwrap().unwrap();
    two.send(post("k")).await.is_replay_of(1);
    nodes.nothing_but_records_is_left().await;
}

async fn a_grpc_call_waits_no_longer_than_its_client(nodes: Nodes) {
    let (runs, gate) = (Runs::default(), Gate::new());
    let [one, two] = nodes
        .layers()
        .map(|layer| App::new(&layer.wait(WAIT), runs.gated(&gate)));
    let call = |timeout: &'static str, content_type: &'static str| {
        let mut request = post("k");
        let headers = request.headers_mut();
        headers.insert("content-type", content_type.parse().unwrap());
        headers.insert("grpc-timeout", timeout.parse().unwrap());
        request
    };
    let first = one.begin(post("k")).await;
    gate.arrived().await;
    let answer = two.send(call("20m", "application/grpc")).await;
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.head.headers["grpc-status"], "10");
    assert_eq!(answer.head.headers["content-type"], "application/grpc");
    assert!(answer.body.is_empty() && !answer.is_replay());
    // A longer one changes nothing, nor one of a request that is no gRPC.
    let others = [
        two.begin(call("20H", "application/grpc")).await,
        two.begin(call("20m", "application/json")).await,
    ];
    tokio::time::sleep(Duration::from_millis(60)).await;
    assert!(others.iter().all(|other| !other.is_finished()));
    gate.open();
    soon("an answer", first).await.unwrap().is_run(1);
    for other in others {
        soon("an answer", other).await.unwrap().is_replay_of(1);
    }
}

// Scopes.

async fn the_same_key_with_another_method_or_path_is_another(nodes: Nodes) {
    let runs = Runs::default();
    let app = App::new(&nodes.layer(), runs.handler());
    app.send(post_to("/a", "k")).await.is_run(1);
    app.send(post_to("/b", "k")).await.is_run(2);
    app.send(post_to("/a/", "k")).await.is_run(3);
    let mut patch = post_to("/a", "k");
    *patch.method_mut() = Method::PATCH;
    app.send(patch).await.is_run(4);
    app.send(post_to("/a", "k")).await.is_replay_of(1);
    app.send(post_to("/%61", "k")).await.is_replay_of(1);
    app.send(post_to("/b", "k")).await.is_replay_of(2);
}

fn from_user(user: Option<&str>, key: &str) -> Request<Body> {
    let mut request = post(key);
    if let Some(user) = user {
        request
            .headers_mut()
            .insert("x-user", user.parse().unwrap());
    }
    request
}

async fn the_same_key_of_another_caller_is_another(nodes: Nodes) {
    let runs = Runs::default();
    let scope = key::join(key::header("x-user"), key::method_and_path());
    let app = App::new(&nodes.layer().scope(scope), runs.handler());
    app.send(from_user(Some("ann"), "k")).await.is_run(1);
    app.send(from_user(Some("bob"), "k")).await.is_run(2);
    app.send(from_user(Some("ann"), "k")).await.is_replay_of(1);
    app.send(from_user(Some("bob"), "k")).await.is_replay_of(2);
    for nobody in [from_user(None, "k"), from_user(Some(""), "k")] {
        let nobody = nobody.map(|_| untouchable());
        app.send(nobody).await.is_refused(400);
    }
    assert_eq!(runs.count(), 2);
}

async fn scopes_and_keys_do_not_run_together(nodes: Nodes) {
    let runs = Runs::default();
    let app = App::new(&nodes.layer().scope(key::header("x-user")), runs.handler());
    let long = "s".repeat(600);
    let pairs = [
        ("a:b", "c"),
        ("a", "b:c"),
        ("a%3Ab", "c"),
        ("a", "b%3Ac"),
        ("a", "bc"),
        ("ab", "c"),
        ("sha256", "c"),
        ("sha256:a", "c"),
        (&long, "c"),
        (&long, "d"),
        ("a", "c}:queue"),
        ("a}:queue:{lock:a", "c"),
    ];
    for (number, (scope, key)) in pairs.into_iter().enumerate() {
        app.send(from_user(Some(scope), key))
            .await
            .is_run(number + 1);
    }
    for (number, (scope, key)) in pairs.into_iter().enumerate() {
        let again = app.send(from_user(Some(scope), key)).await;
        again.is_replay_of(number + 1);
    }
}

async fn a_lock_and_a_record_are_never_the_same(nodes: Nodes) {
    let (runs, gate) = (Runs::default(), Gate::new());
    let app = App::new(&nodes.layer(), runs.gated(&gate));
    // What the key is called in Redis, and all that might be mistaken for it.
    let record = "{lock:POST%3A/a:k}:record";
    let alike = [
        record,
        "POST%3A/a:k",
        "POST:/a:k",
        "lock:POST%3A/a:k",
        "{lock:POST%3A/a:k}",
        "{POST%3A/a:k}:record",
        "}:record",
        ":record",
    ];
    let locks_are_free = async || {
        for name in alike {
            for locks in [&nodes.one, &nodes.two] {
                let guard = locks.try_acquire(name).await.unwrap();
                guard.release().await.unwrap();
            }
        }
    };
    // Held by others, they are in nobody's way.
    let mut guards = Vec::new();
    for name in alike {
        guards.push(nodes.two.try_acquire(name).await.unwrap());
    }
    let first = app.begin(post("k")).await;
    gate.arrived().await;
    if let Some(server) = &nodes.server {
        let redis = server.client().await;
        assert!(names(&redis, "*").await.contains(&record.to_owned()));
    }
    for guard in guards {
        guard.release().await.unwrap();
    }
    locks_are_free().await;
    app.send(post("k")).await.is_refused(409);
    gate.open();
    soon("an answer", first).await.unwrap().is_run(1);
    locks_are_free().await;
    app.send(post("k")).await.is_replay_of(1);
    nodes.nothing_but_records_is_left().await;
}

// Other keys.

async fn webhooks_have_their_own_rules(nodes: Nodes) {
    let runs = Runs::default();
    let layer = IdempotencyLayer::webhook(nodes.one.clone(), "Webhook-Id");
    let app = App::new(&layer, runs.handler());
    let event = |method: Method, id: Option<&str>, payload: &'static str| {
        let mut request = Request::builder().method(method).uri("/hook");
        if let Some(id) = id {
            request = request.header("webhook-id", id);
        }
        request.body(body(payload)).unwrap()
    };
    app.send(event(Method::POST, Some("e1"), "one"))
        .await
        .is_run(1);
    // Sent again, its timestamp is another one.
    app.send(event(Method::POST, Some("e1"), "two"))
        .await
        .is_replay_of(1);
    app.send(event(Method::PUT, Some("e2"), "")).await.is_run(2);
    app.send(event(Method::PUT, Some("e2"), ""))
        .await
        .is_replay_of(2);
    app.send(event(Method::POST, None, ""))
        .await
        .is_refused(400);
    app.send(event(Method::GET, None, "")).await.is_refused(400);
    app.send(event(Method::POST, Some(""), ""))
        .await
        .is_refused(400);
    assert_eq!(runs.count(), 2);
}

async fn the_key_can_be_in_the_body(nodes: Nodes) {
    let runs = Runs::default();
    let by_body = |layer: IdempotencyLayer| {
        layer.key(|_, body: &Bytes| {
            let text = std::str::from_utf8(body).ok()?;
            Some(text.strip_prefix("id=")?.split(';').next()?.to_owned())
        })
    };
    let event = |payload: &'static str| Request::post("/hook").body(body(payload)).unwrap();
    let hook = IdempotencyLayer::webhook(nodes.one.clone(), "x");
    let app = App::new(&by_body(hook), runs.handler());
    app.send(event("id=1;x")).await.is_run(1);
    app.send(event("id=1;y")).await.is_replay_of(1);
    app.send(event("id=2;x")).await.is_run(2);
    app.send(event("none")).await.is_refused(400);
    app.send(event("id=")).await.is_refused(400);
    // Where it is not required, what has none runs, with the body that was read.
    let optional = App::new(
        &by_body(nodes.layer()),
        runs.then(|run, request: Inside| async move {
            let payload = whole(request.into_body()).collect().await.unwrap();
            let payload = payload.to_bytes();
            assert_eq!(payload, "none");
            Ok(text(format!("run {run}")))
        }),
    );
    optional.send(event("none")).await.is_run(3);
    optional.send(event("none")).await.is_run(4);
}

// Whatever happens, one run.

/// A check that is made before, and apart from, the set would let several through; nobody is told 503 for being second.
async fn five_hundred_simultaneous_duplicates_run_once(nodes: Nodes) {
    for (key, is_patient) in [("patient", true), ("impatient", false)] {
        let runs = Runs::default();
        let handler = runs.then(|run, _| async move {
            tokio::task::yield_now().await;
            Ok(text(format!("run {run}")))
        });
        let apps = nodes.layers().map(|layer| {
            let layer = match is_patient {
                true => layer.wait(WAIT),
                false => layer,
            };
            App::new(&layer, handler.clone())
        });
        let answers = (0..500).map(|number| {
            let app = apps[number % 2].clone();
            tokio::spawn(async move { app.send(post(key)).await })
        });
        let answers = soon("all are answered", join_all(answers)).await;
        let answers: Vec<Answer> = answers.into_iter().map(Result::unwrap).collect();
        let statuses: HashSet<u16> = answers.iter().map(Answer::status).collect();
        let (refused, answered): (Vec<_>, Vec<_>) =
            answers.iter().partition(|it| it.status() == 409);
        assert!(refused.is_empty() || !is_patient);
        assert!(
            statuses.is_subset(&HashSet::from([200, 409])),
            "{statuses:?}"
        );
        let (replays, firsts): (Vec<_>, Vec<_>) =
            answered.into_iter().partition(|it| it.is_replay());
        assert_eq!(firsts.len(), 1);
        firsts[0].is_run(1);
        replays.iter().for_each(|replay| replay.is_replay_of(1));
        assert_eq!(runs.count(), 1);
    }
    nodes.nothing_but_records_is_left().await;
}

async fn a_request_runs_on_when_its_client_leaves(nodes: Nodes) {
    let (runs, gate) = (Runs::default(), Gate::new());
    let [one, two] = nodes
        .layers()
        .map(|layer| App::new(&layer.wait(WAIT), runs.gated(&gate)));
    let leaves = one.begin(post("k")).await;
    gate.arrived().await;
    leaves.abort();
    assert!(leaves.await.unwrap_err().is_cancelled());
    let duplicate = two.begin(post("k")).await;
    nodes.both_wait().await;
    gate.open();
    soon("the answer", duplicate).await.unwrap().is_replay_of(1);
    one.send(post("k")).await.is_replay_of(1);
    assert_eq!(runs.count(), 1);
}

async fn who_leaves_while_waiting_leaves_nothing(nodes: Nodes) {
    let (runs, gate) = (Runs::default(), Gate::new());
    let handler = runs.then({
        let gate = gate.clone();
        move |_, _| {
            let gate = gate.clone();
            async move {
                gate.pass().await;
                Err(Failed(1))
            }
        }
    });
    let [one, two] = nodes
        .layers()
        .map(|layer| App::new(&layer.wait(WAIT), handler.clone()));
    let first = tokio::spawn(one.call(post("k")));
    gate.arrived().await;
    let leaving = [one.begin(post("k")).await, two.begin(post("k")).await];
    nodes.both_wait().await;
    for leaving in leaving {
        leaving.abort();
        assert!(leaving.await.unwrap_err().is_cancelled());
    }
    gate.open();
    let error = soon("an answer", first).await.unwrap().unwrap_err();
    assert_eq!(error, Failed(1));
    assert_eq!(runs.count(), 1);
    nodes.nothing_but_records_is_left().await;
    let next = tokio::spawn(two.call(post("k")));
    gate.arrived().await;
    gate.open();
    soon("it runs", next).await.unwrap().unwrap_err();
    assert_eq!(runs.count(), 2);
}

async fn who_leaves_at_any_moment_leaves_nothing_that_runs_twice(nodes: Nodes) {
    for polls in 0..12 {
        let runs = Runs::default();
        let [one, two] = nodes
            .layers()
            .map(|layer| App::new(&layer.wait(WAIT), runs.handler()));
        let key = format!("k{polls}");
        let mut leaves = one.call(post(&key));
        for _ in 0..polls {
            if poll!(&mut leaves).is_ready() {
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(leaves);
        let next = two.send(post(&key)).await;
        assert_eq!(next.body, "run 1", "{polls} polls");
        one.send(post(&key)).await.is_replay_of(1);
        assert_eq!(runs.count(), 1);
    }
    nodes.nothing_but_records_is_left().await;
}

async fn a_handler_that_panics_does_so_for_its_caller_and_frees_the_key(nodes: Nodes) {
    let runs = Runs::default();
    let handler = runs.then(|run, _| {
        assert_ne!(run, 1, "in the call");
        async move {
            assert_ne!(run, 2, "in the future");
            Ok(text(format!("run {run}")))
        }
    });
    let [one, two] = nodes
        .layers()
        .map(|layer| App::new(&layer, handler.clone()));
    for message in ["in the call", "in the future"] {
        let panicked = AssertUnwindSafe(one.call(post("k"))).catch_unwind();
        let panic = soon("the panic", panicked).await.unwrap_err();
        let text = panic.downcast_ref::<String>().unwrap();
        assert!(text.contains(message), "{text}");
    }
    nodes.nothing_but_records_is_left().await;
    two.send(post("k")).await.is_run(3);
    one.send(post("k")).await.is_replay_of(3);
}

async fn the_error_of_the_service_inside_comes_through_and_frees_the_key(nodes: Nodes) {
    let runs = Runs::default();
    let handler = runs.then(|run, _| {
        ready(match run {
            1 => Err(Failed(7)),
            _ => Ok(text(format!("run {run}"))),
        })
    });
    let [one, two] = nodes
        .layers()
        .map(|layer| App::new(&layer, handler.clone()));
    assert_eq!(one.call(post("k")).await.unwrap_err(), Failed(7));
    // It is free before the client knows: the other node runs it at once.
    two.send(post("k")).await.is_run(2);
    one.send(post("k")).await.is_replay_of(2);
}

/// As strict as the contract of `Service` allows: a clone is not ready, and one call uses readiness up.
#[derive(Default)]
struct Strict {
    is_ready: bool,
}

impl Clone for Strict {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl Service<Inside> for Strict {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.is_ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Inside) -> Self::Future {
        assert!(std::mem::take(&mut self.is_ready), "not ready");
        ready(Ok(Response::default()))
    }
}

#[tokio::test]
async fn the_service_that_was_polled_ready_is_the_one_that_is_called() {
    let layer = IdempotencyLayer::new(LockManager::in_memory());
    let mut service = layer.layer(Strict::default());
    for key in ["a", "b", "a"] {
        let called = service.ready().await.unwrap().call(post(key));
        // The next one is polled ready before this one runs.
        let without_key = Request::post("/").body(body("")).unwrap();
        let without_key = service.ready().await.unwrap().call(without_key);
        assert_eq!(called.await.unwrap().status(), StatusCode::OK);
        assert_eq!(without_key.await.unwrap().status(), StatusCode::OK);
    }
    drop(service);
    let (mut service, mut handle) = tower_test::mock::spawn_layer::<_, Response<Full<Bytes>>, _>(
        IdempotencyLayer::new(LockManager::in_memory()),
    );
    handle.allow(0);
    assert!(service.poll_ready().is_pending());
    handle.allow(1);
    assert!(service.poll_ready().is_ready());
    drop(service.call(post("k")));
}

// With other layers.

async fn applied_twice_it_looks_once(nodes: Nodes) {
    let runs = Runs::default();
    let layer = nodes.layer().wait(WAIT);
    let counted = runs.handler();
    let twice = App::of(
        ServiceBuilder::new()
            .layer(layer.clone())
            .layer(layer.clone())
            .service(service_fn(move |request: Request<_>| {
                let (parts, _) = request.into_parts();
                let inside = layer.clone().layer(service_fn(counted.clone()));
                // And once more, far inside.
                inside.oneshot(Request::from_parts(parts, body("payload")))
            })),
    );
    twice.send(post("k")).await.is_run(1);
    twice.send(post("k")).await.is_replay_of(1);
    twice.send(post("l")).await.is_run(2);
}

async fn a_lock_inside_says_that_the_request_did_not_run(nodes: Nodes) {
    let runs = Runs::default();
    let gone = LockManager::builder().in_memory().unwrap();
    gone.close().await;
    // Whatever status it has.
    let teapot = |_: &Rejection| {
        let mut response = Response::new(Bytes::from("not run"));
        *response.status_mut() = StatusCode::IM_A_TEAPOT;
        response
    };
    let lock = |locks: &LockManager| DistributedLockLayer::new(locks.clone(), |_| "account");
    let app = |lock: DistributedLockLayer| {
        let stack = ServiceBuilder::new().layer(nodes.layer()).layer(lock);
        App::of(stack.service(service_fn(runs.handler())))
    };
    let guard = nodes.two.try_acquire("account").await.unwrap();
    for (lock, status) in [
        (lock(&nodes.one), 409),
        (lock(&nodes.one).rejection(teapot), 418),
        (lock(&gone), 503),
        (lock(&gone).rejection(teapot), 418),
    ] {
        let app = app(lock);
        for _ in 0..2 {
            let answer = app.send(post("k")).await;
            assert_eq!((answer.status(), answer.is_replay()), (status, false));
        }
    }
    guard.release().await.unwrap();
    let app = app(lock(&nodes.one));
    app.send(post("k")).await.is_run(1);
    app.send(post("k")).await.is_replay_of(1);
    // The other way round, the lock is there for the replay as well, and what is refused inside is said outside.
    let outside = ServiceBuilder::new()
        .layer(lock(&nodes.one).wait(WAIT))
        .layer(nodes.layer());
    let app = App::of(outside.service(service_fn(runs.handler())));
    app.send(post("k")).await.is_replay_of(1);
    app.send(with_body("k", "another")).await.is_refused(422);
    app.send(post("l")).await.is_run(2);
}

async fn once_for_each_event_and_one_at_a_time_for_each_account(nodes: Nodes) {
    for lock_is_outside in [false, true] {
        let (runs, inside) = (Runs::default(), Arc::new(AtomicUsize::new(0)));
        let handler = runs.then(move |run, _| {
            let inside = Arc::clone(&inside);
            async move {
                assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two at a time");
                tokio::task::yield_now().await;
                inside.fetch_sub(1, Ordering::SeqCst);
                Ok(text(format!("run {run}")))
            }
        });
        let apps = [&nodes.one, &nodes.two].map(|locks| {
            let once = IdempotencyLayer::new(locks.clone()).wait(WAIT);
            let lock = DistributedLockLayer::new(locks.clone(), |_| "account").wait(WAIT);
            let stack = ServiceBuilder::new();
            let handler = service_fn(handler.clone());
            match lock_is_outside {
                true => App::of(stack.layer(lock).layer(once).service(handler)),
                false => App::of(stack.layer(once).layer(lock).service(handler)),
            }
        });
        let answers = (0..100).map(|number| {
            let app = apps[number % 2].clone();
            let key = format!("{lock_is_outside} {}", number / 10).replace(' ', "-");
            tokio::spawn(async move { app.send(post(&key)).await })
        });
        let answers = soon("all are answered", join_all(answers)).await;
        let answers: Vec<Answer> = answers.into_iter().map(Result::unwrap).collect();
        assert!(answers.iter().all(|answer| answer.status() == 200));
        assert_eq!(runs.count(), 10);
        let firsts = answers.iter().filter(|answer| !answer.is_replay());
        assert_eq!(firsts.count(), 10);
        for event in answers.chunks(10) {
            assert!(event.iter().all(|answer| answer.body == event[0].body));
        }
    }
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
        let answer = app.send(with_body("secret-key", "another")).await;
        let is_replaced = answer.status() == 418;
        assert!(is_replaced || answer.status() == 422);
        let rejection = answer.head.extensions.get::<Rejection>().unwrap();
        assert_eq!(rejection.kind(), RejectionKind::Mismatch);
        assert!(!format!("{answer:?}").contains("secret-key"));
    }
}

#[tokio::test]
async fn too_many_who_wait_are_refused() {
    let locks = LockManager::builder().max_waiters_per_key(1);
    let (runs, gate) = (Runs::default(), Gate::new());
    let layer = IdempotencyLayer::new(locks.in_memory().unwrap()).wait(WAIT);
    let app = App::new(&layer, runs.gated(&gate));
    let first = app.begin(post("k")).await;
    gate.arrived().await;
    let second = app.begin(post("k")).await;
    app.send(post("k")).await.is_refused(503);
    gate.open();
    soon("an answer", first).await.unwrap().is_run(1);
    soon("an answer", second).await.unwrap().is_replay_of(1);
}

#[tokio::test]
async fn a_closed_manager_runs_nothing_and_what_runs_ends_well() {
    let locks = LockManager::in_memory();
    let (runs, gate) = (Runs::default(), Gate::new());
    let app = App::new(&IdempotencyLayer::new(locks.clone()), runs.gated(&gate));
    let first = app.begin(post("k")).await;
    gate.arrived().await;
    let mut closing = Box::pin(locks.close());
    assert!(poll!(&mut closing).is_pending());
    app.send(post("other")).await.is_refused(503);
    gate.open();
    soon("an answer", first).await.unwrap().is_run(1);
    soon("it is closed", closing).await;
    assert_eq!(runs.count(), 1);
    let error = locks.try_acquire("a").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed);
}

#[tokio::test]
async fn bad_settings_panic_when_they_are_set() {
    let layer = IdempotencyLayer::new(LockManager::in_memory());
    let (millisecond, day) = (Duration::from_millis(1), Duration::from_secs(24 * 3600));
    let fits = |set: &dyn Fn(IdempotencyLayer) -> IdempotencyLayer| {
        let layer = layer.clone();
        catch_unwind(AssertUnwindSafe(|| drop(set(layer)))).is_ok()
    };
    assert!(!fits(&|layer| layer.wait(Duration::ZERO)));
    assert!(!fits(&|layer| layer.wait(day + millisecond)));
    assert!(fits(&|layer| layer.wait(millisecond).wait(day)));
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
