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

use super::body::{ResponseBody, take};
use super::held::{BoxFuture, Held};
use super::layer::{Config, Hold, OnUnavailable, Unlocked};
use crate::error::{Error, ErrorKind};
use crate::http::{Content, Protocol, Rejection, RejectionKind, hold};
use crate::key::LockKey;
use crate::manager::LockGuard;

pin_project! {
    /// The response of a [`DistributedLock`](crate::lock::DistributedLock).
    ///
    /// Dropped before it is ready, it takes the service's future with it, and the lock is released or not waited for any
    /// more. [`DetachLayer`](crate::DetachLayer) lets a request run to its end all the same.
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

pin_project! {
    #[project = StateProj]
    enum State<S, B, F, R> {
        Locking { taking: BoxFuture<Result<LockGuard, Error>>, call: Option<(S, Request<B>)> },
        // Fields are dropped in order: the work ends before its lock does.
        Running { #[pin] inner: F, held: Option<Held> },
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

    pub(crate) fn rejected(config: Arc<Config>, protocol: Protocol, kind: RejectionKind) -> Self {
        let rejection = protocol.reject(kind);
        Self::new(config, protocol, State::Rejected { rejection })
    }

    pub(crate) fn unlocked(config: Arc<Config>, protocol: Protocol, inner: S::Future) -> Self {
        Self::new(config, protocol, State::Running { inner, held: None })
    }

    pub(crate) fn locking(
        config: Arc<Config>,
        protocol: Protocol,
        key: LockKey,
        wait: Option<Duration>,
        service: S,
        request: Request<B>,
    ) -> Self {
        let taking = Arc::clone(&config);
        let state = State::Locking {
            taking: Box::pin(async move { taking.locks.take(key, wait).await }),
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
                StateProj::Locking { taking, call } => {
                    let taken = ready!(taking.as_mut().poll(cx));
                    let (mut service, mut request) = call.take().expect("taken once");
                    let held = match taken {
                        // Time has passed since it was granted.
                        Ok(guard) if !guard.lease().is_held() => {
                            Err(protocol.reject(RejectionKind::Lost))
                        }
                        Ok(guard) => {
                            hold(guard.lease().clone(), request.extensions_mut());
                            Ok(Some(Held::new(guard, config.on_lost)))
                        }
                        Err(error)
                            if error.kind() == ErrorKind::Unavailable
                                && config.on_unavailable == OnUnavailable::Proceed =>
                        {
                            request.extensions_mut().insert(Unlocked);
                            Ok(None)
                        }
                        Err(error) => Err(protocol.reject(error.kind().into())),
                    };
                    match held {
                        Err(rejection) => State::Rejected { rejection },
                        Ok(Some(held)) => State::Running {
                            inner: held.enter(|| service.call(request)),
                            held: Some(held),
                        },
                        Ok(None) => State::Running {
                            inner: service.call(request),
                            held: None,
                        },
                    }
                }
                StateProj::Running { inner, held: None } => {
                    let response = ready!(inner.poll(cx));
                    this.state.set(State::Done);
                    return Poll::Ready(response.map(|response| {
                        response.map(|body| ResponseBody::unlocked(Content::Through { body }))
                    }));
                }
                StateProj::Running {
                    inner,
                    held: Some(lock),
                } if !lock.is_lost() => match lock.enter(|| inner.poll(cx)) {
                    Poll::Pending => {
                        ready!(lock.poll_lost(cx));
                        State::Rejected {
                            rejection: protocol.reject(RejectionKind::Lost),
                        }
                    }
                    Poll::Ready(response) => {
                        let StateProj::Running { held, .. } = this.state.as_mut().project() else {
                            unreachable!("matched above");
                        };
                        let held = held.take().expect("matched above");
                        this.state.set(State::Done);
                        let response = match response {
                            Ok(response) => response,
                            Err(error) => return Poll::Ready(Err(error)),
                        };
                        let begun = match held.is_lost() {
                            true => None,
                            false => Some(begin(config, protocol, response, &held, cx)),
                        };
                        // What ran past its lease, as it blocked its thread, is no success.
                        match begun.filter(|_| !held.is_lost()) {
                            None => State::Rejected {
                                rejection: protocol.reject(RejectionKind::Lost),
                            },
                            Some(Begun::Over(response)) if config.release_before_response => {
                                State::Releasing {
                                    is_lost: held.release(),
                                    response: Some(response.map(ResponseBody::unlocked)),
                                }
                            }
                            Some(Begun::Over(response)) => {
                                drop(held);
                                return Poll::Ready(Ok(response.map(ResponseBody::unlocked)));
                            }
                            Some(Begun::Stream(response, last_byte)) => {
                                let release_first = config.release_before_response;
                                return Poll::Ready(Ok(response.map(|content| {
                                    ResponseBody::locked(content, held, release_first, last_byte)
                                })));
                            }
                        }
                    }
                },
                StateProj::Running { .. } => State::Rejected {
                    rejection: protocol.reject(RejectionKind::Lost),
                },
                StateProj::Releasing { is_lost, response } => {
                    if ready!(is_lost.as_mut().poll(cx)) {
                        State::Rejected {
                            rejection: protocol.reject(RejectionKind::Lost),
                        }
                    } else {
                        let response = response.take().expect("released once");
                        this.state.set(State::Done);
                        return Poll::Ready(Ok(response));
                    }
                }
                StateProj::Rejected { rejection } => {
                    let response = config.respond(*rejection);
                    this.state.set(State::Done);
                    return Poll::Ready(Ok(
                        response.map(|problem| ResponseBody::unlocked(Content::fixed(problem)))
                    ));
                }
                StateProj::Done => panic!("a ResponseFuture was polled after it was ready"),
            };
            this.state.set(next);
        }
    }
}

/// A response of the service inside.
enum Begun<B> {
    /// The lock is not needed for what is left of it.
    Over(Response<Content<B>>),
    /// It is, until its end, or until the client has so many bytes.
    Stream(Response<Content<B>>, Option<u64>),
}

fn begin<B>(
    config: &Config,
    protocol: Protocol,
    response: Response<B>,
    held: &Held,
    cx: &mut Context<'_>,
) -> Begun<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let (head, body) = response.into_parts();
    let last_byte = protocol.last_byte(&head);
    let (content, is_over) = if config.hold == Hold::Head {
        (Content::Through { body }, true)
    } else if body.is_end_stream() {
        (Content::fixed(Bytes::new()), true)
    } else if last_byte == Some(0) || !protocol.has_body(&head) {
        // Dropped: the work ends before its lock does.
        let length = body.size_hint().exact();
        (Content::Unsent { length }, true)
    } else if config.release_before_response {
        take(body, last_byte, held, cx)
    } else {
        (Content::Through { body }, false)
    };
    let response = Response::from_parts(head, content);
    match is_over {
        true => Begun::Over(response),
        false => Begun::Stream(response, last_byte),
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
