//! A lock that is free and waited for goes to a waiter before long, once nothing is wrong any more.

use std::collections::HashMap;

use super::holds::InBetween;
use super::{Demands, Hold, Report, Violation};
use crate::clock::MS;
use crate::history::{Event, What};

pub(super) fn check(
    events: &[Event],
    holds: &[Hold],
    in_between: &InBetween<'_>,
    demands: &Demands,
    report: &mut Report,
) {
    let Some(limit) = demands.stuck_after else {
        return;
    };
    let mut keys: Vec<&str> = holds
        .iter()
        .filter(|hold| !hold.is_run)
        .map(|hold| hold.key.as_str())
        .collect();
    keys.sort_unstable();
    keys.dedup();
    for key in keys {
        let (longest, since) = longest_gap(key, events, holds, in_between);
        report.longest_stuck = report.longest_stuck.max(longest);
        if longest > limit.as_nanos() as u64 {
            report.violations.push(Violation {
                rule: "no lock is stuck",
                what: format!("it was free for {} ms while a request waited", longest / MS),
                key: key.to_owned(),
                at: since,
                requests: Vec::new(),
            });
        }
    }
}

/// How long the lock was free while a request waited and nothing was wrong; and since when.
fn longest_gap(
    key: &str,
    events: &[Event],
    holds: &[Hold],
    in_between: &InBetween<'_>,
) -> (u64, u64) {
    // Each begins (+1) or ends (-1): a fault, a hold, a wait.
    let mut changes: Vec<(u64, [i64; 3])> = Vec::new();
    let mut waits: HashMap<(u32, u64), u64> = HashMap::new();
    for event in events {
        let request = (event.by, event.id);
        match event.what {
            What::FaultBegins => changes.push((event.at, [1, 0, 0])),
            What::FaultEnds => changes.push((event.at, [-1, 0, 0])),
            What::Stall if event.at - event.before > 50 * MS => {
                changes.push((event.before, [1, 0, 0]));
                changes.push((event.at, [-1, 0, 0]));
            }
            What::Asked if event.text == key => {
                waits.insert(request, event.at);
                changes.push((event.at, [0, 0, 1]));
            }
            What::Granted | What::Refused | What::Cancelled if waits.remove(&request).is_some() => {
                changes.push((event.at, [0, 0, -1]));
            }
            What::Killed => waits.retain(|(by, _), _| {
                let is_killed = *by == event.by;
                if is_killed {
                    changes.push((event.at, [0, 0, -1]));
                }
                !is_killed
            }),
            _ => {}
        }
    }
    for hold in holds.iter().filter(|hold| hold.key == key) {
        let over = hold.over.unwrap_or(u64::MAX);
        changes.push((hold.granted, [0, 1, 0]));
        changes.push((over.max(hold.granted), [0, -1, 0]));
    }
    for (_, from, until) in in_between.of_key(key) {
        changes.push((*from, [0, 1, 0]));
        changes.push((*until, [0, -1, 0]));
    }
    changes.sort_by_key(|(at, _)| *at);
    let mut now = [0; 3];
    let (mut since, mut longest) = (None, (0, 0));
    for (at, change) in changes {
        if let Some(since) = since
            && at - since > longest.0
            && at < u64::MAX
        {
            longest = (at - since, since);
        }
        (0..3).for_each(|which| now[which] += change[which]);
        let is_stuck = now[0] == 0 && now[1] == 0 && now[2] > 0;
        // A fault in between begins it anew.
        since = match (is_stuck, change[0]) {
            (true, 0) => since.or(Some(at)),
            (true, _) => Some(at),
            (false, _) => None,
        };
    }
    longest
}
