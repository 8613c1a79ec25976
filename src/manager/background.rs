//! The one task of a manager: renews leases, tells of losses, and drives the store.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::runtime::Handle;

use super::core::{Core, StoreEvents};
use crate::clock::Time;
use crate::error::{Error, ErrorKind};
use crate::store::Store;
use crate::store::redis::Link;

/// Slots are not looked at more often than this…
const MIN_PAUSE: Duration = Duration::from_millis(1);
/// …and with many of them, only so often that looking takes a small part of the time.
const PAUSE_FACTOR: u32 = 20;
/// While there is something to do later, the time is looked at this often: the machine may have been suspended.
const MAX_PAUSE: Duration = Duration::from_secs(1);
/// Time after which others get their turn.
const LONG: Duration = Duration::from_micros(20);

impl Core {
    pub(super) fn ensure_running(self: &Arc<Self>) {
        if !self.is_running.load(Ordering::Acquire) {
            self.start(None);
        }
    }

    /// Starts the background task, unless it runs.
    pub(super) fn start(self: &Arc<Self>, link: Option<Link>) {
        if self.is_running.swap(true, Ordering::AcqRel) {
            return;
        }
        match Handle::try_current() {
            Ok(runtime) => {
                runtime.spawn(self.run(link));
            }
            Err(_) => {
                self.is_running.store(false, Ordering::SeqCst);
                on_own_thread(Arc::clone(self));
            }
        }
    }

    fn run(self: &Arc<Self>, link: Option<Link>) -> impl Future<Output = ()> + Send + use<> {
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
                () = drive_store(core, link) => {}
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
        } else {
            // The runtime is being shut down. Guards may outlive it: what they hold is to be renewed and released.
            on_own_thread(Arc::clone(core));
        }
    }
}

/// Runs the task where there is no runtime, unless it runs. If no thread can be had, locks that are held expire.
fn on_own_thread(core: Arc<Core>) {
    let run = move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        if !core.is_running.swap(true, Ordering::SeqCst) {
            runtime.block_on(core.run(None));
        }
        Ok::<(), std::io::Error>(())
    };
    let report = |error: std::io::Error| crate::trace::disconnected(&error);
    let thread = std::thread::Builder::new().name("distributed-lock".to_owned());
    let started = thread.spawn(move || run().unwrap_or_else(report));
    if let Err(error) = started {
        report(error);
    }
}

async fn look_after_slots(core: &Arc<Core>) {
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

async fn drive_store(core: &Arc<Core>, link: Option<Link>) {
    match &core.store {
        Store::Redis(redis) => {
            let is_finished = || core.is_ending() && core.is_at_rest();
            redis.run(link, &StoreEvents(core), is_finished).await;
        }
        Store::Memory(_) => std::future::pending().await,
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
