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

mod explored;
mod facts;
mod network;
mod steps;

use std::time::Duration;

use crate::clock::Time;
use crate::lease::Grant;
use crate::mode::Mode;
use crate::redis::{Epoch, Message, Mutation, Redis, Times};
use crate::slot::{Rules, Slot};
use crate::store::Reply;

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

fn is_quarantined(plan: &Plan, node: &Node, now: u64) -> bool {
    let is_over = node.epoch.is_none_or(|epoch| epoch.ends_ms <= now);
    !is_over && !plan.is(Mutant::QuarantineIgnored)
}

fn is_acquire(command: Command) -> bool {
    matches!(command, Command::Acquire { .. })
}

/// Returns whether an acquire is a command of Redis, and not a script.
fn is_take(command: Command, is_repeated: bool) -> bool {
    let is_plain = matches!(
        command,
        Command::Acquire {
            mode: Mode::Exclusive,
            queue: false,
            watch: false,
            again: false,
            ..
        }
    );
    is_plain && !is_repeated
}

/// Returns whether it matters what happens between an acquire and what is read behind it: the
/// count of a take, and the epoch. The token has the lock, or is in the queue.
fn is_read_later(command: Command, reply: &Reply) -> bool {
    match (command, reply) {
        (Command::Acquire { queue, .. }, Reply::HeldElsewhere { .. }) => queue,
        (Command::Acquire { .. }, Reply::Acquired { .. }) => true,
        _ => false,
    }
}

/// Returns whether a process sees behind an acquire that data was lost. A script's fence does not
/// show it.
fn is_lost(plan: &Plan, redis: &Redis, node: &Node, is_take: bool) -> bool {
    is_take && redis.last_fence < node.seed && !plan.is(Mutant::LostCounterUnnoticed)
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
