//! Requests that share a lock, among those that have it alone.

use super::*;

const SHARED: Mode = Mode::Shared;

impl Table {
    fn read(&mut self, waiter: char) -> Vec<String> {
        self.request_in(SHARED, waiter, true)
    }

    /// A table at which `a` and `b` share the lock, with token 1.
    fn shared() -> Self {
        let mut table = Self::new();
        table.read('a');
        table.read('b');
        table.acquire_replied(1, Duration::ZERO, ACQUIRED);
        table
    }

    /// `a` and `b` are done.
    fn both_finish(&mut self) -> Vec<String> {
        assert_eq!(self.finish_at(0), ["handed on"]);
        self.finish_at(0)
    }
}

const CONTENDED: Result<Reply, Failure> = Ok(Reply::Acquired {
    fence: 7,
    contended: true,
});

#[test]
fn all_that_share_get_the_lock_up_to_the_first_that_does_not() {
    let mut table = Table::new();
    assert_eq!(table.read('a'), ["share 1"]);
    assert!(table.read('b').is_empty());
    assert!(table.request('c', true).is_empty());
    table.rules.max_waiters = 9;
    assert!(table.read('d').is_empty());
    let effects = table.acquire_replied(1, Duration::ZERO, ACQUIRED);
    assert_eq!(effects, ["grant a 7168", "grant b 7168"]);
    assert_eq!(table.finish_at(1), ["handed on"]);
    // `c` needs it alone, and `d` does not get past it.
    let effects = table.finish_at(0);
    assert_eq!(effects, ["release 1 to the next", "acquire 4 queue"]);
    let effects = table.acquire_replied(4, Duration::ZERO, ACQUIRED);
    assert_eq!(effects, ["grant c 7168"]);
    assert_eq!(table.finish(), ["release 4 to the next", "share 6 queue"]);
}

#[test]
fn a_later_one_joins_without_the_store() {
    let mut table = Table::shared();
    assert_eq!(table.read('c'), ["grant c 7168"]);
    assert_eq!(
        table.request_in(SHARED, 'd', false),
        ["grant d 7168"],
        "also one that does not wait"
    );
    assert_eq!(table.request('e', false), ["reject e Held"]);
}

#[test]
fn none_joins_past_one_that_waits_here() {
    let mut table = Table::shared();
    assert!(table.request('w', true).is_empty());
    assert!(table.read('c').is_empty());
    assert_eq!(table.request_in(SHARED, 'd', false), ["reject d Held"]);
}

#[test]
fn those_behind_one_that_leaves_join() {
    let mut table = Table::shared();
    table.rules.max_waiters = 9;
    for (writer, reader) in [('w', 'c'), ('v', 'd')] {
        assert!(table.request(writer, true).is_empty());
        assert!(table.read(reader).is_empty());
    }
    assert_eq!(table.cancel('w'), ["grant c 7168"]);
    assert!(table.read('e').is_empty());
    assert_eq!(table.cancel('v'), ["grant d 7168", "grant e 7168"]);
    // Unless another process waits.
    table.request('x', true);
    table.read('f');
    table.notice(Notice::Contended { token: 1 });
    assert!(table.cancel('x').is_empty());
}

#[test]
fn none_joins_past_a_process_that_waits() {
    let mut table = Table::shared();
    let wanted = Notice::Contended { token: 1 };
    assert!(table.notice(wanted).is_empty());
    assert!(table.read('c').is_empty());
    // The release goes behind the acquire, which is to be in the queue by then.
    assert_eq!(
        table.both_finish(),
        ["share 4 queue", "release 1 to the next"]
    );
}

#[test]
fn none_is_kept_out_by_a_process_that_waits_no_longer() {
    let renewal = Command::Renew {
        token: 1,
        mode: SHARED,
    };
    let mut table = Table::shared();
    let renewed = |table: &mut Table, contended| {
        let reply = Ok(Reply::Renewed { contended });
        let mut effects = table.replied(renewal, Duration::from_millis(1), reply);
        effects.retain(|effect| effect != "extend");
        effects
    };
    table.pass(Duration::from_millis(1));
    table.notice(Notice::Contended { token: 1 });
    table.read('c');
    // Redis may have renewed it before that process came.
    assert!(renewed(&mut table, false).is_empty());
    table.pass(Duration::from_millis(2));
    assert!(renewed(&mut table, true).is_empty());
    // And before another one came.
    table.notice(Notice::Contended { token: 1 });
    assert!(renewed(&mut table, false).is_empty());
    table.pass(Duration::from_millis(2));
    assert_eq!(renewed(&mut table, false), ["grant c 7168"]);
    assert_eq!(table.read('d'), ["grant d 7168"]);
}

#[test]
fn a_share_that_is_wanted_from_the_beginning_admits_those_that_are_there() {
    let mut table = Table::new();
    table.read('a');
    table.read('b');
    let effects = table.acquire_replied(1, Duration::ZERO, CONTENDED);
    assert_eq!(effects, ["grant a 7168", "grant b 7168"]);
    assert!(table.read('c').is_empty());
}

#[test]
fn a_share_lingers_and_serves_the_next_from_memory() {
    let mut table = Table::shared();
    assert_eq!(table.both_finish(), ["handed on"]);
    assert!(!table.slot.is_idle() && table.slot.holds(1));
    assert_eq!(table.read('c'), ["grant c 7168"]);
    assert_eq!(table.finish_at(0), ["handed on"]);
    assert!(table.pass(Duration::from_millis(99)).is_empty());
    assert_eq!(table.pass(Duration::from_millis(1)), ["release 1"]);
    assert!(table.slot.is_idle());
}

#[test]
fn a_share_does_not_linger_where_its_last_holder_asks_how_the_release_went() {
    let mut table = Table::shared();
    let State::Holding(holding) = &table.slot.state else {
        panic!("not held");
    };
    let [first, last] = [0, 1].map(|place| grant_of(holding, place));
    let effects = table.on(|machine| machine.finished(first, (), false));
    assert_eq!(effects, ["handed on"]);
    let effects = table.on(|machine| machine.finished(last, (), false));
    assert_eq!(effects, ["release 1"]);
}

#[test]
fn a_share_that_lingers_ends_when_it_is_wanted() {
    let lingering = || {
        let mut table = Table::shared();
        table.both_finish();
        table
    };
    let mut table = lingering();
    let effects = table.notice(Notice::Contended { token: 1 });
    assert_eq!(effects, ["release 1 to the next"]);
    assert!(table.slot.is_idle());
    // The store says whether another process shares it.
    for patient in [true, false] {
        let mut table = lingering();
        assert_eq!(table.request('w', patient), ["release 1", "acquire 4"]);
    }
    for mut table in [lingering(), lingering()] {
        assert_eq!(table.reconnected(), ["release 1"]);
        assert!(table.slot.is_idle());
    }
    let closed = Error::of(ErrorKind::Closed);
    let effects = lingering().on(|machine| machine.reject_all(&closed));
    assert_eq!(effects, ["release 1"]);
}

#[test]
fn a_share_that_lingers_is_released_though_its_last_renewal_came_too_late() {
    let mut table = Table::shared();
    table.pass(TTL / 3);
    table.both_finish();
    table.now = table.now + TTL;
    let renew = Command::Renew {
        token: 1,
        mode: SHARED,
    };
    let renewed = Ok(Reply::Renewed { contended: false });
    assert_eq!(table.replied(renew, Duration::ZERO, renewed), ["release 1"]);
    assert!(table.slot.is_idle());
}

#[test]
fn a_share_is_renewed_for_all_and_lost_by_all() {
    let mut table = Table::shared();
    assert!(table.pass(TTL / 3 - Duration::from_millis(1)).is_empty());
    assert_eq!(table.pass(Duration::from_millis(1)), ["renew 1"]);
    let renew = Command::Renew {
        token: 1,
        mode: SHARED,
    };
    let renewed = Ok(Reply::Renewed { contended: false });
    let effects = table.replied(renew, Duration::ZERO, renewed);
    assert_eq!(effects, ["extend", "extend"]);
    assert_eq!(table.notice(Notice::Changed), ["renew 1"]);
    let effects = table.replied(renew, Duration::ZERO, Ok(Reply::Gone));
    assert_eq!(effects, ["lose Taken", "lose Taken"]);
    assert!(table.slot.is_idle());
}

#[test]
fn a_renewal_tells_that_the_share_is_wanted() {
    let mut table = Table::shared();
    table.pass(TTL / 3);
    let renew = Command::Renew {
        token: 1,
        mode: SHARED,
    };
    let renewed = Ok(Reply::Renewed { contended: true });
    table.replied(renew, Duration::ZERO, renewed);
    assert!(table.read('c').is_empty());
}

#[test]
fn each_may_hold_for_as_long_as_one_may() {
    let mut table = Table::new();
    table.rules.max_hold = TTL / 5;
    table.read('a');
    table.acquire_replied(1, Duration::ZERO, ACQUIRED);
    table.pass(TTL / 10);
    assert_eq!(table.read('b'), ["grant b 7168"]);
    // 100 ms later than the holder knows of it.
    let effects = table.pass(TTL / 10 + Duration::from_millis(100));
    assert_eq!(effects, ["lose MaxHold"]);
    assert!(table.slot.holds(1));
    assert_eq!(
        table.pass(TTL / 10),
        ["lose MaxHold", "release 1 to the next"]
    );
    assert!(table.slot.is_idle());
}

#[test]
fn one_that_cannot_have_the_lock_alone_does_not_keep_those_out_that_share_it() {
    // Both have come for now, and another process shares the lock.
    let mut table = Table::new();
    assert_eq!(table.request('w', false), ["acquire 1"]);
    assert!(table.request_in(SHARED, 'a', false).is_empty());
    let effects = table.acquire_replied(1, Duration::ZERO, HELD);
    assert_eq!(effects, ["reject w Held", "share 2"]);
    assert!(table.request('v', false).is_empty());
    assert!(table.read('b').is_empty());
    let effects = table.acquire_replied(2, Duration::ZERO, ACQUIRED);
    assert_eq!(effects, ["grant a 7168", "reject v Held", "grant b 7168"]);
}

#[test]
fn the_mode_is_that_of_the_first_in_line() {
    let mut table = Table::queued();
    table.read('b');
    // `a` was to have it alone. Its place in the queue is of no use to `b`.
    assert_eq!(table.cancel('a'), ["release 1", "share 2 queue"]);
    table.acquire_replied(2, Duration::ZERO, HELD);
    assert!(table.request('c', true).is_empty());
    assert_eq!(table.cancel('b'), ["release 2", "acquire 3 queue"]);
}

#[test]
fn a_grant_goes_to_all_that_share_at_the_front() {
    let mut table = Table::new();
    table.now = table.now + TTL;
    table.read('a');
    table.acquire_replied(1, Duration::ZERO, HELD);
    table.acquire_replied(1, Duration::ZERO, HELD);
    table.read('b');
    table.request('c', true);
    let effects = table.granted(1, Duration::ZERO);
    assert_eq!(effects, ["grant a 9216", "grant b 9216"]);
}

#[test]
fn a_share_that_came_too_late_is_given_up() {
    let mut table = Table::new();
    table.now = table.now + TTL;
    table.request_in(SHARED, 'a', false);
    let effects = table.acquire_replied(1, TTL, ACQUIRED);
    assert_eq!(effects, ["release 1", "reject a Unavailable"]);
}

#[test]
fn the_holder_of_a_share_that_it_has_lost_releases_nothing_that_others_have() {
    let mut table = Table::shared();
    let State::Holding(holding) = &mut table.slot.state else {
        panic!("not held");
    };
    let first = grant_of(holding, 0);
    holding.holders[0].over_at = table.now;
    assert_eq!(table.pass(Duration::ZERO), ["lose MaxHold"]);
    let effects = table.on(|machine| machine.finished(first, (), true));
    assert_eq!(effects, ["handed on"], "its caller is told of the loss");
    assert!(table.slot.holds(1));
}
