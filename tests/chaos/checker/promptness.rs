//! Every request is answered in time.

use std::collections::HashMap;

use super::{Report, Violation};
use crate::clock::MS;
use crate::history::{Event, What};
use crate::runtimes;

/// What a busy machine may add, besides the time in which a process did not run at all.
pub const SLACK: u64 = 300 * MS;

/// When the runtimes of processes did not run.
pub struct Stalls(HashMap<(u32, u64), Vec<(u64, u64)>>);

impl Stalls {
    pub fn of(events: &[Event]) -> Self {
        let mut stalls: HashMap<_, Vec<(u64, u64)>> = HashMap::new();
        for event in events.iter().filter(|event| event.what == What::Stall) {
            let stalls = stalls.entry((event.by, event.id)).or_default();
            // A handler that blocks its thread notes that, and the pulse does too.
            match stalls.last_mut() {
                Some((begin, end)) if event.before < *end => {
                    (*begin, *end) = ((*begin).min(event.before), event.at);
                }
                _ => stalls.push((event.before, event.at)),
            }
        }
        Self(stalls)
    }

    /// For how long the runtime of that request did not run, in that time.
    pub fn between(&self, (process, id): (u32, u64), from: u64, until: u64) -> u64 {
        let runtime = (process, id % runtimes::MOST);
        let stalls = self.0.get(&runtime).map_or(&[][..], Vec::as_slice);
        stalls.iter().map(|stall| within(*stall, from, until)).sum()
    }

    /// For how long the runtimes of that process together did not run, in that time.
    pub fn of_process_between(&self, process: u32, from: u64, until: u64) -> u64 {
        let runtimes = 0..runtimes::MOST;
        runtimes
            .map(|runtime| self.between((process, runtime), from, until))
            .sum()
    }

    /// For how long all runtimes together did not, in that time.
    pub fn of_all_between(&self, from: u64, until: u64) -> u64 {
        let stalls = self.0.values().flatten();
        stalls.map(|stall| within(*stall, from, until)).sum()
    }
}

fn within((begin, end): (u64, u64), from: u64, until: u64) -> u64 {
    end.min(until).saturating_sub(begin.max(from))
}

pub fn check(events: &[Event], stalls: &Stalls, report: &mut Report) {
    let mut open: HashMap<(u32, u64), &Event> = HashMap::new();
    for event in events {
        let request = (event.by, event.id);
        match event.what {
            What::Asked | What::AskedAll | What::Tried | What::Delivered => {
                open.insert(request, event);
            }
            What::Cancelled => {
                open.remove(&request);
            }
            What::Granted | What::Refused | What::Answered => {
                let asked = open.remove(&request).unwrap();
                let late = (event.at - asked.at)
                    .saturating_sub(asked.number)
                    .saturating_sub(stalls.between(request, asked.at, event.at));
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
