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
use super::wanted::{Wanted, acquire};
use crate::clock::Time;
use crate::error::{Error, ErrorKind};
#[cfg(feature = "axum")]
use crate::http::RejectionKind;
use crate::http::{Content, Protocol, RejectedBy};
use crate::key::{KeysResult, LockKey};
use crate::manager::LockGuards;
#[cfg(feature = "axum")]
use crate::observe;

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
    /// The request's only key.
    key: Option<LockKey>,
    /// `None`: it has not had to wait yet.
    since: Option<Time>,
    /// How long it took until the lock was acquired or not.
    time: Duration,
}

impl Waited {
    fn on(key: Option<LockKey>) -> Self {
        Self {
            key,
            since: None,
            time: Duration::ZERO,
        }
    }

    fn begin(&mut self) {
        self.since.get_or_insert_with(Time::now);
    }

    fn end(&mut self) {
        if let Some(since) = self.since {
            self.time = Time::now().since(since);
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
            acquiring: BoxFuture<Result<LockGuards, Error>>,
            call: Option<(S, Request<B>)>,
            wanted: Option<Wanted>,
        },
        // The lock is taken out when the service has returned. Fields are dropped in this order:
        // the work ends before its lock does.
        Locked { #[pin] inner: F, lock: Option<HeldLock> },
        Unlocked { #[pin] inner: F },
        // The response is kept back until Redis has released the lock.
        Releasing {
            released: BoxFuture<Result<(), Error>>,
            response: Option<Response<ResponseBody<R>>>,
        },
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
        found: KeysResult,
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
                        Ok(keys) => Ok(keys),
                        Err(NoKey::Error(error)) => Err(error),
                        #[cfg(feature = "axum")]
                        Err(NoKey::Rejected(mut response)) => {
                            let (kind, by) = (RejectionKind::InvalidKey, RejectedBy::Lock);
                            let rejection = protocol.reject(kind.into(), by, None, Duration::ZERO);
                            observe::rejected(&config.meter, kind);
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
                StateProj::Acquiring {
                    acquiring,
                    call,
                    wanted,
                } => {
                    let Poll::Ready(acquired) = acquiring.as_mut().poll(cx) else {
                        this.wait.begin();
                        return Poll::Pending;
                    };
                    this.wait.end();
                    let (service, request) = call.take().expect("acquired once");
                    let wanted = wanted.take().expect("acquired once");
                    call_service(config, acquired, wanted, service, request)
                }
                StateProj::Locked { inner, lock } => {
                    let held = lock.as_mut().expect("taken when the service has returned");
                    let returned = ready!(poll_under_lock(inner, held, cx));
                    let lock = lock.take().expect("polled above");
                    // Drops the service's future: the work ends before its lock does.
                    this.state.set(State::Done);
                    match returned {
                        Err(error) => State::Rejected { error },
                        Ok(Err(error)) => return Poll::Ready(Err(error)),
                        Ok(Ok(response)) => match finish(config, protocol, lock, response, cx) {
                            Finish::Respond(response) => return Poll::Ready(Ok(response)),
                            Finish::Release { released, response } => State::Releasing {
                                released,
                                response: Some(response),
                            },
                            Finish::Lost(error) => State::Rejected { error },
                        },
                    }
                }
                StateProj::Unlocked { inner } => {
                    let returned = ready!(inner.poll(cx));
                    this.state.set(State::Done);
                    let pass = |body| ResponseBody::unlocked(Content::Passthrough { body });
                    return Poll::Ready(returned.map(|response| response.map(pass)));
                }
                StateProj::Releasing { released, response } => {
                    match ready!(released.as_mut().poll(cx)) {
                        Err(error) => State::Rejected { error },
                        Ok(()) => {
                            let response = response.take().expect("released once");
                            this.state.set(State::Done);
                            return Poll::Ready(Ok(response));
                        }
                    }
                }
                StateProj::Rejected { error } => {
                    let only = this.wait.key.take();
                    let (reason, key) = (error.clone().into(), error.key().cloned().or(only));
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

/// Begins with a request whose key was found, or not.
fn begin<S, B, R>(
    config: &Arc<Config>,
    protocol: Protocol,
    found: KeysResult,
    mut service: S,
    mut parts: Parts,
    body: B,
) -> (Waited, State<S, B, S::Future, R>)
where
    S: Service<Request<B>>,
{
    let keys = match config.keys(found) {
        Ok(keys) => keys,
        Err(error) => return (Waited::on(None), State::Rejected { error }),
    };
    let mode = config.mode(&parts);
    let Some(keys) = keys else {
        let inner = service.call(Request::from_parts(parts, body));
        return (Waited::on(None), State::Unlocked { inner });
    };
    let (wanted, missing) = match Wanted::new(keys, mode, config, &parts.extensions) {
        Ok(wanted) => wanted,
        Err(error) => return (Waited::on(None), State::Rejected { error }),
    };
    let Some(keys) = missing else {
        let state = match wanted.show(None, &mut parts.extensions) {
            Ok(()) => State::Unlocked {
                inner: service.call(Request::from_parts(parts, body)),
            },
            Err(error) => State::Rejected { error },
        };
        return (Waited::on(None), state);
    };
    let wait = protocol.wait(&config.wait, &parts);
    let waited = Waited::on(keys.one().cloned());
    let state = State::Acquiring {
        acquiring: acquire(Arc::clone(config), keys, wait, mode),
        call: Some((service, Request::from_parts(parts, body))),
        wanted: Some(wanted),
    };
    (waited, state)
}

/// Calls the service under the lock, or without one where the settings allow it.
fn call_service<S, B, R>(
    config: &Config,
    acquired: Result<LockGuards, Error>,
    wanted: Wanted,
    mut service: S,
    mut request: Request<B>,
) -> State<S, B, S::Future, R>
where
    S: Service<Request<B>>,
{
    let guards = match acquired {
        Ok(guards) => guards,
        // A process that drains refuses by itself: Redis was not asked.
        Err(error)
            if error.kind() == ErrorKind::Unavailable
                && config.on_unavailable == OnUnavailable::Proceed
                && !config.locks.is_draining() =>
        {
            request.extensions_mut().insert(Unlocked);
            let inner = service.call(request);
            return State::Unlocked { inner };
        }
        Err(error) => return State::Rejected { error },
    };
    if let Err(error) = wanted.show(Some(guards.leases()), request.extensions_mut()) {
        return State::Rejected { error };
    }
    let lock = HeldLock::new(guards, config.on_lost);
    State::Locked {
        inner: lock.enter(|| service.call(request)),
        lock: Some(lock),
    }
}

/// Polls the service unless the lock is lost. Returns the error if it is, before or while the
/// service is waited for.
fn poll_under_lock<F: Future>(
    inner: Pin<&mut F>,
    lock: &mut HeldLock,
    cx: &mut Context<'_>,
) -> Poll<Result<F::Output, Error>> {
    if let Some(lost) = lock.loss() {
        return Poll::Ready(Err(lost));
    }
    match lock.enter(|| inner.poll(cx)) {
        Poll::Ready(returned) => Poll::Ready(Ok(returned)),
        Poll::Pending => lock.poll_lost(cx).map(Err),
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
