//! [`IdempotencyLayer`]: the settings of the middleware.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderName, Method, Response, StatusCode};
use sha2::{Digest, Sha256};
use tower_layer::Layer;

use super::header;
use super::record::Fingerprint;
use super::service::Idempotency;
use crate::error::{Error, ErrorKind};
use crate::http::{OnLost, Rejection, Respond};
use crate::key::{self, IntoLockKey, KeyResult, LockKey};
use crate::manager::LockManager;

/// Runs the service inside once for each idempotency key, and gives every duplicate the same answer.
///
/// | Setting | Default | `webhook` |
/// |---|---|---|
/// | [`key`](Self::key) | the header `Idempotency-Key` | the header that is named |
/// | methods | `POST` and `PATCH` | all |
/// | [`scope`](Self::scope) | method and path | the same |
/// | [`require_key`](Self::require_key) | no: a request without a key runs as if this layer were not there | yes: 400 |
/// | [`fingerprint`](Self::fingerprint) | of the body: the same key with another one is 422 | none |
/// | [`wait`](Self::wait) | no waiting: a duplicate of a request that still runs is 409 | the same |
/// | [`retention`](Self::retention) | 24 h | the same |
/// | [`remember`](Self::remember) | all but 408, 425, 429 and 5xx | the same |
/// | [`max_request_body`](Self::max_request_body) | 1 MiB, above it 413 | the same |
/// | [`max_response_body`](Self::max_response_body) | 1 MiB, a longer one is not kept | the same |
/// | [`on_lost`](Self::on_lost) | the handler is stopped, 503 | the same |
/// | [`rejection`](Self::rejection) | problem+json, or a gRPC status | the same |
///
/// See the [module](crate::idempotency) for what it does and what it cannot do. A handler finds the [`Lease`](crate::Lease)
/// of its key in the request's extensions; with a [`DistributedLockLayer`](crate::DistributedLockLayer) as well, on
/// either side, it finds that one's.
///
/// ```
/// use axum::{Router, routing::post};
/// use tower_distributed_lock::{IdempotencyLayer, LockManager};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let locks = LockManager::in_memory(); // or LockManager::connect("redis://127.0.0.1:6379").await?
/// let app: Router = Router::new()
///     .route("/payments", post(|| async { "paid" }))
///     .route_layer(IdempotencyLayer::new(locks).require_key(true));
/// # let _ = app;
/// # }
/// ```
///
/// # Where to put it
///
/// Inside of authentication, and of what verifies a webhook's signature. Outside of a
/// [`DistributedLockLayer`](crate::DistributedLockLayer), rather than inside. Outside of gRPC-Web's translation, the failure of a
/// call can only be seen if the answer has no body: put it inside.
///
/// Inside of it, a request has another type of body, [`IdempotencyBody`](super::IdempotencyBody). Handlers, routers and
/// the layers of this crate take it as it is. A function of axum's `from_fn` takes one type only: give it a `route_layer`
/// call of its own, before the one with this layer.
#[derive(Clone, Debug)]
#[must_use = "a layer does nothing until it wraps a service"]
pub struct IdempotencyLayer {
    config: Arc<Config>,
}

#[derive(Clone)]
pub(super) struct Config {
    pub(super) locks: LockManager,
    any_method: bool,
    key: Key,
    scope: Arc<FindScope>,
    pub(super) require_key: bool,
    fingerprint: Option<Arc<TakeFingerprint>>,
    pub(super) wait: Option<Duration>,
    pub(super) retention: Duration,
    remember: Arc<Remember>,
    pub(super) max_request_body: usize,
    pub(super) max_response_body: usize,
    pub(super) on_lost: OnLost,
    rejection: Option<Arc<Respond>>,
}

#[derive(Clone)]
enum Key {
    Header(HeaderName),
    Found(Arc<FindKey>),
}

type FindKey = dyn Fn(&Parts, &Bytes) -> KeyResult + Send + Sync;
type FindScope = dyn Fn(&Parts) -> KeyResult + Send + Sync;
type TakeFingerprint = dyn Fn(&Parts, &Bytes) -> Fingerprint + Send + Sync;
type Remember = dyn Fn(StatusCode) -> bool + Send + Sync;

const MIB: usize = 1 << 20;
/// Redis takes no longer strings than this, and a record is a little longer than the body in it.
const MAX_BODY: usize = 256 * MIB;
const DAY: Duration = Duration::from_secs(24 * 3600);

impl IdempotencyLayer {
    /// For clients that send the header `Idempotency-Key` with `POST` and `PATCH` requests, as in the IETF's
    /// [draft](https://datatracker.ietf.org/doc/html/draft-ietf-httpapi-idempotency-key-header-07) (expired).
    ///
    /// The key is 1 to 255 visible ASCII characters, quoted or not; anything else is answered with 400. Other methods
    /// are not looked at.
    pub fn new(locks: LockManager) -> Self {
        Self::by_header(locks, HeaderName::from_static("idempotency-key"))
    }

    fn by_header(locks: LockManager, header: HeaderName) -> Self {
        Self {
            config: Arc::new(Config {
                locks,
                any_method: false,
                key: Key::Header(header),
                scope: Arc::new(key::method_and_path()),
                require_key: false,
                fingerprint: Some(Arc::new(|_, body| Sha256::digest(body).into())),
                wait: None,
                retention: DAY,
                remember: Arc::new(|status| {
                    !status.is_server_error() && !matches!(status.as_u16(), 408 | 425 | 429)
                }),
                max_request_body: MIB,
                max_response_body: MIB,
                on_lost: OnLost::default(),
                rejection: None,
            }),
        }
    }

    /// For webhooks, whose sender puts the event's id into this header: `webhook-id` in
    /// [Standard Webhooks](https://www.standardwebhooks.com), `X-GitHub-Delivery`, `X-Shopify-Webhook-Id`. For an id in
    /// the body, see [`key`](Self::key).
    ///
    /// Any method counts, the body is not compared, and a delivery without an id is answered with 400.
    ///
    /// Put the layer inside of what verifies the sender's signature: a stranger must not be able to use up an id.
    ///
    /// # Panics
    ///
    /// If `header` cannot be a header's name.
    pub fn webhook(locks: LockManager, header: &str) -> Self {
        let name = HeaderName::from_bytes(header.as_bytes())
            .unwrap_or_else(|_| panic!("{header:?} cannot be the name of a header"));
        Self::by_header(locks, name).set(|config| {
            config.any_method = true;
            config.require_key = true;
            config.fingerprint = None;
        })
    }

    fn set(mut self, set: impl FnOnce(&mut Config)) -> Self {
        set(Arc::make_mut(&mut self.config));
        self
    }

    /// Where the key is, if not in a header: what `key` makes of a request and its body. See [`IntoLockKey`] for what it may
    /// return. The header that was named before is not looked at any more.
    ///
    /// Stripe, for one, has the event's id in the body. With any JSON parser:
    ///
    /// ```
    /// # use tower_distributed_lock::{Error, IdempotencyLayer, LockManager};
    /// # mod serde_json { pub struct Value; impl Value { pub fn as_str(&self) -> Option<&str> { None } }
    /// #   pub fn from_slice(_: &[u8]) -> Result<std::collections::HashMap<String, Value>, ()> { Err(()) } }
    /// # fn layer(locks: LockManager) -> IdempotencyLayer {
    /// IdempotencyLayer::webhook(locks, "webhook-id").key(|_parts, body| {
    ///     let event = serde_json::from_slice(body).ok()?;
    ///     Some(event.get("id")?.as_str()?.to_owned())
    /// })
    /// # }
    /// ```
    pub fn key<F, K>(self, key: F) -> Self
    where
        F: Fn(&Parts, &Bytes) -> K + Send + Sync + 'static,
        K: IntoLockKey,
    {
        let key = move |parts: &Parts, body: &Bytes| key(parts, body).into_lock_key();
        self.set(|config| config.key = Key::Found(Arc::new(key)))
    }

    /// Within what a key is unique. Default: the method and the path, [`key::method_and_path`].
    ///
    /// In a nested axum router, the path is what is left of it there: two of them share a scope, unless each has a name
    /// of its own ([`key::scope`]).
    ///
    /// Put the **caller's identity** into it wherever callers are not one and the same. Keys are chosen by
    /// clients: without it, whoever guesses or repeats another's key gets the other's answer. A scope that is not found
    /// is answered with 400.
    ///
    /// ```
    /// # use tower_distributed_lock::{IdempotencyLayer, LockManager, key};
    /// # fn layer(locks: LockManager) -> IdempotencyLayer {
    /// // The header was put there, or verified, by the authentication outside.
    /// IdempotencyLayer::new(locks).scope(key::join(key::header("x-user"), key::method_and_path()))
    /// # }
    /// ```
    pub fn scope<F, K>(self, scope: F) -> Self
    where
        F: Fn(&Parts) -> K + Send + Sync + 'static,
        K: IntoLockKey,
    {
        self.set(|config| config.scope = Arc::new(move |parts| scope(parts).into_lock_key()))
    }

    /// Answers requests without a key with 400. Default: `false`, they run as if this layer were not there.
    pub fn require_key(self, require_key: bool) -> Self {
        self.set(|config| config.require_key = require_key)
    }

    /// What must be the same in every request with one key, or 422 is the answer. Default: the body. Its SHA-256 is kept.
    ///
    /// It is compared with that of a request that was completed: while that one still runs, a duplicate is a
    /// duplicate, whatever its payload. For bodies whose form may differ, make the payload canonical here; a constant turns
    /// the comparison off.
    ///
    /// ```
    /// # use tower_distributed_lock::{IdempotencyLayer, LockManager};
    /// # fn layer(locks: LockManager) -> IdempotencyLayer {
    /// // The query counts as well.
    /// IdempotencyLayer::new(locks).fingerprint(|parts, body| {
    ///     [parts.uri.query().unwrap_or_default().as_bytes(), b"\0", body].concat()
    /// })
    /// # }
    /// ```
    pub fn fingerprint<F, T>(self, fingerprint: F) -> Self
    where
        F: Fn(&Parts, &Bytes) -> T + Send + Sync + 'static,
        T: AsRef<[u8]>,
    {
        let fingerprint = move |parts: &Parts, body: &Bytes| {
            Sha256::digest(fingerprint(parts, body).as_ref()).into()
        };
        self.set(|config| config.fingerprint = Some(Arc::new(fingerprint)))
    }

    /// How long a duplicate waits for the request that runs with its key, to get the same answer. Default: not at all, 409.
    ///
    /// A gRPC or gRPC-Web call whose header `grpc-timeout` is shorter waits no longer than that.
    ///
    /// # Panics
    ///
    /// If `wait` is zero (leave it out instead) or longer than a day.
    pub fn wait(self, wait: Duration) -> Self {
        assert!(
            !wait.is_zero() && wait <= DAY,
            "wait is {wait:?}: more than nothing, and at most a day"
        );
        self.set(|config| config.wait = Some(wait))
    }

    /// How long an answer is kept, from when it was given. Default: 24 h. For longer than any client or sender of webhooks
    /// tries again: a duplicate that comes later runs.
    ///
    /// It is kept in Redis' memory. Where Redis evicts keys (`maxmemory-policy`), an answer may be gone sooner.
    ///
    /// # Panics
    ///
    /// If `retention` is shorter than a second or longer than a year.
    pub fn retention(self, retention: Duration) -> Self {
        assert!(
            (Duration::from_secs(1)..=365 * DAY).contains(&retention),
            "retention is {retention:?}: at least a second, and at most a year"
        );
        self.set(|config| config.retention = retention)
    }

    /// Which answers are final. Any other is given to the client and not kept, and the next request with that key runs.
    /// Default: all but 408, 425, 429 and 5xx.
    ///
    /// A gRPC answer counts as the HTTP status that its code stands for, `UNAVAILABLE` as 503; so do `ABORTED` and `CANCELLED`.
    /// Not kept either is an answer by which a [`DistributedLockLayer`](crate::DistributedLockLayer) inside says that the
    /// request did not run.
    pub fn remember<F>(self, remember: F) -> Self
    where
        F: Fn(StatusCode) -> bool + Send + Sync + 'static,
    {
        self.set(|config| config.remember = Arc::new(remember))
    }

    /// How many bytes of a request's body are kept in memory before the service inside is called. A longer body is
    /// answered with 413. Default: 1 MiB.
    ///
    /// # Panics
    ///
    /// If it is more than 256 MiB.
    pub fn max_request_body(self, bytes: usize) -> Self {
        assert!(bytes <= MAX_BODY, "{bytes} bytes are more than 256 MiB");
        self.set(|config| config.max_request_body = bytes)
    }

    /// How many bytes of an answer's body are kept. Default: 1 MiB.
    ///
    /// A longer one, and one that is not there at once and whose length neither it nor a
    /// `Content-Length` tells, passes through untouched. Its request counts as completed: a
    /// duplicate gets its status and headers, without a body, and never runs. One that fails, or
    /// ends before that length, counts as not completed.
    ///
    /// An answer of more than 16 KiB is written to Redis, and read for a duplicate, in parts of
    /// 1 MiB, over a second connection, so that no lock waits behind it. The response itself waits
    /// until it is written: for ten times the
    /// [command timeout](crate::LockManagerBuilder::command_timeout) at most (10 s, in which 256 MiB
    /// need a link of 27 MB/s), and two more to tidy up and to keep the rest. If that is not enough,
    /// if Redis does not take a part within a command timeout in three attempts, or has no memory
    /// left, the answer is kept without its body, like one that is too long. Reading one takes as
    /// long at most; then a duplicate is answered with 503.
    ///
    /// # Panics
    ///
    /// If it is more than 256 MiB.
    pub fn max_response_body(self, bytes: usize) -> Self {
        assert!(bytes <= MAX_BODY, "{bytes} bytes are more than 256 MiB");
        self.set(|config| config.max_response_body = bytes)
    }

    /// What happens when the lock is lost while the request runs: see [`DistributedLockLayer::on_lost`]. Default:
    /// [`OnLost::Cancel`]. An answer that could be recorded all the same stands.
    ///
    /// [`DistributedLockLayer::on_lost`]: crate::DistributedLockLayer::on_lost
    pub fn on_lost(self, on_lost: OnLost) -> Self {
        self.set(|config| config.on_lost = on_lost)
    }

    /// Replaces the responses to requests that do not run: see
    /// [`DistributedLockLayer::rejection`](crate::DistributedLockLayer::rejection).
    pub fn rejection<F>(self, rejection: F) -> Self
    where
        F: Fn(&Rejection) -> Response<Bytes> + Send + Sync + 'static,
    {
        self.set(|config| config.rejection = Some(Arc::new(rejection)))
    }
}

impl Config {
    /// Whether there may be a key in a request with that head.
    pub(super) fn concerns(&self, parts: &Parts) -> bool {
        let method = self.any_method || matches!(parts.method, Method::POST | Method::PATCH);
        method
            && match &self.key {
                Key::Header(name) => self.require_key || parts.headers.contains_key(name),
                Key::Found(_) => true,
            }
    }

    /// Whether the head is where a key must be.
    pub(super) fn is_in_head(&self) -> bool {
        matches!(self.key, Key::Header(_))
    }

    /// The key that is in the head already, or the reason why there is none.
    pub(super) fn key_in_head(&self, parts: &Parts) -> KeyResult {
        match &self.key {
            Key::Header(name) => in_header(parts, name)?
                .map(|key| self.record(parts, &key))
                .transpose(),
            Key::Found(_) => Ok(None),
        }
    }

    /// The key that only the body shows.
    pub(super) fn key_in_body(&self, parts: &Parts, body: &Bytes) -> KeyResult {
        match &self.key {
            Key::Header(_) => Ok(None),
            Key::Found(find) => find(parts, body)?
                .map(|key| self.record(parts, key.as_str()))
                .transpose(),
        }
    }

    fn record(&self, parts: &Parts, key: &str) -> Result<LockKey, Error> {
        let scope = (self.scope)(parts)?.ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidKey,
                "the request has no scope for its idempotency key",
            )
        })?;
        LockKey::record([scope.as_str(), key])
    }

    pub(super) fn fingerprint(&self, parts: &Parts, body: &Bytes) -> Option<Fingerprint> {
        self.fingerprint.as_ref().map(|take| take(parts, body))
    }

    pub(super) fn remembers(&self, status: StatusCode) -> bool {
        (self.remember)(status)
    }

    pub(super) fn respond(&self, rejection: Rejection) -> Response<Bytes> {
        rejection.answer(self.rejection.as_deref())
    }
}

fn in_header(parts: &Parts, name: &HeaderName) -> Result<Option<String>, Error> {
    let mut values = parts.headers.get_all(name).iter();
    let invalid = || {
        Error::new(
            ErrorKind::InvalidKey,
            format!("the header {name} is not one key of 1 to 255 visible ASCII characters"),
        )
    };
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => header::parse(value.as_bytes())
            .map(Some)
            .ok_or_else(invalid),
        (Some(_), Some(_)) => Err(invalid()),
    }
}

impl<S> Layer<S> for IdempotencyLayer {
    type Service = Idempotency<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Idempotency::new(inner, Arc::clone(&self.config))
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("require_key", &self.require_key)
            .field("wait", &self.wait)
            .field("retention", &self.retention)
            .field("max_request_body", &self.max_request_body)
            .field("max_response_body", &self.max_response_body)
            .field("on_lost", &self.on_lost)
            .finish_non_exhaustive()
    }
}
