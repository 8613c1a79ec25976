//! Decides whether a request runs, or gets the response of another one.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{Request, Response};
use http_body::Body;
use tower::{BoxError, Service};

use super::body::IdempotencyBody;
use super::config::Config;
use super::read::{RequestError, read_request};
use super::replay::replay;
use super::run::Run;
use crate::clock::Time;
use crate::detach::DetachFuture;
use crate::error::{Error, ErrorKind};
use crate::http::{
    Collected, Protocol, Reason, RejectedBy, RejectionKind, find_lease, has_lease,
    insert_secondary_lease,
};
use crate::key::LockKey;
use crate::manager::{Claimed, LockGuard};
use crate::observe::{self, Meter, Mistake, Repetition};

/// Handles a request that may have a key: runs it, replays the response of another one, or rejects
/// it.
pub(super) fn once<S, ReqB, ResB>(
    config: Arc<Config>,
    mut service: S,
    mut parts: Parts,
    body: ReqB,
) -> impl Future<Output = Result<Response<IdempotencyBody<ResB>>, S::Error>> + Send
where
    S: Service<Request<IdempotencyBody<ReqB>>, Response = Response<ResB>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    ReqB: Body<Data = Bytes> + Send + 'static,
    ResB: Body<Data = Bytes> + Send + 'static,
    ResB::Error: Into<BoxError>,
{
    let protocol = Protocol::of(&parts);
    // A block: an `async fn` would have room for each of its arguments twice.
    async move {
        let reject = |reason: Reason, key: Option<LockKey>, waited| {
            let rejection = protocol.reject(reason, RejectedBy::Idempotency, key, waited);
            Ok(config.respond(rejection).map(IdempotencyBody::fixed))
        };
        let (key, body) = match read_key_and_body(&config, &parts, body).await {
            Ok(read) => read,
            Err(reason) => return reject(reason, None, Duration::ZERO),
        };
        // A layer that is applied twice handles a request once.
        let key = key.filter(|key| find_lease(&parts.extensions, config.locks.id(), key).is_none());
        let Some(key) = key else {
            let request = Request::from_parts(parts, IdempotencyBody::collected(body));
            let response = service.call(request).await?;
            return Ok(response.map(IdempotencyBody::passthrough));
        };
        let fingerprint = config.fingerprint(&parts, &body.data);
        let wait = protocol.wait(&config.wait, &parts);
        let since = Time::now();
        let claimed = config.locks.claim(&config.meter, &key, wait).await;
        let waited = Time::now().since(since);
        let tell = |what| observe::keyed_request(&config.meter, what);
        let guard: LockGuard = match claimed {
            Ok(Claimed::Lock(guard)) => guard,
            Ok(Claimed::Record(stored)) => {
                return match replay(stored, fingerprint, protocol.is_grpc()) {
                    Ok(response) => {
                        tell(Repetition::Replayed);
                        Ok(response.map(IdempotencyBody::collected))
                    }
                    Err(reason) => {
                        tell(reason.repetition());
                        reason.trace(&key);
                        let kind: RejectionKind = reason.into();
                        reject(kind.into(), Some(key), waited)
                    }
                };
            }
            Ok(Claimed::Damaged(damage)) => {
                tell(Repetition::Failed);
                observe::unreadable(&key, &damage);
                return reject(RejectionKind::Unreadable.into(), Some(key), waited);
            }
            Err(error) => {
                tell(match error.kind() {
                    ErrorKind::Held | ErrorKind::TimedOut => Repetition::InProgress,
                    _ => Repetition::Failed,
                });
                return reject(error.into(), Some(key), waited);
            }
        };
        tell(Repetition::First);
        // What runs under a lock ends before that does. All else goes on without its client.
        let is_detached = !has_lease(&parts.extensions);
        insert_secondary_lease(guard.lease().clone(), &mut parts.extensions);
        let request = Request::from_parts(parts, IdempotencyBody::collected(body));
        let run = Run {
            config,
            guard,
            fingerprint,
            protocol,
            waited,
            is_detached,
        };
        let lease = run.guard.lease().clone();
        // Boxed: on its way into its task, a future is copied several times.
        let run = observe::in_span(&lease, Box::pin(run.run(service, request)));
        match is_detached {
            true => DetachFuture::spawn(run).await,
            false => run.await,
        }
    }
}

/// Reads the request's body, and its key from the head or the body. The key may be missing where it
/// is not required.
async fn read_key_and_body<B>(
    config: &Config,
    parts: &Parts,
    body: B,
) -> Result<(Option<LockKey>, Collected), Reason>
where
    B: Body<Data = Bytes>,
{
    // A request whose head has no valid key where one must be is rejected before its body is read.
    let refused = |error| refusal(&config.meter, error);
    let in_head = config.key_in_head(parts).map_err(refused)?;
    if in_head.is_none() && config.is_key_in_head() {
        return Err(RejectionKind::MissingKey.into());
    }
    let body = match read_request(body, config.max_request_body).await {
        Ok(body) => body,
        Err(RequestError::TooLarge) => return Err(RejectionKind::TooLarge.into()),
        Err(RequestError::Incomplete) => return Err(RejectionKind::Incomplete.into()),
    };
    if in_head.is_some() {
        return Ok((in_head, body));
    }
    match config.key_in_body(parts, &body.data) {
        Ok(None) if config.require_key => Err(RejectionKind::MissingKey.into()),
        Ok(key) => Ok((key, body)),
        Err(error) => Err(refused(error)),
    }
}

/// Returns the reason for which a request is refused, if its key or scope could not be made.
fn refusal(meter: &Meter, error: Error) -> Reason {
    if error.kind() == ErrorKind::Config {
        observe::misconfigured(meter, Mistake::NoKey, &error);
    }
    error.into()
}
