//! The lock as a model, explored state by state: the crate's own state machine in several processes, and the scripts'
//! logic (which `tests/scripts.rs` checks against a real Redis).
//!
//! Every mutant breaks one rule. That the checker finds each shows that it can.

#![allow(dead_code, unreachable_pub)]

#[path = "../src/clock.rs"]
mod clock;
#[path = "../src/error.rs"]
mod error;
#[path = "../src/manager/slot/mod.rs"]
mod slot;
#[path = "../src/store/protocol.rs"]
mod store;
#[path = "../src/manager/waiters.rs"]
mod waiters;

#[path = "model/redis.rs"]
mod redis;
#[path = "model/world.rs"]
mod world;

use redis::Mutation;
use stateright::{Checker, HasDiscoveries, Model};
use world::{FENCES, Faults, LAST, Mutant, OVERLAP, Plan, SERVED};

const NONE: Faults = Faults {
    delays: 0,
    cancellations: 0,
    disconnections: 0,
    crashes: 0,
    foreign: 0,
    data_losses: 0,
    lost_pushes: 0,
    other_commands: 0,
};

fn holds(requests: &'static [u8], faults: Faults) {
    explore(Plan {
        requests,
        faults,
        records: false,
        mutant: None,
    });
}

fn holds_with_records(requests: &'static [u8], faults: Faults) {
    explore(Plan {
        requests,
        faults,
        records: true,
        mutant: None,
    });
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
    let plan = Plan {
        requests,
        faults,
        // Only a plan with records has that property.
        records: property == LAST,
        mutant: Some(mutant),
    };
    let checker = plan
        .checker()
        .finish_when(HasDiscoveries::AllOf([property].into()))
        .spawn_dfs()
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
    let (delays, cancellations) = (1, 2);
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
    let (cancellations, disconnections) = (1, 1);
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
    let disconnections = 2;
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
fn a_renewal_that_re_creates_overlaps() {
    let mutant = Mutant::Script(Mutation::RenewalRecreates);
    finds(OVERLAP, mutant, &[2, 2], Faults { delays: 2, ..NONE });
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
fn a_completion_without_token_check_ends_what_another_holds() {
    let mutant = Mutant::Script(Mutation::CompletionWithoutTokenCheck);
    finds(LAST, mutant, &[1, 1], Faults { crashes: 1, ..NONE });
}
