//! What may have happened, and what may not.
//!
//! An event's run tells the storage that it began, that it took effect, and how it ended, in this
//! order and before the layer has its response. The layer records the response of a run that
//! succeeded, *before* a client gets it. From that:
//!
//! 1. A run begins only when that of the same event before it has ended, or its process was killed:
//!    **never two at a time**. The log has the kill before it happens, so for as long as a SIGKILL
//!    takes, a run that begins too early passes for one that begins after the kill.
//! 2. A run begins after one that **took effect** only if that one's process was killed: between
//!    its effect and its record, a process can be cut off (also after the run has ended, and before
//!    the record is there). So an event's effects are one, and one more for each run that was cut
//!    off there; without kills, one.
//! 3. A run does nothing after another has begun.
//! 4. Once a client has a 200, **no run begins any more**, kills or no kills: the record was there
//!    before.
//! 5. All 200 of an event are the response of the same run, the last one that took effect; the
//!    first of them is no replay, and all others are. Where Redis is out of memory for moments, a
//!    replay may lack the body of a long response.
//! 6. A run goes on to its end when its client leaves: only a kill can cut it off.
//! 7. A run that **outlives its lease**, as its handler blocks its thread, is like one that was cut
//!    off: another may begin. Then the client of the first has no 200.
//! 8. Only what is to be remembered is replayed: no failure is.
//! 9. A run takes its effect under the locks of accounts: it shares one, or has two alone, both or
//!    none. Those of one account are taken by one run that **writes**, or by any that **read**,
//!    unless the process of the other was killed, or its lock was over.
//!
//! All this holds as long as no lease is lost. A process that the machine keeps from running loses
//! its leases; `stall.rs` tells when that may have happened.

use std::collections::{HashMap, HashSet};

use crate::client::Answer;
use crate::storage::{Entry, Run, Visit};

#[derive(Default)]
pub struct Findings {
    pub violations: Vec<String>,
    pub runs: usize,
    pub effects: u64,
    pub failures: usize,
    pub panics: usize,
    pub kills: usize,
    /// Runs that were cut off before they took effect, and after it but before their record.
    pub cut_off: (u64, u64),
    /// The longest time that a node did not run, in ms.
    pub stood_still: u64,
    pub events: HashMap<u64, Event>,
    killed: HashSet<u64>,
    /// Runs whose lease was over before they were.
    pub outlived: HashSet<Run>,
    /// Those for which the lock of an account was over before they gave it back.
    pub late: HashSet<Run>,
    /// Visits to accounts, and how many of them only read.
    pub visits: (usize, usize),
    visiting: Vec<Visit>,
}

/// What the storage was told about one event.
#[derive(Default)]
pub struct Event {
    running: Option<Run>,
    /// The last run, if it took effect.
    took_effect: Option<Run>,
    pub effects: u64,
    is_answered: bool,
}

impl Findings {
    /// Reads the log, in which everything is in order.
    pub fn of(log: &[Entry]) -> Self {
        // Another may begin before a run has noticed that its lease is over.
        let outlived = log.iter().filter_map(|entry| match entry {
            Entry::Outlived(run) => Some(*run),
            _ => None,
        });
        let late = log.iter().filter_map(|entry| match entry {
            Entry::LeftLate(visit) => Some(visit.run),
            _ => None,
        });
        let mut findings = Self {
            outlived: outlived.collect(),
            late: late.collect(),
            ..Self::default()
        };
        for entry in log {
            if let Err(violation) = findings.read(*entry) {
                findings.violations.push(format!("{entry}: {violation}"));
            }
        }
        findings
    }

    fn read(&mut self, entry: Entry) -> Result<(), String> {
        match entry {
            Entry::Began(run) => self.began(run),
            Entry::TookEffect(run) => {
                let event = self.events.entry(run.event).or_default();
                event.took_effect = Some(run);
                event.effects += 1;
                self.effects += 1;
                event.runs(run)
            }
            Entry::Succeeded(run) | Entry::Failed(run) | Entry::Panicked(run) => {
                self.failures += usize::from(matches!(entry, Entry::Failed(_)));
                self.panics += usize::from(matches!(entry, Entry::Panicked(_)));
                let event = self.events.entry(run.event).or_default();
                event.runs(run)?;
                event.running = None;
                Ok(())
            }
            Entry::Outlived(run) => {
                let event = self.events.entry(run.event).or_default();
                event.running.take_if(|running| *running == run);
                Ok(())
            }
            Entry::Dropped(_) => Err("before its end".to_owned()),
            Entry::Answered(event) => {
                self.events.entry(event).or_default().is_answered = true;
                Ok(())
            }
            Entry::Entered(visit) => self.entered(visit),
            Entry::Left(visit) | Entry::LeftLate(visit) => {
                self.visiting.retain(|other| *other != visit);
                Ok(())
            }
            Entry::StoodStill(ms) => {
                self.stood_still = self.stood_still.max(ms);
                Ok(())
            }
            Entry::Kill(node) => {
                self.killed.insert(node);
                self.kills += 1;
                Ok(())
            }
        }
    }

    fn entered(&mut self, visit: Visit) -> Result<(), String> {
        self.visits.0 += 1;
        self.visits.1 += usize::from(visit.reads);
        let is_over = |run: &Run| {
            self.killed.contains(&run.node)
                || self.outlived.contains(run)
                || self.late.contains(run)
        };
        self.visiting.retain(|other| !is_over(&other.run));
        let conflicts =
            |other: &&Visit| other.account == visit.account && !(other.reads && visit.reads);
        let other = self.visiting.iter().find(conflicts).copied();
        if !is_over(&visit.run) {
            self.visiting.push(visit);
        }
        match other {
            Some(other) if !is_over(&visit.run) => Err(format!("while {other}")),
            _ => Ok(()),
        }
    }

    fn began(&mut self, run: Run) -> Result<(), String> {
        self.runs += 1;
        let event = self.events.entry(run.event).or_default();
        let (running, took_effect) = (event.running.replace(run), event.took_effect.take());
        if event.is_answered {
            return Err("though its event was answered".to_owned());
        }
        let is_cut_off =
            |other: &Run| self.killed.contains(&other.node) || self.outlived.contains(other);
        if let Some(other) = running.filter(|other| !is_cut_off(other)) {
            return Err(format!("while {other} ran"));
        }
        match took_effect {
            Some(other) if !is_cut_off(&other) => {
                return Err(format!("though {other} took effect"));
            }
            Some(_) => self.cut_off.1 += 1,
            None => self.cut_off.0 += u64::from(running.is_some()),
        }
        Ok(())
    }
}

impl Event {
    fn runs(&self, run: Run) -> Result<(), String> {
        match self.running {
            Some(running) if running == run => Ok(()),
            Some(other) => Err(format!("though {other} runs")),
            None => Err("though it does not run".to_owned()),
        }
    }

    /// Looks at all responses that were given to an event's deliveries.
    pub fn answers(
        &self,
        event: u64,
        answers: &[Answer],
        may_lack_bodies: bool,
        violations: &mut Vec<String>,
    ) {
        let mut violation = |text: String| violations.push(format!("event {event}: {text}"));
        let expected = self.took_effect.map(|run| run.to_string());
        let mut firsts = 0;
        for Answer {
            status,
            is_replay,
            lacks_body,
            body,
        } in answers
        {
            match status {
                200 if *is_replay && *lacks_body && may_lack_bodies => {}
                200 if Some(body) != expected.as_ref() => violation(format!(
                    "a 200 (replay: {is_replay}) of {body}, not of {expected:?}"
                )),
                200 => firsts += usize::from(!is_replay),
                409 | 500 | 503 if *is_replay => violation(format!("a replay of a {status}")),
                // The handler's own.
                500 if body.starts_with(&format!("{event}.")) => {}
                409 | 503 => {}
                _ => violation(format!("a {status}: {body}")),
            }
        }
        if firsts > 1 {
            violation(format!("{firsts} times a 200 that is no replay"));
        }
    }
}
