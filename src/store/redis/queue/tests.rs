//! Which commands fail, which stay, and how many go out at once.

use std::cell::Cell;
use std::collections::HashSet;

use uuid::Uuid;

use super::super::{Address, Names, Settings};
use super::*;
use crate::key::LockKey;
use crate::mode::Mode;
use crate::store::{Notice, Outcome, Servers, Tls};

pub(super) const MINUTE: Duration = Duration::from_secs(60);

pub(super) fn store(command_timeout: Duration) -> RedisStore {
    let settings = Settings {
        names: Names::new("lock:".to_owned(), Uuid::new_v4()),
        instance: String::new(),
        ttl: MINUTE,
        grant_ttl: MINUTE,
        command_timeout,
        quarantine: false,
        min_replicas: 0,
    };
    let server = Servers::One("redis://127.0.0.1:1".into());
    let address = Address::new(server, &Tls::default(), None, None).unwrap();
    RedisStore::with(settings, address)
}

fn key(number: usize) -> LockKey {
    LockKey::new(format!("{number}")).unwrap()
}

fn acquire(token: u64) -> Command {
    Command::Acquire {
        token,
        mode: Mode::Exclusive,
        queue: false,
        watch: false,
        again: false,
    }
}

fn release(token: u64) -> Command {
    Command::Release {
        token,
        contended: false,
        queued: false,
        reply: None,
    }
}

impl RedisStore {
    pub(super) fn put(&self, key_number: usize, command: Command) {
        let done = self.submit(Time::now(), &key(key_number), command);
        assert!(done.is_none());
    }

    /// Returns where in memory each queued command is.
    fn places(&self) -> HashSet<*const Pending> {
        let queue = self.queue();
        let all = queue.ends.iter().chain(&queue.others);
        all.map(std::ptr::from_ref).collect()
    }
}

/// Counts the outcomes.
#[derive(Default)]
pub(super) struct Outcomes(Cell<usize>);

impl Events for Outcomes {
    fn replied(&self, _: &LockKey, _: Command<(), ()>, outcome: Outcome) {
        assert!(outcome.result.is_err());
        self.0.set(self.0.get() + 1);
    }

    fn notice(&self, _: &LockKey, _: Notice) {}

    fn all_changed(&self) {}

    fn is_held(&self, _: &LockKey, _: u64) -> bool {
        false
    }

    fn reconnected(&self) {}

    fn awaits_grants(&self) -> bool {
        false
    }
}

#[test]
fn releases_that_an_outage_left_behind_are_not_gone_through_for_each_call() {
    let (store, outcomes) = (store(Duration::ZERO), Outcomes::default());
    let (releases, fresh) = (1000, 10);
    for number in 0..releases {
        store.put(number, release(number as u64));
    }
    let mut left = store.places();
    for number in releases..releases + fresh {
        store.put(number, acquire(number as u64));
    }
    // All of them are overdue. Those that fail are found without going through the others.
    let visits = Cell::new(0);
    let fails = |_: &Pending| {
        visits.set(visits.get() + 1);
        visits.get() <= fresh / 2
    };
    let failing = store.take_failing(fails, &outcomes);
    assert_eq!((failing.len(), visits.get()), (fresh / 2, fresh / 2 + 1));
    store.fail_overdue(&outcomes);
    assert_eq!(outcomes.0.get(), fresh / 2);
    assert_eq!(store.places(), left, "none was moved");
    // The same holds if a call has to be sent again.
    while let Some(commands) = store.take_commands(0) {
        let rest = store.places();
        assert!(rest.is_subset(&left), "none was moved");
        store.put_back(commands);
        assert!(rest.is_subset(&store.places()), "none was moved");
        store.take_commands(0).unwrap();
        store.fail_overdue(&outcomes);
        left = store.places();
        assert_eq!(left, rest, "none was moved");
    }
    assert_eq!(outcomes.0.get(), fresh / 2);
}

#[test]
fn what_was_never_sent_fails_with_its_release_and_what_was_sent_without() {
    let (store, outcomes) = (store(MINUTE), Outcomes::default());
    store.put(1, acquire(1));
    store.put(1, release(1));
    let sent = store.take_commands(0).unwrap();
    assert_eq!(sent.len(), 2);
    store.put_back(sent);
    store.put(2, acquire(2));
    store.put(3, release(3));
    store.put(2, release(2));
    store.fail_first(|_| true, &closed(), &outcomes);
    assert_eq!(outcomes.0.get(), 3);
    let left = store.take_commands(0).unwrap();
    let left: Vec<_> = left.iter().map(|pending| pending.command.bare()).collect();
    assert_eq!(left, [release(1).bare(), release(3).bare()]);
}

pub(super) fn closed() -> Error {
    Error::of(ErrorKind::Unavailable)
}

#[test]
fn a_search_for_acquires_goes_no_further_back_than_the_last_one() {
    let (store, mut seen) = (store(MINUTE), 0);
    let mut search = || store.queue().has_new_acquire(&mut seen);
    assert!(!search());
    store.put(1, acquire(1));
    assert!(search());
    assert!(!search());
    store.put(
        2,
        Command::Renew {
            token: 2,
            mode: Mode::Exclusive,
        },
    );
    store.put(3, release(3));
    assert!(!search());
    store.put(4, acquire(4));
    store.put(
        5,
        Command::Renew {
            token: 5,
            mode: Mode::Exclusive,
        },
    );
    assert!(search());
}

#[test]
fn more_calls_are_in_flight_only_while_each_is_full() {
    let store = store(MINUTE);
    let commands = MAX_CALLS * MAX_COMMANDS + MAX_COMMANDS / 2;
    for number in 0..commands {
        store.put(
            number,
            Command::Renew {
                token: 1,
                mode: Mode::Exclusive,
            },
        );
    }
    let lengths: Vec<usize> = (0..)
        .map_while(|calls| Some(store.take_commands(calls)?.len()))
        .collect();
    assert_eq!(lengths, [MAX_COMMANDS; MAX_CALLS]);
    assert_eq!(store.queue().len(), MAX_COMMANDS / 2);
    // The rest waits for the calls before it, as long as two are in flight.
    assert!(store.take_commands(FEW_CALLS).is_none());
    assert!(store.take_commands(FEW_CALLS - 1).is_some());
}

#[test]
fn records_are_in_flight_in_few_calls_however_many_are_queued() {
    let store = store(MINUTE);
    for number in 0..4 * MAX_COMMANDS {
        store.put(
            number,
            Command::Renew {
                token: 1,
                mode: Mode::Exclusive,
            },
        );
    }
    let record = LockKey::record(["a"]).unwrap();
    store.submit(Time::now(), &record, acquire(1));
    for number in 0..MAX_COMMANDS {
        store.put(
            number,
            Command::Renew {
                token: 1,
                mode: Mode::Exclusive,
            },
        );
    }
    assert!(store.take_commands(MAX_CALLS - 1).is_some());
    for _ in 0..3 {
        assert!(store.take_commands(FEW_CALLS).is_some());
    }
    assert!(store.take_commands(FEW_CALLS).is_none());
    assert!(store.take_commands(FEW_CALLS - 1).is_some());
}

#[test]
fn a_release_goes_out_at_once_or_with_the_next_command_or_behind_the_call_in_flight() {
    let store = store(MINUTE);
    let taken = |calls| {
        let commands = store.take_commands(calls).unwrap_or_default();
        let commands = commands.iter().map(|pending| pending.command.bare());
        commands.collect::<Vec<_>>()
    };
    store.put(1, release(1));
    assert_eq!(taken(0), [release(1).bare()]);
    store.put(2, release(2));
    assert_eq!(taken(2), []);
    assert_eq!(taken(1), []);
    store.put(3, acquire(3));
    assert_eq!(taken(1), [release(2).bare(), acquire(3).bare()]);
    store.put(4, release(4));
    assert_eq!(taken(1), []);
    assert_eq!(taken(0), [release(4).bare()]);
    // A caller, or a process, waits for it.
    let (reply, _) = tokio::sync::oneshot::channel();
    let mut awaited = release(5);
    if let Command::Release { reply: to, .. } = &mut awaited {
        *to = Some(reply);
    }
    store.put(5, awaited);
    assert_eq!(taken(1), [release(5).bare()]);
    let mut contended = release(6);
    if let Command::Release { contended, .. } = &mut contended {
        *contended = true;
    }
    store.put(6, release(7));
    store.put(7, contended);
    assert_eq!(taken(1).len(), 2);
}

#[test]
fn commands_that_are_held_back_go_out_together() {
    let store = store(MINUTE);
    let held_back = store.hold_back();
    store.put(1, acquire(1));
    // The driver may be at work for another reason.
    assert!(store.take_commands(0).is_none());
    store.put(2, acquire(2));
    drop(held_back);
    assert_eq!(store.take_commands(0).unwrap().len(), 2);
}
