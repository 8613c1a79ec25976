//! The crate's commands and scripts against a model of them: whatever clients do, and in any order,
//! both reply, publish and keep the same.
//!
//! Keys and arguments are those of `src/store/redis/commands.rs`. What the crate does with a call
//! that found no scripts, a counter that was lost, or a lock with a mark, is done here, too.

mod calls;
mod crowd;
mod mistakes;
#[path = "../model/redis.rs"]
mod model;
mod oracle;
mod programs;
mod slips;
#[path = "../../../tests/support/mod.rs"]
mod support;
mod wire;
mod world;

use std::cell::RefCell;
use std::fmt::Debug;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use calls::Sources;
use crowd::Crowd;
use mistakes::changed;
use model::{Process, Times};
use programs::{Call, Event, Kind, Operation, Step, programs, steps};
use world::World;

/// One script for each operation that no command of Redis does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Script {
    Acquire,
    Share,
    Release,
    Grant,
    Renew,
    RenewShared,
    Complete,
    Seed,
    Quarantine,
}

const SCRIPTS: [&str; 9] = [
    concat!(
        include_str!("../../../src/store/redis/scripts/parts/fence.lua"),
        include_str!("../../../src/store/redis/scripts/acquire.lua"),
        include_str!("../../../src/store/redis/scripts/parts/queue.lua"),
    ),
    concat!(
        include_str!("../../../src/store/redis/scripts/parts/fence.lua"),
        include_str!("../../../src/store/redis/scripts/share.lua"),
        include_str!("../../../src/store/redis/scripts/parts/queue.lua"),
    ),
    include_str!("../../../src/store/redis/scripts/release.lua"),
    concat!(
        include_str!("../../../src/store/redis/scripts/parts/fence.lua"),
        include_str!("../../../src/store/redis/scripts/grant.lua"),
        include_str!("../../../src/store/redis/scripts/parts/to_a_writer.lua"),
        include_str!("../../../src/store/redis/scripts/parts/to_readers.lua"),
    ),
    include_str!("../../../src/store/redis/scripts/renew.lua"),
    include_str!("../../../src/store/redis/scripts/renew_shared.lua"),
    include_str!("../../../src/store/redis/scripts/complete.lua"),
    include_str!("../../../src/store/redis/scripts/seed.lua"),
    include_str!("../../../src/store/redis/scripts/quarantine.lua"),
];

// The names that the crate gives to its keys and channels, with the prefix `lock:`.
const FENCE: &str = "{lock:}:fence";
const EPOCH: &str = "{lock:}:epoch";
/// No fence is larger.
const MAX_FENCE: u64 = 1 << 53;
const INBOX: &str = "lock:inbox:";
const OWNERS: [&str; 2] = ["lock:a", "lock:{u}b"];
const QUEUES: [&str; 2] = ["{lock:a}:queue", "{u}:queue:lock:{u}b"];
const READERS: [&str; 2] = ["{lock:a}:readers", "{u}:readers:lock:{u}b"];

const PROCESSES: Process = 3;
const NUMBERS: [u64; 2] = [1, u64::MAX];

/// Values that clients of another kind write. Some are nearly a token of ours.
const FOREIGN: [&str; 11] = [
    "",
    "somebody",
    "x:1",
    "a0:1",
    "000000000000000000000000000000a0",
    "000000000000000000000000000000a0:",
    "000000000000000000000000000000a0:1x",
    "000000000000000000000000000000a0:1!!",
    "000000000000000000000000000000a0:!",
    "0000000000000000000000000000000a0:1",
    "000000000000000000000000000000g0:1",
];

/// Values that are no epoch, and that another client writes in its place.
const NO_EPOCHS: [&str; 3] = ["", "0", "g0 1700000000000"];

/// Records, which are put in a lock's place: any bytes that are no token. None is among `FOREIGN`.
const RECORDS: [&[u8]; 2] = [
    b"\x01\0\xff\r\n:\"1",
    b"000000000000000000000000000000a0:-1",
];

// None of them runs out by itself. No two are alike within the tolerance, nor are the queue's
// times, which follow from them.
const TIMES: [Times; 2] = [
    Times {
        ttl_ms: 60_000,
        grant_ttl_ms: 20_000,
    },
    Times {
        ttl_ms: 43_000,
        grant_ttl_ms: 30_000,
    },
];
const FOREIGN_TTL_MS: u64 = 100_000;
const RETENTION_MS: u64 = 150_000;
const TOLERANCE_MS: u64 = 5_000;

type Check = Result<(), String>;

fn ensure(holds: bool, otherwise: impl FnOnce() -> String) -> Check {
    if holds { Ok(()) } else { Err(otherwise()) }
}

fn same<T: PartialEq + Debug>(what: &str, real: &T, model: &T) -> Check {
    ensure(real == model, || {
        format!("{what}: the server has {real:?}, the model {model:?}")
    })
}

fn config(cases: u32) -> Config {
    Config {
        cases,
        failure_persistence: None,
        max_shrink_iters: 2000,
        ..Config::default()
    }
}

fn fail(error: String) -> TestCaseError {
    TestCaseError::fail(error)
}

#[test]
fn whatever_clients_do_redis_replies_tells_and_keeps_what_the_model_does() {
    let world = RefCell::new(World::start(Sources::as_they_are()));
    TestRunner::new(config(100))
        .run(&steps(), |steps| {
            world.borrow_mut().run(None, &steps).map_err(fail)
        })
        .unwrap_or_else(|error| panic!("{error}"));
}

/// One command of a process.
fn one(client: Process, kind: Kind) -> Step {
    Step::Call(Call {
        client,
        operations: vec![Operation {
            kind,
            key: 0,
            process: client,
            number: 1,
        }],
        times: TIMES[0],
        takes_with_get: true,
        is_seed_due: false,
        may_give: true,
        is_repeated: false,
        by_source: false,
    })
}

/// A reader that waits if it must.
const SHARE: Kind = Kind::Share { queue: true };

/// An acquire with a new token.
fn acquire(queue: bool, may_be_record: bool) -> Kind {
    Kind::Acquire {
        queue,
        again: false,
        may_be_record,
    }
}

/// Asserts that these steps hold, and do not with that change.
fn only_without(steps: &[Step], script: Script, from: &str, to: &str) {
    let mut world = World::start(Sources::as_they_are());
    world.run(None, steps).unwrap();
    let mut world = World::start(changed(script, from, to));
    world.run(None, steps).unwrap_err();
}

#[test]
fn a_reader_at_the_head_of_the_queue_joins_those_that_share() {
    let acquire = acquire(false, false);
    // The first waits for a lease that expires; the second shares the free lock.
    let steps = [
        one(0, acquire),
        one(1, SHARE),
        Step::Happens(Event::OwnerExpires, 0),
        one(2, SHARE),
        one(1, SHARE),
    ];
    only_without(&steps, Script::Share, "first == waits or ", "");
}

#[test]
fn those_that_are_gone_keep_no_reader_out() {
    let garbage = Step::Happens(Event::ForeignQueues(FOREIGN[1]), 0);
    let gone = Step::Listens(2, false);
    let steps = [
        one(0, SHARE),
        garbage,
        one(2, acquire(true, false)),
        gone,
        one(1, SHARE),
    ];
    only_without(&steps, Script::Share, "if process and call", "if call");
    only_without(&steps, Script::Share, "while first do", "while false do");
}

#[test]
fn no_reader_is_let_in_where_no_lock_may_be_given() {
    let acquire = acquire(true, false);
    let mut gives_up = one(1, Kind::Release { grants: true });
    if let Step::Call(call) = &mut gives_up {
        call.may_give = false;
    }
    let steps = [one(0, SHARE), one(1, acquire), one(2, SHARE), gives_up];
    only_without(
        &steps,
        Script::Grant,
        "may_give and call('LINDEX'",
        "call('LINDEX'",
    );
}

#[test]
fn a_grant_to_readers_begins_with_none() {
    let acquire = acquire(false, false);
    // The lock of the first is deleted. It does not share that of the last.
    let steps = [
        one(0, SHARE),
        Step::Happens(Event::OwnerDeleted, 0),
        one(1, acquire),
        one(2, SHARE),
        one(1, Kind::Release { grants: true }),
        one(0, Kind::RenewShared),
    ];
    only_without(&steps, Script::Grant, "  call('DEL', readers)\n", "");
}

/// A take does not look into the queue, and leaves no mark.
#[test]
fn those_who_waited_for_a_lease_that_expired_are_told_of_a_record() {
    let acquire = |queue| acquire(queue, true);
    let steps = [
        one(0, acquire(false)),
        one(1, acquire(true)),
        Step::Happens(Event::OwnerExpires, 0),
        one(2, acquire(false)),
        one(2, Kind::Complete(0)),
    ];
    // Where only a marked lock's waiters are told, this fails.
    let from = "for _, waiting in";
    let to = "if value == token then return 2 end\nfor _, waiting in";
    only_without(&steps, Script::Complete, from, to);
}

/// A script that draws several fences reads the clock for each.
#[test]
fn a_grant_to_readers_draws_each_fence_by_the_clock_of_its_own_moment() {
    let by = |process, kind| {
        let mut step = one(process, kind);
        if let Step::Call(call) = &mut step {
            call.client = 0;
            call.is_seed_due = true;
        }
        step
    };
    let steps = vec![
        by(0, acquire(false, false)),
        by(1, SHARE),
        by(2, SHARE),
        by(0, Kind::Release { grants: true }),
    ];
    let mut crowd = Crowd::start(Sources::as_they_are());
    for _ in 0..20 {
        let programs = [steps.clone(), Vec::new(), Vec::new(), Vec::new()];
        crowd.run(&programs).unwrap();
    }
}

#[test]
fn clients_at_the_same_time_are_served_as_if_one_after_the_other() {
    const CASES: u32 = 40;
    let crowd = RefCell::new(Crowd::start(Sources::as_they_are()));
    TestRunner::new(config(CASES))
        .run(&programs(), |programs| {
            crowd.borrow_mut().run(&programs).map_err(fail)
        })
        .unwrap_or_else(|error| panic!("{error}"));
    let turns = crowd.borrow().turns;
    assert!(turns > 5 * CASES as usize, "only {turns} turns");
}
