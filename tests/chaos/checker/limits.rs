//! A holder that loses its lock because it held it for too long gives it back at once.

use super::holds::InBetween;
use super::promptness::Stalls;
use super::{Demands, Hold, Report, Violation};
use crate::clock::MS;
use crate::history::{Event, What};

/// Within what time a waiter has the lock. Less than what is left of most leases.
const LIMIT: u64 = 200 * MS;

pub(super) fn check(
    events: &[Event],
    holds: &[&Hold],
    demands: &Demands,
    stalls: &Stalls,
    in_between: &InBetween<'_>,
    report: &mut Report,
) {
    if !demands.releases_at_limit {
        return;
    }
    let trouble = trouble(events);
    let limited = holds.iter().filter(|hold| hold.is_past_limit);
    for hold in limited {
        let Some(at) = hold.signal else { continue };
        let until = at + LIMIT;
        // The next holder, if it began to wait before: did that take too long?
        let next = holds.iter().filter(|next| next.granted > at);
        let Some(next) = next.min_by_key(|next| next.granted) else {
            continue;
        };
        let is_disturbed = |from: u64, until: u64| {
            trouble
                .iter()
                .any(|(begin, end)| *begin < until && from < *end)
        };
        let has_waited = next.asked + 50 * MS < at;
        // Others that share it keep it, or one that waits for other locks as well has it.
        let is_kept = |other: &&Hold| {
            other.is_shared
                && other.granted < next.granted
                && other.over.is_none_or(|over| over > at)
        };
        let is_in_between =
            |(_, from, until): &(u32, u64, u64)| *from < next.granted && at < *until;
        if hold.is_shared && holds.iter().copied().any(|other| is_kept(&other))
            || in_between.of_key(&hold.key).iter().any(is_in_between)
        {
            continue;
        }
        // Commands from before may still be on their way.
        if has_waited
            && next.granted > until + stalls.of_all_between(at, next.granted)
            && !is_disturbed(at.saturating_sub(1000 * MS), next.granted)
        {
            report.violations.push(Violation {
                rule: "a holder that held for too long gives the lock back",
                what: format!(
                    "{}: {} ms until {} had it",
                    hold.name(),
                    (next.granted - at) / MS,
                    next.name()
                ),
                key: hold.key.clone(),
                at,
                requests: vec![hold.request(), next.request()],
            });
        }
    }
}

/// When something was wrong.
pub(super) fn trouble(events: &[Event]) -> Vec<(u64, u64)> {
    let mut open = std::collections::HashMap::new();
    let mut trouble = Vec::new();
    for event in events {
        match event.what {
            What::FaultBegins => {
                open.insert(event.id, event.at);
            }
            What::FaultEnds => trouble.extend(open.remove(&event.id).map(|from| (from, event.at))),
            _ => {}
        }
    }
    trouble.extend(open.into_values().map(|from| (from, u64::MAX)));
    trouble
}
