//! What the model checker explores: how a world begins, what may happen next, what must hold.

use stateright::{Model, Property};

use super::{
    Action, Command, FENCES, FENCING_TOKENS, FOLLOWS, FREED, Incoming, LAST, MEANT, Mutant, Node,
    ONCE, OVERLAP, PAST, PROMPT, Plan, SERVED, TTL, Unanswered, World,
};
use crate::mode::Mode;
use crate::redis::{Redis, Token};
use crate::slot::Slot;

impl Model for Plan {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        let reads = self.reads.iter().copied().chain(std::iter::repeat(0));
        let node = |(requests, reads): (&u8, u8)| Node {
            is_alive: true,
            is_subscribed: true,
            slot: Slot::default(),
            ids: 0,
            waiting: Vec::new(),
            holders: Vec::new(),
            seed: 0,
            epoch: None,
            seeded_at: TTL,
            is_cut: false,
            outgoing: Vec::new(),
            counting: None,
            incoming: Vec::new(),
            late: Vec::new(),
            refused: Vec::new(),
            recording: None,
            observed: TTL,
            passed_on: None,
            requests: *requests,
            reads,
        };
        let mutation = match self.mutant {
            Some(Mutant::Script(mutation)) => Some(mutation),
            _ => None,
        };
        let mut world = World {
            now: TTL,
            redis: Redis::new(mutation),
            nodes: self.requests.iter().zip(reads).map(node).collect(),
            left: self.faults,
            last_fence: 0,
            last_fencing_token: 0,
            last_alone: 0,
            got_past: false,
            fences_fell: false,
            fencing_tokens_fell: false,
            fence_is_late: false,
            is_completed: false,
            is_replayed: false,
            ran_beside_record: false,
            has_expired: false,
        };
        // The server has had it for as long as a quarantine lasts.
        world.redis.quarantine(0, TTL);
        for node in 0..world.nodes.len() {
            world.ask_for_epoch(self, node);
            world.seed(self, node);
        }
        vec![world]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        for (number, node) in world.nodes.iter().enumerate() {
            if !node.late.is_empty() {
                actions.push(Action::CarryOutLate(number));
            }
            if node.is_alive {
                self.node_actions(world, number, node, actions);
            } else if node.is_subscribed {
                actions.push(Action::NoticeCrash(number));
            }
        }
        match &world.redis.owner {
            Some(owner) if owner.token == Token::Foreign => actions.push(Action::ForeignReleases),
            None if world.left.foreign > 0 => actions.push(Action::ForeignTakes),
            _ => {}
        }
        if world.left.data_losses > 0 {
            actions.push(Action::LoseData);
        }
        if world.left.take_overs > 0 {
            actions.push(Action::TakeOver);
        }
        if world.next_moment(self).is_some() {
            actions.push(Action::TimePasses);
        }
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut next = world.clone();
        next.act(self, action);
        let is_waited_for = !next.redis.queue.is_empty();
        next.has_expired |= next.redis.expire(next.now) && is_waited_for;
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::<Self>::always(OVERLAP, |plan, world| {
                world.may_overlap(plan)
                    || match world.trusting_in(Mode::Exclusive) {
                        0 => true,
                        alone => alone == 1 && world.trusting() == 1,
                    }
            }),
            Property::<Self>::always(PAST, |_, world| !world.got_past),
            Property::<Self>::always(FENCES, |_, world| !world.fences_fell),
            Property::<Self>::always(FOLLOWS, |_, world| !world.fence_is_late),
            Property::<Self>::always(FENCING_TOKENS, |plan, world| {
                world.may_overlap(plan) || !world.fencing_tokens_fell
            }),
            Property::<Self>::always(SERVED, |plan, world| {
                world.next_moment(plan).is_some()
                    || world.has_something_to_do(plan)
                    || world.living().all(|node| node.waiting.is_empty())
            }),
            Property::<Self>::always(FREED, |plan, world| {
                world.next_moment(plan).is_some()
                    || world.has_something_to_do(plan)
                    || world.leaves_nothing(plan)
            }),
            Property::<Self>::always(PROMPT, |plan, world| {
                world.has_something_to_do(plan)
                    || world.had_accidents(plan)
                    || world.has_expired
                    || world.redis.owner.is_some()
                    || !world.waits_in_queue()
            }),
            Property::<Self>::always(MEANT, |_, world| world.living().all(Node::is_meant)),
            Property::<Self>::sometimes("everybody was served", |plan, world| {
                world.next_moment(plan).is_none()
                    && world
                        .living()
                        .all(|node| node.requests + node.reads == 0 && node.waiting.is_empty())
            }),
        ];
        if self.records {
            properties.push(Property::<Self>::always(LAST, |plan, world| {
                world.has_lost_data(plan) || !world.is_completed || world.trusting() == 0
            }));
            properties.push(Property::<Self>::always(ONCE, |plan, world| {
                world.has_lost_data(plan) || !world.ran_beside_record
            }));
            properties.push(Property::<Self>::sometimes(
                "somebody gets the record",
                |_, world| world.is_replayed,
            ));
        }
        properties
    }
}

impl Plan {
    pub(super) fn node_actions(
        &self,
        world: &World,
        number: usize,
        node: &Node,
        actions: &mut Vec<Action>,
    ) {
        if node.requests > 0 {
            actions.push(Action::Request(number));
        }
        if node.reads > 0 {
            actions.push(Action::Read(number));
        }
        if world.left.impatient > 0 && number == 0 {
            actions.push(Action::RequestWithoutWaiting(number));
        }
        if world.left.cancellations > 0 {
            let places = 0..node.waiting.len();
            actions.extend(places.map(|place| Action::Cancel(number, place)));
        }
        for holder in 0..node.holders.len() {
            actions.push(Action::End(number, holder));
            if self.records {
                actions.push(Action::Complete(number, holder));
            }
        }
        if node.is_cut {
            // Nothing reaches the server before there is a new connection.
        } else if node.counting.is_some() {
            actions.push(Action::Count(number));
        } else if let Some(sent) = node.outgoing.first() {
            actions.push(Action::CarryOut(number));
            if world.left.refusals > 0 && matches!(sent.command, Command::Complete { .. }) {
                actions.push(Action::Refuse(number));
            }
        }
        if !node.refused.is_empty() {
            actions.push(Action::TryAgain(number));
        }
        match node.incoming.first() {
            Some(Incoming::Push(..) | Incoming::AllChanged) => {
                actions.push(Action::Deliver(number));
                if !node.incoming.iter().all(Incoming::is_push) {
                    actions.push(Action::DeliverReplyFirst(number));
                }
                if world.left.lost_pushes > 0 {
                    actions.push(Action::LosePush(number));
                }
            }
            Some(_) => actions.push(Action::Deliver(number)),
            None => {}
        }
        if world.left.other_commands > 0 && node.slot.census().in_store {
            actions.push(Action::AskSomethingElse(number));
        }
        if node.tick_at(self).is_some_and(|at| at <= world.now) {
            actions.push(Action::Tick(number));
        }
        if node.passed_on.is_some_and(|(_, at)| at <= world.now) {
            actions.push(Action::LookAfterGrant(number));
        }
        // A slot may be idle while a completion is in flight, which can still be lost.
        let is_busy = !node.slot.is_idle()
            || self.records && !(node.outgoing.is_empty() && node.incoming.is_empty());
        if world.left.disconnections > 0 && is_busy || node.is_cut {
            for unanswered in [Unanswered::SentAgain, Unanswered::Fail, Unanswered::GivenUp] {
                let node = number;
                actions.push(Action::Reconnect { node, unanswered });
            }
        }
        if world.left.crashes > 0 && is_busy {
            actions.push(Action::Crash(number));
        }
    }
}
