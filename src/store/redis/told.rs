//! [`Told`]: what the log has been told already.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use redis::RedisError;

use crate::clock::Time;
use crate::error::Error;
use crate::trace;

/// Keeps one outage from being a warning for each request that finds it: it begins with one, and
/// ends with one event. What comes in between is for debugging.
#[derive(Debug, Default)]
pub(super) struct Told {
    is_down: AtomicBool,
    /// Since when, as [`Time`] in nanoseconds.
    since: AtomicU64,
    has_no_tracking: AtomicBool,
}

impl Told {
    /// The server gives no locks.
    pub(super) fn down(&self, server: &str, why: &Error) {
        match self.is_down.swap(true, Ordering::Relaxed) {
            false => {
                let now = Time::now().as_nanos();
                self.since.store(now, Ordering::Relaxed);
                trace::store_down(server, why);
            }
            true => trace::store_still_down(server, why),
        }
    }

    /// It gives locks.
    pub(super) fn up(&self, server: &str) {
        // Every reply calls this.
        if self.is_down.load(Ordering::Relaxed) && self.is_down.swap(false, Ordering::Relaxed) {
            let since = Time::from_nanos(self.since.load(Ordering::Relaxed));
            trace::store_up(server, Time::now().since(since));
        }
    }

    /// It does not tell when another client changes a lock.
    pub(super) fn no_tracking(&self, server: &str, why: &RedisError) {
        if !self.has_no_tracking.swap(true, Ordering::Relaxed) {
            trace::no_tracking(server, why);
        }
    }
}
