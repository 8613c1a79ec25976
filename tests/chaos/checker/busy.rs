//! Redis has no more commands to carry out than requests and held locks cost.

use super::holds::Wanted;
use super::{Demands, Report, Violation};
use crate::clock::MS;
use crate::history::{Event, What};

/// The most commands that it costs when something happens to a request, or goes wrong, with those
/// in scripts.
const PER_EVENT: u64 = 8;
/// Commands in a second for each lock that is held or waited for.
const PER_LOCK: u64 = 30;
/// Commands in a second for the connections and all else.
const BASE: u64 = 100;
/// What happened just before may cost something now.
const BEFORE: u64 = 300 * MS;

pub(super) fn check(events: &[Event], wanted: &Wanted<'_>, demands: &Demands, report: &mut Report) {
    if !demands.frugal {
        return;
    }
    for count in events.iter().filter(|event| event.what == What::Commands) {
        let (from, until) = (count.before.saturating_sub(BEFORE), count.at);
        let around = events
            .iter()
            .filter(|event| (from..until).contains(&event.at));
        let costs = around.filter(|event| {
            !matches!(
                event.what,
                What::Held | What::NotHeld | What::Seen | What::Commands | What::Stall
            )
        });
        let open = wanted.values().flatten();
        let open = open.map(|(begin, end)| (*end).min(until).saturating_sub((*begin).max(from)));
        let time = BASE * (until - from) + PER_LOCK * open.sum::<u64>();
        let allowed = PER_EVENT * costs.count() as u64 + time / (1000 * MS);
        let share = count.number * 100 / allowed;
        report.busiest = report.busiest.max(share);
        if share > 100 {
            report.violations.push(Violation {
                rule: "Redis is not kept busy",
                what: format!("{} commands, where {allowed} are many", count.number),
                key: String::new(),
                at: count.at,
                requests: Vec::new(),
            });
        }
    }
}
