//! Locks kept in this process: for tests, examples, and services of one node.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{Answer, Command, Granted, Notice, Outcome};
use crate::clock::Time;
use crate::key::LockKey;

/// What the Redis scripts do, on a map. Its only client is one manager, whose commands it answers at once.
#[derive(Debug)]
pub(crate) struct MemoryStore {
    ttl: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    locks: HashMap<LockKey, Lock>,
    last_fence: u64,
}

#[derive(Debug)]
struct Lock {
    token: u64,
    expires: Time,
    queue: VecDeque<u64>,
}

impl MemoryStore {
    pub(crate) fn new(ttl: Duration) -> Self {
        // As in Redis: fences begin at the clock, so that they rise from one run of the process to the next.
        let since_epoch = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            ttl,
            state: Mutex::new(State {
                locks: HashMap::new(),
                last_fence: since_epoch.as_micros() as u64,
            }),
        }
    }

    /// The outcome, and the notice of a grant that the command caused.
    pub(crate) fn execute(
        &self,
        now: Time,
        key: &LockKey,
        command: Command,
    ) -> (Outcome, Option<Notice>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (answer, notice) = match command {
            Command::Acquire { token, queue, .. } => {
                (state.acquire(key, token, queue, now, self.ttl), None)
            }
            Command::Release { token, .. } => state.release(key, token, now, self.ttl),
            Command::Renew { token } => (state.renew(key, token, now + self.ttl), None),
        };
        let outcome = Outcome {
            sent_at: now,
            result: Ok(answer),
        };
        (outcome, notice)
    }
}

impl State {
    fn acquire(
        &mut self,
        key: &LockKey,
        token: u64,
        queue: bool,
        now: Time,
        ttl: Duration,
    ) -> Answer {
        match self.locks.get_mut(key) {
            Some(lock) if lock.token != token && lock.expires > now => {
                if queue && !lock.queue.contains(&token) {
                    lock.queue.push_back(token);
                }
                return Answer::Held {
                    remaining: Some(lock.expires.since(now)),
                    foreign: false,
                };
            }
            Some(lock) => {
                lock.token = token;
                lock.expires = now + ttl;
                lock.queue.retain(|waiting| *waiting != token);
            }
            None => {
                self.locks.insert(
                    key.clone(),
                    Lock {
                        token,
                        expires: now + ttl,
                        queue: VecDeque::new(),
                    },
                );
            }
        }
        self.last_fence += 1;
        Answer::Acquired {
            fence: self.last_fence,
            wanted: false,
        }
    }

    fn release(
        &mut self,
        key: &LockKey,
        token: u64,
        now: Time,
        ttl: Duration,
    ) -> (Answer, Option<Notice>) {
        let (mut had_it, mut notice) = (false, None);
        if let Some(lock) = self.locks.get_mut(key) {
            had_it = lock.token == token;
            if had_it && let Some(next) = lock.queue.pop_front() {
                (lock.token, lock.expires) = (next, now + ttl);
                self.last_fence += 1;
                notice = Some(Notice::Granted(Granted {
                    token: next,
                    fence: self.last_fence,
                    wanted: false,
                    after: Some(now),
                }));
            } else if had_it {
                self.locks.remove(key);
            } else {
                lock.queue.retain(|waiting| *waiting != token);
            }
        }
        let granted = notice.is_some();
        (Answer::Released { had_it, granted }, notice)
    }

    fn renew(&mut self, key: &LockKey, token: u64, expires: Time) -> Answer {
        match self.locks.get_mut(key) {
            Some(lock) if lock.token == token => {
                lock.expires = expires;
                Answer::Renewed { wanted: false }
            }
            _ => Answer::Gone,
        }
    }
}
