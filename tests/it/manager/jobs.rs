//! Work under a lock, work that is done once, and what is forgotten, over memory and over Redis.

use std::convert::Infallible;
use std::future::{pending, ready};
use std::sync::atomic::Ordering;
use std::time::Duration;

use tower_distributed_lock::{ErrorKind, IdempotencyLayer, LockKey, LockManager, Once};

use super::WAIT;
use crate::nodes::Nodes;
use crate::once::{App, Runs, post, text};
use crate::support::{Gate, OnDrop, eventually, is_fence, names, short_lived, soon};

on_every_store! {
    Nodes:
    work_runs_alone_under_its_lock_and_leaves_it_free
    work_does_not_begin_where_the_lock_is_held
    work_is_stopped_before_its_lock_that_was_lost_is_another_s
    work_that_did_not_await_past_its_lease_is_no_success
    work_that_is_done_once_is_done_on_no_other_node
    work_that_failed_or_was_stopped_is_not_remembered
    work_that_runs_is_not_done_yet_and_is_not_forgotten
    what_is_remembered_ends_with_its_retention_and_keys_are_kept_apart
    a_response_that_is_forgotten_is_given_anew
    a_closed_manager_forgets_nothing
}

const DAY: Duration = Duration::from_secs(24 * 3600);

type Done = Result<Once<u32, &'static str>, tower_distributed_lock::Error>;

async fn once(locks: &LockManager, key: &str) -> Done {
    locks.once(key, DAY, |_| ready(Ok(1))).await
}

async fn work_runs_alone_under_its_lock_and_leaves_it_free(nodes: Nodes) {
    let (one, two) = (&nodes.one, &nodes.two);
    let work = one.with_lock("a", WAIT, |lease| async move {
        let refused = two.try_acquire("a").await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Held);
        lease.fencing_token()
    });
    let token = work.await.unwrap();
    let guard = two.try_acquire("a").await.unwrap();
    assert!(guard.fencing_token() > token);
}

async fn work_does_not_begin_where_the_lock_is_held(nodes: Nodes) {
    let guard = nodes.two.try_acquire("a").await.unwrap();
    for (wait, kind) in [
        (Duration::ZERO, ErrorKind::Held),
        (Duration::from_millis(20), ErrorKind::TimedOut),
    ] {
        let never = |_| -> std::future::Ready<()> { panic!("it began") };
        let error = nodes.one.with_lock("a", wait, never).await.unwrap_err();
        assert_eq!(error.kind(), kind);
    }
    drop(guard);
}

/// A manager of the same store that loses every lock after a moment.
async fn losing(nodes: &Nodes) -> LockManager {
    let brief = short_lived(10_000).max_hold(Duration::from_millis(50));
    nodes.manager(brief).await
}

async fn work_is_stopped_before_its_lock_that_was_lost_is_another_s(nodes: Nodes) {
    let locks = losing(&nodes).await;
    let (on_drop, is_dropped) = OnDrop::new();
    let work = locks.with_lock("a", WAIT, |_| async move {
        let _on_drop = on_drop;
        pending::<()>().await;
    });
    let error = soon("it is stopped", work).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Lost);
    assert!(is_dropped.load(Ordering::SeqCst));
    drop(soon("it is free", locks.acquire("a", WAIT)).await.unwrap());
}

async fn work_that_did_not_await_past_its_lease_is_no_success(nodes: Nodes) {
    let locks = losing(&nodes).await;
    let blocking = |_| async { std::thread::sleep(Duration::from_millis(100)) };
    let error = locks.with_lock("a", WAIT, blocking).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Lost);
}

async fn work_that_is_done_once_is_done_on_no_other_node(nodes: Nodes) {
    assert_eq!(once(&nodes.one, "job").await.unwrap(), Once::Ran(1));
    for locks in [&nodes.two, &nodes.one] {
        assert_eq!(once(locks, "job").await.unwrap(), Once::AlreadyDone);
    }
    // The lock of the key is another one.
    drop(nodes.one.try_acquire("job").await.unwrap());
    assert!(nodes.two.forget("job").await.unwrap());
    assert!(!nodes.one.forget("job").await.unwrap());
    assert_eq!(once(&nodes.two, "job").await.unwrap(), Once::Ran(1));
}

async fn work_that_failed_or_was_stopped_is_not_remembered(nodes: Nodes) {
    let failing = nodes.one.once("job", DAY, |_| ready(Err::<u32, _>("no")));
    assert_eq!(failing.await.unwrap(), Once::Failed("no"));
    let locks = losing(&nodes).await;
    let stopped = locks.once("job", DAY, |_| pending::<Result<u32, &str>>());
    let error = soon("it is stopped", stopped).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Lost);
    // Its lock is released in the background.
    eventually("it runs", || async {
        match once(&nodes.two, "job").await.unwrap() {
            Once::Running => false,
            other => {
                assert_eq!(other, Once::Ran(1));
                true
            }
        }
    })
    .await;
}

async fn work_that_runs_is_not_done_yet_and_is_not_forgotten(nodes: Nodes) {
    let gate = Gate::new();
    let running = tokio::spawn({
        let (locks, gate) = (nodes.one.clone(), gate.clone());
        async move {
            let work = |_| async {
                gate.pass().await;
                Ok::<_, Infallible>(())
            };
            locks.once("job", DAY, work).await
        }
    });
    gate.arrived().await;
    assert_eq!(once(&nodes.two, "job").await.unwrap(), Once::Running);
    assert!(!nodes.two.forget("job").await.unwrap());
    gate.open();
    let ran = soon("it ends", running).await.unwrap().unwrap();
    assert_eq!(ran, Once::Ran(()));
    assert_eq!(once(&nodes.two, "job").await.unwrap(), Once::AlreadyDone);
}

async fn what_is_remembered_ends_with_its_retention_and_keys_are_kept_apart(nodes: Nodes) {
    let locks = &nodes.one;
    let second = Duration::from_secs(1);
    let brief = |key: &'static str, time| locks.once(key, time, |_| ready(Ok::<_, Infallible>(())));
    assert_eq!(brief("a:b", second).await.unwrap(), Once::Ran(()));
    for other in ["a", "a%3Ab", "{a:b}", "{lock:a:b}:record"] {
        assert_eq!(brief(other, DAY).await.unwrap(), Once::Ran(()), "{other}");
    }
    let again = || async { brief("a:b", second).await.unwrap() == Once::Ran(()) };
    crate::support::eventually("it may run again", again).await;
    for time in [Duration::ZERO, Duration::from_millis(999), 366 * DAY] {
        let error = brief("job", time).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
    }
}

async fn a_response_that_is_forgotten_is_given_anew(nodes: Nodes) {
    let long = vec![b'x'; 40_000];
    let runs = Runs::default();
    let handler = runs.then(move |_, _| ready(Ok(text(long.clone()))));
    let layer = IdempotencyLayer::new(nodes.one.clone()).fingerprint(|_, _| "");
    let app = App::new(&layer, handler);
    let scope = LockKey::join(["POST", "/a"]).unwrap();
    for run in 1..=2 {
        app.send(post("k")).await;
        app.send(post("k")).await;
        assert_eq!(runs.count(), run);
        let key = LockKey::join([scope.as_str(), "k"]).unwrap();
        assert!(nodes.two.forget(key).await.unwrap());
    }
    if let Some(server) = nodes.server() {
        let names = names(&server.client().await, "*").await;
        let are_left: Vec<_> = names.iter().filter(|name| !is_fence(name)).collect();
        assert!(
            are_left.is_empty(),
            "the parts are gone as well: {are_left:?}"
        );
    }
}

async fn a_closed_manager_forgets_nothing(nodes: Nodes) {
    let locks = losing(&nodes).await;
    soon("it is closed", locks.close()).await;
    let error = locks.forget("job").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed);
}
