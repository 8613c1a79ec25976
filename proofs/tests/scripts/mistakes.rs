//! The comparison can fail: it notices every mistake that is put into the scripts.

use std::cell::{Cell, RefCell};
use std::fmt::Debug;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use redis::Value;

use crate::calls::{Link, Piece, Slip, Sources};
use crate::crowd::Crowd;
use crate::model::Mutation;
use crate::programs::{Call, Kind, Operation, programs, steps};
use crate::slips::SLIPS;
use crate::support::RedisServer;
use crate::wire::command;
use crate::world::{World, ask, connect_to};
use crate::{Check, OWNERS, SCRIPTS, Script, TIMES, config, fail};

/// The same cases in every run.
pub(crate) fn repeatable(cases: u32) -> TestRunner {
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let config = Config {
        max_shrink_iters: 0,
        ..config(cases)
    };
    TestRunner::new_with_rng(config, rng)
}

/// The scripts, with one thing in one of them replaced.
pub(crate) fn changed(script: Script, from: &str, to: &str) -> Sources {
    changed_in(Sources::as_they_are(), script, from, to)
}

pub(crate) fn changed_in(sources: Sources, script: Script, from: &str, to: &str) -> Sources {
    let mut sources = sources.sources;
    let source = &mut sources[script as usize];
    assert_eq!(source.matches(from).count(), 1, "not once there: {from}");
    *source = source.replace(from, to);
    Sources::new(sources, None)
}

/// The number of cases within which a mistake must be noticed.
pub(crate) const ENOUGH: u32 = 600;

/// Returns whether one of the cases ends differently than in the model. A panic does not count.
pub(crate) fn is_noticed<T: Debug>(
    cases: impl Strategy<Value = T>,
    mut run: impl FnMut(&T) -> Check,
) -> bool {
    let (run, noticed) = (RefCell::new(&mut run), Cell::new(false));
    let result = repeatable(ENOUGH).run(&cases, |case| {
        let result = run.borrow_mut()(&case);
        noticed.set(result.is_err());
        result.map_err(fail)
    });
    result.is_err() && noticed.get()
}

pub(crate) fn is_noticed_in_steps(sources: Sources) -> bool {
    let mut world = World::start(sources);
    is_noticed(steps(), |steps| world.run(None, steps))
}

/// Asserts that the mistake is noticed, and that it is the model's mistake of that name.
pub(crate) fn is_the_models(mutation: Mutation, sources: Sources) {
    assert!(is_noticed_in_steps(sources.clone()), "{mutation:?}");
    let world = RefCell::new(World::start(sources));
    repeatable(30)
        .run(&steps(), |steps| {
            world.borrow_mut().run(Some(mutation), &steps).map_err(fail)
        })
        .unwrap_or_else(|error| panic!("{mutation:?}: {error}"));
}

#[test]
fn a_release_without_a_look_at_the_token_is_noticed() {
    let from = "if value == ARGV[1] then";
    let to = "if redis.call('EXISTS', KEYS[1]) == 1 then";
    is_the_models(
        Mutation::ReleaseWithoutTokenCheck,
        changed(Script::Release, from, to),
    );
    let from = "(value == token or value == token .. '!')";
    let to = "call('EXISTS', lock) == 1";
    is_the_models(
        Mutation::GrantWithoutTokenCheck,
        changed(Script::Grant, from, to),
    );
}

#[test]
fn a_release_that_deletes_a_marked_lock_is_noticed() {
    let from = "if value == ARGV[1] then";
    let to = "if value == ARGV[1] or value == ARGV[1] .. '!' then";
    is_the_models(
        Mutation::ReleaseOfMarked,
        changed(Script::Release, from, to),
    );
}

#[test]
fn a_renewal_that_writes_the_lock_is_noticed() {
    let from = "\
if reply > 1 then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return reply";
    let to = "\
redis.call('SET', KEYS[1], reply == 3 and value or ARGV[1], 'PX', ARGV[2])
return math.max(reply, 2)";
    is_the_models(Mutation::RenewalRecreates, changed(Script::Renew, from, to));
}

#[test]
fn a_counter_that_does_not_follow_the_clock_is_noticed() {
    let from = "  counter = string.format('%.0f', clock)\n  redis.call('SET', KEYS[1], counter)\n";
    let to = "  counter = redis.call('INCRBY', KEYS[1], 0)\n";
    is_the_models(Mutation::FencesByIncrement, changed(Script::Seed, from, to));
}

#[test]
fn a_fence_from_a_counter_that_was_lost_is_noticed() {
    let from = "if fence <= tonumber(floor) then";
    let mut sources = Sources::as_they_are();
    for script in [Script::Acquire, Script::Share, Script::Grant] {
        sources = changed_in(sources, script, from, "if false then");
    }
    is_the_models(Mutation::FencesFromLostCounter, sources);
}

#[test]
fn a_second_place_in_the_queue_is_noticed() {
    // It fails as before where there is no queue to look into.
    let from = "not call('LPOS', queue, waits) and";
    let to = "call('LLEN', queue) and";
    is_the_models(Mutation::NoQueueOnce, changed(Script::Acquire, from, to));
}

#[test]
fn a_grant_to_a_process_that_is_gone_is_noticed() {
    let from = "if process and call('PUBSUB', 'NUMSUB', ARGV[3] .. process)[2] > 0 then";
    let to = "if process and #process == 32 then";
    let sources = changed(Script::Grant, from, to);
    let from = "if call('PUBSUB', 'NUMSUB', ARGV[3] .. process)[2] > 0 then";
    let to = "if #process == 32 then";
    let sources = changed_in(sources, Script::Grant, from, to);
    is_the_models(Mutation::GrantsToTheGone, sources);
}

#[test]
fn a_completion_without_a_look_at_the_token_is_noticed() {
    let from = "elseif value ~= token and value ~= token .. '!' then";
    let to = "elseif call('EXISTS', lock) == 0 then";
    is_the_models(
        Mutation::CompletionWithoutTokenCheck,
        changed(Script::Complete, from, to),
    );
}

#[test]
fn a_completion_that_tells_no_waiter_is_noticed() {
    let from = "call('PUBLISH', ARGV[4] .. process, 'c' .. number .. ':' .. lock)";
    is_the_models(
        Mutation::CompletionInSilence,
        changed(Script::Complete, from, ""),
    );
}

#[test]
fn a_completion_that_tells_waiters_only_of_a_marked_lock_is_noticed() {
    let from = "for _, waiting in";
    let to = "if value == token then return 2 end\nfor _, waiting in";
    is_the_models(
        Mutation::CompletionTrustsTheMark,
        changed(Script::Complete, from, to),
    );
}

#[test]
fn a_quarantine_that_looks_only_for_lost_data_is_noticed() {
    let from = "if known ~= server then";
    is_the_models(
        Mutation::EpochOfAnotherServer,
        changed(Script::Quarantine, from, "if not known then"),
    );
}

#[test]
fn a_quarantine_that_begins_with_every_connection_is_noticed() {
    let from = "if known ~= server then";
    is_the_models(
        Mutation::QuarantineStartsAgain,
        changed(Script::Quarantine, from, "do"),
    );
}

#[test]
fn a_queue_that_another_s_settings_shorten_is_noticed() {
    let from = "if length == 1 or call('PTTL', queue) < lasts then";
    is_the_models(
        Mutation::QueueIsShortened,
        changed(Script::Acquire, from, "do"),
    );
}

#[test]
fn a_mark_that_is_not_set_is_noticed() {
    let from = "    call('SET', lock, value .. '!', 'KEEPTTL')\n";
    is_the_models(Mutation::NoMark, changed(Script::Acquire, from, ""));
    let from = "waiting == 1 and next .. '!' or next, 'PX'";
    is_the_models(
        Mutation::GrantWithoutMark,
        changed(Script::Grant, from, "next, 'PX'"),
    );
}

#[test]
fn a_mark_that_is_lost_is_noticed() {
    let from = "redis.call('PEXPIRE', KEYS[1], ARGV[2])";
    let to = "redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])";
    is_the_models(
        Mutation::RenewalRemovesMark,
        changed(Script::Renew, from, to),
    );
    let from = "  call('PEXPIRE', lock, ttl)\n";
    let to = "  call('SET', lock, token, 'PX', ttl)\n";
    is_the_models(
        Mutation::RepeatRemovesMark,
        changed(Script::Acquire, from, to),
    );
}

#[test]
fn a_repeated_acquire_that_does_not_renew_is_noticed() {
    let from = "  call('PEXPIRE', lock, ttl)\n";
    is_the_models(
        Mutation::RepeatDoesNotRenew,
        changed(Script::Acquire, from, ""),
    );
}

#[test]
fn a_reader_that_gets_past_a_writer_is_noticed() {
    let from = "(not first or first == waits or call('ZSCORE', readers, token))";
    is_the_models(
        Mutation::ReaderPastWriter,
        changed(Script::Share, from, "(first ~= {})"),
    );
}

#[test]
fn a_writer_that_gets_the_lock_while_readers_have_it_is_noticed() {
    let from = "is_shared = call('EXISTS', readers) == 1";
    is_the_models(
        Mutation::WriterAmongReaders,
        changed(Script::Grant, from, "is_shared = false"),
    );
}

#[test]
fn a_renewal_for_all_readers_is_noticed() {
    let from = "call('PEXPIRE', readers, lasts)";
    let to = "for _, all in ipairs(call('ZRANGE', readers, '0', '-1')) do \
              call('ZADD', readers, call('ZSCORE', readers, token), all) end\n\
              call('PEXPIRE', readers, lasts)";
    is_the_models(
        Mutation::RenewalProlongsAll,
        changed(Script::RenewShared, from, to),
    );
}

#[test]
fn readers_that_are_let_in_one_by_one_are_noticed() {
    let from = "  next = call('LINDEX', queue, '0')\n";
    let to = "  next = #given == 0 and call('LINDEX', queue, '0')\n";
    let sources = changed(Script::Grant, from, to);
    let from = "may_give and call('LINDEX'";
    let to = "may_give and #given == 0 and call('LINDEX'";
    let sources = changed_in(sources, Script::Grant, from, to);
    is_the_models(Mutation::ReadersOneByOne, sources);
}

#[test]
fn every_slip_in_a_script_that_takes_is_noticed() {
    notices_slips(|script| matches!(script, Script::Acquire | Script::Share));
}

#[test]
fn every_slip_in_a_script_that_grants_is_noticed() {
    notices_slips(|script| matches!(script, Script::Grant));
}

#[test]
fn every_slip_in_another_script_is_noticed() {
    notices_slips(|script| !matches!(script, Script::Acquire | Script::Share | Script::Grant));
}

fn notices_slips(is_in: impl Fn(Script) -> bool) {
    let slips = SLIPS.iter().filter(|(script, ..)| is_in(*script));
    let is_unnoticed = |(script, from, to): &&(Script, &str, &str)| {
        !is_noticed_in_steps(changed(*script, from, to))
    };
    let unnoticed: Vec<_> = slips.filter(is_unnoticed).collect();
    assert!(unnoticed.is_empty(), "{unnoticed:#?}");
}

#[test]
fn every_mistake_with_fences_and_epochs_is_noticed() {
    for slip in [
        Slip::AllGetTheLastFence,
        Slip::BlockBeginsLate,
        Slip::BlockBeginsEarly,
        Slip::OneIsCounted,
        Slip::LostCounterIsUsed,
        Slip::NoSeedAtConnect,
        Slip::NoSeedWithCalls,
        Slip::AnotherEpochIsUsed,
    ] {
        let sources = Sources::new(SCRIPTS.map(str::to_owned), Some(slip));
        assert!(is_noticed_in_steps(sources), "{slip:?}");
    }
}

/// Holds for any value that another client put in the place of a lock or a record. Only `SET … GET`
/// has no bound.
#[test]
fn no_more_is_answered_than_shows_that_it_is_too_long_for_a_record() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let server = runtime.block_on(RedisServer::start());
    let mut client = connect_to(&server);
    let (key, process, number) = (0, 0, 1);
    let long = "x".repeat(1 << 20);
    ask(&mut client, &[command(&["SET", OWNERS[key], &long])]);
    let start = |length: usize| Value::BulkString(long.as_bytes()[..length].into());
    let acquire = |queue, again, may_be_record| Kind::Acquire {
        queue,
        again,
        may_be_record,
    };
    for (kind, expected) in [
        (acquire(true, false, true), start(16385)),
        (acquire(false, true, true), start(16385)),
        (acquire(false, true, false), Value::Int(-4)),
        (acquire(false, false, true), start(16385)),
        (acquire(false, false, false), start(16385)),
        (Kind::Complete(0), Value::Int(1)),
        (Kind::Renew, Value::Int(1)),
        (Kind::Share { queue: true }, Value::Int(-4)),
        (Kind::RenewShared, Value::Int(1)),
        (Kind::Check, start(65)),
        (Kind::Release { grants: false }, Value::Int(1)),
        (Kind::Release { grants: true }, Value::Int(1)),
    ] {
        let operation = Operation {
            kind,
            key,
            process,
            number,
        };
        let call = Call {
            client: process,
            operations: vec![operation],
            times: TIMES[0],
            takes_with_get: false,
            is_seed_due: false,
            may_give: true,
            is_repeated: false,
            by_source: true,
        };
        let mut pieces = call.pieces(&Link::default(), None);
        pieces.retain(|piece| !matches!(piece, Piece::Count(_)));
        let sources = Sources::as_they_are();
        let server = Link::default().server(true, false);
        let commands = pieces
            .iter()
            .map(|piece| sources.command(&call, server, *piece));
        let replies = ask(&mut client, &commands.collect::<Vec<_>>());
        assert_eq!(replies.last(), Some(&expected), "{kind:?}");
        let length = ask(&mut client, &[command(&["STRLEN", OWNERS[key]])]);
        assert_eq!(length, [Value::Int(1 << 20)]);
    }
}

#[test]
fn a_mistake_is_also_noticed_among_clients_at_the_same_time() {
    let numsub = "if process and call('PUBSUB', 'NUMSUB', ARGV[3] .. process)[2] > 0 then";
    let release = "if value == ARGV[1] then";
    for (script, from, to) in [
        (Script::Release, release, "if value ~= '' then"),
        (Script::Grant, numsub, "if process then"),
        (
            Script::Grant,
            "waiting == 1 and next .. '!' or next, 'PX'",
            "next, 'PX'",
        ),
    ] {
        let mut crowd = Crowd::start(changed(script, from, to));
        assert!(
            is_noticed(programs(), |programs| crowd.run(programs)),
            "{from} => {to}"
        );
    }
}
