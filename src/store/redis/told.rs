//! [`Told`]: what the log and the metrics have been told already.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use redis::RedisError;

use crate::clock::Time;
use crate::error::Error;
use crate::observe;

// What was told last. Zero: nothing yet.
const UP: u8 = 1;
const DOWN: u8 = 2;

/// Keeps one outage from being a warning for each request that finds it: it begins with one, and
/// ends with one event. What comes in between is for debugging.
#[derive(Debug, Default)]
pub(super) struct Told {
    state: AtomicU8,
    /// Since when it is down, as [`Time`] in nanoseconds.
    since: AtomicU64,
    /// Like `state`: down is in quarantine.
    quarantine: AtomicU8,
    has_no_tracking: AtomicBool,
}

impl Told {
    /// The server gives no locks.
    pub(super) fn down(&self, server: &str, why: &Error) {
        match self.state.swap(DOWN, Ordering::Relaxed) {
            DOWN => observe::store_still_down(server, why),
            _ => {
                let now = Time::now().as_nanos();
                self.since.store(now, Ordering::Relaxed);
                observe::store_down(server, why);
            }
        }
    }

    /// It gives locks.
    pub(super) fn up(&self, server: &str) {
        // Every reply calls this.
        if self.state.load(Ordering::Relaxed) == UP {
            return;
        }
        let was_down = self.state.swap(UP, Ordering::Relaxed) == DOWN;
        let since = Time::from_nanos(self.since.load(Ordering::Relaxed));
        observe::store_up(server, was_down.then(|| Time::now().since(since)));
    }

    /// It is no primary of its cluster any more.
    pub(super) fn gone(&self, server: &str) {
        self.quarantined(server, false);
        observe::store_gone(server);
    }

    /// It gives no locks until all that it may have forgotten have expired; or it does again.
    pub(super) fn quarantined(&self, server: &str, is_quarantined: bool) {
        let state = if is_quarantined { DOWN } else { UP };
        // Every turn of the driver calls this.
        if self.quarantine.load(Ordering::Relaxed) != state {
            self.quarantine.store(state, Ordering::Relaxed);
            observe::quarantined(server, is_quarantined);
        }
    }

    /// It does not tell when another client changes a lock.
    pub(super) fn no_tracking(&self, server: &str, why: &RedisError) {
        if !self.has_no_tracking.swap(true, Ordering::Relaxed) {
            observe::no_tracking(server, why);
        }
    }
}
