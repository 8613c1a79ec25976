//! The idempotency layer together with itself and with the lock layer.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::future::join_all;
use http::{Request, Response, StatusCode};
use tower::{Layer, ServiceBuilder, ServiceExt, service_fn};
use tower_distributed_lock::{
    DistributedLockLayer, IdempotencyLayer, LockManager, lock::Rejection,
};

use super::{WAIT, with_payload};
use crate::nodes::Nodes;
use crate::once::{self, Answer, App, InnerRequest, Runs, body, post, text};
use crate::support::{Gate, OnDrop, soon};

on_every_store! {
    Nodes:
    applied_twice_it_looks_once
    a_lock_inside_says_that_the_request_did_not_run
    once_for_each_event_and_one_at_a_time_for_each_account
    under_a_lock_a_run_ends_with_its_client
    under_a_lock_a_run_ends_with_that_lock
}

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
                // And a third time, further inside.
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
    // This holds whatever the status is.
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
    // The other way round, a replay takes the lock as well, and a refusal of the inner layer
    // reaches the client.
    let outside = ServiceBuilder::new()
        .layer(lock(&nodes.one).wait(WAIT))
        .layer(nodes.layer());
    let app = App::of(outside.service(service_fn(runs.handler())));
    app.send(post("k")).await.is_replay_of(1);
    app.send(with_payload("k", "another")).await.is_refused(422);
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

/// By its key, under the lock of an account.
fn under_a_lock<F, R>(nodes: &Nodes, handler: F) -> App
where
    F: Fn(InnerRequest) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = once::Result> + Send + 'static,
{
    let lock = DistributedLockLayer::new(nodes.one.clone(), |_| "account").wait(WAIT);
    let stack = ServiceBuilder::new().layer(lock).layer(nodes.layer());
    App::of(stack.service(service_fn(handler)))
}

async fn under_a_lock_a_run_ends_with_its_client(nodes: Nodes) {
    let (runs, gate, inside) = (Runs::default(), Gate::new(), Arc::new(AtomicUsize::new(0)));
    let app = under_a_lock(
        &nodes,
        runs.then({
            let (gate, inside) = (gate.clone(), Arc::clone(&inside));
            move |run, _| {
                let (gate, inside) = (gate.clone(), Arc::clone(&inside));
                async move {
                    assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two at a time");
                    let _leaves = Leaves(inside);
                    gate.pass().await;
                    Ok(text(format!("run {run}")))
                }
            }
        }),
    );
    let client = app.begin(post("k")).await;
    gate.arrived().await;
    client.abort();
    // Another event of that account, and then this one again.
    for (run, key) in [(2, "l"), (3, "k")] {
        let client = app.begin(post(key)).await;
        gate.arrived().await;
        gate.open();
        soon("an answer", client).await.unwrap().is_run(run);
    }
    app.send(post("k")).await.is_replay_of(3);
}

async fn under_a_lock_a_run_ends_with_that_lock(nodes: Nodes) {
    let (runs, gate) = (Runs::default(), Gate::new());
    let (note, is_dropped) = OnDrop::new();
    let note = Arc::new(Mutex::new(Some(note)));
    let app = under_a_lock(
        &nodes,
        runs.then({
            let gate = gate.clone();
            move |run, _| {
                let (gate, note) = (gate.clone(), note.lock().unwrap().take());
                async move {
                    let _note = note;
                    gate.pass().await;
                    Ok(text(format!("run {run}")))
                }
            }
        }),
    );
    let client = app.begin(post("k")).await;
    gate.arrived().await;
    assert!(nodes.one.force_release("account").await.unwrap());
    soon("an answer", client).await.unwrap().is_refused(503);
    assert!(
        is_dropped.load(Ordering::SeqCst),
        "it goes on without its lock"
    );
    gate.open();
    app.send(post("k")).await.is_run(2);
}

/// Counts one less inside when it is dropped.
struct Leaves(Arc<AtomicUsize>);

impl Drop for Leaves {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}
