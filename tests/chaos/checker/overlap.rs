//! No two trust that they hold the lock of one key at the same time, unless both share it.
//!
//! `is_held()` said so once before the interval of a hold, and once after: if it is right, the lock
//! was this holder's for all of it, whatever its process was stopped for in between. So the only
//! allowance is for what takes the lock out of Redis: data that is lost, and a clock that is set
//! forward, by which the server lets it expire early.

use super::{Demands, Hold, Report, Violation};

pub(super) fn check(holds: &[&Hold], demands: &Demands, report: &mut Report) {
    let trusted = holds.iter().filter_map(|hold| Some((hold.trusted?, *hold)));
    let mut trusted: Vec<_> = trusted.filter(|((from, until), _)| from < until).collect();
    trusted.sort_by_key(|((from, _), _)| *from);
    // Of those before: the one that was trusted last, and the same of those that do not share.
    let (mut last, mut last_alone): (Option<(u64, &Hold)>, _) = (None, None);
    for ((from, until), hold) in trusted {
        let before = match hold.is_shared {
            true => last_alone,
            false => last,
        };
        if let Some((last_until, other)) = before
            && from < last_until
        {
            report.overlaps += 1;
            if demands.exclusive {
                let together = last_until.min(until) - from;
                report.violations.push(Violation {
                    rule: if hold.is_run && !hold.is_shared && !other.is_shared {
                        "one run at a time"
                    } else {
                        "one holder at a time"
                    },
                    what: format!(
                        "{} and {}, for {} µs",
                        other.name(),
                        hold.name(),
                        together / 1000
                    ),
                    key: hold.key.clone(),
                    at: from,
                    requests: vec![other.request(), hold.request()],
                });
            }
        }
        let is_later =
            |other: Option<(u64, &Hold)>| other.is_none_or(|(last_until, _)| last_until < until);
        if is_later(last) {
            last = Some((until, hold));
        }
        if !hold.is_shared && is_later(last_alone) {
            last_alone = Some((until, hold));
        }
    }
}
