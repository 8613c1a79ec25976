//! [`ResponseFuture`]: one request on its way through the middleware.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{Request, Response};
use http_body::Body;
use pin_project_lite::pin_project;
use tower::{BoxError, Service};

use super::body::ResponseBody;
use super::config::{Config, OnUnavailable, Unlocked};
use super::find_key::{FindingKey, NoKey};
use super::finish::{Finish, finish};
use super::held_lock::{BoxFuture, HeldLock};
use crate::clock::Time;
use crate::error::{Error, ErrorKind};
#[cfg(feature = "axum")]
use crate::http::RejectionKind;
use crate::http::{Content, Protocol, RejectedBy, find_lease, insert_lease};
use crate::key::{KeyResult, LockKey};
use crate::manager::LockGuard;

pin_project! {
    /// The response of a [`DistributedLock`](super::DistributedLock).
    ///
    /// Dropped before it is ready, it drops the future of the service inside, and then the lock or
    /// its place among the waiters. [`DetachLayer`](crate::DetachLayer) lets a request run to its
    /// end all the same.
    pub struct ResponseFuture<S, B, R>
    where
        S: Service<Request<B>>,
    {
        config: Arc<Config>,
        protocol: Protocol,
        wait: Waited,
        #[pin]
        state: State<S, B, S::Future, R>,
    }
}

/// What a rejection tells of the lock.
struct Waited {
    key: Option<LockKey>,
    since: Time,
    /// How long it took until the lock was acquired or not.
    time: Duration,
}

impl Waited {
    fn on(key: Option<LockKey>) -> Self {
        Self {
            key,
            since: Time::now(),
            time: Duration::ZERO,
        }
    }
}

// Acquiring ─► Locked ─► Done; with `release_before_response`: ─► Releasing ─► Done
// Acquiring ─► Unlocked ─► Done
// Acquiring, Locked, Releasing ─► Rejected ─► Done
// Before these, where a future finds the key: Finding ─► Acquiring, Unlocked, Rejected, Done
pin_project! {
    #[project = StateProj]
    enum State<S, B, F, R> {
        Finding {
            finding: FindingKey,
            call: Option<(S, Request<B>)>,
        },
        Acquiring {
            acquiring: BoxFuture<Result<LockGuard, Error>>,
            call: Option<(S, Request<B>)>,
        },
        // The lock is taken out when the service has returned. Fields are dropped in this order:
        // the work ends before its lock does.
        Locked { #[pin] inner: F, lock: Option<HeldLock> },
        Unlocked { #[pin] inner: F },
        // The response is kept back until Redis has released the lock.
        Releasing { is_lost: BoxFuture<bool>, response: Option<Response<ResponseBody<R>>> },
        Rejected { error: Error },
        Done,
    }
}

impl<S, B, R> ResponseFuture<S, B, R>
where
    S: Service<Request<B>>,
{
    /// A request whose key is still to be found.
    pub(super) fn finding(
        config: Arc<Config>,
        protocol: Protocol,
        finding: FindingKey,
        service: S,
        request: Request<B>,
    ) -> Self {
        Self {
            config,
            protocol,
            wait: Waited::on(None),
            state: State::Finding {
                finding,
                call: Some((service, request)),
            },
        }
    }

    /// A request whose key was found, or not.
    pub(super) fn found(
        config: Arc<Config>,
        protocol: Protocol,
        found: KeyResult,
        service: S,
        parts: Parts,
        body: B,
    ) -> Self {
        let (wait, state) = begin(&config, protocol, found, service, parts, body);
        Self {
            config,
            protocol,
            wait,
            state,
        }
    }
}

impl<S, B, ResB> Future for ResponseFuture<S, B, ResB>
where
    S: Service<Request<B>, Response = Response<ResB>>,
    ResB: Body<Data = Bytes>,
    ResB::Error: Into<BoxError>,
{
    type Output = Result<Response<ResponseBody<ResB>>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let (config, protocol) = (this.config, *this.protocol);
        loop {
            let next = match this.state.as_mut().project() {
                StateProj::Finding { finding, call } => {
                    let found = match ready!(finding.poll(cx)) {
                        Ok(key) => Ok(key),
                        Err(NoKey::Error(error)) => Err(error),
                        #[cfg(feature = "axum")]
                        Err(NoKey::Rejected(mut response)) => {
                            let (kind, by) = (RejectionKind::InvalidKey, RejectedBy::Lock);
                            let rejection = protocol.reject(kind.into(), by, None, Duration::ZERO);
                            response.extensions_mut().insert(rejection);
                            this.state.set(State::Done);
                            let fixed = |data| ResponseBody::unlocked(Content::fixed(data));
                            return Poll::Ready(Ok(response.map(fixed)));
                        }
                    };
                    let (service, request) = call.take().expect("found once");
                    let (parts, body) = request.into_parts();
                    let (waited, next) = begin(config, protocol, found, service, parts, body);
                    *this.wait = waited;
                    next
                }
                StateProj::Acquiring { acquiring, call } => {
                    let acquired = ready!(acquiring.as_mut().poll(cx));
                    this.wait.time = Time::now().since(this.wait.since);
                    let (service, request) = call.take().expect("acquired once");
                    call_service(config, acquired, service, request)
                }
                StateProj::Locked { inner, lock } => {
                    let held = lock.as_mut().expect("taken when the service has returned");
                    let returned = ready!(poll_under_lock(inner, held, cx));
                    let lock = lock.take().expect("polled above");
                    // Drops the service's future: the work ends before its lock does.
                    this.state.set(State::Done);
                    match returned {
                        None => State::lost(),
                        Some(Err(error)) => return Poll::Ready(Err(error)),
                        Some(Ok(response)) => match finish(config, protocol, lock, response, cx) {
                            Finish::Respond(response) => return Poll::Ready(Ok(response)),
                            Finish::Release { is_lost, response } => State::Releasing {
                                is_lost,
                                response: Some(response),
                            },
                            Finish::Lost => State::lost(),
                        },
                    }
                }
                StateProj::Unlocked { inner } => {
                    let returned = ready!(inner.poll(cx));
                    this.state.set(State::Done);
                    let pass = |body| ResponseBody::unlocked(Content::Passthrough { body });
                    return Poll::Ready(returned.map(|response| response.map(pass)));
                }
                StateProj::Releasing { is_lost, response } => {
                    match ready!(is_lost.as_mut().poll(cx)) {
                        true => State::lost(),
                        false => {
                            let response = response.take().expect("released once");
                            this.state.set(State::Done);
                            return Poll::Ready(Ok(response));
                        }
                    }
                }
                StateProj::Rejected { error } => {
                    let (reason, key) = (error.clone().into(), this.wait.key.take());
                    let by = RejectedBy::Lock;
                    let rejection = protocol.reject(reason, by, key, this.wait.time);
                    let response = config.respond(rejection);
                    this.state.set(State::Done);
                    let fixed = |data| ResponseBody::unlocked(Content::fixed(data));
                    return Poll::Ready(Ok(response.map(fixed)));
                }
                StateProj::Done => panic!("a ResponseFuture was polled after it was ready"),
            };
            this.state.set(next);
        }
    }
}

impl<S, B, F, R> State<S, B, F, R> {
    fn lost() -> Self {
        let error = Error::of(ErrorKind::Lost);
        Self::Rejected { error }
    }
}

/// Begins with a request whose key was found, or not.
fn begin<S, B, R>(
    config: &Arc<Config>,
    protocol: Protocol,
    found: KeyResult,
    mut service: S,
    parts: Parts,
    body: B,
) -> (Waited, State<S, B, S::Future, R>)
where
    S: Service<Request<B>>,
{
    let key = match config.key(found) {
        Ok(key) => key,
        Err(error) => return (Waited::on(None), State::Rejected { error }),
    };
    // A layer that is applied twice takes a lock once.
    let outer = key
        .as_ref()
        .and_then(|key| find_lease(&parts.extensions, config.locks.id(), key));
    let mode = config.mode(&parts);
    match (key, outer) {
        (Some(key), Some(lease)) if !lease.is_held() => (Waited::on(Some(key)), State::lost()),
        (Some(key), Some(lease)) if lease.mode().is_shared() && !mode.is_shared() => {
            let error = Error::new(
                ErrorKind::Config,
                "an outer layer shares the lock of this request, and an inner one wants it alone: shared locks \
                 are not upgraded",
            );
            (Waited::on(Some(key)), State::Rejected { error })
        }
        (Some(key), None) => {
            let wait = protocol.wait(&config.wait, &parts);
            let waited = Waited::on(Some(key.clone()));
            let config = Arc::clone(config);
            let state = State::Acquiring {
                acquiring: Box::pin(async move { config.locks.take(key, wait, mode).await }),
                call: Some((service, Request::from_parts(parts, body))),
            };
            (waited, state)
        }
        (None, _) | (Some(_), Some(_)) => {
            let inner = service.call(Request::from_parts(parts, body));
            (Waited::on(None), State::Unlocked { inner })
        }
    }
}

/// Calls the service under the lock, or without one where the settings allow it.
fn call_service<S, B, R>(
    config: &Config,
    acquired: Result<LockGuard, Error>,
    mut service: S,
    mut request: Request<B>,
) -> State<S, B, S::Future, R>
where
    S: Service<Request<B>>,
{
    match acquired {
        // Time may have passed since it was granted.
        Ok(guard) if !guard.lease().is_held() => State::lost(),
        Ok(guard) => {
            insert_lease(guard.lease().clone(), request.extensions_mut());
            let lock = HeldLock::new(guard, config.on_lost);
            State::Locked {
                inner: lock.enter(|| service.call(request)),
                lock: Some(lock),
            }
        }
        Err(error)
            if error.kind() == ErrorKind::Unavailable
                && config.on_unavailable == OnUnavailable::Proceed =>
        {
            request.extensions_mut().insert(Unlocked);
            State::Unlocked {
                inner: service.call(request),
            }
        }
        Err(error) => State::Rejected { error },
    }
}

/// Polls the service unless the lock is lost. Returns `None` if it is, before or while the service
/// is waited for.
fn poll_under_lock<F: Future>(
    inner: Pin<&mut F>,
    lock: &mut HeldLock,
    cx: &mut Context<'_>,
) -> Poll<Option<F::Output>> {
    if lock.is_lost() {
        return Poll::Ready(None);
    }
    match lock.enter(|| inner.poll(cx)) {
        Poll::Ready(returned) => Poll::Ready(Some(returned)),
        Poll::Pending => lock.poll_lost(cx).map(|()| None),
    }
}

impl<S, B, R> fmt::Debug for ResponseFuture<S, B, R>
where
    S: Service<Request<B>>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
