//! [`DistributedLockLayer`]: makes the middleware, and has its settings.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http::request::Parts;
use tower_layer::Layer;

use super::config::{Config, Hold, OnUnavailable};
use super::find_key::{FindKey, NoKey};
use super::service::DistributedLock;
use crate::error::{Error, ErrorKind};
use crate::http::{OnLost, Rejection, Wait};
use crate::key::{IntoLockKeys, LockKey, LockKeys};
use crate::manager::LockManager;
use crate::mode::Mode;
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
///         DistributedLockLayer::new(locks, key::path("/accounts/{id}/transfer"))
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
    /// The closure returns a key, several (an array or a `Vec`), `None` (no key: 400, unless the
    /// layer says [`optional_key`](Self::optional_key)), or an error: see [`IntoLockKeys`]. The
    /// module [`key`](crate::key) has ready-made closures. It runs on every request, so it must be
    /// quick.
    ///
    /// A client may be allowed less than what it can name: put the caller's identity into the key
    /// where clients could block each other.
    ///
    /// # Example
    ///
    /// ```
    /// # use tower_distributed_lock::{DistributedLockLayer, LockManager};
    /// # fn layer(locks: LockManager) -> DistributedLockLayer {
    /// DistributedLockLayer::new(locks, |req| {
    ///     let order = req.headers.get("x-order")?.to_str().ok()?; // no such header: 400
    ///     Some(("order", order.to_owned())) // the key order:7
    /// })
    /// # }
    /// ```
    pub fn new<F, K>(locks: LockManager, key: F) -> Self
    where
        F: Fn(&Parts) -> K + Send + Sync + 'static,
        K: IntoLockKeys,
    {
        let find = FindKey::now(move |parts| key(parts).into_lock_keys());
        Self::with(locks, find)
    }

    /// Makes a layer that locks the key which a future finds, for keys that need something
    /// asynchronous: a session, a database.
    ///
    /// The closure gets a copy of the request's head. Its future runs before the lock is asked for,
    /// and its time does not count as [waiting](Self::wait). Dropping the request drops it. Like
    /// the closure of [`new`](Self::new), it returns a key, several, `None`, or an error.
    ///
    /// # Example
    ///
    /// ```
    /// # use tower_distributed_lock::{DistributedLockLayer, LockManager};
    /// # #[derive(Clone)] struct Sessions;
    /// # impl Sessions { async fn user(&self, _: &str) -> Option<u64> { Some(7) } }
    /// # fn layer(locks: LockManager, sessions: Sessions) -> DistributedLockLayer {
    /// DistributedLockLayer::new_async(locks, move |req| {
    ///     let sessions = sessions.clone();
    ///     async move {
    ///         let session = req.headers.get("x-session")?.to_str().ok()?;
    ///         Some(("user", sessions.user(session).await?)) // user:7; no session: 400
    ///     }
    /// })
    /// # }
    /// ```
    pub fn new_async<F, Fut>(locks: LockManager, key: F) -> Self
    where
        F: Fn(Parts) -> Fut + Send + Sync + 'static,
        Fut: Future<Output: IntoLockKeys> + Send + 'static,
    {
        let find = FindKey::later(move |parts| {
            let key = key(parts);
            async move { key.await.into_lock_keys().map_err(NoKey::Error) }
        });
        Self::with(locks, find)
    }

    /// Makes a layer with the default settings.
    pub(super) fn with(locks: LockManager, find_key: FindKey) -> Self {
        Self {
            config: Arc::new(Config {
                locks,
                meter: Meter::unnamed(Role::LockLayer),
                find_key,
                wait: Wait::default(),
                mode: None,
                hold: Hold::default(),
                on_unavailable: OnUnavailable::default(),
                on_lost: OnLost::default(),
                release_before_response: false,
                optional_key: false,
                rejection: None,
            }),
        }
    }

    /// Makes a layer that locks the [`LockKey`] or the [`LockKeys`] in the request's extensions.
    ///
    /// An outer middleware has put them there: for keys that need the body, or something that only
    /// that middleware knows. `LockKeys` count where both are there. A request without any is
    /// answered with 500: the middleware is missing, or stands inside. One that puts a key into
    /// some requests only needs [`optional_key`](Self::optional_key).
    ///
    /// # Example
    ///
    /// ```
    /// use axum::extract::{Path, Request};
    /// use axum::middleware::{Next, from_fn};
    /// use axum::{Router, response::Response, routing::post};
    /// use tower_distributed_lock::{DistributedLockLayer, LockManager, key::IntoLockKey};
    ///
    /// async fn lock_the_account(Path(id): Path<u64>, mut req: Request, next: Next) -> Response {
    ///     let key = ("account", id).into_lock_key().expect("neither part is empty");
    ///     req.extensions_mut().insert(key);
    ///     next.run(req).await
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// let locks = LockManager::in_memory();
    /// let app: Router = Router::new()
    ///     .route("/accounts/{id}", post(|| async {}))
    ///     .route_layer(DistributedLockLayer::from_extension(locks))
    ///     .route_layer(from_fn(lock_the_account)); // the last layer is the outermost
    /// # let _ = app;
    /// # }
    /// ```
    pub fn from_extension(locks: LockManager) -> Self {
        Self::new(locks, |req| {
            let one = || req.extensions.get::<LockKey>().cloned();
            let several = req.extensions.get::<LockKeys>().cloned();
            several.or_else(|| one().map(LockKeys::from)).ok_or_else(|| {
                Error::new(
                    ErrorKind::Config,
                    "the request has no LockKey in its extensions: DistributedLockLayer::from_extension needs a middleware outside of it that puts one there",
                )
            })
        })
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

    /// Sets how long a request waits for its turn. Default: zero, it does not wait, and is answered
    /// with 409 at once if another request holds the lock.
    ///
    /// When the time is over, the request is answered with 409, or with 503 if Redis never said
    /// that the lock is held. A gRPC or gRPC-Web call whose header `grpc-timeout` is shorter waits
    /// no longer than that.
    ///
    /// # Panics
    ///
    /// Panics if `wait` is longer than a day.
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
        self.set(|config| config.wait.set(wait))
    }

    /// Sets how long each request waits for its turn, by a closure. For `None`,
    /// [`wait`](Self::wait) counts. Zero is no waiting; more than a day is a day.
    ///
    /// [`prefer_wait`](super::prefer_wait) is such a closure, for clients that say how long they
    /// wait. The header `grpc-timeout` is an upper limit here too.
    ///
    /// # Example
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_distributed_lock::{DistributedLockLayer, LockManager, key};
    /// # use tower_distributed_lock::lock::prefer_wait;
    /// # fn layer(locks: LockManager) -> DistributedLockLayer {
    /// // Up to 30 s for a client that sends `Prefer: wait=30`, 2 s for others.
    /// DistributedLockLayer::new(locks, key::method_and_path())
    ///     .wait(Duration::from_secs(2))
    ///     .wait_for(prefer_wait(Duration::from_secs(30)))
    /// # }
    /// ```
    pub fn wait_for<F>(self, wait_for: F) -> Self
    where
        F: Fn(&Parts) -> Option<Duration> + Send + Sync + 'static,
    {
        self.set(|config| config.wait.set_for(wait_for))
    }

    /// Sets whether a request has its lock alone, by a closure. Default: each has,
    /// [`Mode::Exclusive`].
    ///
    /// Requests in [`Mode::Shared`] run together, on all nodes, and never at the same time as one
    /// that has the lock alone. One that waits to have it alone lets no later one share it before.
    /// A lock that is mostly shared costs Redis next to nothing: see
    /// [`LockManager::acquire_shared`].
    ///
    /// [`share_safe_methods`](super::share_safe_methods) is such a closure: requests that only read
    /// share the lock.
    ///
    /// # Warning
    ///
    /// A request that shares the lock must change nothing that the lock protects.
    ///
    /// # Example
    ///
    /// ```
    /// # use tower_distributed_lock::{DistributedLockLayer, LockManager, key};
    /// # use tower_distributed_lock::lock::share_safe_methods;
    /// # fn layer(locks: LockManager) -> DistributedLockLayer {
    /// // Any number of GETs of a document at the same time; a PUT is alone with it.
    /// DistributedLockLayer::new(locks, key::path("/documents/{id}")).mode(share_safe_methods)
    /// # }
    /// ```
    pub fn mode<F>(self, mode: F) -> Self
    where
        F: Fn(&Parts) -> Mode + Send + Sync + 'static,
    {
        self.set(|config| config.mode = Some(Arc::new(mode)))
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
    /// A manager that was closed, or is [draining](crate::LockManager::drain), rejects with 503 in
    /// any case.
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

    /// Lets requests without a key run, without a lock. Default: they are refused, with 400 where
    /// the client left out what the key is made of, and 500 where the service cannot have it.
    ///
    /// Such a request has no [`Lease`](crate::Lease) in its extensions. An invalid key (an empty
    /// header, for instance) is answered with 400 all the same.
    ///
    /// # Warning
    ///
    /// The layer can then no longer tell a mistake from a request that needs no lock. Also these
    /// run without one: every request whose path does not match the pattern of
    /// [`key::path`](crate::key::path), and, with [`from_extension`](Self::from_extension), every
    /// request into which no middleware put a key.
    ///
    /// # Example
    ///
    /// ```
    /// use http::{Method, request::Parts};
    /// # use tower_distributed_lock::{DistributedLockLayer, LockManager, key};
    /// # fn layer(locks: LockManager) -> DistributedLockLayer {
    /// // Reads need no lock.
    /// let account = key::path("/accounts/{id}/**");
    /// DistributedLockLayer::new(locks, move |req: &Parts| {
    ///     (req.method != Method::GET).then(|| account(req))
    /// })
    /// .optional_key()
    /// # }
    /// ```
    pub fn optional_key(self) -> Self {
        self.set(|config| config.optional_key = true)
    }

    /// Replaces the responses to requests that do not run: 400, 409, 500 and 503. Default:
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
    pub fn rejection<F, T>(self, rejection: F) -> Self
    where
        F: Fn(&Rejection) -> Response<T> + Send + Sync + 'static,
        T: Into<Bytes>,
    {
        let rejection = move |rejected: &Rejection| rejection(rejected).map(Into::into);
        self.set(|config| config.rejection = Some(Arc::new(rejection)))
    }
}

impl<S> Layer<S> for DistributedLockLayer {
    type Service = DistributedLock<S>;

    fn layer(&self, inner: S) -> Self::Service {
        DistributedLock::new(inner, Arc::clone(&self.config))
    }
}
