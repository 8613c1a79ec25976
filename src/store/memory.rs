//! Locks kept in this process: for tests, examples, and services of one node.

mod inspect;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use super::{Command, Done, Granted, Notice, Outcome, Record, Reply, settled};
use crate::clock::Time;
use crate::key::{KeyMap, LockKey};
use crate::mode::Mode;

/// Does on a map what the script does in Redis. Its only client is one manager, which has every
/// reply at once.
///
/// The mode of a hold makes no difference to it: there is no other process to share a lock with.
#[derive(Debug)]
pub(crate) struct MemoryStore {
    ttl: Duration,
    /// What this process is called.
    instance: String,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    locks: KeyMap<Lock>,
    records: KeyMap<Bytes>,
    /// When records expire, with a number to tell equal times apart.
    expiries: BTreeMap<(Time, u64), LockKey>,
    last_fence: u64,
}

#[derive(Debug)]
struct Lock {
    token: u64,
    mode: Mode,
    expires: Time,
    queue: VecDeque<(u64, Mode)>,
}

impl MemoryStore {
    pub(crate) fn new(ttl: Duration, instance: String) -> Self {
        // As in Redis, fences begin at the clock, so that they rise from one run of the process to
        // the next.
        let since_epoch = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            ttl,
            instance,
            state: Mutex::new(State {
                locks: KeyMap::default(),
                records: KeyMap::default(),
                expiries: BTreeMap::new(),
                last_fence: since_epoch.as_micros() as u64,
            }),
        }
    }

    /// Deletes a record. Returns whether there was one.
    pub(crate) fn forget(&self, key: &LockKey) -> bool {
        let mut state = self.state();
        state.drop_expired_records(Time::now());
        state.expiries.retain(|_, expiring| expiring != key);
        state.records.remove(key).is_some()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn execute(&self, now: Time, key: &LockKey, command: Command) -> Done {
        let mut state = self.state();
        state.drop_expired_records(now);
        let (result, notice, sender) = match command {
            Command::Acquire {
                token, queue, mode, ..
            } => {
                let result = state.acquire(key, (token, mode), queue, now, self.ttl);
                (result, None, None)
            }
            Command::Release { token, reply, .. } => {
                let (result, notice) = state.release(key, token, now, self.ttl);
                (result, notice, reply)
            }
            Command::Complete {
                token,
                record,
                reply,
            } => (state.complete(key, token, now, record), None, reply),
            Command::Renew { token, .. } => (state.renew(key, token, now + self.ttl), None, None),
            Command::Check { token } => (state.check(key, token), None, None),
        };
        let result = Ok(result);
        Done {
            settled: sender.map(|sender| (sender, settled(&result))),
            outcome: Outcome {
                sent_at: now,
                result,
            },
            notice,
        }
    }
}

impl State {
    fn acquire(
        &mut self,
        key: &LockKey,
        (token, mode): (u64, Mode),
        queue: bool,
        now: Time,
        ttl: Duration,
    ) -> Reply {
        if let Some(record) = self.records.get(key) {
            return Reply::Recorded(record.clone());
        }
        match self.locks.get_mut(key) {
            Some(lock) if lock.token != token && lock.expires > now => {
                if queue && !lock.queue.contains(&(token, mode)) {
                    lock.queue.push_back((token, mode));
                }
                return Reply::HeldElsewhere {
                    remaining: Some(lock.expires.since(now)),
                    foreign: false,
                };
            }
            Some(lock) => {
                (lock.token, lock.mode) = (token, mode);
                lock.expires = now + ttl;
                lock.queue.retain(|(waiting, _)| *waiting != token);
            }
            None => {
                self.locks.insert(
                    key.clone(),
                    Lock {
                        token,
                        mode,
                        expires: now + ttl,
                        queue: VecDeque::new(),
                    },
                );
            }
        }
        self.last_fence += 1;
        Reply::Acquired {
            fence: self.last_fence,
            contended: false,
        }
    }

    fn release(
        &mut self,
        key: &LockKey,
        token: u64,
        now: Time,
        ttl: Duration,
    ) -> (Reply, Option<Notice>) {
        let (mut had_it, mut notice) = (false, None);
        if let Some(lock) = self.locks.get_mut(key) {
            had_it = lock.token == token;
            if had_it && let Some((next, mode)) = lock.queue.pop_front() {
                (lock.token, lock.mode, lock.expires) = (next, mode, now + ttl);
                self.last_fence += 1;
                notice = Some(Notice::Granted(Granted {
                    token: next,
                    fence: self.last_fence,
                    ttl,
                    contended: false,
                    after: Some(now),
                }));
            } else if had_it {
                self.locks.remove(key);
            } else {
                lock.queue.retain(|(waiting, _)| *waiting != token);
            }
        }
        let granted = notice.is_some();
        (Reply::Released { had_it, granted }, notice)
    }

    fn complete(&mut self, key: &LockKey, token: u64, now: Time, record: Record) -> Reply {
        // No notice: only requests of this process can wait, and their slot knows.
        match self.locks.get(key) {
            Some(lock) if lock.token == token && lock.expires > now => {
                self.locks.remove(key);
                self.last_fence += 1;
                let expiry = (now + record.retention, self.last_fence);
                self.expiries.insert(expiry, key.clone());
                self.records.insert(key.clone(), record.content);
                Reply::Completed
            }
            _ => Reply::Gone,
        }
    }

    fn drop_expired_records(&mut self, now: Time) {
        while let Some(first) = self.expiries.first_entry()
            && first.key().0 <= now
        {
            self.records.remove(&first.remove());
        }
    }

    fn renew(&mut self, key: &LockKey, token: u64, expires: Time) -> Reply {
        match self.locks.get_mut(key) {
            Some(lock) if lock.token == token => {
                lock.expires = expires;
                Reply::Renewed { contended: false }
            }
            _ => Reply::Gone,
        }
    }

    fn check(&self, key: &LockKey, token: u64) -> Reply {
        match self.locks.get(key) {
            Some(lock) if lock.token == token => Reply::Intact,
            _ => Reply::Gone,
        }
    }
}
