//! Responses whose head tells a length.

use http::header::CONTENT_LENGTH;
use http::{Request, Response, Version};
use http_body::Body as _;
use http_body_util::{BodyExt, StreamBody};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tower_distributed_lock::IdempotencyLayer;

use super::{data, frames, on_both};
use crate::nodes::Nodes;
use crate::once::{App, Body, Runs, body, post, whole};
use crate::support::soon;

on_every_store! {
    Nodes:
    an_answer_whose_length_its_head_tells_is_read_to_its_end
    an_answer_that_is_not_as_long_as_its_head_says
    a_length_that_tells_nothing_of_the_body_is_not_waited_for
}

/// A body whose frames come one after the other, and that does not tell its length: like that of a
/// proxy.
fn in_time(frames: impl IntoIterator<Item = &'static str>) -> Body {
    let (send, frames_sent) = mpsc::channel(1);
    let frames: Vec<_> = frames.into_iter().collect();
    tokio::spawn(async move {
        for frame in frames {
            tokio::task::yield_now().await;
            if frame == NEVER {
                send.closed().await;
            }
            let frame = match frame {
                BROKEN => Err(std::io::Error::other(BROKEN)),
                frame => Ok(data(frame)),
            };
            let _ = send.send(frame).await;
        }
    });
    whole(StreamBody::new(ReceiverStream::new(frames_sent)))
}

/// The rest of the body does not come.
const NEVER: &str = "never";

const BROKEN: &str = "broken";

fn sized(length: &str, content: Body) -> Response<Body> {
    let response = Response::builder().header(CONTENT_LENGTH, length);
    response.body(content).unwrap()
}

fn post_over(version: Version, key: &str) -> Request<Body> {
    let mut request = post(key);
    *request.version_mut() = version;
    request
}

async fn an_answer_whose_length_its_head_tells_is_read_to_its_end(nodes: Nodes) {
    const LIMIT: usize = 100;
    for version in [Version::HTTP_11, Version::HTTP_2] {
        for (length, frames, is_kept) in [
            ("7", &["one ", "two"][..], true),
            ("0", &[], true),
            ("101", &["one ", "two"], false),
            // No valid length.
            ("+7", &["one ", "two"], false),
            ("7 ", &["one ", "two"], false),
            // A client of HTTP/1 does not wait for more.
            ("7", &["one ", "two", NEVER], version == Version::HTTP_11),
        ] {
            if frames.last() == Some(&NEVER) && !is_kept {
                continue;
            }
            let runs = Runs::default();
            let handler = runs.then(move |_, _| {
                std::future::ready(Ok(sized(length, in_time(frames.iter().copied()))))
            });
            let [one, two] = nodes
                .layers()
                .map(|layer| App::new(&layer.max_response_body(LIMIT), handler.clone()));
            let key = format!("{version:?} {length} {}", frames.len()).replace(' ', "_");
            let first = one.send(post_over(version, &key)).await;
            assert_eq!((first.status(), first.is_replay()), (200, false));
            let content = if length == "0" { "" } else { "one two" };
            assert_eq!(first.body, content, "{key}");
            for app in [&one, &two] {
                let replay = app.send(post_over(version, &key)).await;
                assert!(replay.is_replay());
                let not_kept = replay.head.headers.get("idempotent-body");
                assert_eq!(not_kept.is_none(), is_kept, "{key}");
                assert_eq!(replay.body, if is_kept { content } else { "" }, "{key}");
            }
            assert_eq!(runs.count(), 1);
        }
    }
}

async fn an_answer_that_is_not_as_long_as_its_head_says(nodes: Nodes) {
    use Version as V;
    for (version, frames, received, is_kept) in [
        // Too short: the client knows that it has not got the whole.
        (V::HTTP_11, &["one"][..], Ok("one"), false),
        (V::HTTP_2, &["one"], Ok("one"), false),
        // Too long: over HTTP/1, the client has what the head promised, and knows of no more.
        (V::HTTP_11, &["one ", "two, three"], Ok("one two"), true),
        (
            V::HTTP_2,
            &["one ", "two, three"],
            Ok("one two, three"),
            false,
        ),
        (V::HTTP_11, &["one ", BROKEN], Err(BROKEN), false),
        (V::HTTP_2, &["one ", BROKEN], Err(BROKEN), false),
    ] {
        // Once frame by frame, and once with all of it ready.
        for is_there in [false, true] {
            if is_there && received.is_err() {
                continue;
            }
            let runs = Runs::default();
            let handler = runs.then(move |_, _| {
                let content = match is_there {
                    false => in_time(frames.iter().copied()),
                    true => self::frames(frames.iter().map(|frame| data(*frame))),
                };
                std::future::ready(Ok(sized("7", content)))
            });
            let [one, two] = on_both(&nodes, handler);
            let key = format!("{version:?}{}{is_there}", frames.concat()).replace(' ', "");
            for (number, app) in [&one, &two].into_iter().enumerate() {
                let call = app.call(post_over(version, &key));
                let response = soon("a head", call).await.unwrap();
                let is_replay = response.headers().contains_key("idempotent-replayed");
                assert_eq!(is_replay, is_kept && number > 0, "{key}");
                // A server must not announce another length than the head has.
                let hint = response.body().size_hint().exact();
                assert!(hint.is_none_or(|length| length == 7), "{key}: {hint:?}");
                let body = soon("the body", response.into_body().collect()).await;
                match received {
                    Ok(text) => assert_eq!(body.unwrap().to_bytes(), text, "{key}"),
                    Err(error) => assert_eq!(body.unwrap_err().to_string(), error),
                }
            }
            assert_eq!(runs.count(), if is_kept { 1 } else { 2 }, "{key}");
        }
    }
}

/// It is the length that a GET would have had, or that is in the client's cache.
async fn a_length_that_tells_nothing_of_the_body_is_not_waited_for(nodes: Nodes) {
    for (method, status) in [("HEAD", 200), ("POST", 304), ("POST", 204)] {
        let runs = Runs::default();
        let handler = runs.then(move |_, _| {
            let mut response = sized("1000", body(""));
            *response.status_mut() = status.try_into().unwrap();
            std::future::ready(Ok(response))
        });
        let layers = [&nodes.one, &nodes.two]
            .map(|locks| IdempotencyLayer::webhook(locks.clone(), "idempotency-key"));
        for (number, layer) in layers.into_iter().enumerate() {
            let app = App::new(&layer, handler.clone());
            let mut request = post(&status.to_string());
            *request.method_mut() = method.parse().unwrap();
            let answer = app.send(request).await;
            assert_eq!((answer.status(), answer.is_replay()), (status, number > 0));
            assert_eq!(answer.head.headers[CONTENT_LENGTH], "1000");
            assert_eq!(answer.head.headers.get("idempotent-body"), None);
            assert!(answer.body.is_empty());
        }
        assert_eq!(runs.count(), 1);
    }
}
