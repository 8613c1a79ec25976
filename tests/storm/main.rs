//! Webhooks in a storm: nodes that are killed, handlers that fail, clients that leave, and each
//! event many times over.
//!
//! Three nodes, processes of their own, serve HTTP with an `IdempotencyLayer`; a sender delivers
//! each event several times, to any of them, until it has a 200. What must come of it is in
//! `audit.rs`.
//!
//! This program is also the node. `STORM_SEED` in the environment repeats a storm, as far as the
//! order in which the processes get to run does not matter.

#![allow(unreachable_pub)]

#[macro_use]
#[path = "../support/harness.rs"]
mod harness;
#[path = "../support/mod.rs"]
mod support;

mod audit;
mod client;
mod cluster;
mod node;
mod sender;
mod stall;
mod storage;
mod weather;

use std::process::ExitCode;

use audit::Findings;
use client::Answer;
use storage::{Entry, Run, Visit};
use weather::{EVENTS, Weather, calm_after};

tests! {
    without_kills_each_event_takes_effect_once
    with_kills_only_a_run_that_was_cut_off_is_repeated
    during_a_deployment_and_out_of_memory_only_a_run_past_its_lease_is_repeated
    the_audit_tells_a_run_past_its_lease_from_one_too_many
    the_audit_tells_readers_of_an_account_from_a_writer_among_them
}

fn main() -> ExitCode {
    if std::env::var_os(node::NODE).is_some() {
        node::serve();
        return ExitCode::SUCCESS;
    }
    harness::run(TESTS)
}

async fn without_kills_each_event_takes_effect_once() {
    calm_after(Weather::new(2000), |storm, violations| {
        let mut must = |holds: bool, what: &str| {
            if !holds {
                violations.push(format!("not so: {what}"));
            }
        };
        must(storm.findings.effects == EVENTS, "each takes effect once");
        must(storm.findings.cut_off == (0, 0), "no run is cut off");
        let over = storm.findings.outlived.len() + storm.findings.late.len();
        must(over == 0, "no lease is lost");
        let (visits, reads) = storm.findings.visits;
        must(reads > 0 && visits > reads, "some read, and others write");
        let all_answered = storm.no_answer <= storm.findings.panics;
        must(
            all_answered,
            "a panic closes the connection, and nothing else does",
        );
        must(!storm.statuses.contains_key(&503), "there is no 503");
    })
    .await;
}

async fn with_kills_only_a_run_that_was_cut_off_is_repeated() {
    const KILLS: usize = 8;
    let weather = Weather {
        kills: KILLS,
        ..Weather::new(600)
    };
    calm_after(weather, |storm, violations| {
        let (before, after) = storm.findings.cut_off;
        assert_eq!(storm.findings.kills, KILLS);
        assert!(before + after > 0, "no kill hit a run");
        if storm.findings.effects != EVENTS + after {
            violations.push("an effect too many or too few".to_owned());
        }
        if !storm.findings.outlived.is_empty() {
            violations.push("a lease was lost".to_owned());
        }
    })
    .await;
}

async fn during_a_deployment_and_out_of_memory_only_a_run_past_its_lease_is_repeated() {
    let weather = Weather {
        is_rough: true,
        ..Weather::new(800)
    };
    calm_after(weather, |storm, violations| {
        let (_, after) = storm.findings.cut_off;
        if storm.findings.effects != EVENTS + after {
            violations.push("an effect too many or too few".to_owned());
        }
    })
    .await;
}

async fn the_audit_tells_a_run_past_its_lease_from_one_too_many() {
    let run = |number| Run {
        event: 7,
        number,
        node: 0,
    };
    let first = [Entry::Began(run(1)), Entry::TookEffect(run(1))];
    let second = [
        Entry::Began(run(2)),
        Entry::TookEffect(run(2)),
        Entry::Succeeded(run(2)),
    ];
    let log = |between: Entry| [&first[..], &[between], &second].concat();
    assert!(
        Findings::of(&log(Entry::Succeeded(run(1))))
            .violations
            .len()
            == 1
    );
    let findings = Findings::of(&log(Entry::Outlived(run(1))));
    assert_eq!((findings.violations.len(), findings.effects), (0, 2));

    let told = |number| {
        let answer = Answer {
            status: 200,
            is_replay: false,
            lacks_body: false,
            body: run(number).to_string(),
        };
        let mut violations = Vec::new();
        findings.events[&7].answers(7, &[answer], true, &mut violations);
        violations.len()
    };
    assert_eq!((told(1), told(2)), (1, 0));
}

async fn the_audit_tells_readers_of_an_account_from_a_writer_among_them() {
    let visit = |event, reads| Visit {
        run: Run {
            event,
            number: 1,
            node: event,
        },
        account: 3,
        reads,
    };
    let wrong = |log: &[Entry]| Findings::of(log).violations.len();
    let entered = |event, reads| Entry::Entered(visit(event, reads));
    assert_eq!(wrong(&[entered(1, true), entered(2, true)]), 0);
    for (first, second) in [(true, false), (false, true), (false, false)] {
        let (one, two) = (entered(1, first), entered(2, second));
        assert_eq!(wrong(&[one, two]), 1);
        let left = Entry::Left(visit(1, first));
        assert_eq!(wrong(&[one, left, two]), 0);
        assert_eq!(wrong(&[one, Entry::Kill(1), two]), 0);
        let late = Entry::LeftLate(visit(1, first));
        assert_eq!(wrong(&[one, two, late]), 0);
    }
}
