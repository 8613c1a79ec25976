//! A service under an idempotency layer, and its responses.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, poll};
use http::{HeaderMap, Request, Response, response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use tokio::task::JoinHandle;
use tower::util::BoxCloneSyncService;
use tower::{BoxError, Layer, Service, ServiceExt, service_fn};
use tower_distributed_lock::idempotency::{IdempotencyBody, IdempotencyLayer};
use tower_distributed_lock::lock::{Rejection, RejectionKind};

use crate::support::{Gate, soon};

pub type Body = UnsyncBoxBody<Bytes, BoxError>;
/// The request that a handler gets.
pub type InnerRequest = Request<IdempotencyBody<Body>>;
pub type Result = std::result::Result<Response<Body>, Failed>;

/// The error of a handler. It does not implement the standard library's `Error`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed(pub u32);

pub fn body(content: impl Into<Bytes>) -> Body {
    whole(Full::new(content.into()))
}

pub fn whole<B>(body: B) -> Body
where
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    body.map_err(Into::into).boxed_unsync()
}

pub fn text(content: impl Into<Bytes>) -> Response<Body> {
    Response::new(body(content))
}

/// A request with a key, and always the same payload.
pub fn post(key: &str) -> Request<Body> {
    post_to("/a", key)
}

pub fn post_to(path: &str, key: &str) -> Request<Body> {
    let request = Request::post(path).header("idempotency-key", key);
    request.body(body("payload")).unwrap()
}

#[derive(Clone)]
pub struct App(BoxCloneSyncService<Request<Body>, Response<Body>, Failed>);

impl App {
    pub fn new<F, R>(layer: &IdempotencyLayer, handler: F) -> Self
    where
        F: Fn(InnerRequest) -> R + Clone + Send + Sync + 'static,
        R: Future<Output = Result> + Send + 'static,
    {
        Self::of(layer.layer(service_fn(handler)))
    }

    pub fn of<S, B>(service: S) -> Self
    where
        S: Service<Request<Body>, Response = Response<B>, Error = Failed, Future: Send>
            + Clone
            + Send
            + Sync
            + 'static,
        B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        let service = service.map_response(|response| response.map(whole));
        Self(BoxCloneSyncService::new(service))
    }

    pub fn call(
        &self,
        request: Request<Body>,
    ) -> impl Future<Output = Result> + Send + Unpin + use<> {
        self.0.clone().oneshot(request)
    }

    pub async fn send(&self, request: Request<Body>) -> Answer {
        let response = soon("a response", self.call(request)).await;
        Answer::of(response.unwrap()).await
    }

    /// Sends a request that has no response at once. When this returns, it waits or runs in this
    /// process.
    pub async fn begin(&self, request: Request<Body>) -> JoinHandle<Answer> {
        let mut call = self.call(request);
        assert!(poll!(&mut call).is_pending());
        tokio::spawn(async move { Answer::of(call.await.unwrap()).await })
    }
}

#[derive(Debug)]
pub struct Answer {
    pub head: response::Parts,
    pub body: Bytes,
    pub trailers: Option<HeaderMap>,
}

impl Answer {
    pub async fn of(response: Response<Body>) -> Self {
        let (head, body) = response.into_parts();
        let collected = soon("the whole body", body.collect()).await.unwrap();
        let trailers = collected.trailers().cloned();
        let body = collected.to_bytes();
        Self {
            head,
            body,
            trailers,
        }
    }

    pub fn status(&self) -> u16 {
        self.head.status.as_u16()
    }

    pub fn is_replay(&self) -> bool {
        match self.head.headers.get("idempotent-replayed") {
            Some(value) => {
                assert_eq!(value, "true");
                true
            }
            None => false,
        }
    }

    /// Checks that this is the response of that run, and no replay.
    #[track_caller]
    pub fn is_run(&self, run: usize) {
        assert_eq!(self.status(), 200, "{self:?}");
        assert_eq!(self.body, format!("run {run}"));
        assert!(!self.is_replay());
    }

    #[track_caller]
    pub fn is_replay_of(&self, run: usize) {
        assert_eq!(self.status(), 200, "{self:?}");
        assert_eq!(self.body, format!("run {run}"));
        assert!(self.is_replay());
    }

    #[track_caller]
    pub fn is_refused(&self, status: u16) {
        assert_eq!(self.status(), status, "{self:?}");
        assert!(!self.is_replay());
        let headers = &self.head.headers;
        assert_eq!(headers["content-type"], "application/problem+json");
    }

    /// Checks that this is a refusal with this status, for this reason.
    #[track_caller]
    pub fn is_rejected(&self, status: u16, kind: RejectionKind) {
        self.is_refused(status);
        let rejection = self.head.extensions.get::<Rejection>().unwrap();
        assert_eq!(rejection.kind(), kind);
    }
}

/// Counts how often a handler runs.
#[derive(Clone, Default)]
pub struct Runs(Arc<AtomicUsize>);

impl Runs {
    pub fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }

    /// Counts a run that begins, and returns its number.
    pub fn one_more(&self) -> usize {
        self.0.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// A handler that is told which run it is.
    pub fn then<F, R>(
        &self,
        handler: F,
    ) -> impl Fn(InnerRequest) -> R + Clone + Send + Sync + 'static + use<F, R>
    where
        F: Fn(usize, InnerRequest) -> R + Clone + Send + Sync + 'static,
    {
        let runs = self.clone();
        move |request| handler(runs.one_more(), request)
    }

    /// A handler whose response tells which run it was.
    pub fn handler(
        &self,
    ) -> impl Fn(InnerRequest) -> std::future::Ready<Result> + Clone + Send + Sync + 'static + use<>
    {
        self.then(|run, _| std::future::ready(Ok(text(format!("run {run}")))))
    }

    /// Like [`handler`](Self::handler), behind a gate.
    pub fn gated(
        &self,
        gate: &Gate,
    ) -> impl Fn(InnerRequest) -> BoxFuture<'static, Result> + Clone + Send + Sync + 'static + use<>
    {
        let gate = gate.clone();
        self.then(move |run, _| {
            let gate = gate.clone();
            async move {
                gate.pass().await;
                Ok(text(format!("run {run}")))
            }
            .boxed()
        })
    }
}
