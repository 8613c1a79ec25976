//! [`Events`]: snapshots as server-sent events, once a second.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep};

use super::Shared;

const EVERY: Duration = Duration::from_secs(1);
/// Then the browser connects again: authentication outside is looked at again, and a graceful
/// shutdown need not wait for longer.
const LENGTH: Duration = Duration::from_secs(60);
/// How long a browser waits until it connects again, in milliseconds.
const RETRY: &str = "retry: 1000\n";

/// A stream of events to one reader. A snapshot is taken when the connection can take it, so
/// nothing piles up for a slow reader.
pub(super) struct Events {
    shared: Arc<Shared>,
    /// `None` before the first event, which comes at once.
    next: Option<Pin<Box<Sleep>>>,
    ends: Instant,
    is_over: bool,
    _place: OwnedSemaphorePermit,
}

impl Events {
    /// Begins a stream. Returns `None` if there are too many.
    pub(super) fn begin(shared: &Arc<Shared>) -> Option<Self> {
        let place = Arc::clone(&shared.streams).try_acquire_owned().ok()?;
        Some(Self {
            shared: Arc::clone(shared),
            next: None,
            ends: Instant::now() + LENGTH,
            is_over: false,
            _place: place,
        })
    }

    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        let retry = match &mut self.next {
            None => {
                self.next = Some(Box::pin(tokio::time::sleep(EVERY)));
                RETRY
            }
            Some(next) => {
                ready!(next.as_mut().poll(cx));
                next.as_mut().reset(Instant::now() + EVERY);
                ""
            }
        };
        // A reader that is still there would keep a server from shutting down.
        let is_draining = self.shared.locks.stats().is_draining;
        self.is_over = is_draining || Instant::now() >= self.ends;
        // JSON has no line breaks: the event is one line.
        let snapshot = self.shared.snapshot();
        let event = [retry.as_bytes(), b"data: ", &snapshot, b"\n\n"].concat();
        Poll::Ready(Some(event.into()))
    }
}
