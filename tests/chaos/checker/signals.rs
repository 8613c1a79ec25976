//! A loss is known before the server gives the lock to another, with which it cannot be shared.
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
    let (mut all, mut alone) = (Before::default(), Before::default());
    for hold in in_order {
        // Those that share the lock do not take it from each other.
        let before = match hold.is_shared {
            true => &mut alone,
            false => &mut all,
        };
        // The first of those in one process that share it is the one that the server gave it to.
        if hold.token.is_multiple_of(1024) {
            before.check(hold, stalls, report);
        }
        if !hold.is_shared {
            alone.add(hold);
        }
        all.add(hold);
    }
}

/// Of the holds with lower tokens: which was trusted last, and which was told of its loss last.
#[derive(Default)]
struct Before<'a> {
    trusted: Option<(u64, &'a Hold)>,
    told: Option<(u64, &'a Hold)>,
}

impl<'a> Before<'a> {
    fn add(&mut self, hold: &'a Hold) {
        if let Some((_, until)) = hold.trusted
            && self.trusted.is_none_or(|(last, _)| last < until)
        {
            self.trusted = Some((until, hold));
        }
        self.told = hold.signal.map(|signal| (signal, hold)).or(self.told);
    }

    fn check(&mut self, hold: &Hold, stalls: &Stalls, report: &mut Report) {
        let given = hold.granted;
        if let Some((until, other)) = self.trusted {
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
        if let Some((signal, other)) = self.told.take()
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
