//! The service: which request gets which response.

use std::convert::Infallible;
use std::fmt;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Buf;
use http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, HeaderValue,
    REFERRER_POLICY, RETRY_AFTER, X_CONTENT_TYPE_OPTIONS,
};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode};
use http_body::Body;
use tower::Service;

use super::body::InspectorBody;
use super::events::Events;
use super::page::page;
use super::query::Query;
use super::{Inspector, Shared, json, origin, query, view};
use crate::error::{Error, ErrorKind};
use crate::key::LockKey;

/// The longest key that is looked for, in bytes.
const KEY: usize = 4096;

type Reply = Response<InspectorBody>;

impl<B> Service<Request<B>> for Inspector
where
    B: Body + Send + 'static,
    B::Data: Send,
{
    type Response = Reply;
    type Error = Infallible;
    type Future = InspectorFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> InspectorFuture {
        let shared = Arc::clone(&self.shared);
        InspectorFuture(Box::pin(async move {
            let (parts, body) = request.into_parts();
            let reply = respond(&shared, &parts, body).await;
            with_headers(reply.unwrap_or_else(Refusal::into_reply))
        }))
    }
}

/// The response of an [`Inspector`].
pub struct InspectorFuture(Pin<Box<dyn Future<Output = Reply> + Send>>);

impl Future for InspectorFuture {
    type Output = Result<Reply, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx).map(Ok)
    }
}

impl fmt::Debug for InspectorFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InspectorFuture").finish_non_exhaustive()
    }
}

async fn respond<B: Body>(
    shared: &Arc<Shared>,
    request: &Parts,
    body: B,
) -> Result<Reply, Refusal> {
    let query = Query(request.uri.query().unwrap_or_default());
    let (view, action) = (query.get("view"), query.get("do"));
    let method = match request.method {
        Method::HEAD => &Method::GET,
        ref method => method,
    };
    match (method, &*view, &*action) {
        (&Method::GET, "", "") => Ok(of_type("text/html; charset=utf-8", page().html.clone())),
        (&Method::GET, "snapshot", "") => Ok(of_type(JSON, shared.snapshot())),
        (&Method::GET, "events", "") => events(shared),
        (&Method::GET, "locks", "") => list(shared, &query.get("from")).await,
        (&Method::GET, "lock", "") => {
            let key = known(shared, query)?;
            look_up(shared, key).await
        }
        (&Method::POST, "lock", "") => {
            let key = read_key(body).await?;
            look_up(shared, key).await
        }
        (&Method::POST, "", "force-release") => force_release(shared, request, query).await,
        (_, "" | "snapshot" | "events" | "locks", "") => Err(Refusal::method("GET, HEAD")),
        (_, "lock", "") => Err(Refusal::method("GET, HEAD, POST")),
        (_, "", "force-release") => Err(Refusal::method("POST")),
        _ => Err(Refusal::new(StatusCode::NOT_FOUND, "there is no such view")),
    }
}

fn events(shared: &Arc<Shared>) -> Result<Reply, Refusal> {
    let too_many = || Refusal::busy("too many readers follow the locks of this process");
    let events = Events::begin(shared).ok_or_else(too_many)?;
    let mut reply = Response::new(InspectorBody::events(events));
    let headers = reply.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    // What nginx would otherwise keep back until it is much.
    let no_buffering = HeaderName::from_static("x-accel-buffering");
    headers.insert(no_buffering, HeaderValue::from_static("no"));
    Ok(reply)
}

async fn list(shared: &Shared, from: &str) -> Result<Reply, Refusal> {
    let bad_cursor = || {
        Refusal::new(
            StatusCode::BAD_REQUEST,
            "there is no such place in the list",
        )
    };
    let cursor = query::cursor(from).ok_or_else(bad_cursor)?;
    let _one_of_few = shared.question()?;
    let page = shared.locks.list(cursor).await?;
    Ok(of_type(JSON, view::page(shared, &page)))
}

async fn look_up(shared: &Shared, key: LockKey) -> Result<Reply, Refusal> {
    let _one_of_few = shared.question()?;
    let report = shared.locks.inspect(key).await?;
    Ok(of_type(JSON, view::lock(shared, &report)))
}

async fn force_release(
    shared: &Shared,
    request: &Parts,
    query: Query<'_>,
) -> Result<Reply, Refusal> {
    let forbidden = |why| Refusal::new(StatusCode::FORBIDDEN, why);
    if !shared.settings.allow_force_release {
        return Err(forbidden(
            "locks cannot be released here: the service has not set allow_force_release",
        ));
    }
    origin::check(request).map_err(forbidden)?;
    let key = known(shared, query)?;
    let _one_of_few = shared.question()?;
    crate::observe::force_released(&key);
    let was_held = shared.locks.force_release(key).await?;
    let json = json::object(|json| {
        json.flag("was_held", was_held);
    });
    Ok(of_type(JSON, json))
}

fn known(shared: &Shared, query: Query<'_>) -> Result<LockKey, Refusal> {
    let unknown = || {
        let why = "this process has not shown a lock with that id, or has shown many others since";
        Refusal::new(StatusCode::NOT_FOUND, why)
    };
    shared.known.key(&query.get("id")).ok_or_else(unknown)
}

async fn read_key<B: Body>(body: B) -> Result<LockKey, Refusal> {
    let bad = |why| Refusal::new(StatusCode::BAD_REQUEST, why);
    let mut body = pin!(body);
    let mut key = Vec::new();
    while let Some(frame) = std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        let frame = frame.map_err(|_| bad("the body could not be read"))?;
        let Ok(mut data) = frame.into_data() else {
            continue;
        };
        if key.len() + data.remaining() > KEY {
            return Err(bad("the key is too long"));
        }
        while data.has_remaining() {
            let chunk = data.chunk();
            key.extend_from_slice(chunk);
            let read = chunk.len();
            data.advance(read);
        }
    }
    let key = String::from_utf8(key).map_err(|_| bad("the key is not text"))?;
    Ok(LockKey::new(key)?)
}

impl Shared {
    /// Begins a question to Redis, unless there are too many.
    fn question(&self) -> Result<tokio::sync::SemaphorePermit<'_>, Refusal> {
        let busy = |_| Refusal::busy("too many questions at once: ask again");
        self.questions.try_acquire().map_err(busy)
    }
}

const JSON: &str = "application/json";

fn of_type(content_type: &'static str, content: impl Into<bytes::Bytes>) -> Reply {
    let mut reply = Response::new(InspectorBody::whole(content));
    let content_type = HeaderValue::from_static(content_type);
    reply.headers_mut().insert(CONTENT_TYPE, content_type);
    reply
}

fn with_headers(mut reply: Reply) -> Reply {
    let headers = reply.headers_mut();
    if let Ok(policy) = HeaderValue::from_str(&page().policy) {
        headers.insert(CONTENT_SECURITY_POLICY, policy);
    }
    for (name, value) in [
        (CACHE_CONTROL, "no-store"),
        (REFERRER_POLICY, "no-referrer"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (
            HeaderName::from_static("cross-origin-resource-policy"),
            "same-origin",
        ),
        (
            HeaderName::from_static("cross-origin-opener-policy"),
            "same-origin",
        ),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    reply
}

/// Why a request does not get what it asks for.
struct Refusal {
    status: StatusCode,
    why: String,
    header: Option<(HeaderName, &'static str)>,
}

impl Refusal {
    fn new(status: StatusCode, why: &str) -> Self {
        Self {
            status,
            why: why.to_owned(),
            header: None,
        }
    }

    fn busy(why: &str) -> Self {
        Self {
            header: Some((RETRY_AFTER, "1")),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, why)
        }
    }

    fn method(allowed: &'static str) -> Self {
        Self {
            header: Some((ALLOW, allowed)),
            ..Self::new(StatusCode::METHOD_NOT_ALLOWED, "not by this method")
        }
    }

    fn into_reply(self) -> Reply {
        let json = json::object(|json| {
            json.text("error", &self.why);
        });
        let mut reply = of_type(JSON, json);
        *reply.status_mut() = self.status;
        if let Some((name, value)) = self.header {
            reply
                .headers_mut()
                .insert(name, HeaderValue::from_static(value));
        }
        reply
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let status = match error.kind() {
            ErrorKind::InvalidKey => StatusCode::BAD_REQUEST,
            ErrorKind::Held => StatusCode::CONFLICT,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::new(status, &error.to_string())
    }
}
