//! Whoever waits has a turn: writers among readers, and readers among writers.
//!
//! Processes wait in a queue, and each goes to its end after its turn. So while a request waits,
//! another process has no more turns than this request's own process, which has one for each
//! request that came before, or fewer. And a process that shares a lock lets no more requests in
//! when it is told that another waits.
//!
//! A process is not in the queue while it shares the lock itself: what others get then does not
//! count.

use std::collections::{HashMap, HashSet};

use super::limits::trouble;
use super::promptness::Stalls;
use super::{Demands, Hold, Report, Violation};
use crate::clock::MS;
use crate::history::{Event, What};

/// What went wrong before a request waits may still have put its process at the queue's end.
const AFTER: u64 = 1500 * MS;
/// A machine that stood still for so long counts as something wrong.
const BUSY: u64 = 100 * MS;
/// How long it may take until all have been told that a request waits.
const TOLD: u64 = 500 * MS;
/// The turns that are under way when a request comes, or before it is in the queue.
const MORE: u64 = 3;

/// A request that waits, or waited.
struct Wait<'a> {
    by: u32,
    id: u64,
    key: &'a str,
    from: u64,
    until: u64,
    /// How many requests of its process waited for the same lock when it came.
    ahead: u64,
}

pub(super) fn check(
    events: &[Event],
    by_key: &HashMap<&str, Vec<&Hold>>,
    demands: &Demands,
    stalls: &Stalls,
    report: &mut Report,
) {
    let Some(max_hold) = demands.takes_turns else {
        return;
    };
    let trouble = trouble(events);
    let is_undisturbed = |wait: &Wait<'_>| {
        let from = wait.from.saturating_sub(AFTER);
        let mut trouble = trouble.iter();
        !trouble.any(|(begin, end)| *begin < wait.until && from < *end)
            && stalls.of_all_between(from, wait.until) < BUSY
    };
    for wait in waits(events).iter().filter(|wait| is_undisturbed(wait)) {
        let holds = by_key.get(wait.key).map_or(&[][..], Vec::as_slice);
        let began = holds.partition_point(|hold| hold.granted <= wait.from);
        let ended = holds.partition_point(|hold| hold.granted < wait.until);
        let before = holds[..began].iter().filter(|hold| hold.is_shared);
        let before: HashSet<_> = before.map(|hold| turn(hold)).collect();
        let passed = holds[began..ended]
            .iter()
            .filter(|hold| hold.by != wait.by && hold.asked > wait.from);
        let mut turns: HashMap<u32, HashSet<u64>> = HashMap::new();
        for hold in passed {
            let (by, number) = turn(hold);
            let goes_on = before.contains(&(by, number))
                && wait.ahead == 0
                && hold.asked > wait.from + max_hold.as_nanos() as u64 + TOLD;
            if goes_on {
                let rule = "no share lets requests in past one that waits";
                violated(report, rule, wait, hold, "it came later");
            }
            let shares_meanwhile = |own: &&Hold| {
                own.by == wait.by
                    && own.is_shared
                    && own.over.is_none_or(|over| over >= hold.granted)
            };
            let until_then = holds.partition_point(|own| own.granted <= hold.granted);
            if holds[..until_then].iter().any(shares_meanwhile) {
                continue;
            }
            turns.entry(by).or_default().insert(number);
            let (had, allowed) = (turns[&by].len() as u64, wait.ahead + MORE);
            report.most_turns = report.most_turns.max(had * 100 / allowed);
            if had > allowed {
                let rule = "none is passed over again and again";
                let what = format!("turn {had}, where {allowed} are many");
                violated(report, rule, wait, hold, &what);
                break;
            }
        }
    }
}

/// A grant of the server, and what was handed on within the process.
fn turn(hold: &Hold) -> (u32, u64) {
    (hold.by, hold.token / 1024)
}

fn waits(events: &[Event]) -> Vec<Wait<'_>> {
    let mut waits: Vec<Wait<'_>> = Vec::new();
    let mut open: HashMap<(u32, u64), (&str, Option<usize>)> = HashMap::new();
    for event in events {
        let request = (event.by, event.id);
        match event.what {
            What::Asked | What::AskedAll | What::Delivered => {
                let key = event.text.as_str();
                let ahead = open
                    .iter()
                    .filter(|((by, _), (other, _))| *by == event.by && *other == key);
                // Where the others are in line is not known of one that waits for several.
                let wait = (event.what == What::Asked).then(|| {
                    waits.push(Wait {
                        by: event.by,
                        id: event.id,
                        key,
                        from: event.at,
                        until: u64::MAX,
                        ahead: ahead.count() as u64,
                    });
                    waits.len() - 1
                });
                open.insert(request, (key, wait));
            }
            What::Granted | What::Began | What::Refused | What::Cancelled | What::Answered => {
                if let Some((_, Some(wait))) = open.remove(&request) {
                    waits[wait].until = event.at;
                }
            }
            What::Killed => open.retain(|(by, _), (_, wait)| {
                let is_killed = *by == event.by;
                if let Some(wait) = wait.filter(|_| is_killed) {
                    waits[wait].until = event.at;
                }
                !is_killed
            }),
            _ => {}
        }
    }
    waits
}

fn violated(report: &mut Report, rule: &'static str, wait: &Wait<'_>, hold: &Hold, what: &str) {
    report.violations.push(Violation {
        rule,
        what: format!(
            "process {} request {} waits, and {} gets past: {what}",
            wait.by,
            wait.id,
            hold.name()
        ),
        key: wait.key.to_owned(),
        at: hold.granted,
        requests: vec![(wait.by, wait.id), hold.request()],
    });
}
