//! [`NestedWaker`]: futures that wake each other, in one task.

use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use super::primitives::{AtomicU8, AtomicWaker, Ordering};

/// Polls several futures as if they were one. When one wakes another, all are polled once more,
/// without waking the task for it.
pub(crate) struct NestedWaker {
    inner: Arc<Inner>,
    waker: Waker,
}

/// Wakes the task if it sleeps, and makes it poll once more if it runs.
#[derive(Default)]
struct Inner {
    task: AtomicWaker,
    state: AtomicU8,
}

/// Tokio makes a task that has done much pause: its futures are pending, and wake it at once. To go
/// on polling would defeat that.
const MAX_ROUNDS: usize = 4;

const ASLEEP: u8 = 0;
/// A bit: a round of polls is going on.
const RUNNING: u8 = 1;
/// A bit: a future was woken since the round began. Without a round, it means nothing.
const WOKEN: u8 = 2;

impl Wake for Inner {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Written even if the bit is set: the task then sees all that was done before this wake-up.
        let before = self.state.fetch_or(WOKEN, Ordering::AcqRel);
        if before & RUNNING == 0 {
            self.task.wake();
        }
    }
}

impl NestedWaker {
    pub(crate) fn new() -> Self {
        let inner = Arc::new(Inner::default());
        Self {
            waker: Waker::from(Arc::clone(&inner)),
            inner,
        }
    }

    /// Calls `poll` until it is ready, or nothing was woken meanwhile. After a result that is
    /// ready, the task has to call this again before it sleeps.
    pub(crate) fn poll<T>(
        &self,
        cx: &Context<'_>,
        mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        self.inner.task.register(cx.waker());
        for _ in 0..MAX_ROUNDS {
            self.inner.state.store(RUNNING, Ordering::Release);
            let polled = poll(&mut Context::from_waker(&self.waker));
            let rest = self.inner.state.swap(ASLEEP, Ordering::AcqRel);
            if polled.is_ready() || rest == RUNNING {
                return polled;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}
