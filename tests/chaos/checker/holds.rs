//! Who held what, and when.

use std::collections::HashMap;

use crate::history::{Event, What};

#[derive(Clone, Debug, Default)]
pub struct Hold {
    pub by: u32,
    pub id: u64,
    pub key: String,
    /// Of an event's handler, rather than of a lock.
    pub is_run: bool,
    pub token: u64,
    pub asked: u64,
    pub granted: u64,
    /// What it was trusted for, in between `is_held()` said so: from after the first time it did to before the last.
    /// Whoever was stopped in the middle of a look did not see more than that.
    pub trusted: Option<(u64, u64)>,
    /// When it was over at the latest: given back, known as lost, or its process dead.
    pub over: Option<u64>,
    /// When `lost()` told of the loss.
    pub signal: Option<u64>,
}

impl Hold {
    pub fn request(&self) -> (u32, u64) {
        (self.by, self.id)
    }

    pub fn name(&self) -> String {
        format!(
            "process {} request {} token {}",
            self.by, self.id, self.token
        )
    }
}

pub(super) fn build(events: &[Event]) -> Vec<Hold> {
    let mut asked: HashMap<(u32, u64), (u64, &str)> = HashMap::new();
    let mut holds: HashMap<(u32, u64), Hold> = HashMap::new();
    for event in events {
        let request = (event.by, event.id);
        match event.what {
            What::Asked | What::Tried | What::Delivered => {
                asked.insert(request, (event.at, &event.text));
            }
            What::Granted | What::Began => {
                let (asked, key) = asked[&request];
                let hold = Hold {
                    by: event.by,
                    id: event.id,
                    key: key.to_owned(),
                    is_run: event.what == What::Began,
                    token: event.number,
                    asked,
                    granted: event.at,
                    ..Hold::default()
                };
                assert!(
                    holds.insert(request, hold).is_none(),
                    "granted twice: {event:?}"
                );
            }
            What::Held => {
                let hold = holds.get_mut(&request).unwrap();
                let from = hold.trusted.map_or(event.at, |(from, _)| from);
                hold.trusted = Some((from, event.before));
            }
            What::NotHeld | What::Ended | What::Done => {
                let hold = holds.get_mut(&request).unwrap();
                hold.over.get_or_insert(event.at);
            }
            What::Signal => {
                let hold = holds.get_mut(&request).unwrap();
                hold.over.get_or_insert(event.at);
                hold.signal = Some(event.at);
            }
            What::Killed | What::Closed => {
                let alive = holds.values_mut().filter(|hold| hold.by == event.by);
                alive.for_each(|hold| {
                    hold.over.get_or_insert(event.at);
                });
            }
            _ => {}
        }
    }
    let mut holds: Vec<Hold> = holds.into_values().collect();
    holds.sort_by_key(|hold| hold.granted);
    holds
}
