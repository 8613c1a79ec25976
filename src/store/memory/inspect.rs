//! Questions about locks in memory, and a lock that is taken from its holder.

use super::{MemoryStore, State};
use crate::clock::Time;
use crate::error::{Error, ErrorKind};
use crate::inspect::{LockCursor, LockPage, LockReport, Occupant, Process};
use crate::key::LockKey;
use crate::mode::Mode;

/// Keys on a page.
const PAGE: usize = 100;

impl MemoryStore {
    /// Returns what this process is called.
    #[cfg(feature = "inspector")]
    pub(crate) fn instance(&self) -> &str {
        &self.instance
    }

    pub(crate) fn inspect(&self, now: Time, key: &LockKey) -> LockReport {
        let mut state = self.state();
        state.drop_expired_records(now);
        self.report(&state, now, key)
    }

    fn report(&self, state: &State, now: Time, key: &LockKey) -> LockReport {
        let mut report = LockReport::free(key.clone());
        if let Some(lock) = state.locks.get(key).filter(|lock| lock.expires > now) {
            let holder = self.this_process().holding();
            report.occupant = match lock.mode {
                Mode::Exclusive => Occupant::Process(holder),
                Mode::Shared => Occupant::Shared(vec![holder]),
            };
            report.remaining = Some(lock.expires.since(now));
        } else if state.records.contains_key(key) {
            report.occupant = Occupant::Record;
            let mut expiries = state.expiries.iter();
            let expiry = expiries.find(|(_, record)| *record == key);
            report.remaining = expiry.map(|((at, _), _)| at.since(now));
        }
        report
    }

    /// The only process that there can be.
    fn this_process(&self) -> Process {
        let mut process = Process::of("memory");
        process.name = Some(self.instance.clone());
        (process.is_alive, process.is_this) = (true, true);
        process
    }

    pub(crate) fn list(&self, now: Time, cursor: LockCursor) -> LockPage {
        let mut state = self.state();
        state.drop_expired_records(now);
        let keys = state.locks.keys().chain(state.records.keys());
        let mut keys: Vec<&LockKey> = keys.filter(|key| key.kind() == cursor.kind).collect();
        keys.sort_unstable_by_key(|key| key.as_str());
        let begin = usize::try_from(cursor.position).unwrap_or(usize::MAX);
        let rest = keys.get(begin..).unwrap_or_default();
        let page = rest.iter().take(PAGE);
        let next = (rest.len() > PAGE).then(|| LockCursor {
            position: cursor.position + PAGE as u64,
            ..cursor
        });
        let locks = page.map(|key| self.report(&state, now, key)).collect();
        LockPage { locks, next }
    }

    /// Waiting requests are in the slot, which acquires for them once it has found the lock gone.
    pub(crate) fn force_release(&self, key: &LockKey) -> Result<bool, Error> {
        let mut state = self.state();
        state.drop_expired_records(Time::now());
        if state.records.contains_key(key) {
            return Err(Error::new(
                ErrorKind::Held,
                "what is in the lock's place is no lock: a stored response",
            ));
        }
        Ok(state.locks.remove(key).is_some())
    }
}
