//! No lock is an orphan: renewed in Redis by a process in which no request has it.

use std::collections::HashMap;

use super::holds::InBetween;
use super::promptness::Stalls;
use super::{Demands, Hold, Report, Violation};
use crate::clock::MS;
use crate::history::{Event, What};

/// How long a renewal may be on its way.
const LATE: u64 = 600 * MS;
/// Two renewals that are further apart were not sent at the same time.
const APART: u64 = 100 * MS;
/// How much the server's clock and ours may differ about the same time.
const ROUNDING: u64 = 20 * MS;

/// A look at a lock, after which it was there for so much longer.
struct Look<'a> {
    from: u64,
    until: u64,
    left: u64,
    token: &'a str,
}

impl<'a> Look<'a> {
    /// The process of a token stands before its number. (Those of the textbook are their own.)
    fn process(&self) -> &'a str {
        self.token.split(':').next().unwrap()
    }
}

pub(super) fn check(
    events: &[Event],
    by_key: &HashMap<&str, Vec<&Hold>>,
    in_between: &InBetween<'_>,
    demands: &Demands,
    stalls: &Stalls,
    report: &mut Report,
) {
    let looks = looks(events);
    let workers = workers(&looks, by_key);
    for ((key, _), looks) in &looks {
        let holds = by_key.get(key).map_or(&[][..], Vec::as_slice);
        // The first renewal of this token that no holder is known for.
        let mut first: Option<&Look<'_>> = None;
        // When this token was seen first.
        let mut since = looks[0].until;
        for pair in looks.windows(2) {
            let [before, after] = pair else {
                unreachable!("windows of two")
            };
            let Some(worker) = workers.get(after.process()) else {
                continue;
            };
            if before.token != after.token {
                since = after.until;
            }
            // With the crate, an earlier request may have left the lock to this one.
            let may_have = |(by, asked, answered): &(u32, u64, u64)| {
                by == worker
                    && (demands.has_handoffs || *asked < since)
                    && *asked < after.until
                    && before.from < answered.saturating_add(LATE)
            };
            let had = |hold: &&Hold| {
                let ended = hold.ended.unwrap_or(u64::MAX);
                hold.by == *worker
                    && hold.granted < after.until
                    && before.from < ended.saturating_add(LATE)
            };
            if before.token != after.token
                || holds.iter().any(had)
                || in_between.of_key(key).iter().any(may_have)
            {
                first = None;
                continue;
            }
            let is_renewed = after.from + after.left > before.until + before.left + ROUNDING;
            // Its holder may not have had a chance to say so.
            let is_apart = |first: &&Look<'_>| {
                let stalled = stalls.of_process_between(*worker, first.from, after.until);
                before.from > first.until + APART + stalled
            };
            match first {
                Some(_) if !is_renewed => {}
                Some(first) if is_apart(&first) => {
                    violated(report, key, *worker, after);
                    break;
                }
                Some(_) => {}
                None => first = Some(after).filter(|_| is_renewed),
            }
        }
    }
}

/// The looks at each lock; those at a token that shares one, for each token.
type Looks<'a> = HashMap<(&'a str, Option<&'a str>), Vec<Look<'a>>>;

fn looks(events: &[Event]) -> Looks<'_> {
    let mut looks = Looks::new();
    for event in events.iter().filter(|event| event.what == What::Seen) {
        let (key, value) = event.text.split_once(' ').unwrap();
        let reader = value.strip_suffix(" shared");
        // A mark says only that processes wait.
        let token = reader.unwrap_or(value.strip_suffix('!').unwrap_or(value));
        looks.entry((key, reader)).or_default().push(Look {
            from: event.before,
            until: event.at,
            left: event.number,
            token,
        });
    }
    looks
}

/// Which worker is which process in Redis: what was there while a worker trusted its lock, and did
/// not share it, is this worker's.
fn workers<'a>(looks: &Looks<'a>, by_key: &HashMap<&str, Vec<&Hold>>) -> HashMap<&'a str, u32> {
    let mut workers = HashMap::new();
    for ((key, reader), looks) in looks {
        if reader.is_some() {
            continue;
        }
        let alone = by_key.get(key).into_iter().flatten();
        for hold in alone.filter(|hold| !hold.is_shared) {
            let Some((from, until)) = hold.trusted else {
                continue;
            };
            let looks = looks
                .iter()
                .filter(|look| from < look.from && look.until < until);
            workers.extend(looks.map(|look| (look.process(), hold.by)));
        }
    }
    workers
}

fn violated(report: &mut Report, key: &str, worker: u32, look: &Look<'_>) {
    report.violations.push(Violation {
        rule: "no lock is an orphan",
        what: format!(
            "process {worker} renews {}, which no request of it has",
            look.token
        ),
        key: key.to_owned(),
        at: look.until,
        requests: Vec::new(),
    });
}
