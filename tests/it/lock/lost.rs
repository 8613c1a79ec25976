//! Requests whose lock is lost while they run.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::{pending, ready};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt, poll};
use http::{Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full};
use tower::{Service, service_fn};
use tower_distributed_lock::{
    Error, ErrorKind, Lease,
    lock::{Hold, OnLost, Rejection, RejectionKind, ResponseBody},
};

use super::scripted::{Scripted, Step, answer_with};
use super::{
    Answer, LayerOn, Request, brief, done, gated, grpc_request, is_free, on, request, text,
};
use crate::support::{Gate, OnDrop, RedisServer, eventually, minute, run, soon};

#[tokio::test]
async fn a_handler_whose_lock_is_lost_is_dropped_and_answered_with_503() {
    let locks = brief();
    let (on_drop, dropped) = OnDrop::new();
    let on_drop = Arc::new(Mutex::new(Some(on_drop)));
    let handler = service_fn(move |_: Request| {
        let on_drop = on_drop.lock().unwrap().take();
        async move {
            let _on_drop = on_drop;
            pending::<Answer>().await
        }
    });
    let mut service = on(&locks, "a").layer_on(handler);
    // In a task of its own, so that it goes on only when it is woken.
    let response = tokio::spawn(service.call(request()));
    let response = soon("a response", response).await.unwrap().unwrap();
    assert!(dropped.load(Ordering::SeqCst), "before the response");
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    let rejection = response.extensions().get::<Rejection>().unwrap();
    assert_eq!(rejection.kind(), RejectionKind::Lost);
    assert!(is_free(&locks, "a").await);
}

#[tokio::test]
async fn a_lock_that_somebody_deletes_in_redis_ends_the_request() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let locks = minute().connect(&server.url()).await.unwrap();
    let gate = Gate::new();
    let handler = gated(&gate, done);
    let running = tokio::spawn(on(&locks, "a").layer_on(handler).call(request()));
    gate.arrived().await;
    eventually("the lease has been looked at", || async {
        run(&redis, "DEL lock:a").await;
        running.is_finished()
    })
    .await;
    let response = running.await.unwrap().unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn a_request_may_go_on_without_its_lock() {
    let locks = brief();
    let handler = service_fn(async |req: Request| {
        let lease = req.extensions().get::<Lease>().unwrap();
        lease.lost().await;
        // The loss is more than one poll ago now.
        tokio::task::yield_now().await;
        done()
    });
    let mut service = on(&locks, "a").on_lost(OnLost::Continue).layer_on(handler);
    let response = soon("a response", service.call(request())).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(text(response).await, "done");
    // And the same in the middle of the response body.
    let lease = Arc::new(Mutex::new(None));
    let handler = service_fn({
        let lease = Arc::clone(&lease);
        move |req: Request| {
            *lease.lock().unwrap() = req.extensions().get::<Lease>().cloned();
            ready(done())
        }
    });
    let mut service = on(&locks, "b").on_lost(OnLost::Continue).layer_on(handler);
    let response = service.call(request()).await.unwrap();
    let lease: Lease = lease.lock().unwrap().take().unwrap();
    soon("the loss", lease.lost()).await;
    assert_eq!(text(response).await, "done");
}

#[tokio::test]
async fn a_body_whose_lock_is_lost_ends_with_an_error() {
    use Step::{Data, Never};
    let locks = brief();
    let response = answer_with(&on(&locks, "a"), &[Data("a"), Never]).await;
    assert_eq!(response.status(), StatusCode::OK);
    let mut body = response.into_body();
    body.frame().await.unwrap().unwrap();
    let end = tokio::spawn(async move {
        let end = body.frame().await;
        (end, body)
    });
    let (end, mut body) = soon("the end", end).await.unwrap();
    let error = end.unwrap().unwrap_err();
    let error = error.downcast::<Error>().unwrap();
    assert_eq!(error.kind(), ErrorKind::Lost);
    assert!(body.frame().await.is_none());
    assert!(body.is_end_stream());
}

#[tokio::test]
async fn a_body_whose_lock_is_lost_does_not_go_on_even_if_it_could() {
    use Step::{Data, Last};
    let locks = brief();
    let lease = Arc::new(Mutex::new(None));
    let handler = service_fn({
        let lease = Arc::clone(&lease);
        move |req: Request| {
            *lease.lock().unwrap() = req.extensions().get::<Lease>().cloned();
            let body = Scripted::new(&[Data("a"), Last("b")]);
            ready(Ok::<_, Infallible>(Response::new(body)))
        }
    });
    let mut service = on(&locks, "a").layer_on(handler);
    let mut body = service.call(request()).await.unwrap().into_body();
    let lease: Lease = lease.lock().unwrap().take().unwrap();
    soon("the loss", lease.lost()).await;
    let error = body.frame().await.unwrap().unwrap_err();
    assert_eq!(error.downcast::<Error>().unwrap().kind(), ErrorKind::Lost);
}

#[tokio::test]
async fn a_body_whose_lock_is_lost_is_dropped_before_the_lock_is_given_to_others() {
    let locks = brief();
    let was_free = Arc::new(AtomicU32::new(0));
    let handler = service_fn({
        let (locks, was_free) = (locks.clone(), Arc::clone(&was_free));
        move |_: Request| {
            let (locks, was_free) = (locks.clone(), Arc::clone(&was_free));
            let mut body = Scripted::new(&[Step::Never]);
            body.on_drop = Some(Box::new(move || {
                let taken = locks.try_acquire("a").now_or_never().unwrap();
                was_free.store(if taken.is_ok() { 2 } else { 1 }, Ordering::SeqCst);
            }));
            ready(Ok::<_, Infallible>(Response::new(body)))
        }
    });
    let mut service = on(&locks, "a").layer_on(handler);
    let mut body = service.call(request()).await.unwrap().into_body();
    soon("the end", body.frame()).await.unwrap().unwrap_err();
    drop(body);
    assert_eq!(
        was_free.load(Ordering::SeqCst),
        1,
        "0: not dropped, 2: another could have the lock while the body still lived"
    );
}

// Handlers and bodies that block their thread.

/// Blocks its thread for longer than [`brief`] lets it hold the lock.
fn block(lease: &Lease) {
    while lease.is_held() {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Such a handler cannot be stopped, and returns as if nothing had happened.
#[tokio::test]
async fn a_handler_that_blocked_past_its_lease_is_no_success() {
    let responses: [fn() -> Response<Scripted>; 4] = [
        || Response::new(Scripted::new(&[Step::Last("done")])),
        || Response::new(Scripted::new(&[Step::Data("one "), Step::Never])),
        || Response::new(Scripted::new(&[Step::Empty])),
        || {
            let mut response = Response::new(Scripted::new(&[Step::Empty]));
            *response.status_mut() = StatusCode::NO_CONTENT;
            response
        },
    ];
    let cases = [Hold::Body, Hold::Head].map(|hold| [(hold, false), (hold, true)]);
    for (hold, release_first) in cases.into_iter().flatten() {
        for respond in responses {
            for on_lost in [OnLost::Cancel, OnLost::Continue] {
                let locks = brief();
                let handler = service_fn(move |req: Request| async move {
                    block(req.extensions().get::<Lease>().unwrap());
                    Ok::<_, Infallible>(respond())
                });
                let layer = on(&locks, "a").hold(hold).on_lost(on_lost);
                let mut service = layer
                    .release_before_response(release_first)
                    .layer_on(handler);
                let response = soon("a response", service.call(request())).await.unwrap();
                if on_lost == OnLost::Continue {
                    assert_eq!(response.status(), respond().status());
                    continue;
                }
                assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
                let rejection = response.extensions().get::<Rejection>().unwrap();
                assert_eq!(rejection.kind(), RejectionKind::Lost);
                assert!(is_free(&locks, "a").await);
                let call = grpc_request("application/grpc");
                let response = soon("a response", service.call(call)).await.unwrap();
                assert_eq!(response.headers()["grpc-status"], "10");
            }
        }
    }
}

#[tokio::test]
async fn what_a_service_would_do_after_its_call_blocked_past_its_lease_is_not_begun() {
    let has_begun = Arc::new(AtomicBool::new(false));
    let handler = service_fn({
        let has_begun = Arc::clone(&has_begun);
        move |req: Request| {
            block(req.extensions().get::<Lease>().unwrap());
            let has_begun = Arc::clone(&has_begun);
            async move {
                has_begun.store(true, Ordering::SeqCst);
                Ok::<_, Infallible>(Response::new(Full::from("done")))
            }
        }
    });
    let mut service = on(&brief(), "a").layer_on(handler);
    let response = soon("a response", service.call(request())).await.unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(!has_begun.load(Ordering::SeqCst));
}

#[tokio::test]
async fn the_error_of_a_service_that_blocked_past_its_lease_comes_through() {
    let handler = service_fn(async |req: Request| {
        block(req.extensions().get::<Lease>().unwrap());
        Err::<Response<Full<Bytes>>, _>("no response")
    });
    for release_first in [false, true] {
        let layer = on(&brief(), "a").release_before_response(release_first);
        let result = soon("the error", layer.layer_on(handler).call(request())).await;
        assert_eq!(result.unwrap_err(), "no response");
    }
}

/// A body that begins as told, and then blocks its thread for longer than the lease.
struct Blocking {
    lease: Lease,
    begins: VecDeque<Poll<()>>,
    is_over: bool,
}

impl Body for Blocking {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(begin) = self.begins.pop_front() {
            return begin.map(|()| Some(Ok(Frame::data(Bytes::from("begin ")))));
        }
        block(&self.lease);
        let is_over = std::mem::replace(&mut self.is_over, true);
        Poll::Ready((!is_over).then(|| Ok(Frame::data(Bytes::from("end")))))
    }

    fn is_end_stream(&self) -> bool {
        self.is_over
    }
}

/// A response with such a body, which begins as told.
async fn answer_blocking(
    release_first: bool,
    begins: &'static [Poll<()>],
) -> Response<ResponseBody<Blocking>> {
    let handler = service_fn(async move |req: Request| {
        Ok::<_, Infallible>(Response::new(Blocking {
            lease: req.extensions().get::<Lease>().unwrap().clone(),
            begins: begins.iter().copied().collect(),
            is_over: false,
        }))
    });
    let layer = on(&brief(), "a").release_before_response(release_first);
    soon("a response", layer.layer_on(handler).call(request()))
        .await
        .unwrap()
}

#[tokio::test]
async fn a_body_that_blocked_past_its_lease_does_not_look_whole() {
    for release_first in [false, true] {
        let begins = &[Poll::Pending, Poll::Ready(())];
        let response = answer_blocking(release_first, begins).await;
        assert_eq!(response.status(), StatusCode::OK);
        let mut body = response.into_body();
        // With `release_first`, the layer has polled it already, to see whether all of it is ready.
        if !release_first {
            assert!(poll!(body.frame()).is_pending());
        }
        let begin = body.frame().await;
        assert_eq!(begin.unwrap().unwrap().into_data().unwrap(), "begin ");
        let error = body.frame().await.unwrap().unwrap_err();
        assert_eq!(error.downcast::<Error>().unwrap().kind(), ErrorKind::Lost);
        assert!(body.frame().await.is_none());
    }
    // Where the head waits for the body, the head tells of the loss.
    for begins in [&[][..], &[Poll::Ready(())]] {
        let response = answer_blocking(true, begins).await;
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        let rejection = response.extensions().get::<Rejection>().unwrap();
        assert_eq!(rejection.kind(), RejectionKind::Lost);
    }
}
