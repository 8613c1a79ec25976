//! Random programs: what clients do, and in which order.

use std::fmt::Debug;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use crate::model::{Process, Record, Times};
use crate::{FOREIGN, NO_EPOCHS, NUMBERS, PROCESSES, RECORDS, TIMES};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Acquire {
        queue: bool,
        /// An earlier acquire had the same token.
        again: bool,
        may_be_record: bool,
    },
    Release {
        /// Whether the lock may be granted at once: it is known that processes wait, or the token
        /// may be in the queue.
        grants: bool,
    },
    Share {
        queue: bool,
    },
    Complete(Record),
    Renew,
    RenewShared,
    Check,
}

impl Kind {
    pub(crate) fn is_acquire(self) -> bool {
        matches!(self, Self::Acquire { .. } | Self::Share { .. })
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Operation {
    pub(crate) kind: Kind,
    pub(crate) key: usize,
    pub(crate) process: Process,
    pub(crate) number: u64,
}

/// What goes out in one write.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    /// Whose connection it is.
    pub(crate) client: Process,
    pub(crate) operations: Vec<Operation>,
    pub(crate) times: Times,
    /// Whether `SET` takes `NX` and `GET` together.
    pub(crate) takes_with_get: bool,
    /// Whether the counter of fences is raised to the clock first.
    pub(crate) is_seed_due: bool,
    pub(crate) may_give: bool,
    /// Whether all was sent before.
    pub(crate) is_repeated: bool,
    /// Whether the scripts come with it.
    pub(crate) by_source: bool,
}

/// Events besides calls, for the keys of one lock or for all.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Event {
    ForeignTakes(&'static str),
    ForeignSets(&'static str),
    ForeignQueues(&'static str),
    OwnerDeleted,
    OwnerPersisted,
    OwnerExpires,
    OwnerOfWrongType,
    QueueDeleted,
    QueueExpires,
    QueueOfWrongType,
    ReadersDeleted,
    /// The lease of one of those that share the lock expires: of the first by its name.
    ReaderOverdue,
    FenceOfWrongType,
    FenceDeleted,
    /// The clock is set back, as far as scripts can tell: the counter of fences is ahead.
    ClockSetBack,
    Flushed,
    EpochReplaced(&'static str),
    EpochSpoilt,
    /// Another server with the same data takes over, as far as scripts can tell.
    TakenOver,
}

#[derive(Clone, Debug)]
pub(crate) enum Step {
    Call(Call),
    /// A new connection, on which the counter of fences is seeded.
    Connects(Process, Settings),
    Listens(Process, bool),
    Happens(Event, usize),
    /// The server forgets the scripts.
    ScriptsFlushed,
    /// The server saves its data.
    Saves,
    /// The server is killed and started again. What it did not save is lost. All connect again.
    Restarts,
}

/// What a process is set to when it connects.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) ttl_ms: u64,
    pub(crate) quarantine: bool,
}

pub(crate) fn key() -> impl Strategy<Value = usize> {
    prop_oneof![4 => Just(0), 1 => Just(1)]
}

pub(crate) fn kind(shares: bool) -> impl Strategy<Value = Kind> {
    let share = |weight| if shares { weight } else { 0 };
    let acquire = prop_oneof![
        4 => Just((false, false)),
        5 => Just((true, false)),
        3 => Just((true, true)),
        1 => Just((false, true)),
    ];
    let acquire =
        (acquire, any::<bool>()).prop_map(|((queue, again), may_be_record)| Kind::Acquire {
            queue,
            again,
            may_be_record,
        });
    prop_oneof![
        10 => acquire,
        share(12) => any::<bool>().prop_map(|queue| Kind::Share { queue }),
        5 => any::<bool>().prop_map(|grants| Kind::Release { grants }),
        2 => (0..RECORDS.len() as Record).prop_map(Kind::Complete),
        2 => Just(Kind::Renew),
        share(2) => Just(Kind::RenewShared),
        1 => Just(Kind::Check),
    ]
}

pub(crate) fn operation(shares: bool) -> impl Strategy<Value = Operation> {
    (kind(shares), key(), select(&NUMBERS[..])).prop_map(|(kind, key, number)| Operation {
        kind,
        key,
        process: 0,
        number,
    })
}

pub(crate) fn plain_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => select(&FOREIGN[..]).prop_map(Event::ForeignTakes),
        1 => select(&FOREIGN[..]).prop_map(Event::ForeignSets),
        1 => select(&FOREIGN[..]).prop_map(Event::ForeignQueues),
        2 => Just(Event::OwnerDeleted),
        1 => Just(Event::OwnerPersisted),
        1 => Just(Event::QueueDeleted),
        1 => Just(Event::FenceDeleted),
        1 => Just(Event::Flushed),
    ]
}

pub(crate) fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        12 => plain_event(),
        2 => Just(Event::OwnerExpires),
        1 => Just(Event::QueueExpires),
        1 => Just(Event::ReadersDeleted),
        3 => Just(Event::ReaderOverdue),
        1 => Just(Event::OwnerOfWrongType),
        1 => Just(Event::QueueOfWrongType),
        1 => Just(Event::FenceOfWrongType),
        1 => Just(Event::ClockSetBack),
        1 => select(&NO_EPOCHS[..]).prop_map(Event::EpochReplaced),
        1 => Just(Event::EpochSpoilt),
        2 => Just(Event::TakenOver),
    ]
}

pub(crate) fn connects(process: impl Strategy<Value = Process>) -> impl Strategy<Value = Step> {
    let times = select(&TIMES[..]);
    (process, times, any::<bool>()).prop_map(|(process, times, quarantine)| {
        let ttl_ms = times.ttl_ms;
        Step::Connects(process, Settings { ttl_ms, quarantine })
    })
}

pub(crate) fn call(
    client: impl Strategy<Value = Process>,
    shares: bool,
) -> impl Strategy<Value = Step> {
    let often = || prop_oneof![5 => Just(true), 1 => Just(false)];
    let facts = (often(), often().prop_map(|not| !not), often());
    let operations = vec(operation(shares), 1..=4);
    (client, select(&TIMES[..]), facts, operations).prop_map(
        |(client, times, (takes_with_get, is_seed_due, may_give), mut operations)| {
            for operation in &mut operations {
                operation.process = client;
            }
            Step::Call(Call {
                client,
                operations,
                times,
                takes_with_get,
                is_seed_due,
                may_give,
                is_repeated: false,
                by_source: false,
            })
        },
    )
}

/// In every other program, no process shares a lock.
pub(crate) fn steps() -> impl Strategy<Value = Vec<Step>> {
    prop_oneof![steps_of(false), steps_of(true)]
}

pub(crate) fn steps_of(shares: bool) -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        40 => call(0..PROCESSES, shares),
        4 => connects(0..PROCESSES),
        6 => (0..PROCESSES, any::<bool>()).prop_map(|(process, does)| Step::Listens(process, does)),
        18 => (event(), key()).prop_map(|(event, key)| Step::Happens(event, key)),
        2 => Just(Step::ScriptsFlushed),
        2 => Just(Step::Saves),
        1 => Just(Step::Restarts),
    ];
    vec(step, 1..=40)
}

/// The calls of each process, and then those of a client of another kind, all at the same time.
pub(crate) fn programs() -> impl Strategy<Value = Vec<Vec<Step>>> {
    let process = |process| {
        let step = prop_oneof![
            8 => call(Just(process), true),
            1 => connects(Just(process)),
            1 => any::<bool>().prop_map(move |does| Step::Listens(process, does)),
        ];
        vec(step, 5..=25)
    };
    let foreign = (plain_event(), key()).prop_map(|(event, key)| Step::Happens(event, key));
    (process(0), process(1), process(2), vec(foreign, 0..=8))
        .prop_map(|(a, b, c, foreign)| vec![a, b, c, foreign])
}
