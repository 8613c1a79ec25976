//! What a case does, step by step.

use proptest::collection::vec;
use proptest::prelude::*;

use crate::mode::Mode;

/// Managers, and keys, of a case: the first keys are locks, the others records.
pub(super) const MANAGERS: usize = 2;
pub(super) const KEYS: usize = 4;

#[derive(Clone, Debug)]
pub(super) enum Step {
    /// A request, which waits for so many ms at the most. If it is `touchy`, its waker panics.
    Take {
        manager: usize,
        key: usize,
        wait: Option<u64>,
        mode: Mode,
        touchy: bool,
    },
    /// A request for both locks, which it names in any order.
    TakeBoth {
        manager: usize,
        wait: Option<u64>,
        touchy: bool,
    },
    /// The future of a request, of a release or of a completion is dropped: the one with this place
    /// among those that there are.
    Cancel(usize),
    End {
        guard: usize,
        end: End,
        touchy: bool,
    },
    /// A task waits for the loss of a lock.
    Watch {
        guard: usize,
        touchy: bool,
    },
    /// Time passes, in ms. If it is `served`, all commands get to the server meanwhile, and all
    /// replies back.
    Pass {
        ms: u64,
        served: bool,
    },
    /// Everything that is in flight to this manager or from it arrives, and so does what follows
    /// from that.
    Exchange(usize),
    /// One call is carried out. Its reply arrives after that time.
    Slowly {
        manager: usize,
        ms: u64,
    },
    /// All commands that were not sent yet go out together.
    Send(usize),
    CarryOut(usize),
    /// One command of the oldest call is carried out. What follows it may wait for any time.
    CarryOutNext(usize),
    /// The server forgets its scripts.
    ForgetScripts(usize),
    /// The next replies and notices arrive, one after the other, before any request gets to run.
    Deliver {
        manager: usize,
        count: usize,
        tamper: Tamper,
    },
    Break {
        manager: usize,
        fate: Fate,
        late: bool,
    },
    /// No new connection can be made: what is queued fails.
    FailQueued(usize),
    Reconnect(usize),
    /// The server carries out the next command that was sent on a connection that broke.
    CarryOutLate(usize),
    /// From now on, the server refuses completions, or accepts them again.
    Refuse {
        manager: usize,
        refuses: bool,
    },
    /// Whether grants come with a time.
    Dates {
        manager: usize,
        dates: bool,
    },
    Notice {
        manager: usize,
        key: usize,
        notice: Unasked,
    },
    /// Another process takes the lock, queues for it, or releases it.
    Neighbour(usize),
    /// A client of another kind takes the lock, or releases it.
    Foreign(usize),
    /// A client of another kind overwrites the lock.
    Overwrite(usize),
    /// The server loses its data.
    Flush,
    /// From now on, the subscriber of events panics, or no longer does.
    Subscriber {
        panics: bool,
    },
}

#[derive(Clone, Copy, Debug)]
pub(super) enum End {
    Dropped,
    Released,
    Completed,
}

/// What is wrong with the next reply, for one of its commands.
#[derive(Clone, Copy, Debug)]
pub(super) enum Tamper {
    Nothing,
    /// It is replaced by some other reply, which may not fit the command.
    Unfit {
        command: usize,
        reply: usize,
    },
    Twice {
        command: usize,
    },
    /// The server says that the command failed.
    Error {
        command: usize,
    },
}

/// What becomes of the commands without a reply when a connection breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    SentAgain,
    Fail,
    /// No reply came in time: they fail, and releases follow them on the old connection.
    GivenUp,
}

/// A notice for which the server has no reason.
#[derive(Clone, Copy, Debug)]
pub(super) enum Unasked {
    Changed,
    AllChanged,
    Contended(Whom),
    Granted { whom: Whom, dated: bool, ttl: u64 },
}

/// The token that a notice is about.
#[derive(Clone, Copy, Debug)]
pub(super) enum Whom {
    Holder,
    Waiter,
    /// A token that was never used.
    Unknown,
}

pub(super) fn programs() -> impl Strategy<Value = Vec<Step>> {
    vec(step(), 0..24)
}

fn step() -> impl Strategy<Value = Step> {
    let manager = || prop_oneof![3 => Just(0), 1 => Just(1)];
    // Most requests want the same lock, or the same record.
    let key = || prop_oneof![3 => Just(0), 1 => Just(1), 3 => Just(2), 1 => Just(3)];
    let rarely = || prop::bool::weighted(0.2);
    let wait = prop::option::weighted(0.7, 1..2000_u64);
    let mode = prop_oneof![Just(Mode::Exclusive), Just(Mode::Shared)];
    let take = (manager(), key(), wait.clone(), mode, rarely());
    let take_both = (manager(), wait, rarely());
    let end = (0..4_usize, end(), rarely());
    prop_oneof![
        20 => take.prop_map(|(manager, key, wait, mode, touchy)| Step::Take {
            manager,
            key,
            wait,
            mode,
            touchy
        }),
        8 => take_both.prop_map(|(manager, wait, touchy)| Step::TakeBoth {
            manager,
            wait,
            touchy
        }),
        2 => (0..4_usize).prop_map(Step::Cancel),
        10 => end.prop_map(|(guard, end, touchy)| Step::End { guard, end, touchy }),
        3 => (0..4_usize, rarely()).prop_map(|(guard, touchy)| Step::Watch { guard, touchy }),
        10 => (1..1200_u64, prop::bool::weighted(0.7))
            .prop_map(|(ms, served)| Step::Pass { ms, served }),
        12 => manager().prop_map(Step::Exchange),
        4 => (manager(), 1..190_u64).prop_map(|(manager, ms)| Step::Slowly { manager, ms }),
        5 => manager().prop_map(Step::Send),
        5 => manager().prop_map(Step::CarryOut),
        5 => manager().prop_map(Step::CarryOutNext),
        1 => manager().prop_map(Step::ForgetScripts),
        6 => (manager(), 1..4_usize, tamper())
            .prop_map(|(manager, count, tamper)| Step::Deliver { manager, count, tamper }),
        2 => (manager(), fate(), any::<bool>())
            .prop_map(|(manager, fate, late)| Step::Break { manager, fate, late }),
        1 => manager().prop_map(Step::FailQueued),
        3 => manager().prop_map(Step::Reconnect),
        1 => manager().prop_map(Step::CarryOutLate),
        3 => (manager(), any::<bool>())
            .prop_map(|(manager, refuses)| Step::Refuse { manager, refuses }),
        1 => (manager(), any::<bool>())
            .prop_map(|(manager, dates)| Step::Dates { manager, dates }),
        3 => (manager(), key(), unasked())
            .prop_map(|(manager, key, notice)| Step::Notice { manager, key, notice }),
        4 => key().prop_map(Step::Neighbour),
        2 => key().prop_map(Step::Foreign),
        1 => key().prop_map(Step::Overwrite),
        1 => Just(Step::Flush),
        1 => any::<bool>().prop_map(|panics| Step::Subscriber { panics }),
    ]
}

fn end() -> impl Strategy<Value = End> {
    prop_oneof![
        Just(End::Dropped),
        Just(End::Released),
        Just(End::Completed),
    ]
}

fn tamper() -> impl Strategy<Value = Tamper> {
    prop_oneof![
        12 => Just(Tamper::Nothing),
        1 => (0..3_usize, 0..8_usize)
            .prop_map(|(command, reply)| Tamper::Unfit { command, reply }),
        1 => (0..3_usize).prop_map(|command| Tamper::Twice { command }),
        2 => (0..3_usize).prop_map(|command| Tamper::Error { command }),
    ]
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![Just(Fate::SentAgain), Just(Fate::Fail), Just(Fate::GivenUp)]
}

fn unasked() -> impl Strategy<Value = Unasked> {
    let whom = || prop_oneof![Just(Whom::Holder), Just(Whom::Waiter), Just(Whom::Unknown)];
    prop_oneof![
        2 => Just(Unasked::Changed),
        1 => Just(Unasked::AllChanged),
        2 => whom().prop_map(Unasked::Contended),
        1 => (whom(), any::<bool>(), 1..3000_u64)
            .prop_map(|(whom, dated, ttl)| Unasked::Granted { whom, dated, ttl }),
    ]
}
