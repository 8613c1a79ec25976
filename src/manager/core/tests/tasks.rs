//! Futures that a case polls itself, with wakers that may panic, and reports of panics that are no
//! part of the case.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Once};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::task::AtomicWaker;

thread_local! {
    /// Whether a case runs on this thread.
    static WATCHED: Cell<bool> = const { Cell::new(false) };
    /// Whether wakers and subscribers may panic: not while the runtime runs, whose timers wake,
    /// too.
    static ARMED: Cell<bool> = const { Cell::new(false) };
    static SUBSCRIBER_PANICS: Cell<bool> = const { Cell::new(false) };
    static SUBSCRIBER_PANICKED: Cell<bool> = const { Cell::new(false) };
    static PANICKED: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// The payload of a panic that is part of a case. Such a panic does not reach the panic hook.
struct Meant;

/// Watches this thread for as long as a case runs.
pub(super) struct Watch(());

impl Watch {
    pub(super) fn begin() -> Self {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| match WATCHED.get() {
                true => report(info.to_string()),
                false => before(info),
            }));
        });
        PANICKED.take();
        SUBSCRIBER_PANICS.set(false);
        WATCHED.set(true);
        ARMED.set(true);
        Self(())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        WATCHED.set(false);
        ARMED.set(false);
    }
}

pub(super) fn report(what: String) {
    PANICKED.with_borrow_mut(|panicked| panicked.get_or_insert(what).truncate(400));
}

/// Returns what went wrong out of the case's sight: a panic that was caught and is no part of it.
pub(super) fn reported() -> Option<String> {
    PANICKED.take()
}

pub(super) fn arm(is_armed: bool) {
    ARMED.set(is_armed);
}

pub(super) fn subscriber_panics(panics: bool) {
    SUBSCRIBER_PANICS.set(panics);
}

/// Runs `work`, and reports a panic: none may get out, whatever wakers and subscribers do.
pub(super) fn unwinds<T>(work: impl FnOnce() -> T) -> Option<T> {
    let result = catch_unwind(AssertUnwindSafe(work));
    result.map_err(|panic| report(message(&*panic))).ok()
}

fn message(panic: &(dyn Any + Send)) -> String {
    match panic.is::<Meant>() {
        true => "the panic of a waker or a subscriber got out".to_owned(),
        false => "a panic got out".to_owned(),
    }
}

pub(super) struct Task<T> {
    future: Pin<Box<dyn Future<Output = T>>>,
    flag: Arc<TaskWaker>,
    waker: Waker,
}

struct TaskWaker {
    is_woken: AtomicBool,
    is_touchy: bool,
    all: Arc<AtomicWaker>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.is_woken.store(true, Ordering::Relaxed);
        self.all.wake();
        if self.is_touchy && ARMED.get() {
            resume_unwind(Box::new(Meant));
        }
    }
}

/// What became of a task when it was polled.
pub(super) enum Polled<T> {
    Pending,
    Done(T),
    /// Its own subscriber panicked in it.
    Died,
}

impl<T> Task<T> {
    pub(super) fn new(
        future: impl Future<Output = T> + 'static,
        is_touchy: bool,
        all: &Arc<AtomicWaker>,
    ) -> Self {
        let flag = Arc::new(TaskWaker {
            is_woken: AtomicBool::new(true),
            is_touchy,
            all: Arc::clone(all),
        });
        Self {
            future: Box::pin(future),
            waker: Waker::from(Arc::clone(&flag)),
            flag,
        }
    }

    pub(super) fn is_woken(&self) -> bool {
        self.flag.is_woken.load(Ordering::Relaxed)
    }

    pub(super) fn poll(&mut self) -> Polled<T> {
        self.flag.is_woken.store(false, Ordering::Relaxed);
        SUBSCRIBER_PANICKED.set(false);
        let mut context = Context::from_waker(&self.waker);
        let future = self.future.as_mut();
        match catch_unwind(AssertUnwindSafe(|| future.poll(&mut context))) {
            Ok(Poll::Pending) => Polled::Pending,
            Ok(Poll::Ready(result)) => Polled::Done(result),
            Err(panic) => {
                if !(panic.is::<Meant>() && SUBSCRIBER_PANICKED.get()) {
                    report(message(&*panic));
                }
                Polled::Died
            }
        }
    }
}

/// Gets this crate's events.
#[cfg(feature = "tracing")]
pub(super) struct Subscriber;

#[cfg(feature = "tracing")]
impl tracing::Subscriber for Subscriber {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        if *event.metadata().level() == tracing::Level::ERROR {
            report("a slot was given up".to_owned());
        }
        if SUBSCRIBER_PANICS.get() && ARMED.get() {
            SUBSCRIBER_PANICKED.set(true);
            resume_unwind(Box::new(Meant));
        }
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}
