//! A store for tests of the manager. [`FakeStore`] takes the commands of one manager. The test
//! decides when they get to the server, and what comes back. [`Truth`] is what the server has.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;

use super::{Command, Failure, Granted, Notice, Record, Reply};
use crate::clock::Time;
use crate::error::{Error, ErrorKind};
use crate::key::{Kind, LockKey};

#[derive(Debug)]
pub(crate) struct FakeStore {
    command_timeout: Duration,
    commands: Mutex<Vec<Pending>>,
    is_connected: AtomicBool,
    is_busy: AtomicBool,
}

/// A command that has no reply yet.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) key: LockKey,
    pub(crate) command: Command,
    pub(crate) submitted: Time,
    /// How often it was sent.
    pub(crate) attempts: u32,
}

impl Pending {
    pub(crate) fn ends_hold(&self) -> bool {
        self.command.ends_hold()
    }

    /// Returns whether the server may have carried the command out.
    pub(crate) fn is_known_there(&self) -> bool {
        self.attempts > 0 || matches!(self.command, Command::Acquire { again: true, .. })
    }

    /// Returns what the caller of a release or a completion is told.
    pub(crate) fn settled(&self, result: &Result<Reply, Failure>) -> Result<(), Error> {
        match result {
            Ok(Reply::Released { had_it: false, .. }) if self.attempts > 1 => {
                Err(Error::of(ErrorKind::Unavailable))
            }
            _ => super::settled(result),
        }
    }
}

impl FakeStore {
    pub(crate) fn new(command_timeout: Duration) -> Self {
        Self {
            command_timeout,
            commands: Mutex::default(),
            is_connected: AtomicBool::default(),
            is_busy: AtomicBool::default(),
        }
    }

    pub(crate) fn replies_within(&self) -> Duration {
        3 * self.command_timeout
    }

    pub(crate) fn submit(&self, now: Time, key: &LockKey, command: Command) {
        self.commands().push(Pending {
            key: key.clone(),
            command,
            submitted: now,
            attempts: 0,
        });
    }

    /// Returns the commands that were not sent yet, in order.
    pub(crate) fn commands(&self) -> MutexGuard<'_, Vec<Pending>> {
        self.commands
            .lock()
            .expect("no test panics while it is locked")
    }

    pub(crate) fn set_connected(&self, is_connected: bool) {
        self.is_connected.store(is_connected, Ordering::Relaxed);
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.is_connected.load(Ordering::Relaxed)
    }

    /// Sets whether commands that were sent have no reply yet.
    pub(crate) fn set_busy(&self, is_busy: bool) {
        self.is_busy.store(is_busy, Ordering::Relaxed);
    }

    pub(crate) fn is_drained(&self) -> bool {
        self.commands().is_empty() && !self.is_busy.load(Ordering::Relaxed)
    }
}

/// A process, and the number of its token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) process: usize,
    pub(crate) number: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    Token(Token),
    /// The value of a client of another kind.
    Foreign,
    Record(Bytes),
}

#[derive(Debug)]
struct Entry {
    value: Value,
    expires: Option<Time>,
}

#[derive(Debug)]
struct Queue {
    tokens: Vec<Token>,
    expires: Time,
}

/// How long the server keeps locks and grants for a process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    pub(crate) ttl: Duration,
    pub(crate) grant_ttl: Duration,
}

/// The server: does on maps what the script does in Redis.
#[derive(Debug)]
pub(crate) struct Truth {
    locks: HashMap<LockKey, Entry>,
    queues: HashMap<LockKey, Queue>,
    /// By key, the processes that the server tells of the next change.
    watchers: HashMap<LockKey, Vec<usize>>,
    last_fence: u64,
    /// By key, when a lock last expired.
    pub(crate) expired: HashMap<LockKey, Time>,
    /// By process, whether it listens to its inbox.
    pub(crate) is_there: Vec<bool>,
    /// Notices that are not in flight yet.
    pub(crate) notices: Vec<(usize, LockKey, Notice)>,
}

impl Truth {
    pub(crate) fn new(processes: usize) -> Self {
        Self {
            locks: HashMap::new(),
            queues: HashMap::new(),
            watchers: HashMap::new(),
            last_fence: 1000,
            expired: HashMap::new(),
            is_there: vec![true; processes],
            notices: Vec::new(),
        }
    }

    pub(crate) fn value(&mut self, key: &LockKey, now: Time) -> Option<&Value> {
        let expires = self.locks.get(key)?.expires;
        if let Some(expires) = expires.filter(|expires| *expires <= now) {
            self.locks.remove(key);
            self.expired.insert(key.clone(), expires);
        }
        Some(&self.locks.get(key)?.value)
    }

    pub(crate) fn queue(&mut self, key: &LockKey, now: Time) -> &[Token] {
        if self
            .queues
            .get(key)
            .is_some_and(|queue| queue.expires <= now)
        {
            self.queues.remove(key);
        }
        self.queues.get(key).map_or(&[], |queue| &queue.tokens)
    }

    /// A client of another kind writes or deletes the lock.
    pub(crate) fn overwrite(&mut self, key: &LockKey, value: Option<(Value, Option<Time>)>) {
        self.changed(key, None);
        match value {
            Some((value, expires)) => {
                self.locks.insert(key.clone(), Entry { value, expires });
            }
            None => drop(self.locks.remove(key)),
        }
    }

    pub(crate) fn flush(&mut self) {
        self.locks.clear();
        self.queues.clear();
        self.watchers.clear();
    }

    pub(crate) fn execute<S>(
        &mut self,
        process: usize,
        times: Times,
        now: Time,
        key: &LockKey,
        command: &Command<Record, S>,
    ) -> Reply {
        let of = |number| Token { process, number };
        match *command {
            Command::Acquire {
                token,
                queue,
                watch,
                ..
            } => self.acquire(key, of(token), times.ttl, now, queue, watch),
            Command::Release { token, .. } => self.release(key, of(token), times.grant_ttl, now),
            Command::Complete {
                token, ref record, ..
            } => self.complete(key, of(token), now, record),
            Command::Renew { token } => {
                self.watch(key, process);
                match self.has(key, of(token), now) {
                    true => {
                        let contended = !self.queue(key, now).is_empty();
                        self.set(key, of(token), now + times.ttl);
                        Reply::Renewed { contended }
                    }
                    false => Reply::Gone,
                }
            }
            Command::Check { token } => {
                self.watch(key, process);
                match self.has(key, of(token), now) {
                    true => Reply::Intact,
                    false => Reply::Gone,
                }
            }
        }
    }

    fn acquire(
        &mut self,
        key: &LockKey,
        token: Token,
        ttl: Duration,
        now: Time,
        queue: bool,
        watch: bool,
    ) -> Reply {
        let value = self.value(key, now).cloned();
        let foreign = match value {
            Some(Value::Record(record)) if key.kind() == Kind::Record => {
                return Reply::Recorded(record);
            }
            None => {
                self.leave(key, token);
                return self.acquired(key, token, ttl, now, queue);
            }
            Some(Value::Token(holder)) if holder == token => {
                return self.acquired(key, token, ttl, now, true);
            }
            Some(Value::Token(holder)) => {
                if queue && self.queue(key, now).is_empty() {
                    let notice = Notice::Contended {
                        token: holder.number,
                    };
                    self.notices.push((holder.process, key.clone(), notice));
                }
                false
            }
            Some(_) => true,
        };
        let expires = self.locks[key].expires;
        let remaining = expires.map(|expires| expires.since(now));
        if queue {
            let lasts = now + remaining.unwrap_or_default() + 3 * ttl;
            let queue = self.queues.entry(key.clone()).or_insert(Queue {
                tokens: Vec::new(),
                expires: lasts,
            });
            queue.expires = queue.expires.max(lasts);
            if !queue.tokens.contains(&token) {
                queue.tokens.push(token);
            }
        }
        if watch {
            self.watch(key, token.process);
        }
        Reply::HeldElsewhere { remaining, foreign }
    }

    fn acquired(
        &mut self,
        key: &LockKey,
        token: Token,
        ttl: Duration,
        now: Time,
        may_queue: bool,
    ) -> Reply {
        self.set(key, token, now + ttl);
        let contended = may_queue && !self.queue(key, now).is_empty();
        self.last_fence += 1;
        Reply::Acquired {
            fence: self.last_fence,
            contended,
        }
    }

    fn release(&mut self, key: &LockKey, token: Token, grant_ttl: Duration, now: Time) -> Reply {
        let had_it = self.has(key, token, now);
        if !had_it {
            self.leave(key, token);
        }
        let granted = (had_it || self.value(key, now).is_none()) && {
            self.changed(key, Some(token.process));
            self.locks.remove(key);
            self.grant(key, grant_ttl, now)
        };
        Reply::Released { had_it, granted }
    }

    fn grant(&mut self, key: &LockKey, ttl: Duration, now: Time) -> bool {
        while let Some(next) = self.queue(key, now).first().copied() {
            self.leave(key, next);
            if self.is_there[next.process] {
                self.set(key, next, now + ttl);
                self.last_fence += 1;
                let granted = Granted {
                    token: next.number,
                    fence: self.last_fence,
                    ttl,
                    contended: !self.queue(key, now).is_empty(),
                    after: None,
                };
                let notice = Notice::Granted(granted);
                self.notices.push((next.process, key.clone(), notice));
                return true;
            }
        }
        false
    }

    fn complete(&mut self, key: &LockKey, token: Token, now: Time, record: &Record) -> Reply {
        let value = Value::Record(record.content.clone());
        if self.value(key, now) != Some(&value) {
            if !self.has(key, token, now) {
                return Reply::Gone;
            }
            self.changed(key, Some(token.process));
            let expires = Some(now + record.retention);
            self.locks.insert(key.clone(), Entry { value, expires });
            for waiting in self.queue(key, now).to_vec() {
                self.notices
                    .push((waiting.process, key.clone(), Notice::Changed));
            }
            self.queues.remove(key);
        }
        Reply::Completed
    }

    fn has(&mut self, key: &LockKey, token: Token, now: Time) -> bool {
        self.value(key, now) == Some(&Value::Token(token))
    }

    fn set(&mut self, key: &LockKey, token: Token, expires: Time) {
        let (value, expires) = (Value::Token(token), Some(expires));
        self.locks.insert(key.clone(), Entry { value, expires });
    }

    fn leave(&mut self, key: &LockKey, token: Token) {
        if let Some(queue) = self.queues.get_mut(key) {
            queue.tokens.retain(|waiting| *waiting != token);
        }
    }

    fn watch(&mut self, key: &LockKey, process: usize) {
        let watchers = self.watchers.entry(key.clone()).or_default();
        if !watchers.contains(&process) {
            watchers.push(process);
        }
    }

    /// Tells each process that watches, once, except the one that made the change.
    fn changed(&mut self, key: &LockKey, by: Option<usize>) {
        for process in self.watchers.remove(key).unwrap_or_default() {
            if Some(process) != by {
                self.notices.push((process, key.clone(), Notice::Changed));
            }
        }
    }
}
