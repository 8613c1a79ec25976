//! Duplicates of a request that still runs: who waits, for how long, and what they get.

use std::time::{Duration, Instant};

use futures_util::poll;
use http::StatusCode;
use tower_distributed_lock::{
    IdempotencyLayer, LockManager,
    lock::{Rejection, RejectionKind},
};

use super::WAIT;
use crate::nodes::Nodes;
use crate::once::{Answer, App, Failed, Runs, post, text};
use crate::support::{Gate, eventually, script_calls, soon};

on_every_store! {
    Nodes:
    a_duplicate_of_a_request_that_runs_is_refused_at_once
    a_duplicate_that_waits_gets_the_answer_of_the_first
    one_completion_wakes_all_who_wait_on_every_node
    when_a_run_fails_one_who_waits_runs_and_the_others_get_its_answer
    a_wait_ends_with_a_refusal
    a_grpc_call_waits_no_longer_than_its_client
}

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
    if let Some(server) = nodes.server() {
        // A node knows which requests it runs, without Redis. (The first renewal, which looks at
        // the lock, comes before.)
        let redis = server.client().await;
        eventually("the lease has been looked at", || async {
            script_calls(&redis).await >= 1
        })
        .await;
        let before = script_calls(&redis).await;
        for _ in 0..100 {
            one.send(post("k")).await.is_refused(409);
        }
        assert_eq!(script_calls(&redis).await, before);
    }
    gate.open();
    soon("a response", first).await.unwrap().is_run(1);
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
        soon("a response", first).await.unwrap().is_run(run);
        let second = soon("the same response", second).await.unwrap();
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
    let calls = async || match nodes.server() {
        Some(server) => script_calls(&server.client().await).await,
        None => 0,
    };
    let before = calls().await;
    gate.open();
    soon("a response", first).await.unwrap().is_run(1);
    for waiter in waiting {
        soon("the same response", waiter)
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
        match (failure, soon("a response", first).await) {
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
            answers.push(soon("a response", waiter).await.unwrap());
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
    soon("a response", first).await.unwrap().unwrap();
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
    // A longer timeout changes nothing, nor does that of a request that is not gRPC.
    let others = [
        two.begin(call("20H", "application/grpc")).await,
        two.begin(call("20m", "application/json")).await,
    ];
    tokio::time::sleep(Duration::from_millis(60)).await;
    assert!(others.iter().all(|other| !other.is_finished()));
    gate.open();
    soon("a response", first).await.unwrap().is_run(1);
    for other in others {
        soon("a response", other).await.unwrap().is_replay_of(1);
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
    soon("a response", first).await.unwrap().is_run(1);
    soon("a response", second).await.unwrap().is_replay_of(1);
}
