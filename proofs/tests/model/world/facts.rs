//! What is so in a state of the world.

use super::{Holder, Incoming, Mutant, Node, Plan, STEP, Sent, World, at, completion};
use crate::mode::Mode;
use crate::redis::Token;
use crate::slot::tests::Standing;

impl Node {
    /// Returns whether a request or a record stands behind what the slot has or wants.
    pub(super) fn is_meant(&self) -> bool {
        match self.slot.stands_for() {
            Standing::Nothing | Standing::Lingering | Standing::Memory => true,
            Standing::Waiters => !self.waiting.is_empty(),
            Standing::Holder { token } => {
                let is_holder = |holder: &Holder| holder.token == token && !holder.is_told;
                self.holders.iter().any(is_holder)
            }
            Standing::Record { token } => {
                let sent = |sent: &Sent| sent.command == completion(token);
                self.outgoing.iter().any(sent)
                    || self.refused.iter().any(|(refused, _)| *refused == token)
                    || self.incoming.iter().any(|incoming| match incoming {
                        Incoming::Reply(reply, _) | Incoming::Refusal(reply) => sent(reply),
                        _ => false,
                    })
            }
        }
    }

    /// Returns when the state machine next has something to do, in whole steps of the clock.
    pub(super) fn tick_at(&self, plan: &Plan) -> Option<u64> {
        let at = self.slot.next_tick()?.as_nanos().div_ceil(1_000_000);
        let is_fallback = self.slot.census().in_store;
        (!(is_fallback && plan.is(Mutant::NoFallback))).then_some(at)
    }
}

impl World {
    pub(super) fn living(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|node| node.is_alive)
    }

    /// Counts the processes that believe that they hold the lock.
    pub(super) fn trusting(&self) -> usize {
        self.trusting_in(Mode::Exclusive) + self.trusting_in(Mode::Shared)
    }

    pub(super) fn trusting_in(&self, mode: Mode) -> usize {
        let now = at(self.now);
        self.living()
            .flat_map(|node| &node.holders)
            .filter(|holder| holder.mode == mode && !holder.is_told && now < holder.until)
            .count()
    }

    pub(super) fn has_lost_data(&self, plan: &Plan) -> bool {
        self.left.data_losses < plan.faults.data_losses
            || self.left.take_overs < plan.faults.take_overs
    }

    pub(super) fn may_overlap(&self, plan: &Plan) -> bool {
        self.has_lost_data(plan) && !plan.quarantine
    }

    pub(super) fn has_something_to_do(&self, plan: &Plan) -> bool {
        self.living().any(|node| {
            node.requests + node.reads > 0
                || !node.holders.is_empty()
                || node.is_cut
                || !node.outgoing.is_empty()
                || node.counting.is_some()
                || !node.incoming.is_empty()
                || !node.refused.is_empty()
                || node.tick_at(plan).is_some_and(|at| at <= self.now)
                || node.passed_on.is_some_and(|(_, at)| at <= self.now)
        })
    }

    /// Returns the time to which the clock may go now.
    pub(super) fn next_moment(&self, plan: &Plan) -> Option<u64> {
        if self.has_something_to_do(plan) {
            return (self.left.delays > 0).then_some(self.now + STEP);
        }
        let next = |node: &Node| {
            let after_grant = node.passed_on.map(|(_, at)| at);
            node.tick_at(plan).into_iter().chain(after_grant).min()
        };
        let next = self.living().filter_map(next).min()?;
        Some(next.div_ceil(STEP) * STEP)
    }

    pub(super) fn had_accidents(&self, plan: &Plan) -> bool {
        self.left.disconnections < plan.faults.disconnections
            || self.left.refusals < plan.faults.refusals
            || self.left.crashes < plan.faults.crashes
            || self.left.foreign < plan.faults.foreign
            || self.has_lost_data(plan)
    }

    /// Returns whether a process that lives waits in the queue.
    pub(super) fn waits_in_queue(&self) -> bool {
        self.redis.queue.iter().any(|token| match token {
            Token::Ours { process, .. } | Token::Reader { process, .. } => {
                let node = &self.nodes[usize::from(*process)];
                node.is_alive && node.slot.census().in_store
            }
            _ => false,
        })
    }

    /// Returns whether the lock is free, or a record in its place, once everything has come to its
    /// end: after an accident, at the latest when the lease expires.
    pub(super) fn leaves_nothing(&self, plan: &Plan) -> bool {
        let had_accidents = self.had_accidents(plan);
        match &self.redis.owner {
            Some(owner) if !matches!(owner.token, Token::Record(_)) => {
                had_accidents && owner.expires_ms.is_some()
            }
            _ => had_accidents || self.has_expired || self.redis.queue.is_empty(),
        }
    }
}
