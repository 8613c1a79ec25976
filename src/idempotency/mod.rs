//! Middleware that runs a request once for each idempotency key, and gives every duplicate the same
//! response, on all nodes of a service.
//!
//! Webhooks and payments arrive more than once: tried again after a timeout, delivered to two nodes
//! at the same moment, sent once more an hour later. Webhooks are delivered *at least* once: a
//! sender that gets no response in time sends the event again, often while the first delivery is
//! still being handled. So do clients of an API that lost their connection. [`IdempotencyLayer`]
//! runs the service inside once for each key that such a request carries, keeps the response, and
//! gives it to every duplicate.
//!
//! # Examples
//!
//! With the defaults, for clients of an API that send `Idempotency-Key`, and the same body every
//! time:
//!
//! ```
//! use axum::{Router, routing::post};
//! use tower_distributed_lock::{IdempotencyLayer, LockManager};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! let locks = LockManager::in_memory(); // or connect("redis://127.0.0.1:6379").await?
//! let app: Router = Router::new()
//!     .route("/payments", post(|| async { "paid" }))
//!     .route_layer(IdempotencyLayer::new(locks));
//! # let _ = app;
//! # }
//! ```
//!
//! Customised, for webhooks, and for keys within the scope of each client:
//!
//! ```
//! use std::time::Duration;
//! use axum::{Router, routing::post};
//! use tower_distributed_lock::{IdempotencyLayer, LockManager, key};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! # let locks = LockManager::in_memory();
//! // A sender of webhooks gives each event an id. Its signature is checked outside this layer.
//! let each_event_once = IdempotencyLayer::webhook(locks.clone(), "webhook-id")
//!     .remember(|status| status.is_success()) // it tries again after anything else
//!     .retention(Duration::from_secs(4 * 24 * 3600)); // and goes on for up to three days
//!
//! // Clients choose the keys of their payments. x-user comes from the authentication outside.
//! let each_payment_once = IdempotencyLayer::new(locks)
//!     .scope(key::join(key::header("x-user"), key::method_and_path()))
//!     .require_key(true)
//!     .wait(Duration::from_secs(10));
//!
//! let app: Router = Router::new()
//!     .route("/webhooks", post(|| async { "handled" }).route_layer(each_event_once))
//!     .route("/payments", post(|| async { "paid" }).route_layer(each_payment_once));
//! # let _ = app;
//! # }
//! ```
//!
//! # Settings
//!
//! | Setting | Default | |
//! |---|---|---|
//! | [`new(locks)`] | | the key is in the header `Idempotency-Key` of `POST` and `PATCH` requests: 1 to 255 visible ASCII characters, quoted or not |
//! | [`webhook(locks, header)`] | | the key is in that header, in requests of any method; a key is required, and there is no fingerprint |
//! | [`webhook_by(locks, closure)`] | | the same, with the key that the closure finds in the head or the body |
//! | [`key(closure)`] | the header | `key(&request::Parts, &Bytes)` returns the [key](crate::key), from the body for instance, `None` (no key), or an error |
//! | [`scope(closure)`] | method and path | within what a key is unique; not found: 400, or 500 where the service cannot have it |
//! | [`require_key(bool)`] | `false`; `true` for `webhook` | answer requests without a key with 400, of the methods that are looked at; otherwise they run as if this layer were not there |
//! | [`fingerprint(closure)`] | the body; nothing for `webhook` | what must be the same in all requests with one key, or the response is 422 |
//! | [`wait(duration)`] | no waiting: 409 | how long a duplicate waits for the request that runs, to get its response: at most a day |
//! | [`wait_for(closure)`] | the `wait` | how long this request waits, such as [`prefer_wait`] |
//! | [`retention(duration)`] | 24 h | how long a response is kept (a second to a year) |
//! | [`remember(closure)`] | all but 408, 425, 429 and 5xx | which responses are final; after any other, the next request with that key runs |
//! | [`max_request_body(bytes)`] | 1 MiB | a longer body is answered with 413 (at most 256 MiB); it is read before the handler runs |
//! | [`max_response_body(bytes)`] | 1 MiB | a longer body is sent, and not kept (at most 256 MiB); nor is one that is not there at once and whose length nothing tells |
//! | [`on_lost(OnLost)`] | [`Cancel`](OnLost::Cancel) | when the lock is lost under which the handler runs, stop it and answer with 503, or let it go on ([`Continue`](OnLost::Continue)) |
//! | [`name(name)`] | `default` | what metrics and events call this layer's requests |
//! | [`rejection(closure)`] | problem+json, or a gRPC status | replaces the responses that the layer gives itself |
//!
//! [`new(locks)`]: IdempotencyLayer::new
//! [`webhook(locks, header)`]: IdempotencyLayer::webhook
//! [`webhook_by(locks, closure)`]: IdempotencyLayer::webhook_by
//! [`key(closure)`]: IdempotencyLayer::key
//! [`scope(closure)`]: IdempotencyLayer::scope
//! [`require_key(bool)`]: IdempotencyLayer::require_key
//! [`fingerprint(closure)`]: IdempotencyLayer::fingerprint
//! [`wait(duration)`]: IdempotencyLayer::wait
//! [`wait_for(closure)`]: IdempotencyLayer::wait_for
//! [`retention(duration)`]: IdempotencyLayer::retention
//! [`remember(closure)`]: IdempotencyLayer::remember
//! [`max_request_body(bytes)`]: IdempotencyLayer::max_request_body
//! [`max_response_body(bytes)`]: IdempotencyLayer::max_response_body
//! [`on_lost(OnLost)`]: IdempotencyLayer::on_lost
//! [`name(name)`]: IdempotencyLayer::name
//! [`rejection(closure)`]: IdempotencyLayer::rejection
//!
//! # Responses
//!
//! | A request with a key | Kind | HTTP, gRPC-Web | gRPC |
//! |---|---|---|---|
//! | is new, or was not completed before | | the response of the service | the same |
//! | was completed | | the same response, with `idempotent-replayed: true` | the same |
//! | was completed, and the body of its response was not kept | [`NotKept`](RejectionKind::NotKept) (gRPC) | its status and headers, `idempotent-replayed: true`, `idempotent-body: not-kept` | `ALREADY_EXISTS` |
//! | is still running | [`Held`](RejectionKind::Held) | 409, `Retry-After: 1` | `ABORTED` |
//! | is still running when the [`wait`](IdempotencyLayer::wait) is over | [`TimedOut`](RejectionKind::TimedOut) | 409, `Retry-After: 1` | `ABORTED` |
//! | was completed, with another payload | [`Mismatch`](RejectionKind::Mismatch) | 422 | `INVALID_ARGUMENT` |
//! | has no key though one is required, or lacks what the scope of its key is made of | [`MissingKey`](RejectionKind::MissingKey) | 400 | `INVALID_ARGUMENT` |
//! | has an invalid key, or an invalid scope | [`InvalidKey`](RejectionKind::InvalidKey) | 400 | `INVALID_ARGUMENT` |
//! | cannot have a scope, as the service is put together | [`Misconfigured`](RejectionKind::Misconfigured) | 500 | `INTERNAL` |
//! | has a body that is too long | [`TooLarge`](RejectionKind::TooLarge) | 413 | `RESOURCE_EXHAUSTED` |
//! | has a body that did not arrive | [`Incomplete`](RejectionKind::Incomplete) | 400 | `CANCELLED` |
//! | finds too many waiting already | [`QueueFull`](RejectionKind::QueueFull) | 503, `Retry-After: 1` | `RESOURCE_EXHAUSTED` |
//! | finds Redis not available, or the manager closed | [`Unavailable`](RejectionKind::Unavailable) | 503, `Retry-After: 1` | `UNAVAILABLE` |
//! | loses its lock while its handler runs | [`Lost`](RejectionKind::Lost) | 503, `Retry-After: 1` | `ABORTED` |
//! | has a stored response that cannot be read: it is damaged, Redis evicted a part of it, or a newer version of this crate wrote it | [`Unreadable`](RejectionKind::Unreadable) | 500 | `DATA_LOSS` |
//!
//! Only a request of the first row runs. The body of a rejection is `application/problem+json`
//! ([RFC 9457](https://www.rfc-editor.org/rfc/rfc9457)); the response carries its [`Rejection`] in
//! its extensions. The error type of the service stays that of the service inside.
//!
//! # Which layer for what
//!
//! A [`DistributedLockLayer`](crate::DistributedLockLayer) runs *every* request, those for one
//! resource one after the other: for whatever changes a resource. This layer runs *one* request for
//! each key, and the others get its response: for what may arrive twice.
//!
//! Together, each event is handled once, and the events of one account one at a time: put this
//! layer outside, by the event, and the lock inside, by the account, so that duplicates do not wait
//! for the account. A response by which a lock inside says that the request did not run (409, for
//! instance) is never kept, if the layers between pass its [`Rejection`] on.
//!
//! The other order works as well. A run then ends with the lock outside, as all that runs under it:
//! when that is lost, and when the client leaves, unless a [`DetachLayer`](crate::DetachLayer) is
//! further outside.
//!
//! # Where to place it
//!
//! Place the layer inside authentication, and inside the one that verifies a webhook's signature: a
//! stranger must neither use up an id nor read the response to it. Place it outside a
//! [`DistributedLockLayer`](crate::DistributedLockLayer), rather than inside.
//!
//! Outside a layer that translates gRPC-Web, the failure of a call can be seen only if its response
//! has no body: place this layer inside.
//!
//! Inside this layer, a request has another type of body, [`IdempotencyBody`]. Handlers, routers
//! and the layers of this crate take it as it is. A function of axum's `from_fn` takes one type
//! only: give it a `route_layer` call of its own, before the one with this layer.
//!
//! # How it works
//!
//! The lock of a key and the response to it are one string in Redis. One command takes the lock, or
//! returns the response that stands in its place. The lock is renewed while the service runs. The
//! response takes its place in one step, if the lock is still this run's: a run that lost its lock
//! can never overwrite the response of a later one. All requests that wait, on whatever node, are
//! told at once.
//!
//! A response of more than 16 KiB is written to other strings first, in parts over a second
//! connection, so that no lock waits behind it. What takes the lock's place then leads to the
//! parts. The response waits until they are there, for ten times the
//! [command timeout](crate::LockManagerBuilder::command_timeout) at most. What cannot be written in
//! that time, or finds no memory there, is kept without its body, after two more at most.
//!
//! The request's body is read before the service is called, and the service runs in a task of its
//! own: a client that leaves stops neither the work, unless that runs under a lock outside, nor the
//! storing. After an error, a panic, or a response that is not to be
//! [remembered](IdempotencyLayer::remember), the key is free again, and the next request runs. So
//! it is when the process dies, once the lock's [time to live](crate::LockManagerBuilder::ttl) has
//! passed.
//!
//! # What "once" can mean
//!
//! Two runs for one key are never under way at the same time, as long as Redis keeps its data and a
//! run stops when it is told that its lock is lost. Once a response is stored, no run begins until
//! its [retention](IdempotencyLayer::retention) is over.
//!
//! No such layer can promise more: the effect of a handler and the note that it is done are in two
//! places, and no middleware can write both at once. [The guide](crate::_guide::exactly_once) says
//! when a handler runs a second time, and what to do where that must not happen.
//!
//! # Caveats
//!
//! - **Keys come from strangers.** Put the caller's identity into the
//!   [scope](IdempotencyLayer::scope): otherwise a client that repeats another's key gets the
//!   other's response, its headers and cookies included. In a nested axum router, the path is what
//!   the outer router has left of it: give each a scope of its own.
//! - **Services that share a Redis share records** where path and key are the same: one would get
//!   the other's response, and never run. Give each a [prefix](crate::LockManagerBuilder::prefix)
//!   of its own, or put its name into the scope.
//! - **Responses are in Redis' memory** for as long as they are kept, headers and cookies included,
//!   as they were sent: 200 bytes for a short one.
//! - **A stored response is final.** By default a 400 or a 404 is kept as well, as for an API. For
//!   webhooks, see [`remember`](IdempotencyLayer::remember).
//! - **A duplicate after the retention runs.** Choose the
//!   [retention](IdempotencyLayer::retention) longer than any sender tries again.

mod body;
mod config;
mod future;
mod header;
mod layer;
mod once;
mod read;
mod replay;
mod run;
mod service;
mod settings;
mod stored_headers;
mod stored_response;

#[cfg(fuzzing)]
pub(crate) use self::{
    header::parse as parse_key,
    stored_response::{StoredResponse, seal},
};

pub use self::body::IdempotencyBody;
pub use self::future::IdempotencyFuture;
pub use self::layer::IdempotencyLayer;
pub use self::service::Idempotency;
pub use crate::http::{OnLost, Rejection, RejectionKind, prefer_wait};
