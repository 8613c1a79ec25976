//! Runtimes that are dropped, blocked or not driven, and wakers that panic.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tower_distributed_lock::{ErrorKind, LockManager};

use crate::redis::{TIMEOUT, impatient, recovers, unavailable};
use crate::support::{
    Mode, PATIENCE, Proxy, RedisServer, eventually, eventually_no_trace, minute, short_lived, soon,
    value,
};

#[test]
fn a_runtime_that_is_dropped_leaves_no_lock() {
    let outer = tokio::runtime::Runtime::new().unwrap();
    let server = outer.block_on(RedisServer::start());
    let redis = outer.block_on(server.client());
    for flavor in ["current thread", "multi thread"] {
        let inner = match flavor {
            "current thread" => tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap(),
            _ => tokio::runtime::Runtime::new().unwrap(),
        };
        let locks = inner.block_on(async {
            let locks = LockManager::connect(&server.url()).await.unwrap();
            let guard = locks.try_acquire("a").await.unwrap();
            inner.spawn(async move {
                let _guard = guard;
                std::future::pending::<()>().await;
            });
            locks
        });
        assert!(outer.block_on(value(&redis, "lock:a")).is_some());
        drop(inner);
        outer.block_on(eventually_no_trace(&redis));
        // And the manager still works, from any other runtime.
        let guard = outer
            .block_on(async { soon("it works", locks.try_acquire("a")).await })
            .unwrap();
        outer.block_on(guard.release()).unwrap();
    }
}

fn runtime(threads: usize) -> tokio::runtime::Runtime {
    let mut runtime = match threads {
        0 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = runtime.worker_threads(threads.max(1));
    runtime.enable_all().build().unwrap()
}

#[test]
fn a_manager_works_where_its_own_runtime_is_not_driven() {
    let (idle, driven) = (runtime(0), runtime(2));
    let server = driven.block_on(RedisServer::start());
    let locks = idle.block_on(impatient().connect(&server.url())).unwrap();
    driven.block_on(async {
        let guard = locks.try_acquire("a").await.unwrap();
        let waiting = locks.clone();
        let waiting = tokio::spawn(async move { waiting.acquire("a", PATIENCE).await });
        guard.release().await.unwrap();
        let guard = soon("its turn", waiting).await.unwrap().unwrap();
        drop(guard);
        soon("an end", locks.close()).await;
    });
}

/// A handler that blocks the only thread of its runtime still holds its lock.
#[test]
fn a_lock_is_renewed_while_its_thread_is_blocked() {
    let (blocked, driven) = (runtime(0), runtime(1));
    let server = driven.block_on(RedisServer::start());
    let renewals = driven.block_on(server.client());
    blocked.block_on(async {
        let locks = short_lived(300).connect(&server.url()).await.unwrap();
        let guard = locks.try_acquire("a").await.unwrap();
        // Until it would have expired without a renewal.
        let (done, wait) = std::sync::mpsc::channel();
        driven.spawn(async move {
            let owner = value(&renewals, "lock:a").await;
            let begun = Instant::now();
            eventually("its time to live is over", || async {
                begun.elapsed() > Duration::from_millis(600)
            })
            .await;
            done.send((owner, value(&renewals, "lock:a").await))
                .unwrap();
        });
        let (before, after) = wait.recv().unwrap();
        assert_eq!(before, after);
        assert!(before.is_some() && guard.lease().is_held());
    });
}

/// All threads of the runtime that the manager runs on are blocked.
#[test]
fn a_request_is_answered_though_nothing_drives_its_manager() {
    let (blocked, driven) = (runtime(1), runtime(2));
    let server = driven.block_on(RedisServer::start());
    let locks = blocked
        .block_on(impatient().connect(&server.url()))
        .unwrap();
    let (unblock, wait) = std::sync::mpsc::channel::<()>();
    let (tell, is_blocked) = std::sync::mpsc::channel();
    let blocking = blocked.spawn(async move {
        tell.send(()).unwrap();
        let _ = wait.recv();
    });
    is_blocked.recv().unwrap();
    driven.block_on(async {
        unavailable(&locks).await;
        let waiting = locks.acquire("b", TIMEOUT).await.unwrap_err();
        assert_eq!(waiting.kind(), ErrorKind::Unavailable);
        unblock.send(()).unwrap();
        soon("the end", blocking).await.unwrap();
        recovers(&locks).await;
        let redis = server.client().await;
        soon("an end", locks.close()).await;
        eventually_no_trace(&redis).await;
    });
}

/// A waker may belong to any other future, and panic.
#[tokio::test]
async fn a_waker_that_panics_takes_no_other_request_along() {
    struct Panics;
    impl std::task::Wake for Panics {
        fn wake(self: Arc<Self>) {
            panic!("a waker of the service");
        }
    }
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let proxy = Proxy::start(server.port).await;
    let locks = minute().connect(&proxy.url()).await.unwrap();
    proxy.set(Mode::HoldAnswers);
    // As many calls as may be in flight. What comes now goes out in one call, and its replies come
    // together.
    let mut first = Vec::new();
    for key in ["first", "second"] {
        let mut request = Box::pin(locks.try_acquire(key));
        assert!(futures_util::poll!(&mut request).is_pending());
        first.push(request);
        let name = format!("lock:{key}");
        eventually("it is there", || async {
            value(&redis, &name).await.is_some()
        })
        .await;
    }
    let waker = std::task::Waker::from(Arc::new(Panics));
    let mut context = std::task::Context::from_waker(&waker);
    let mut panicking = Box::pin(locks.try_acquire("a"));
    assert!(panicking.as_mut().poll(&mut context).is_pending());
    let others: Vec<_> = (0..20)
        .map(|number| {
            let locks = locks.clone();
            tokio::spawn(async move { locks.try_acquire(format!("other {number}")).await })
        })
        .collect();
    proxy.set(Mode::Forward);
    for request in first {
        drop(soon("a result", request).await.unwrap());
    }
    for other in others {
        drop(soon("a result", other).await.unwrap().unwrap());
    }
    eventually("its lock is taken", || async {
        value(&redis, "lock:a").await.is_some()
    })
    .await;
    drop(panicking);
    eventually_no_trace(&redis).await;
    recovers(&locks).await;
}
