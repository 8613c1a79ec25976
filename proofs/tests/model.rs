//! The lock as a model, explored state by state: the crate's own state machine in several
//! processes, and the logic of the scripts, which `scripts.rs` checks against a real Redis.
//!
//! Every mutant breaks one rule. That the checker finds each of them shows that it can.

#![allow(dead_code, unreachable_pub)]

#[path = "../../src/clock.rs"]
mod clock;
#[path = "../../src/error.rs"]
mod error;
#[path = "../../src/key"]
mod key {
    mod lock_key;

    pub(crate) use lock_key::LockKey;
}
#[path = "../../src/lease/terms.rs"]
mod lease;
#[path = "../../src/mode.rs"]
mod mode;
#[path = "../../src/manager/slot/mod.rs"]
mod slot;
#[path = "../../src/store/protocol.rs"]
mod store;
#[path = "../../src/manager/waiters.rs"]
mod waiters;

#[path = "model/redis.rs"]
mod redis;
#[path = "model/world/mod.rs"]
mod world;

use redis::Mutation;
use stateright::{Checker, HasDiscoveries, Model};
use world::{
    FENCES, FOLLOWS, Faults, LAST, MEANT, Mutant, ONCE, OVERLAP, PAST, PROMPT, Plan, SERVED, TTL,
};

const NONE: Faults = Faults {
    delays: 0,
    impatient: 0,
    cancellations: 0,
    refusals: 0,
    disconnections: 0,
    crashes: 0,
    foreign: 0,
    data_losses: 0,
    take_overs: 0,
    lost_pushes: 0,
    other_commands: 0,
};

/// How many faults of a kind there are: `all` of them with `MODEL_DEEP=1`, which explores tens of
/// millions of states and takes a quarter of an hour, and `few` without.
fn depth<T>(all: T, few: T) -> T {
    match is_deep() {
        true => all,
        false => few,
    }
}

fn is_deep() -> bool {
    std::env::var_os("MODEL_DEEP").is_some()
}

const PLAN: Plan = Plan {
    requests: &[],
    reads: &[],
    first_ttl: TTL,
    faults: NONE,
    records: false,
    quarantine: false,
    mutant: None,
};

fn holds(requests: &'static [u8], faults: Faults) {
    explore(Plan {
        requests,
        faults,
        ..PLAN
    });
}

/// The first numbers are of requests that have the lock alone, the second of those that share it.
fn holds_with_readers(requests: &'static [u8], reads: &'static [u8], faults: Faults) {
    explore(Plan {
        requests,
        reads,
        faults,
        ..PLAN
    });
}

fn finds_with_readers(
    property: &'static str,
    mutant: Mutant,
    requests: &'static [u8],
    reads: &'static [u8],
    faults: Faults,
) {
    let mutant = Some(mutant);
    finds_in(
        property,
        Plan {
            requests,
            reads,
            faults,
            mutant,
            ..PLAN
        },
    );
}

fn holds_with_records(requests: &'static [u8], faults: Faults) {
    explore(Plan {
        requests,
        faults,
        records: true,
        ..PLAN
    });
}

/// The first process has a quarter of the time to live of the others, and gives shorter grants.
fn holds_with_other_settings(requests: &'static [u8], faults: Faults) {
    for records in [false, true] {
        explore(Plan {
            requests,
            first_ttl: TTL / 4,
            faults,
            records,
            ..PLAN
        });
    }
}

fn explore(plan: Plan) {
    let checker = plan.checker().threads(2).spawn_dfs().join();
    println!(
        "{:?}: {} states",
        checker.model(),
        checker.unique_state_count()
    );
    checker.assert_properties();
}

fn finds(property: &'static str, mutant: Mutant, requests: &'static [u8], faults: Faults) {
    finds_in(
        property,
        Plan {
            requests,
            faults,
            // Only a plan with records has that property.
            records: property == LAST || property == ONCE,
            mutant: Some(mutant),
            ..PLAN
        },
    );
}

fn finds_in(property: &'static str, plan: Plan) {
    let mutant = plan.mutant.expect("something is to be found");
    let checker = plan
        .checker()
        .finish_when(HasDiscoveries::AllOf([property].into()))
        .spawn_bfs()
        .join();
    let found = checker.discovery(property).expect("it is found");
    println!(
        "{mutant:?} breaks \"{property}\": {:?}",
        found.into_actions()
    );
}

#[test]
fn without_faults() {
    holds(&[2, 2], NONE);
    holds(&[1, 1, 1], NONE);
}

#[test]
fn with_readers() {
    holds_with_readers(&[1, 0], &[1, 1], NONE);
    holds_with_readers(&[1, 1], &[1, 0], NONE);
    holds_with_readers(&[0, 0], &[2, 2], NONE);
    holds_with_readers(&[1, 0, 0], &[0, 1, 1], NONE);
}

#[test]
fn with_readers_and_slow_networks_and_stopped_processes() {
    let delays = 2;
    holds_with_readers(&[1, 0], &[0, 1], Faults { delays, ..NONE });
    let delays = 1;
    holds_with_readers(&[1, 0], &[0, 2], Faults { delays, ..NONE });
}

#[test]
fn with_readers_and_requests_that_give_up() {
    let cancellations = 1;
    let faults = Faults {
        cancellations,
        ..NONE
    };
    holds_with_readers(&[1, 0], &[1, 1], faults);
    holds_with_readers(&[1, 1], &[0, 1], faults);
}

#[test]
fn with_readers_and_connections_that_break() {
    let disconnections = 1;
    let faults = Faults {
        disconnections,
        ..NONE
    };
    holds_with_readers(&[1, 0], &[0, 1], faults);
    holds_with_readers(&[0, 0], &[1, 1], faults);
}

#[test]
fn with_readers_that_die() {
    let (delays, crashes) = (1, 1);
    let faults = Faults {
        delays,
        crashes,
        ..NONE
    };
    holds_with_readers(&[1, 0], &[0, 1], faults);
    holds_with_readers(&[1, 0, 0], &[0, 1, 1], Faults { crashes, ..NONE });
}

#[test]
fn with_readers_and_pushes_that_are_lost() {
    let (delays, lost_pushes) = (1, 1);
    let faults = Faults {
        delays,
        lost_pushes,
        ..NONE
    };
    holds_with_readers(&[1, 0], &[0, 1], faults);
    let faults = Faults {
        lost_pushes,
        ..NONE
    };
    holds_with_readers(&[1, 0, 0], &[0, 1, 1], faults);
}

#[test]
fn with_readers_and_clients_of_another_kind_and_data_that_is_lost() {
    let foreign = 1;
    holds_with_readers(&[1, 0], &[0, 1], Faults { foreign, ..NONE });
    let data_losses = 1;
    let faults = Faults {
        data_losses,
        ..NONE
    };
    holds_with_readers(&[1, 0], &[0, 1], faults);
}

#[test]
fn mutant_a_reader_let_past_a_waiting_writer() {
    let mutant = Mutant::Script(Mutation::ReaderPastWriter);
    finds_with_readers(PAST, mutant, &[1, 0, 0], &[0, 1, 1], NONE);
}

#[test]
fn mutant_a_writer_granted_while_a_reader_s_expiry_is_ahead() {
    let mutant = Mutant::Script(Mutation::WriterAmongReaders);
    finds_with_readers(OVERLAP, mutant, &[1, 0, 0], &[0, 1, 1], NONE);
}

#[test]
fn with_slow_networks_and_stopped_processes() {
    let delays = 3;
    holds(&[1, 1], Faults { delays, ..NONE });
    let (delays, other_commands) = (1, 1);
    holds(
        &[2, 1],
        Faults {
            delays,
            other_commands,
            ..NONE
        },
    );
}

#[test]
fn with_requests_that_give_up() {
    let (delays, cancellations) = (1, depth(2, 1));
    holds(
        &[2, 1],
        Faults {
            delays,
            cancellations,
            ..NONE
        },
    );
}

#[test]
fn with_connections_that_break() {
    let (delays, disconnections) = (1, 1);
    holds(
        &[1, 1],
        Faults {
            delays,
            disconnections,
            ..NONE
        },
    );
    let (cancellations, disconnections) = (depth(1, 0), 1);
    holds(
        &[2, 1],
        Faults {
            cancellations,
            disconnections,
            ..NONE
        },
    );
}

#[test]
fn with_answers_that_do_not_come_in_time() {
    let disconnections = depth(2, 1);
    holds(
        &[1, 2],
        Faults {
            disconnections,
            ..NONE
        },
    );
}

#[test]
fn with_processes_that_die() {
    let (delays, crashes) = (2, 1);
    holds(
        &[1, 1],
        Faults {
            delays,
            crashes,
            ..NONE
        },
    );
    holds(&[1, 1, 1], Faults { crashes, ..NONE });
}

#[test]
fn with_clients_of_another_kind() {
    let (delays, foreign) = (2, 1);
    holds(
        &[1, 1],
        Faults {
            delays,
            foreign,
            ..NONE
        },
    );
}

#[test]
fn with_pushes_that_are_lost() {
    let (delays, lost_pushes) = (2, 2);
    holds(
        &[1, 1],
        Faults {
            delays,
            lost_pushes,
            ..NONE
        },
    );
    holds(
        &[1, 1, 1],
        Faults {
            lost_pushes,
            ..NONE
        },
    );
}

#[test]
fn with_data_that_is_lost() {
    let (delays, data_losses) = (1, 1);
    holds(
        &[1, 1],
        Faults {
            delays,
            data_losses,
            ..NONE
        },
    );
}

#[test]
fn with_data_that_is_lost_and_quarantine() {
    let (delays, data_losses) = (1, 1);
    for records in [false, true] {
        explore(Plan {
            requests: &[1, 1],
            faults: Faults {
                delays,
                data_losses,
                ..NONE
            },
            records,
            quarantine: true,
            ..PLAN
        });
    }
}

#[test]
fn with_servers_that_take_over() {
    let (delays, take_overs) = (1, 1);
    holds(
        &[1, 1],
        Faults {
            delays,
            take_overs,
            ..NONE
        },
    );
}

#[test]
fn with_servers_that_take_over_and_quarantine() {
    let take_overs = 1;
    for (records, delays) in [(false, depth(2, 1)), (true, 1)] {
        explore(Plan {
            requests: &[1, 1],
            faults: Faults {
                delays,
                take_overs,
                ..NONE
            },
            records,
            quarantine: true,
            ..PLAN
        });
    }
}

#[test]
fn with_requests_that_do_not_wait() {
    let impatient = 2;
    holds(&[1, 1], Faults { impatient, ..NONE });
    let (impatient, delays) = (1, 1);
    holds(
        &[1, 1],
        Faults {
            impatient,
            delays,
            ..NONE
        },
    );
}

/// One request waits, another joins it without waiting, the first leaves, and no answer comes.
#[test]
fn with_requests_of_both_kinds_that_give_up_while_connections_break() {
    let (cancellations, disconnections) = (1, 1);
    let faults = Faults {
        cancellations,
        disconnections,
        ..NONE
    };
    let impatient = 1;
    holds(
        &[1, 1],
        Faults {
            impatient,
            ..faults
        },
    );
    let (impatient, foreign) = (depth(2, 1), 1);
    holds(
        &[1],
        Faults {
            impatient,
            foreign,
            ..faults
        },
    );
}

#[test]
fn with_processes_of_different_settings() {
    let delays = 1;
    holds_with_other_settings(&[2, 1], Faults { delays, ..NONE });
    let delays = depth(3, 2);
    holds_with_other_settings(&[1, 1], Faults { delays, ..NONE });
    let (delays, crashes) = (1, 1);
    holds_with_other_settings(
        &[1, 1],
        Faults {
            delays,
            crashes,
            ..NONE
        },
    );
    holds_with_other_settings(&[1, 1, 1], NONE);
}

#[test]
fn with_records_that_redis_refuses() {
    let (delays, refusals) = (2, 2);
    holds_with_records(
        &[1, 1],
        Faults {
            delays,
            refusals,
            ..NONE
        },
    );
    let (refusals, impatient) = (1, 1);
    holds_with_records(
        &[2, 1],
        Faults {
            refusals,
            impatient,
            ..NONE
        },
    );
    let (refusals, disconnections) = (1, 1);
    holds_with_records(
        &[1, 1],
        Faults {
            refusals,
            disconnections,
            ..NONE
        },
    );
    let (refusals, cancellations) = (1, 1);
    holds_with_records(
        &[2, 1],
        Faults {
            refusals,
            cancellations,
            ..NONE
        },
    );
}

#[test]
fn with_records() {
    holds_with_records(&[2, 2], NONE);
    holds_with_records(&[1, 1, 1], NONE);
}

#[test]
fn with_records_and_slow_networks() {
    let delays = 3;
    holds_with_records(&[1, 1], Faults { delays, ..NONE });
}

#[test]
fn with_records_and_connections_that_break() {
    let (delays, disconnections) = (1, 1);
    holds_with_records(
        &[1, 1],
        Faults {
            delays,
            disconnections,
            ..NONE
        },
    );
    holds_with_records(
        &[2, 1],
        Faults {
            disconnections,
            ..NONE
        },
    );
    let disconnections = 2;
    holds_with_records(
        &[1, 1],
        Faults {
            disconnections,
            ..NONE
        },
    );
}

#[test]
fn with_records_and_processes_that_die() {
    let (delays, crashes) = (2, 1);
    holds_with_records(
        &[1, 1],
        Faults {
            delays,
            crashes,
            ..NONE
        },
    );
    holds_with_records(&[1, 1, 1], Faults { crashes, ..NONE });
}

#[test]
fn with_records_and_pushes_that_are_lost() {
    let (delays, lost_pushes) = (2, 2);
    holds_with_records(
        &[1, 1],
        Faults {
            delays,
            lost_pushes,
            ..NONE
        },
    );
    holds_with_records(
        &[1, 1, 1],
        Faults {
            lost_pushes,
            ..NONE
        },
    );
}

#[test]
fn a_lease_that_counts_from_the_reply_overlaps() {
    finds(
        OVERLAP,
        Mutant::LeaseCountsFromReply,
        &[1, 1],
        Faults { delays: 4, ..NONE },
    );
}

#[test]
fn a_grant_that_counts_from_its_arrival_overlaps() {
    finds(
        OVERLAP,
        Mutant::GrantCountsFromArrival,
        &[2, 1],
        Faults { delays: 2, ..NONE },
    );
}

#[test]
fn a_grant_that_counts_from_a_reply_behind_it_overlaps() {
    let (delays, other_commands) = (2, 1);
    let faults = Faults {
        delays,
        other_commands,
        ..NONE
    };
    finds(OVERLAP, Mutant::GrantCountsFromLaterReply, &[2, 1], faults);
}

#[test]
fn without_a_fallback_a_lost_push_is_a_lost_wake_up() {
    finds(
        SERVED,
        Mutant::NoFallback,
        &[1, 1],
        Faults {
            lost_pushes: 1,
            ..NONE
        },
    );
}

#[test]
fn a_new_connection_that_is_not_noticed_loses_a_wake_up() {
    finds(
        SERVED,
        Mutant::ReconnectUnnoticed,
        &[1, 1],
        Faults {
            disconnections: 1,
            ..NONE
        },
    );
}

#[test]
fn a_release_without_token_check_overlaps() {
    let mutant = Mutant::Script(Mutation::ReleaseWithoutTokenCheck);
    finds(
        OVERLAP,
        mutant,
        &[2, 1],
        Faults {
            cancellations: 1,
            ..NONE
        },
    );
}

#[test]
fn a_grant_without_token_check_overlaps() {
    let mutant = Mutant::Script(Mutation::GrantWithoutTokenCheck);
    finds(
        OVERLAP,
        mutant,
        &[2, 1],
        Faults {
            cancellations: 1,
            ..NONE
        },
    );
}

#[test]
fn a_repeat_that_does_not_renew_overlaps() {
    let (delays, disconnections) = (2, 1);
    finds_in(
        OVERLAP,
        Plan {
            requests: &[1, 1],
            first_ttl: TTL / 2,
            faults: Faults {
                delays,
                disconnections,
                ..NONE
            },
            mutant: Some(Mutant::Script(Mutation::RepeatDoesNotRenew)),
            ..PLAN
        },
    );
}

#[test]
fn a_renewal_that_re_creates_overlaps() {
    let mutant = Mutant::Script(Mutation::RenewalRecreates);
    finds_in(
        OVERLAP,
        Plan {
            requests: &[2, 1],
            first_ttl: TTL / 2,
            faults: Faults { delays: 2, ..NONE },
            mutant: Some(mutant),
            ..PLAN
        },
    );
}

#[test]
fn fences_that_only_count_fall_when_the_data_is_lost() {
    let mutant = Mutant::Script(Mutation::FencesByIncrement);
    finds(
        FENCES,
        mutant,
        &[1, 1],
        Faults {
            data_losses: 1,
            ..NONE
        },
    );
}

#[test]
fn fences_fall_when_a_counter_that_was_lost_is_taken_for_the_old_one() {
    let faults = Faults {
        data_losses: 1,
        ..NONE
    };
    finds(FENCES, Mutant::LostCounterUnnoticed, &[1, 1], faults);
}

#[test]
fn a_lock_that_is_given_in_quarantine_overlaps() {
    finds_in(
        OVERLAP,
        Plan {
            requests: &[1, 1],
            faults: Faults {
                data_losses: 1,
                ..NONE
            },
            quarantine: true,
            mutant: Some(Mutant::QuarantineIgnored),
            ..PLAN
        },
    );
}

#[test]
fn a_quarantine_that_is_not_looked_for_on_a_new_connection_overlaps() {
    let mutants = [
        Mutant::QuarantineOnlyAtFirst,
        Mutant::Script(Mutation::EpochOfAnotherServer),
    ];
    for mutant in mutants {
        finds_in(
            OVERLAP,
            Plan {
                requests: &[1, 1],
                faults: Faults {
                    take_overs: 1,
                    ..NONE
                },
                quarantine: true,
                mutant: Some(mutant),
                ..PLAN
            },
        );
    }
}

#[test]
fn fences_fall_when_a_new_connection_does_not_seed_a_counter_that_was_lost() {
    let faults = Faults {
        data_losses: 1,
        ..NONE
    };
    finds(FENCES, Mutant::NoSeedAtReconnect, &[1, 1], faults);
}

#[test]
fn fences_that_are_seeded_at_connect_only_stay_behind_the_clock() {
    let (delays, data_losses) = (4, 1);
    let faults = Faults {
        delays,
        data_losses,
        ..NONE
    };
    finds(FOLLOWS, Mutant::SeedsOnlyAtConnect, &[2], faults);
}

#[test]
fn a_block_of_fences_that_begins_too_high_is_found() {
    finds(FENCES, Mutant::BlockSharedWrongly, &[1, 1], NONE);
}

/// The holder is also told. Only if that is lost, all depends on the mark.
#[test]
fn a_lock_without_a_mark_goes_to_no_waiter() {
    let lost_pushes = 1;
    let faults = Faults {
        lost_pushes,
        ..NONE
    };
    for mutation in [Mutation::NoMark, Mutation::ReleaseOfMarked] {
        finds(PROMPT, Mutant::Script(mutation), &[1, 1], faults);
    }
}

#[test]
fn a_lock_whose_mark_a_renewal_removes_goes_to_no_waiter() {
    let (delays, lost_pushes) = (2, 1);
    let faults = Faults {
        delays,
        lost_pushes,
        ..NONE
    };
    let mutant = Mutant::Script(Mutation::RenewalRemovesMark);
    finds(PROMPT, mutant, &[1, 1], faults);
}

#[test]
fn a_completion_without_token_check_ends_what_another_holds() {
    let mutant = Mutant::Script(Mutation::CompletionWithoutTokenCheck);
    finds(LAST, mutant, &[1, 1], Faults { crashes: 1, ..NONE });
}

#[test]
fn a_slot_that_rests_for_nobody_is_found() {
    let (impatient, cancellations, disconnections) = (1, 1, 1);
    let faults = Faults {
        impatient,
        cancellations,
        disconnections,
        ..NONE
    };
    finds(MEANT, Mutant::RestsForNobody, &[1, 1], faults);
}

#[test]
fn a_record_that_is_forgotten_before_it_is_there_is_found() {
    let refusals = 1;
    let faults = Faults { refusals, ..NONE };
    finds(ONCE, Mutant::CompletionForgotten, &[1, 1], faults);
    // A waiter in the same process is enough.
    finds(ONCE, Mutant::CompletionForgotten, &[2], faults);
}

#[test]
fn a_grant_that_is_trusted_for_longer_than_it_was_given_overlaps() {
    finds_in(
        OVERLAP,
        Plan {
            requests: &[2, 1],
            first_ttl: TTL / 4,
            faults: Faults { delays: 2, ..NONE },
            mutant: Some(Mutant::GrantTrustedForOwnTtl),
            ..PLAN
        },
    );
}
