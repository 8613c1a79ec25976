//! How long a lock is held.

use std::convert::Infallible;
use std::future::ready;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::poll;
use http::Response;
use http::header::CONTENT_LENGTH;
use http_body::Body;
use http_body_util::{BodyExt, Empty};
use tower::{Service, service_fn};
use tower_distributed_lock::{Lease, LockManager, lock::Hold};

use super::scripted::{Scripted, Step, answer_with};
use super::{LayerOn, Request, done, is_free, on, request};
use crate::support::soon;

#[tokio::test]
async fn the_lock_is_held_until_the_end_of_the_body_and_no_longer() {
    use Step::{Data, Empty, Error, Last, Later, Trailers};
    let cases: [(&'static [Step], &[bool]); 9] = [
        // The steps of the body, and whether the lock is free after the head and after each frame.
        (&[Data("a"), Data("b")], &[false, false, false, true]),
        (&[Data("a"), Last("b")], &[false, false, true, true]),
        (&[Data("a"), Trailers], &[false, false, true, true]),
        (&[Trailers], &[false, true, true]),
        (&[Data("a"), Error], &[false, false, true]),
        (&[Error], &[false, true]),
        (&[Last("a")], &[false, true, true]),
        (&[], &[false, true]),
        (&[Empty], &[true, true]),
    ];
    for release_first in [false, true] {
        let locks = LockManager::in_memory();
        let layer = on(&locks, "a").release_before_response(release_first);
        for (steps, expected) in cases {
            // A body that is ready at once would be sent only after the release.
            let begin: &[Step] = match release_first && steps != [Empty] {
                true => &[Later],
                false => &[],
            };
            let steps = [begin, steps].concat();
            let mut body = answer_with(&layer, &steps).await.into_body();
            let mut free = vec![is_free(&locks, "a").await];
            loop {
                let frame = soon("a frame", body.frame()).await;
                free.push(is_free(&locks, "a").await);
                if !matches!(frame, Some(Ok(_))) {
                    break;
                }
            }
            assert_eq!(free, expected, "{steps:?}, {release_first}");
        }
        for (steps, _) in cases {
            let layer = layer.clone().hold(Hold::Head);
            let response = answer_with(&layer, steps).await;
            assert!(is_free(&locks, "a").await, "{steps:?}");
            drop(response);
        }
    }
}

/// A client of HTTP/1 that has read so many bytes is done. It may send its next request before the
/// server asks the body for more.
#[tokio::test]
async fn the_lock_is_free_with_the_last_byte_that_a_content_length_announces() {
    use Step::{Data, Never};
    let locks = LockManager::in_memory();
    let handler = service_fn(async |_: Request| {
        let mut response = Response::new(Scripted::new(&[Data("one "), Data("two"), Never]));
        let length = http::HeaderValue::from_static("7");
        response.headers_mut().insert(CONTENT_LENGTH, length);
        Ok::<_, Infallible>(response)
    });
    let mut service = on(&locks, "a").layer_on(handler);
    let mut body = service.call(request()).await.unwrap().into_body();
    body.frame().await.unwrap().unwrap();
    assert!(!is_free(&locks, "a").await);
    body.frame().await.unwrap().unwrap();
    assert!(is_free(&locks, "a").await);
}

#[tokio::test]
async fn everything_that_a_body_gives_comes_through() {
    use Step::{Data, Error, Last, Trailers};
    let locks = LockManager::in_memory();
    for hold in [Hold::Body, Hold::Head] {
        for release_first in [false, true] {
            let layer = on(&locks, "a")
                .hold(hold)
                .release_before_response(release_first);
            let with_trailers = answer_with(&layer, &[Data("one "), Data("two"), Trailers]).await;
            let collected = with_trailers.into_body().collect().await.unwrap();
            assert_eq!(collected.trailers().unwrap()["x-trailer"], "true");
            assert_eq!(collected.to_bytes(), "one two");
            let last = answer_with(&layer, &[Data("one "), Last("two")]).await;
            assert_eq!(
                last.into_body().collect().await.unwrap().to_bytes(),
                "one two"
            );
            let mut broken = answer_with(&layer, &[Data("one"), Error]).await.into_body();
            broken.frame().await.unwrap().unwrap();
            let error = broken.frame().await.unwrap().unwrap_err();
            assert_eq!(error.to_string(), "broken");
            assert!(error.is::<std::io::Error>());
            assert!(broken.frame().await.is_none());
        }
    }
}

#[tokio::test]
async fn a_body_that_is_dropped_releases_the_lock_wherever_it_was() {
    use Step::{Data, Never};
    let locks = LockManager::in_memory();
    for frames in 0..3 {
        let response = answer_with(&on(&locks, "a"), &[Data("a"), Data("b"), Never]).await;
        let mut body = response.into_body();
        for _ in 0..frames {
            body.frame().await.unwrap().unwrap();
        }
        assert!(!is_free(&locks, "a").await);
        if frames == 2 {
            assert!(poll!(body.frame()).is_pending());
            assert!(!is_free(&locks, "a").await);
        }
        drop(body);
        assert!(is_free(&locks, "a").await);
    }
}

#[tokio::test]
async fn the_length_and_the_end_of_a_body_are_forwarded() {
    use Step::{Data, Last, Later};
    let locks = LockManager::in_memory();
    let cases: [(bool, &[Step], &[u64]); 4] = [
        (false, &[Data("four"), Last("two")], &[7, 3]),
        (true, &[Later, Data("four"), Last("two")], &[7, 3]),
        (true, &[Data("four"), Later, Last("two")], &[7, 3]),
        (true, &[Data("four"), Last("two")], &[7]),
    ];
    for (release_first, steps, lengths) in cases {
        let layer = on(&locks, "a").release_before_response(release_first);
        let mut body = answer_with(&layer, steps).await.into_body();
        for &left in lengths {
            assert_eq!(body.size_hint().exact(), Some(left));
            assert!(!body.is_end_stream());
            body.frame().await.unwrap().unwrap();
        }
        assert_eq!(body.size_hint().exact(), Some(0));
        assert!(body.is_end_stream());
        assert!(body.frame().await.is_none());
        assert!(body.is_end_stream());
    }
    let mut full = on(&locks, "a").layer_on(service_fn(async |_: Request| done()));
    let body = full.call(request()).await.unwrap().into_body();
    assert_eq!(body.size_hint().exact(), Some(4));
    assert!(!body.is_end_stream());
    drop(body);
    let mut empty = on(&locks, "a").layer_on(service_fn(async |_: Request| {
        Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
    }));
    assert!(empty.call(request()).await.unwrap().body().is_end_stream());
}

/// The body may still do work, and a server of HTTP/2 polls it although it is not sent.
#[tokio::test]
async fn a_body_that_is_not_sent_ends_before_its_lock() {
    let locks = LockManager::in_memory();
    let (head, get) = (http::Method::HEAD, http::Method::GET);
    for (method, status) in [
        (head, 200),
        (get.clone(), 204),
        (get.clone(), 304),
        (get, 101),
    ] {
        for release_first in [false, true] {
            let dropped = Arc::new(Mutex::new(None));
            let handler = service_fn({
                let dropped = Arc::clone(&dropped);
                move |req: Request| {
                    let lease = req.extensions().get::<Lease>().unwrap().clone();
                    let mut body = Scripted::new(&[Step::Data("never sent")]);
                    let dropped = Arc::clone(&dropped);
                    body.on_drop = Some(Box::new(move || {
                        *dropped.lock().unwrap() = Some(lease.is_held());
                    }));
                    let response = Response::builder().status(status);
                    ready(Ok::<_, Infallible>(response.body(body).unwrap()))
                }
            });
            let layer = on(&locks, "a").release_before_response(release_first);
            let mut request = request();
            *request.method_mut() = method.clone();
            let response = soon("a head", layer.layer_on(handler).call(request))
                .await
                .unwrap();
            assert_eq!(response.status(), status);
            let lease_was_held = dropped.lock().unwrap().take();
            assert_eq!(lease_was_held, Some(true));
            assert!(is_free(&locks, "a").await);
            // A server may put the length into the head.
            assert_eq!(response.body().size_hint().exact(), Some(10));
            assert!(!response.body().is_end_stream());
            assert!(response.into_body().frame().await.is_none());
        }
    }
}
