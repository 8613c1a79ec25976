//! A store for tests of the manager. [`FakeStore`] takes the commands of one manager. The test
//! decides when they get to the server, and what comes back. [`Truth`] is what the server has.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;

use super::{Command, Failure, Granted, Notice, Record, Reply};
use crate::clock::Time;
use crate::error::{Error, ErrorKind};
use crate::key::{Kind, LockKey};
use crate::mode::Mode;

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

    /// Returns whether it was sent before the last time.
    pub(crate) fn is_repeated(&self) -> bool {
        self.attempts > 1
    }

    /// Has a release grant the lock to a process that waits. Nothing has been done for it so far.
    pub(crate) fn grant_next(&mut self) {
        if let Command::Release { contended, .. } = &mut self.command {
            *contended = true;
        }
        self.attempts = 0;
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Token {
    pub(crate) process: usize,
    pub(crate) number: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    Token(Token),
    /// Those that share the lock are in a set of their own.
    Shared,
    /// The value of a client of another kind.
    Foreign,
    Record(Bytes),
}

#[derive(Debug)]
struct Entry {
    value: Value,
    expires: Option<Time>,
    /// Whether processes wait for those who have the lock.
    is_marked: bool,
}

#[derive(Debug)]
struct Queue {
    tokens: Vec<Token>,
    expires: Time,
}

/// A process, as the server sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Client {
    pub(crate) process: usize,
    /// How long the server keeps locks and grants for it.
    pub(crate) ttl: Duration,
    pub(crate) grant_ttl: Duration,
    /// A number that the counter of fences had when the process connected.
    pub(crate) seed: u64,
}

/// How a token is to get a lock: see [`Command::Acquire`].
#[derive(Clone, Copy)]
struct Asked {
    ttl: Duration,
    queue: bool,
    watch: bool,
}

/// What the server says to one command.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// The fence of an acquire is told at the end of the call: see [`Truth::count`].
    Reply(Reply),
    /// Nothing was done: processes wait for the lock that was to be released.
    ToBeGranted,
    Refused,
}

/// The server: does on maps what commands and scripts do in Redis.
#[derive(Debug)]
pub(crate) struct Truth {
    locks: HashMap<LockKey, Entry>,
    queues: HashMap<LockKey, Queue>,
    /// Those that share a lock, and when the lease of each expires.
    readers: HashMap<LockKey, Vec<(Token, Time)>>,
    /// Tokens that would share the lock that they wait for.
    sharing: HashSet<Token>,
    /// By key, the processes that the server tells of the next change.
    watchers: HashMap<LockKey, Vec<usize>>,
    /// The counter of fences.
    last_fence: u64,
    /// The server's clock, in µs. No command takes less time than one of them.
    clock: u64,
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
            readers: HashMap::new(),
            sharing: HashSet::new(),
            watchers: HashMap::new(),
            last_fence: 0,
            clock: 1000,
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

    /// Returns who has the lock.
    pub(crate) fn holders(&mut self, key: &LockKey, now: Time) -> Vec<Token> {
        match self.value(key, now).cloned() {
            Some(Value::Token(token)) => vec![token],
            Some(Value::Shared) => self.readers(key, now).iter().map(|one| one.0).collect(),
            Some(Value::Foreign | Value::Record(_)) | None => Vec::new(),
        }
    }

    /// Returns those that share the lock, without those whose leases have expired.
    fn readers(&mut self, key: &LockKey, now: Time) -> &mut Vec<(Token, Time)> {
        let readers = self.readers.entry(key.clone()).or_default();
        readers.retain(|(_, expires)| *expires > now);
        readers
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
                let entry = Entry {
                    value,
                    expires,
                    is_marked: false,
                };
                self.locks.insert(key.clone(), entry);
            }
            None => drop(self.locks.remove(key)),
        }
    }

    /// Loses all data, with the counter of fences.
    pub(crate) fn flush(&mut self) {
        self.locks.clear();
        self.queues.clear();
        self.readers.clear();
        self.watchers.clear();
        self.last_fence = 0;
    }

    /// The connection of a process is closed.
    pub(crate) fn disconnected(&mut self, process: usize) {
        self.is_there[process] = false;
        for watchers in self.watchers.values_mut() {
            watchers.retain(|watcher| *watcher != process);
        }
    }

    /// A process connects: the counter of fences is set to the clock, unless it is higher. Returns
    /// what it has then.
    pub(crate) fn connected(&mut self, process: usize, now: Time) -> u64 {
        self.is_there[process] = true;
        self.last_fence = self.last_fence.max(self.time(now));
        self.last_fence
    }

    fn time(&mut self, now: Time) -> u64 {
        self.clock = (self.clock + 1).max(now.as_nanos() / 1000);
        self.clock
    }

    /// Counts the acquires of a call. Returns the last fence of the block that they share.
    pub(crate) fn count(&mut self, takes: u64, now: Time) -> u64 {
        self.time(now);
        self.last_fence += takes;
        self.last_fence
    }

    /// Carries out one command. If it `is_repeated`, it was sent before.
    pub(crate) fn execute<S>(
        &mut self,
        client: Client,
        now: Time,
        key: &LockKey,
        command: &Command<Record, S>,
        is_repeated: bool,
    ) -> Answer {
        self.time(now);
        let process = client.process;
        let of = |number| Token { process, number };
        let ttl = client.ttl;
        let asked = |queue, watch| Asked { ttl, queue, watch };
        Answer::Reply(match *command {
            Command::Acquire {
                token,
                mode: Mode::Shared,
                queue,
                watch,
                ..
            } => self.share(key, of(token), asked(queue, watch), now),
            Command::Acquire {
                token,
                queue: false,
                watch: false,
                again: false,
                ..
            } if !is_repeated => self.take(key, of(token), client.ttl, now),
            Command::Acquire {
                token,
                queue,
                watch,
                ..
            } => self.acquire(key, of(token), asked(queue, watch), now),
            Command::Release {
                token,
                contended: false,
                queued: false,
                ..
            } => return self.release(key, of(token), now),
            Command::Release { token, .. } => self.grant(key, of(token), client, now),
            Command::Complete {
                token, ref record, ..
            } => self.complete(key, of(token), now, record),
            Command::Renew {
                token,
                mode: Mode::Shared,
            } => self.renew_shared(key, of(token), now + client.ttl, now),
            Command::Renew { token, .. } => {
                self.watch(key, process);
                match self.has(key, of(token), now) {
                    true => {
                        let contended = self.is_marked(key);
                        self.set(key, of(token), now + client.ttl, contended);
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
        })
    }

    /// A token that the server has not seen takes the lock, or does nothing.
    fn take(&mut self, key: &LockKey, token: Token, ttl: Duration, now: Time) -> Reply {
        match self.value(key, now) {
            None => {
                self.changed(key, Some(token.process));
                self.set(key, token, now + ttl, false);
                acquired(false)
            }
            Some(Value::Record(record)) if key.kind() == Kind::Record => {
                Reply::Recorded(record.clone())
            }
            Some(value) => Reply::HeldElsewhere {
                remaining: None,
                foreign: !matches!(value, Value::Token(_) | Value::Shared),
            },
        }
    }

    fn acquire(&mut self, key: &LockKey, token: Token, asked: Asked, now: Time) -> Reply {
        let ttl = asked.ttl;
        match self.value(key, now).cloned() {
            Some(Value::Record(record)) if key.kind() == Kind::Record => {
                return Reply::Recorded(record);
            }
            None => {
                self.leave(key, token);
                let contended = !self.queue(key, now).is_empty();
                self.changed(key, Some(token.process));
                self.set(key, token, now + ttl, contended);
                return acquired(contended);
            }
            Some(Value::Token(holder)) if holder == token => {
                let contended = self.is_marked(key);
                self.set(key, token, now + ttl, contended);
                return acquired(contended);
            }
            Some(_) => {}
        }
        let mut expires = self.locks[key].expires;
        if self.is_shared(key, now) {
            // The first to expire may be the last to hold.
            expires = self.readers(key, now).iter().map(|one| one.1).min();
        }
        let remaining = expires.map(|expires| expires.since(now));
        self.held_elsewhere(key, token, remaining, asked, now)
    }

    /// Others have the lock. The token waits for them.
    fn held_elsewhere(
        &mut self,
        key: &LockKey,
        token: Token,
        remaining: Option<Duration>,
        asked: Asked,
        now: Time,
    ) -> Reply {
        let Asked { ttl, queue, watch } = asked;
        let holders = self.holders(key, now);
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
            if !holders.is_empty() && !self.is_marked(key) {
                self.changed(key, Some(token.process));
                self.mark(key);
                for Token { process, number } in &holders {
                    let notice = Notice::Contended { token: *number };
                    self.notices.push((*process, key.clone(), notice));
                }
            }
        }
        if watch {
            self.watch(key, token.process);
        }
        Reply::HeldElsewhere {
            remaining,
            foreign: holders.is_empty(),
        }
    }

    /// A token joins those that share the lock, unless others wait.
    fn share(&mut self, key: &LockKey, token: Token, asked: Asked, now: Time) -> Reply {
        self.sharing.insert(token);
        let is_free = self.value(key, now).is_none();
        if is_free {
            self.readers.remove(key);
        }
        let is_in = self.is_reader(key, token, now);
        let first = self.queue(key, now).first().copied();
        let is_let_in = is_in || first.is_none_or(|first| first == token) || !self.is_marked(key);
        let may_join = is_free || self.is_shared(key, now) && is_let_in;
        if !may_join {
            let expires = self.locks[key].expires;
            let remaining = expires.map(|expires| expires.since(now));
            return self.held_elsewhere(key, token, remaining, asked, now);
        }
        self.leave(key, token);
        let contended = !self.queue(key, now).is_empty();
        self.changed(key, Some(token.process));
        let readers = self.readers(key, now);
        readers.retain(|one| one.0 != token);
        readers.push((token, now + asked.ttl));
        self.set_shared(key, contended, now);
        acquired(contended)
    }

    fn renew_shared(&mut self, key: &LockKey, token: Token, expires: Time, now: Time) -> Reply {
        if !self.is_reader(key, token, now) {
            return Reply::Gone;
        }
        let readers = self.readers(key, now);
        readers.retain(|one| one.0 != token);
        readers.push((token, expires));
        let contended = self.is_marked(key);
        self.changed(key, Some(token.process));
        self.set_shared(key, contended, now);
        Reply::Renewed { contended }
    }

    fn is_shared(&mut self, key: &LockKey, now: Time) -> bool {
        self.value(key, now) == Some(&Value::Shared)
    }

    fn is_reader(&mut self, key: &LockKey, token: Token, now: Time) -> bool {
        self.is_shared(key, now) && self.readers(key, now).iter().any(|one| one.0 == token)
    }

    /// Lets the lock last for as long as the last of those that share it.
    fn set_shared(&mut self, key: &LockKey, is_marked: bool, now: Time) {
        let entry = Entry {
            value: Value::Shared,
            expires: self.readers(key, now).iter().map(|one| one.1).max(),
            is_marked,
        };
        self.locks.insert(key.clone(), entry);
    }

    /// Deletes a lock that no process waits for. The queue is left alone.
    fn release(&mut self, key: &LockKey, token: Token, now: Time) -> Answer {
        let had_it = self.has(key, token, now);
        if had_it && self.is_marked(key) {
            return Answer::ToBeGranted;
        }
        if had_it {
            self.changed(key, Some(token.process));
            self.locks.remove(key);
        }
        let granted = false;
        Answer::Reply(Reply::Released { had_it, granted })
    }

    fn grant(&mut self, key: &LockKey, token: Token, client: Client, now: Time) -> Reply {
        let was_shared = self.is_shared(key, now);
        let had_it = match was_shared {
            true => self.is_reader(key, token, now),
            false => self.has(key, token, now),
        };
        self.readers(key, now).retain(|one| one.0 != token);
        if !had_it {
            self.leave(key, token);
        }
        let is_shared = was_shared && !self.readers(key, now).is_empty();
        let granted = (had_it || is_shared || self.value(key, now).is_none()) && {
            self.changed(key, Some(token.process));
            self.locks.remove(key);
            self.grant_next(key, client, now, is_shared)
        };
        Reply::Released { had_it, granted }
    }

    /// Gives a lock that is free to the next, or to all at the head of the queue that share it. One
    /// that others share goes to these only.
    fn grant_next(
        &mut self,
        key: &LockKey,
        client: Client,
        now: Time,
        mut is_shared: bool,
    ) -> bool {
        let ttl = client.grant_ttl;
        let mut given = Vec::new();
        while let Some(next) = self.queue(key, now).first().copied() {
            let shares = self.sharing.contains(&next);
            if is_shared && !shares {
                break;
            }
            self.leave(key, next);
            if !self.is_there[next.process] {
                continue;
            }
            given.push(next);
            if !shares {
                break;
            }
            if !is_shared {
                self.readers.remove(key);
            }
            is_shared = true;
            self.readers(key, now).push((next, now + ttl));
        }
        let contended = !self.queue(key, now).is_empty();
        for next in &given {
            self.last_fence += 1;
            if self.last_fence <= client.seed {
                self.last_fence = self.time(now);
            }
            let granted = Granted {
                token: next.number,
                fence: self.last_fence,
                ttl,
                contended,
                after: None,
            };
            let notice = Notice::Granted(granted);
            self.notices.push((next.process, key.clone(), notice));
        }
        match given[..] {
            _ if is_shared => self.set_shared(key, contended, now),
            [next] => self.set(key, next, now + ttl, contended),
            _ => {}
        }
        !given.is_empty()
    }

    fn complete(&mut self, key: &LockKey, token: Token, now: Time, record: &Record) -> Reply {
        let value = Value::Record(record.content.clone());
        if self.value(key, now) != Some(&value) {
            if !self.has(key, token, now) {
                return Reply::Gone;
            }
            self.changed(key, Some(token.process));
            let entry = Entry {
                value,
                expires: Some(now + record.retention),
                is_marked: false,
            };
            self.locks.insert(key.clone(), entry);
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

    fn is_marked(&self, key: &LockKey) -> bool {
        self.locks.get(key).is_some_and(|entry| entry.is_marked)
    }

    fn mark(&mut self, key: &LockKey) {
        if let Some(entry) = self.locks.get_mut(key) {
            entry.is_marked = true;
        }
    }

    fn set(&mut self, key: &LockKey, token: Token, expires: Time, is_marked: bool) {
        let entry = Entry {
            value: Value::Token(token),
            expires: Some(expires),
            is_marked,
        };
        self.locks.insert(key.clone(), entry);
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

fn acquired(contended: bool) -> Reply {
    Reply::Acquired {
        fence: 0,
        contended,
    }
}
