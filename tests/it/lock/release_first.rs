//! `release_before_response`: what is kept back until Redis has released the lock.

use std::convert::Infallible;
use std::future::ready;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use futures_util::{TryStreamExt, poll};
use http::header::CONTENT_LENGTH;
use http::{Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, StreamBody};
use tower::{Service, service_fn};
use tower_distributed_lock::{
    Error, ErrorKind, LockManager,
    lock::{Hold, OnLost, Rejection, RejectionKind},
};

use super::scripted::{Scripted, Step, answer_with};
use super::{LayerOn, Request, gated, is_free, on, request};
use crate::support::{
    Gate, Mode, PATIENCE, Proxy, RedisServer, eventually_no_trace, minute, soon, value,
};

#[tokio::test]
async fn release_before_response_withholds_the_end_until_redis_has_released() {
    use Step::{Data, Last, Later, Trailers};
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let proxy = Proxy::start(server.port).await;
    let locks = minute()
        .command_timeout(2 * PATIENCE)
        .connect(&proxy.url())
        .await
        .unwrap();
    let cases: [(&'static [Step], u64); 4] = [
        (&[Data("a"), Last("xyz")], 3),
        (&[Data("a"), Data("xyz")], 0),
        (&[Data("a"), Trailers], 0),
        (&[], 0),
    ];
    for (steps, length) in cases {
        let layer = on(&locks, "a").release_before_response(true);
        let body = answer_with(&layer, &[&[Later], steps].concat()).await;
        let mut body = body.into_body();
        proxy.set(Mode::Hold);
        // Frames before the last one do not wait.
        let early = match steps.last() {
            None => 0,
            Some(Data(_)) => steps.len(),
            Some(_) => steps.len() - 1,
        };
        for _ in 0..early {
            let frame = poll!(body.frame());
            assert!(matches!(frame, Poll::Ready(Some(Ok(_)))), "{steps:?}");
        }
        for _ in 0..5 {
            assert!(poll!(body.frame()).is_pending(), "{steps:?}");
            assert!(!body.is_end_stream(), "{steps:?}");
            assert_eq!(body.size_hint().exact(), Some(length), "{steps:?}");
            assert!(value(&redis, "lock:a").await.is_some(), "{steps:?}");
        }
        // In a task of its own, so that it goes on only when it is woken.
        let end = tokio::spawn(async move {
            let end = body.frame().await;
            (end, body)
        });
        proxy.set(Mode::Forward);
        let (end, mut body) = soon("the end", end).await.unwrap();
        // At once, not eventually.
        assert_eq!(value(&redis, "lock:a").await, None, "{steps:?}");
        match steps.last() {
            Some(Last(text)) => {
                assert_eq!(end.unwrap().unwrap().into_data().unwrap(), *text);
                assert!(body.is_end_stream());
            }
            Some(Trailers) => assert!(end.unwrap().unwrap().is_trailers()),
            _ => assert!(end.is_none()),
        }
        assert!(body.frame().await.is_none(), "{steps:?}");
    }
}

#[tokio::test]
async fn release_before_response_withholds_the_head_where_all_is_there_at_once() {
    use Step::{Data, Empty, Error, Last, Trailers};
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let proxy = Arc::new(Proxy::start(server.port).await);
    let locks = minute()
        .command_timeout(2 * PATIENCE)
        .connect(&proxy.url())
        .await
        .unwrap();
    let cases: [(Hold, &'static [Step]); 9] = [
        (Hold::Head, &[Data("a")]),
        (Hold::Head, &[Empty]),
        (Hold::Body, &[Empty]),
        (Hold::Body, &[]),
        (Hold::Body, &[Last("a")]),
        (Hold::Body, &[Data("a"), Data("b")]),
        (Hold::Body, &[Data("a"), Trailers]),
        (Hold::Body, &[Trailers]),
        (Hold::Body, &[Data("a"), Error]),
    ];
    for release_first in [true, false] {
        for (hold, steps) in cases {
            let gate = Gate::new();
            let handler = gated(&gate, move || {
                Ok::<_, Infallible>(Response::new(Scripted::new(steps)))
            });
            let layer = on(&locks, "a").hold(hold);
            let mut service = layer
                .release_before_response(release_first)
                .layer_on(handler);
            let mut response = Box::pin(service.call(request()));
            let arrived = gate.arrived();
            tokio::select! {
                _ = &mut response => panic!("the gate is closed"),
                () = arrived => {}
            }
            proxy.set(Mode::Hold);
            gate.open();
            if release_first {
                for _ in 0..5 {
                    assert!(poll!(&mut response).is_pending(), "{hold:?} {steps:?}");
                    assert!(value(&redis, "lock:a").await.is_some());
                }
                let response = tokio::spawn(response);
                proxy.set(Mode::Forward);
                soon("the head", response).await.unwrap().unwrap();
                assert_eq!(value(&redis, "lock:a").await, None);
            } else {
                // Redis is not waited for.
                assert!(poll!(&mut response).is_ready(), "{hold:?} {steps:?}");
                proxy.set(Mode::Forward);
                eventually_no_trace(&redis).await;
            }
        }
    }
}

/// Each case: how many frames of which length, and whether the client gets them in one piece behind
/// the head.
#[tokio::test]
async fn release_before_response_keeps_back_no_more_than_64_kib_of_several_frames() {
    let locks = LockManager::in_memory();
    let layer = on(&locks, "a").release_before_response(true);
    for (frames, length, is_kept) in [
        (1, 1 << 20, true),
        (2, 32_000, true),
        (2, 64 * 1024, false),
        (50, 1024, true),
        (1000, 1024, false),
        (100, 0, true),
        (100_000, 0, false),
    ] {
        let part = Bytes::from(vec![b'x'; length]);
        let handler = service_fn(move |_: Request| {
            let parts = std::iter::repeat_n(Ok::<_, Infallible>(part.clone()), frames);
            let stream = futures_util::stream::iter(parts).map_ok(Frame::data);
            ready(Ok::<_, Infallible>(Response::new(StreamBody::new(stream))))
        });
        let mut service = layer.layer_on(handler);
        let response = soon("the head", service.call(request())).await.unwrap();
        assert_eq!(is_free(&locks, "a").await, is_kept, "{frames} of {length}");
        let hint = response.body().size_hint();
        let whole = (frames * length) as u64;
        assert_eq!(
            hint.exact(),
            is_kept.then_some(whole),
            "{frames} of {length}"
        );
        let mut body = response.into_body();
        let mut received = Vec::new();
        while let Some(frame) = soon("a frame", body.frame()).await {
            received.push(frame.unwrap().into_data().unwrap().len());
        }
        assert_eq!(received.iter().sum::<usize>() as u64, whole);
        match is_kept {
            true => assert_eq!(received.len(), usize::from(whole > 0)),
            false => assert_eq!(received.len(), frames),
        }
        assert!(is_free(&locks, "a").await);
    }
}

/// A rest that is never sent keeps back neither the lock nor the head.
#[tokio::test]
async fn what_a_client_takes_for_the_whole_is_all_that_is_kept_back() {
    use Step::{Data, Last, Never};
    let locks = LockManager::in_memory();
    let layer = on(&locks, "a").release_before_response(true);
    let cases: [(&[Step], &str, Option<&str>); 4] = [
        (&[Data("one "), Data("two"), Never], "7", Some("one two")),
        (&[Data("one "), Data("two, three")], "7", Some("one two")),
        (&[Never], "0", Some("")),
        // Too short. The server is left to find that.
        (&[Data("one "), Last("two")], "70", None),
    ];
    for (steps, length, whole) in cases {
        let steps = steps.to_vec();
        let handler = service_fn(move |_: Request| {
            let mut response = Response::new(Scripted::new(&steps));
            let length = length.parse().unwrap();
            response.headers_mut().insert(CONTENT_LENGTH, length);
            ready(Ok::<_, Infallible>(response))
        });
        let response = layer.layer_on(handler).call(request());
        let body = soon("the head", response).await.unwrap().into_body();
        assert!(is_free(&locks, "a").await, "{length}");
        if whole.is_none() {
            assert_eq!(body.size_hint().exact(), None);
        }
        let received = soon("the body", body.collect()).await.unwrap().to_bytes();
        assert_eq!(received, whole.unwrap_or("one two"));
    }
}

/// On a single thread, only the release can tell of the loss.
#[tokio::test]
async fn a_response_that_waits_for_a_release_is_none_if_that_finds_the_lock_lost() {
    use Step::{Data, Empty, Last, Later};
    let server = RedisServer::start().await;
    let locks = minute().connect(&server.url()).await.unwrap();
    let client = redis::Client::open(server.url()).unwrap();
    let cases: [(Hold, &'static [Step]); 5] = [
        (Hold::Head, &[Last("done")]),
        (Hold::Body, &[Last("done")]),
        (Hold::Body, &[Data("do"), Data("ne")]),
        (Hold::Body, &[Empty]),
        // Here the head is out already, so the end of the body tells.
        (Hold::Body, &[Later, Last("done")]),
    ];
    for (hold, steps) in cases {
        for on_lost in [OnLost::Cancel, OnLost::Continue] {
            let client = client.clone();
            let handler = service_fn(move |_: Request| {
                let mut redis = client.get_connection().unwrap();
                let deleted: u32 = redis::cmd("DEL").arg("lock:a").query(&mut redis).unwrap();
                assert_eq!(deleted, 1);
                ready(Ok::<_, Infallible>(Response::new(Scripted::new(steps))))
            });
            let layer = on(&locks, "a").hold(hold).on_lost(on_lost);
            let mut service = layer.release_before_response(true).layer_on(handler);
            let response = soon("a response", service.call(request())).await.unwrap();
            let status = response.status();
            let rejection = response.extensions().get::<Rejection>().cloned();
            let body = response.into_body().collect().await;
            if on_lost == OnLost::Continue {
                assert_eq!(status, StatusCode::OK);
                let whole = if steps == [Empty] { "" } else { "done" };
                assert_eq!(body.unwrap().to_bytes(), whole);
            } else if steps[0] == Later {
                assert_eq!(status, StatusCode::OK);
                let error = body.unwrap_err().downcast::<Error>().unwrap();
                assert_eq!(error.kind(), ErrorKind::Lost);
            } else {
                assert_eq!(
                    status,
                    StatusCode::SERVICE_UNAVAILABLE,
                    "{hold:?} {steps:?}"
                );
                assert_eq!(rejection.unwrap().kind(), RejectionKind::Lost);
            }
        }
    }
}
