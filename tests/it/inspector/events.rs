//! Server-sent events, over real sockets and without.

use std::time::Duration;

use axum::Router;
use http::StatusCode;
use http_body_util::BodyExt;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::{TcpListener, TcpStream};
use tower_distributed_lock::{LockManager, inspector};

use super::get;
use crate::support::{eventually, soon};

/// A reader of events.
struct Reader(Lines<BufReader<TcpStream>>);

impl Reader {
    async fn connect(port: u16, path: &str) -> Self {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        Self(BufReader::new(stream).lines())
    }

    /// The next line that begins in this way.
    async fn line(&mut self, begin: &str) -> String {
        loop {
            let line = soon("a line", self.0.next_line()).await.unwrap();
            let line = line.expect("the stream goes on");
            if let Some(rest) = line.strip_prefix(begin) {
                return rest.to_owned();
            }
        }
    }

    async fn event(&mut self) -> Value {
        serde_json::from_str(&self.line("data: ").await).unwrap()
    }
}

/// Serves the inspector of these locks under a prefix.
async fn serve(locks: &LockManager) -> u16 {
    let app = Router::new().nest_service("/locks", inspector(locks.clone()).show_keys(true));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move { axum::serve(listener, app).await });
    port
}

#[tokio::test]
async fn events_come_at_once_and_go_on() {
    let locks = LockManager::in_memory();
    let port = serve(&locks).await;
    for path in ["/locks?view=events", "/locks/?view=events"] {
        let mut reader = Reader::connect(port, path).await;
        assert_eq!(reader.line("HTTP/1.1 ").await, "200 OK");
        assert_eq!(reader.line("content-type: ").await, "text/event-stream");
        assert_eq!(reader.event().await["held"], 0);
        let guard = locks.try_acquire("k").await.unwrap();
        while reader.event().await["held"] != 1 {}
        drop(guard);
        while reader.event().await["held"] != 0 {}
    }
}

#[tokio::test]
async fn there_are_so_many_readers_and_no_more_and_one_that_leaves_makes_room() {
    let locks = LockManager::in_memory();
    let port = serve(&locks).await;
    let connect = || Reader::connect(port, "/locks?view=events");
    let mut readers = Vec::new();
    for _ in 0..16 {
        let mut reader = connect().await;
        assert_eq!(reader.line("HTTP/1.1 ").await, "200 OK");
        readers.push(reader);
    }
    let mut refused = connect().await;
    assert!(refused.line("HTTP/1.1 ").await.starts_with("503"));
    refused.line("retry-after: ").await;
    readers.pop();
    eventually("there is room", || async {
        connect().await.line("HTTP/1.1 ").await == "200 OK"
    })
    .await;
    // Those that are still there go on.
    readers[0].event().await;
}

/// Otherwise, a page that is open would keep a server from shutting down gracefully.
#[tokio::test]
async fn a_drained_manager_ends_the_streams_after_a_last_event() {
    let locks = LockManager::in_memory();
    let page = inspector(locks.clone());
    let mut body = get(&page, "/?view=events").await.into_body();
    body.frame().await.unwrap().unwrap();
    locks.drain();
    let last = loop {
        let frame = soon("an event", body.frame()).await.unwrap().unwrap();
        let event = String::from_utf8(frame.into_data().unwrap().into()).unwrap();
        if event.contains("\"is_draining\":true") {
            break event;
        }
    };
    assert!(last.starts_with("data: "));
    assert!(soon("the end", body.frame()).await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_stream_ends_after_a_minute_and_costs_one_snapshot_a_second() {
    let page = inspector(LockManager::in_memory());
    let began = tokio::time::Instant::now();
    let response = get(&page, "/?view=events").await;
    assert_eq!(response.status(), StatusCode::OK);
    let mut body = response.into_body();
    let mut events = 0;
    while let Some(frame) = body.frame().await {
        let event = String::from_utf8(frame.unwrap().into_data().unwrap().into()).unwrap();
        assert_eq!(event.starts_with("retry: 1000\n"), events == 0);
        assert!(event.ends_with("}\n\n"));
        events += 1;
    }
    assert_eq!(events, 61);
    assert!(began.elapsed() < Duration::from_secs(62));
}
