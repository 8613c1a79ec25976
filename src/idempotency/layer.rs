//! [`IdempotencyLayer`]: makes the middleware. Its settings are in `settings`.

use std::sync::Arc;

use bytes::Bytes;
use http::HeaderName;
use http::request::Parts;
use tower_layer::Layer;

use super::config::Config;
use super::service::Idempotency;
use crate::key::IntoLockKey;
use crate::manager::LockManager;

/// Runs the service inside once for each idempotency key, and gives every duplicate the same
/// response.
///
/// The [module](super) has a table of the settings and one of the responses, says where to place
/// the layer, and what it cannot do.
///
/// A handler finds the [`Lease`](crate::Lease) of its key in the request's extensions. With a
/// [`DistributedLockLayer`](crate::DistributedLockLayer) as well, on either side, it finds that
/// one's.
///
/// # Example
///
/// ```
/// use axum::{Router, routing::post};
/// use tower_distributed_lock::{IdempotencyLayer, LockManager};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let locks = LockManager::in_memory(); // or connect("redis://127.0.0.1:6379").await?
/// let app: Router = Router::new()
///     .route("/payments", post(|| async { "paid" }))
///     .route_layer(IdempotencyLayer::new(locks).require_key(true));
/// # let _ = app;
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "a layer does nothing until it wraps a service"]
pub struct IdempotencyLayer {
    config: Arc<Config>,
}

impl IdempotencyLayer {
    /// Makes a layer for clients that send the header `Idempotency-Key` with `POST` and `PATCH`
    /// requests, as in the IETF's
    /// [draft](https://datatracker.ietf.org/doc/html/draft-ietf-httpapi-idempotency-key-header-07)
    /// (expired).
    ///
    /// The key is 1 to 255 visible ASCII characters, quoted or not. Anything else is answered with
    /// 400, and so is a header that is there more than once. Requests with other methods pass
    /// through.
    ///
    /// # Example
    ///
    /// ```
    /// # use tower_distributed_lock::{IdempotencyLayer, LockManager, key};
    /// # fn layer(locks: LockManager) -> IdempotencyLayer {
    /// IdempotencyLayer::new(locks)
    ///     .scope(key::join(key::header("x-user"), key::method_and_path()))
    ///     .require_key(true)
    /// # }
    /// ```
    pub fn new(locks: LockManager) -> Self {
        Self::by_header(locks, HeaderName::from_static("idempotency-key"))
    }

    /// Makes a layer for webhooks, whose sender puts the event's id into this header: `webhook-id`
    /// in [Standard Webhooks](https://www.standardwebhooks.com), `X-GitHub-Delivery`,
    /// `X-Shopify-Webhook-Id`.
    ///
    /// Any method counts, the body is not compared, and a delivery without an id is answered with
    /// 400. For an id in the body, see [`webhook_by`](Self::webhook_by).
    ///
    /// # Warning
    ///
    /// Place the layer inside the one that verifies the sender's signature: otherwise a stranger
    /// can use up an id, or read the response to it.
    ///
    /// # Panics
    ///
    /// Panics if `header` cannot be a header's name.
    ///
    /// # Example
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_distributed_lock::{IdempotencyLayer, LockManager};
    /// # fn layer(locks: LockManager) -> IdempotencyLayer {
    /// IdempotencyLayer::webhook(locks, "webhook-id")
    ///     .remember(|status| status.is_success()) // the sender tries again after anything else
    ///     .retention(Duration::from_secs(4 * 24 * 3600)) // and goes on for up to three days
    /// # }
    /// ```
    pub fn webhook(locks: LockManager, header: &str) -> Self {
        let name = HeaderName::from_bytes(header.as_bytes())
            .unwrap_or_else(|_| panic!("{header:?} cannot be the name of a header"));
        Self::by_header(locks, name).for_webhooks()
    }

    /// Makes a layer for webhooks whose id is not in a header: the closure finds it in the head or
    /// the body. All else is as for [`webhook`](Self::webhook).
    ///
    /// It returns a key, `None` (400), or an error, which is answered as [`IntoLockKey`] says. The
    /// body is read first, up to [`max_request_body`](Self::max_request_body).
    ///
    /// # Example
    ///
    /// Stripe, for one, has the event's id in the body. With any JSON parser:
    ///
    /// ```
    /// # use tower_distributed_lock::{IdempotencyLayer, LockManager};
    /// # mod serde_json {
    /// #     pub struct Value;
    /// #     impl Value { pub fn as_str(&self) -> Option<&str> { None } }
    /// #     type Object = std::collections::HashMap<String, Value>;
    /// #     pub fn from_slice(_: &[u8]) -> Result<Object, ()> { Err(()) }
    /// # }
    /// # fn layer(locks: LockManager) -> IdempotencyLayer {
    /// IdempotencyLayer::webhook_by(locks, |_parts, body| {
    ///     let event = serde_json::from_slice(body).ok()?;
    ///     Some(event.get("id")?.as_str()?.to_owned())
    /// })
    /// # }
    /// ```
    pub fn webhook_by<F, K>(locks: LockManager, key: F) -> Self
    where
        F: Fn(&Parts, &Bytes) -> K + Send + Sync + 'static,
        K: IntoLockKey,
    {
        // The header is replaced.
        Self::new(locks).for_webhooks().key(key)
    }

    fn for_webhooks(self) -> Self {
        self.set(|config| {
            config.any_method = true;
            config.require_key = true;
            config.fingerprint = None;
        })
    }

    fn by_header(locks: LockManager, header: HeaderName) -> Self {
        let config = Arc::new(Config::new(locks, header));
        Self { config }
    }

    pub(super) fn set(mut self, set: impl FnOnce(&mut Config)) -> Self {
        set(Arc::make_mut(&mut self.config));
        self
    }
}

impl<S> Layer<S> for IdempotencyLayer {
    type Service = Idempotency<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Idempotency::new(inner, Arc::clone(&self.config))
    }
}
