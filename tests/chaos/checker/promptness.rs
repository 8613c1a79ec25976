//! Every request is answered in time.

use std::collections::HashMap;

use super::{Report, Violation};
use crate::clock::MS;
use crate::history::{Event, What};

/// What a busy machine may add, beside the time in which a process did not run at all.
pub const SLACK: u64 = 300 * MS;

/// When processes did not run.
pub struct Stalls(HashMap<u32, Vec<(u64, u64)>>);

impl Stalls {
    pub fn of(events: &[Event]) -> Self {
        let mut stalls: HashMap<_, Vec<_>> = HashMap::new();
        for event in events.iter().filter(|event| event.what == What::Stall) {
            stalls
                .entry(event.by)
                .or_default()
                .push((event.before, event.at));
        }
        Self(stalls)
    }

    /// For how long, in that time.
    pub fn between(&self, process: u32, from: u64, until: u64) -> u64 {
        let stalls = self.0.get(&process).map_or(&[][..], Vec::as_slice);
        let part = |(begin, end): &(u64, u64)| (*end).min(until).saturating_sub((*begin).max(from));
        stalls.iter().map(part).sum()
    }
}

pub fn check(events: &[Event], stalls: &Stalls, report: &mut Report) {
    let mut open: HashMap<(u32, u64), &Event> = HashMap::new();
    for event in events {
        let request = (event.by, event.id);
        match event.what {
            What::Asked | What::Tried | What::Delivered => {
                open.insert(request, event);
            }
            What::Cancelled => {
                open.remove(&request);
            }
            What::Granted | What::Refused | What::Answered => {
                let asked = open.remove(&request).unwrap();
                let late = (event.at - asked.at)
                    .saturating_sub(asked.number)
                    .saturating_sub(stalls.between(event.by, asked.at, event.at));
                report.latest_answer = report.latest_answer.max(late);
                if late > SLACK {
                    violated(report, asked, &format!("{} ms late", late / MS));
                }
            }
            What::Killed => open.retain(|(by, _), _| *by != event.by),
            _ => {}
        }
    }
    for asked in open.values() {
        violated(report, asked, "no answer");
    }
}

fn violated(report: &mut Report, asked: &Event, how: &str) {
    report.violations.push(Violation {
        rule: "answered in time",
        what: format!(
            "process {} request {} ({:?}): {how}",
            asked.by, asked.id, asked.what
        ),
        key: asked.text.clone(),
        at: asked.at,
        requests: vec![(asked.by, asked.id)],
    });
}
