//! [`Redirected`]: commands that a primary did not carry out, or not to their end, as it does not
//! have their slots, or not now.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::store::redis::pending::Pending;

/// The commands that come back to the router. All primaries' drivers share it with that.
#[derive(Debug, Default)]
pub(in crate::store::redis) struct Redirected {
    commands: Mutex<Commands>,
    changed: Notify,
    arrived: Notify,
}

#[derive(Debug, Default)]
struct Commands {
    /// These wait for a newer map of the slots.
    waiting: Vec<Pending>,
    /// These know where to go on: their slots are on their way.
    going_on: Vec<Pending>,
}

impl Redirected {
    pub(in crate::store::redis) fn put(&self, mut pending: Pending) {
        pending.may_be_overtaken = true;
        self.commands().waiting.push(pending);
        self.notify();
    }

    /// Hands a command to the router, to be passed on at once.
    pub(in crate::store::redis) fn go_on(&self, pending: Pending) {
        self.commands().going_on.push(pending);
        self.arrived.notify_one();
    }

    /// Tells the router that the map may be out of date.
    pub(in crate::store::redis) fn notify(&self) {
        self.changed.notify_one();
    }

    pub(super) async fn notified(&self) {
        self.changed.notified().await;
    }

    /// Waits for commands that go on at once.
    pub(super) async fn arrived(&self) {
        self.arrived.notified().await;
    }

    /// Takes all that wait, in the order in which they came.
    pub(super) fn take(&self) -> Vec<Pending> {
        std::mem::take(&mut self.commands().waiting)
    }

    /// Takes all that go on, in the order in which they came.
    pub(super) fn take_going_on(&self) -> Vec<Pending> {
        std::mem::take(&mut self.commands().going_on)
    }

    /// Keeps commands whose slots no primary has.
    pub(super) fn put_back(&self, commands: Vec<Pending>) {
        self.commands().waiting.splice(..0, commands);
    }

    pub(super) fn is_empty(&self) -> bool {
        let commands = self.commands();
        commands.waiting.is_empty() && commands.going_on.is_empty()
    }

    fn commands(&self) -> MutexGuard<'_, Commands> {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Time;
    use crate::key::LockKey;
    use crate::store::Command;

    #[test]
    fn whatever_waits_here_may_be_overtaken() {
        let (key, command) = (LockKey::new("a").unwrap(), Command::Check { token: 7 });
        let redirected = Redirected::default();
        redirected.put(Pending::new(key, command, Time::from_nanos(9)));
        let waiting = redirected.take();
        assert!(waiting.iter().all(|pending| pending.may_be_overtaken));
        assert_eq!(waiting.len(), 1);
    }
}
