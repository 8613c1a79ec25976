//! [`ConnectionDriver`]: moves the bytes of a connection, in the task that uses it.

use std::pin::Pin;
use std::task::Poll;

use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;

use crate::sync::NestedWaker;

/// Moves the bytes of a connection. It ends when the connection does.
///
/// In a task of its own, it would cost every command two more changes of task. In one task with
/// what waits for the replies, each wakes the other, and so its own task, while that runs: the
/// runtime would take that for work to be done on another thread. [`NestedWaker`] keeps such
/// wake-ups to itself.
pub(super) struct ConnectionDriver {
    connection: Pin<Box<dyn Future<Output = ()> + Send>>,
    nested: NestedWaker,
}

impl ConnectionDriver {
    pub(super) fn new(connection: impl Future<Output = ()> + Send + 'static) -> Self {
        Self {
            connection: Box::pin(connection),
            nested: NestedWaker::new(),
        }
    }

    /// Moves bytes until the first of the replies is there. `None`: the connection was closed.
    pub(super) async fn next_reply<R: Future>(
        &mut self,
        replies: &mut FuturesOrdered<R>,
    ) -> Option<R::Output> {
        std::future::poll_fn(|cx| {
            // A task that gets a reply asks for the next one before it sleeps.
            self.nested
                .poll(cx, |cx| match replies.poll_next_unpin(cx) {
                    Poll::Ready(Some(reply)) => Poll::Ready(Some(reply)),
                    _ => self.connection.as_mut().poll(cx).map(|()| None),
                })
        })
        .await
    }

    /// Moves bytes until something is done that needs the connection, or the connection is closed.
    pub(super) async fn run_until<T>(&mut self, done: impl Future<Output = T>) -> Option<T> {
        let mut replies = FuturesOrdered::new();
        replies.push_back(done);
        self.next_reply(&mut replies).await
    }
}
