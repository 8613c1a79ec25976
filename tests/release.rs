//! However a request ends, its lock is released: over real sockets, and looked at in Redis.
//!
//! Locks live for a minute here, so that no expiry can be the explanation, and every test has seen the lock in Redis
//! before it looks for what is left of it.

mod common;

use std::convert::Infallible;
use std::future::{Future, pending};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use axum::error_handling::HandleErrorLayer;
use axum::routing::{MethodRouter, any};
use axum::{BoxError, Extension, Router};
use bytes::Bytes;
use common::{
    Gate, Mode, Proxy, RedisServer, eventually, eventually_no_trace, minute, queue_length, soon,
    value,
};
use futures_util::future::BoxFuture;
use futures_util::{Stream, StreamExt, stream};
use http::{HeaderMap, Method, Request, Response, StatusCode, Version};
use http_body::Frame;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use redis::aio::MultiplexedConnection;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tower::timeout::TimeoutLayer;
use tower::{Layer, Service, ServiceBuilder, service_fn};
use tower_distributed_lock::{DetachLayer, DistributedLockLayer, Lease, LockManager};

const VERSIONS: [Version; 2] = [Version::HTTP_11, Version::HTTP_2];

/// A node with its Redis, and a second connection to look at that.
struct Stage {
    gate: Gate,
    locks: LockManager,
    redis: MultiplexedConnection,
    works: Works,
    dropped: mpsc::UnboundedReceiver<Dropped>,
    server: RedisServer,
}

impl Stage {
    async fn new() -> Self {
        let server = RedisServer::start().await;
        let locks = minute().connect(&server.url()).await.unwrap();
        let (tell, dropped) = mpsc::unbounded_channel();
        Self {
            gate: Gate::new(),
            redis: server.client().await,
            works: Works {
                redis: redis::Client::open(server.url()).unwrap(),
                tell,
            },
            locks,
            dropped,
            server,
        }
    }

    fn layer(&self) -> DistributedLockLayer {
        DistributedLockLayer::new(self.locks.clone(), |_| "a")
    }

    async fn is_held(&self) {
        assert!(value(&self.redis, "lock:a").await.is_some());
    }

    async fn is_over(&self) {
        eventually_no_trace(&self.redis).await;
    }

    /// The work of a request was dropped, and its lock was held then.
    async fn work_ended_under_its_lock(&mut self) {
        let dropped = soon("the work is dropped", self.dropped.recv()).await;
        let expected = Dropped {
            lease_was_held: true,
            owner_was_in_redis: true,
        };
        assert_eq!(dropped.unwrap(), expected);
    }

    /// A handler that goes through the gate, and then does what it is told.
    fn handler<F, R>(&self, then: impl Fn() -> F + Clone + Send + Sync + 'static) -> MethodRouter
    where
        F: Future<Output = R> + Send + 'static,
        R: axum::response::IntoResponse + 'static,
    {
        let (works, gate) = (self.works.clone(), self.gate.clone());
        any(move |Extension(lease): Extension<Lease>| {
            let (work, gate, then) = (works.on(lease), gate.clone(), then.clone());
            async move {
                let _work = work;
                gate.pass().await;
                then().await
            }
        })
    }

    /// A handler whose response has one frame, then goes through the gate, and then has the others.
    fn body_handler<S>(&self, then: impl Fn() -> S + Clone + Send + Sync + 'static) -> MethodRouter
    where
        S: Stream<Item = io::Result<Frame<Bytes>>> + Send + 'static,
    {
        let (works, gate) = (self.works.clone(), self.gate.clone());
        any(move |Extension(lease): Extension<Lease>| {
            let work = works.on(lease);
            let rest = then();
            let gate = gate.clone();
            let first = stream::iter([Ok(Frame::data(Bytes::from("first ")))]);
            let passed = stream::once(async move { gate.pass().await });
            let nothing = passed.filter_map(async |()| None);
            let frames = Guarded {
                frames: first.chain(nothing).chain(rest).boxed(),
                _work: work,
            };
            async move { Body::new(StreamBody::new(frames)) }
        })
    }
}

/// What a piece of work found when it was dropped.
#[derive(Debug, PartialEq)]
struct Dropped {
    lease_was_held: bool,
    owner_was_in_redis: bool,
}

#[derive(Clone)]
struct Works {
    redis: redis::Client,
    tell: mpsc::UnboundedSender<Dropped>,
}

impl Works {
    fn on(&self, lease: Lease) -> Work {
        Work {
            works: self.clone(),
            lease,
        }
    }
}

/// Lives as long as the work of a request, and looks at the lock when it ends.
struct Work {
    works: Works,
    lease: Lease,
}

impl Drop for Work {
    fn drop(&mut self) {
        let lease_was_held = self.lease.is_held();
        let mut redis = self.works.redis.get_connection().unwrap();
        let owner: Option<String> = redis::cmd("GET").arg("lock:a").query(&mut redis).unwrap();
        let _ = self.works.tell.send(Dropped {
            lease_was_held,
            owner_was_in_redis: owner.is_some(),
        });
    }
}

struct Guarded {
    frames: stream::BoxStream<'static, io::Result<Frame<Bytes>>>,
    _work: Work,
}

impl Stream for Guarded {
    type Item = io::Result<Frame<Bytes>>;

    fn poll_next(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.frames.poll_next_unpin(cx)
    }
}

// Servers.

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

async fn axum_on(router: Router) -> SocketAddr {
    let (listener, address) = listen().await;
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

/// Serves a handler in axum, under the layer.
async fn serve(stage: &Stage, handler: MethodRouter) -> SocketAddr {
    axum_on(Router::new().route("/", handler).layer(stage.layer())).await
}

async fn hyper_on<S, B>(service: S, version: Version) -> SocketAddr
where
    S: Service<Request<Incoming>, Response = Response<B>, Future: Send> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    let (listener, address) = listen().await;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let io = TokioIo::new(stream);
            let service = TowerToHyperService::new(service.clone());
            tokio::spawn(async move {
                let _ = match version {
                    Version::HTTP_2 => {
                        let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                        server.serve_connection(io, service).await
                    }
                    _ => {
                        let server = hyper::server::conn::http1::Builder::new();
                        server.serve_connection(io, service).await
                    }
                };
            });
        }
    });
    address
}

// A client that is exact about when it sends, reads and leaves.

enum Http {
    One {
        stream: TcpStream,
        head: String,
    },
    Two {
        sender: SendRequest<Full<Bytes>>,
        response: BoxFuture<'static, hyper::Result<Response<Incoming>>>,
        body: Option<Incoming>,
    },
}

/// What came of a body, and whether that was all of it.
struct Received {
    text: String,
    is_whole: bool,
    trailers: Option<HeaderMap>,
}

impl Http {
    async fn start(address: SocketAddr, version: Version, method: Method) -> Self {
        let mut stream = TcpStream::connect(address).await.unwrap();
        if version == Version::HTTP_2 {
            let io = TokioIo::new(stream);
            let (mut sender, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), io)
                    .await
                    .unwrap();
            tokio::spawn(connection);
            let mut request = Request::new(Full::default());
            *request.method_mut() = method;
            *request.uri_mut() = format!("http://{address}/").parse().unwrap();
            let response = Box::pin(sender.send_request(request));
            return Self::Two {
                sender,
                response,
                body: None,
            };
        }
        let request = format!(
            "{method} / HTTP/1.1\r\nhost: test\r\nte: trailers\r\nconnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let head = String::new();
        Self::One { stream, head }
    }

    /// The status, `None` if there is no response.
    async fn status(&mut self) -> Option<StatusCode> {
        soon("the head", async {
            match self {
                Self::One { stream, head } => {
                    while !head.ends_with("\r\n\r\n") {
                        let byte = stream.read_u8().await.ok()?;
                        head.push(byte.into());
                    }
                    head.split(' ').nth(1)?.parse().ok()
                }
                Self::Two { response, body, .. } => {
                    let response = response.await.ok()?;
                    let status = response.status();
                    *body = Some(response.into_body());
                    Some(status)
                }
            }
        })
        .await
    }

    /// Reads one frame's worth of the body.
    async fn first(&mut self) {
        soon("the first frame", async {
            match self {
                Self::One { stream, .. } => {
                    let mut text = [0; 6];
                    while !text.starts_with(b"first ") {
                        text.rotate_left(1);
                        text[5] = stream.read_u8().await.unwrap();
                    }
                }
                Self::Two { body, .. } => {
                    let frame = body.as_mut().unwrap().frame().await;
                    let data = frame.unwrap().unwrap().into_data().unwrap();
                    assert_eq!(data, "first ");
                }
            }
        })
        .await;
    }

    async fn rest(self) -> Received {
        soon("the body", async {
            match self {
                Self::One { mut stream, head } => {
                    let mut bytes = Vec::new();
                    let read = stream.read_to_end(&mut bytes).await;
                    let text = String::from_utf8(bytes).unwrap();
                    let length = head.lines().find_map(|line| {
                        line.to_ascii_lowercase()
                            .strip_prefix("content-length: ")?
                            .parse::<usize>()
                            .ok()
                    });
                    let is_whole = match length {
                        Some(length) => text.len() == length,
                        None => {
                            text.ends_with("0\r\n\r\n") || text.contains("0\r\nx-sum: 42\r\n\r\n")
                        }
                    };
                    let trailers = text.contains("0\r\nx-sum: 42\r\n\r\n").then(|| {
                        HeaderMap::from_iter([("x-sum".parse().unwrap(), "42".parse().unwrap())])
                    });
                    Received {
                        text,
                        is_whole: is_whole && read.is_ok(),
                        trailers,
                    }
                }
                Self::Two {
                    mut body, sender, ..
                } => {
                    let mut body = body.take().unwrap();
                    let mut received = Received {
                        text: String::new(),
                        is_whole: false,
                        trailers: None,
                    };
                    received.is_whole = loop {
                        match body.frame().await {
                            None => break true,
                            Some(Err(_)) => break false,
                            Some(Ok(frame)) => match frame.into_data() {
                                Ok(data) => {
                                    received.text += std::str::from_utf8(&data).unwrap();
                                }
                                Err(frame) => received.trailers = frame.into_trailers().ok(),
                            },
                        }
                    };
                    drop(sender);
                    received
                }
            }
        })
        .await
    }

    /// HTTP/1 closes the connection, HTTP/2 resets the stream: its connection lives as long as what is returned.
    fn leave(self) -> Option<SendRequest<Full<Bytes>>> {
        match self {
            Self::One { .. } => None,
            Self::Two { sender, .. } => Some(sender),
        }
    }
}

async fn get(address: SocketAddr, version: Version) -> Http {
    Http::start(address, version, Method::GET).await
}

// Requests that come to an end of their own.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_response() {
    let mut stage = Stage::new().await;
    let address = serve(&stage, stage.handler(async || "done")).await;
    for version in VERSIONS {
        let mut client = get(address, version).await;
        stage.gate.arrived().await;
        stage.is_held().await;
        stage.gate.open();
        assert_eq!(client.status().await, Some(StatusCode::OK));
        let received = client.rest().await;
        assert!(received.is_whole);
        assert_eq!(received.text, "done");
        stage.is_over().await;
        stage.work_ended_under_its_lock().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn before_a_response_if_that_is_wanted() {
    let stage = Stage::new().await;
    let layer = stage.layer().release_before_response(true);
    let router = Router::new().route("/", stage.handler(async || "done"));
    let address = axum_on(router.layer(layer)).await;
    for _ in 0..50 {
        for version in VERSIONS {
            let mut client = get(address, version).await;
            stage.gate.arrived().await;
            stage.is_held().await;
            stage.gate.open();
            assert_eq!(client.status().await, Some(StatusCode::OK));
            assert!(client.rest().await.is_whole);
            // Not eventually.
            assert_eq!(value(&stage.redis, "lock:a").await, None);
        }
    }
}

/// What a server wrote to its sockets.
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

/// A socket that notes what is written.
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

/// Bodies, of which the first come at once.
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

/// A client may go on as soon as it has the head, to another node.
///
/// In one thread: what a write finds in Redis is what was there before it.
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_an_error_of_the_handler() {
    let mut stage = Stage::new().await;
    let failing = async || (StatusCode::INTERNAL_SERVER_ERROR, "no");
    let address = serve(&stage, stage.handler(failing)).await;
    for version in VERSIONS {
        let mut client = get(address, version).await;
        stage.gate.arrived().await;
        stage.is_held().await;
        stage.gate.open();
        let status = client.status().await;
        assert_eq!(status, Some(StatusCode::INTERNAL_SERVER_ERROR));
        assert_eq!(client.rest().await.text, "no");
        stage.is_over().await;
        stage.work_ended_under_its_lock().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_an_error_of_the_service() {
    let mut stage = Stage::new().await;
    for version in VERSIONS {
        let (works, gate) = (stage.works.clone(), stage.gate.clone());
        let failing = service_fn(move |req: Request<Incoming>| {
            let work = works.on(req.extensions().get::<Lease>().unwrap().clone());
            let gate = gate.clone();
            async move {
                let _work = work;
                gate.pass().await;
                Err::<Response<Empty<Bytes>>, _>(io::Error::other("no response"))
            }
        });
        let address = hyper_on(stage.layer().layer(failing), version).await;
        let mut client = get(address, version).await;
        stage.gate.arrived().await;
        stage.is_held().await;
        stage.gate.open();
        assert_eq!(client.status().await, None);
        stage.is_over().await;
        stage.work_ended_under_its_lock().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_panic_in_the_handler() {
    let mut stage = Stage::new().await;
    let panicking = async || -> &'static str { panic!("a handler that panics, for a test") };
    let address = serve(&stage, stage.handler(panicking)).await;
    for version in VERSIONS {
        let mut client = get(address, version).await;
        stage.gate.arrived().await;
        stage.is_held().await;
        stage.gate.open();
        assert_eq!(client.status().await, None);
        stage.is_over().await;
        stage.work_ended_under_its_lock().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_panic_in_the_body() {
    let mut stage = Stage::new().await;
    let panicking = || stream::once(async { panic!("a body that panics, for a test") });
    let address = serve(&stage, stage.body_handler(panicking)).await;
    for version in VERSIONS {
        let mut client = get(address, version).await;
        assert_eq!(client.status().await, Some(StatusCode::OK));
        client.first().await;
        stage.gate.arrived().await;
        stage.is_held().await;
        stage.gate.open();
        assert!(!client.rest().await.is_whole);
        stage.is_over().await;
        stage.work_ended_under_its_lock().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_an_error_of_the_body() {
    let stage = Stage::new().await;
    let failing = || stream::iter([Err(io::Error::other("a body that fails"))]);
    let address = serve(&stage, stage.body_handler(failing)).await;
    for version in VERSIONS {
        let mut client = get(address, version).await;
        assert_eq!(client.status().await, Some(StatusCode::OK));
        client.first().await;
        stage.gate.arrived().await;
        stage.is_held().await;
        stage.gate.open();
        assert!(!client.rest().await.is_whole);
        stage.is_over().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_body_of_unknown_length_and_not_before() {
    let stage = Stage::new().await;
    let more = || stream::iter([Ok(Frame::data(Bytes::from("second")))]);
    let address = serve(&stage, stage.body_handler(more)).await;
    for version in VERSIONS {
        let mut client = get(address, version).await;
        assert_eq!(client.status().await, Some(StatusCode::OK));
        client.first().await;
        stage.gate.arrived().await;
        stage.is_held().await;
        stage.gate.open();
        let received = client.rest().await;
        assert!(received.is_whole);
        assert!(received.text.contains("second"));
        stage.is_over().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_trailers() {
    for release_first in [false, true] {
        let stage = Stage::new().await;
        let trailers = || {
            let sum = HeaderMap::from_iter([("x-sum".parse().unwrap(), "42".parse().unwrap())]);
            // Whoever asks for more after the trailers would wait.
            stream::iter([Ok(Frame::trailers(sum))]).chain(stream::pending())
        };
        let layer = stage.layer().release_before_response(release_first);
        let announce = axum::middleware::map_response(async |mut response: Response<Body>| {
            let name = "x-sum".parse().unwrap();
            response.headers_mut().insert("trailer", name);
            response
        });
        let router = Router::new().route("/", stage.body_handler(trailers));
        let address = axum_on(router.layer(layer).layer(announce)).await;
        for version in VERSIONS {
            let mut client = get(address, version).await;
            assert_eq!(client.status().await, Some(StatusCode::OK));
            client.first().await;
            stage.gate.arrived().await;
            stage.is_held().await;
            stage.gate.open();
            let received = client.rest().await;
            assert!(received.is_whole);
            assert_eq!(received.trailers.unwrap()["x-sum"], "42");
            stage.is_over().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_body_whose_length_a_header_tells() {
    let stage = Stage::new().await;
    // By the header there is nothing left to read, by the stream there may be.
    let (works, gate) = (stage.works.clone(), stage.gate.clone());
    let handler = any(move |Extension(lease): Extension<Lease>| {
        let (work, gate) = (works.on(lease), gate.clone());
        async move {
            gate.pass().await;
            let frames = Guarded {
                frames: stream::iter([Ok(Frame::data(Bytes::from("sized")))])
                    .chain(stream::pending())
                    .boxed(),
                _work: work,
            };
            (
                [("content-length", "5")],
                Body::new(StreamBody::new(frames)),
            )
        }
    });
    let address = serve(&stage, handler).await;
    let mut client = get(address, Version::HTTP_11).await;
    stage.gate.arrived().await;
    stage.is_held().await;
    stage.gate.open();
    assert_eq!(client.status().await, Some(StatusCode::OK));
    let received = client.rest().await;
    assert!(received.is_whole);
    assert_eq!(received.text, "sized");
    stage.is_over().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_an_empty_body() {
    let mut stage = Stage::new().await;
    for handler in [
        stage.handler(async || ()),
        stage.handler(async || StatusCode::NO_CONTENT),
        stage.handler(async || Body::new(Empty::new())),
    ] {
        let address = serve(&stage, handler).await;
        for version in VERSIONS {
            let mut client = get(address, version).await;
            stage.gate.arrived().await;
            stage.is_held().await;
            stage.gate.open();
            assert!(client.status().await.unwrap().is_success());
            assert_eq!(client.rest().await.text, "");
            stage.is_over().await;
            stage.work_ended_under_its_lock().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_response_whose_body_is_never_asked_for() {
    let mut stage = Stage::new().await;
    // A body that would never end.
    let endless = |status: StatusCode| {
        move || async move {
            let frames = stream::pending::<io::Result<Frame<Bytes>>>();
            (status, Body::new(StreamBody::new(frames)))
        }
    };
    for (method, status) in [
        (Method::HEAD, StatusCode::OK),
        (Method::GET, StatusCode::NO_CONTENT),
        (Method::GET, StatusCode::NOT_MODIFIED),
    ] {
        let router = Router::new().route("/", stage.handler(endless(status)));
        // With axum's own treatment of HEAD, and with hyper's alone.
        let by_axum = axum_on(router.clone().layer(stage.layer())).await;
        let by_hyper = service_fn(move |req: Request<Incoming>| {
            let mut router = router.clone();
            async move { router.call(req).await }
        });
        let by_hyper = hyper_on(stage.layer().layer(by_hyper), Version::HTTP_11).await;
        for address in [by_axum, by_hyper] {
            let mut client = Http::start(address, Version::HTTP_11, method.clone()).await;
            stage.gate.arrived().await;
            stage.is_held().await;
            stage.gate.open();
            assert_eq!(client.status().await, Some(status));
            assert_eq!(client.rest().await.text, "");
            stage.is_over().await;
            stage.work_ended_under_its_lock().await;
        }
    }
}

// Clients that leave.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_the_client_left_while_the_handler_ran() {
    let mut stage = Stage::new().await;
    let address = serve(&stage, stage.handler(async || "done")).await;
    for version in VERSIONS {
        let client = get(address, version).await;
        stage.gate.arrived().await;
        stage.is_held().await;
        let _connection = client.leave();
        stage.is_over().await;
        stage.work_ended_under_its_lock().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_the_client_left_in_the_middle_of_its_own_body() {
    let mut stage = Stage::new().await;
    let (works, gate) = (stage.works.clone(), stage.gate.clone());
    let reading = any(move |Extension(lease): Extension<Lease>, body: Body| {
        let (work, gate) = (works.on(lease), gate.clone());
        async move {
            let mut body = body;
            body.frame().await.unwrap().unwrap();
            gate.pass().await;
            let rest = body.collect().await.map(drop);
            drop(work);
            rest.map_err(|_| StatusCode::BAD_REQUEST)
        }
    });
    let address = serve(&stage, reading).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    let half = b"POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 10\r\n\r\nhalf!";
    stream.write_all(half).await.unwrap();
    stage.gate.arrived().await;
    stage.is_held().await;
    stage.gate.open();
    drop(stream);
    stage.is_over().await;
    stage.work_ended_under_its_lock().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_the_client_left_in_the_middle_of_the_body() {
    let mut stage = Stage::new().await;
    let address = serve(&stage, stage.body_handler(stream::empty)).await;
    for version in VERSIONS {
        let mut client = get(address, version).await;
        assert_eq!(client.status().await, Some(StatusCode::OK));
        client.first().await;
        stage.gate.arrived().await;
        stage.is_held().await;
        let _connection = client.leave();
        stage.is_over().await;
        stage.work_ended_under_its_lock().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_the_client_left_without_reading_what_was_sent() {
    let mut stage = Stage::new().await;
    let endless = || stream::repeat_with(|| Ok(Frame::data(Bytes::from(vec![0; 64 * 1024]))));
    let address = serve(&stage, stage.body_handler(endless)).await;
    for version in VERSIONS {
        let mut client = get(address, version).await;
        assert_eq!(client.status().await, Some(StatusCode::OK));
        stage.gate.arrived().await;
        stage.gate.open();
        stage.is_held().await;
        let _connection = client.leave();
        stage.is_over().await;
        stage.work_ended_under_its_lock().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_while_waiting_leaves_the_queue_to_the_others() {
    for version in VERSIONS {
        let mut stage = Stage::new().await;
        let mut nodes = Vec::new();
        for _ in 0..3 {
            let locks = minute().connect(&stage.server.url()).await.unwrap();
            let layer = DistributedLockLayer::new(locks, |_| "a").wait(common::PATIENCE);
            let router = Router::new().route("/", stage.handler(async || "done"));
            nodes.push(axum_on(router.layer(layer)).await);
        }
        let mut holder = get(nodes[0], version).await;
        stage.gate.arrived().await;
        stage.is_held().await;
        let owner = value(&stage.redis, "lock:a").await;
        let leaves = get(nodes[1], version).await;
        let redis = &stage.redis;
        let waiting = |count| {
            eventually("that many wait", move || async move {
                queue_length(redis, "a").await == count
            })
        };
        waiting(1).await;
        let mut next = get(nodes[2], version).await;
        waiting(2).await;
        let _connection = leaves.leave();
        waiting(1).await;
        // The holder is not affected.
        assert_eq!(value(&stage.redis, "lock:a").await, owner);
        assert!(stage.gate.nobody_else());
        stage.gate.open();
        assert_eq!(holder.status().await, Some(StatusCode::OK));
        assert_eq!(holder.rest().await.text, "done");
        stage.gate.arrived().await;
        stage.is_held().await;
        assert_ne!(value(&stage.redis, "lock:a").await, owner);
        stage.gate.open();
        assert_eq!(next.status().await, Some(StatusCode::OK));
        assert_eq!(next.rest().await.text, "done");
        stage.is_over().await;
        stage.work_ended_under_its_lock().await;
        stage.work_ended_under_its_lock().await;
        assert!(stage.gate.nobody_else());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_detached_request_ends_later_than_its_client_and_with_its_lock() {
    let mut stage = Stage::new().await;
    let finished = Arc::new(AtomicBool::new(false));
    let handler = stage.handler({
        let finished = Arc::clone(&finished);
        move || {
            let finished = Arc::clone(&finished);
            async move { finished.store(true, Ordering::SeqCst) }
        }
    });
    // Outside of everything: tells that the server has dropped the request.
    let left = Gate::new();
    let tell = {
        let left = left.clone();
        tower::layer::layer_fn(move |inner: axum::routing::Route| {
            let left = left.clone();
            service_fn(move |req: Request<Body>| {
                let (mut inner, left) = (inner.clone(), left.clone());
                async move {
                    let _left = OnLeaving(left);
                    inner.call(req).await
                }
            })
        })
    };
    let detached = ServiceBuilder::new()
        .layer(DetachLayer::new())
        .layer(stage.layer());
    let router = Router::new().route("/", handler);
    let address = axum_on(router.layer(detached).layer(tell)).await;
    for version in VERSIONS {
        finished.store(false, Ordering::SeqCst);
        let client = get(address, version).await;
        stage.gate.arrived().await;
        let _connection = client.leave();
        left.arrived().await;
        stage.is_held().await;
        assert!(!finished.load(Ordering::SeqCst));
        stage.gate.open();
        stage.is_over().await;
        assert!(finished.load(Ordering::SeqCst));
        stage.work_ended_under_its_lock().await;
    }
}

struct OnLeaving(Gate);

impl Drop for OnLeaving {
    fn drop(&mut self) {
        // As a handler would that goes no further than the gate.
        let mut pass = Box::pin(self.0.pass());
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        let _ = pass.as_mut().poll(&mut cx);
    }
}

// Layers and servers that end a request.

/// A handler that looks at its lock by itself, as the time for it runs, and then never ends.
fn endless(stage: &Stage) -> (MethodRouter, mpsc::UnboundedReceiver<bool>) {
    let (tell, was_held) = mpsc::unbounded_channel();
    let (works, redis) = (stage.works.clone(), stage.redis.clone());
    let handler = any(move |Extension(lease): Extension<Lease>| {
        let work = works.on(lease);
        let (redis, tell) = (redis.clone(), tell.clone());
        async move {
            let _work = work;
            let _ = tell.send(value(&redis, "lock:a").await.is_some());
            pending::<()>().await;
        }
    });
    (handler, was_held)
}

const LIMIT: Duration = Duration::from_millis(1500);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_timeout_outside_of_the_lock() {
    let mut stage = Stage::new().await;
    let (handler, mut was_held) = endless(&stage);
    let layers = ServiceBuilder::new()
        .layer(HandleErrorLayer::new(async |_: BoxError| {
            StatusCode::REQUEST_TIMEOUT
        }))
        .layer(TimeoutLayer::new(LIMIT))
        .layer(stage.layer());
    let address = axum_on(Router::new().route("/", handler).layer(layers)).await;
    let mut client = get(address, Version::HTTP_11).await;
    assert_eq!(client.status().await, Some(StatusCode::REQUEST_TIMEOUT));
    assert_eq!(was_held.recv().await, Some(true));
    stage.is_over().await;
    stage.work_ended_under_its_lock().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_timeout_inside_of_the_lock() {
    let mut stage = Stage::new().await;
    let (handler, mut was_held) = endless(&stage);
    let layers = ServiceBuilder::new()
        .layer(stage.layer())
        .layer(HandleErrorLayer::new(async |_: BoxError| {
            StatusCode::REQUEST_TIMEOUT
        }))
        .layer(TimeoutLayer::new(LIMIT));
    let address = axum_on(Router::new().route("/", handler).layer(layers)).await;
    let mut client = get(address, Version::HTTP_11).await;
    assert_eq!(client.status().await, Some(StatusCode::REQUEST_TIMEOUT));
    assert_eq!(was_held.recv().await, Some(true));
    stage.is_over().await;
    stage.work_ended_under_its_lock().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_timeout_outside_ends_a_wait_and_leaves_the_holder_alone() {
    let mut stage = Stage::new().await;
    let other = minute().connect(&stage.server.url()).await.unwrap();
    let guard = other.try_acquire("a").await.unwrap();
    let layers = ServiceBuilder::new()
        .layer(HandleErrorLayer::new(async |_: BoxError| {
            StatusCode::REQUEST_TIMEOUT
        }))
        .layer(TimeoutLayer::new(LIMIT))
        .layer(stage.layer().wait(common::PATIENCE));
    let router = Router::new().route("/", stage.handler(async || "done"));
    let address = axum_on(router.layer(layers)).await;
    let mut client = get(address, Version::HTTP_11).await;
    let redis = &stage.redis;
    eventually("it waits", || async { queue_length(redis, "a").await == 1 }).await;
    assert_eq!(client.status().await, Some(StatusCode::REQUEST_TIMEOUT));
    eventually("it left the queue", || async {
        queue_length(redis, "a").await == 0
    })
    .await;
    stage.is_held().await;
    guard.release().await.unwrap();
    stage.is_over().await;
    assert!(stage.gate.nobody_else());
    assert!(stage.dropped.try_recv().is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_graceful_shutdown_lets_a_request_end_with_its_lock() {
    for version in VERSIONS {
        let mut stage = Stage::new().await;
        let router = Router::new().route("/", stage.handler(async || "done"));
        let router = router.layer(stage.layer());
        let (listener, address) = listen().await;
        let (stop, stopped) = oneshot::channel::<()>();
        let server = tokio::spawn(async move {
            axum::serve(listener, router)
                .with_graceful_shutdown(async { stopped.await.unwrap() })
                .await
        });
        let mut client = get(address, version).await;
        stage.gate.arrived().await;
        stop.send(()).unwrap();
        eventually("the server takes no more connections", || async {
            TcpStream::connect(address).await.is_err()
        })
        .await;
        stage.is_held().await;
        stage.gate.open();
        assert_eq!(client.status().await, Some(StatusCode::OK));
        let received = client.rest().await;
        assert!(received.is_whole);
        assert_eq!(received.text, "done");
        soon("the server ends", server).await.unwrap().unwrap();
        stage.is_over().await;
        stage.work_ended_under_its_lock().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn close_returns_when_redis_has_answered_the_last_release_however_long_that_took() {
    let stage = Stage::new().await;
    for mode in [Mode::HoldAnswers, Mode::Hold] {
        let proxy = Proxy::start(stage.server.port).await;
        let builder = minute().command_timeout(2 * common::PATIENCE);
        let locks = builder.connect(&proxy.url()).await.unwrap();
        let layer = DistributedLockLayer::new(locks.clone(), |_| "a");
        let router = Router::new().route("/", stage.handler(async || "done"));
        let address = axum_on(router.layer(layer)).await;
        let mut client = get(address, Version::HTTP_11).await;
        stage.gate.arrived().await;
        stage.is_held().await;
        let closing = tokio::spawn(async move { locks.close().await });
        proxy.set(mode);
        stage.gate.open();
        assert_eq!(client.status().await, Some(StatusCode::OK));
        assert_eq!(client.rest().await.text, "done");
        if mode == Mode::HoldAnswers {
            stage.is_over().await;
        }
        // Many times as long as the manager needs to see that there is nothing left but the answer.
        for _ in 0..100 {
            value(&stage.redis, "lock:a").await;
        }
        assert!(!closing.is_finished());
        proxy.set(Mode::Forward);
        soon("the manager closes", closing).await.unwrap();
        // Not eventually.
        assert_eq!(value(&stage.redis, "lock:a").await, None);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_server_that_is_stopped_at_once() {
    let mut stage = Stage::new().await;
    let handler = service_fn({
        let (works, gate) = (stage.works.clone(), stage.gate.clone());
        move |req: Request<Incoming>| {
            let work = works.on(req.extensions().get::<Lease>().unwrap().clone());
            let gate = gate.clone();
            async move {
                let _work = work;
                gate.pass().await;
                Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
            }
        }
    });
    let service = TowerToHyperService::new(stage.layer().layer(handler));
    let (listener, address) = listen().await;
    let server = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let server = hyper::server::conn::http1::Builder::new();
        server.serve_connection(TokioIo::new(stream), service).await
    });
    let mut client = get(address, Version::HTTP_11).await;
    stage.gate.arrived().await;
    stage.is_held().await;
    server.abort();
    assert_eq!(client.status().await, None);
    stage.is_over().await;
    stage.work_ended_under_its_lock().await;
}
