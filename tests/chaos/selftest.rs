//! Histories made by hand, each of which breaks one rule: the checker says so, and says nothing of one that breaks none.

use std::time::Duration;

use crate::checker::{self, Demands};
use crate::clock::MS;
use crate::history::Event;

const DEMANDS: Demands = Demands {
    exclusive: true,
    keeps_data: true,
    tokens_tell_time: true,
    has_handoffs: true,
    prompt: true,
    stuck_after: Some(Duration::from_millis(2000)),
    drift: 0,
    wall_ahead: 0,
};

/// Each: the rule, and what happened. Times are in ms: when, process, what, request, number, before, text; a fencing token is the
/// time of its grant.
const CASES: &[(Option<&str>, &str)] = &[
    (None, "10 2 Asked 1 500 0 a; 20 2 Granted 1 15 0; 21 2 Held 1 0 21; 90 2 Held 1 0 90; 91 2 Ended 1 0 0;
            30 4 Asked 1 500 0 a; 96 4 Granted 1 95 0; 97 4 Held 1 0 97; 140 4 Held 1 0 140; 150 4 Signal 1 0 0 Expired;
            40 6 Asked 1 500 0 a; 200 6 Granted 1 190 0; 201 6 Held 1 0 201; 220 6 Held 1 0 220; 221 6 Ended 1 0 0"),
    (Some("one holder at a time"),
           "10 2 Asked 1 500 0 a; 20 2 Granted 1 15 0; 21 2 Held 1 0 21; 99 2 Held 1 0 99; 100 2 Ended 1 0 0;
            30 4 Asked 1 500 0 a; 96 4 Granted 1 95 0; 97 4 Held 1 0 97; 140 4 Held 1 0 140; 141 4 Ended 1 0 0"),
    (Some("one run at a time"),
           "10 2 Delivered 1 500 0 e; 20 2 Began 1 15 0 e; 21 2 Held 1 0 21; 99 2 Held 1 0 99; 100 2 Done 1 0 0; 101 2 Answered 1 0 0 200;
            30 4 Delivered 1 500 0 e; 96 4 Began 1 95 0 e; 97 4 Held 1 0 97; 140 4 Held 1 0 140; 141 4 Done 1 0 0; 142 4 Answered 1 0 0 200"),
    (Some("handled once"),
           "10 2 Delivered 1 500 0 e; 20 2 Answered 1 0 0 replayed;
            30 4 Delivered 1 500 0 e; 31 4 Began 1 30 0 e; 32 4 Held 1 0 32; 40 4 Held 1 0 40; 41 4 Done 1 0 0; 42 4 Answered 1 0 0 200"),
    (Some("tokens rise"),
           "10 2 Asked 1 500 0 a; 20 2 Granted 1 19 0; 21 2 Held 1 0 21; 90 2 Held 1 0 90; 91 2 Ended 1 0 0;
            92 4 Asked 1 500 0 a; 96 4 Granted 1 15 0; 97 4 Held 1 0 97; 140 4 Held 1 0 140; 141 4 Ended 1 0 0"),
    (Some("each token once"),
           "10 2 Asked 1 500 0 a; 20 2 Granted 1 15 0; 21 2 Ended 1 0 0; 11 4 Asked 1 500 0 a; 19 4 Granted 1 15 0; 20 4 Ended 1 0 0"),
    (Some("not trusted when the server gives it away"),
           "10 2 Asked 1 500 0 a; 20 2 Granted 1 15 0; 21 2 Held 1 0 21; 90 2 Held 1 0 90; 91 2 Ended 1 0 0;
            30 4 Asked 1 500 0 a; 96 4 Granted 1 80 0; 97 4 Held 1 0 97; 140 4 Held 1 0 140; 141 4 Ended 1 0 0"),
    (Some("told before the server gives it away"),
           "10 2 Asked 1 500 0 a; 20 2 Granted 1 15 0; 21 2 Held 1 0 21; 90 2 Held 1 0 90; 180 2 Signal 1 0 0 Expired;
            30 4 Asked 1 500 0 a; 96 4 Granted 1 95 0; 97 4 Held 1 0 97; 140 4 Held 1 0 140; 141 4 Ended 1 0 0"),
    (Some("whoever is refused has lost the lock"),
           "10 2 Asked 1 500 0 a; 20 2 Granted 1 15 0; 21 2 Held 1 0 21; 30 2 Rejected 1 15 22; 40 2 Held 1 0 40; 41 2 Ended 1 0 0"),
    (Some("answered in time"), "10 2 Asked 1 500 0 a; 900 2 Refused 1 0 0 TimedOut"),
    (Some("answered in time"), "10 2 Asked 1 500 0 a"),
    (None, "10 2 Asked 1 500 0 a; 850 2 Stall 0 0 40; 900 2 Refused 1 0 0 TimedOut"),
    (None, "10 2 Asked 1 500 0 a; 900 2 Killed 0 0 0"),
    (Some("no lock is stuck"),
           "10 2 Asked 1 500 0 a; 11 2 Granted 1 10 0; 20 2 Ended 1 0 0; 12 4 Asked 1 5000 0 a; 2900 4 Refused 1 0 0 TimedOut"),
    (None, "10 2 Asked 1 500 0 a; 11 2 Granted 1 10 0; 20 2 Ended 1 0 0; 12 4 Asked 1 5000 0 a; 2900 4 Refused 1 0 0 TimedOut;
            50 0 FaultBegins 1 0 0; 1000 0 FaultEnds 1 0 0"),
];

/// Returns the cases that the checker does not judge rightly.
pub fn wrong() -> Vec<String> {
    let mut wrong = Vec::new();
    for (rule, lines) in CASES {
        let mut events: Vec<Event> = lines.split(';').map(|line| in_ms(line.trim())).collect();
        events.sort_by_key(|event| event.at);
        let report = checker::check(&events, &[], &DEMANDS);
        let broken: Vec<_> = report
            .violations
            .iter()
            .map(|violation| violation.rule)
            .collect();
        let is_right = match rule {
            Some(rule) => broken.contains(rule),
            None => broken.is_empty(),
        };
        if !is_right {
            wrong.push(format!("expected {rule:?}, found {broken:?}: {lines}"));
        }
    }
    let back = [("a:log".to_owned(), vec![3, 5, 4])];
    if checker::check(&[], &back, &DEMANDS).violations.len() != 1 {
        wrong.push("a store that goes back".to_owned());
    }
    wrong
}

fn in_ms(line: &str) -> Event {
    // The text may be empty.
    let line = if line.split(' ').count() < 7 {
        format!("{line} ")
    } else {
        line.to_owned()
    };
    let mut event = crate::history::parse(&line).expect(&line);
    let is_token = matches!(
        event.what,
        crate::history::What::Granted | crate::history::What::Began
    );
    (event.at, event.before) = (event.at * MS, event.before * MS);
    event.number *= if is_token { 1000 * 1024 } else { MS };
    event
}
