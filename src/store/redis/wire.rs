//! [`Wire`]: runs a connection inside of the task that uses it.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use futures_util::task::AtomicWaker;

/// What moves the bytes of a connection. It ends when the connection does.
///
/// In a task of its own, it would cost every command two more changes of task. In one task with what waits for the
/// replies, each wakes the other, and so its own task, while that runs: the runtime would take that for work to be done
/// on another thread. Hence the [`Inside`] waker, which keeps such wake-ups inside.
pub(super) struct Wire {
    bytes: Pin<Box<dyn Future<Output = ()> + Send>>,
    inside: Arc<Inside>,
    waker: Waker,
}

/// Wakes the task if it sleeps, and has it look once more if it runs.
#[derive(Default)]
struct Inside {
    task: AtomicWaker,
    state: AtomicU8,
}

/// A task that has done much is told by tokio to pause, by a wake-up: looking on and on would be no pause.
const MAX_ROUNDS: usize = 4;

const ASLEEP: u8 = 0;
const RUNNING: u8 = 1;
const WOKEN: u8 = 2;

impl Wake for Inside {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let woken =
            self.state
                .compare_exchange(RUNNING, WOKEN, Ordering::AcqRel, Ordering::Acquire);
        if woken == Err(ASLEEP) {
            self.task.wake();
        }
    }
}

impl Wire {
    pub(super) fn new(bytes: impl Future<Output = ()> + Send + 'static) -> Self {
        let inside = Arc::new(Inside::default());
        Self {
            bytes: Box::pin(bytes),
            waker: Waker::from(Arc::clone(&inside)),
            inside,
        }
    }

    /// Moves bytes until the first of the replies is there. `None`: the connection was closed.
    pub(super) async fn next_reply<R: Future>(
        &mut self,
        replies: &mut FuturesOrdered<R>,
    ) -> Option<R::Output> {
        std::future::poll_fn(|cx| {
            self.inside.task.register(cx.waker());
            for _ in 0..MAX_ROUNDS {
                self.inside.state.store(RUNNING, Ordering::Release);
                let mut inside = Context::from_waker(&self.waker);
                let polled = match replies.poll_next_unpin(&mut inside) {
                    Poll::Ready(Some(reply)) => Poll::Ready(Some(reply)),
                    _ => self.bytes.as_mut().poll(&mut inside).map(|()| None),
                };
                let rest = self.inside.state.swap(ASLEEP, Ordering::AcqRel);
                // Whoever gets a reply asks for the next one before it sleeps.
                if polled.is_ready() || rest == RUNNING {
                    return polled;
                }
            }
            cx.waker().wake_by_ref();
            Poll::Pending
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
