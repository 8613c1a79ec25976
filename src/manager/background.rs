//! The background task of a manager: it renews leases, tells of losses, and drives the store.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::oneshot;

use super::core::{Core, StoreEvents};
use crate::clock::Time;
use crate::error::{Error, ErrorKind};
use crate::observe;
use crate::shield::shielded;
use crate::store::Connected;

/// The slots are not visited more often than this…
const MIN_PAUSE: Duration = Duration::from_millis(1);
/// …and if there are many, only so often that the visits take a small part of the time.
const PAUSE_FACTOR: u32 = 20;
/// As long as any slot has something to do later, the clock is read this often: the machine may
/// have been suspended.
const MAX_PAUSE: Duration = Duration::from_secs(1);
/// A visit of one shard that takes longer lets other tasks run.
const LONG_VISIT: Duration = Duration::from_micros(20);
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(100);

impl Core {
    pub(super) fn ensure_running(self: &Arc<Self>) {
        if !self.is_running.load(Ordering::Acquire) {
            self.start(None);
        }
    }

    /// Starts the background task, and waits until it has connected to the store.
    pub(super) async fn connect(self: &Arc<Self>) -> Result<(), Error> {
        let (sender, connected) = oneshot::channel();
        self.start(Some(sender));
        let ended = |_| {
            Err(Error::new(
                ErrorKind::Unavailable,
                "no thread can be started",
            ))
        };
        connected.await.unwrap_or_else(ended)
    }

    /// Starts the background task, unless it runs.
    fn start(self: &Arc<Self>, connected: Option<Connected>) {
        if self.is_running.swap(true, Ordering::AcqRel) {
            return;
        }
        match Handle::try_current() {
            Ok(runtime) if self.may_run_on(&runtime) => {
                runtime.spawn(self.run(connected));
            }
            _ => on_own_thread(Arc::clone(self), connected, Start::First),
        }
    }

    /// Returns whether the background task may run on that runtime. One of a single thread may be
    /// blocked by a handler, or not be driven at all, when a lock is to be renewed or a request of
    /// another runtime waits for a reply.
    fn may_run_on(&self, runtime: &Handle) -> bool {
        !self.store.needs_to_run() || runtime.runtime_flavor() != RuntimeFlavor::CurrentThread
    }

    fn run(
        self: &Arc<Self>,
        connected: Option<Connected>,
    ) -> impl Future<Output = ()> + Send + use<> {
        // Made here, not in the task: a runtime that is shut down may drop the task before it ran.
        let relay = Relay {
            core: Arc::clone(self),
            is_done: false,
        };
        async move {
            let mut relay = relay;
            let core = &relay.core;
            let events = StoreEvents(core);
            let is_finished = || core.is_ending() && core.is_at_rest();
            // Each ends only when neither has anything left to do.
            tokio::select! {
                () = tick_slots(core) => {}
                () = core.store.run(connected, &events, is_finished) => {}
            }
            core.store.disconnect();
            relay.is_done = true;
        }
    }

    pub(super) async fn close(self: &Arc<Self>) {
        self.is_closed.store(true, Ordering::SeqCst);
        let closed = Error::of(ErrorKind::Closed);
        self.with_every_slot(|machine| machine.reject_all(&closed));
        loop {
            let stopped = self.stopped.notified();
            tokio::pin!(stopped);
            stopped.as_mut().enable();
            self.wake();
            let is_running = self.is_running.load(Ordering::SeqCst);
            // In memory, the task has nothing to end, and may be in a runtime that is not driven.
            if self.is_at_rest() && !(is_running && self.store.needs_to_run()) {
                return;
            }
            if !is_running {
                self.ensure_running();
                if !self.is_running.load(Ordering::SeqCst) {
                    // No thread can be started at this moment.
                    tokio::time::sleep(PAUSE_AFTER_FAILURE).await;
                }
            }
            stopped.await;
        }
    }
}

/// Starts the background task again if it ends before everything is done.
struct Relay {
    core: Arc<Core>,
    is_done: bool,
}

impl Drop for Relay {
    fn drop(&mut self) {
        let core = &self.core;
        core.is_running.store(false, Ordering::SeqCst);
        core.stopped.notify_waiters();
        if core.is_at_rest() {
            return;
        }
        if self.is_done {
            // An event came in at the last moment, and found the task still running.
            core.ensure_running();
        } else if !core.is_running.swap(true, Ordering::SeqCst) {
            // The task panicked, or the runtime is being shut down. Guards may outlive it: their
            // locks must be renewed and released. And requests of other runtimes wait for replies.
            let start = match std::thread::panicking() {
                true => Start::AfterPanic,
                false => Start::AfterShutdown,
            };
            on_own_thread(Arc::clone(core), None, start);
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Start {
    First,
    AfterShutdown,
    AfterPanic,
}

/// Runs the task on a thread of its own. If none can be started, requests fail when their time is
/// over, and held locks expire.
fn on_own_thread(core: Arc<Core>, connected: Option<Connected>, start: Start) {
    let thread = std::thread::Builder::new().name("distributed-lock".to_owned());
    let starting = Arc::clone(&core);
    let run = observe::with_this_subscriber(move || {
        if start == Start::AfterPanic {
            // The cause of the panic may still be there.
            std::thread::sleep(PAUSE_AFTER_FAILURE);
            shielded(observe::restarted);
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        match runtime {
            Ok(runtime) => runtime.block_on(core.run(connected)),
            Err(error) => not_started(&core, &error),
        }
    });
    if let Err(error) = thread.spawn(run) {
        not_started(&starting, &error);
    }
}

fn not_started(core: &Core, error: &std::io::Error) {
    core.is_running.store(false, Ordering::SeqCst);
    core.stopped.notify_waiters();
    observe::not_started(error);
}

pub(super) async fn tick_slots(core: &Arc<Core>) {
    loop {
        core.next_visit.clear();
        Time::now_for_certain();
        let (mut next, mut took) = (None, Duration::ZERO);
        for shard in 0..core.shards() {
            let now = Time::now();
            next = core.tick(shard, now).into_iter().chain(next).min();
            let one_took = Time::now().since(now);
            took += one_took;
            if one_took > LONG_VISIT {
                // The same task drives the store.
                tokio::task::yield_now().await;
            }
        }
        if core.is_ending() && core.is_at_rest() {
            return;
        }
        if let Some(at) = &mut next {
            *at = (*at).min(Time::now() + MAX_PAUSE);
            core.next_visit.set(at.as_nanos());
        }
        let paused = Time::now() + pause(took, core.rules.renewal);
        tokio::select! {
            () = sleep_until(next) => {}
            () = core.next_visit.notified() => {}
        }
        tokio::time::sleep_until(paused.instant()).await;
    }
}

/// Returns how long the slots are left alone after a visit of all that took so long. At most an
/// eighth of the renewal interval: the visit may have taken long only because the process was
/// stopped, and renewals must not wait for that.
fn pause(took: Duration, renewal: Duration) -> Duration {
    (took * PAUSE_FACTOR).min(renewal / 8).max(MIN_PAUSE)
}

async fn sleep_until(at: Option<Time>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.instant()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_was_stopped_goes_on_to_renew() {
        let ms = Duration::from_millis;
        let renewal = ms(3333);
        assert_eq!(pause(Duration::ZERO, renewal), ms(1));
        assert_eq!(pause(ms(8), renewal), ms(160));
        assert!(pause(ms(500), renewal) < renewal / 4);
        assert_eq!(pause(ms(500), ms(2)), ms(1));
    }
}
