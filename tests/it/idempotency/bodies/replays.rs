//! What a replay has of the first response, and which responses are replayed.

use http::header::{CONTENT_TYPE, HeaderName, SET_COOKIE};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body::{Body as _, Frame};

use super::{data, fields, frames, on_both, trailers};
use crate::nodes::Nodes;
use crate::once::{Answer, App, Runs, body, post, post_to, text};
use crate::support::soon;

on_every_store! {
    Nodes:
    a_replay_has_the_head_of_the_first_answer
    fields_of_the_connection_are_not_replayed
    a_replay_has_the_body_and_the_trailers_of_the_first_answer
    final_answers_are_remembered_and_others_are_not
    what_is_final_can_be_chosen
    a_grpc_answer_counts_as_its_code_says
}

async fn a_replay_has_the_head_of_the_first_answer(nodes: Nodes) {
    let runs = Runs::default();
    let [one, two] = on_both(
        &nodes,
        runs.then(|_, _| async {
            let mut response = text("made");
            *response.status_mut() = StatusCode::CREATED;
            let headers = response.headers_mut();
            // Several fields, and not one with a comma.
            for cookie in ["z=1; Path=/", "a=2, b", "m=3"] {
                headers.append(SET_COOKIE, HeaderValue::from_static(cookie));
            }
            headers.insert("location", HeaderValue::from_static("/a/7"));
            headers.insert("x-empty", HeaderValue::from_static(""));
            headers.insert(
                "x-binary",
                HeaderValue::from_bytes(b"\xff\xfe\x80").unwrap(),
            );
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
            Ok(response)
        }),
    );
    let first = one.send(post("k")).await;
    assert_eq!((first.status(), first.is_replay()), (201, false));
    for app in [&one, &two] {
        let mut replay = app.send(post("k")).await;
        assert!(replay.is_replay());
        assert_eq!(replay.status(), 201);
        let cookies = replay.head.headers.get_all(SET_COOKIE).iter();
        let cookies: Vec<_> = cookies.map(HeaderValue::as_bytes).collect();
        assert_eq!(cookies, [&b"z=1; Path=/"[..], b"a=2, b", b"m=3"]);
        replay.head.headers.remove("idempotent-replayed");
        assert_eq!(fields(&replay.head.headers), fields(&first.head.headers));
        assert_eq!(replay.body, "made");
    }
    assert_eq!(runs.count(), 1);
}

async fn fields_of_the_connection_are_not_replayed(nodes: Nodes) {
    let runs = Runs::default();
    let [one, two] = on_both(
        &nodes,
        runs.then(|_, _| async {
            let mut response = text("");
            let headers = response.headers_mut();
            for (name, value) in [
                ("connection", "close, X-Named"),
                ("connection", "x-too"),
                ("keep-alive", "timeout=5"),
                ("proxy-connection", "x"),
                ("te", "trailers"),
                ("transfer-encoding", "chunked"),
                ("upgrade", "h2c"),
                ("x-named", "1"),
                ("x-too", "2"),
                ("x-kept", "3"),
            ] {
                let name = HeaderName::from_static(name);
                headers.append(name, HeaderValue::from_static(value));
            }
            Ok(response)
        }),
    );
    let first = one.send(post("k")).await;
    assert_eq!(first.head.headers.len(), 10);
    for app in [&one, &two] {
        let replay = app.send(post("k")).await;
        assert!(replay.is_replay());
        let left = fields(&replay.head.headers);
        let names: Vec<&str> = left.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["x-kept", "idempotent-replayed"]);
    }
}

async fn a_replay_has_the_body_and_the_trailers_of_the_first_answer(nodes: Nodes) {
    let binary: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    let sum = || trailers(&[("x-sum", "42"), ("x-more", "1")]);
    let make = {
        let binary = binary.clone();
        move |path: &str| match path {
            "/binary" => text(binary.clone()),
            "/empty" => text(""),
            "/none" => {
                let mut response = text("");
                *response.status_mut() = StatusCode::NO_CONTENT;
                response
            }
            "/frames" => Response::new(frames(binary.chunks(7000).map(|part| data(part.to_vec())))),
            "/trailers" => Response::new(frames([
                data("one "),
                data("two"),
                Frame::trailers(trailers(&[("x-sum", "42"), ("x-more", "1")])),
            ])),
            _ => Response::new(frames([Frame::trailers(trailers(&[
                ("x-sum", "42"),
                ("x-more", "1"),
            ]))])),
        }
    };
    let runs = Runs::default();
    let [one, two] = on_both(
        &nodes,
        runs.then(move |_, request| std::future::ready(Ok(make(request.uri().path())))),
    );
    for (path, status, content, trailers) in [
        ("/binary", 200, &binary[..], None),
        ("/empty", 200, b"", None),
        ("/none", 204, b"", None),
        ("/frames", 200, &binary, None),
        ("/trailers", 200, b"one two", Some(sum())),
        ("/trailers-only", 200, b"", Some(sum())),
    ] {
        for (number, app) in [&one, &one, &two].into_iter().enumerate() {
            let response = soon("a response", app.call(post_to(path, "k")))
                .await
                .unwrap();
            // Its length is known, unless there are trailers behind it.
            let length = trailers.is_none().then_some(content.len() as u64);
            assert_eq!(response.body().size_hint().exact(), length);
            let is_empty = content.is_empty() && trailers.is_none();
            assert_eq!(response.body().is_end_stream(), is_empty);
            let answer = Answer::of(response).await;
            assert_eq!(answer.is_replay(), number > 0);
            assert_eq!(answer.status(), status);
            assert_eq!(answer.body, content, "{path}");
            assert_eq!(answer.trailers, trailers);
            assert_eq!(answer.head.headers.get("idempotent-body"), None);
        }
    }
    assert_eq!(runs.count(), 6);
}

async fn final_answers_are_remembered_and_others_are_not(nodes: Nodes) {
    let runs = Runs::default();
    let [one, two] = on_both(
        &nodes,
        runs.then(|run, request| {
            let status = request.uri().path()[1..].parse().unwrap();
            let mut response = text(format!("run {run}"));
            *response.status_mut() = StatusCode::from_u16(status).unwrap();
            std::future::ready(Ok(response))
        }),
    );
    for status in [
        200, 201, 202, 301, 303, 400, 401, 403, 404, 409, 410, 418, 422,
    ] {
        let path = format!("/{status}");
        let first = one.send(post_to(&path, "k")).await;
        assert_eq!((first.status(), first.is_replay()), (status, false));
        for app in [&one, &two] {
            let replay = app.send(post_to(&path, "k")).await;
            assert_eq!((replay.status(), replay.is_replay()), (status, true));
            assert_eq!(replay.body, first.body);
        }
    }
    for status in [408, 425, 429, 500, 502, 503, 504, 599] {
        let path = format!("/{status}");
        // The key is free before the client has its response, so it may try again at once, on any
        // node.
        for app in [&one, &two, &one] {
            let answer = app.send(post_to(&path, "k")).await;
            assert_eq!((answer.status(), answer.is_replay()), (status, false));
            assert_eq!(answer.body, format!("run {}", runs.count()));
        }
    }
    assert_eq!(runs.count(), 13 + 3 * 8);
}

async fn what_is_final_can_be_chosen(nodes: Nodes) {
    let runs = Runs::default();
    let handler = runs.then(|run, request| {
        let status = request.uri().path()[1..].parse().unwrap();
        let mut response = text(format!("run {run}"));
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        std::future::ready(Ok(response))
    });
    let [app, _] = nodes.layers().map(|layer| {
        let layer = layer.remember(|status| status != StatusCode::NOT_FOUND);
        App::new(&layer, handler.clone())
    });
    for (path, is_final) in [("/404", false), ("/500", true), ("/200", true)] {
        assert!(!app.send(post_to(path, "k")).await.is_replay());
        assert_eq!(app.send(post_to(path, "k")).await.is_replay(), is_final);
    }
}

async fn a_grpc_answer_counts_as_its_code_says(nodes: Nodes) {
    let runs = Runs::default();
    let handler = runs.then(|_, request| {
        let (place, code) = request.uri().path()[1..].split_once('/').unwrap();
        let mut fields = HeaderMap::new();
        fields.insert("grpc-status", code.parse().unwrap());
        let mut response = Response::builder();
        let content = match place {
            "head" => {
                *response.headers_mut().unwrap() = fields;
                body("")
            }
            _ => frames([data("message"), Frame::trailers(fields)]),
        };
        std::future::ready(Ok(response.body(content).unwrap()))
    });
    let [one, two] = on_both(&nodes, handler);
    for place in ["head", "trailers"] {
        for code in 0..=16 {
            // CANCELLED, UNKNOWN, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, ABORTED, UNIMPLEMENTED,
            // INTERNAL, UNAVAILABLE, DATA_LOSS.
            let is_final = ![1, 2, 4, 8, 10, 12, 13, 14, 15].contains(&code);
            for (number, app) in [&one, &two].into_iter().enumerate() {
                let mut request = post_to(&format!("/{place}/{code}"), "k");
                let headers = request.headers_mut();
                headers.insert(CONTENT_TYPE, "application/grpc".parse().unwrap());
                let answer = app.send(request).await;
                let is_replay = number > 0 && is_final;
                assert_eq!(answer.is_replay(), is_replay, "{place} {code}");
                let mut fields = match place {
                    "head" => &answer.head.headers,
                    _ => answer.trailers.as_ref().unwrap(),
                }
                .get_all("grpc-status")
                .iter();
                assert_eq!(fields.next().unwrap(), code.to_string().as_str());
            }
        }
    }
}
