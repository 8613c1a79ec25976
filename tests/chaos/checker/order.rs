//! Fencing tokens rise, and the store never goes back.

use std::collections::{HashMap, HashSet};

use super::{Demands, Hold, Report, Violation};
use crate::history::{Event, What};

/// How many tokens one fence of the server stands for: the first is for the request that it gave
/// the lock to, the others for hand-offs in that process.
const HANDOFFS: u64 = 1024;

/// A request that began when another had the lock already, or had had it, gets a higher token;
/// except that those that share a lock have no order among themselves, and the same token if they
/// do so in one process.
///
/// There is one exception: when data was lost, a process that has not heard of it may hand the lock
/// on within itself, or share it with more of its requests, while another has it from Redis. The
/// tokens of these belong to the grant before the loss, and the store refuses them as such.
pub(super) fn check(holds: &[&Hold], demands: &Demands, report: &mut Report) {
    let mut seen: HashMap<u64, &Hold> = HashMap::new();
    // Those that share what their process shared already.
    let mut joined = HashSet::new();
    let mut moments: Vec<(u64, bool, &Hold)> = Vec::new();
    for hold in holds {
        match seen.insert(hold.token, hold) {
            Some(other) if hold.is_shared && other.is_shared && hold.by == other.by => {
                joined.insert(hold.request());
            }
            Some(other) => violated(report, "each token once", other, hold),
            None => {}
        }
        // The order of two that trusted the lock one after the other is known even if both waited
        // all the time. (Of a hold with one look, the lock was had at some moment of that look.)
        let (from, until) = match hold.trusted {
            Some((one, other)) if demands.exclusive => (one.min(other), one.max(other)),
            _ => (hold.asked, hold.granted),
        };
        moments.push((until, false, hold));
        moments.push((from, true, hold));
    }
    moments.sort_by_key(|(at, begins, _)| (*at, *begins));
    // Of all, and of those that do not share.
    let (mut highest_of_all, mut highest_alone): (Option<&Hold>, _) = (None, None);
    for (_, begins, hold) in moments {
        if !begins {
            let is_higher =
                |highest: Option<&Hold>| highest.is_none_or(|highest| highest.token < hold.token);
            if is_higher(highest_of_all) {
                highest_of_all = Some(hold);
            }
            if !hold.is_shared && is_higher(highest_alone) {
                highest_alone = Some(hold);
            }
            continue;
        }
        let highest = match hold.is_shared {
            true => highest_alone,
            false => highest_of_all,
        };
        let is_first = hold.token % HANDOFFS == 0 && !joined.contains(&hold.request());
        let is_from_server = !demands.has_handoffs || is_first;
        if let Some(highest) = highest
            && highest.token >= hold.token
            && highest.request() != hold.request()
            && (demands.exclusive || is_from_server)
        {
            violated(report, "tokens rise", highest, hold);
        }
    }
}

fn violated(report: &mut Report, rule: &'static str, before: &Hold, hold: &Hold) {
    report.violations.push(Violation {
        rule,
        what: format!("{}, and then {}", before.name(), hold.name()),
        key: hold.key.clone(),
        at: hold.granted,
        requests: vec![before.request(), hold.request()],
    });
}

/// According to the store itself.
pub(super) fn check_store(stored: &[(String, Vec<u64>)], report: &mut Report) {
    for (key, tokens) in stored {
        for pair in tokens.windows(2).filter(|pair| pair[0] > pair[1]) {
            report.violations.push(Violation {
                rule: "the store never goes back",
                what: format!("{} was accepted after {}", pair[1], pair[0]),
                key: key.clone(),
                at: 0,
                requests: Vec::new(),
            });
        }
    }
}

/// A holder that the store refuses has lost the lock, and knows it when it looks.
pub(super) fn check_refusals(
    events: &[Event],
    holds: &[Hold],
    demands: &Demands,
    report: &mut Report,
) {
    if !demands.exclusive {
        return;
    }
    let holds: HashMap<_, _> = holds.iter().map(|hold| (hold.request(), hold)).collect();
    for event in events.iter().filter(|event| event.what == What::Rejected) {
        let hold = holds[&(event.by, event.id)];
        if hold.trusted.is_some_and(|(_, until)| until > event.at) {
            violated(
                report,
                "a holder that is refused has lost the lock",
                hold,
                hold,
            );
        }
    }
}

/// An event that had a response once is not handled again.
pub(super) fn check_replays(
    events: &[Event],
    holds: &[Hold],
    demands: &Demands,
    report: &mut Report,
) {
    if !demands.keeps_data {
        return;
    }
    let mut delivered = HashMap::new();
    let mut replayed: HashMap<&str, u64> = HashMap::new();
    for event in events {
        match event.what {
            What::Delivered => {
                delivered.insert((event.by, event.id), event.text.as_str());
            }
            What::Answered if event.text == "replayed" => {
                let key = delivered[&(event.by, event.id)];
                replayed.entry(key).or_insert(event.at);
            }
            _ => {}
        }
    }
    for run in holds.iter().filter(|hold| hold.is_run) {
        let until = run.trusted.map(|(_, until)| until);
        if let (Some(until), Some(at)) = (until, replayed.get(run.key.as_str()))
            && until > *at
        {
            violated(report, "handled once", run, run);
        }
    }
}
