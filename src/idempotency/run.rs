//! [`Run`]: the one run of the service for a key, and the storing of its response.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::Body;
use tower::{BoxError, Service};

use super::body::IdempotencyBody;
use super::config::Config;
use super::read::{ResponseRead, read_response};
use super::stored_headers::{stored_headers, stored_headers_without_body};
use super::stored_response::{Fingerprint, StoredResponse};
use crate::detach::DetachFuture;
use crate::error::{Error, ErrorKind};
use crate::http::{OnLost, Protocol, RejectedBy, Rejection, grpc};
use crate::lease::Lease;
use crate::manager::LockGuard;
use crate::{observe, store};

/// What a run needs besides its service and its request.
pub(super) struct Run {
    pub(super) config: Arc<Config>,
    pub(super) guard: LockGuard,
    pub(super) fingerprint: Option<Fingerprint>,
    pub(super) protocol: Protocol,
    /// How long the request waited for the key.
    pub(super) waited: Duration,
    /// Whether it goes on when its client leaves. If not, the storing of its response does.
    pub(super) is_detached: bool,
}

/// What the service returned.
struct Returned<B> {
    response: Response<IdempotencyBody<B>>,
    /// `None` if the response is not to be remembered.
    to_store: Option<StoredResponse>,
}

impl Run {
    /// Calls the service under the key's lock. A response that is to be remembered takes the lock's
    /// place. After any other end, a panic included, the lock is free.
    pub(super) async fn run<S, ReqB, ResB>(
        self,
        mut service: S,
        request: Request<IdempotencyBody<ReqB>>,
    ) -> Result<Response<IdempotencyBody<ResB>>, S::Error>
    where
        S: Service<Request<IdempotencyBody<ReqB>>, Response = Response<ResB>>,
        ResB: Body<Data = Bytes>,
        ResB::Error: Into<BoxError>,
    {
        let lease = self.guard.lease().clone();
        let returned = tokio::select! {
            // The loss goes first: time may have passed since the lock was granted.
            biased;
            () = self.must_stop(&lease) => None,
            returned = self.call(&mut service, request) => Some(returned),
        };
        let was_held = lease.is_held();
        let config = Arc::clone(&self.config);
        let (protocol, waited) = (self.protocol, self.waited);
        let lost = || {
            let lost = Error::of(ErrorKind::Lost).into();
            let key = Some(lease.key().clone());
            protocol.reject(lost, RejectedBy::Idempotency, key, waited)
        };
        let (ended, response) = match returned {
            None => return Ok(respond(&config, lost())),
            Some(Ok(Returned {
                response,
                to_store: Some(stored),
            })) => match self.is_detached {
                true => (self.store(stored).await, response),
                false => (DetachFuture::spawn(self.store(stored)).await, response),
            },
            // The client may try again as soon as it has this response, on any node.
            Some(Ok(Returned { response, .. })) => (self.guard.release().await, response),
            Some(Err(error)) => {
                let _ = self.guard.release().await;
                return Err(error);
            }
        };
        // A run that was not stopped, as it blocked its thread, is no success if another may have
        // begun in the meantime. It is one if its response took the lock's place: then it did so in
        // time.
        match ended {
            Err(error)
                if (error.kind() == ErrorKind::Lost || !was_held)
                    && config.on_lost == OnLost::Cancel =>
            {
                Ok(respond(&config, lost()))
            }
            _ => Ok(response),
        }
    }

    /// Waits until the run must stop because its lock is lost.
    async fn must_stop(&self, lease: &Lease) {
        match self.config.on_lost {
            OnLost::Cancel => drop(lease.lost().await),
            OnLost::Continue => pending().await,
        }
    }

    /// Calls the service, and reads its response as far as it can be stored.
    async fn call<S, ReqB, ResB>(
        &self,
        service: &mut S,
        request: Request<IdempotencyBody<ReqB>>,
    ) -> Result<Returned<ResB>, S::Error>
    where
        S: Service<Request<IdempotencyBody<ReqB>>, Response = Response<ResB>>,
        ResB: Body<Data = Bytes>,
        ResB::Error: Into<BoxError>,
    {
        let response = service.call(request).await?;
        let did_run = response.extensions().get::<Rejection>().is_none();
        let (head, body) = response.into_parts();
        // A gRPC response has its status in the trailers, unless it has no body.
        let status = effective_status(head.status, &head.headers, None);
        if !did_run || !self.config.remembers(status) {
            let response = Response::from_parts(head, IdempotencyBody::passthrough(body));
            let to_store = None;
            return Ok(Returned { response, to_store });
        }
        let limit = self.config.max_response_body;
        // Whether the response is to be stored, and with which body.
        let (body, kept) = match read_response(&head, body, limit, self.protocol).await {
            ResponseRead::Collected(collected) => {
                let trailers = collected.trailers.as_ref();
                let status = effective_status(head.status, &head.headers, trailers);
                let remembers = self.config.remembers(status);
                let kept = remembers.then(|| Some(collected.clone()));
                (IdempotencyBody::collected(collected), kept)
            }
            ResponseRead::Stream(body) => (body, Some(None)),
            ResponseRead::Broken(body) => (body, None),
        };
        let to_store = kept.map(|body| StoredResponse {
            fencing_token: self.guard.fencing_token(),
            fingerprint: self.fingerprint,
            status: head.status,
            headers: match body {
                Some(_) => stored_headers(&head.headers),
                None => stored_headers_without_body(&head.headers),
            },
            body,
        });
        let response = Response::from_parts(head, body);
        Ok(Returned { response, to_store })
    }

    /// Puts the response in the lock's place.
    async fn store(self, stored: StoredResponse) -> Result<(), Error> {
        let lease = self.guard.lease().clone();
        let record = store::Record {
            content: stored.encode(),
            retention: self.config.retention,
        };
        let completed = self.guard.complete(record, || encode_short(stored)).await;
        if let Err(error) = &completed {
            observe::not_recorded(lease.key(), error);
        }
        completed
    }
}

fn respond<B>(config: &Config, rejection: Rejection) -> Response<IdempotencyBody<B>> {
    config.respond(rejection).map(IdempotencyBody::fixed)
}

/// Encodes what can be kept of a response in any case: that there was one, and its headers unless
/// they are long themselves.
fn encode_short(mut stored: StoredResponse) -> Bytes {
    stored.headers = stored_headers_without_body(&stored.headers);
    stored.body = None;
    let content = stored.encode();
    if content.len() <= store::LONG_RECORD {
        return content;
    }
    stored.headers.clear();
    stored.encode()
}

/// Returns the status by which a response is remembered or not: that of a gRPC call comes from its
/// `grpc-status`.
fn effective_status(
    status: StatusCode,
    headers: &HeaderMap,
    trailers: Option<&HeaderMap>,
) -> StatusCode {
    let code = trailers.into_iter().chain([headers]).find_map(grpc::status);
    code.unwrap_or(status)
}
