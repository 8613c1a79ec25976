//! Under axum.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::DefaultBodyLimit;
use axum::middleware::{Next, from_fn};
use axum::{Json, Router, routing};
use bytes::Bytes;
use futures_util::poll;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, TRANSFER_ENCODING};
use http::{StatusCode, Version};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tower_distributed_lock::{IdempotencyLayer, LockManager};

use super::ask;
use crate::nodes::Nodes;
use crate::once::Runs;
use crate::servers::{axum_on, client};
use crate::support::{Gate, OnDrop, eventually, soon};

on_every_store! {
    Nodes:
    axum_layer_and_route_layer
}

async fn axum_layer_and_route_layer(nodes: Nodes) {
    let (runs, gate) = (Runs::default(), Gate::new());
    let router = |layer: IdempotencyLayer, by_route: bool| {
        let (counted, gate) = (runs.clone(), gate.clone());
        let gated = routing::post(move |Json(number): Json<u32>| {
            let (counted, gate) = (counted.clone(), gate.clone());
            async move {
                gate.pass().await;
                let run = counted.one_more();
                ([("x-run", run.to_string())], format!("{number}"))
            }
        });
        let counted = runs.clone();
        let none = routing::post(move |content: Bytes| async move {
            assert_eq!(content, "1");
            counted.one_more();
            StatusCode::NO_CONTENT
        });
        let router = Router::new().route("/gated", gated).route("/none", none);
        match by_route {
            true => router.route_layer(layer),
            false => router.layer(layer),
        }
    };
    for by_route in [false, true] {
        let [one, two] = nodes.layers().map(|layer| router(layer, by_route));
        let (one, two) = (axum_on(one).await, axum_on(two).await);
        let client = client(Version::HTTP_11);
        let key = format!("\"{by_route}\"");
        let first = tokio::spawn({
            let (client, key) = (client.clone(), key.clone());
            async move { ask(&client, one, "/gated", &key, "7").await }
        });
        gate.arrived().await;
        for address in [one, two] {
            let refused = ask(&client, address, "/gated", &key, "7").await;
            refused.is_refused(409);
            assert!(refused.head.headers.contains_key(CONTENT_LENGTH));
        }
        gate.open();
        let first = soon("a response", first).await.unwrap();
        assert_eq!((first.status(), first.is_replay()), (200, false));
        assert_eq!(first.head.headers[CONTENT_LENGTH], "1");
        for address in [one, two] {
            let replay = ask(&client, address, "/gated", &key, "7").await;
            assert!(replay.is_replay());
            assert_eq!(replay.body, "7");
            assert_eq!(replay.head.headers["x-run"], first.head.headers["x-run"]);
            assert_eq!(replay.head.headers[CONTENT_LENGTH], "1");
            assert!(!replay.head.headers.contains_key(TRANSFER_ENCODING));
            ask(&client, address, "/gated", &key, "8")
                .await
                .is_refused(422);
        }
        // What axum itself answers to a bad body is a response like any other.
        let nonsense = format!("nonsense-{by_route}");
        for is_replay in [false, true] {
            let answer = ask(&client, one, "/gated", &nonsense, "x").await;
            assert_eq!((answer.status(), answer.is_replay()), (400, is_replay));
        }
        let runs_before = runs.count();
        for (number, address) in [one, one, two].into_iter().enumerate() {
            let answer = ask(&client, address, "/none", &key, "1").await;
            assert_eq!((answer.status(), answer.is_replay()), (204, number > 0));
            assert!(answer.body.is_empty());
        }
        assert_eq!(runs.count(), runs_before + 1);
        // With `route_layer`, unknown routes are left alone.
        let unknown = ask(&client, one, "/unknown", &key, "1").await;
        assert_eq!((unknown.status(), unknown.is_replay()), (404, false));
        let unknown = ask(&client, two, "/unknown", &key, "1").await;
        assert_eq!((unknown.status(), unknown.is_replay()), (404, !by_route));
    }
}

/// One HTTP/1.1 connection, written and read by hand.
struct Raw(BufReader<TcpStream>);

impl Raw {
    async fn connect(address: SocketAddr) -> Self {
        Self(BufReader::new(TcpStream::connect(address).await.unwrap()))
    }

    async fn send(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).await.unwrap();
    }

    /// Reads the next head. Returns its status line, and the length of the body that follows.
    async fn head(&mut self) -> (String, usize) {
        let mut next = async || {
            let mut line = String::new();
            soon("a line", self.0.read_line(&mut line)).await.unwrap();
            line.trim_end().to_ascii_lowercase()
        };
        let (status, mut length) = (next().await, 0);
        loop {
            let line = next().await;
            match line.strip_prefix("content-length: ") {
                Some(value) => length = value.parse().unwrap(),
                None if line.is_empty() => return (status, length),
                None => {}
            }
        }
    }

    async fn answer(&mut self) -> (String, String) {
        let (status, length) = self.head().await;
        let mut content = vec![0; length];
        soon("a body", self.0.read_exact(&mut content))
            .await
            .unwrap();
        (status, String::from_utf8(content).unwrap())
    }
}

#[tokio::test]
async fn who_expects_to_be_told_to_go_on_is_told_so_unless_the_head_is_refused() {
    let runs = Runs::default();
    let counted = runs.clone();
    let layer = IdempotencyLayer::new(LockManager::in_memory());
    let layer = layer.require_key(true).max_request_body(10);
    let echo = routing::post(async move |content: String| {
        counted.one_more();
        content
    });
    let address = axum_on(Router::new().route("/a", echo).route_layer(layer)).await;
    let head = |key: &str, length: usize| {
        format!(
            "POST /a HTTP/1.1\r\nhost: x\r\n{key}content-length: {length}\r\nexpect: 100-continue\r\n\r\n"
        )
    };
    let key = "idempotency-key: k\r\n";
    let mut client = Raw::connect(address).await;
    for _ in 0..2 {
        client.send(&head(key, 7)).await;
        assert_eq!(client.head().await.0, "http/1.1 100 continue");
        client.send("payload").await;
        let (status, content) = client.answer().await;
        assert_eq!((&*status, &*content), ("http/1.1 200 ok", "payload"));
    }
    assert_eq!(runs.count(), 1);
    for (key, length, status) in [
        ("", 7, "http/1.1 400 bad request"),
        ("idempotency-key: \r\n", 7, "http/1.1 400 bad request"),
        (key, 11, "http/1.1 413 payload too large"),
    ] {
        let mut client = Raw::connect(address).await;
        client.send(&head(key, length)).await;
        assert_eq!(client.head().await.0, status);
    }
    // A body that does not tell its length is read until it is too long.
    let mut client = Raw::connect(address).await;
    let chunked =
        "POST /a HTTP/1.1\r\nhost: x\r\nidempotency-key: l\r\ntransfer-encoding: chunked\r\n\r\n";
    client.send(chunked).await;
    client.send("6\r\nabcdef\r\n6\r\nghijkl\r\n").await;
    assert_eq!(client.head().await.0, "http/1.1 413 payload too large");
    assert_eq!(runs.count(), 1);
}

#[tokio::test]
async fn a_smaller_limit_of_the_extractors_inside_still_holds() {
    let (runs, layer) = (
        Runs::default(),
        IdempotencyLayer::new(LockManager::in_memory()),
    );
    let counted = runs.clone();
    let echo = routing::post(async move |content: Bytes| {
        counted.one_more();
        content
    });
    let router = Router::new().route("/a", echo).route_layer(layer);
    let address = axum_on(router.layer(DefaultBodyLimit::max(10))).await;
    let client = client(Version::HTTP_11);
    for is_replay in [false, true] {
        let answer = ask(&client, address, "/a", "long", "payload that is too long").await;
        // It is axum that refuses it.
        assert_eq!((answer.status(), answer.is_replay()), (413, is_replay));
        assert_ne!(
            answer.head.headers[CONTENT_TYPE],
            "application/problem+json"
        );
        let answer = ask(&client, address, "/a", "short", "payload").await;
        assert_eq!((answer.status(), answer.is_replay()), (200, is_replay));
    }
    assert_eq!(runs.count(), 1);
}

#[tokio::test]
async fn who_leaves_over_a_socket_finds_the_answer_later() {
    let (runs, gate) = (Runs::default(), Gate::new());
    let layer = IdempotencyLayer::new(LockManager::in_memory());
    let (counted, passed) = (runs.clone(), gate.clone());
    let handler = routing::post(async move || {
        passed.pass().await;
        format!("run {}", counted.one_more())
    });
    // Outside the layer, the server's drop of the request shows that the client has left.
    let (note, has_left) = OnDrop::new();
    let note = Arc::new(Mutex::new(Some(note)));
    let outside = from_fn(move |request: axum::extract::Request, next: Next| {
        let note = note.lock().unwrap().take();
        async move {
            let _note = note;
            next.run(request).await
        }
    });
    let router = Router::new().route("/a", handler);
    let router = router.route_layer(layer.wait(Duration::from_secs(3600)));
    let address = axum_on(router.layer(outside)).await;
    let mut leaves = Raw::connect(address).await;
    let request = "POST /a HTTP/1.1\r\nhost: x\r\nidempotency-key: k\r\ncontent-length: 0\r\n\r\n";
    leaves.send(request).await;
    gate.arrived().await;
    drop(leaves);
    eventually("it is noticed", async || has_left.load(Ordering::SeqCst)).await;
    let client = client(Version::HTTP_11);
    let mut later = Box::pin(ask(&client, address, "/a", "k", ""));
    assert!(poll!(&mut later).is_pending());
    gate.open();
    later.await.is_replay_of(1);
}
