//! To lose one of several locks that are held together is to lose all.

use std::collections::HashMap;

use super::{Hold, Report, Violation};

pub(super) fn check(holds: &[Hold], report: &mut Report) {
    // The first of each group that was told of its loss.
    let mut lost: HashMap<(u32, u64), (u64, &Hold)> = HashMap::new();
    let grouped = || {
        let grouped = holds.iter().filter_map(|hold| Some((hold.group?, hold)));
        grouped.map(|(group, hold)| ((hold.by, group), hold))
    };
    for (group, hold) in grouped() {
        if let Some(signal) = hold.signal {
            let first = lost.entry(group).or_insert((signal, hold));
            if signal < first.0 {
                *first = (signal, hold);
            }
        }
    }
    for (group, hold) in grouped() {
        if let (Some((signal, first)), Some((_, until))) = (lost.get(&group), hold.trusted)
            && until > *signal
        {
            report.violations.push(Violation {
                rule: "to lose one of several locks is to lose all",
                what: format!("{}, and later trusted: {}", first.name(), hold.name()),
                key: hold.key.clone(),
                at: *signal,
                requests: vec![first.request(), hold.request()],
            });
        }
    }
}
