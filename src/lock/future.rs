//! [`ResponseFuture`]: one request on its way through the middleware.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use pin_project_lite::pin_project;
use tower::{BoxError, Service};

use super::body::ResponseBody;
use super::config::{Config, OnUnavailable, Unlocked};
use super::finish::{Finish, finish};
use super::held_lock::{BoxFuture, HeldLock};
use crate::error::{Error, ErrorKind};
use crate::http::{Content, Protocol, RejectedBy, Rejection, RejectionKind, insert_lease};
use crate::key::LockKey;
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
        #[pin]
        state: State<S, B, S::Future, R>,
    }
}

// Acquiring ─► Locked ─► Done; with `release_before_response`: ─► Releasing ─► Done
// Acquiring ─► Unlocked ─► Done
// Acquiring, Locked, Releasing ─► Rejected ─► Done
pin_project! {
    #[project = StateProj]
    enum State<S, B, F, R> {
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
        Rejected { rejection: Rejection },
        Done,
    }
}

impl<S, B, R> ResponseFuture<S, B, R>
where
    S: Service<Request<B>>,
{
    fn new(config: Arc<Config>, protocol: Protocol, state: State<S, B, S::Future, R>) -> Self {
        Self {
            config,
            protocol,
            state,
        }
    }

    pub(super) fn rejected(config: Arc<Config>, protocol: Protocol, kind: RejectionKind) -> Self {
        Self::new(config, protocol, State::rejected(protocol, kind))
    }

    pub(super) fn unlocked(config: Arc<Config>, protocol: Protocol, inner: S::Future) -> Self {
        Self::new(config, protocol, State::Unlocked { inner })
    }

    pub(super) fn acquiring(
        config: Arc<Config>,
        protocol: Protocol,
        key: LockKey,
        wait: Option<Duration>,
        service: S,
        request: Request<B>,
    ) -> Self {
        let shared = Arc::clone(&config);
        let state = State::Acquiring {
            acquiring: Box::pin(async move { shared.locks.take(&shared.meter, key, wait).await }),
            call: Some((service, request)),
        };
        Self::new(config, protocol, state)
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
                StateProj::Acquiring { acquiring, call } => {
                    let acquired = ready!(acquiring.as_mut().poll(cx));
                    let (service, request) = call.take().expect("acquired once");
                    call_service(config, protocol, acquired, service, request)
                }
                StateProj::Locked { inner, lock } => {
                    let held = lock.as_mut().expect("taken when the service has returned");
                    let returned = ready!(poll_under_lock(inner, held, cx));
                    let lock = lock.take().expect("polled above");
                    // Drops the service's future: the work ends before its lock does.
                    this.state.set(State::Done);
                    match returned {
                        None => State::rejected(protocol, RejectionKind::Lost),
                        Some(Err(error)) => return Poll::Ready(Err(error)),
                        Some(Ok(response)) => match finish(config, protocol, lock, response, cx) {
                            Finish::Respond(response) => return Poll::Ready(Ok(response)),
                            Finish::Release { is_lost, response } => State::Releasing {
                                is_lost,
                                response: Some(response),
                            },
                            Finish::Lost => State::rejected(protocol, RejectionKind::Lost),
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
                        true => State::rejected(protocol, RejectionKind::Lost),
                        false => {
                            let response = response.take().expect("released once");
                            this.state.set(State::Done);
                            return Poll::Ready(Ok(response));
                        }
                    }
                }
                StateProj::Rejected { rejection } => {
                    let response = config.respond(*rejection);
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
    fn rejected(protocol: Protocol, kind: RejectionKind) -> Self {
        let rejection = protocol.reject(kind, RejectedBy::Lock);
        Self::Rejected { rejection }
    }
}

/// Calls the service under the lock, or without one where the settings allow it.
fn call_service<S, B, R>(
    config: &Config,
    protocol: Protocol,
    acquired: Result<LockGuard, Error>,
    mut service: S,
    mut request: Request<B>,
) -> State<S, B, S::Future, R>
where
    S: Service<Request<B>>,
{
    match acquired {
        // Time may have passed since it was granted.
        Ok(guard) if !guard.lease().is_held() => State::rejected(protocol, RejectionKind::Lost),
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
        Err(error) => State::rejected(protocol, error.kind().into()),
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
