//! A loss is known before the server gives the lock to another.
//!
//! When that was is not known exactly: at the latest, when the next holder knew of it.

use super::promptness::Stalls;
use super::{Demands, Hold, Report, Violation};
use crate::clock::MS;

/// How late a signal may come in a process that had the processor all the time.
const SLACK: u64 = 15 * MS;

pub(super) fn check(holds: &[&Hold], demands: &Demands, stalls: &Stalls, report: &mut Report) {
    if !demands.exclusive {
        return;
    }
    let mut in_order = holds.to_vec();
    in_order.sort_by_key(|hold| hold.token);
    // Among the holds with lower tokens: which was trusted last, and which was told of its loss
    // last.
    let mut last: Option<(u64, &Hold)> = None;
    let mut told: Option<(u64, &Hold)> = None;
    for hold in in_order {
        let given = hold.granted;
        let is_from_server = hold.token.is_multiple_of(1024);
        if let Some((until, other)) = last.filter(|_| is_from_server) {
            if until > given {
                violated(
                    report,
                    "not trusted when the server gives it away",
                    other,
                    hold,
                    until - given,
                );
            } else if other.signal.is_some() {
                let margin = given.saturating_sub(until);
                report.closest_loss = Some(
                    report
                        .closest_loss
                        .map_or(margin, |least| least.min(margin)),
                );
            }
        }
        if let Some((signal, other)) = told.take_if(|_| is_from_server)
            && signal > given + SLACK + stalls.between(other.request(), given.saturating_sub(100 * MS), signal)
            // With two threads, nothing tells that the one which would have told had no processor.
            && other.by.is_multiple_of(2)
        {
            violated(
                report,
                "told before the server gives it away",
                other,
                hold,
                signal - given,
            );
        }
        if let Some((_, until)) = hold.trusted
            && last.is_none_or(|(last, _)| last < until)
        {
            last = Some((until, hold));
        }
        told = hold.signal.map(|signal| (signal, hold)).or(told);
    }
}

fn violated(report: &mut Report, rule: &'static str, old: &Hold, new: &Hold, late: u64) {
    report.violations.push(Violation {
        rule,
        what: format!(
            "{}, {} µs later than the grant to {}",
            old.name(),
            late / 1000,
            new.name()
        ),
        key: new.key.clone(),
        at: new.granted,
        requests: vec![old.request(), new.request()],
    });
}
