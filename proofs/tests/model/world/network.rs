//! What goes to Redis and comes back, and connections that break.

use std::time::Duration;

use super::{
    Command, Incoming, Late, Mutant, NOBODY, Plan, RETENTION, SEED_EVERY, Said, Sent, Unanswered,
    World, at, grant, is_acquire, is_lost, is_quarantined, is_take,
};
use crate::error::{Error, ErrorKind};
use crate::mode::Mode;
use crate::redis::{Message, Process, Server, Token};
use crate::store::{Failure, Granted, Notice, Outcome, Reply};

impl World {
    pub(super) fn deliver_reply_first(&mut self, plan: &Plan, node: usize) {
        let observed = self.nodes[node].observed;
        let incoming = &mut self.nodes[node].incoming;
        let position = incoming
            .iter()
            .position(|one| !one.is_push())
            .expect("there is one");
        for push in &mut incoming[..position] {
            if let Incoming::Push(_, came_after) = push
                && !plan.is(Mutant::GrantCountsFromLaterReply)
            {
                came_after.get_or_insert(observed);
            }
        }
        let reply = incoming.remove(position);
        self.deliver(plan, node, reply);
    }

    pub(super) fn deliver(&mut self, plan: &Plan, node: usize, incoming: Incoming) {
        match incoming {
            Incoming::Reply(sent, answer) => self.reply(plan, node, sent, answer),
            Incoming::Refusal(sent) => {
                if let Command::Complete { token, .. } = sent.command {
                    self.nodes[node].refused.push((token, sent.at));
                }
            }
            Incoming::ToBeGranted(sent) => {
                if let Command::Release { token, .. } = sent.command {
                    self.nodes[node].observed = self.nodes[node].observed.max(sent.at);
                    self.send(plan, node, grant(token));
                }
            }
            Incoming::Quarantined(sent) => self.fail(plan, node, sent),
            Incoming::LostData(sent) => {
                self.nodes[node]
                    .incoming
                    .insert(0, Incoming::LostData(sent));
                self.reconnect(plan, node, Unanswered::SentAgain);
            }
            Incoming::Push(message, observed) => self.push(plan, node, message, observed),
            Incoming::AllChanged => self.event(plan, node, |machine| {
                machine.notice(Notice::Changed);
            }),
        }
    }

    pub(super) fn reply(&mut self, plan: &Plan, node: usize, sent: Sent, answer: Reply) {
        let now = self.now;
        self.nodes[node].observed = self.nodes[node].observed.max(sent.at);
        if let (Command::Release { token, .. }, Reply::Released { granted: true, .. }) =
            (sent.command, &answer)
        {
            let lasts = plan.times(node).grant_ttl_ms;
            self.nodes[node].passed_on = Some((token, now + lasts + 1));
        }
        if matches!(sent.command, Command::Complete { .. }) {
            self.nodes[node].recording = None;
        }
        let sent_at = match plan.is(Mutant::LeaseCountsFromReply) {
            true => at(now),
            false => at(sent.at),
        };
        self.event(plan, node, |machine| {
            let result = Ok(answer);
            machine.replied(sent.command, Outcome { sent_at, result });
        });
    }

    pub(super) fn push(
        &mut self,
        plan: &Plan,
        node: usize,
        message: Message,
        observed: Option<u64>,
    ) {
        let after = match plan.is(Mutant::GrantCountsFromArrival) {
            true => self.now,
            false => observed.unwrap_or(self.nodes[node].observed),
        };
        let notice = match message {
            Message::Granted {
                number,
                fence,
                ttl_ms,
                contended,
                ..
            } => Notice::Granted(Granted {
                token: number,
                fence,
                ttl: match plan.is(Mutant::GrantTrustedForOwnTtl) {
                    true => Duration::MAX,
                    false => Duration::from_millis(ttl_ms),
                },
                contended,
                after: Some(at(after)),
            }),
            Message::Contended { number, .. } => Notice::Contended { token: number },
            Message::Completed { .. } => Notice::Changed,
        };
        self.event(plan, node, |machine| {
            machine.notice(notice);
        });
    }

    /// The connection breaks, and there is a new one.
    pub(super) fn reconnect(&mut self, plan: &Plan, number: usize, how: Unanswered) {
        let node = &mut self.nodes[number];
        let replies = node
            .incoming
            .drain(..)
            .filter_map(|incoming| match incoming {
                Incoming::Reply(sent, _)
                | Incoming::Refusal(sent)
                | Incoming::ToBeGranted(sent)
                | Incoming::Quarantined(sent)
                | Incoming::LostData(sent) => Some(sent),
                Incoming::Push(..) | Incoming::AllChanged => None,
            });
        let counting = node.counting.take().map(|(sent, _)| sent);
        let replies = replies.chain(counting);
        let unanswered: Vec<Sent> = replies.chain(node.outgoing.clone()).collect();
        let is_cut = std::mem::take(&mut node.is_cut);
        let lost = node.outgoing.drain(..).map(Late::of);
        node.late.extend(lost.filter(|_| !is_cut));
        node.is_subscribed = true;
        if how == Unanswered::GivenUp && !is_cut {
            let releases = unanswered.iter().filter_map(|sent| match sent.command {
                Command::Acquire { token, .. } => Some(Late::regrant(token)),
                _ => None,
            });
            node.late.extend(releases);
        }
        let fails = how != Unanswered::SentAgain;
        node.observed = self.now;
        if !plan.is(Mutant::QuarantineOnlyAtFirst) {
            self.ask_for_epoch(plan, number);
        }
        match plan.is(Mutant::NoSeedAtReconnect) {
            true => self.nodes[number].seed = self.redis.last_fence,
            false => self.seed(plan, number),
        }
        if plan.is(Mutant::ReconnectUnnoticed) {
            return;
        }
        // Commands that are sent again go first, as they were submitted first.
        for sent in &unanswered {
            if !fails || sent.command.ends_hold() {
                self.put(
                    plan,
                    number,
                    Sent {
                        at: self.now,
                        is_repeated: true,
                        ..*sent
                    },
                );
            }
        }
        self.event(plan, number, |machine| {
            machine.reconnected();
        });
        for sent in unanswered {
            if fails {
                // Commands that end a hold do not fail: they were sent again above.
                if !sent.command.ends_hold() {
                    self.fail(plan, number, sent);
                }
            }
        }
    }

    pub(super) fn fail(&mut self, plan: &Plan, number: usize, sent: Sent) {
        let error = Error::of(ErrorKind::Unavailable);
        let unknown = true;
        let result = Err(Failure { error, unknown });
        let sent_at = at(sent.at);
        let rests_for_nobody = plan.is(Mutant::RestsForNobody)
            && matches!(sent.command, Command::Acquire { again: true, .. });
        self.event(plan, number, |machine| {
            if rests_for_nobody {
                machine.request(NOBODY, NOBODY, true, Mode::Exclusive);
            }
            machine.replied(sent.command, Outcome { sent_at, result });
        });
    }

    /// A process connects: it seeds the counter of fences. Where no data is lost, only the first
    /// seed says anything, and the others would make one state into many.
    pub(super) fn seed(&mut self, plan: &Plan, node: usize) {
        if self.redis.last_fence == 0 || plan.may_lose_data() {
            let seed = self.redis.seed(self.now * 1000);
            self.nodes[node].seed = seed.expect("no key has a wrong type");
            self.nodes[node].seeded_at = self.now;
        }
    }

    pub(super) fn ask_for_epoch(&mut self, plan: &Plan, node: usize) {
        if plan.quarantine {
            let epoch = self.redis.quarantine(self.now, plan.times(node).ttl_ms);
            self.nodes[node].epoch = Some(epoch);
        }
    }

    /// Redis counts a take that it has carried out. One that did not get the lock leaves out a
    /// fence, which shows nowhere.
    pub(super) fn count(&mut self, plan: &Plan, number: usize) {
        let node = &mut self.nodes[number];
        let (sent, mut reply) = node.counting.take().expect("one is to be counted");
        let is_take = is_take(sent.command, sent.is_repeated);
        let is_lost = is_lost(plan, &self.redis, node, is_take);
        let mut given = None;
        if let Reply::Acquired { fence, .. } = &mut reply
            && is_take
        {
            *fence = self.redis.count(1).expect("no key has a wrong type");
            *fence += u64::from(plan.is(Mutant::BlockSharedWrongly));
            given = Some(*fence);
        }
        if is_lost {
            node.incoming.push(Incoming::LostData(sent));
            return;
        }
        node.incoming.push(Incoming::Reply(sent, reply));
        if let Some(fence) = given {
            self.gave_out(plan, fence, Some(sent.at));
        }
    }

    /// Redis carries out a command, and publishes the messages that follow.
    pub(super) fn carry_out(
        &mut self,
        plan: &Plan,
        node: usize,
        late: Late,
        sent_at: Option<u64>,
    ) -> Said {
        let Late {
            command,
            is_repeated,
            seeds,
        } = late;
        let is_take = is_take(command, is_repeated);
        if seeds && is_take {
            self.redis.seed(self.now * 1000);
        }
        let server = Server {
            floor: match seeds {
                true => u64::MAX,
                false => self.nodes[node].seed,
            },
            may_give: !is_quarantined(plan, &self.nodes[node], self.now),
        };
        let process = node as Process;
        let ours = |number| Token::Ours { process, number };
        let (now, times) = (self.now, plan.times(node));
        let there: Vec<bool> = self.nodes.iter().map(|node| node.is_subscribed).collect();
        let is_writer = |waiting: &Token| matches!(waiting, Token::Ours { process, .. } if there[usize::from(*process)]);
        let owner = self.redis.owner.map(|owner| owner.token);
        let would_get_past = matches!(command, Command::Acquire { mode: Mode::Shared, token, .. }
            if owner == Some(Token::Shared)
                && self.redis.queue.first().is_some_and(is_writer)
                && self.redis.readers.iter().all(|(reader, _)| *reader != ours(token)));
        let is_there = |process: Process| there[usize::from(process)];
        let redis = &mut self.redis;
        let outcome = match command {
            Command::Acquire {
                token,
                mode: Mode::Shared,
                queue,
                ..
            } => redis.share(now * 1000, times, ours(token), server, queue, is_there),
            Command::Renew {
                token,
                mode: Mode::Shared,
            } => redis.renew_shared(now, times, ours(token)),
            Command::Acquire { token, .. } if is_take => {
                redis.take(now, times, ours(token), plan.records)
            }
            Command::Acquire { token, queue, .. } => {
                redis.acquire(now * 1000, times, ours(token), server, queue, plan.records)
            }
            Command::Release {
                token,
                contended: false,
                queued: false,
                ..
            } => redis.release(now, ours(token)),
            Command::Release { token, .. } => {
                redis.grant(now * 1000, times, ours(token), server, is_there)
            }
            Command::Complete { token, .. } => redis.complete(now, ours(token), 0, RETENTION),
            Command::Renew { token, .. } => redis.renew(now, times, ours(token)),
            Command::Check { token } => redis.check(now, ours(token)),
        };
        let got_it = matches!(outcome.reply, crate::redis::Reply::Acquired { .. });
        self.got_past |= would_get_past && got_it;
        for message in &outcome.messages {
            if let Message::Granted { fence, .. } = message {
                self.gave_out(plan, *fence, sent_at);
            }
        }
        for message in outcome.messages {
            let to = &mut self.nodes[usize::from(message.process())];
            if to.is_alive {
                to.incoming.push(Incoming::Push(message, None));
            }
        }
        Said::Reply(match outcome.reply {
            crate::redis::Reply::Acquired { fence, contended } => {
                if let Some(fence) = fence {
                    self.gave_out(plan, fence, sent_at);
                }
                let fence = fence.unwrap_or(0);
                Reply::Acquired { fence, contended }
            }
            crate::redis::Reply::Held {
                remaining_ms,
                foreign,
            } => Reply::HeldElsewhere {
                remaining: remaining_ms.map(Duration::from_millis),
                foreign,
            },
            crate::redis::Reply::Released { had_it, granted } => {
                Reply::Released { had_it, granted }
            }
            crate::redis::Reply::Marked => return Said::ToBeGranted,
            crate::redis::Reply::Renewed { contended } => Reply::Renewed { contended },
            crate::redis::Reply::Recorded(_) => Reply::Recorded(bytes::Bytes::new()),
            crate::redis::Reply::Completed => {
                self.is_completed = true;
                Reply::Completed
            }
            crate::redis::Reply::Intact => Reply::Intact,
            crate::redis::Reply::Gone => Reply::Gone,
            crate::redis::Reply::Failed => unreachable!("no key has a wrong type"),
        })
    }

    /// A command got this fence, which was sent at that time, if it is known.
    pub(super) fn gave_out(&mut self, plan: &Plan, fence: u64, sent_at: Option<u64>) {
        self.fences_fell |= fence <= self.last_fence;
        self.last_fence = fence;
        let least = sent_at.map_or(0, |at| at.saturating_sub(SEED_EVERY) * 1000);
        self.fence_is_late |= plan.may_lose_data() && fence < least;
    }

    pub(super) fn send(&mut self, plan: &Plan, node: usize, command: Command) {
        let sent = Sent {
            command,
            at: self.now,
            is_repeated: false,
            seeds: false,
        };
        self.put(plan, node, sent);
    }

    pub(super) fn put(&mut self, plan: &Plan, number: usize, mut sent: Sent) {
        let node = &mut self.nodes[number];
        if is_acquire(sent.command) && is_quarantined(plan, node, self.now) {
            node.incoming.push(Incoming::Quarantined(sent));
            return;
        }
        let is_due = self.now - node.seeded_at >= SEED_EVERY;
        sent.seeds = is_due && plan.may_lose_data() && !plan.is(Mutant::SeedsOnlyAtConnect);
        // Whether a script draws a fence shows later.
        if sent.seeds && is_take(sent.command, sent.is_repeated) {
            node.seeded_at = self.now;
        }
        node.outgoing.push(sent);
    }
}
