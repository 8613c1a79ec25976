//! [`InFlight`]: the calls that Redis has not replied to.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::RedisStore;
use super::commands::{Seed, Sent, Server};
use super::names::Names;
use super::pending::Pending;
use crate::clock::Time;

/// A call that has no reply yet.
pub(super) struct InFlightCall {
    pub(super) sent_at: Time,
    /// What the server was found to be like when the call was made.
    pub(super) server: Arc<Server>,
    pub(super) commands: Vec<Pending>,
}

impl InFlightCall {
    /// Returns seeds for the counters of which its takes draw fences.
    pub(super) fn seeds(&self, names: &Names) -> impl Iterator<Item = Seed> {
        let sent = self.commands.iter().map(Pending::sent);
        let drawing = sent.filter(Sent::draws_fence);
        drawing.map(|sent| Seed {
            slot: names.slot(sent.key),
            is_asking: sent.is_asking(),
        })
    }

    /// Returns the slots of whose counters its scripts may draw fences.
    pub(super) fn drawn_by_scripts(&self, names: &Names) -> impl Iterator<Item = u16> {
        let sent = self.commands.iter().map(Pending::sent);
        let drawing = sent.filter(Sent::may_draw_fence);
        drawing.map(|sent| names.slot(sent.key))
    }
}

/// The calls that have no reply yet, in the order in which they were sent, which is that of the
/// replies.
///
/// When this is dropped, the commands go back into the queue: to carry one out twice does no harm.
pub(super) struct InFlight<'a> {
    pub(super) store: &'a RedisStore,
    pub(super) calls: VecDeque<InFlightCall>,
    /// Releases and completions that Redis refused. They are tried again.
    pub(super) refused: Vec<Pending>,
}

impl<'a> InFlight<'a> {
    pub(super) fn new(store: &'a RedisStore) -> Self {
        Self {
            store,
            calls: VecDeque::new(),
            refused: Vec::new(),
        }
    }

    pub(super) fn pop(&mut self) -> InFlightCall {
        let call = self.calls.pop_front().expect("a reply belongs to a call");
        let count = call.commands.len();
        self.store.in_flight.fetch_sub(count, Ordering::AcqRel);
        call
    }

    pub(super) fn push(&mut self, call: InFlightCall) {
        let count = call.commands.len();
        self.store.in_flight.fetch_add(count, Ordering::AcqRel);
        self.calls.push_back(call);
    }

    /// Puts the commands of all calls back into the queue, to be sent again.
    pub(super) fn recall(&mut self) {
        let mut commands = Vec::new();
        while !self.calls.is_empty() {
            commands.extend(self.pop().commands);
        }
        self.store.put_back(commands);
    }

    /// Keeps a release or a completion that Redis refused, to try it again. Later commands for its
    /// key may overtake it, and find the lock held until then. Its token has no later hold, so it
    /// can end nothing that began meanwhile.
    pub(super) fn keep(&mut self, end: Pending) {
        self.store.in_flight.fetch_add(1, Ordering::AcqRel);
        self.refused.push(end);
    }

    pub(super) fn retry(&mut self) {
        let refused = std::mem::take(&mut self.refused);
        self.store
            .in_flight
            .fetch_sub(refused.len(), Ordering::AcqRel);
        self.store.put_back(refused);
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.recall();
        self.retry();
    }
}
