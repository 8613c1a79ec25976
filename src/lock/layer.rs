//! [`DistributedLockLayer`]: the settings of the middleware.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http::request::Parts;
use tower_layer::Layer;

use super::service::DistributedLock;
use crate::error::{Error, ErrorKind};
use crate::http::{OnLost, Rejection, Respond};
use crate::key::{IntoLockKey, KeyResult, LockKey};
use crate::manager::LockManager;

/// Runs every request under a lock, so that requests for one key run one at a time, on all nodes.
///
/// | Setting | Default |
/// |---|---|
/// | [`wait`](Self::wait) | no waiting: 409 at once |
/// | [`hold`](Self::hold) | until the response's body has been sent |
/// | [`on_unavailable`](Self::on_unavailable) | 503 |
/// | [`on_lost`](Self::on_lost) | the handler is stopped, 503 |
/// | [`require_key`](Self::require_key) | no: a request without a key runs without a lock |
/// | [`release_before_response`](Self::release_before_response) | no: the response does not wait for Redis |
/// | [`rejection`](Self::rejection) | problem+json, or a gRPC status |
///
/// A handler finds its [`Lease`](crate::Lease) in the request's extensions.
///
/// ```
/// use std::time::Duration;
/// use axum::{Router, routing::post};
/// use tower_distributed_lock::{DistributedLockLayer, LockManager, key};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let locks = LockManager::in_memory();
/// let app: Router = Router::new()
///     .route("/accounts/{id}/transfer", post(|| async { "done" }))
///     .route_layer(
///         DistributedLockLayer::new(locks, key::path("/accounts/{id}/{*rest}"))
///             .wait(Duration::from_secs(5)),
///     );
/// # let _ = app;
/// # }
/// ```
///
/// # Where to put it
///
/// Inside of what decides whether the request may run at all (authentication, rate limits, a limit on the body's size),
/// so that strangers do not take locks. Outside of what must not run unlocked. A timeout layer may be on either side.
///
/// A concurrency limit counts requests that wait for their lock, wherever it stands: tower's takes its
/// permit in `poll_ready`, before a request is called. Where requests wait, bound them with
/// [`max_waiters`](crate::LockManagerBuilder::max_waiters), and count in the handler what is to be limited there.
#[derive(Clone, Debug)]
#[must_use = "a layer does nothing until it wraps a service"]
pub struct DistributedLockLayer {
    config: Arc<Config>,
}

#[derive(Clone)]
pub(crate) struct Config {
    pub(crate) locks: LockManager,
    key: Arc<FindKey>,
    pub(crate) wait: Option<Duration>,
    pub(crate) hold: Hold,
    pub(crate) on_unavailable: OnUnavailable,
    pub(crate) on_lost: OnLost,
    pub(crate) release_before_response: bool,
    require_key: bool,
    rejection: Option<Arc<Respond>>,
}

type FindKey = dyn Fn(&Parts) -> KeyResult + Send + Sync;

/// How long a request holds its lock: see [`DistributedLockLayer::hold`].
///
/// A connection that is upgraded (`101 Switching Protocols`: WebSocket) runs without the lock, with
/// either: its request ends with the head of the response. Take a lock for it in the task that
/// serves it, by [`LockManager::acquire`](crate::LockManager::acquire).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Hold {
    /// Until the body of the response has been sent, or dropped. For handlers whose body is still
    /// at work. Where no body is sent (to `HEAD`, with 1xx, 204 and 304), until the handler has
    /// returned.
    #[default]
    Body,
    /// Until the handler has returned its response, whose body may be on its way for longer.
    Head,
}

/// What happens to a request when Redis cannot say who holds the lock: see [`DistributedLockLayer::on_unavailable`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OnUnavailable {
    /// It is answered with 503.
    #[default]
    Reject,
    /// It runs without a lock, with [`Unlocked`] in its extensions.
    Proceed,
}

/// In the extensions of a request that runs without a lock because Redis was
/// not available and [`OnUnavailable::Proceed`] was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Unlocked;

impl DistributedLockLayer {
    /// Locks what `key` makes of a request: see [`IntoLockKey`] for what it may return, and [`key`](crate::key) for
    /// ready-made ones.
    ///
    /// The closure must be quick: it runs on every request. What a client sends is not what it is allowed to lock: put
    /// the caller's identity into the key where clients could block each other.
    ///
    /// ```
    /// # use tower_distributed_lock::{DistributedLockLayer, LockKey, LockManager};
    /// # fn layer(locks: LockManager) -> DistributedLockLayer {
    /// DistributedLockLayer::new(locks, |req| {
    ///     let order = req.headers.get("x-order")?;
    ///     Some(LockKey::join(["order", order.to_str().unwrap_or("?")]))
    /// })
    /// # }
    /// ```
    pub fn new<F, K>(locks: LockManager, key: F) -> Self
    where
        F: Fn(&Parts) -> K + Send + Sync + 'static,
        K: IntoLockKey,
    {
        Self {
            config: Arc::new(Config {
                locks,
                key: Arc::new(move |parts| key(parts).into_lock_key()),
                wait: None,
                hold: Hold::default(),
                on_unavailable: OnUnavailable::default(),
                on_lost: OnLost::default(),
                release_before_response: false,
                require_key: false,
                rejection: None,
            }),
        }
    }

    /// Locks the [`LockKey`] in the request's extensions, which an outer middleware has put there: for keys that need
    /// the body, the router's path parameters, or something asynchronous.
    ///
    /// ```
    /// use axum::{Router, extract::{Path, Request}, middleware::{Next, from_fn}, response::Response, routing::post};
    /// use tower_distributed_lock::{DistributedLockLayer, LockKey, LockManager};
    ///
    /// async fn lock_the_account(Path(id): Path<u64>, mut req: Request, next: Next) -> Response {
    ///     let key = LockKey::join(["account", &id.to_string()]).expect("neither part is empty");
    ///     req.extensions_mut().insert(key);
    ///     next.run(req).await
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// let app: Router = Router::new()
    ///     .route("/accounts/{id}", post(|| async {}))
    ///     .route_layer(DistributedLockLayer::from_extension(LockManager::in_memory()).require_key(true))
    ///     .route_layer(from_fn(lock_the_account)); // the last layer is the outermost
    /// # let _ = app;
    /// # }
    /// ```
    pub fn from_extension(locks: LockManager) -> Self {
        Self::new(locks, |req| req.extensions.get::<LockKey>().cloned())
    }

    fn set(mut self, set: impl FnOnce(&mut Config)) -> Self {
        set(Arc::make_mut(&mut self.config));
        self
    }

    /// How long a request waits for its turn before it is answered with 409. Default: not at all.
    ///
    /// A gRPC or gRPC-Web call whose header `grpc-timeout` is shorter waits no longer than that.
    ///
    /// # Panics
    ///
    /// If `wait` is zero (leave it out instead) or longer than a day.
    pub fn wait(self, wait: Duration) -> Self {
        assert!(
            !wait.is_zero(),
            "wait is zero: leave it out for requests that do not wait"
        );
        assert!(
            wait <= Duration::from_secs(24 * 3600),
            "wait is longer than a day: {wait:?}"
        );
        self.set(|config| config.wait = Some(wait))
    }

    /// Until when the lock is held. Default: [`Hold::Body`].
    pub fn hold(self, hold: Hold) -> Self {
        self.set(|config| config.hold = hold)
    }

    /// What happens when Redis is not available. Default: [`OnUnavailable::Reject`].
    ///
    /// With [`OnUnavailable::Proceed`], requests for one key can run at the same time whenever Redis is away. Such a request has
    /// no [`Lease`](crate::Lease): take it as an `Option` in the handler.
    pub fn on_unavailable(self, on_unavailable: OnUnavailable) -> Self {
        self.set(|config| config.on_unavailable = on_unavailable)
    }

    /// What happens when the lock is lost. Default: [`OnLost::Cancel`].
    pub fn on_lost(self, on_lost: OnLost) -> Self {
        self.set(|config| config.on_lost = on_lost)
    }

    /// Makes the response wait until Redis has released the lock. Default: `false`.
    ///
    /// Without it, a client that gets its response and at once sends a request for the same key may be faster
    /// than the release, if another node serves it: it has to wait, or gets a 409. The same node knows of
    /// the release in any case.
    ///
    /// A response whose body is there at once, or that has none, is kept back as a whole, and is
    /// then sent in one piece: one frame of any length, or several that take up to 64 KiB. Of a
    /// longer body, and of a stream, which is still at work, the head goes out under the lock, and
    /// only the last frame is kept back: a client that goes on at the head (`fetch` in a browser
    /// does) may still find the resource locked.
    ///
    /// If it turns out then that the lock was lost, the response is 503, or its body ends with an
    /// error, unless [`on_lost`](Self::on_lost) says otherwise.
    pub fn release_before_response(self, release_before_response: bool) -> Self {
        self.set(|config| config.release_before_response = release_before_response)
    }

    /// Answers requests without a key with 400. Default: `false`, they run without a lock.
    pub fn require_key(self, require_key: bool) -> Self {
        self.set(|config| config.require_key = require_key)
    }

    /// Replaces the responses to requests that do not run.
    ///
    /// ```
    /// # use tower_distributed_lock::{DistributedLockLayer, LockManager, lock::RejectionKind};
    /// # fn layer(layer: DistributedLockLayer) -> DistributedLockLayer {
    /// layer.rejection(|rejection| {
    ///     let mut response = rejection.to_response();
    ///     if rejection.kind() == RejectionKind::Held {
    ///         *response.status_mut() = http::StatusCode::LOCKED;
    ///     }
    ///     response
    /// })
    /// # }
    /// ```
    pub fn rejection<F>(self, rejection: F) -> Self
    where
        F: Fn(&Rejection) -> Response<Bytes> + Send + Sync + 'static,
    {
        self.set(|config| config.rejection = Some(Arc::new(rejection)))
    }
}

impl Config {
    /// The key of a request, `None` where it needs no lock.
    pub(crate) fn key(&self, parts: &Parts) -> Result<Option<LockKey>, Error> {
        match (self.key)(parts)? {
            None if self.require_key => Err(Error::of(ErrorKind::InvalidKey)),
            key => Ok(key),
        }
    }

    pub(crate) fn respond(&self, rejection: Rejection) -> Response<Bytes> {
        rejection.answer(self.rejection.as_deref())
    }
}

impl<S> Layer<S> for DistributedLockLayer {
    type Service = DistributedLock<S>;

    fn layer(&self, inner: S) -> Self::Service {
        DistributedLock::new(inner, Arc::clone(&self.config))
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("wait", &self.wait)
            .field("hold", &self.hold)
            .field("on_unavailable", &self.on_unavailable)
            .field("on_lost", &self.on_lost)
            .field("release_before_response", &self.release_before_response)
            .field("require_key", &self.require_key)
            .finish_non_exhaustive()
    }
}
