//! The settings of an [`IdempotencyLayer`].

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{Response, StatusCode};
use sha2::{Digest, Sha256};

use super::config::{DAY, KeySource, MIB};
use super::layer::IdempotencyLayer;
use crate::http::{OnLost, Rejection};
use crate::key::IntoLockKey;
use crate::observe::{Meter, Role};

/// The upper limit of both body sizes. Redis takes no strings longer than 512 MiB, and a stored
/// response is a little longer than its body.
const MAX_BODY: usize = 256 * MIB;

impl IdempotencyLayer {
    /// Sets the closure that finds the key of a request, in its head or its body. Default: the key
    /// is in a header, which this closure replaces. For webhooks, see
    /// [`webhook_by`](Self::webhook_by).
    ///
    /// It returns one key, `None` (no key), or an error, which is answered as [`IntoLockKey`] says.
    /// The body is read first, up to [`max_request_body`](Self::max_request_body). With
    /// [`new`](Self::new), only `POST` and `PATCH` requests are looked at, as with the header.
    ///
    /// # Example
    ///
    /// ```
    /// # use tower_distributed_lock::{IdempotencyLayer, LockManager};
    /// # fn layer(locks: LockManager) -> IdempotencyLayer {
    /// // In the header of this API, or else in the query.
    /// IdempotencyLayer::new(locks).key(|parts, _body| {
    ///     let header = parts.headers.get("x-request-id").and_then(|id| id.to_str().ok());
    ///     header.or(parts.uri.query()).map(str::to_owned)
    /// })
    /// # }
    /// ```
    pub fn key<F, K>(self, key: F) -> Self
    where
        F: Fn(&Parts, &Bytes) -> K + Send + Sync + 'static,
        K: IntoLockKey,
    {
        let key = move |parts: &Parts, body: &Bytes| key(parts, body).into_lock_key();
        self.set(|config| config.key = KeySource::Closure(Arc::new(key)))
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
    /// # use tower_distributed_lock::{IdempotencyLayer, LockManager};
    /// # fn layer(locks: LockManager) -> IdempotencyLayer {
    /// IdempotencyLayer::new(locks).name("payments")
    /// # }
    /// ```
    pub fn name(self, name: &str) -> Self {
        let meter = Meter::new(name, Role::IdempotencyLayer);
        self.set(|config| config.meter = meter)
    }

    /// Sets the scope within which a key is unique. Default: the method and the path,
    /// [`key::method_and_path`](crate::key::method_and_path).
    ///
    /// A request whose scope is not found is refused: with 400 where the client left out what it is
    /// made of (`None`) or that is invalid, with 500 where the service is put together wrongly, for
    /// instance where the path does not match the pattern of [`key::path`](crate::key::path).
    ///
    /// In a nested axum router, the path is what the outer router has left of it. Two senders at
    /// `/a/webhooks` and `/b/webhooks` share a scope there, unless each has a name of its own:
    /// `.scope(|_| "a")`, or [`key::scope`](crate::key::scope). So do two services on one Redis
    /// whose paths are the same: see the [caveats](super#caveats).
    ///
    /// # Warning
    ///
    /// Keys are chosen by clients. Put the **caller's identity** into the scope wherever callers
    /// are not one and the same: otherwise a client that guesses or repeats the key of another gets
    /// the other's response, its headers and cookies included.
    ///
    /// # Example
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

    /// Sets whether a request without a key is answered with 400. Default: `false`, it runs as if
    /// this layer were not there; `true` for [`webhook`](Self::webhook).
    ///
    /// A request of a method that is not looked at runs in either case: with
    /// [`new`](Self::new), all but `POST` and `PATCH`.
    ///
    /// # Example
    ///
    /// ```
    /// # use tower_distributed_lock::{IdempotencyLayer, LockManager};
    /// # fn layer(locks: LockManager) -> IdempotencyLayer {
    /// IdempotencyLayer::new(locks).require_key(true)
    /// # }
    /// ```
    pub fn require_key(self, require_key: bool) -> Self {
        self.set(|config| config.require_key = require_key)
    }

    /// Sets what must be the same in every request with one key: if it differs, the response is
    /// 422. Default: the body; nothing for [`webhook`](Self::webhook). Its SHA-256 is kept.
    ///
    /// It is compared with that of a request that was completed: while that one still runs, a
    /// duplicate is a duplicate, whatever its payload. For bodies whose form may differ, return a
    /// canonical form of the payload; a constant turns the comparison off.
    ///
    /// # Example
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

    /// Sets how long a duplicate waits for the request that runs with its key, to get the same
    /// response. Default: zero, it does not wait, and is answered with 409.
    ///
    /// When the time is over, it is answered with 409, or with 503 if Redis never said that the
    /// other request runs. A gRPC or gRPC-Web call whose header `grpc-timeout` is shorter waits no
    /// longer than that.
    ///
    /// # Panics
    ///
    /// Panics if `wait` is longer than a day.
    ///
    /// # Example
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_distributed_lock::{IdempotencyLayer, LockManager};
    /// # fn layer(locks: LockManager) -> IdempotencyLayer {
    /// IdempotencyLayer::new(locks).wait(Duration::from_secs(10))
    /// # }
    /// ```
    pub fn wait(self, wait: Duration) -> Self {
        self.set(|config| config.wait.set(wait))
    }

    /// Sets how long each request waits for the request that runs with its key, by a closure. For
    /// `None`, [`wait`](Self::wait) counts. Zero is no waiting; more than a day is a day.
    ///
    /// [`prefer_wait`](super::prefer_wait) is such a closure, for clients that say how long they
    /// wait. The header `grpc-timeout` is an upper limit here too.
    ///
    /// # Example
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_distributed_lock::{IdempotencyLayer, LockManager};
    /// # use tower_distributed_lock::idempotency::prefer_wait;
    /// # fn layer(locks: LockManager) -> IdempotencyLayer {
    /// // Up to 30 s for a client that sends `Prefer: wait=30`, 2 s for others.
    /// IdempotencyLayer::new(locks)
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

    /// Sets how long a response is kept, from when it was given. Default: 24 h.
    ///
    /// Choose it longer than any client or sender of webhooks tries again: a duplicate that comes
    /// later runs. Stripe tries for up to three days, and Standard Webhooks recommends several
    /// days; its example ends after 75 hours.
    ///
    /// The response is in Redis' memory for all that time. Where Redis evicts keys
    /// (`maxmemory-policy`), it may be gone sooner.
    ///
    /// # Panics
    ///
    /// Panics if `retention` is shorter than a second or longer than a year.
    ///
    /// # Example
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_distributed_lock::{IdempotencyLayer, LockManager};
    /// # fn layer(locks: LockManager) -> IdempotencyLayer {
    /// IdempotencyLayer::webhook(locks, "webhook-id").retention(Duration::from_secs(4 * 24 * 3600))
    /// # }
    /// ```
    pub fn retention(self, retention: Duration) -> Self {
        assert!(
            (Duration::from_secs(1)..=365 * DAY).contains(&retention),
            "retention is {retention:?}: at least a second, and at most a year"
        );
        self.set(|config| config.retention = retention)
    }

    /// Sets the closure that says, by the status, which responses are final and are kept. Default:
    /// all but 408, 425, 429 and 5xx.
    ///
    /// Any other response is given to the client and not kept, and the next request with that key
    /// runs.
    ///
    /// A gRPC response counts as the HTTP status that its code stands for: `UNAVAILABLE`, `ABORTED`
    /// and `CANCELLED` as 503. The status of a stream that passes through is not known, and counts
    /// as `OK`.
    ///
    /// A response by which a [`DistributedLockLayer`](crate::DistributedLockLayer) inside says that
    /// the request did not run is never kept. It is known by the
    /// [`Rejection`](super::Rejection) in its extensions, which a layer between the two must pass
    /// on, and which does not come from another process.
    ///
    /// # Example
    ///
    /// By default a 400 or a 404 is kept as well, as clients of an API expect. A sender of webhooks
    /// tries again after everything but a 2xx, and a corrected handler should then run:
    ///
    /// ```
    /// # use tower_distributed_lock::{IdempotencyLayer, LockManager};
    /// # fn layer(locks: LockManager) -> IdempotencyLayer {
    /// IdempotencyLayer::webhook(locks, "webhook-id").remember(|status| status.is_success())
    /// # }
    /// ```
    pub fn remember<F>(self, remember: F) -> Self
    where
        F: Fn(StatusCode) -> bool + Send + Sync + 'static,
    {
        self.set(|config| config.remember = Arc::new(remember))
    }

    /// Sets how many bytes a request's body may have. Default: 1 MiB. A longer one is answered with
    /// 413.
    ///
    /// The body is read into memory before the service inside is called. Where a layer outside has
    /// a smaller limit, and lets the body fail there, the response is 400.
    ///
    /// # Panics
    ///
    /// Panics if it is more than 256 MiB.
    ///
    /// # Example
    ///
    /// ```
    /// # use tower_distributed_lock::{IdempotencyLayer, LockManager};
    /// # fn layer(locks: LockManager) -> IdempotencyLayer {
    /// IdempotencyLayer::new(locks).max_request_body(16 * 1024)
    /// # }
    /// ```
    pub fn max_request_body(self, bytes: usize) -> Self {
        assert!(bytes <= MAX_BODY, "{bytes} bytes are more than 256 MiB");
        self.set(|config| config.max_request_body = bytes)
    }

    /// Sets how many bytes of a response's body are kept. Default: 1 MiB. A longer one is sent and
    /// not kept.
    ///
    /// Not kept either is a body that is not there at once and whose length neither it nor a
    /// `Content-Length` tells. It passes through untouched. The request of a response whose body is
    /// not kept counts as completed, however that body ends: a duplicate gets its status and
    /// headers, without a body, and never runs. If a body that is to be kept fails, or ends before
    /// its length, the request counts as not completed.
    ///
    /// A response of more than 16 KiB is written to Redis, and read for a duplicate, in parts of 1
    /// MiB, over a second connection, so that no lock waits behind it. The response itself waits
    /// until it is written: for ten times the
    /// [command timeout](crate::LockManagerBuilder::command_timeout) at most (10 s, in which 256
    /// MiB need a link of 27 MB/s), and two more to tidy up and to keep the rest. If that is not
    /// enough, if Redis does not take a part within a command timeout in three attempts, or has no
    /// memory left, the response is kept without its body, like one that is too long. Reading one
    /// takes as long at most; then a duplicate is answered with 503.
    ///
    /// # Panics
    ///
    /// Panics if it is more than 256 MiB.
    ///
    /// # Example
    ///
    /// ```
    /// # use tower_distributed_lock::{IdempotencyLayer, LockManager};
    /// # fn layer(locks: LockManager) -> IdempotencyLayer {
    /// // Redis keeps at most the status, the headers and 16 KiB of each response.
    /// IdempotencyLayer::new(locks).max_response_body(16 * 1024)
    /// # }
    /// ```
    pub fn max_response_body(self, bytes: usize) -> Self {
        assert!(bytes <= MAX_BODY, "{bytes} bytes are more than 256 MiB");
        self.set(|config| config.max_response_body = bytes)
    }

    /// Sets what happens when the lock is lost under which the request runs. Default:
    /// [`OnLost::Cancel`], the handler is stopped where it awaits, and the response is 503.
    ///
    /// A response that could be stored all the same stands.
    ///
    /// # Warning
    ///
    /// Once the lock is lost, a duplicate runs. With [`OnLost::Continue`], the first run goes on at
    /// the same time, and its client gets its response, which is not kept. With [`OnLost::Cancel`]
    /// as well, what a handler has done before it was stopped stays done.
    ///
    /// # Example
    ///
    /// ```
    /// # use tower_distributed_lock::{IdempotencyLayer, LockManager, idempotency::OnLost};
    /// # fn layer(locks: LockManager) -> IdempotencyLayer {
    /// // The database refuses the second run: the event's id is in a unique column.
    /// IdempotencyLayer::webhook(locks, "webhook-id").on_lost(OnLost::Continue)
    /// # }
    /// ```
    pub fn on_lost(self, on_lost: OnLost) -> Self {
        self.set(|config| config.on_lost = on_lost)
    }

    /// Replaces the responses that the layer gives itself, except replayed ones. Default:
    /// [`Rejection::to_response`], problem+json or a gRPC status.
    ///
    /// # Example
    ///
    /// ```
    /// # use tower_distributed_lock::{IdempotencyLayer, LockManager, idempotency::RejectionKind};
    /// # fn layer(locks: LockManager) -> IdempotencyLayer {
    /// IdempotencyLayer::new(locks).rejection(|rejection| {
    ///     let mut response = rejection.to_response();
    ///     if rejection.kind() == RejectionKind::Mismatch {
    ///         *response.status_mut() = http::StatusCode::CONFLICT;
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
