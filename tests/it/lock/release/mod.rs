//! However a request ends, its lock is released: over real sockets, and looked at in Redis.
//!
//! Locks live for a minute here, so that no expiry can be the explanation. Every test has seen the
//! lock in Redis before it looks for what is left of it.

mod client;
mod clients_that_leave;
mod ends;
mod first_byte;
mod layers_and_servers;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;

use axum::body::Body;
use axum::routing::{MethodRouter, any};
use axum::{Extension, Router};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use http::Version;
use http_body::Frame;
use http_body_util::StreamBody;
use redis::aio::MultiplexedConnection;
use tokio::sync::mpsc;
use tower_distributed_lock::{DistributedLockLayer, Lease, LockManager};

use crate::servers::axum_on;
use crate::support::{Gate, RedisServer, eventually_no_trace, minute, soon, value};

const VERSIONS: [Version; 2] = [Version::HTTP_11, Version::HTTP_2];

/// A node with its Redis, and a second connection to look into Redis.
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

    /// Waits until the work of a request is dropped. Its lock must have been held then.
    async fn work_ended_under_its_lock(&mut self) {
        let dropped = soon("the work is dropped", self.dropped.recv()).await;
        let expected = Dropped {
            lease_was_held: true,
            owner_was_in_redis: true,
        };
        assert_eq!(dropped.unwrap(), expected);
    }

    /// A handler that passes the gate and then does what it is told.
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

    /// A handler whose response body has one frame at once, and the others after the gate.
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

/// Lives as long as the work of a request, and looks at the lock when it is dropped.
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

/// Serves a handler in axum, under the layer.
async fn serve(stage: &Stage, handler: MethodRouter) -> SocketAddr {
    axum_on(Router::new().route("/", handler).layer(stage.layer())).await
}
