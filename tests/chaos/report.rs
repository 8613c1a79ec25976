//! What is printed at the end.

use crate::checker::promptness;
use crate::clock::MS;
use crate::phases::Outcome;
use crate::textbook::Flaw;

impl Outcome {
    /// A mutant is to be caught, all else to pass.
    pub fn is_mutant(&self) -> bool {
        self.phase.textbook.is_some_and(|flaw| flaw != Flaw::None)
    }

    /// The rules that were broken.
    fn caught(&self) -> Vec<&'static str> {
        let rules = self.report.violations.iter();
        let mut rules: Vec<_> = rules.map(|violation| violation.rule).collect();
        rules.sort_unstable();
        rules.dedup();
        rules
    }

    pub fn is_as_expected(&self) -> bool {
        self.report.violations.is_empty() != self.is_mutant()
    }
}

pub fn table(outcomes: &[Outcome]) {
    println!();
    println!(
        "{:34} {:>7} {:>8} {:>9} {:>7} {:>6} {:>8} {:>6} {:>6} {:>7} {:>8} {:>10}",
        "phase",
        "seconds",
        "requests",
        "cancelled",
        "holds",
        "shared",
        "together",
        "runs",
        "losses",
        "refused",
        "overlaps",
        "violations"
    );
    for Outcome {
        phase,
        time,
        report,
        ..
    } in outcomes
    {
        println!(
            "{:34} {:7.1} {:8} {:9} {:7} {:6} {:8} {:6} {:6} {:7} {:8} {:10}",
            phase.name,
            time.as_secs_f64(),
            report.requests,
            report.cancelled,
            report.holds,
            report.shared,
            report.together,
            report.runs,
            report.losses,
            report.refused_writes,
            report.overlaps,
            report.violations.len(),
        );
    }
    println!(
        "shared: holds that others may have at the same time; together: locks of several keys"
    );
    println!("refused: writes that the store refused, because it had seen a higher fencing token");
    println!();
    for outcome in outcomes {
        let faults = outcome
            .faults
            .iter()
            .map(|(name, count)| format!("{count} {name}"));
        let faults: Vec<_> = faults.collect();
        println!("{}: {}", outcome.phase.name, faults.join(", "));
    }
    for outcome in outcomes.iter().filter(|outcome| outcome.is_mutant()) {
        let rules = outcome.caught().join(", ");
        let verdict = if rules.is_empty() {
            "NOT CAUGHT".to_owned()
        } else {
            format!("caught by: {rules}")
        };
        println!("{}: {verdict}", outcome.phase.name);
    }
}

pub fn failures(outcomes: &[Outcome], seed: u64) {
    for outcome in outcomes.iter().filter(|outcome| !outcome.is_as_expected()) {
        println!("\nFAILED: {} (CHAOS_SEED={seed})", outcome.phase.name);
        for piece in &outcome.pieces {
            println!("{piece}");
        }
    }
}

/// The same lines as the benchmarks print.
pub fn figures(outcomes: &[Outcome]) {
    println!();
    let own = || {
        outcomes
            .iter()
            .filter(|outcome| outcome.phase.textbook.is_none())
    };
    let kept = || own().filter(|outcome| outcome.phase.exclusive);
    let ms = |nanos: u64| nanos as f64 / MS as f64;
    let overlaps: u64 = kept().map(|outcome| outcome.report.overlaps).sum();
    figure(
        "chaos_overlaps_while_redis_keeps_its_data",
        overlaps as f64,
        "≤",
        0.0,
    );
    let violations: usize = own().map(|outcome| outcome.report.violations.len()).sum();
    figure("chaos_violations", violations as f64, "≤", 0.0);
    let caught = outcomes
        .iter()
        .filter(|outcome| outcome.is_mutant() && outcome.is_as_expected());
    let mutants = outcomes
        .iter()
        .filter(|outcome| outcome.is_mutant())
        .count();
    figure(
        "chaos_mutants_caught",
        caught.count() as f64,
        "≥",
        mutants as f64,
    );
    let latest = own().map(|outcome| outcome.report.latest_answer).max();
    figure(
        "chaos_latest_answer_ms",
        ms(latest.unwrap_or(0)),
        "≤",
        ms(promptness::SLACK),
    );
    let stuck = own().map(|outcome| {
        let limit = outcome.phase.stuck().as_nanos() as u64;
        outcome.report.longest_stuck * 100 / limit
    });
    figure(
        "chaos_longest_stuck_percent_of_allowed",
        stuck.max().unwrap_or(0) as f64,
        "≤",
        100.0,
    );
    let busiest = own().map(|outcome| outcome.report.busiest).max();
    figure(
        "chaos_commands_percent_of_allowed",
        busiest.unwrap_or(0) as f64,
        "≤",
        100.0,
    );
    let turns = own().map(|outcome| outcome.report.most_turns).max();
    figure(
        "chaos_turns_of_others_percent_of_allowed",
        turns.unwrap_or(0) as f64,
        "≤",
        100.0,
    );
    let closest = own()
        .filter_map(|outcome| outcome.report.closest_loss)
        .min();
    figure(
        "chaos_least_time_from_loss_to_grant_ms",
        ms(closest.unwrap_or(0)),
        "≥",
        0.0,
    );
}

fn figure(name: &str, value: f64, sign: &str, goal: f64) {
    let met = if sign == "≤" {
        value <= goal
    } else {
        value >= goal
    };
    let verdict = if met { "met" } else { "missed" };
    println!("figure {name} {value:.3} goal {sign} {goal} {verdict}");
}
