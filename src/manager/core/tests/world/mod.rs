//! [`World`]: the managers of a case, the server and the links between them.

mod judge;

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, LazyLock};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_util::task::AtomicWaker;

use super::super::Core;
use super::link::Link;
use super::program::{End, KEYS, MANAGERS, Step, Tamper, Unasked, Whom};
use super::tasks::{self, Polled, Task, unwinds};
use crate::clock::Time;
use crate::error::Error;
use crate::key::{LockKey, LockKeys};
use crate::lease::Lease;
use crate::manager::background::tick_slots;
use crate::manager::slot::Rules;
use crate::manager::{A_MOMENT, Claimed, LockGuard, LockGuards, LockManager};
use crate::mode::Mode;
use crate::store::fake::{Answer, Client, FakeStore, Token, Truth, Value};
use crate::store::{Command, Granted, Notice, Record, Store};

/// Another process, whose commands are carried out at once.
const NEIGHBOUR: usize = MANAGERS;
const TTL: Duration = Duration::from_secs(1);
const COMMAND_TIMEOUT: Duration = Duration::from_millis(200);
const RETENTION: Duration = Duration::from_millis(1500);
/// No request waits for longer than this.
const LONGEST_WAIT: Duration = Duration::from_secs(2);
/// Timers are as exact as this.
const A_TICK: Duration = Duration::from_millis(2);
/// Within this time, a lease is renewed, or a lock acquired again, where the server is there.
const A_WHILE: Duration = Duration::from_millis(150);
/// A token that was never used.
const UNKNOWN: u64 = u64::MAX;

/// The keys that are locks.
const BOTH: [usize; 2] = [0, 1];

static NAMES: LazyLock<[LockKey; KEYS]> = LazyLock::new(|| {
    let lock = |name| LockKey::new(name).expect("a valid key");
    let record = |name| LockKey::record([name]).expect("a valid key");
    [lock("a"), lock("b"), record("c"), record("d")]
});

pub(super) struct World {
    truth: Truth,
    links: Vec<Link>,
    managers: Vec<LockManager>,
    guards: Vec<Held>,
    tasks: Vec<Running>,
    background: Vec<Task<()>>,
    completions: Vec<Completion>,
    /// The highest fencing token of each key, and the highest of one that had the lock alone.
    fencing_tokens: [(u64, u64); KEYS],
    /// The numbers of the neighbour's tokens.
    last_number: u64,
    neighbours_seed: u64,
    any_woken: Arc<AtomicWaker>,
    /// Leases whose loss is watched by a task whose waker panics. Tokio then wakes none of the
    /// other watchers. They learn of the loss from the clock.
    touchy: HashSet<(usize, u64)>,
    /// The tokens whose renewal is in flight.
    renewed: HashSet<(usize, u64)>,
    /// Locks in the server were overwritten or lost.
    lost_data: bool,
    /// When time last passed in which commands and replies did not arrive.
    unserved: Time,
    wrong: Option<String>,
}

struct Held {
    guard: LockGuard,
    manager: usize,
    is_lost: bool,
}

struct Running {
    task: Task<Done>,
    kind: Kind,
    /// When it must be done.
    deadline: Option<Time>,
}

enum Kind {
    Take {
        manager: usize,
        key: usize,
    },
    /// A request for [both](BOTH) locks. It may hold one of them, and wait for the other.
    TakeBoth {
        manager: usize,
    },
    End,
    Watch {
        manager: usize,
        lease: Lease,
    },
}

enum Done {
    Taken(Result<LockGuard, Error>),
    TakenBoth(Result<LockGuards, Error>),
    Recorded,
    Ended,
    Lost,
}

struct Completion {
    manager: usize,
    key: LockKey,
    token: u64,
    until: Time,
}

impl World {
    pub(super) fn new(drops_replies: bool) -> Self {
        // The crate's clock must begin before any case makes time pass.
        Time::now();
        let any_woken = Arc::new(AtomicWaker::new());
        let mut world = Self {
            truth: Truth::new(MANAGERS + 1),
            links: Vec::new(),
            managers: Vec::new(),
            guards: Vec::new(),
            tasks: Vec::new(),
            background: Vec::new(),
            completions: Vec::new(),
            fencing_tokens: [(0, 0); KEYS],
            last_number: 0,
            neighbours_seed: 0,
            any_woken,
            touchy: HashSet::new(),
            renewed: HashSet::new(),
            lost_data: false,
            unserved: Time::now(),
            wrong: None,
        };
        world.neighbours_seed = world.truth.connected(NEIGHBOUR, Time::now());
        for number in 0..MANAGERS {
            let core = core(number);
            world
                .managers
                .push(LockManager::from_core(Arc::clone(&core)));
            let ticking = Arc::clone(&core);
            let ticking = async move { tick_slots(&ticking).await };
            let task = Task::new(ticking, false, &world.any_woken);
            world.background.push(task);
            let mut link = Link::new(core, number, &mut world.truth);
            link.drops_replies = drops_replies;
            world.links.push(link);
        }
        world
    }

    /// Returns what went wrong, if anything did.
    pub(super) fn wrong(&mut self) -> Option<String> {
        self.wrong.take().or_else(tasks::reported)
    }

    fn must(&mut self, holds: bool, otherwise: impl FnOnce() -> String) {
        if !holds && self.wrong.is_none() {
            self.wrong = Some(otherwise());
        }
    }

    pub(super) async fn step(&mut self, step: &Step) {
        match *step {
            Step::Take {
                manager,
                key,
                wait,
                mode,
                touchy,
            } => self.take(manager, key, wait.map(Duration::from_millis), mode, touchy),
            Step::TakeBoth {
                manager,
                wait,
                touchy,
            } => self.take_both(manager, wait.map(Duration::from_millis), touchy),
            Step::Cancel(number) => {
                let is_cancelled = |running: &Running| !matches!(running.kind, Kind::Watch { .. });
                let mut these = (0..self.tasks.len()).filter(|at| is_cancelled(&self.tasks[*at]));
                if let Some(at) = these.nth(number) {
                    let cancelled = self.tasks.remove(at);
                    unwinds(|| drop(cancelled));
                }
            }
            Step::End { guard, end, touchy } if guard < self.guards.len() => {
                let held = self.guards.remove(guard);
                self.end(held, end, touchy);
            }
            Step::Watch { guard, touchy } if guard < self.guards.len() => {
                let lease = self.guards[guard].guard.lease().clone();
                let manager = self.guards[guard].manager;
                let kind = Kind::Watch {
                    manager,
                    lease: lease.clone(),
                };
                if touchy {
                    self.touchy.insert((manager, lease.grant().lease));
                }
                let watching = async move {
                    lease.lost().await;
                    Done::Lost
                };
                self.spawn(watching, touchy, kind, None);
            }
            Step::End { .. } | Step::Watch { .. } => {}
            Step::Pass { ms, served } => self.pass(Duration::from_millis(ms), served).await,
            Step::Exchange(manager) => self.exchange(manager),
            Step::Slowly { manager, ms } => {
                self.links[manager].send();
                self.links[manager].carry_out(&mut self.truth);
                self.publish();
                self.pass(Duration::from_millis(ms), false).await;
                while self.links[manager]
                    .deliver(&mut self.truth, Tamper::Nothing)
                    .is_some()
                {}
            }
            Step::Send(manager) => self.links[manager].send(),
            Step::CarryOut(manager) => {
                self.links[manager].carry_out(&mut self.truth);
                self.publish();
            }
            Step::CarryOutNext(manager) => {
                self.links[manager].carry_out_next(&mut self.truth);
                self.publish();
            }
            Step::ForgetScripts(manager) => {
                self.links[manager].forget_scripts(&mut self.truth);
                self.publish();
            }
            Step::Deliver {
                manager,
                count,
                tamper,
            } => {
                for place in 0..count {
                    let tamper = if place == 0 { tamper } else { Tamper::Nothing };
                    self.links[manager].deliver(&mut self.truth, tamper);
                }
            }
            Step::Break {
                manager,
                fate,
                late,
            } => self.links[manager].break_off(&mut self.truth, fate, late),
            Step::FailQueued(manager) => self.links[manager].fail_queued(|_| true),
            Step::Reconnect(manager) => self.links[manager].reconnect(&mut self.truth),
            Step::CarryOutLate(manager) => {
                self.links[manager].carry_out_late(&mut self.truth);
                self.publish();
            }
            Step::Refuse { manager, refuses } => self.links[manager].refuses_records = refuses,
            Step::Dates { manager, dates } => self.links[manager].dates_grants = dates,
            Step::Notice {
                manager,
                key,
                notice,
            } => self.tell_unasked(manager, key, notice),
            Step::Neighbour(key) => self.neighbour(&NAMES[key]),
            Step::Foreign(key) => match self.truth.value(&NAMES[key], Time::now()) {
                Some(Value::Foreign) => {
                    self.truth.overwrite(&NAMES[key], None);
                    self.publish();
                }
                None => {
                    let expires = (key % 2 == 0).then(|| Time::now() + TTL);
                    let value = (Value::Foreign, expires);
                    self.truth.overwrite(&NAMES[key], Some(value));
                }
                Some(_) => {}
            },
            Step::Overwrite(key) => {
                self.lost_data = true;
                let value = (Value::Foreign, Some(Time::now() + TTL));
                self.truth.overwrite(&NAMES[key], Some(value));
                self.publish();
            }
            Step::Flush => {
                // Where nothing goes on, only the counter of fences is lost.
                self.lost_data |= !self.is_at_rest();
                self.truth.flush();
                self.links.iter_mut().for_each(Link::push_all_changed);
            }
            Step::Subscriber { panics } => tasks::subscriber_panics(panics),
        }
        self.let_run();
        self.judge();
    }

    /// Returns whether nothing is held, waited for, or in flight.
    fn is_at_rest(&mut self) -> bool {
        let now = Time::now();
        let mut is_free = true;
        for name in NAMES.iter() {
            is_free &= self.truth.value(name, now).is_none();
            is_free &= self.truth.queue(name, now).is_empty();
        }
        let is_over = |link: &Link| link.is_over() && link.core.is_at_rest();
        is_free && self.guards.is_empty() && self.tasks.is_empty() && self.links.iter().all(is_over)
    }

    /// Lets everything that was begun come to its end, and judges that nothing is left.
    pub(super) async fn settle(mut self) -> Option<String> {
        tasks::subscriber_panics(false);
        for link in &mut self.links {
            link.refuses_records = false;
        }
        for _ in 0..4 {
            // A connection breaks where its first reply says that the server lost its data.
            for link in &mut self.links {
                while link.carry_out_late(&mut self.truth).is_some() {}
            }
            self.publish();
            for link in &mut self.links {
                link.reconnect(&mut self.truth);
            }
            (0..MANAGERS).for_each(|manager| self.exchange(manager));
        }
        self.let_run();
        self.judge();
        self.judge_quiet();
        for key in NAMES.iter() {
            if let Some(Value::Foreign) = self.truth.value(key, Time::now()) {
                self.truth.overwrite(key, None);
            }
        }
        self.publish();
        for _ in 0..4 {
            self.pass(LONGEST_WAIT / 3, true).await;
            for held in std::mem::take(&mut self.guards) {
                self.end(held, End::Dropped, false);
            }
            self.let_run();
            self.judge();
        }
        // Longer than any lease, any record, and any queue.
        self.pass(4 * TTL, true).await;
        self.judge_end();
        let cores: Vec<Arc<Core>> = self
            .links
            .iter()
            .map(|link| Arc::clone(&link.core))
            .collect();
        self.managers.clear();
        self.pass(Duration::from_millis(20), true).await;
        let is_over = self.background.is_empty();
        self.must(is_over, || {
            let at_rest: Vec<bool> = cores.iter().map(|core| core.is_at_rest()).collect();
            format!("the background task does not end; at rest: {at_rest:?}")
        });
        self.wrong()
    }

    fn take(
        &mut self,
        manager: usize,
        key: usize,
        wait: Option<Duration>,
        mode: Mode,
        touchy: bool,
    ) {
        let locks = self.managers[manager].clone();
        let name = NAMES[key].clone();
        let limit = wait.unwrap_or(3 * COMMAND_TIMEOUT + A_MOMENT);
        let deadline = Some(Time::now() + limit);
        let meter = self.links[manager].core.meter.clone();
        let taking = async move {
            match name.kind() {
                crate::key::Kind::Lock => Done::Taken(locks.take(&meter, name, wait, mode).await),
                crate::key::Kind::Record => match locks.claim(&meter, &name, wait).await {
                    Ok(Claimed::Lock(guard)) => Done::Taken(Ok(guard)),
                    Ok(Claimed::Record(_) | Claimed::Damaged(_)) => Done::Recorded,
                    Err(error) => Done::Taken(Err(error)),
                },
            }
        };
        self.spawn(taking, touchy, Kind::Take { manager, key }, deadline);
    }

    fn take_both(&mut self, manager: usize, wait: Option<Duration>, touchy: bool) {
        let locks = self.managers[manager].clone();
        let keys = LockKeys::new(BOTH.map(|key| NAMES[key].clone())).expect("valid keys");
        // Each of the two may get a moment more.
        let limit = wait.unwrap_or(3 * COMMAND_TIMEOUT) + 2 * A_MOMENT;
        let deadline = Some(Time::now() + limit);
        let meter = self.links[manager].core.meter.clone();
        let taking = async move {
            let taken = locks.take_all(&meter, keys, wait, Mode::Exclusive);
            Done::TakenBoth(taken.await)
        };
        self.spawn(taking, touchy, Kind::TakeBoth { manager }, deadline);
    }

    fn end(&mut self, held: Held, end: End, touchy: bool) {
        let Held { guard, manager, .. } = held;
        let now = Time::now();
        let deadline = Some(now + COMMAND_TIMEOUT);
        match end {
            End::Completed if guard.key().kind() == crate::key::Kind::Record => {
                let completion = Completion {
                    manager,
                    key: guard.key().clone(),
                    token: guard.lease().grant().token,
                    until: now + self.links[manager].core.rules.ttl,
                };
                let content = Bytes::from(completion.token.to_string());
                if self.links[manager].holds(guard.key(), completion.token) {
                    self.completions.push(completion);
                }
                let record = Record {
                    content,
                    retention: RETENTION,
                };
                let completing = async move {
                    let _ = guard.complete(record, Bytes::new).await;
                    Done::Ended
                };
                self.spawn(completing, touchy, Kind::End, deadline);
            }
            End::Released => {
                let releasing = async move {
                    let _ = guard.release().await;
                    Done::Ended
                };
                self.spawn(releasing, touchy, Kind::End, deadline);
            }
            End::Dropped | End::Completed => drop(unwinds(|| drop(guard))),
        }
    }

    fn spawn(
        &mut self,
        future: impl Future<Output = Done> + 'static,
        touchy: bool,
        kind: Kind,
        deadline: Option<Time>,
    ) {
        let task = Task::new(future, touchy, &self.any_woken);
        self.tasks.push(Running {
            task,
            kind,
            deadline,
        });
        // The task begins now.
        self.let_run();
    }

    /// Polls the tasks that were woken, until none is.
    fn let_run(&mut self) {
        loop {
            let mut taken = Vec::new();
            self.background
                .retain_mut(|task| !task.is_woken() || matches!(task.poll(), Polled::Pending));
            let woken = self
                .tasks
                .iter()
                .position(|running| running.task.is_woken());
            let Some(first) = woken else {
                return;
            };
            let mut at = first;
            while at < self.tasks.len() {
                let task = &mut self.tasks[at].task;
                let polled = match task.is_woken() {
                    true => task.poll(),
                    false => Polled::Pending,
                };
                if matches!(polled, Polled::Pending) {
                    at += 1;
                    continue;
                }
                let Running { task, kind, .. } = self.tasks.remove(at);
                unwinds(|| drop(task));
                match (polled, kind) {
                    (Polled::Done(Done::Taken(result)), Kind::Take { manager, key }) => {
                        taken.push((manager, key, result));
                    }
                    (Polled::Done(Done::TakenBoth(result)), Kind::TakeBoth { manager }) => {
                        match result {
                            Ok(guards) => {
                                let guards = guards.into_guards().into_iter();
                                let held = BOTH.into_iter().zip(guards);
                                taken.extend(held.map(|(key, guard)| (manager, key, Ok(guard))));
                            }
                            Err(error) => self.refused_both(manager, &error),
                        }
                    }
                    (Polled::Done(Done::Lost), Kind::Watch { lease, .. }) => {
                        self.must(!lease.is_held(), || format!("not lost: {lease:?}"));
                    }
                    _ => {}
                }
            }
            taken.sort_by_key(|(.., result)| result.as_ref().ok().map(LockGuard::fencing_token));
            for (manager, key, result) in taken {
                self.taken(manager, key, result);
            }
        }
    }

    fn taken(&mut self, manager: usize, key: usize, result: Result<LockGuard, Error>) {
        match result {
            Ok(guard) => {
                let (highest, alone) = self.fencing_tokens[key];
                let (mode, next) = (guard.lease().mode(), guard.fencing_token());
                let last = match mode {
                    Mode::Exclusive => highest,
                    Mode::Shared => alone,
                };
                // A grant may be in flight while the lock is lost, and taken by another process.
                // So may the other of two locks be on its way.
                let is_held = guard.lease().is_held();
                let is_excused = self.lost_data || self.was_deceived() || !is_held;
                self.must(next > last || is_excused, || {
                    format!("fencing token {next} of key {key} comes after {last}")
                });
                self.fencing_tokens[key] = match mode {
                    Mode::Exclusive => (next.max(highest), next.max(alone)),
                    Mode::Shared => (highest.max(next), alone),
                };
                self.guards.push(Held {
                    guard,
                    manager,
                    is_lost: false,
                });
            }
            Err(error) => {
                self.judge_patience(manager, key, error.kind());
                self.judge_refusal(manager, key, &error);
            }
        }
    }

    fn refused_both(&mut self, manager: usize, error: &Error) {
        let key = BOTH
            .into_iter()
            .find(|key| Some(&NAMES[*key]) == error.key());
        match key {
            Some(key) => self.judge_refusal(manager, key, error),
            None => self.must(false, || format!("{error} is about none of the two")),
        }
    }

    fn was_deceived(&self) -> bool {
        self.links.iter().any(|link| link.was_deceived)
    }

    /// Sends the server's notices to the managers.
    fn publish(&mut self) {
        for (process, key, notice) in std::mem::take(&mut self.truth.notices) {
            if let Some(link) = self.links.get_mut(process) {
                link.push(key, notice);
            }
        }
    }

    fn exchange(&mut self, manager: usize) {
        // Commands that lead to others without end are a mistake.
        for _ in 0..50 {
            self.links[manager].send();
            while self.links[manager].carry_out(&mut self.truth).is_some() {
                self.publish();
            }
            while self.links[manager]
                .deliver(&mut self.truth, Tamper::Nothing)
                .is_some()
            {}
            self.let_run();
            if self.links[manager].is_quiet() {
                return;
            }
        }
        self.must(false, || {
            format!("manager {manager} sends commands without end")
        });
    }

    async fn pass(&mut self, time: Duration, served: bool) {
        let end = Time::now() + time;
        loop {
            if !served {
                self.unserved = Time::now();
            }
            for number in 0..MANAGERS {
                self.links[number].pass_time(&mut self.truth);
                if served {
                    self.links[number].reconnect(&mut self.truth);
                    self.exchange(number);
                }
                self.links[number].show_busy();
            }
            self.let_run();
            self.judge();
            let now = Time::now();
            if now >= end || self.wrong.is_some() {
                return;
            }
            let next = self.links.iter().filter_map(Link::next);
            let next = next.chain([end]).min().unwrap_or(end);
            let sleep = tokio::time::sleep_until(next.max(now).instant());
            tokio::pin!(sleep);
            std::future::poll_fn(|cx| {
                tasks::arm(true);
                self.any_woken.register(cx.waker());
                let is_woken = self.background.iter().any(Task::is_woken)
                    || self.tasks.iter().any(|running| running.task.is_woken());
                if is_woken || sleep.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(());
                }
                // From here on, only timers wake.
                tasks::arm(false);
                Poll::Pending
            })
            .await;
        }
    }

    fn tell_unasked(&mut self, manager: usize, key: usize, notice: Unasked) {
        let (name, now) = (&NAMES[key], Time::now());
        let of_manager = |token: &Token| (token.process == manager).then_some(token.number);
        let mut token_of = |whom| match whom {
            Whom::Holder => self.truth.holders(name, now).iter().find_map(of_manager),
            Whom::Waiter => self.truth.queue(name, now).iter().find_map(of_manager),
            Whom::Unknown => None,
        };
        let link = &mut self.links[manager];
        match notice {
            Unasked::Changed => link.push(name.clone(), Notice::Changed),
            Unasked::AllChanged => link.push_all_changed(),
            Unasked::Contended(whom) => {
                let token = token_of(whom).unwrap_or(UNKNOWN);
                link.push(name.clone(), Notice::Contended { token });
            }
            Unasked::Granted { whom, dated, ttl } => {
                let token = token_of(whom);
                link.was_deceived |= token.is_some();
                let granted = Granted {
                    token: token.unwrap_or(UNKNOWN),
                    fence: 1,
                    ttl: Duration::from_millis(ttl),
                    contended: true,
                    after: dated.then_some(now),
                };
                link.push(name.clone(), Notice::Granted(granted));
            }
        }
    }

    fn neighbour(&mut self, key: &LockKey) {
        let client = Client {
            process: NEIGHBOUR,
            ttl: TTL,
            grant_ttl: TTL / 4,
            seed: self.neighbours_seed,
        };
        let now = Time::now();
        let is_theirs = |token: &Token| token.process == NEIGHBOUR;
        let holders = self.truth.holders(key, now);
        let held = holders.into_iter().find(is_theirs);
        let held = held.map(|token| token.number);
        let is_shared = self.truth.value(key, now) == Some(&Value::Shared);
        let queued = self
            .truth
            .queue(key, now)
            .iter()
            .find(|token| is_theirs(token));
        let release = |token, contended| Command::Release {
            token,
            contended,
            queued: is_shared,
            reply: (),
        };
        let command = match (held, queued) {
            (Some(token), _) => release(token, false),
            // A process queues once.
            (None, Some(_)) => return,
            (None, None) => {
                self.last_number += 1;
                Command::Acquire {
                    token: self.last_number,
                    mode: match (key.kind(), self.last_number % 3) {
                        (crate::key::Kind::Lock, 0) => Mode::Shared,
                        _ => Mode::Exclusive,
                    },
                    queue: true,
                    watch: false,
                    again: false,
                }
            }
        };
        let answer = self.truth.execute(client, now, key, &command, false);
        if let Command::Acquire { .. } = command {
            self.truth.count(1, now);
        }
        if let (Some(token), Answer::ToBeGranted) = (held, answer) {
            let command = release(token, true);
            self.truth.execute(client, now, key, &command, false);
        }
        self.publish();
    }
}

fn core(number: usize) -> Arc<Core> {
    // The settings of two processes may differ.
    let ttl = [TTL, TTL * 3 / 5][number % 2];
    let rules = Rules {
        ttl,
        renewal: ttl / 3,
        max_hold: Duration::from_secs(2),
        grant_ttl: ttl / 2,
        max_waiters: 3,
        burst: 1,
        burst_time: Duration::from_millis(50),
    };
    let store = Store::Fake(FakeStore::new(COMMAND_TIMEOUT));
    let core = Core::new(store, rules, COMMAND_TIMEOUT, 2, 4);
    // The case runs its background task.
    core.is_running.store(true, Ordering::Relaxed);
    core
}
