//! What is shown, as JSON. Times are in milliseconds; those of what happened say how long ago.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::json::{self, Object};
use super::known::shown;
use super::{Shared, query};
use crate::clock::Time;
use crate::error::ErrorKind;
use crate::inspect::{LockPage, LockReport, Occupant, Process};
use crate::key::{Kind, LockKey};
use crate::lease::LostReason;
use crate::manager::LocalLock;
use crate::observe::{LockHistory, Loss, Queue, Run, RunEnd, Tally};

/// How many locks are shown.
const ROWS: usize = 40;
/// How late the journal may be told of something.
const LATE: Duration = Duration::from_secs(1);
/// How many processes of a queue are shown.
const PROCESSES: usize = 50;

const REFUSALS: [ErrorKind; 5] = [
    ErrorKind::Held,
    ErrorKind::TimedOut,
    ErrorKind::QueueFull,
    ErrorKind::Unavailable,
    ErrorKind::Closed,
];

/// What is known of a lock of this process.
struct Row {
    key: LockKey,
    now: Option<LocalLock>,
    past: Option<LockHistory>,
}

/// Returns what this process knows.
pub(super) fn snapshot(shared: &Shared) -> String {
    let (locks, began) = (&shared.locks, Time::now());
    let survey = locks.survey(ROWS);
    let keys: Vec<LockKey> = survey.locks.iter().map(|lock| lock.key.clone()).collect();
    let report = locks.journal().report(&keys, ROWS);
    let mut pasts = report.locks;
    let mut rows: Vec<Row> = Vec::with_capacity(2 * ROWS);
    for lock in survey.locks {
        let past = pasts.iter().position(|past| past.key == lock.key);
        rows.push(Row {
            key: lock.key.clone(),
            past: past.map(|place| pasts.swap_remove(place)),
            now: Some(lock),
        });
    }
    rows.extend(pasts.into_iter().map(|past| Row {
        key: past.key.clone(),
        now: locks.local(&past.key),
        past: Some(past),
    }));
    rows.sort_by_key(|row| std::cmp::Reverse(row.heat()));
    for row in &rows {
        row.settle(shared, began);
    }
    let more = rows.len() > ROWS || survey.is_cut;
    rows.truncate(ROWS);

    let now = Time::now();
    let (stats, settings) = (locks.stats(), shared.settings);
    json::object(|json| {
        json.millis("at", since_epoch())
            .text("process", &shown(locks.instance()))
            .flag("is_store_up", stats.is_store_up)
            .flag("is_draining", stats.is_draining)
            .flag("shows_keys", settings.show_keys)
            .flag("allows_force_release", settings.allow_force_release)
            .count("held", stats.held)
            .count("waiting", stats.waiting)
            .count("queued", stats.queued)
            .object("minute", |json| tally(json, &report.all))
            .array("locks", &rows, |json, row| row.write(json, shared, now))
            .flag("has_more_locks", more)
            .array("losses", &report.losses, |json, loss| {
                lost(json, shared, loss, now);
            });
    })
}

/// Returns what Redis knows of a lock.
pub(super) fn lock(shared: &Shared, report: &LockReport) -> String {
    json::object(|json| write_report(json, shared, report))
}

/// Returns some of all locks.
pub(super) fn page(shared: &Shared, page: &LockPage) -> String {
    json::object(|json| {
        json.array("locks", &page.locks, |json, report| {
            write_report(json, shared, report);
        });
        json.maybe("next", page.next, |json, next| {
            json.text("next", &query::cursor_text(next));
        });
    })
}

impl Row {
    /// What sorts the rows: the one that most wait for comes first, then those that were lost.
    fn heat(&self) -> (usize, u32, Duration, u32, Duration) {
        let (waiting, held_for) = match &self.now {
            Some(now) => (now.waiting, now.held_for),
            None => (0, Duration::ZERO),
        };
        match &self.past {
            Some(LockHistory { tally, .. }) => {
                let waits = &tally.waits;
                (waiting, tally.lost, waits.total(), waits.count(), held_for)
            }
            None => (waiting, 0, Duration::ZERO, 0, held_for),
        }
    }

    /// Has the journal corrected, of the time that was over when the lock was looked at.
    fn settle(&self, shared: &Shared, looked_at: Time) {
        let (is_held, is_waited_for) = match &self.now {
            Some(now) => (now.is_held, now.waiting > 0),
            None => (false, false),
        };
        let before = Time::from_nanos(looked_at.as_nanos().saturating_sub(LATE.as_nanos() as u64));
        if self.past.is_some() && !(is_held && is_waited_for) {
            let journal = shared.locks.journal();
            journal.settle(&self.key, is_held, is_waited_for, before);
        }
    }

    fn write(&self, json: &mut Object<'_>, shared: &Shared, now: Time) {
        name(json, shared, &self.key);
        json.count("waiting", self.now.as_ref().map_or(0, |now| now.waiting));
        let is = |what: fn(&LocalLock) -> bool| self.now.as_ref().is_some_and(what);
        json.flag("is_queued", is(|now| now.is_queued));
        json.flag("is_contended", is(|now| now.is_contended));
        let held = self.now.as_ref();
        let held = held.and_then(|now| Some((now, now.lease.as_ref()?)));
        json.maybe("held", held, |json, (local, lease)| {
            json.object("held", |json| {
                json.text("name", lease.meter().name())
                    .token("fencing_token", lease.fencing_token())
                    .text("path", lease.path().as_str())
                    .flag("is_shared", lease.mode().is_shared())
                    .count("holders", local.holders)
                    .millis("for", local.held_for)
                    .millis("remaining", lease.remaining());
            });
        });
        json.maybe("minute", self.past.as_ref(), |json, past| {
            json.object("minute", |json| tally(json, &past.tally));
        });
        let (runs, queues) = match &self.past {
            Some(past) => (&past.runs[..], &past.queues[..]),
            None => (&[][..], &[][..]),
        };
        json.array("holders", runs, |json, run| held_by(json, run, now));
        json.array("queues", queues, |json, queue| waited(json, queue, now));
    }
}

/// Writes how a lock is shown, and asked for.
fn name(json: &mut Object<'_>, shared: &Shared, key: &LockKey) {
    json.text("id", &shared.known.id(key))
        .text("fingerprint", &key.fingerprint())
        .flag("is_record", key.kind() == Kind::Record);
    let key = shared.settings.show_keys.then(|| shown(key.as_str()));
    json.maybe("key", key, |json, key| {
        json.text("key", &key);
    });
}

fn tally(json: &mut Object<'_>, tally: &Tally) {
    let waits = &tally.waits;
    json.count("acquired", waits.count())
        .object("wait", |json| {
            for (name, part) in [("p50", 0.5), ("p90", 0.9), ("p99", 0.99)] {
                json.millis(name, waits.quantile(part).unwrap_or_default());
            }
            json.millis("max", waits.longest());
        });
    json.object("refused", |json| {
        for kind in REFUSALS {
            json.count(kind.as_str(), tally.refused[kind as usize]);
        }
    });
    json.count("lost", tally.lost);
}

fn held_by(json: &mut Object<'_>, run: &Run, now: Time) {
    let ended = run.ended.unwrap_or(now);
    json.millis("from", now.since(run.began))
        .millis("to", now.since(ended))
        .text(
            "end",
            match run.end {
                RunEnd::Not => "holds",
                RunEnd::Released => "released",
                RunEnd::GrantedAway => "granted_away",
                RunEnd::Lost(reason) => lost_reason(reason),
            },
        )
        .count("holders", run.holders)
        .flag("is_shared", run.is_shared)
        .token("fencing_token", run.fencing_token)
        .text("name", run.meter.name())
        .text("path", run.path.as_str());
}

fn waited(json: &mut Object<'_>, queue: &Queue, now: Time) {
    let ended = queue.ended.unwrap_or(now);
    json.millis("from", now.since(queue.began))
        .millis("to", now.since(ended))
        .count("most", queue.most);
}

fn lost(json: &mut Object<'_>, shared: &Shared, loss: &Loss, now: Time) {
    name(json, shared, &loss.key);
    json.millis("ago", now.since(loss.at))
        .text("reason", lost_reason(loss.reason))
        .text("name", loss.meter.name())
        .token("fencing_token", loss.fencing_token)
        .maybe("held_for", loss.held_for, |json, time| {
            json.millis("held_for", time);
        });
}

fn lost_reason(reason: LostReason) -> &'static str {
    match reason {
        LostReason::Expired | LostReason::Released => "expired",
        LostReason::Taken => "taken",
        LostReason::MaxHold => "max_hold",
    }
}

fn write_report(json: &mut Object<'_>, shared: &Shared, report: &LockReport) {
    name(json, shared, &report.key);
    let (occupant, holders) = match &report.occupant {
        Occupant::None => ("free", &[][..]),
        Occupant::Process(holder) => ("process", std::slice::from_ref(holder)),
        Occupant::Shared(holders) => ("shared", &holders[..]),
        Occupant::OtherClient => ("other_client", &[][..]),
        Occupant::Record => ("record", &[][..]),
    };
    json.text("occupant", occupant);
    json.count("processes_holding", holders.len());
    let some = holders.iter().take(PROCESSES);
    json.array("holders", some, |json, holder| {
        process(json, &holder.process);
        json.maybe("fencing_token", holder.fencing_token, |json, token| {
            json.token("fencing_token", token);
        });
        json.maybe("held_for", holder.held_for, |json, time| {
            json.millis("held_for", time);
        });
    });
    json.maybe("remaining", report.remaining, |json, time| {
        json.millis("remaining", time);
    });
    json.flag("is_contended", report.is_contended);
    json.count("processes_waiting", report.waiting.len());
    let some = report.waiting.iter().take(PROCESSES);
    json.array("waiting", some, process);
    let here = shared.locks.local(&report.key);
    json.count("waiting_here", here.map_or(0, |lock| lock.waiting));
}

/// Another process chooses its name: it is a stranger's text.
fn process(json: &mut Object<'_>, process: &Process) {
    json.text("id", &shown(&process.id))
        .flag("is_alive", process.is_alive)
        .flag("is_this", process.is_this);
    for (field, value) in [("name", &process.name), ("address", &process.address)] {
        json.maybe(field, value.as_ref(), |json, value| {
            json.text(field, &shown(value));
        });
    }
}

fn since_epoch() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}
