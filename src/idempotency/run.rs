//! The one run of the service for a key, and the recording of its answer.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONNECTION, PROXY_AUTHENTICATE, TE, TRAILER, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, Request, Response, StatusCode};
use http_body::Body;
use tower::{BoxError, Service};

use super::body::IdempotencyBody;
use super::layer::Config;
use super::read;
use super::record::{Fingerprint, Record};
use super::service::fixed;
use crate::error::ErrorKind;
use crate::http::{Layer, OnLost, Protocol, Rejection, RejectionKind, Whole, grpc};
use crate::manager::LockGuard;
use crate::{store, trace};

/// What a run needs beside its request.
pub(super) struct Run {
    pub(super) config: Arc<Config>,
    pub(super) guard: LockGuard,
    pub(super) fingerprint: Option<Fingerprint>,
    pub(super) protocol: Protocol,
}

/// Calls the service under the key's lock. An answer that is to be remembered takes the lock's place; after any other end,
/// a panic included, the lock is free.
pub(super) async fn run<S, ReqB, ResB>(
    mut service: S,
    request: Request<IdempotencyBody<ReqB>>,
    run: Run,
) -> Result<Response<IdempotencyBody<ResB>>, S::Error>
where
    S: Service<Request<IdempotencyBody<ReqB>>, Response = Response<ResB>>,
    ResB: Body<Data = Bytes>,
    ResB::Error: Into<BoxError>,
{
    let lease = run.guard.lease().clone();
    let is_lost = async {
        match run.config.on_lost {
            OnLost::Cancel => lease.lost().await,
            OnLost::Continue => std::future::pending().await,
        }
    };
    let answer = tokio::select! {
        // Time may have passed since it was granted.
        biased;
        _ = is_lost => None,
        answer = answer(&mut service, request, &run) => Some(answer),
    };
    let was_held = lease.is_held();
    let config = Arc::clone(&run.config);
    let lost = Rejection::new(
        RejectionKind::Lost,
        Layer::Idempotency,
        run.protocol.is_grpc(),
    );
    let (ended, answer) = match answer {
        None => return Ok(config.respond(lost).map(fixed)),
        Some(Ok(Answer {
            response,
            record: Some(record),
        })) => {
            let whole = store::Record {
                content: record.encode(),
                retention: run.config.retention,
            };
            let completed = run.guard.complete(whole, || short(record)).await;
            if let Err(error) = &completed {
                trace::not_recorded(lease.key(), error);
            }
            (completed, response)
        }
        // The client may try again as soon as it has this, on any node.
        Some(Ok(other)) => (run.guard.release().await, other.response),
        Some(Err(error)) => {
            let _ = run.guard.release().await;
            return Err(error);
        }
    };
    // A run that was not stopped, as it blocked its thread, is no success if another may have begun
    // beside it: unless its answer took the lock's place, which it did then in time.
    match ended {
        Err(error)
            if (error.kind() == ErrorKind::Lost || !was_held)
                && config.on_lost == OnLost::Cancel =>
        {
            Ok(config.respond(lost).map(fixed))
        }
        _ => Ok(answer),
    }
}

struct Answer<B> {
    response: Response<IdempotencyBody<B>>,
    /// If it is to be remembered.
    record: Option<Record>,
}

async fn answer<S, ReqB, ResB>(
    service: &mut S,
    request: Request<IdempotencyBody<ReqB>>,
    run: &Run,
) -> Result<Answer<ResB>, S::Error>
where
    S: Service<Request<IdempotencyBody<ReqB>>, Response = Response<ResB>>,
    ResB: Body<Data = Bytes>,
    ResB::Error: Into<BoxError>,
{
    let response = service.call(request).await?;
    let did_run = response.extensions().get::<Rejection>().is_none();
    let (head, body) = response.into_parts();
    // What a gRPC answer says is in its trailers, unless it has no body.
    let in_head = meaning(head.status, &head.headers, None);
    if !did_run || !run.config.remembers(in_head) {
        let response = Response::from_parts(head, IdempotencyBody::through(body));
        let record = None;
        return Ok(Answer { response, record });
    }
    let limit = run.config.max_response_body;
    let (body, kept) = match read::response(&head, body, limit, run.protocol).await {
        read::Response::Whole(whole) => {
            let trailers = whole.trailers.as_ref();
            let status = meaning(head.status, &head.headers, trailers);
            let kept = run.config.remembers(status).then(|| Some(whole.clone()));
            (IdempotencyBody::whole(whole), kept)
        }
        read::Response::Stream(body) => (body, Some(None)),
        read::Response::Broken(body) => (body, None),
    };
    let record = kept.map(|body| Record {
        fingerprint: run.fingerprint,
        status: head.status,
        headers: to_keep(&head.headers, body.as_ref()),
        body,
    });
    let response = Response::from_parts(head, body);
    Ok(Answer { response, record })
}

/// What can be kept of an answer in any case: that there was one, and if they are not long
/// themselves, its headers.
fn short(mut record: Record) -> Bytes {
    record.headers = to_keep(&record.headers, None);
    record.body = None;
    let content = record.encode();
    if content.len() <= store::LONG {
        return content;
    }
    record.headers.clear();
    record.encode()
}

/// The status that an answer comes to.
fn meaning(status: StatusCode, headers: &HeaderMap, trailers: Option<&HeaderMap>) -> StatusCode {
    let code = trailers.into_iter().chain([headers]).find_map(grpc::status);
    code.unwrap_or(status)
}

/// The fields that belong to the answer, and not to the connection that it was sent on (RFC 9110, section 7.6.1), nor to a body
/// that is not kept.
fn to_keep(headers: &HeaderMap, body: Option<&Whole>) -> HeaderMap {
    const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
    const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
    let mut kept = headers.clone();
    let named = headers.get_all(CONNECTION).iter();
    let named = named.filter_map(|value| value.to_str().ok());
    for name in named.flat_map(|names| names.split(',')) {
        kept.remove(name.trim());
    }
    for name in [
        CONNECTION,
        KEEP_ALIVE,
        PROXY_AUTHENTICATE,
        PROXY_CONNECTION,
        TE,
        TRANSFER_ENCODING,
        UPGRADE,
    ] {
        kept.remove(name);
    }
    if body.is_none() {
        let about_body =
            |name: &HeaderName| name == TRAILER || name.as_str().starts_with("content-");
        let names: Vec<HeaderName> = kept
            .keys()
            .filter(|name| about_body(name))
            .cloned()
            .collect();
        for name in names {
            kept.remove(name);
        }
    }
    kept
}
