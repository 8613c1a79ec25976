//! Whatever clients, handlers and managers do, there is one run.

use std::collections::HashSet;
use std::future::ready;
use std::panic::AssertUnwindSafe;

use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::{FutureExt, poll};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use tower::{Layer, Service, ServiceExt};
use tower_distributed_lock::{ErrorKind, IdempotencyLayer, LockManager};

use super::WAIT;
use crate::nodes::Nodes;
use crate::once::{Answer, App, Failed, InnerRequest, Runs, body, post, text};
use crate::strict::Strict;
use crate::support::{Gate, soon};

on_every_store! {
    Nodes:
    five_hundred_simultaneous_duplicates_run_once
    a_request_runs_on_when_its_client_leaves
    who_leaves_while_waiting_leaves_nothing
    who_leaves_at_any_moment_leaves_nothing_that_runs_twice
    a_handler_that_panics_does_so_for_its_caller_and_frees_the_key
    the_error_of_the_service_inside_comes_through_and_frees_the_key
}

/// A check that is made before, and apart from, the write would let several through. No request
/// gets a 503 for being second.
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
    soon("the response", duplicate)
        .await
        .unwrap()
        .is_replay_of(1);
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
    let error = soon("a response", first).await.unwrap().unwrap_err();
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
    // The key is free before the client has the error, so the other node runs it at once.
    two.send(post("k")).await.is_run(2);
    one.send(post("k")).await.is_replay_of(2);
}

#[tokio::test]
async fn the_service_that_was_polled_ready_is_the_one_that_is_called() {
    let layer = IdempotencyLayer::new(LockManager::in_memory());
    let mut service = layer.layer(Strict::<InnerRequest>::default());
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
    soon("a response", first).await.unwrap().is_run(1);
    soon("it is closed", closing).await;
    assert_eq!(runs.count(), 1);
    let error = locks.try_acquire("a").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed);
}
