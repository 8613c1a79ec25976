//! What happens: requests, holders, accidents, and the effects of a slot.

use std::sync::atomic::AtomicU64;

use super::{
    Action, Command, Holder, Incoming, Late, Mutant, Node, Plan, STEP, Said, Sent, TTL, World, at,
    completion, is_acquire, is_lost, is_read_later, is_take, regrant,
};
use crate::error::{Error, ErrorKind};
use crate::mode::Mode;
use crate::slot::{Effect, Effects, Env, Machine};
use crate::store::{Failure, Outcome, Reply};

impl World {
    pub(super) fn act(&mut self, plan: &Plan, action: Action) {
        match action {
            Action::Request(node) => {
                self.nodes[node].requests -= 1;
                self.request(plan, node, true, Mode::Exclusive);
            }
            Action::Read(node) => {
                self.nodes[node].reads -= 1;
                self.request(plan, node, true, Mode::Shared);
            }
            Action::RequestWithoutWaiting(node) => {
                self.left.impatient -= 1;
                self.request(plan, node, false, Mode::Exclusive);
            }
            Action::Cancel(node, place) => {
                self.left.cancellations -= 1;
                let number = self.nodes[node].waiting.remove(place);
                self.event(plan, node, |machine| machine.cancel(number));
            }
            Action::End(node, holder) => self.finish(plan, node, holder),
            Action::Complete(node, holder) => self.complete(plan, node, holder),
            Action::Refuse(node) => {
                self.left.refusals -= 1;
                let sent = self.nodes[node].outgoing.remove(0);
                self.nodes[node].incoming.push(Incoming::Refusal(sent));
            }
            Action::TryAgain(node) => self.try_again(plan, node),
            Action::CarryOut(node) => {
                let sent = self.nodes[node].outgoing.remove(0);
                let said = self.carry_out(plan, node, Late::of(sent), Some(sent.at));
                let is_take = is_take(sent.command, sent.is_repeated);
                let node = &mut self.nodes[node];
                match said {
                    Said::Reply(reply) if is_read_later(sent.command, &reply) => {
                        node.counting = Some((sent, reply));
                    }
                    Said::Reply(_)
                        if is_acquire(sent.command)
                            && is_lost(plan, &self.redis, node, is_take) =>
                    {
                        node.incoming.push(Incoming::LostData(sent));
                    }
                    Said::Reply(reply) => node.incoming.push(Incoming::Reply(sent, reply)),
                    Said::ToBeGranted => node.incoming.push(Incoming::ToBeGranted(sent)),
                }
            }
            Action::Count(node) => self.count(plan, node),
            Action::CarryOutLate(node) => {
                // It may be counted, too, which gives no fence.
                let late = self.nodes[node].late.remove(0);
                self.carry_out(plan, node, late, None);
            }
            Action::Deliver(node) => {
                let incoming = self.nodes[node].incoming.remove(0);
                self.deliver(plan, node, incoming);
            }
            Action::DeliverReplyFirst(node) => self.deliver_reply_first(plan, node),
            Action::AskSomethingElse(node) => {
                self.left.other_commands -= 1;
                // No token of this key has that number.
                self.send(
                    plan,
                    node,
                    Command::Renew {
                        token: 0,
                        mode: Mode::Exclusive,
                    },
                );
            }
            Action::Tick(node) => self.event(plan, node, |machine| {
                machine.tick();
            }),
            Action::LookAfterGrant(node) => {
                let (token, _) = self.nodes[node].passed_on.take().expect("it is due");
                self.send(plan, node, regrant(token));
            }
            Action::TimePasses => {
                if self.has_something_to_do(plan) {
                    self.left.delays -= 1;
                    self.now += STEP;
                } else {
                    self.now = self.next_moment(plan).expect("time passes");
                }
            }
            Action::Reconnect { node, unanswered } => {
                if !self.nodes[node].is_cut {
                    self.left.disconnections -= 1;
                }
                self.reconnect(plan, node, unanswered);
            }
            Action::Crash(node) => {
                self.left.crashes -= 1;
                let node = &mut self.nodes[node];
                node.is_alive = false;
                node.late.extend(node.outgoing.drain(..).map(Late::of));
                node.counting = None;
                node.incoming.clear();
                node.holders.clear();
                node.waiting.clear();
                node.refused.clear();
                node.recording = None;
            }
            Action::NoticeCrash(node) => self.nodes[node].is_subscribed = false,
            Action::LosePush(node) => {
                self.left.lost_pushes -= 1;
                self.nodes[node].incoming.remove(0);
            }
            Action::ForeignTakes => {
                self.left.foreign -= 1;
                self.redis.foreign_takes(self.now, TTL);
            }
            Action::ForeignReleases => self.redis.delete_owner(),
            Action::LoseData => {
                self.left.data_losses -= 1;
                self.redis.flush_all();
                // Not in the same microsecond as what was before.
                self.now += STEP;
                for node in self.nodes.iter_mut().filter(|node| node.is_alive) {
                    node.incoming.push(Incoming::AllChanged);
                }
            }
            Action::TakeOver => {
                self.left.take_overs -= 1;
                self.redis.delete_owner();
                self.redis.take_over();
                self.now += STEP;
                for node in &mut self.nodes {
                    node.is_cut = node.is_alive;
                    node.is_subscribed = false;
                    node.late.clear();
                }
            }
        }
    }

    /// A request is done with its lock, held or lost.
    pub(super) fn finish(&mut self, plan: &Plan, node: usize, holder: usize) {
        let holder = self.nodes[node].holders.remove(holder);
        self.event(plan, node, |machine| {
            machine.finished(holder.grant(), (), true);
        });
    }

    pub(super) fn request(&mut self, plan: &Plan, node: usize, patient: bool, mode: Mode) {
        let acquiring = &mut self.nodes[node];
        acquiring.ids += 1;
        let number = acquiring.ids;
        acquiring.waiting.push(number);
        self.event(plan, node, |machine| {
            machine.request(number, number, patient, mode);
        });
    }

    /// A request is done with its lock and leaves a record.
    pub(super) fn complete(&mut self, plan: &Plan, node: usize, holder: usize) {
        let holder = self.nodes[node].holders.remove(holder);
        let (token, until) = (holder.token, holder.until);
        let mut is_held = false;
        self.event(plan, node, |machine| {
            is_held = machine.completed(holder.grant(), (), ());
        });
        self.nodes[node].recording = is_held.then_some((token, until));
        if is_held && plan.is(Mutant::CompletionForgotten) {
            let sent_at = at(self.now);
            let result = Ok(Reply::Completed);
            self.event(plan, node, |machine| {
                machine.replied(completion(token), Outcome { sent_at, result });
            });
        }
    }

    /// The driver sends a completion again that Redis refused, or gives it up.
    pub(super) fn try_again(&mut self, plan: &Plan, number: usize) {
        let (token, submitted) = self.nodes[number].refused.remove(0);
        let command = completion(token);
        let is_over = self.now - submitted > plan.times(number).ttl_ms;
        if is_over && !self.nodes[number].slot.holds(token) {
            let error = Error::of(ErrorKind::Unavailable);
            let unknown = true;
            let (sent_at, result) = (at(self.now), Err(Failure { error, unknown }));
            self.event(plan, number, |machine| {
                machine.replied(command, Outcome { sent_at, result });
            });
        } else {
            self.nodes[number].outgoing.push(Sent {
                command,
                at: submitted,
                is_repeated: true,
                seeds: false,
            });
        }
    }

    /// Something happens to a process's state machine.
    pub(super) fn event(
        &mut self,
        plan: &Plan,
        node: usize,
        event: impl FnOnce(&mut Machine<'_, u64, (), ()>),
    ) {
        let ids = AtomicU64::new(self.nodes[node].ids + 1);
        let mut effects = Effects::new();
        let env = Env {
            now: at(self.now),
            rules: &plan.rules(node),
            ids: &ids,
            has_room: true,
        };
        event(&mut self.nodes[node].slot.on(&env, &mut effects));
        self.nodes[node].ids = ids.into_inner() - 1;
        for effect in effects {
            self.follow(plan, node, &effect);
        }
    }

    pub(super) fn follow(&mut self, plan: &Plan, number: usize, effect: &Effect<u64, (), ()>) {
        let now = at(self.now);
        if let Effect::Grant { .. } = effect {
            let lasts = |node: &Node| node.recording.is_some_and(|(_, until)| now < until);
            let beside_record = self.living().any(lasts);
            self.ran_beside_record |= beside_record;
        }
        let node = &mut self.nodes[number];
        match *effect {
            Effect::Send(command) => self.send(plan, number, command),
            Effect::Grant { waiter, grant, .. } => {
                node.waiting.retain(|waiting| *waiting != waiter);
                node.holders.push(Holder {
                    lease: grant.lease,
                    token: grant.token,
                    mode: grant.mode,
                    until: grant.until,
                    is_told: false,
                });
                let (new, is_shared) = (grant.fencing_token, grant.mode == Mode::Shared);
                self.fencing_tokens_fell |= match is_shared {
                    true => new <= self.last_alone,
                    false => new <= self.last_fencing_token,
                };
                self.last_fencing_token = self.last_fencing_token.max(new);
                if !is_shared {
                    self.last_alone = new;
                }
            }
            Effect::Replay { waiter, .. } => {
                node.waiting.retain(|waiting| *waiting != waiter);
                self.is_replayed = true;
            }
            Effect::Reject { waiter, .. } => node.waiting.retain(|waiting| *waiting != waiter),
            Effect::Extend { lease, until } => {
                if let Some((_, lasts)) = &mut node.recording {
                    *lasts = until;
                    return;
                }
                if let Some(holder) = node.holder(lease)
                    && !holder.is_told
                    && now < holder.until
                {
                    holder.until = until;
                }
            }
            Effect::Lose { lease, .. } => {
                if let Some(holder) = node.holder(lease) {
                    holder.is_told = true;
                }
            }
            Effect::HandedOn { .. } => {}
        }
    }
}
