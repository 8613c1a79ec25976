//! [`DistributedLockLayer`]: makes the middleware, and has its settings.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http::request::Parts;
use tower_layer::Layer;

use super::config::{Config, Hold, OnUnavailable};
use super::service::DistributedLock;
use crate::http::{OnLost, Rejection};
use crate::key::{IntoLockKey, LockKey};
use crate::manager::LockManager;
use crate::observe::{Meter, Role};

/// Runs every request under a lock, so that requests for one key run one at a time, on all nodes.
///
/// The [module](super) has a table of the settings and one of the responses, and says where to
/// place the layer. A handler finds its [`Lease`](crate::Lease) in the request's extensions.
///
/// # Example
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
#[derive(Clone, Debug)]
#[must_use = "a layer does nothing until it wraps a service"]
pub struct DistributedLockLayer {
    config: Arc<Config>,
}

impl DistributedLockLayer {
    /// Makes a layer that locks the key which the closure `key` makes of a request.
    ///
    /// The closure returns a key, `None` (the request needs no lock), or an error (400): see
    /// [`IntoLockKey`]. The module [`key`](crate::key) has ready-made closures. It runs on every
    /// request, so it must be quick.
    ///
    /// A client may be allowed less than what it can name: put the caller's identity into the key
    /// where clients could block each other.
    ///
    /// # Example
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
                meter: Meter::unnamed(Role::LockLayer),
                find_key: Arc::new(move |parts| key(parts).into_lock_key()),
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

    /// Makes a layer that locks the [`LockKey`] in the request's extensions.
    ///
    /// An outer middleware has put it there: for keys that need the body, the router's path
    /// parameters, or something asynchronous. A request without one runs without a lock, unless
    /// [`require_key`](Self::require_key) is on.
    ///
    /// # Example
    ///
    /// ```
    /// use axum::extract::{Path, Request};
    /// use axum::middleware::{Next, from_fn};
    /// use axum::{Router, response::Response, routing::post};
    /// use tower_distributed_lock::{DistributedLockLayer, LockKey, LockManager};
    ///
    /// async fn lock_the_account(Path(id): Path<u64>, mut req: Request, next: Next) -> Response {
    ///     let key = LockKey::join(["account", &id.to_string()]).expect("neither part is empty");
    ///     req.extensions_mut().insert(key);
    ///     next.run(req).await
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// let locks = LockManager::in_memory();
    /// let app: Router = Router::new()
    ///     .route("/accounts/{id}", post(|| async {}))
    ///     .route_layer(DistributedLockLayer::from_extension(locks).require_key(true))
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

    /// Sets the name under which metrics and events count the locks of this layer, such as the name
    /// of the route. Default: `default`.
    ///
    /// The name does not change which requests exclude each other: that is the key's matter. It is
    /// a label of every metric, so it must not come from a request.
    ///
    /// # Panics
    ///
    /// Panics if `name` is empty.
    ///
    /// # Example
    ///
    /// ```
    /// # use tower_distributed_lock::{DistributedLockLayer, LockManager, key};
    /// # fn layer(locks: LockManager) -> DistributedLockLayer {
    /// DistributedLockLayer::new(locks, key::path("/accounts/{id}/{*rest}")).name("transfer")
    /// # }
    /// ```
    pub fn name(self, name: &str) -> Self {
        let meter = Meter::new(name, Role::LockLayer);
        self.set(|config| config.meter = meter)
    }

    /// Sets how long a request waits for its turn. Default: it does not wait, and is answered with
    /// 409 at once if another request holds the lock.
    ///
    /// When the time is over, the request is answered with 409, or with 503 if Redis never said
    /// that the lock is held. A gRPC or gRPC-Web call whose header `grpc-timeout` is shorter waits
    /// no longer than that.
    ///
    /// # Panics
    ///
    /// Panics if `wait` is zero (leave it out instead) or longer than a day.
    ///
    /// # Example
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_distributed_lock::{DistributedLockLayer, LockManager, key};
    /// # fn layer(locks: LockManager) -> DistributedLockLayer {
    /// DistributedLockLayer::new(locks, key::method_and_path()).wait(Duration::from_secs(5))
    /// # }
    /// ```
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

    /// Sets until when the lock is held. Default: [`Hold::Body`], until the body of the response
    /// has been sent.
    ///
    /// # Warning
    ///
    /// With [`Hold::Head`], the body is sent without the lock. If it still reads or changes what
    /// the lock protects, it does so at the same time as the next holder.
    ///
    /// # Example
    ///
    /// ```
    /// # use tower_distributed_lock::{DistributedLockLayer, LockManager, key, lock::Hold};
    /// # fn layer(locks: LockManager) -> DistributedLockLayer {
    /// // The handler makes the whole export under the lock; then a slow client may download it.
    /// DistributedLockLayer::new(locks, key::path("/exports/{id}")).hold(Hold::Head)
    /// # }
    /// ```
    pub fn hold(self, hold: Hold) -> Self {
        self.set(|config| config.hold = hold)
    }

    /// Sets what happens to a request when Redis is not available. Default:
    /// [`OnUnavailable::Reject`], 503.
    ///
    /// A manager that was closed rejects with 503 in any case.
    ///
    /// # Warning
    ///
    /// With [`OnUnavailable::Proceed`], requests for one key can run at the same time whenever
    /// Redis is not available. Such a request has no [`Lease`](crate::Lease) in its extensions, and
    /// so no fencing token, but [`Unlocked`](super::Unlocked): take the lease as an `Option` in the
    /// handler.
    ///
    /// # Example
    ///
    /// ```
    /// use axum::Extension;
    /// use tower_distributed_lock::lock::OnUnavailable;
    /// use tower_distributed_lock::{DistributedLockLayer, Lease, LockManager, key};
    ///
    /// # fn layer(locks: LockManager) -> DistributedLockLayer {
    /// DistributedLockLayer::new(locks, key::method_and_path())
    ///     .on_unavailable(OnUnavailable::Proceed)
    /// # }
    ///
    /// async fn handler(lease: Option<Extension<Lease>>) -> String {
    ///     match lease {
    ///         Some(Extension(lease)) => format!("fencing token {}", lease.fencing_token()),
    ///         None => "without a lock".to_owned(),
    ///     }
    /// }
    /// # let _ = handler;
    /// ```
    pub fn on_unavailable(self, on_unavailable: OnUnavailable) -> Self {
        self.set(|config| config.on_unavailable = on_unavailable)
    }

    /// Sets what happens to a request whose lock is lost. Default: [`OnLost::Cancel`].
    ///
    /// A lock is lost if it could not be renewed in time, if it was deleted or overwritten in
    /// Redis, or if [`max_hold`](crate::LockManagerBuilder::max_hold) is over. With
    /// [`OnLost::Cancel`], the handler is stopped where it awaits, and the request is answered with
    /// 503. If its body is on its way, that ends with an error.
    ///
    /// # Warning
    ///
    /// With [`OnLost::Continue`], the handler goes on without the lock, perhaps at the same time as
    /// the next holder, and its response is passed on as a success. What it writes then must be
    /// refused by the storage: send the [fencing token](crate::Lease::fencing_token) along.
    ///
    /// # Example
    ///
    /// ```
    /// # use tower_distributed_lock::{DistributedLockLayer, LockManager, key, lock::OnLost};
    /// # fn layer(locks: LockManager) -> DistributedLockLayer {
    /// // The storage checks fencing tokens, and the handler tidies up when `Lease::lost` says so.
    /// DistributedLockLayer::new(locks, key::method_and_path()).on_lost(OnLost::Continue)
    /// # }
    /// ```
    pub fn on_lost(self, on_lost: OnLost) -> Self {
        self.set(|config| config.on_lost = on_lost)
    }

    /// Sets whether the response waits until Redis has released the lock. Default: `false`.
    ///
    /// Without it, a client that gets its response and at once sends a request for the same key may
    /// be faster than the release, if another node serves it: it has to wait, or gets a 409. The
    /// same node knows of the release in any case.
    ///
    /// A response whose body is there at once, or that has none, is kept back as a whole, and is
    /// then sent in one piece: one frame of any length, or several that take up to 64 KiB. Of a
    /// longer body, and of a stream, which is still at work, the head goes out under the lock, and
    /// only the last frame is kept back: a client that goes on at the head (`fetch` in a browser
    /// does) may still find the resource locked.
    ///
    /// If it turns out then that the lock was lost, the response is 503, or its body ends with an
    /// error, unless [`on_lost`](Self::on_lost) says otherwise.
    ///
    /// # Example
    ///
    /// ```
    /// # use tower_distributed_lock::{DistributedLockLayer, LockManager, key};
    /// # fn layer(locks: LockManager) -> DistributedLockLayer {
    /// // A client that saves a page, and then loads it again, finds it unlocked on every node.
    /// DistributedLockLayer::new(locks, key::path("/pages/{id}")).release_before_response(true)
    /// # }
    /// ```
    pub fn release_before_response(self, release_before_response: bool) -> Self {
        self.set(|config| config.release_before_response = release_before_response)
    }

    /// Sets whether a request without a key is answered with 400. Default: `false`, it runs without
    /// a lock.
    ///
    /// # Example
    ///
    /// ```
    /// # use tower_distributed_lock::{DistributedLockLayer, LockManager, key};
    /// # fn layer(locks: LockManager) -> DistributedLockLayer {
    /// let account = key::scope("account", key::header("x-account-id"));
    /// DistributedLockLayer::new(locks, account).require_key(true)
    /// # }
    /// ```
    pub fn require_key(self, require_key: bool) -> Self {
        self.set(|config| config.require_key = require_key)
    }

    /// Replaces the responses to requests that do not run: 400, 409 and 503. Default:
    /// [`Rejection::to_response`], problem+json or a gRPC status.
    ///
    /// # Example
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

impl<S> Layer<S> for DistributedLockLayer {
    type Service = DistributedLock<S>;

    fn layer(&self, inner: S) -> Self::Service {
        DistributedLock::new(inner, Arc::clone(&self.config))
    }
}
