//! [`Past`]: who held a lock of late, and when requests waited for it.

use std::collections::VecDeque;
use std::time::Duration;

use crate::clock::Time;
use crate::lease::{GrantPath, Lease, LostReason};
use crate::observe::Meter;

/// How many are kept of each. What is shorter than [`BRIEF`] is put together, so that this lasts
/// for a minute.
const KEPT: usize = 120;
/// A minute is some hundred pixels wide: this is a few of them.
const BRIEF: Duration = Duration::from_millis(500);

#[derive(Default)]
pub(super) struct Past {
    runs: VecDeque<Run>,
    queues: VecDeque<Queue>,
}

/// A holder of this process; or several brief ones, one right after the other; or those that share
/// the lock, from the first to the last.
#[derive(Clone)]
pub(crate) struct Run {
    pub(crate) began: Time,
    /// `None` while it holds.
    pub(crate) ended: Option<Time>,
    pub(crate) end: RunEnd,
    /// How many holders there were.
    pub(crate) holders: u32,
    /// How many there are.
    open: u32,
    pub(crate) is_shared: bool,
    /// The number of the last one's lease.
    lease: u64,
    /// Of the last of them.
    pub(crate) fencing_token: u64,
    pub(crate) meter: Meter,
    /// How the first of them got the lock.
    pub(crate) path: GrantPath,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum RunEnd {
    /// It goes on.
    Not,
    Released,
    /// Another process got the lock.
    GrantedAway,
    Lost(LostReason),
}

/// A time in which requests of this process waited.
#[derive(Clone)]
pub(crate) struct Queue {
    pub(crate) began: Time,
    /// `None` while some wait.
    pub(crate) ended: Option<Time>,
    /// How many there were at most.
    pub(crate) most: usize,
}

impl Past {
    /// Returns whether the lock is held here, or waited for.
    pub(super) fn is_open(&self) -> bool {
        let is_held = || self.runs.iter().any(|run| run.ended.is_none());
        self.queues
            .back()
            .is_some_and(|queue| queue.ended.is_none())
            || is_held()
    }

    pub(super) fn held(&mut self, lease: &Lease, now: Time) {
        // Its loss may have been told first, by another thread.
        if self.runs.iter().any(|run| run.lease == lease.grant().lease) {
            return;
        }
        match self.runs.back_mut() {
            Some(shared) if shared.is_shared && shared.open > 0 && is_shared(lease) => {
                shared.open += 1;
                shared.holders += 1;
                shared.lease = lease.grant().lease;
            }
            _ => push(&mut self.runs, Run::new(lease, now)),
        }
    }

    /// Returns for how long the lock was held, if it was known to be.
    pub(super) fn ended(&mut self, lease: &Lease, now: Time, end: RunEnd) -> Option<Duration> {
        let Some(place) = self.place_of(lease) else {
            let mut run = Run::new(lease, now);
            (run.ended, run.end, run.open) = (Some(now), end, 0);
            push(&mut self.runs, run);
            return None;
        };
        let run = &mut self.runs[place];
        if run.ended.is_some() {
            return None;
        }
        run.open -= 1;
        if run.open > 0 {
            return None;
        }
        run.ended = Some(now);
        if run.end != RunEnd::GrantedAway {
            run.end = end;
        }
        let run = run.clone();
        let before = place.checked_sub(1).map(|before| &mut self.runs[before]);
        if let Some(before) = before.filter(|before| before.goes_on_as(&run)) {
            before.ended = run.ended;
            before.holders += run.holders;
            before.lease = run.lease;
            before.fencing_token = run.fencing_token;
            before.end = run.end;
            self.runs.remove(place);
        }
        Some(now.since(run.began))
    }

    /// The lock that the last of them has released went to another process. Another thread may not
    /// have told of that release yet.
    pub(super) fn granted_away(&mut self) {
        let is_released = |last: &&mut Run| matches!(last.end, RunEnd::Not | RunEnd::Released);
        if let Some(last) = self.runs.back_mut().filter(is_released) {
            last.end = RunEnd::GrantedAway;
        }
    }

    pub(super) fn waiting(&mut self, requests: usize, now: Time) {
        match self.queues.back_mut() {
            Some(last) if last.ended.is_none_or(|ended| ended + BRIEF > now) => {
                last.ended = (requests == 0).then_some(now);
                last.most = last.most.max(requests);
            }
            _ if requests > 0 => {
                let queue = Queue {
                    began: now,
                    ended: None,
                    most: requests,
                };
                push(&mut self.queues, queue);
            }
            _ => {}
        }
    }

    /// Returns the runs that ended later, or not yet.
    pub(super) fn runs(&self, is_recent: impl Fn(Time) -> bool) -> Vec<Run> {
        let runs = self.runs.iter();
        let recent = runs.filter(|run| run.ended.is_none_or(&is_recent));
        recent.cloned().collect()
    }

    /// Like [`runs`](Self::runs), for the queues.
    pub(super) fn queues(&self, is_recent: impl Fn(Time) -> bool) -> Vec<Queue> {
        let queues = self.queues.iter();
        let recent = queues.filter(|queue| queue.ended.is_none_or(&is_recent));
        recent.cloned().collect()
    }

    /// Corrects what is left open of before that time, though the lock is not held, or no request
    /// waits: threads may tell of two events in the wrong order.
    pub(super) fn settle(&mut self, is_held: bool, is_waited_for: bool, before: Time, now: Time) {
        if !is_held {
            for run in self.runs.iter_mut().filter(|run| run.began < before) {
                if run.ended.is_none() {
                    (run.ended, run.end, run.open) = (Some(now), RunEnd::Released, 0);
                }
            }
        }
        if let Some(queue) = self.queues.back_mut().filter(|queue| queue.began < before)
            && !is_waited_for
        {
            queue.ended.get_or_insert(now);
        }
    }

    fn place_of(&self, lease: &Lease) -> Option<usize> {
        let number = lease.grant().lease;
        let is_its = |run: &Run| match is_shared(lease) {
            true => run.is_shared && run.open > 0,
            false => run.lease == number,
        };
        self.runs.iter().rposition(is_its)
    }
}

impl Run {
    fn new(lease: &Lease, now: Time) -> Self {
        Self {
            began: now,
            ended: None,
            end: RunEnd::Not,
            holders: 1,
            open: 1,
            is_shared: is_shared(lease),
            lease: lease.grant().lease,
            fencing_token: lease.fencing_token(),
            meter: lease.meter().clone(),
            path: lease.path(),
        }
    }

    /// Returns whether these are brief holders, one right after the other.
    fn goes_on_as(&self, next: &Self) -> bool {
        let is_brief = |run: &Self| match run.ended {
            Some(ended) => run.holders > 1 || ended.since(run.began) < BRIEF,
            None => false,
        };
        let is_close = self.ended.is_some_and(|ended| ended + BRIEF > next.began);
        let is_released = self.end == RunEnd::Released && next.end == RunEnd::Released;
        let is_alike = self.is_shared == next.is_shared;
        is_alike && is_released && is_close && is_brief(self) && is_brief(next)
    }
}

fn is_shared(lease: &Lease) -> bool {
    lease.mode().is_shared()
}

fn push<T>(all: &mut VecDeque<T>, one: T) {
    if all.len() == KEPT {
        all.pop_front();
    }
    all.push_back(one);
}
