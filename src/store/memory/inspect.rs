//! Questions about locks in memory, and a lock that is taken from its holder.

use std::sync::PoisonError;
use std::time::Duration;

use super::MemoryStore;
use crate::clock::Time;
use crate::error::{Error, ErrorKind};
use crate::inspect::{LockCursor, LockReport, Occupant, Process};
use crate::key::LockKey;

/// Keys on a page.
const PAGE: usize = 100;

impl MemoryStore {
    pub(crate) fn inspect(&self, now: Time, keys: &[LockKey]) -> Vec<LockReport> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let report = |key: &LockKey| {
            let mut report = LockReport::free(key.clone());
            if let Some(lock) = state.locks.get(key).filter(|lock| lock.expires > now) {
                report.occupant = self.this_process().holding();
                report.remaining = Some(lock.expires.since(now));
            } else if state.records.contains_key(key) {
                report.occupant = Occupant::Record;
                let mut expiries = state.expiries.iter();
                let expiry = expiries.find(|(_, record)| *record == key);
                report.remaining = expiry.map(|((at, _), _)| at.since(now));
                report.remaining = report.remaining.filter(|left| *left > Duration::ZERO);
            }
            report
        };
        keys.iter().map(report).collect()
    }

    /// The only process that there can be.
    fn this_process(&self) -> Process {
        let mut process = Process::of("memory");
        process.name = Some(self.instance.clone());
        (process.is_alive, process.is_this) = (true, true);
        process
    }

    pub(crate) fn scan(&self, cursor: LockCursor) -> (Vec<LockKey>, Option<LockCursor>) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let keys = state.locks.keys().chain(state.records.keys());
        let mut keys: Vec<&LockKey> = keys.filter(|key| key.kind() == cursor.kind).collect();
        keys.sort_unstable_by_key(|key| key.as_str());
        let begin = usize::try_from(cursor.position).unwrap_or(usize::MAX);
        let rest = keys.get(begin..).unwrap_or_default();
        let page = rest.iter().take(PAGE).map(|key| (*key).clone());
        let next = (rest.len() > PAGE).then(|| LockCursor {
            position: cursor.position + PAGE as u64,
            ..cursor
        });
        (page.collect(), next)
    }

    /// Waiting requests are in the slot, which acquires for them once it has found the lock gone.
    pub(crate) fn force_release(&self, key: &LockKey) -> Result<bool, Error> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.records.contains_key(key) {
            return Err(Error::new(
                ErrorKind::Held,
                "what is in the lock's place is no lock: a stored response",
            ));
        }
        Ok(state.locks.remove(key).is_some())
    }
}
