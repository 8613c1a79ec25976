//! Who held what, and when.

use std::collections::HashMap;

use crate::history::{Event, What};

#[derive(Clone, Debug, Default)]
pub struct Hold {
    pub by: u32,
    pub id: u64,
    pub key: String,
    /// It is the run of an event's handler, and not the hold of a lock.
    pub is_run: bool,
    /// Others may hold the lock at the same time, in the same way.
    pub is_shared: bool,
    /// The first of the requests whose locks are held together with this one.
    pub group: Option<u64>,
    pub token: u64,
    pub asked: u64,
    pub granted: u64,
    /// The time for which the lock was trusted: from after the first time that `is_held()` said so
    /// until before the last. A process that was stopped in the middle of a look did not see more
    /// than that.
    pub trusted: Option<(u64, u64)>,
    /// The latest time at which it was over: given back, known as lost, or its process dead.
    pub over: Option<u64>,
    /// When it was given back, or its process died.
    pub ended: Option<u64>,
    /// When `lost()` told of the loss.
    pub signal: Option<u64>,
    /// `lost()` said that the lock was held for too long.
    pub is_past_limit: bool,
    /// `is_held()` was false before the handler was done, or the lock given back.
    pub is_known_to_be_over: bool,
    pub done: Option<Done>,
}

/// The end of a handler that was not stopped.
#[derive(Clone, Copy, Debug)]
pub struct Done {
    /// In time, while its lease was good.
    pub succeeded: bool,
    /// Until when.
    pub good_until: u64,
}

impl Hold {
    pub fn request(&self) -> (u32, u64) {
        (self.by, self.id)
    }

    /// Whether this is a run of an event's handler: locks have short names.
    pub fn is_event(&self) -> bool {
        self.key.contains("event:")
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
            What::Asked | What::AskedAll | What::Tried | What::Delivered => {
                asked.insert(request, (event.at, &event.text));
            }
            What::Granted | What::Began => {
                let (asked, key) = asked[&request];
                let hold = Hold {
                    by: event.by,
                    id: event.id,
                    key: key.to_owned(),
                    is_run: event.what == What::Began,
                    is_shared: event.text == "shared",
                    group: event
                        .text
                        .strip_prefix("with ")
                        .map(|first| first.parse().expect(&event.text)),
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
            What::NotHeld | What::Ended => {
                let hold = holds.get_mut(&request).unwrap();
                hold.over.get_or_insert(event.at);
                match event.what {
                    What::NotHeld => hold.is_known_to_be_over = true,
                    _ => hold.ended = Some(event.at),
                }
            }
            What::Done => {
                let hold = holds.get_mut(&request).unwrap();
                hold.done = Some(Done {
                    succeeded: event.number == 200 && event.before > event.at,
                    good_until: event.before,
                });
            }
            What::Signal => {
                let hold = holds.get_mut(&request).unwrap();
                hold.over.get_or_insert(event.at);
                hold.signal = Some(event.at);
                hold.is_past_limit = event.text == "MaxHold";
            }
            What::Killed | What::Closed => {
                let alive = holds.values_mut().filter(|hold| hold.by == event.by);
                alive.for_each(|hold| {
                    hold.over.get_or_insert(event.at);
                    hold.ended.get_or_insert(event.at);
                });
            }
            _ => {}
        }
    }
    let mut holds: Vec<Hold> = holds.into_values().collect();
    holds.sort_by_key(|hold| hold.granted);
    holds
}

/// For each key, when a process wanted the lock or had it.
pub(super) type Wanted<'a> = HashMap<&'a str, Vec<(u64, u64)>>;

pub(super) fn wanted<'a>(events: &'a [Event], holds: &'a [Hold]) -> Wanted<'a> {
    let mut wanted = Wanted::new();
    let mut open: HashMap<(u32, u64), (&str, u64)> = HashMap::new();
    for event in events {
        let request = (event.by, event.id);
        match event.what {
            What::Asked | What::AskedAll | What::Tried | What::Delivered => {
                open.insert(request, (&event.text, event.at));
            }
            What::Granted | What::Began | What::Refused | What::Cancelled | What::Answered => {
                if let Some((key, from)) = open.remove(&request) {
                    wanted.entry(key).or_default().push((from, event.at));
                }
            }
            What::Killed => open.retain(|(by, _), (key, from)| {
                let is_killed = *by == event.by;
                if is_killed {
                    wanted.entry(key).or_default().push((*from, event.at));
                }
                !is_killed
            }),
            _ => {}
        }
    }
    for (key, from) in open.into_values() {
        wanted.entry(key).or_default().push((from, u64::MAX));
    }
    for hold in holds {
        let over = hold.over.unwrap_or(u64::MAX);
        wanted
            .entry(&hold.key)
            .or_default()
            .push((hold.granted, over));
    }
    wanted
}

/// For each key, when it may have been held by a request that waited for others, unknown to the
/// history; and by which process.
pub(super) struct InBetween<'a>(HashMap<&'a str, Vec<(u32, u64, u64)>>);

impl<'a> InBetween<'a> {
    pub(super) fn of(events: &'a [Event]) -> Self {
        let mut open: HashMap<(u32, u64), (&str, u64)> = HashMap::new();
        let mut times: HashMap<&str, Vec<(u32, u64, u64)>> = HashMap::new();
        for event in events {
            let request = (event.by, event.id);
            match event.what {
                What::AskedAll => {
                    open.insert(request, (&event.text, event.at));
                }
                What::Granted | What::Refused | What::Cancelled => {
                    if let Some((key, from)) = open.remove(&request) {
                        let time = (event.by, from, event.at);
                        times.entry(key).or_default().push(time);
                    }
                }
                What::Killed => open.retain(|(by, _), (key, from)| {
                    let is_killed = *by == event.by;
                    if is_killed {
                        let time = (event.by, *from, event.at);
                        times.entry(key).or_default().push(time);
                    }
                    !is_killed
                }),
                _ => {}
            }
        }
        for ((by, _), (key, from)) in open {
            times.entry(key).or_default().push((by, from, u64::MAX));
        }
        Self(times)
    }

    /// Returns the times of a key, each with its process.
    pub(super) fn of_key(&self, key: &str) -> &[(u32, u64, u64)] {
        self.0.get(key).map_or(&[], Vec::as_slice)
    }
}
