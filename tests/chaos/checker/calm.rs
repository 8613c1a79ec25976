//! Where nothing is wrong, no lock is lost, and no request is told that Redis is not available.

use super::promptness::Stalls;
use super::{Demands, Report, Violation};
use crate::clock::MS;
use crate::history::{Event, What};

/// A machine that did not run what was due counts as something wrong, for so long afterwards.
const AFTER: u64 = 1000 * MS;
/// How long it must have stood still to count.
const BUSY: u64 = 100 * MS;

pub(super) fn check(events: &[Event], demands: &Demands, stalls: &Stalls, report: &mut Report) {
    if !demands.calm {
        return;
    }
    for event in events {
        let is_trouble = match event.what {
            What::Refused => event.text == "Unavailable",
            What::Answered => event.text == "503",
            What::Signal => event.text != "MaxHold",
            _ => false,
        };
        if is_trouble && stalls.of_all_between(event.at.saturating_sub(AFTER), event.at) < BUSY {
            report.violations.push(Violation {
                rule: "no trouble where nothing is wrong",
                what: format!("{:?} {}", event.what, event.text),
                key: String::new(),
                at: event.at,
                requests: vec![(event.by, event.id)],
            });
        }
    }
}
