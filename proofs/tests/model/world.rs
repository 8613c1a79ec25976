//! Processes, Redis, and all that can go wrong between them, as a state that a model checker
//! explores.
//!
//! Each process runs the crate's own state machine for one key. Commands and replies travel in
//! order, and take any time. All processes share one clock, in ms.
//!
//! Redis carries out commands one by one. The fence of an acquire is counted by a command of its
//! own, and other processes' commands come in between. The reply arrives only with it.
//!
//! Time passes by itself only when there is nothing else to do. While something is in flight, due
//! or held, every step of the clock is a delay, of which a world has only so many. So "served in
//! the end" can be told from a state in which nothing more happens.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use stateright::{Model, Property};

use crate::clock::Time;
use crate::error::{Error, ErrorKind};
use crate::lease::Grant;
use crate::mode::Mode;
use crate::redis::{Epoch, Message, Mutation, Process, Redis, Server, Times, Token};
use crate::slot::tests::Standing;
use crate::slot::{Effect, Effects, Env, Machine, Rules, Slot};
use crate::store::{Failure, Granted, Notice, Outcome, Reply};

pub(crate) const OVERLAP: &str = "no two trust a lease at the same time, unless they share it";
pub(crate) const PAST: &str = "no reader gets past a writer that waits";
pub(crate) const FENCES: &str = "fences rise, whatever happens to the data";
pub(crate) const FENCING_TOKENS: &str = "fencing tokens rise in the order of trusted holding";
pub(crate) const SERVED: &str = "who waits is served in the end";
pub(crate) const FREED: &str = "nothing stays locked";
pub(crate) const LAST: &str = "who completed was the last to hold";
pub(crate) const ONCE: &str =
    "nobody runs beside a record that is on its way under a lease that lasts";
pub(crate) const PROMPT: &str = "a lock that is released goes to who waits, at once";
pub(crate) const MEANT: &str = "a slot that is not idle stands for a request or a record";

pub(crate) const FOLLOWS: &str = "fences follow the clock";

pub(crate) const TTL: u64 = 200;
const GRANT_TTL: u64 = 100;
/// How often a process that sends commands raises the counter of fences to the clock.
const SEED_EVERY: u64 = 100;
/// No record expires in a plan.
const RETENTION: u64 = 1000 * TTL;
/// How far the clock goes at once.
const STEP: u64 = 50;

/// A world to explore.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// How many requests each process has that wait for their turn.
    pub(crate) requests: &'static [u8],
    /// How many more each has that share the lock.
    pub(crate) reads: &'static [u8],
    /// The time to live that the first process is set to. That of the others is [`TTL`].
    pub(crate) first_ttl: u64,
    pub(crate) faults: Faults,
    /// Whether a holder may put a record in the lock's place.
    pub(crate) records: bool,
    /// Whether no lock is given for a time to live after data was lost.
    pub(crate) quarantine: bool,
    /// A mistake in the crate, to show that it is found.
    pub(crate) mutant: Option<Mutant>,
}

/// How many of each may happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Faults {
    /// Steps of the clock while there is something to do: slow networks, stopped processes, long
    /// holds.
    pub(crate) delays: u8,
    /// Requests of the first process that do not wait. They are no fault, but join acquires of
    /// others.
    pub(crate) impatient: u8,
    /// Requests that give up waiting.
    pub(crate) cancellations: u8,
    /// Completions that Redis refuses, for want of memory or as a replica. They are tried again.
    pub(crate) refusals: u8,
    /// Connections that break. Replies and pushes are lost. Commands are lost too, or arrive at any
    /// later time.
    pub(crate) disconnections: u8,
    /// Processes that die.
    pub(crate) crashes: u8,
    /// Locks taken by a client of another kind, and released.
    pub(crate) foreign: u8,
    /// `FLUSHALL`, or a restart without data.
    pub(crate) data_losses: u8,
    /// Servers that take over, and lack the last write: nobody has the lock. All connections break.
    pub(crate) take_overs: u8,
    /// Messages that Redis publishes and no process gets.
    pub(crate) lost_pushes: u8,
    /// Commands of a waiting process that concern other keys. They are no fault, but their replies
    /// bound the age of a grant.
    pub(crate) other_commands: u8,
}

/// A rule of the crate, broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mutant {
    /// A grant counts from when it arrives.
    GrantCountsFromArrival,
    /// A grant counts from the newest reply seen when it is acted upon, not when it arrived.
    GrantCountsFromLaterReply,
    /// A lease counts from the reply.
    LeaseCountsFromReply,
    /// No process asks again, whatever was lost.
    NoFallback,
    /// A new connection is taken for the old one.
    ReconnectUnnoticed,
    /// A grant counts as valid for as long as a lease of its receiver's own would last.
    GrantTrustedForOwnTtl,
    /// A slot forgets a record as soon as it is sent.
    CompletionForgotten,
    /// A slot whose waiters are gone stays in back-off for no request.
    RestsForNobody,
    /// The fences of a write begin one too high.
    BlockSharedWrongly,
    /// A counter of fences that was lost is taken for the old one.
    LostCounterUnnoticed,
    /// Locks are given in quarantine.
    QuarantineIgnored,
    /// A new connection goes on with the epoch of the old one.
    QuarantineOnlyAtFirst,
    /// A new connection goes on with the counter of fences as it is.
    NoSeedAtReconnect,
    /// The counter of fences is raised to the clock when a process connects, and not later.
    SeedsOnlyAtConnect,
    /// The scripts are wrong.
    Script(Mutation),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct World {
    now: u64,
    redis: Redis,
    nodes: Vec<Node>,
    left: Faults,
    /// The highest one that Redis gave out.
    last_fence: u64,
    /// Of the newest lease that was trusted.
    last_fencing_token: u64,
    /// Of the newest that was not shared.
    last_alone: u64,
    /// A reader joined others while a writer waited.
    got_past: bool,
    fences_fell: bool,
    fencing_tokens_fell: bool,
    /// A fence was further behind the clock than seeds leave it.
    fence_is_late: bool,
    /// A record was put in the lock's place.
    is_completed: bool,
    /// A request got it.
    is_replayed: bool,
    /// A request got the lock while a record was in flight under a lease that lasted.
    ran_beside_record: bool,
    /// A lock expired for which a process waits. It is not told, and the next holder of the lock
    /// need not know of it, until it acquires again.
    has_expired: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Node {
    is_alive: bool,
    /// Whether Redis takes the process to be alive.
    is_subscribed: bool,
    slot: Slot<u64>,
    /// The last token, lease or waiter that was numbered.
    ids: u64,
    waiting: Vec<u64>,
    holders: Vec<Holder>,
    /// A number that the counter of fences had when this process connected.
    seed: u64,
    /// The server's epoch then, with quarantine. No lock is given before it ends.
    epoch: Option<Epoch>,
    /// When this process last raised the counter.
    seeded_at: u64,
    /// The connection is to a server that is gone.
    is_cut: bool,
    /// Sent, and not carried out.
    outgoing: Vec<Sent>,
    /// An acquire that was carried out, and its reply. Its fence is to be counted next.
    counting: Option<(Sent, Reply)>,
    /// Carried out or published, and not arrived.
    incoming: Vec<Incoming>,
    /// Sent on a connection that broke. May be carried out, in order, at any time.
    late: Vec<Late>,
    /// Completions that Redis refused, and when they were submitted.
    refused: Vec<(u64, u64)>,
    /// The token and the lease of a record in flight, as far as the process knows.
    recording: Option<(u64, Time)>,
    /// When the newest command was sent whose reply is here.
    observed: u64,
    /// The token whose lock went to another process, and when that one's grant must have expired.
    passed_on: Option<(u64, u64)>,
    requests: u8,
    reads: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Holder {
    lease: u64,
    token: u64,
    mode: Mode,
    until: Time,
    is_told: bool,
}

impl Node {
    fn holder(&mut self, lease: u64) -> Option<&mut Holder> {
        self.holders.iter_mut().find(|one| one.lease == lease)
    }
}

impl Holder {
    /// What a slot needs to know of it.
    fn grant(&self) -> Grant {
        Grant {
            lease: self.lease,
            token: self.token,
            mode: self.mode,
            fencing_token: 0,
            until: self.until,
            limit: self.until,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Sent {
    command: Command,
    at: u64,
    /// Whether it was sent before.
    is_repeated: bool,
    /// Whether the counter of fences is raised to the clock before it.
    seeds: bool,
}

/// A command on a connection that broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Late {
    command: Command,
    is_repeated: bool,
    seeds: bool,
}

impl Late {
    fn of(sent: Sent) -> Self {
        Self {
            command: sent.command,
            is_repeated: sent.is_repeated,
            seeds: sent.seeds,
        }
    }

    /// A release that gives a lock that is free to the next.
    fn regrant(token: u64) -> Self {
        Self {
            command: regrant(token),
            is_repeated: false,
            seeds: false,
        }
    }
}

/// What Redis says to a command.
enum Said {
    Reply(Reply),
    /// The lock that was to be released is the token's, and processes wait for it.
    ToBeGranted,
}

type Command = crate::store::Command<(), ()>;

/// A number that no request has, so that no request waits for its answer.
const NOBODY: u64 = u64::MAX;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Incoming {
    Reply(Sent, Reply),
    /// An error, and nothing was done.
    Refusal(Sent),
    /// Processes wait for the lock that was to be released, and nothing was done.
    ToBeGranted(Sent),
    /// The acquire was not sent: no lock is given in quarantine.
    Quarantined(Sent),
    /// The acquire was counted by a counter that has lost its number, or in another epoch.
    LostData(Sent),
    /// With the newest reply when it came, if it has arrived.
    Push(Message, Option<u64>),
    /// All that was watched may have changed.
    AllChanged,
}

impl Incoming {
    fn is_push(&self) -> bool {
        matches!(self, Self::Push(..) | Self::AllChanged)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Request(usize),
    Read(usize),
    RequestWithoutWaiting(usize),
    /// By its place among those who wait.
    Cancel(usize, usize),
    End(usize, usize),
    Complete(usize, usize),
    CarryOut(usize),
    Count(usize),
    CarryOutLate(usize),
    Refuse(usize),
    TryAgain(usize),
    Deliver(usize),
    /// A reply, ahead of the pushes that came before it.
    DeliverReplyFirst(usize),
    AskSomethingElse(usize),
    Tick(usize),
    LookAfterGrant(usize),
    TimePasses,
    Reconnect {
        node: usize,
        unanswered: Unanswered,
    },
    Crash(usize),
    NoticeCrash(usize),
    LosePush(usize),
    ForeignTakes,
    ForeignReleases,
    LoseData,
    TakeOver,
}

/// The fate of the commands without a reply when there is a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unanswered {
    /// They are sent again.
    SentAgain,
    /// They fail.
    Fail,
    /// They fail, as no reply came in time. After them, releases of the locks that they asked for
    /// go out on the old connection.
    GivenUp,
}

impl Plan {
    fn times(&self, node: usize) -> Times {
        let ttl_ms = match node {
            0 => self.first_ttl,
            _ => TTL,
        };
        Times {
            ttl_ms,
            grant_ttl_ms: ttl_ms.min(GRANT_TTL),
        }
    }

    fn rules(&self, node: usize) -> Rules {
        let times = self.times(node);
        Rules {
            ttl: Duration::from_millis(times.ttl_ms),
            renewal: Duration::from_millis(times.ttl_ms / 2),
            max_hold: Duration::from_secs(3600),
            grant_ttl: Duration::from_millis(times.grant_ttl_ms),
            max_waiters: 100,
            burst: 0,
            burst_time: Duration::ZERO,
        }
    }

    /// Returns whether it can be seen that the counter of fences is raised to the clock.
    fn may_lose_data(&self) -> bool {
        self.faults.data_losses > 0 || self.faults.take_overs > 0
    }

    fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }
}

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
    fn node_actions(&self, world: &World, number: usize, node: &Node, actions: &mut Vec<Action>) {
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

impl Node {
    /// Returns whether a request or a record stands behind what the slot has or wants.
    fn is_meant(&self) -> bool {
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
    fn tick_at(&self, plan: &Plan) -> Option<u64> {
        let at = self.slot.next_tick()?.as_nanos().div_ceil(1_000_000);
        let is_fallback = self.slot.census().in_store;
        (!(is_fallback && plan.is(Mutant::NoFallback))).then_some(at)
    }
}

impl World {
    fn living(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|node| node.is_alive)
    }

    /// Counts the processes that believe that they hold the lock.
    fn trusting(&self) -> usize {
        self.trusting_in(Mode::Exclusive) + self.trusting_in(Mode::Shared)
    }

    fn trusting_in(&self, mode: Mode) -> usize {
        let now = at(self.now);
        self.living()
            .flat_map(|node| &node.holders)
            .filter(|holder| holder.mode == mode && !holder.is_told && now < holder.until)
            .count()
    }

    fn has_lost_data(&self, plan: &Plan) -> bool {
        self.left.data_losses < plan.faults.data_losses
            || self.left.take_overs < plan.faults.take_overs
    }

    fn may_overlap(&self, plan: &Plan) -> bool {
        self.has_lost_data(plan) && !plan.quarantine
    }

    fn has_something_to_do(&self, plan: &Plan) -> bool {
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
    fn next_moment(&self, plan: &Plan) -> Option<u64> {
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

    fn had_accidents(&self, plan: &Plan) -> bool {
        self.left.disconnections < plan.faults.disconnections
            || self.left.refusals < plan.faults.refusals
            || self.left.crashes < plan.faults.crashes
            || self.left.foreign < plan.faults.foreign
            || self.has_lost_data(plan)
    }

    /// Returns whether a process that lives waits in the queue.
    fn waits_in_queue(&self) -> bool {
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
    fn leaves_nothing(&self, plan: &Plan) -> bool {
        let had_accidents = self.had_accidents(plan);
        match &self.redis.owner {
            Some(owner) if !matches!(owner.token, Token::Record(_)) => {
                had_accidents && owner.expires_ms.is_some()
            }
            _ => had_accidents || self.has_expired || self.redis.queue.is_empty(),
        }
    }

    fn act(&mut self, plan: &Plan, action: Action) {
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
                let node = &mut self.nodes[node];
                match said {
                    Said::Reply(reply) if is_counted_later(sent.command, &reply) => {
                        node.counting = Some((sent, reply));
                    }
                    Said::Reply(_)
                        if is_acquire(sent.command) && is_lost(plan, &self.redis, node) =>
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
    fn finish(&mut self, plan: &Plan, node: usize, holder: usize) {
        let holder = self.nodes[node].holders.remove(holder);
        self.event(plan, node, |machine| {
            machine.finished(holder.grant(), (), true);
        });
    }

    fn request(&mut self, plan: &Plan, node: usize, patient: bool, mode: Mode) {
        let acquiring = &mut self.nodes[node];
        acquiring.ids += 1;
        let number = acquiring.ids;
        acquiring.waiting.push(number);
        self.event(plan, node, |machine| {
            machine.request(number, number, patient, mode);
        });
    }

    /// A request is done with its lock and leaves a record.
    fn complete(&mut self, plan: &Plan, node: usize, holder: usize) {
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
    fn try_again(&mut self, plan: &Plan, number: usize) {
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

    fn deliver_reply_first(&mut self, plan: &Plan, node: usize) {
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

    fn deliver(&mut self, plan: &Plan, node: usize, incoming: Incoming) {
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

    fn reply(&mut self, plan: &Plan, node: usize, sent: Sent, answer: Reply) {
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

    fn push(&mut self, plan: &Plan, node: usize, message: Message, observed: Option<u64>) {
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
    fn reconnect(&mut self, plan: &Plan, number: usize, how: Unanswered) {
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

    fn fail(&mut self, plan: &Plan, number: usize, sent: Sent) {
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
    fn seed(&mut self, plan: &Plan, node: usize) {
        if self.redis.last_fence == 0 || plan.may_lose_data() {
            let seed = self.redis.seed(self.now * 1000);
            self.nodes[node].seed = seed.expect("no key has a wrong type");
            self.nodes[node].seeded_at = self.now;
        }
    }

    fn ask_for_epoch(&mut self, plan: &Plan, node: usize) {
        if plan.quarantine {
            let epoch = self.redis.quarantine(self.now, plan.times(node).ttl_ms);
            self.nodes[node].epoch = Some(epoch);
        }
    }

    /// Redis counts an acquire that it has carried out. One that did not get the lock leaves out a
    /// fence, which shows nowhere.
    fn count(&mut self, plan: &Plan, number: usize) {
        let node = &mut self.nodes[number];
        let (sent, mut reply) = node.counting.take().expect("one is to be counted");
        let is_lost = is_lost(plan, &self.redis, node);
        let mut given = None;
        if let Reply::Acquired { fence, .. } = &mut reply {
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
    fn carry_out(&mut self, plan: &Plan, node: usize, late: Late, sent_at: Option<u64>) -> Said {
        let Late {
            command,
            is_repeated,
            seeds,
        } = late;
        if seeds {
            self.redis.seed(self.now * 1000);
        }
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
        let redis = &mut self.redis;
        let outcome = match command {
            Command::Acquire {
                token,
                mode: Mode::Shared,
                queue,
                ..
            } => redis.share(now, times, ours(token), queue),
            Command::Renew {
                token,
                mode: Mode::Shared,
            } => redis.renew_shared(now, times, ours(token)),
            Command::Acquire {
                token,
                queue: false,
                watch: false,
                again: false,
                ..
            } if !is_repeated => redis.take(now, times, ours(token), plan.records),
            Command::Acquire { token, queue, .. } => {
                redis.acquire(now, times, ours(token), queue, plan.records)
            }
            Command::Release {
                token,
                contended: false,
                queued: false,
                ..
            } => redis.release(now, ours(token)),
            Command::Release { token, .. } => {
                let is_there = |process: Process| there[usize::from(process)];
                let server = Server {
                    seed: self.nodes[node].seed,
                    may_give: !is_quarantined(plan, &self.nodes[node], now),
                };
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
            crate::redis::Reply::Acquired { contended } => {
                let fence = 0;
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
    fn gave_out(&mut self, plan: &Plan, fence: u64, sent_at: Option<u64>) {
        self.fences_fell |= fence <= self.last_fence;
        self.last_fence = fence;
        let least = sent_at.map_or(0, |at| at.saturating_sub(SEED_EVERY) * 1000);
        self.fence_is_late |= plan.may_lose_data() && fence < least;
    }

    fn send(&mut self, plan: &Plan, node: usize, command: Command) {
        let sent = Sent {
            command,
            at: self.now,
            is_repeated: false,
            seeds: false,
        };
        self.put(plan, node, sent);
    }

    fn put(&mut self, plan: &Plan, number: usize, mut sent: Sent) {
        let node = &mut self.nodes[number];
        if is_acquire(sent.command) && is_quarantined(plan, node, self.now) {
            node.incoming.push(Incoming::Quarantined(sent));
            return;
        }
        let is_due = self.now - node.seeded_at >= SEED_EVERY;
        sent.seeds = is_due && plan.may_lose_data() && !plan.is(Mutant::SeedsOnlyAtConnect);
        if sent.seeds {
            node.seeded_at = self.now;
        }
        node.outgoing.push(sent);
    }

    /// Something happens to a process's state machine.
    fn event(
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

    fn follow(&mut self, plan: &Plan, number: usize, effect: &Effect<u64, (), ()>) {
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

fn is_quarantined(plan: &Plan, node: &Node, now: u64) -> bool {
    let is_over = node.epoch.is_none_or(|epoch| epoch.ends_ms <= now);
    !is_over && !plan.is(Mutant::QuarantineIgnored)
}

fn is_acquire(command: Command) -> bool {
    matches!(command, Command::Acquire { .. })
}

/// Returns whether it matters what happens between an acquire and its count: the token has the
/// lock, or is in the queue.
fn is_counted_later(command: Command, reply: &Reply) -> bool {
    match (command, reply) {
        (Command::Acquire { queue, .. }, Reply::HeldElsewhere { .. }) => queue,
        (Command::Acquire { .. }, Reply::Acquired { .. }) => true,
        _ => false,
    }
}

/// Returns whether a process sees, at its next count, that the counter was lost.
fn is_lost(plan: &Plan, redis: &Redis, node: &Node) -> bool {
    redis.last_fence < node.seed && !plan.is(Mutant::LostCounterUnnoticed)
        || plan.quarantine && redis.epoch != node.epoch
}

fn at(ms: u64) -> Time {
    Time::from_nanos(ms * 1_000_000)
}

fn completion(token: u64) -> Command {
    Command::Complete {
        token,
        record: (),
        reply: (),
    }
}

/// The second step of a release: the lock goes to the next.
fn grant(token: u64) -> Command {
    Command::Release {
        token,
        contended: true,
        queued: false,
        reply: (),
    }
}

/// Gives a lock that is free to the next in the queue. The token may be there.
fn regrant(token: u64) -> Command {
    Command::Release {
        token,
        contended: true,
        queued: true,
        reply: (),
    }
}
