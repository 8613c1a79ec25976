//! Webhooks and payments, handled once: how to use an `IdempotencyLayer`.
//!
//! Webhooks are delivered at least once. A sender that gets no response in time sends the event
//! again, often while the first delivery is still being handled. So do clients of an API that lost
//! their connection. [`IdempotencyLayer`](crate::IdempotencyLayer) runs the handler once for each
//! key that such a request carries, on all nodes of a service. It gives the response to every
//! duplicate, for as long as the response is kept.
//!
//! ```
//! use std::time::Duration;
//! use axum::{Router, routing::post};
//! use tower_distributed_lock::{IdempotencyLayer, LockManager, key};
//!
//! fn app(locks: LockManager) -> Router {
//!     // A sender of webhooks gives each event an id. The check of its signature belongs outside.
//!     let each_event_once = IdempotencyLayer::webhook(locks.clone(), "webhook-id")
//!         .remember(|status| status.is_success()) // the sender tries again after anything else
//!         .retention(Duration::from_secs(4 * 24 * 3600)); // and goes on for up to three days
//!
//!     // A client of an API sends `Idempotency-Key`, and with it the same body every time.
//!     // `x-user` was put there, or verified, by the authentication outside.
//!     let each_payment_once = IdempotencyLayer::new(locks)
//!         .scope(key::join(key::header("x-user"), key::method_and_path()))
//!         .require_key(true);
//!
//!     Router::new()
//!         .route("/webhooks", post(|| async { "handled\n" }).route_layer(each_event_once))
//!         .route("/payments", post(|| async { "paid\n" }).route_layer(each_payment_once))
//! }
//! ```
//!
//! Every setting is described at [`IdempotencyLayer`](crate::IdempotencyLayer), and every response
//! at its [module](crate::idempotency).
//!
//! # What a client sees
//!
//! The example `webhook` is such a service, with the signatures of
//! [Standard Webhooks](https://www.standardwebhooks.com); its handlers take two seconds. With
//! `cargo run --example webhook` in another terminal, in bash, and with the responses shortened:
//!
//! ```text
//! $ delivery=$(cargo run --quiet --example webhook -- sign evt_1 '{"type":"invoice.paid"}')
//! $ eval "$delivery" & eval "$delivery"; wait        # a signed line of curl, twice at once
//! HTTP/1.1 409 Conflict
//! content-type: application/problem+json
//! retry-after: 1
//!
//! {…,"detail":"A request with this idempotency key is still running."}
//! HTTP/1.1 200 OK
//!
//! event evt_1: handled in run 1
//! $ eval "$delivery"                                 # later: nothing runs
//! HTTP/1.1 200 OK
//! idempotent-replayed: true
//!
//! event evt_1: handled in run 1
//! $ eval "${delivery/invoice.paid/invoice.void}"     # from a stranger without the secret
//! HTTP/1.1 401 Unauthorized
//!
//! a webhook-signature that is not right
//!
//! $ curl -i http://127.0.0.1:3000/payments -H 'idempotency-key: order-42' -d 'amount=100'
//! HTTP/1.1 200 OK
//!
//! amount=100: paid in run 2
//! $ curl -i http://127.0.0.1:3000/payments -H 'idempotency-key: order-42' -d 'amount=900'
//! HTTP/1.1 422 Unprocessable Entity
//! content-type: application/problem+json
//!
//! {…,"detail":"The idempotency key was used before, with another payload."}
//! $ curl -i http://127.0.0.1:3000/payments -d 'amount=100'
//! HTTP/1.1 400 Bad Request
//! content-type: application/problem+json
//!
//! {…,"detail":"The request has no valid idempotency key."}
//! ```
//!
//! # Together with a lock
//!
//! Under a [`DistributedLockLayer`](crate::DistributedLockLayer) every request runs, one after the
//! other: for whatever changes a resource. Under an `IdempotencyLayer` one runs, and the others get
//! its response: for what may arrive twice.
//!
//! With both, put the `IdempotencyLayer` outside, by the event, and the lock inside, by the
//! account: then duplicates do not stand in line for the account, and a client that leaves does not
//! stop its event half-way. A response that says that the account was locked (409) is not kept, if
//! the layers between the two pass its [`Rejection`](crate::lock::Rejection) on.
//!
//! # Scope: whose key it is
//!
//! Keys are chosen by clients. Put the caller's identity into the
//! [scope](crate::IdempotencyLayer::scope). Without it, a client that repeats another's key gets
//! the other's response, its headers and cookies included.
//!
//! In a nested axum router, the path is what is left of it there. Two senders at `/a/webhooks` and
//! `/b/webhooks` need a name each: `.scope(|_| "a")`.
//!
//! # Signatures
//!
//! They are checked outside of this layer. A stranger must neither use up an event's id nor read
//! the response to it.
//!
//! # Final responses
//!
//! By default a 400 or a 404 is kept as well, which suits an API: the client made a mistake, and
//! would make it again. A sender of webhooks tries again after everything but a 2xx, and a
//! corrected handler should then run: [`.remember(|status|
//! status.is_success())`](crate::IdempotencyLayer::remember).
//!
//! # Retention
//!
//! Keep responses for longer than any sender tries again. Stripe does so for up to three days, and
//! Standard Webhooks recommends several days; its example ends after 75 hours. A duplicate that
//! comes later than the [retention](crate::IdempotencyLayer::retention) runs.
//!
//! A response takes Redis' memory for all that time: 200 bytes for the one to `evt_1` above. Redis
//! must not evict it: see [operations](super::operations#memory-and-eviction).
//!
//! # Long responses
//!
//! A response of more than 16 KiB goes to Redis in parts over a second connection, so that no lock
//! waits behind it. The client gets it when the parts are there, after ten times the
//! [`command_timeout`](crate::LockManagerBuilder::command_timeout) at most. What cannot be written
//! in that time, or finds no memory in Redis, is kept without its body: a duplicate gets the status
//! and the headers. That takes two more command timeouts at most.
//!
//! # A client that leaves
//!
//! It stops nothing: the handler runs to its end, and its response is kept. If the handler panics,
//! or its response is not to be remembered, the key is free again. A handler that runs under a lock
//! outside of this layer ends with that, as it must not go on without it: when the client leaves,
//! unless a [`DetachLayer`](crate::DetachLayer) is outside of both.
//!
//! # The type of the body
//!
//! Inside of this layer a request has another type of body,
//! [`IdempotencyBody`](crate::idempotency::IdempotencyBody). Handlers and `DistributedLockLayer`
//! take it as it is. A `from_fn` of axum needs a `route_layer` call of its own, before the one with
//! this layer.
