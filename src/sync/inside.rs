//! [`Inside`]: futures that wake each other, in one task.

use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use super::primitives::{AtomicU8, AtomicWaker, Ordering};

/// Polls several futures as if they were one. When one wakes another, all are polled once more: the task is not woken
/// for it.
pub(crate) struct Inside {
    bell: Arc<Bell>,
    waker: Waker,
}

/// Wakes the task if it sleeps, and has it look once more if it runs.
#[derive(Default)]
struct Bell {
    task: AtomicWaker,
    state: AtomicU8,
}

/// A task that has done much is told by tokio to pause, by a wake-up: looking on and on would be no pause.
const MAX_ROUNDS: usize = 4;

const ASLEEP: u8 = 0;
/// A bit: a round is on.
const RUNNING: u8 = 1;
/// A bit: something was woken since the round began. Without a round, it says nothing.
const WOKEN: u8 = 2;

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Written even if it was woken already: so the task sees what this one wakes it for.
        let before = self.state.fetch_or(WOKEN, Ordering::AcqRel);
        if before & RUNNING == 0 {
            self.task.wake();
        }
    }
}

impl Inside {
    pub(crate) fn new() -> Self {
        let bell = Arc::new(Bell::default());
        Self {
            waker: Waker::from(Arc::clone(&bell)),
            bell,
        }
    }

    /// Calls `poll` until it is ready, or nothing was woken by it meanwhile. Once it was ready, the task has to come
    /// here again before it sleeps.
    pub(crate) fn poll<T>(
        &self,
        cx: &Context<'_>,
        mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        self.bell.task.register(cx.waker());
        for _ in 0..MAX_ROUNDS {
            self.bell.state.store(RUNNING, Ordering::Release);
            let polled = poll(&mut Context::from_waker(&self.waker));
            let rest = self.bell.state.swap(ASLEEP, Ordering::AcqRel);
            if polled.is_ready() || rest == RUNNING {
                return polled;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}
