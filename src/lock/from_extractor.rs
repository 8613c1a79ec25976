//! [`DistributedLockLayer::from_extractor`]: keys of what an axum extractor returns.

use std::future::poll_fn;
use std::pin::pin;

use axum_core::body::Body;
use axum_core::extract::FromRequestParts;
use axum_core::response::IntoResponse;
use bytes::Bytes;
use http::Response;
use http_body::Body as _;

use super::find_key::{FindKey, NoKey};
use super::layer::DistributedLockLayer;
use crate::http::Frames;
use crate::key::IntoLockKeys;
use crate::manager::LockManager;

impl DistributedLockLayer {
    /// Makes a layer that locks the key which the closure `key` makes of what an axum extractor
    /// returns (feature `axum`).
    ///
    /// Key and handler then parse the same thing: with `Path<u64>`, the paths `/accounts/7`,
    /// `/accounts/07` and `/accounts/+7` are one account, and one lock. Any extractor will do that
    /// needs neither the body nor a router's state. It works on a copy of the request's head.
    ///
    /// If the extractor rejects the request, that is the response, and
    /// [`rejection`](Self::rejection) does not replace it. It has a
    /// [`Rejection`](super::Rejection) of the kind [`InvalidKey`](super::RejectionKind::InvalidKey)
    /// in its extensions. Where a request may run without a key, take an `Option` of the extractor,
    /// return an `Option`, and say [`optional_key`](Self::optional_key).
    ///
    /// The closure may return [several keys](IntoLockKeys): `[("account", from), ("account", to)]`.
    ///
    /// Put the layer behind the routing, with `route_layer`: `Path` must know the route's
    /// parameters.
    ///
    /// # Example
    ///
    /// ```
    /// use axum::{Router, extract::Path, routing::post};
    /// use tower_distributed_lock::{DistributedLockLayer, Lease, LockManager};
    ///
    /// async fn transfer(Path(id): Path<u64>, lease: Lease) -> String {
    ///     format!("alone with account {id}, fencing token {}", lease.fencing_token())
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// let locks = LockManager::in_memory();
    /// let app: Router = Router::new()
    ///     .route("/accounts/{id}/transfer", post(transfer))
    ///     .route_layer(DistributedLockLayer::from_extractor(locks, |Path(id): Path<u64>| {
    ///         ("account", id) // the key account:7
    ///     }));
    /// # let _ = app;
    /// # }
    /// ```
    pub fn from_extractor<E, F, K>(locks: LockManager, key: F) -> Self
    where
        E: FromRequestParts<()> + 'static,
        F: Fn(E) -> K + Clone + Send + Sync + 'static,
        K: IntoLockKeys,
    {
        let find = FindKey::later(move |mut parts| {
            let key = key.clone();
            async move {
                let rejection = match E::from_request_parts(&mut parts, &()).await {
                    Ok(extracted) => return key(extracted).into_lock_keys().map_err(NoKey::Error),
                    Err(rejection) => rejection.into_response(),
                };
                Err(NoKey::Rejected(Box::new(collect(rejection).await)))
            }
        });
        Self::with(locks, find)
    }
}

/// Reads the body of a rejection. It is there at once, as a rule.
async fn collect(rejection: Response<Body>) -> Response<Bytes> {
    let (head, body) = rejection.into_parts();
    let mut body = pin!(body);
    let mut frames = Frames::default();
    while let Some(Ok(frame)) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        frames.push(frame);
    }
    Response::from_parts(head, frames.collect().data)
}
