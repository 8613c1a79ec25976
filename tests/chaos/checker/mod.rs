//! Tells from the history alone what was not as it should be.

mod busy;
mod calm;
mod holds;
mod limits;
mod order;
mod orphans;
mod overlap;
pub mod promptness;
mod signals;
mod stuck;
mod together;
mod told;
mod turns;

use std::collections::HashMap;
use std::time::Duration;

use crate::clock::MS;
use crate::history::{Event, What};
pub use holds::Hold;

/// What may be demanded in a phase.
#[derive(Clone, Copy, Debug)]
pub struct Demands {
    /// No two hold a lock at a time. Otherwise that is only counted.
    pub exclusive: bool,
    /// Redis keeps the responses to events.
    pub keeps_data: bool,
    /// A token of the crate stands for a grant of the server, followed by hand-offs in one process.
    pub has_handoffs: bool,
    /// Requests are answered in time.
    pub prompt: bool,
    /// A lock that was held for too long is released.
    pub releases_at_limit: bool,
    /// Redis has no more to do than it must.
    pub frugal: bool,
    /// Nothing is wrong all along.
    pub calm: bool,
    /// Processes take turns, and none holds for longer than this.
    pub takes_turns: Option<Duration>,
    /// Within what time a lock that is free goes to a waiter, if nothing is wrong.
    pub stuck_after: Option<Duration>,
}

#[derive(Debug)]
pub struct Violation {
    pub rule: &'static str,
    pub what: String,
    /// The key, and the time around which it happened.
    pub key: String,
    pub at: u64,
    pub requests: Vec<(u32, u64)>,
}

#[derive(Debug, Default)]
pub struct Report {
    pub requests: u64,
    pub holds: u64,
    pub runs: u64,
    pub losses: u64,
    pub refused_writes: u64,
    pub overlaps: u64,
    /// Holds that were shared with another, and locks that were held together with others.
    pub shared: u64,
    pub together: u64,
    /// The most turns that another process had while a request waited, in percent of what is
    /// allowed.
    pub most_turns: u64,
    pub cancelled: u64,
    /// By how much an answer was late, besides the time in which the process did not run.
    pub latest_answer: u64,
    /// The longest that a lock was free, and wanted, while nothing was wrong.
    pub longest_stuck: u64,
    /// The shortest time from the last moment of trust until the server gave a lost lock to
    /// another.
    pub closest_loss: Option<u64>,
    /// The most that Redis had to do, in percent of what is allowed.
    pub busiest: u64,
    pub violations: Vec<Violation>,
}

pub fn check(events: &[Event], stored: &[(String, Vec<u64>)], demands: &Demands) -> Report {
    let mut report = Report::default();
    for event in events {
        match event.what {
            What::Asked | What::AskedAll | What::Tried | What::Delivered => report.requests += 1,
            What::Signal => report.losses += 1,
            What::Rejected => report.refused_writes += 1,
            What::Cancelled => report.cancelled += 1,
            What::Panicked => report.violations.push(Violation {
                rule: "nothing panics",
                what: event.text.clone(),
                key: String::new(),
                at: event.at,
                requests: Vec::new(),
            }),
            _ => {}
        }
    }
    let holds = holds::build(events);
    for hold in &holds {
        match hold.is_run {
            true => report.runs += 1,
            false => report.holds += 1,
        }
        report.shared += u64::from(hold.is_shared);
        report.together += u64::from(hold.group.is_some());
    }
    let mut by_key: HashMap<&str, Vec<&Hold>> = HashMap::new();
    for hold in &holds {
        by_key.entry(&hold.key).or_default().push(hold);
    }
    let stalls = promptness::Stalls::of(events);
    let in_between = holds::InBetween::of(events);
    for holds in by_key.values() {
        overlap::check(holds, demands, &mut report);
        order::check(holds, demands, &mut report);
        signals::check(holds, demands, &stalls, &mut report);
        limits::check(events, holds, demands, &stalls, &in_between, &mut report);
        told::check_next_run(holds, demands, &mut report);
    }
    let wanted = holds::wanted(events, &holds);
    orphans::check(events, &by_key, &in_between, demands, &stalls, &mut report);
    busy::check(events, &wanted, demands, &mut report);
    calm::check(events, demands, &stalls, &mut report);
    told::check_success(events, &holds, &mut report);
    order::check_store(stored, &mut report);
    order::check_refusals(events, &holds, demands, &mut report);
    order::check_replays(events, &holds, demands, &mut report);
    if demands.prompt {
        promptness::check(events, &stalls, &mut report);
    }
    stuck::check(events, &holds, &in_between, demands, &mut report);
    together::check(&holds, &mut report);
    turns::check(events, &by_key, demands, &stalls, &mut report);
    report
}

/// What happened to the requests of a violation, and what went wrong around it.
pub fn piece(events: &[Event], violation: &Violation) -> Vec<String> {
    let about = |event: &&Event| {
        violation.requests.contains(&(event.by, event.id))
            || matches!(
                event.what,
                What::FaultBegins | What::FaultEnds | What::Killed
            ) && event.at.abs_diff(violation.at) < 1500 * MS
    };
    let line = |event: &Event| {
        let Event {
            at,
            by,
            what,
            id,
            number,
            before,
            text,
        } = event;
        let ms = (*at as f64 - violation.at as f64) / MS as f64;
        let took = if *before == 0 {
            0.0
        } else {
            at.saturating_sub(*before) as f64 / MS as f64
        };
        format!(
            "{ms:+10.3} ms  process {by:3} request {id:4} {what:?} {number} {text} (took {took:.3} ms)"
        )
    };
    events.iter().filter(about).map(line).collect()
}
