//! How a handler's lease bears on what its client is told, and on the next run.

use std::collections::HashMap;

use super::{Demands, Hold, Report, Violation};
use crate::history::{Event, What};

/// A handler that saw that its lease was over, and then returned, has not succeeded: another may
/// have run. An event's has if its response could still be kept. Then no other runs.
pub(super) fn check_success(events: &[Event], holds: &[Hold], report: &mut Report) {
    let outlived = holds
        .iter()
        .filter(|hold| hold.done.is_some() && hold.is_known_to_be_over);
    let outlived: HashMap<_, _> = outlived.map(|hold| (hold.request(), hold)).collect();
    for event in events.iter().filter(|event| event.what == What::Answered) {
        let Some(run) = outlived.get(&(event.by, event.id)) else {
            continue;
        };
        let next = match run.is_event() {
            true => next(run, holds),
            false => Some(*run),
        };
        if let Some(next) = next
            && event.text == "200"
        {
            let rule = "no success past the lease";
            violated(report, rule, run, next, event.at);
        }
    }
}

/// Another run of the same event, under a later lease.
fn next<'a>(run: &Hold, holds: &'a [Hold]) -> Option<&'a Hold> {
    holds
        .iter()
        .find(|other| other.key == run.key && other.token > run.token)
}

/// The record of a run that succeeded ends its lease. So nothing runs for its event before the
/// lease has run out, whatever became of the record.
pub(super) fn check_next_run(holds: &[&Hold], demands: &Demands, report: &mut Report) {
    if !(demands.exclusive && demands.keeps_data) {
        return;
    }
    let runs = holds.iter().filter(|hold| hold.is_event());
    let mut last: Option<(u64, &Hold)> = None;
    for run in runs {
        if let Some((good_until, before)) = last
            && run.granted < good_until
        {
            let rule = "no run while a finished one's lease is good";
            violated(report, rule, before, run, run.granted);
        }
        if let Some(done) = &run.done
            && done.succeeded
        {
            last = Some((done.good_until, run));
        }
    }
}

fn violated(report: &mut Report, rule: &'static str, before: &Hold, run: &Hold, at: u64) {
    report.violations.push(Violation {
        rule,
        what: format!("{}, and then {}", before.name(), run.name()),
        key: run.key.clone(),
        at,
        requests: vec![before.request(), run.request()],
    });
}
