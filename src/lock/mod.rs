//! Middleware that runs every request under a lock, so that requests for one key run one at a time,
//! on all nodes of a service.
//!
//! The lock is taken before the service inside is called, renewed while the request runs, and held
//! until the response has been sent. It is released however the request ends: an error, a panic, a
//! timeout, a client that leaves while it waits, while the handler runs, or in the middle of the
//! body. A request whose lock is lost is stopped before Redis can have given the lock to another
//! holder.
//!
//! # Examples
//!
//! By default a request does not wait: while another one holds the lock, it is answered with 409.
//!
//! ```
//! use axum::{Extension, Router, routing::post};
//! use tower_distributed_lock::{DistributedLockLayer, Lease, LockManager, key};
//!
//! async fn transfer(Extension(lease): Extension<Lease>) -> String {
//!     format!("alone with this account, fencing token {}", lease.fencing_token())
//! }
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! let locks = LockManager::in_memory(); // or connect("redis://127.0.0.1:6379").await?
//! let app: Router = Router::new()
//!     .route("/accounts/{id}/transfer", post(transfer))
//!     .route_layer(DistributedLockLayer::new(locks, key::path("/accounts/{id}/transfer")));
//! # let _ = app;
//! # }
//! ```
//!
//! Customised: requests wait for their turn, those that do not name their tenant are refused, and a
//! client that has its response finds the resource unlocked on every node.
//!
//! ```
//! use std::time::Duration;
//! use tower_distributed_lock::{DistributedLockLayer, LockManager, key, lock::RejectionKind};
//!
//! # fn layer(locks: LockManager) -> DistributedLockLayer {
//! let account = key::join(key::header("x-tenant"), key::path("/accounts/{id}/**"));
//! DistributedLockLayer::new(locks, account)
//!     .wait(Duration::from_secs(5))
//!     .release_before_response(true)
//!     .rejection(|rejection| {
//!         let mut response = rejection.to_response();
//!         if rejection.kind() == RejectionKind::TimedOut {
//!             *response.status_mut() = http::StatusCode::LOCKED;
//!         }
//!         response
//!     })
//! # }
//! ```
//!
//! # Settings
//!
//! | Setting | Default | |
//! |---|---|---|
//! | [`new(locks, key)`] | | `key(&request::Parts)` returns a [key](crate::key), [several](#several-locks), `None` (400), or an error |
//! | [`new_async(locks, key)`] | | `key(request::Parts)` returns a future, for keys that need something asynchronous |
//! | [`from_extractor(locks, key)`] | | the key is made of what an axum extractor returns (feature `axum`) |
//! | [`from_extension(locks)`] | | the key is a [`LockKey`](crate::LockKey), or several are a [`LockKeys`](crate::key::LockKeys), in the request's extensions, put there by an outer middleware; without it: 500 |
//! | [`wait(duration)`] | no waiting: 409 at once | how long a request waits for its turn: at most a day |
//! | [`wait_for(closure)`] | the `wait` | how long this request waits, such as [`prefer_wait`] |
//! | [`mode(closure)`] | [`Mode::Exclusive`](crate::Mode::Exclusive) | whether this request has the lock alone, or shares it, such as [`share_safe_methods`] |
//! | [`hold(Hold)`] | [`Hold::Body`] | until the body of the response has been sent, or until the handler has returned ([`Hold::Head`]) |
//! | [`on_unavailable(OnUnavailable)`] | [`Reject`](OnUnavailable::Reject) | 503 when Redis is not available, or run without a lock ([`Proceed`](OnUnavailable::Proceed)) |
//! | [`on_lost(OnLost)`] | [`Cancel`](OnLost::Cancel) | stop a request whose lock is lost, or let it go on ([`Continue`](OnLost::Continue)) |
//! | [`optional_key()`] | refused: 400 or 500 | requests without a key run without a lock |
//! | [`release_before_response(bool)`] | `false` | hold the response back until Redis has released the lock; of a stream, only its last frame |
//! | [`name(name)`] | `default` | what metrics and events call this layer's locks |
//! | [`rejection(closure)`] | problem+json, or a gRPC status | replaces the responses of the next table |
//!
//! [`new(locks, key)`]: DistributedLockLayer::new
//! [`new_async(locks, key)`]: DistributedLockLayer::new_async
//! [`from_extractor(locks, key)`]: DistributedLockLayer::from_extractor
//! [`from_extension(locks)`]: DistributedLockLayer::from_extension
//! [`wait(duration)`]: DistributedLockLayer::wait
//! [`wait_for(closure)`]: DistributedLockLayer::wait_for
//! [`mode(closure)`]: DistributedLockLayer::mode
//! [`hold(Hold)`]: DistributedLockLayer::hold
//! [`on_unavailable(OnUnavailable)`]: DistributedLockLayer::on_unavailable
//! [`on_lost(OnLost)`]: DistributedLockLayer::on_lost
//! [`optional_key()`]: DistributedLockLayer::optional_key
//! [`release_before_response(bool)`]: DistributedLockLayer::release_before_response
//! [`name(name)`]: DistributedLockLayer::name
//! [`rejection(closure)`]: DistributedLockLayer::rejection
//!
//! The time to live of a lock, the longest time that a request may hold it, the number of requests
//! that may wait, and the timeouts of Redis are settings of the manager: see
//! [`LockManagerBuilder`](crate::LockManagerBuilder).
//!
//! # Responses
//!
//! A request that does not run, or not to its end, gets one of these responses:
//!
//! | Reason | Kind | HTTP, gRPC-Web | gRPC |
//! |---|---|---|---|
//! | another request holds the lock | [`Held`](RejectionKind::Held) | 409, `Retry-After: 1` | `ABORTED` |
//! | the lock did not become free in time | [`TimedOut`](RejectionKind::TimedOut) | 409, `Retry-After: 1` | `ABORTED` |
//! | too many requests wait already | [`QueueFull`](RejectionKind::QueueFull) | 503, `Retry-After: 1` | `RESOURCE_EXHAUSTED` |
//! | the client left out what the key is made of | [`MissingKey`](RejectionKind::MissingKey) | 400 | `INVALID_ARGUMENT` |
//! | the key cannot name a lock: it is empty, or not text | [`InvalidKey`](RejectionKind::InvalidKey) | 400 | `INVALID_ARGUMENT` |
//! | the request names more keys than [`max_keys`](crate::LockManagerBuilder::max_keys) allows | [`TooManyKeys`](RejectionKind::TooManyKeys) | 400 | `INVALID_ARGUMENT` |
//! | the service is put together wrongly: no `LockKey` in the extensions, a path that does not match the pattern, or a lock that an outer layer shares, and this one wants alone | [`Misconfigured`](RejectionKind::Misconfigured) | 500 | `INTERNAL` |
//! | Redis is not available, or the manager was closed | [`Unavailable`](RejectionKind::Unavailable) | 503, `Retry-After: 1` | `UNAVAILABLE` |
//! | the lock was lost before the head of the response was sent | [`Lost`](RejectionKind::Lost) | 503, `Retry-After: 1` | `ABORTED` |
//!
//! The body of an HTTP response is `application/problem+json`
//! ([RFC 9457](https://www.rfc-editor.org/rfc/rfc9457)). A gRPC call, told by its content type
//! `application/grpc`, gets a gRPC status without a body. The response carries its [`Rejection`] in
//! its extensions, for outer layers that log or count. The error type of the service stays that of
//! the service inside. What an extractor of [`from_extractor(locks, key)`] rejects gets the
//! extractor's own response.
//!
//! # Several locks
//!
//! A closure that returns an array or a `Vec` locks several keys. The request holds all of them, or
//! does not run. (A tuple is the parts of one key.)
//!
//! ```
//! use std::time::Duration;
//! use axum::{Extension, Router, routing::post};
//! use tower_distributed_lock::{DistributedLockLayer, Leases, LockManager};
//!
//! async fn transfer(Extension(leases): Extension<Leases>) -> String {
//!     // Each key has a fencing token of its own, for the writes to what it names.
//!     let tokens = leases.iter().map(|lease| lease.fencing_token().to_string());
//!     format!("alone with both accounts, tokens {}", tokens.collect::<Vec<_>>().join(", "))
//! }
//!
//! # fn app(locks: LockManager) -> Router {
//! let both = DistributedLockLayer::new(locks, |req| {
//!     let mut ids = req.uri.path().strip_prefix("/transfers/")?.split('/');
//!     let mut account = || Some(("account", ids.next()?.parse::<u64>().ok()?));
//!     Some([account()?, account()?]) // the keys account:7 and account:9
//! });
//! Router::new()
//!     .route("/transfers/{from}/{to}", post(transfer))
//!     .route_layer(both.wait(Duration::from_secs(5)))
//! # }
//! ```
//!
//! **One layer with several keys is better than one layer for each.** Stacked layers take their
//! locks one after the other, in the order of the layers. A transfer from 7 to 9 then has 7 and
//! waits for 9, while one from 9 to 7 has 9 and waits for 7: both time out. One layer takes its
//! keys in an order that all nodes share, whatever the order in which the closure names them, so
//! that its requests never wait for each other in a circle. It also takes all of them in one round
//! trip if they are free. Stack layers where the keys of one are never those of the other, or where
//! an outer lock is to be held for longer.
//!
//! - A key that is named twice, or that an outer layer holds for this request, is taken once.
//! - Without a [wait], all keys are taken at once. If one is refused, the others are released, and
//!   [`Rejection::key`] tells which it was. Of two such requests that come at the same moment, both
//!   may be refused.
//! - With a wait, one time limit is for all keys. Where one is not free, those before it in the
//!   order are kept, and renewed, while it is waited for. Other requests wait for these meanwhile.
//!   [`max_hold`] counts from the first lock, this time included.
//! - To lose one lock is to lose all: the request is stopped, and the others are released.
//! - The handler finds [`Leases`](crate::Leases), by key. Only where one key is left does it find a
//!   [`Lease`](crate::Lease), too. It [takes over](crate::Leases::take_over) all locks, or one.
//! - A request that names more than [`max_keys`] different keys, by default 16, is answered with
//!   400.
//!
//! [wait]: DistributedLockLayer::wait
//! [`max_hold`]: crate::LockManagerBuilder::max_hold
//! [`max_keys`]: crate::LockManagerBuilder::max_keys
//!
//! # Where to place it
//!
//! Place the layer inside authentication, rate limiting and a limit on the body's size, so that
//! strangers cannot take locks, and outside everything that must not run unlocked. A timeout layer
//! may be on either side. So may an [`IdempotencyLayer`](crate::IdempotencyLayer), but it is better
//! outside: see [there](crate::idempotency#which-layer-for-what).
//!
//! A concurrency limit counts requests that wait for their lock, wherever it stands: tower's takes
//! its permit in `poll_ready`, before a request is called. Where requests wait, bound them with
//! [`max_waiters`](crate::LockManagerBuilder::max_waiters), and count in the handler what is to be
//! limited there.
//!
//! The layer may be applied twice. Inside a request that holds the lock of the same key already,
//! the inner one takes none. If the outer one only shares it, and the inner one wants it alone, the
//! request is refused: it would wait for itself. Layers with different keys can deadlock, where one
//! layer with [several](#several-locks) cannot.
//!
//! # Caveats
//!
//! - **A lost lock stops the handler where it awaits.** What it has already sent (a query, a mail)
//!   is not called back. Code that does not await is not stopped at all; what it returns is not
//!   passed on as a success.
//! - **A client that leaves** stops its request, unless a [`DetachLayer`](crate::DetachLayer)
//!   outside lets it run to its end.
//! - **A client that sends its body slowly** keeps the lock for as long as the handler reads it, up
//!   to [`max_hold`](crate::LockManagerBuilder::max_hold). Have a layer outside of this one read
//!   the body, or bound its time.
//! - **A body that is not read** holds its lock, until it is dropped or
//!   [`max_hold`](crate::LockManagerBuilder::max_hold) is over.
//! - **An upgraded connection** (WebSocket) runs without the lock, which ends with the 101, unless
//!   the handler [takes it over](crate::Lease::take_over). So does work that goes on in another
//!   task.
//! - **Clients can block each other** through keys that they choose: see
//!   [`key`](crate::key#keys-come-from-strangers).
//! - **A process can be paused** for longer than its lock lives, and go on before it has noticed.
//!   Send the [fencing token](crate::Lease::fencing_token) along with every write: the
//!   [crate's documentation](crate) says what a lock can promise.

mod body;
mod collect;
mod config;
mod find_key;
mod finish;
#[cfg(feature = "axum")]
mod from_extractor;
mod future;
mod held_lock;
mod layer;
mod mode_of;
mod service;
mod wanted;

pub use self::body::ResponseBody;
pub use self::config::{Hold, OnUnavailable, Unlocked};
pub use self::future::ResponseFuture;
pub use self::layer::DistributedLockLayer;
pub use self::mode_of::share_safe_methods;
pub use self::service::DistributedLock;
pub use crate::http::{OnLost, Rejection, RejectionKind, prefer_wait};
#[cfg(feature = "axum")]
pub use crate::lease::MissingLease;
