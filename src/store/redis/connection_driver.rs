//! [`ConnectionDriver`]: moves the bytes of a connection, in the task that uses it.

use std::pin::Pin;
use std::task::Poll;

use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;

use crate::sync::NestedWaker;

/// Moves the bytes of a connection. It ends when the connection does.
///
/// In a task of its own, it would cost every command two more changes of task. In one task, the
/// connection and the futures that wait for replies wake each other, and so their own task while it
/// runs: the runtime would take that for work for another thread. [`NestedWaker`] keeps such
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

    /// Moves bytes until the first reply is there. `None`: the connection was closed.
    pub(super) async fn next_reply<R: Future>(
        &mut self,
        replies: &mut FuturesOrdered<R>,
    ) -> Option<R::Output> {
        std::future::poll_fn(|cx| {
            // A task that has got a reply calls this again before it sleeps.
            self.nested
                .poll(cx, |cx| match replies.poll_next_unpin(cx) {
                    Poll::Ready(Some(reply)) => Poll::Ready(Some(reply)),
                    _ => self.connection.as_mut().poll(cx).map(|()| None),
                })
        })
        .await
    }

    /// Moves bytes until `done` is ready, which needs the connection. `None`: the connection was
    /// closed.
    pub(super) async fn run_until<T>(&mut self, done: impl Future<Output = T>) -> Option<T> {
        let mut replies = FuturesOrdered::new();
        replies.push_back(done);
        self.next_reply(&mut replies).await
    }
}
