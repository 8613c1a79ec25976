//! A response that is there at once: the lock is free before its first byte is sent.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::StreamBody;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tower::{Layer, service_fn};

use super::Stage;
use crate::servers::listen;
use crate::support::{minute, soon};

/// The writes of a server to its sockets.
#[derive(Clone)]
struct Writes {
    redis: redis::Client,
    all: Arc<Mutex<Vec<Write>>>,
}

#[derive(Debug)]
struct Write {
    text: String,
    lock_was_in_redis: bool,
}

impl Writes {
    fn note(&self, parts: &[io::IoSlice<'_>], written: usize) {
        let bytes = parts.iter().flat_map(|part| part.iter().copied());
        let bytes: Vec<u8> = bytes.take(written).collect();
        let mut redis = self.redis.get_connection().unwrap();
        let exists = redis::cmd("EXISTS").arg("lock:a").query(&mut redis);
        self.all.lock().unwrap().push(Write {
            text: String::from_utf8(bytes).unwrap(),
            lock_was_in_redis: exists.unwrap(),
        });
    }
}

/// A socket that records what is written to it.
struct Noted {
    stream: TcpStream,
    writes: Writes,
}

impl AsyncRead for Noted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, into)
    }
}

impl AsyncWrite for Noted {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, parts))?;
        self.writes.note(parts, written);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

struct NotingListener {
    listener: TcpListener,
    writes: Writes,
}

impl axum::serve::Listener for NotingListener {
    type Io = Noted;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Noted, SocketAddr) {
        let (stream, address) = self.listener.accept().await.unwrap();
        let writes = self.writes.clone();
        (Noted { stream, writes }, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// Responses of several kinds. All their bodies are ready at once.
fn respond(path: &str) -> Response<Body> {
    let frames = |frames: Vec<Frame<Bytes>>| {
        Body::new(StreamBody::new(stream::iter(
            frames.into_iter().map(Ok::<_, Infallible>),
        )))
    };
    let data = |text: &'static str| Frame::data(Bytes::from(text));
    let trailers = || HeaderMap::from_iter([("x-sum".parse().unwrap(), "42".parse().unwrap())]);
    let response = Response::builder();
    let response = match path {
        "/full" => response.body(Body::from("the whole")),
        "/frames" => response.body(frames(vec![data("the "), data("whole")])),
        "/sized" => response.header("content-length", "9").body(frames(vec![
            data("the "),
            data("whole"),
            data("more"),
        ])),
        "/trailers" => response
            .header("trailer", "x-sum")
            .body(frames(vec![data("the whole"), Frame::trailers(trailers())])),
        "/empty" => response.body(Body::empty()),
        "/nothing" => response.body(frames(vec![])),
        "/204" => response.status(204).body(Body::empty()),
        "/304" => response.status(304).body(Body::from("the whole")),
        "/long" => response.body(Body::from(vec![b'x'; 3 << 20])),
        _ => panic!("no such path: {path}"),
    };
    response.unwrap()
}

/// A client may go on to another node as soon as it has the head.
///
/// On a single thread, what a write finds in Redis is what was there before it.
#[tokio::test]
async fn before_the_first_byte_of_a_response_that_is_there_at_once() {
    let stage = Stage::new().await;
    let layer = stage.layer().release_before_response(true);
    let other_node = minute().connect(&stage.server.url()).await.unwrap();
    let writes = Writes {
        redis: stage.works.redis.clone(),
        all: Arc::default(),
    };
    let (listener, axum_at) = listen().await;
    let listener = NotingListener {
        listener,
        writes: writes.clone(),
    };
    let router = Router::new().fallback(async |uri: http::Uri| respond(uri.path()));
    let router = router.layer(layer.clone());
    tokio::spawn(async move { axum::serve(listener, router).await });

    let (listener, hyper_at) = listen().await;
    let noting = writes.clone();
    let service = layer.layer(service_fn(async |req: Request<Incoming>| {
        Ok::<_, Infallible>(respond(req.uri().path()))
    }));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let writes = noting.clone();
            let io = TokioIo::new(Noted { stream, writes });
            let service = TowerToHyperService::new(service.clone());
            let server = hyper::server::conn::http1::Builder::new();
            tokio::spawn(server.serve_connection(io, service));
        }
    });

    for address in [axum_at, hyper_at] {
        for (method, path, end) in [
            ("GET", "/full", "\r\n\r\nthe whole"),
            ("GET", "/frames", "\r\n\r\nthe whole"),
            ("GET", "/sized", "\r\n\r\nthe whole"),
            (
                "GET",
                "/trailers",
                "9\r\nthe whole\r\n0\r\nx-sum: 42\r\n\r\n",
            ),
            ("GET", "/empty", "\r\n\r\n"),
            ("GET", "/nothing", "\r\n\r\n"),
            ("GET", "/204", "\r\n\r\n"),
            ("GET", "/304", "\r\n\r\n"),
            ("HEAD", "/full", "\r\n\r\n"),
            ("HEAD", "/frames", "\r\n\r\n"),
            ("GET", "/long", ""),
        ] {
            let mut client = TcpStream::connect(address).await.unwrap();
            let request = format!(
                "{method} {path} HTTP/1.1\r\nhost: test\r\nte: trailers\r\nconnection: close\r\n\r\n"
            );
            client.write_all(request.as_bytes()).await.unwrap();
            let first = soon("the head", client.read_u8()).await.unwrap();
            assert_eq!(first, b'H', "{method} {path}");
            let guard = other_node.try_acquire("a").await.unwrap();
            guard.release().await.unwrap();
            let mut rest = Vec::new();
            soon("the end", client.read_to_end(&mut rest))
                .await
                .unwrap();
            let writes = std::mem::take(&mut *writes.all.lock().unwrap());
            assert!(!writes[0].lock_was_in_redis, "{method} {path}");
            if path == "/long" {
                assert_eq!(rest.iter().filter(|byte| **byte == b'x').count(), 3 << 20);
                continue;
            }
            assert!(rest.ends_with(end.as_bytes()), "{method} {path}");
            assert_eq!(writes.len(), 1, "{method} {path}: {writes:?}");
            assert!(writes[0].text.ends_with(end), "{method} {path}");
        }
    }
}
