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
    /// `None` when it has ended.
    connection: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    nested: NestedWaker,
}

impl ConnectionDriver {
    pub(super) fn new(connection: impl Future<Output = ()> + Send + 'static) -> Self {
        Self {
            connection: Some(Box::pin(connection)),
            nested: NestedWaker::new(),
        }
    }

    /// Moves bytes until the first reply is there. `None`: the connection was closed.
    pub(super) async fn next_reply<R: Future>(
        &mut self,
        replies: &mut FuturesOrdered<R>,
    ) -> Option<R::Output> {
        let Self { connection, nested } = self;
        std::future::poll_fn(|cx| {
            // A task that has got a reply calls this again before it sleeps.
            nested.poll(cx, |cx| match replies.poll_next_unpin(cx) {
                Poll::Ready(Some(reply)) => Poll::Ready(Some(reply)),
                _ => match connection {
                    Some(moving) => moving.as_mut().poll(cx).map(|()| {
                        *connection = None;
                        None
                    }),
                    None => Poll::Ready(None),
                },
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

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    #[tokio::test]
    async fn a_connection_that_has_ended_says_so_each_time() {
        let ended = async {
            tokio::task::yield_now().await;
        };
        let mut driver = ConnectionDriver::new(ended);
        for _ in 0..2 {
            assert_eq!(driver.run_until(pending::<()>()).await, None);
        }
        assert_eq!(driver.run_until(ready(7)).await, Some(7));
    }
}
