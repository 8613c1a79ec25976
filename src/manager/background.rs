//! The one task of a manager: renews leases, tells of losses, and drives the store.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::oneshot;

use super::core::{Core, StoreEvents};
use crate::clock::Time;
use crate::error::{Error, ErrorKind};
use crate::shield::shielded;
use crate::store::Store;
use crate::trace;

/// Slots are not looked at more often than this…
const MIN_PAUSE: Duration = Duration::from_millis(1);
/// …and with many of them, only so often that looking takes a small part of the time.
const PAUSE_FACTOR: u32 = 20;
/// While there is something to do later, the time is looked at this often: the machine may have been suspended.
const MAX_PAUSE: Duration = Duration::from_secs(1);
/// Time after which others get their turn.
const LONG: Duration = Duration::from_micros(20);
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(100);

impl Core {
    pub(super) fn ensure_running(self: &Arc<Self>) {
        if !self.is_running.load(Ordering::Acquire) {
            self.start(None);
        }
    }

    /// Starts the background task, and returns when it has connected to the store.
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

    /// A runtime of one thread may not be driven when a lock is to be renewed, or when a request that runs on another is to be
    /// answered: it runs one handler, which may block. (A store in memory answers at once, and its time is that of the
    /// runtime, which a test may hold still.)
    fn may_run_on(&self, runtime: &Handle) -> bool {
        match &self.store {
            Store::Memory(_) => true,
            #[cfg(all(test, feature = "properties"))]
            Store::Fake(_) => true,
            Store::Redis(_) => runtime.runtime_flavor() != RuntimeFlavor::CurrentThread,
        }
    }

    fn run(
        self: &Arc<Self>,
        connected: Option<Connected>,
    ) -> impl Future<Output = ()> + Send + use<> {
        // Made here, not inside: a runtime that is shut down drops a task without ever running it.
        let relay = Relay {
            core: Arc::clone(self),
            is_done: false,
        };
        async move {
            let mut relay = relay;
            let core = &relay.core;
            // Each knows when there is nothing left to do, for both.
            tokio::select! {
                () = look_after_slots(core) => {}
                () = drive_store(core, connected) => {}
            }
            relay.is_done = true;
        }
    }

    pub(super) async fn close(self: &Arc<Self>) {
        self.is_closed.store(true, Ordering::SeqCst);
        let closed = Error::of(ErrorKind::Closed);
        self.with_every_slot(|slot, _, effects| slot.reject_all(&closed, effects));
        loop {
            let stopped = self.stopped.notified();
            tokio::pin!(stopped);
            stopped.as_mut().enable();
            self.wake();
            if !self.is_running.load(Ordering::SeqCst) {
                if self.is_at_rest() {
                    return;
                }
                self.ensure_running();
                if !self.is_running.load(Ordering::SeqCst) {
                    // No thread can be had at this moment.
                    tokio::time::sleep(PAUSE_AFTER_FAILURE).await;
                }
            }
            stopped.await;
        }
    }
}

/// Sees to what is left when the task ends.
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
            // Something came in at the last moment, and saw the task still running.
            core.ensure_running();
        } else if !core.is_running.swap(true, Ordering::SeqCst) {
            // The task panicked, or the runtime is being shut down. Guards may outlive it: what they hold is to be renewed
            // and released, and requests of other runtimes are to be answered.
            let start = match std::thread::panicking() {
                true => Start::AfterPanic,
                false => Start::AfterShutdown,
            };
            on_own_thread(Arc::clone(core), None, start);
        }
    }
}

/// Told when the store has been connected to for the first time, or why it has not.
type Connected = oneshot::Sender<Result<(), Error>>;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Start {
    First,
    AfterShutdown,
    AfterPanic,
}

/// Runs the task on a thread of its own. If none can be had, requests are told so in the end, and locks that are held expire.
fn on_own_thread(core: Arc<Core>, connected: Option<Connected>, start: Start) {
    let thread = std::thread::Builder::new().name("distributed-lock".to_owned());
    let starting = Arc::clone(&core);
    let run = trace::with_this_subscriber(move || {
        if start == Start::AfterPanic {
            // What made it panic may do so again.
            std::thread::sleep(PAUSE_AFTER_FAILURE);
            shielded(trace::restarted);
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
    trace::disconnected(error);
}

pub(super) async fn look_after_slots(core: &Arc<Core>) {
    loop {
        core.look.clear();
        Time::now_for_certain();
        let (mut next, mut took) = (None, Duration::ZERO);
        for shard in 0..core.shards() {
            let now = Time::now();
            next = core.tick(shard, now).into_iter().chain(next).min();
            let one_took = Time::now().since(now);
            took += one_took;
            if one_took > LONG {
                // This task has other things to do.
                tokio::task::yield_now().await;
            }
        }
        if core.is_ending() && core.is_at_rest() {
            return;
        }
        if let Some(at) = &mut next {
            *at = (*at).min(Time::now() + MAX_PAUSE);
            core.look.set(at.as_nanos());
        }
        let rested = Time::now() + pause(took, core.rules.renewal);
        tokio::select! {
            () = sleep_until(next) => {}
            () = core.look.rung() => {}
        }
        tokio::time::sleep_until(rested.instant()).await;
    }
}

/// How long the slots are left alone after a look that took so long. It may have taken long because the process was
/// stopped: renewals must not wait for that.
fn pause(took: Duration, renewal: Duration) -> Duration {
    (took * PAUSE_FACTOR).min(renewal / 8).max(MIN_PAUSE)
}

async fn sleep_until(at: Option<Time>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.instant()).await,
        None => std::future::pending().await,
    }
}

async fn drive_store(core: &Arc<Core>, connected: Option<Connected>) {
    match &core.store {
        Store::Redis(redis) => {
            let is_finished = || core.is_ending() && core.is_at_rest();
            redis.run(connected, &StoreEvents(core), is_finished).await;
        }
        Store::Memory(_) => std::future::pending().await,
        #[cfg(all(test, feature = "properties"))]
        Store::Fake(_) => std::future::pending().await,
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
