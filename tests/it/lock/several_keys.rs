//! One layer that locks several keys for each request.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::poll;
use http::{Response, StatusCode};
use http_body_util::Full;
use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
use tower_distributed_lock::key::LockKeys;
use tower_distributed_lock::lock::{Hold, OnUnavailable, RejectionKind, Unlocked};
use tower_distributed_lock::{
    DistributedLockLayer, Lease, Leases, LockGuards, LockKey, LockManager,
};

use super::{
    Answer, LayerOn, Request, WAIT, done, gated, grpc_request, is_free, on, rejection, request,
    text,
};
use crate::support::{ClosedPort, Gate, RedisServer, eventually, minute, run, soon};

/// Locks all the keys of the header, which has commas between them.
fn by_list(locks: &LockManager) -> DistributedLockLayer {
    DistributedLockLayer::new(locks.clone(), |req| {
        let keys = req.headers.get("x-keys")?.to_str().unwrap();
        Some(keys.split(',').map(str::to_owned).collect::<Vec<_>>())
    })
}

fn request_for(keys: &str) -> Request {
    let mut request = request();
    let headers = request.headers_mut();
    headers.insert("x-keys", keys.parse().unwrap());
    request
}

/// What requests found in their extensions.
type Found = Arc<Mutex<Vec<(Option<Leases>, Option<Lease>)>>>;

fn noting(
    found: &Found,
) -> impl Service<Request, Response = Response<Full<Bytes>>, Error = Infallible, Future: Send + Unpin>
+ Clone
+ Send
+ use<> {
    let found = Arc::clone(found);
    service_fn(move |req: Request| {
        let extensions = req.extensions();
        let leases = (extensions.get().cloned(), extensions.get().cloned());
        found.lock().unwrap().push(leases);
        std::future::ready(done())
    })
}

fn names(leases: &Leases) -> Vec<&str> {
    leases.iter().map(|lease| lease.key().as_str()).collect()
}

async fn are_free(locks: &LockManager, keys: &[&str]) -> bool {
    locks.try_acquire_all(keys.iter().copied()).await.is_ok()
}

#[tokio::test]
async fn a_request_holds_all_its_keys_until_its_body_is_sent_and_finds_their_leases() {
    let locks = LockManager::in_memory();
    let found = Found::default();
    let mut service = by_list(&locks).layer_on(noting(&found));
    let response = service.call(request_for("b,c,a,b")).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let (leases, lease) = found.lock().unwrap().pop().unwrap();
    let leases = leases.unwrap();
    assert_eq!(names(&leases), ["a", "b", "c"]);
    assert!(leases.is_held() && leases.get("c").unwrap().fencing_token() > 0);
    assert!(lease.is_none(), "of three, none is the lease");
    for key in ["a", "b", "c"] {
        assert!(!is_free(&locks, key).await);
        let refused = service
            .call(request_for(&format!("0,{key}")))
            .await
            .unwrap();
        assert_eq!(refused.status(), StatusCode::CONFLICT);
        assert_eq!(rejection(&refused).kind(), RejectionKind::Held);
        assert_eq!(rejection(&refused).key().unwrap().as_str(), key);
        assert!(is_free(&locks, "0").await);
    }
    assert_eq!(text(response).await, "done");
    assert!(are_free(&locks, &["a", "b", "c"]).await);
    // A list of one is several keys, too.
    service.call(request_for("a,a")).await.unwrap();
    let (leases, lease) = found.lock().unwrap().pop().unwrap();
    assert_eq!(names(&leases.unwrap()), ["a"]);
    assert_eq!(lease.unwrap().key().as_str(), "a");
}

#[tokio::test]
async fn a_request_waits_for_all_its_keys_and_is_told_which_was_not_free() {
    let locks = LockManager::in_memory();
    let layer = by_list(&locks).wait(WAIT);
    let service = layer.layer_on(service_fn(async |_: Request| done()));
    let b = locks.try_acquire("b").await.unwrap();
    let mut waiting = Box::pin(service.clone().oneshot(request_for("c,a,b")));
    assert!(poll!(&mut waiting).is_pending());
    assert!(!is_free(&locks, "a").await && is_free(&locks, "c").await);
    drop(b);
    let response = soon("it is served", waiting).await.unwrap();
    assert_eq!(text(response).await, "done");
    let _b = locks.try_acquire("b").await.unwrap();
    let brief = layer.wait(Duration::from_millis(20));
    let service = brief.layer_on(service_fn(async |_: Request| done()));
    let response = service.oneshot(request_for("c,a,b")).await.unwrap();
    assert_eq!(rejection(&response).kind(), RejectionKind::TimedOut);
    assert_eq!(rejection(&response).key().unwrap().as_str(), "b");
    assert!(rejection(&response).waited() >= Duration::from_millis(20));
    assert!(are_free(&locks, &["a", "c"]).await);
}

#[tokio::test]
async fn a_request_that_leaves_while_it_waits_or_runs_holds_nothing() {
    let locks = LockManager::in_memory();
    let gate = Gate::new();
    let handler = gated(&gate, done);
    let service = by_list(&locks).wait(WAIT).layer_on(handler);
    let b = locks.try_acquire("b").await.unwrap();
    let mut waiting = Box::pin(service.clone().oneshot(request_for("a,b")));
    assert!(poll!(&mut waiting).is_pending());
    drop(waiting);
    assert!(is_free(&locks, "a").await);
    drop(b);
    let running = tokio::spawn(service.oneshot(request_for("a,b")));
    gate.arrived().await;
    assert!(!is_free(&locks, "a").await && !is_free(&locks, "b").await);
    running.abort();
    assert!(running.await.unwrap_err().is_cancelled());
    assert!(are_free(&locks, &["a", "b"]).await);
}

#[tokio::test]
async fn to_lose_one_lock_stops_the_request_and_releases_the_others() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let locks = minute().connect(&server.url()).await.unwrap();
    let gate = Gate::new();
    let handler = gated(&gate, done);
    let service = by_list(&locks).layer_on(handler);
    let running = tokio::spawn(service.oneshot(request_for("a,b")));
    gate.arrived().await;
    run(&redis, "DEL lock:b").await;
    let response = soon("it is stopped", running).await.unwrap().unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(rejection(&response).kind(), RejectionKind::Lost);
    assert_eq!(rejection(&response).key().unwrap().as_str(), "b");
    eventually("the other is free", || are_free(&locks, &["a", "b"])).await;
}

#[tokio::test]
async fn a_request_that_names_too_many_keys_or_none_is_refused_with_400() {
    let locks = LockManager::builder().max_keys(2).in_memory().unwrap();
    let mut service = by_list(&locks).layer_on(service_fn(async |_: Request| done()));
    let response = service.call(request_for("a,b,a,b")).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    drop(response);
    let response = service.call(request_for("a,b,c")).await.unwrap();
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    assert_eq!(rejection(&response).kind(), RejectionKind::TooManyKeys);
    let problem = text(response).await;
    assert!(problem.contains("too many things to lock"), "{problem}");
    let mut call = grpc_request("application/grpc");
    let headers = call.headers_mut();
    headers.insert("x-keys", "a,b,c".parse().unwrap());
    let response = service.call(call).await.unwrap();
    assert_eq!(response.headers()["grpc-status"], "3");
    assert!(are_free(&locks, &["a", "b"]).await);

    for (list, kind) in [
        ("a,,b", RejectionKind::InvalidKey),
        ("", RejectionKind::InvalidKey),
    ] {
        let response = service.call(request_for(list)).await.unwrap();
        assert_eq!(rejection(&response).kind(), kind);
    }
    let none = DistributedLockLayer::new(locks.clone(), |_| Vec::<LockKey>::new());
    let found = Found::default();
    let response = none.layer_on(noting(&found)).call(request()).await.unwrap();
    assert_eq!(rejection(&response).kind(), RejectionKind::MissingKey);
    let optional = none.optional_key();
    let response = optional
        .layer_on(noting(&found))
        .call(request())
        .await
        .unwrap();
    assert_eq!(text(response).await, "done");
    assert!(matches!(found.lock().unwrap()[..], [(None, None)]));
}

#[tokio::test]
async fn what_an_outer_layer_holds_is_not_taken_again() {
    let locks = LockManager::in_memory();
    let found = Found::default();
    let list = by_list(&locks).wait(WAIT);
    let mut service = ServiceBuilder::new()
        .layer(on(&locks, "b"))
        .layer(list.clone())
        .layer(list)
        .layer(on(&locks, "a"))
        .service(noting(&found));
    let response = soon("no deadlock", service.call(request_for("a,b,c")))
        .await
        .unwrap();
    let (leases, lease) = found.lock().unwrap().pop().unwrap();
    let leases = leases.unwrap();
    let mut all = names(&leases);
    all.sort_unstable();
    assert_eq!(all, ["a", "b", "c"]);
    assert!(leases.is_held());
    assert_eq!(
        lease.unwrap().key().as_str(),
        "b",
        "that of the layer for one key"
    );
    assert_eq!(text(response).await, "done");
    assert!(are_free(&locks, &["a", "b", "c"]).await);
}

#[tokio::test]
async fn all_locks_are_released_before_the_response_or_with_its_head() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let locks = minute().connect(&server.url()).await.unwrap();
    let released = || async { crate::support::names(&redis, "lock:*").await.is_empty() };
    let list = by_list(&locks);
    let first = list.clone().release_before_response(true);
    let service = first.layer_on(service_fn(async |_: Request| done()));
    let response = service.oneshot(request_for("a,b")).await.unwrap();
    assert!(released().await, "at once, not eventually");
    assert_eq!(text(response).await, "done");
    let service = list
        .hold(Hold::Head)
        .layer_on(service_fn(async |_: Request| done()));
    let response = service.oneshot(request_for("a,b")).await.unwrap();
    assert!(are_free(&locks, &["a", "b"]).await);
    drop(response);
}

#[tokio::test]
async fn a_handler_takes_over_all_locks_or_one_of_them() {
    let locks = LockManager::in_memory();
    let kept: Arc<Mutex<Vec<LockGuards>>> = Arc::default();
    let service = by_list(&locks).layer_on(service_fn({
        let kept = Arc::clone(&kept);
        move |req: Request| {
            let leases = req.extensions().get::<Leases>().unwrap();
            kept.lock().unwrap().push(leases.take_over().unwrap());
            assert!(leases.take_over().is_none(), "they are given once");
            std::future::ready(done())
        }
    }));
    let response = service.oneshot(request_for("a,b")).await.unwrap();
    assert_eq!(text(response).await, "done");
    assert!(!is_free(&locks, "a").await && !is_free(&locks, "b").await);
    let guards = kept.lock().unwrap().pop().unwrap();
    assert!(guards.is_held());
    guards.release().await.unwrap();

    // One of them alone. All are not to be had then, and what is left ends with the response.
    let one = Arc::new(Mutex::new(None));
    let service = by_list(&locks).layer_on(service_fn({
        let one = Arc::clone(&one);
        move |req: Request| {
            let leases = req.extensions().get::<Leases>().unwrap().clone();
            *one.lock().unwrap() = leases.get("b").unwrap().take_over();
            assert!(leases.take_over().is_none());
            assert!(leases.is_held(), "what it got on the way was given back");
            std::future::ready(done())
        }
    }));
    let response = service.oneshot(request_for("a,b")).await.unwrap();
    assert!(!is_free(&locks, "a").await && !is_free(&locks, "b").await);
    assert_eq!(text(response).await, "done");
    assert!(is_free(&locks, "a").await && !is_free(&locks, "b").await);
    drop(one.lock().unwrap().take());
    assert!(is_free(&locks, "b").await);

    // What it has taken over and released is not lost to the layer.
    let service = by_list(&locks).layer_on(service_fn(async |req: Request| -> Answer {
        let leases = req.extensions().get::<Leases>().unwrap().clone();
        drop(leases.get("a").unwrap().take_over());
        leases.lost().await;
        tokio::task::yield_now().await;
        done()
    }));
    let response = service.oneshot(request_for("a,b")).await.unwrap();
    assert_eq!(text(response).await, "done");
}

#[tokio::test]
async fn without_redis_a_request_for_several_keys_is_refused_or_runs_unlocked() {
    let nobody = ClosedPort::new();
    let locks = LockManager::builder().connect_lazy(nobody.url()).unwrap();
    let layer = by_list(&locks).wait(WAIT);
    let service = layer.layer_on(service_fn(async |_: Request| done()));
    let response = soon("a refusal", service.oneshot(request_for("a,b")))
        .await
        .unwrap();
    assert_eq!(rejection(&response).kind(), RejectionKind::Unavailable);
    let service = layer
        .on_unavailable(OnUnavailable::Proceed)
        .layer_on(service_fn(async |req: Request| {
            assert!(req.extensions().get::<Leases>().is_none());
            assert!(req.extensions().get::<Unlocked>().is_some());
            done()
        }));
    let response = soon("a response", service.oneshot(request_for("a,b")))
        .await
        .unwrap();
    assert_eq!(text(response).await, "done");
}

#[tokio::test]
async fn an_outer_middleware_and_a_future_may_name_several_keys() {
    let locks = LockManager::in_memory();
    let found = Found::default();
    let from_extension = DistributedLockLayer::from_extension(locks.clone());
    let mut request = request();
    request
        .extensions_mut()
        .insert(LockKeys::new(["b", "a"]).unwrap());
    let service = from_extension.layer_on(noting(&found));
    service.oneshot(request.clone()).await.unwrap();
    let later =
        DistributedLockLayer::new_async(locks, async |_| Some([("account", 2), ("account", 1)]));
    later
        .layer_on(noting(&found))
        .oneshot(request)
        .await
        .unwrap();
    let found = found.lock().unwrap();
    let names = |at: usize| names(found[at].0.as_ref().unwrap());
    assert_eq!(names(0), ["a", "b"]);
    assert_eq!(names(1), ["account:1", "account:2"]);
}
