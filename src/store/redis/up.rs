//! [`Up`]: what is known of the store from outside of its driver.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::observe;
use crate::shield::shielded;

/// Marks the store as connected until it is dropped, which a panic and the end of the runtime do,
/// too.
pub(super) struct Up<'a> {
    connected: &'a AtomicBool,
    server: String,
    is_quarantined: bool,
}

impl<'a> Up<'a> {
    pub(super) fn new(connected: &'a AtomicBool, server: String) -> Self {
        connected.store(true, Ordering::Relaxed);
        shielded(|| {
            observe::store_up(&server, true);
            observe::quarantined(&server, false);
        });
        Self {
            connected,
            server,
            is_quarantined: false,
        }
    }

    /// Notes whether no locks are given at this time, as the server may lack some that are held.
    pub(super) fn set_quarantined(&mut self, is_quarantined: bool) {
        if self.is_quarantined != is_quarantined {
            self.is_quarantined = is_quarantined;
            shielded(|| observe::quarantined(&self.server, is_quarantined));
        }
    }
}

impl Drop for Up<'_> {
    fn drop(&mut self) {
        self.connected.store(false, Ordering::Relaxed);
        self.set_quarantined(false);
        shielded(|| observe::store_up(&self.server, false));
    }
}
