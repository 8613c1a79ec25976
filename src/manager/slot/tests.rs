//! The rules of a slot, one event after the other. Waiters are letters.

mod shared;
mod wanted;

use std::time::Duration;

use super::*;
use crate::error::ErrorKind;
use crate::mode::Mode;
use crate::store::{Failure, Granted, Notice, Outcome, Reply};

const TTL: Duration = Duration::from_secs(10);

/// For whom a slot has or acquires its token. The model, which includes this file, uses it too.
#[allow(dead_code)]
pub(crate) enum Standing {
    Nothing,
    Waiters,
    Holder {
        token: u64,
    },
    /// A share is kept for the next request.
    Lingering,
    /// Another process wanted the lock a moment ago.
    Memory,
    Record {
        token: u64,
    },
}

#[allow(dead_code)]
impl<W> Slot<W> {
    pub(crate) fn stands_for(&self) -> Standing {
        match &self.state {
            State::Idle if self.wanted_until.is_some() => Standing::Memory,
            State::Idle => Standing::Nothing,
            State::Acquiring { .. } | State::Queued { .. } | State::Backoff { .. } => {
                Standing::Waiters
            }
            State::Holding(holding) if holding.lingers() => Standing::Lingering,
            State::Holding(Holding {
                token, completing, ..
            }) => match *completing {
                true => Standing::Record { token: *token },
                false => Standing::Holder { token: *token },
            },
        }
    }
}

/// A slot, with a clock that stands still. The test speaks for the store.
struct Table {
    slot: Slot<char>,
    rules: Rules,
    ids: AtomicU64,
    now: Time,
    has_room: bool,
}

impl Table {
    fn new() -> Self {
        Self {
            slot: Slot::default(),
            rules: Rules {
                ttl: TTL,
                renewal: TTL / 3,
                max_hold: Duration::from_secs(300),
                grant_ttl: Duration::from_secs(2),
                max_waiters: 3,
                burst: 2,
                burst_time: Duration::from_secs(1),
            },
            ids: AtomicU64::new(1),
            now: Time::from_nanos(1_000_000_000),
            has_room: true,
        }
    }

    fn on(&mut self, event: impl FnOnce(&mut Machine<'_, char, (), ()>)) -> Vec<String> {
        let mut effects = Effects::new();
        let env = Env {
            now: self.now,
            rules: &self.rules,
            ids: &self.ids,
            has_room: self.has_room,
        };
        event(&mut self.slot.on(&env, &mut effects));
        effects.into_iter().map(describe).collect()
    }

    fn request(&mut self, waiter: char, patient: bool) -> Vec<String> {
        self.request_in(Mode::Exclusive, waiter, patient)
    }

    fn request_in(&mut self, mode: Mode, waiter: char, patient: bool) -> Vec<String> {
        self.on(|machine| machine.request(waiter as u64, waiter, patient, mode))
    }

    fn cancel(&mut self, waiter: char) -> Vec<String> {
        self.on(|machine| machine.cancel(waiter as u64))
    }

    fn notice(&mut self, notice: Notice) -> Vec<String> {
        self.on(|machine| machine.notice(notice))
    }

    /// The store replies to an acquire with this token, sent so long ago.
    fn acquire_replied(
        &mut self,
        token: u64,
        ago: Duration,
        result: Result<Reply, Failure>,
    ) -> Vec<String> {
        let command = Command::Acquire {
            token,
            mode: Mode::Exclusive,
            queue: true,
            watch: false,
            again: false,
        };
        self.replied(command, ago, result)
    }

    fn replied(
        &mut self,
        command: Command<(), ()>,
        ago: Duration,
        result: Result<Reply, Failure>,
    ) -> Vec<String> {
        let sent_at = Time::from_nanos(self.now.as_nanos() - ago.as_nanos() as u64);
        self.on(|machine| machine.replied(command, Outcome { sent_at, result }))
    }

    fn grant_held(&self) -> Grant {
        match &self.slot.state {
            State::Holding(holding) => grant_of(holding, 0),
            _ => panic!("not held: {:?}", self.slot),
        }
    }

    /// The holder with this place among those that share the lock is done.
    fn finish_at(&mut self, place: usize) -> Vec<String> {
        let State::Holding(holding) = &self.slot.state else {
            panic!("not held: {:?}", self.slot);
        };
        let grant = grant_of(holding, place);
        self.on(|machine| machine.finished(grant, (), true))
    }

    fn overdue(&mut self, is_store_available: bool) -> ErrorKind {
        let mut kind = None;
        self.on(|machine| kind = Some(machine.overdue(is_store_available)));
        kind.expect("the event has happened")
    }

    fn complete(&mut self) -> Vec<String> {
        let grant = self.grant_held();
        self.on(|machine| assert!(machine.completed(grant, (), ())))
    }

    fn complete_replied(&mut self, result: Result<Reply, Failure>) -> Vec<String> {
        self.replied(COMPLETE, Duration::ZERO, result)
    }

    fn finish(&mut self) -> Vec<String> {
        let grant = self.grant_held();
        self.on(|machine| machine.finished(grant, (), true))
    }

    fn reconnected(&mut self) -> Vec<String> {
        self.on(|machine| {
            machine.reconnected();
        })
    }

    fn pass(&mut self, time: Duration) -> Vec<String> {
        self.now = self.now + time;
        self.on(|machine| {
            machine.tick();
        })
    }

    /// The store has granted the lock to this token, certainly no longer ago than that.
    fn granted(&mut self, token: u64, ago: Duration) -> Vec<String> {
        let granted = self.grant(token, ago);
        self.notice(Notice::Granted(granted))
    }

    fn grant(&self, token: u64, ago: Duration) -> Granted {
        let after = Time::from_nanos(self.now.as_nanos() - ago.as_nanos() as u64);
        Granted {
            token,
            fence: 9,
            ttl: self.rules.grant_ttl,
            contended: false,
            after: Some(after),
        }
    }

    /// A table at which `a` waits in the store's queue, with token 1.
    fn queued() -> Self {
        let mut table = Self::new();
        table.now = table.now + TTL;
        table.request('a', true);
        table.acquire_replied(1, Duration::ZERO, HELD);
        table.acquire_replied(1, Duration::ZERO, HELD);
        table
    }

    /// A table at which `a` holds the lock, with token 1.
    fn held() -> Self {
        let mut table = Self::new();
        table.request('a', true);
        table.acquire_replied(1, Duration::ZERO, ACQUIRED);
        table
    }
}

fn grant_of(holding: &Holding, place: usize) -> Grant {
    let holder = holding.holders[place];
    Grant {
        lease: holder.lease,
        token: holding.token,
        mode: holding.mode,
        fencing_token: 0,
        until: holding.valid_until,
        limit: holder.limit,
    }
}

const COMPLETE: Command<(), ()> = Command::Complete {
    token: 1,
    record: (),
    reply: (),
};
const ACQUIRED: Result<Reply, Failure> = Ok(Reply::Acquired {
    fence: 7,
    contended: false,
});
const HELD: Result<Reply, Failure> = Ok(Reply::HeldElsewhere {
    remaining: Some(Duration::from_secs(4)),
    foreign: false,
});

fn recorded() -> Result<Reply, Failure> {
    Ok(Reply::Recorded("done".into()))
}

fn failed(unknown: bool) -> Result<Reply, Failure> {
    let error = Error::of(ErrorKind::Unavailable);
    Err(Failure { error, unknown })
}

fn describe(effect: Effect<char, (), ()>) -> String {
    match effect {
        Effect::Send(Command::Acquire {
            token,
            mode,
            queue,
            watch,
            ..
        }) => {
            let what = match mode {
                Mode::Exclusive => "acquire",
                Mode::Shared => "share",
            };
            let more = [(queue, " queue"), (watch, " watch")];
            let more: String = more
                .iter()
                .filter(|(on, _)| *on)
                .map(|(_, word)| *word)
                .collect();
            format!("{what} {token}{more}")
        }
        Effect::Send(Command::Release {
            token, contended, ..
        }) => match contended {
            true => format!("release {token} to the next"),
            false => format!("release {token}"),
        },
        Effect::Send(Command::Renew { token, .. }) => format!("renew {token}"),
        Effect::Send(Command::Check { token }) => format!("check {token}"),
        Effect::Grant { waiter, grant, .. } => format!("grant {waiter} {}", grant.fencing_token),
        Effect::Send(Command::Complete { token, .. }) => format!("complete {token}"),
        Effect::Replay { waiter, record } => {
            format!("replay {waiter} {record:?}")
        }
        Effect::Reject { waiter, error } => format!("reject {waiter} {:?}", error.kind()),
        Effect::Extend { .. } => "extend".to_owned(),
        Effect::Lose { reason, .. } => format!("lose {reason:?}"),
        Effect::HandedOn { reply: (), .. } => "handed on".to_owned(),
    }
}

#[test]
fn one_acquire_for_all_and_the_first_gets_the_lock() {
    let mut table = Table::new();
    assert_eq!(table.request('a', false), ["acquire 1"]);
    assert!(table.request('b', false).is_empty());
    assert!(table.request('c', true).is_empty());
    let effects = table.acquire_replied(1, Duration::ZERO, ACQUIRED);
    assert_eq!(effects, ["grant a 7168", "reject b Held"]);
    assert_eq!(table.finish(), ["grant c 7169", "handed on"]);
    assert_eq!(table.finish(), ["release 1"]);
    assert!(table.slot.is_idle());
}

#[test]
fn who_does_not_wait_is_refused_and_who_does_gets_in_line() {
    let mut table = Table::new();
    table.request('a', false);
    table.request('b', true);
    let effects = table.acquire_replied(1, Duration::ZERO, HELD);
    assert_eq!(effects, ["reject a Held", "acquire 1 queue"]);
    assert!(table.acquire_replied(1, Duration::ZERO, HELD).is_empty());
    assert_eq!(table.request('c', false), ["reject c Held"]);
    assert_eq!(table.granted(1, Duration::ZERO), ["grant b 9216"]);
}

#[test]
fn a_grant_needs_no_confirmation_while_enough_of_it_is_left_and_is_renewed_soon() {
    let mut table = Table::queued();
    assert_eq!(table.granted(1, Duration::ZERO), ["grant a 9216"]);
    assert_eq!(table.pass(Duration::from_millis(50)), ["renew 1"]);

    let mut table = Table::queued();
    let validity = Rules::validity(table.rules.grant_ttl);
    let least = table.rules.grant_ttl / 2;
    let enough = validity - least - Duration::from_millis(1);
    assert_eq!(table.granted(1, enough), ["grant a 9216"]);
    let State::Holding(holding) = &table.slot.state else {
        panic!("not held");
    };
    assert_eq!(holding.valid_until.since(table.now), validity - enough);

    let mut table = Table::queued();
    assert_eq!(table.granted(1, validity - least), ["acquire 1 queue"]);
}

#[test]
fn a_grant_without_a_date_is_confirmed() {
    let mut table = Table::queued();
    let granted = Granted {
        after: None,
        ..table.grant(1, Duration::ZERO)
    };
    assert_eq!(table.notice(Notice::Granted(granted)), ["acquire 1 queue"]);
}

#[test]
fn a_grant_says_whether_others_wait() {
    let mut table = Table::queued();
    for waiter in ['b', 'c', 'd'] {
        table.request(waiter, true);
    }
    let granted = Granted {
        contended: true,
        ..table.grant(1, Duration::ZERO)
    };
    assert_eq!(table.notice(Notice::Granted(granted)), ["grant a 9216"]);
    table.finish();
    table.finish();
    assert_eq!(table.finish()[0], "release 1 to the next");
}

#[test]
fn without_a_grant_a_slot_acquires_again_when_the_holder_must_have_expired() {
    let mut table = Table::queued();
    assert!(table.pass(Duration::from_secs(4)).is_empty());
    assert_eq!(table.pass(Duration::from_millis(1)), ["acquire 1 queue"]);
}

#[test]
fn a_grant_that_comes_before_the_reply_is_not_lost() {
    let mut table = Table::new();
    table.request('a', true);
    assert!(table.granted(1, Duration::ZERO).is_empty());
    assert_eq!(
        table.acquire_replied(1, Duration::ZERO, HELD),
        ["acquire 1 queue"]
    );
}

#[test]
fn a_foreign_holder_is_watched() {
    let mut table = Table::new();
    table.request('a', true);
    let foreign = || {
        Ok(Reply::HeldElsewhere {
            remaining: None,
            foreign: true,
        })
    };
    assert_eq!(
        table.acquire_replied(1, Duration::ZERO, foreign()),
        ["acquire 1 queue watch"]
    );
    assert!(
        table
            .acquire_replied(1, Duration::ZERO, foreign())
            .is_empty()
    );
    assert_eq!(table.notice(Notice::Changed), ["acquire 1 queue"]);
}

#[test]
fn the_last_one_to_give_up_releases_what_it_acquires() {
    let mut table = Table::new();
    table.request('a', true);
    table.request('b', true);
    assert!(table.cancel('a').is_empty());
    assert_eq!(table.cancel('b'), ["release 1"]);
    assert!(table.slot.is_idle());
    // Whatever the order in which the two were carried out, nothing stays behind.
    assert_eq!(
        table.acquire_replied(1, Duration::ZERO, ACQUIRED),
        ["release 1"]
    );
    assert!(table.acquire_replied(1, Duration::ZERO, HELD).is_empty());
}

#[test]
fn a_grant_that_no_request_waits_for_goes_to_the_next() {
    let mut table = Table::new();
    assert_eq!(table.granted(9, Duration::ZERO), ["release 9 to the next"]);
    let mut table = Table::held();
    assert_eq!(table.granted(9, Duration::ZERO), ["release 9 to the next"]);
    assert!(table.granted(1, Duration::ZERO).is_empty());
}

#[test]
fn a_lock_that_this_process_does_not_know_of_is_released_when_it_is_contended() {
    assert_eq!(
        Table::new().notice(Notice::Contended { token: 9 }),
        ["release 9 to the next"]
    );
    assert_eq!(
        Table::held().notice(Notice::Contended { token: 9 }),
        ["release 9 to the next"]
    );
    assert!(
        Table::held()
            .notice(Notice::Contended { token: 1 })
            .is_empty()
    );
}

#[test]
fn a_lease_whose_reply_comes_too_late_is_not_valid() {
    let mut table = Table::new();
    table.now = table.now + TTL;
    table.request('a', true);
    let validity = Rules::validity(TTL);
    assert!(validity < TTL - Duration::from_millis(100));
    let effects = table.acquire_replied(1, validity, ACQUIRED);
    assert_eq!(effects, ["release 1", "reject a Unavailable"]);
}

#[test]
fn a_failed_acquire_that_may_have_been_carried_out_is_released() {
    for (unknown, expected) in [
        (true, &["release 1", "reject a Unavailable"][..]),
        (false, &["reject a Unavailable"]),
    ] {
        let mut table = Table::new();
        table.request('a', true);
        assert_eq!(
            table.acquire_replied(1, Duration::ZERO, failed(unknown)),
            expected
        );
    }
}

#[test]
fn who_waits_already_goes_on_to_wait_when_the_store_is_away() {
    let mut table = Table::queued();
    assert_eq!(table.pass(Duration::from_secs(5)), ["acquire 1 queue"]);
    // The release may get to the store late: the token is not used again.
    let effects = table.acquire_replied(1, Duration::ZERO, failed(true));
    assert_eq!(effects, ["release 1"]);
    assert_eq!(table.request('b', false), ["reject b Unavailable"]);
    assert!(table.pass(TTL / 25).is_empty());
    assert_eq!(table.pass(TTL / 24), ["acquire 2 queue"]);
    let effects = table.acquire_replied(2, Duration::ZERO, failed(false));
    assert!(effects.is_empty());
    assert_eq!(table.reconnected(), ["acquire 3 queue"]);
    let effects = table.acquire_replied(3, Duration::ZERO, ACQUIRED);
    assert_eq!(effects, ["grant a 7168"]);
}

#[test]
fn a_waiter_that_leaves_while_the_store_is_away_leaves_nothing() {
    let mut table = Table::queued();
    table.pass(Duration::from_secs(5));
    table.acquire_replied(1, Duration::ZERO, failed(true));
    assert!(table.cancel('a').is_empty());
    assert!(table.slot.is_idle());
}

#[test]
fn who_does_not_wait_is_told_when_the_store_is_away() {
    let mut table = Table::queued();
    table.pass(Duration::from_secs(5));
    table.request('b', false);
    let effects = table.acquire_replied(1, Duration::ZERO, failed(false));
    assert_eq!(effects, ["reject b Unavailable"]);
}

#[test]
fn a_slot_whose_last_waiter_left_acquires_for_nobody_when_the_store_is_back() {
    let mut table = Table::queued();
    table.pass(Duration::from_secs(5));
    table.request('b', false);
    assert!(table.cancel('a').is_empty());
    let effects = table.acquire_replied(1, Duration::ZERO, failed(false));
    assert_eq!(effects, ["reject b Unavailable"]);
    assert!(table.slot.is_idle());
    assert!(table.pass(TTL).is_empty());
}

#[test]
fn a_lock_that_nobody_takes_is_released() {
    let mut table = Table::new();
    table.request('a', true);
    // No event does this. The slot must be right all the same.
    table.slot.waiters.pop();
    let effects = table.acquire_replied(1, Duration::ZERO, ACQUIRED);
    assert_eq!(effects, ["release 1"]);
    assert!(table.slot.is_idle());
}

#[test]
fn who_waits_already_goes_on_to_wait_after_a_reply_that_came_too_late() {
    let mut table = Table::queued();
    table.pass(Duration::from_secs(5));
    let too_late = Rules::validity(TTL);
    assert_eq!(table.acquire_replied(1, too_late, ACQUIRED), ["release 1"]);
    assert_eq!(table.pass(TTL / 24), ["acquire 2 queue"]);

    // A request that has just come is told.
    let mut table = Table::new();
    table.now = table.now + TTL;
    table.request('a', true);
    let effects = table.acquire_replied(1, too_late, ACQUIRED);
    assert_eq!(effects, ["release 1", "reject a Unavailable"]);
    assert!(table.slot.is_idle());
}

#[test]
fn a_reply_that_does_not_fit_an_acquire_counts_as_a_failure() {
    let mut table = Table::new();
    table.request('a', true);
    let effects = table.acquire_replied(1, Duration::ZERO, Ok(Reply::Completed));
    assert_eq!(effects, ["release 1", "reject a Unavailable"]);
    assert!(table.slot.is_idle());
}

#[test]
fn a_wait_that_is_over_is_told_as_unavailable_while_the_store_has_not_replied() {
    let mut table = Table::new();
    table.request('a', true);
    assert_eq!(table.overdue(true), ErrorKind::Unavailable);
    let effects = table.acquire_replied(1, Duration::ZERO, HELD);
    assert_eq!(effects, ["acquire 1 queue"]);
    assert_eq!(table.overdue(true), ErrorKind::TimedOut);
    table.acquire_replied(1, Duration::ZERO, HELD);
    // Until now, the lock is known to have been held.
    assert_eq!(table.pass(Duration::from_secs(5)), ["acquire 1 queue"]);
    assert_eq!(table.overdue(true), ErrorKind::TimedOut);
    assert_eq!(table.overdue(false), ErrorKind::Unavailable);
    table.acquire_replied(1, Duration::ZERO, failed(true));
    assert_eq!(table.overdue(true), ErrorKind::Unavailable);
    assert_eq!(table.pass(TTL), ["acquire 2 queue"]);
    assert_eq!(table.overdue(true), ErrorKind::Unavailable);
    let mut table = Table::held();
    for is_store_available in [true, false] {
        assert_eq!(table.overdue(is_store_available), ErrorKind::TimedOut);
    }
}

#[test]
fn the_smaller_of_two_times_to_live_counts_for_a_grant() {
    let short = Duration::from_millis(300);
    for (given, counts) in [(short, short), (TTL, Duration::from_secs(2))] {
        let mut table = Table::queued();
        let granted = Granted {
            ttl: given,
            ..table.grant(1, Duration::ZERO)
        };
        assert_eq!(table.notice(Notice::Granted(granted)), ["grant a 9216"]);
        let State::Holding(holding) = &table.slot.state else {
            panic!("not held");
        };
        assert_eq!(
            holding.valid_until.since(table.now),
            Rules::validity(counts)
        );
        // Before half of it is over.
        assert_eq!(table.pass(counts / 40), ["renew 1"]);
    }
    // No process gives a grant as short as this, but a message may say so.
    let mut table = Table::queued();
    let granted = Granted {
        ttl: Duration::ZERO,
        ..table.grant(1, Duration::ZERO)
    };
    assert_eq!(table.notice(Notice::Granted(granted)), ["acquire 1 queue"]);
    // Too little is left of so short a grant.
    let mut table = Table::queued();
    let granted = Granted {
        ttl: short,
        ..table.grant(1, short / 2)
    };
    assert_eq!(table.notice(Notice::Granted(granted)), ["acquire 1 queue"]);
}

#[test]
fn who_completes_leaves_a_record_and_those_who_wait_acquire_when_it_is_there() {
    let mut table = Table::held();
    assert!(table.request('b', true).is_empty());
    assert!(table.request('c', true).is_empty());
    assert_eq!(table.complete(), ["complete 1"]);
    assert_eq!(
        table.complete_replied(Ok(Reply::Completed)),
        ["acquire 3 queue"]
    );
    assert!(table.request('d', false).is_empty());
    let effects = table.acquire_replied(3, Duration::ZERO, recorded());
    let replays = ["b", "c", "d"].map(|waiter| format!("replay {waiter} b\"done\""));
    assert_eq!(effects, replays);
    assert!(table.slot.is_idle());
}

#[test]
fn who_completes_a_lock_that_was_lost_leaves_nothing() {
    let mut table = Table::held();
    table.request('b', true);
    table.complete();
    // The lock had expired, and another process has it now.
    assert_eq!(table.complete_replied(Ok(Reply::Gone)), ["acquire 3 queue"]);
    assert!(table.acquire_replied(3, Duration::ZERO, HELD).is_empty());
    assert_eq!(table.slot.census().waiting, 1);

    let mut table = Table::held();
    let grant = table.grant_held();
    assert_eq!(table.pass(TTL), ["lose Expired"]);
    let effects = table.on(|machine| assert!(!machine.completed(grant, (), ())));
    assert_eq!(effects, ["release 1"]);
}

#[test]
fn without_waiters_nothing_is_left_of_a_completed_lock() {
    let mut table = Table::held();
    assert_eq!(table.complete(), ["complete 1"]);
    assert!(table.complete_replied(Ok(Reply::Completed)).is_empty());
    assert!(table.slot.is_idle());
    assert_eq!(table.request('b', false), ["acquire 3"]);
    let effects = table.acquire_replied(3, Duration::ZERO, recorded());
    assert_eq!(effects, ["replay b b\"done\""]);
}

#[test]
fn a_lock_whose_record_is_in_flight_is_renewed_and_released_to_nobody() {
    let mut table = Table::held();
    let renew = Command::Renew {
        token: 1,
        mode: Mode::Exclusive,
    };
    let grant = table.grant_held();
    table.complete();
    // No request here, and no other process, can have the lock.
    assert_eq!(table.request('b', false), ["reject b Held"]);
    assert!(table.request('c', true).is_empty());
    assert!(table.notice(Notice::Contended { token: 1 }).is_empty());
    assert!(table.granted(1, Duration::ZERO).is_empty());
    let finished = table.on(|machine| machine.finished(grant, (), true));
    assert!(finished.is_empty());
    assert_eq!(table.pass(TTL / 3), ["renew 1"]);
    let renewed = Ok(Reply::Renewed { contended: true });
    assert_eq!(table.replied(renew, Duration::ZERO, renewed), ["extend"]);
    assert!(table.slot.holds(1));
    // The record is in the lock's place. A renewal finds that before the completion has its reply.
    assert_eq!(table.pass(TTL / 3), ["renew 1"]);
    assert!(
        table
            .replied(renew, Duration::ZERO, Ok(Reply::Gone))
            .is_empty()
    );
    assert!(table.slot.holds(1));
    assert_eq!(
        table.complete_replied(Ok(Reply::Completed)),
        ["acquire 3 queue"]
    );
}

#[test]
fn a_record_that_the_store_refuses_to_the_end_leaves_a_free_lock() {
    let mut table = Table::held();
    table.request('b', true);
    table.complete();
    let effects = table.complete_replied(failed(true));
    assert_eq!(effects, ["release 1", "acquire 3 queue"]);

    // A lease that runs out ends it as well. No holder is told: it is done.
    let mut table = Table::held();
    table.complete();
    assert_eq!(table.pass(Duration::from_secs(1)), ["renew 1"]);
    assert!(table.pass(TTL).is_empty());
    assert!(table.slot.is_idle());
    assert!(table.complete_replied(Ok(Reply::Gone)).is_empty());
}

#[test]
fn a_record_that_is_written_first_has_time_for_that_however_long_its_holder_took() {
    let mut table = Table::held();
    let lease = table.grant_held().lease;
    let State::Holding(holding) = &mut table.slot.state else {
        panic!("not held");
    };
    let limit = table.now + Duration::from_millis(1);
    let holder = &mut holding.holders[0];
    (holder.limit, holder.over_at) = table.rules.ends_of_hold(limit);
    let effects = table.on(|machine| machine.recording(lease, Duration::from_secs(5)));
    assert_eq!(effects, ["extend"]);
    assert!(table.pass(Duration::from_millis(2)).is_empty());
    assert_eq!(table.pass(Duration::from_secs(5)), ["renew 1"]);
    assert_eq!(
        table.pass(Rules::margin(TTL)),
        ["lose MaxHold", "release 1 to the next"]
    );
}

#[test]
fn a_record_has_a_time_to_live_to_get_there_however_long_its_holder_took() {
    let mut table = Table::held();
    let State::Holding(holding) = &mut table.slot.state else {
        panic!("not held");
    };
    holding.holders[0].over_at = table.now + Duration::from_millis(1);
    table.complete();
    assert!(table.pass(Duration::from_millis(2)).is_empty());
    assert!(table.slot.holds(1));
}

#[test]
fn waiters_in_the_stores_queue_get_the_record_that_they_are_told_of() {
    let mut table = Table::queued();
    table.request('b', true);
    assert_eq!(table.notice(Notice::Changed), ["acquire 1 queue"]);
    let effects = table.acquire_replied(1, Duration::ZERO, recorded());
    assert_eq!(effects.len(), 2);
    assert!(table.slot.is_idle());
}

#[test]
fn what_changes_while_a_renewal_is_in_flight_is_checked_after_it() {
    let mut table = Table::held();
    let renew = Command::Renew {
        token: 1,
        mode: Mode::Exclusive,
    };
    let check = Command::Check { token: 1 };
    let renewed = || Ok(Reply::Renewed { contended: false });
    let intact = || Ok(Reply::Intact);
    assert_eq!(table.pass(Duration::from_millis(100)), ["renew 1"]);
    assert!(table.notice(Notice::Changed).is_empty());
    let effects = table.replied(renew, Duration::ZERO, renewed());
    assert_eq!(effects, ["extend", "check 1"]);
    assert!(table.notice(Notice::Changed).is_empty());
    assert_eq!(table.replied(check, Duration::ZERO, intact()), ["check 1"]);
    assert!(table.replied(check, Duration::ZERO, intact()).is_empty());
    // What a failed check does not find, the next renewal finds.
    assert_eq!(table.notice(Notice::Changed), ["check 1"]);
    assert!(
        table
            .replied(check, Duration::ZERO, failed(false))
            .is_empty()
    );
    assert_eq!(table.notice(Notice::Changed), ["check 1"]);
}

#[test]
fn what_changes_is_checked_without_a_write() {
    let mut table = Table::held();
    assert_eq!(table.notice(Notice::Changed), ["check 1"]);
    // While there was no connection, nothing was renewed.
    assert_eq!(table.reconnected(), ["renew 1"]);
}

#[test]
fn a_failed_renewal_is_tried_again_and_is_no_loss_before_its_time() {
    let mut table = Table::held();
    let renew = Command::Renew {
        token: 1,
        mode: Mode::Exclusive,
    };
    assert_eq!(table.pass(Duration::from_millis(100)), ["renew 1"]);
    assert!(
        table
            .replied(renew, Duration::ZERO, failed(true))
            .is_empty()
    );
    assert_eq!(table.pass(TTL / 3), ["renew 1"]);
    assert!(
        table
            .replied(renew, Duration::ZERO, failed(true))
            .is_empty()
    );
    let validity = Rules::validity(TTL);
    assert_eq!(
        table.pass(validity - TTL / 3 - Duration::from_millis(101)),
        ["renew 1"]
    );
    assert_eq!(table.pass(Duration::from_millis(1)), ["lose Expired"]);
}

#[test]
fn a_renewal_counts_from_when_it_was_sent() {
    let mut table = Table::held();
    table.pass(TTL / 2);
    let renewed = Ok(Reply::Renewed { contended: false });
    assert_eq!(
        table.replied(
            Command::Renew {
                token: 1,
                mode: Mode::Exclusive
            },
            TTL / 4,
            renewed
        ),
        ["extend"]
    );
    let State::Holding(holding) = &table.slot.state else {
        panic!("not held");
    };
    assert_eq!(
        holding.valid_until.since(table.now),
        Rules::validity(TTL) - TTL / 4
    );
}

#[test]
fn a_renewal_whose_reply_comes_after_the_loss_brings_nothing_back() {
    let mut table = Table::held();
    table.pass(Duration::from_secs(1));
    table.now = table.now + TTL;
    let renewed = Ok(Reply::Renewed { contended: false });
    let effects = table.replied(
        Command::Renew {
            token: 1,
            mode: Mode::Exclusive,
        },
        Duration::ZERO,
        renewed,
    );
    assert_eq!(effects, ["lose Expired"]);
}

#[test]
fn a_lock_that_is_another_s_is_lost_at_once_and_the_waiters_go_on() {
    let mut table = Table::held();
    table.request('b', true);
    assert_eq!(table.notice(Notice::Changed), ["check 1"]);
    let effects = table.replied(Command::Check { token: 1 }, Duration::ZERO, Ok(Reply::Gone));
    assert_eq!(effects.len(), 2);
    assert_eq!(effects[0], "lose Taken");
    // With a new token: the lost one may still be in the store.
    assert!(effects[1].starts_with("acquire ") && effects[1] != "acquire 1 queue");
}

#[test]
fn while_another_process_waits_only_a_burst_goes_first() {
    let mut table = Table::held();
    for waiter in ['b', 'c', 'd'] {
        table.request(waiter, true);
    }
    table.notice(Notice::Contended { token: 1 });
    assert_eq!(table.finish(), ["grant b 7169", "handed on"]);
    assert_eq!(table.finish(), ["grant c 7170", "handed on"]);
    // It queues before the lock goes to the next holder, which so learns that it waits.
    assert_eq!(table.finish(), ["acquire 5 queue", "release 1 to the next"]);
}

#[test]
fn a_burst_ends_by_the_clock_too() {
    let mut table = Table::held();
    table.request('b', true);
    table.notice(Notice::Contended { token: 1 });
    table.pass(Duration::from_secs(1));
    assert_eq!(table.finish()[1], "release 1 to the next");
}

#[test]
fn the_line_is_bounded() {
    let mut table = Table::held();
    for waiter in ['b', 'c', 'd'] {
        assert!(table.request(waiter, true).is_empty());
    }
    assert_eq!(table.request('e', true), ["reject e QueueFull"]);
}

#[test]
fn the_lines_for_all_keys_together_are_bounded() {
    let mut table = Table::held();
    table.has_room = false;
    assert_eq!(table.request('b', true), ["reject b QueueFull"]);

    // A request that finds the lock free need not wait.
    let mut table = Table::new();
    table.has_room = false;
    assert_eq!(table.request('a', true), ["acquire 1"]);
    assert_eq!(table.slot.census().waiting, 0);
    let effects = table.acquire_replied(1, Duration::ZERO, HELD);
    assert_eq!(effects, ["reject a QueueFull"]);
    assert!(table.slot.is_idle());

    // Only the request that acquired is one too many: those behind it were counted when they came.
    let mut table = Table::new();
    table.request('a', true);
    table.request('b', true);
    table.request('c', false);
    assert_eq!(table.slot.census().waiting, 1);
    table.has_room = false;
    let effects = table.acquire_replied(1, Duration::ZERO, HELD);
    assert_eq!(
        effects,
        ["reject c Held", "reject a QueueFull", "acquire 1 queue"]
    );
    assert_eq!(table.slot.census().waiting, 1);

    // A request that does not wait takes no place from one that does.
    let mut table = Table::new();
    table.request('a', false);
    table.request('b', true);
    table.has_room = false;
    let effects = table.acquire_replied(1, Duration::ZERO, HELD);
    assert_eq!(effects, ["reject a Held", "acquire 1 queue"]);

    // A request that waits already stays.
    let mut table = Table::held();
    table.request('b', true);
    table.has_room = false;
    table.notice(Notice::Contended { token: 1 });
    table.pass(Duration::from_secs(1));
    assert_eq!(table.finish()[0], "acquire 3 queue");
    assert!(table.acquire_replied(3, Duration::ZERO, HELD).is_empty());
}

#[test]
fn max_hold_ends_a_hold_however_often_it_was_renewed() {
    let mut table = Table::held();
    for _ in 0..99 {
        table.pass(TTL / 3);
        let renewed = Ok(Reply::Renewed { contended: false });
        table.replied(
            Command::Renew {
                token: 1,
                mode: Mode::Exclusive,
            },
            Duration::ZERO,
            renewed,
        );
        if table.slot.is_idle() {
            panic!("lost before its time");
        }
        if table.now.since(Time::from_nanos(1_000_000_000)) > Duration::from_secs(295) {
            break;
        }
    }
    // The holder knows the end from the clock: others need not wait until the lease expires.
    let effects = table.pass(Duration::from_secs(6));
    assert_eq!(effects, ["lose MaxHold", "release 1 to the next"]);
}

#[test]
fn a_holder_has_time_to_stop_between_the_end_of_max_hold_and_the_release() {
    let mut table = Table::new();
    table.rules.max_hold = TTL / 4;
    table.request('a', true);
    table.acquire_replied(1, Duration::ZERO, ACQUIRED);
    table.request('b', true);
    // The holder is told by its own clock, at this moment.
    table.pass(TTL / 4);
    assert!(table.slot.holds(1), "no other holder may have it yet");
    let margin = Rules::margin(TTL);
    assert_eq!(
        table.slot.next_tick(),
        Some(table.now + margin),
        "others need not wait for longer"
    );
    let effects = table.pass(margin);
    assert_eq!(
        effects,
        ["lose MaxHold", "release 1 to the next", "acquire 3 queue"]
    );
}

#[test]
fn waiters_that_redis_refused_acquire_again_soon_however_long_the_time_to_live() {
    let mut table = Table::queued();
    (table.rules.ttl, table.rules.renewal) = (3600 * TTL, 1200 * TTL);
    table.notice(Notice::Changed);
    assert_eq!(
        table.acquire_replied(1, Duration::ZERO, failed(true)),
        ["release 1"]
    );
    assert_eq!(table.pass(Duration::from_secs(1)), ["acquire 2 queue"]);
}
