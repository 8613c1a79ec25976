//! The commands on their way to Redis: which go next, which are kept, which have failed.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use super::RedisStore;
use crate::clock::Time;
use crate::error::{Error, ErrorKind};
use crate::key::{Kind, LockKey};
use crate::shield::shielded;
use crate::store::{Answer, Command, Events, Failure, Farewell, Outcome, settled};

/// Script calls on their way at once. What is submitted meanwhile goes out together, in the next.
const FEW_CALLS: usize = 2;
/// As many may be, while each of them is full and about locks alone: or what is queued would have
/// to wait for one round trip after the other. Records are longer, and Redis closes a connection
/// for which it has to keep too much.
const MAX_CALLS: usize = 16;
/// Commands in one call: bounds how long the script keeps Redis from its other clients, and, as no
/// record that comes along is long, its bytes.
const MAX_COMMANDS: usize = 128;
/// With more commands queued than this, all go out together.
const FEW: usize = 8;

/// What is to be sent: two lines, each in order of submission, of which the command with the lower
/// number goes first.
///
/// Apart, so that whatever fails, or expires, is at the front of one of them: an outage may leave
/// any number of releases behind, and they are not to be gone through time and again.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// What ends a hold. It stays for as long as there may be a lock.
    ends: VecDeque<Pending>,
    others: VecDeque<Pending>,
    next_number: u64,
}

impl Queue {
    /// The last in order of submission.
    pub(super) fn push(&mut self, mut pending: Pending) {
        pending.number = self.next_number;
        self.next_number += 1;
        self.line(&pending).push_back(pending);
    }

    /// Back to where they were. Commands that were sent are older than most that are queued.
    fn put_back(&mut self, commands: Vec<Pending>) {
        for pending in commands.into_iter().rev() {
            let line = self.line(&pending);
            let at = line.partition_point(|queued| queued.number < pending.number);
            line.insert(at, pending);
        }
    }

    fn pop(&mut self) -> Option<Pending> {
        let number = |line: &VecDeque<Pending>| line.front().map_or(u64::MAX, |first| first.number);
        match number(&self.ends) < number(&self.others) {
            true => self.ends.pop_front(),
            false => self.others.pop_front(),
        }
    }

    fn line(&mut self, pending: &Pending) -> &mut VecDeque<Pending> {
        match pending.ends_hold() {
            true => &mut self.ends,
            false => &mut self.others,
        }
    }

    fn len(&self) -> usize {
        self.ends.len() + self.others.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether an acquire came in since the last look, which had `seen` all that was submitted
    /// before.
    pub(super) fn has_new_acquire(&self, seen: &mut u64) -> bool {
        let since = std::mem::replace(seen, self.next_number);
        let newest_first = self.others.iter().rev();
        newest_first
            .take_while(|pending| pending.number >= since)
            .any(|pending| matches!(pending.command, Command::Acquire { .. }))
    }

    /// Takes the releases of acquires that have failed and were never sent. They were submitted
    /// behind those.
    fn take_needless(&mut self, failed: &[Pending]) -> Vec<Pending> {
        let unsent = failed.iter().filter_map(|pending| match pending.command {
            Command::Acquire { token, .. } if !pending.is_known_there() => {
                Some((token, pending.number))
            }
            _ => None,
        });
        let unsent: HashMap<u64, u64> = unsent.collect();
        let Some(first) = unsent.values().min() else {
            return Vec::new();
        };
        let behind = self.ends.partition_point(|end| end.number < *first);
        let behind = self.ends.split_off(behind);
        let (needless, kept) = behind.into_iter().partition(|end| match end.command {
            Command::Release { token, .. } => unsent.contains_key(&token),
            _ => false,
        });
        self.ends.extend::<Vec<_>>(kept);
        needless
    }
}

/// Takes from the front of a line.
fn take_while(
    line: &mut VecDeque<Pending>,
    is_one: impl Fn(&Pending) -> bool,
) -> impl Iterator<Item = Pending> {
    std::iter::from_fn(move || match line.front() {
        Some(first) if is_one(first) => line.pop_front(),
        _ => None,
    })
}

/// A command that has no answer yet.
#[derive(Debug)]
pub(super) struct Pending {
    /// In order of submission.
    pub(super) number: u64,
    pub(super) key: LockKey,
    pub(super) command: Command,
    pub(super) farewell: Farewell,
    pub(super) submitted: Time,
    /// How often it has been sent. It may have been carried out as often.
    pub(super) attempts: u32,
    /// A release that let others go first, once.
    pub(super) has_waited: bool,
}

/// The calls that have no reply yet, in the order in which they were sent and will be answered.
///
/// Dropped, it puts them back into the queue: whatever they did, they may do again.
pub(super) struct OnTheWay<'a> {
    pub(super) store: &'a RedisStore,
    pub(super) calls: VecDeque<(Time, Vec<Pending>)>,
    /// Releases that Redis refused. They are tried again.
    pub(super) refused: Vec<Pending>,
}

impl<'a> OnTheWay<'a> {
    pub(super) fn new(store: &'a RedisStore) -> Self {
        Self {
            store,
            calls: VecDeque::new(),
            refused: Vec::new(),
        }
    }

    pub(super) fn pop(&mut self) -> (Time, Vec<Pending>) {
        let call = self.calls.pop_front().expect("a reply belongs to a call");
        self.store
            .on_the_way
            .fetch_sub(call.1.len(), Ordering::AcqRel);
        call
    }

    pub(super) fn push(&mut self, sent_at: Time, commands: Vec<Pending>) {
        self.store
            .on_the_way
            .fetch_add(commands.len(), Ordering::AcqRel);
        self.calls.push_back((sent_at, commands));
    }

    /// Gives up waiting for the replies: all calls go back into the queue, to be sent again.
    pub(super) fn recall(&mut self) {
        let mut commands = Vec::new();
        while !self.calls.is_empty() {
            commands.extend(self.pop().1);
        }
        self.store.put_back(commands);
    }

    /// Keeps a release to try it again. Later commands for its key overtake it: to them, the lock is
    /// held until then. Its token is never used again, so it can end nothing that began meanwhile.
    pub(super) fn keep(&mut self, release: Pending) {
        self.store.on_the_way.fetch_add(1, Ordering::AcqRel);
        self.refused.push(release);
    }

    pub(super) fn retry(&mut self) {
        let refused = std::mem::take(&mut self.refused);
        self.store
            .on_the_way
            .fetch_sub(refused.len(), Ordering::AcqRel);
        self.store.put_back(refused);
    }
}

impl Drop for OnTheWay<'_> {
    fn drop(&mut self) {
        self.recall();
        self.retry();
    }
}

impl RedisStore {
    pub(super) fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts back what was sent on a connection that is gone, in order.
    pub(super) fn put_back(&self, commands: Vec<Pending>) {
        self.queue().put_back(commands);
    }

    /// Fails what has been in the queue for too long.
    pub(super) fn fail_overdue(&self, events: &impl Events) {
        let limit = self.settings.command_timeout;
        let now = Time::now();
        let overdue = |pending: &Pending| now.since(pending.submitted) > limit;
        let failed = self.take_failing(overdue, events);
        if !failed.is_empty() {
            finish_all(failed, &no_answer(&limit), events);
        }
    }

    /// Whether releases were held back just now.
    pub(super) fn has_releases_waiting(&self) -> bool {
        let queue = self.queue();
        queue.ends.front().is_some_and(|first| first.has_waited)
    }

    /// Takes what goes out with the next call, behind the `calls` that are on their way, if it may
    /// go now: all that is queued, in order. While that is little, releases that nobody is known to
    /// wait for let others go first, once, and while one of the calls is on its way.
    ///
    /// Commands for one key go in order of submission: all that are taken are older than all that
    /// stay, but for those that let others go first, and these stay with all that are queued for
    /// their key.
    pub(super) fn take_commands(&self, calls: usize) -> Option<Vec<Pending>> {
        let mut queue = self.queue();
        let length = queue.len();
        let may_go = calls < FEW_CALLS || calls < MAX_CALLS && length >= MAX_COMMANDS;
        if !may_go {
            return None;
        }
        // Shared out among the calls that may go now, so that Redis works on one while we do on another.
        let share = length.div_ceil(FEW_CALLS.saturating_sub(calls).max(1));
        let count = share.clamp(FEW, MAX_COMMANDS);
        let mut taken: Vec<Pending> = std::iter::from_fn(|| queue.pop()).take(count).collect();
        if calls >= FEW_CALLS && taken.iter().any(Pending::is_about_record) {
            queue.put_back(taken);
            return None;
        }
        if length <= FEW {
            let urgent: Vec<LockKey> = taken
                .iter()
                .filter(|pending| !pending.can_wait())
                .map(|pending| pending.key.clone())
                .collect();
            if !urgent.is_empty() || calls > 0 {
                // By key: two commands for one stay in order.
                let (go, mut wait): (Vec<_>, Vec<_>) = taken
                    .into_iter()
                    .partition(|pending| urgent.contains(&pending.key));
                for pending in &mut wait {
                    pending.has_waited = true;
                }
                queue.put_back(wait);
                taken = go;
            }
        }
        drop(queue);
        for pending in &mut taken {
            pending.attempts += 1;
        }
        (!taken.is_empty()).then_some(taken)
    }

    /// Fails what `fails` at the front of the queue, but not what ends a hold: that stays for as
    /// long as there may be a lock.
    pub(super) fn fail_first(
        &self,
        fails: impl Fn(&Pending) -> bool,
        error: &Error,
        events: &impl Events,
    ) {
        finish_all(self.take_failing(fails, events), error, events);
    }

    fn take_failing(&self, fails: impl Fn(&Pending) -> bool, events: &impl Events) -> Vec<Pending> {
        let now = Time::now();
        let mut queue = self.queue();
        let mut failing: Vec<Pending> = take_while(&mut queue.others, fails).collect();
        let over = take_while(&mut queue.ends, |end| self.has_expired(end, now));
        let over: Vec<Pending> = over.collect();
        // What was never sent needs no release.
        let needless = queue.take_needless(&failing);
        failing.extend(needless);
        // The slots are asked, and a slot that submits a command waits for the queue.
        drop(queue);
        let (over, go_on) = over
            .into_iter()
            .partition(|end| self.is_over(end, now, events));
        self.put_back(go_on);
        failing.extend::<Vec<_>>(over);
        failing
    }

    /// Whether there is no lock left to release or to complete. A lease that is renewed lasts for longer than a time to live.
    pub(super) fn is_over(&self, pending: &Pending, now: Time, events: &impl Events) -> bool {
        let is_held = || match pending.command {
            Command::Complete { token } => events.is_held(&pending.key, token),
            _ => false,
        };
        self.has_expired(pending, now) && !is_held()
    }

    fn has_expired(&self, pending: &Pending, now: Time) -> bool {
        now.since(pending.submitted) > self.settings.ttl
    }

    /// The commands of a call fail, but for those that end a hold: they are put back.
    pub(super) fn fail(
        &self,
        (sent_at, commands): (Time, Vec<Pending>),
        error: &Error,
        is_unknown: bool,
        events: &impl Events,
    ) {
        let (ends, others) = commands.into_iter().partition(Pending::ends_hold);
        self.put_back(ends);
        for pending in others {
            let unknown = is_unknown || pending.may_have_been_carried_out_before();
            let error = error.clone();
            pending.finish(sent_at, Err(Failure { error, unknown }), events);
        }
    }
}

impl Pending {
    /// Whether it is worth trying again for as long as there may be a lock.
    pub(super) fn ends_hold(&self) -> bool {
        matches!(
            self.command,
            Command::Release { .. } | Command::Complete { .. }
        )
    }

    fn is_about_record(&self) -> bool {
        self.key.kind() == Kind::Record
    }

    /// Whether nobody waits for what this does.
    fn can_wait(&self) -> bool {
        matches!(self.command, Command::Release { wanted: false, .. })
            && self.farewell.receipt.is_none()
            && !self.has_waited
    }

    /// Whether the token of an acquire may be known to Redis.
    fn is_known_there(&self) -> bool {
        self.attempts > 0 || self.is_asked_again()
    }

    /// By an attempt before the one that failed.
    pub(super) fn may_have_been_carried_out_before(&self) -> bool {
        self.attempts > 1 || self.is_asked_again()
    }

    fn is_asked_again(&self) -> bool {
        matches!(self.command, Command::Acquire { again: true, .. })
    }

    pub(super) fn finish(
        self,
        sent_at: Time,
        result: Result<Answer, Failure>,
        events: &impl Events,
    ) {
        let settled = match result {
            // Perhaps by an earlier attempt, whose answer was lost.
            Ok(Answer::Released { had_it: false, .. }) if self.attempts > 1 => {
                Err(Error::of(ErrorKind::Unavailable))
            }
            _ => settled(&result),
        };
        events.answered(&self.key, self.command, Outcome { sent_at, result });
        // The next request of whoever waits for this is to find the slot as it now is.
        if let Some(receipt) = self.farewell.receipt {
            shielded(|| receipt.send(settled));
        }
    }
}

/// They stayed in the queue, this time.
fn finish_all(failed: Vec<Pending>, error: &Error, events: &impl Events) {
    let now = Time::now();
    for pending in failed {
        let unknown = pending.is_known_there();
        let error = error.clone();
        pending.finish(now, Err(Failure { error, unknown }), events);
    }
}

pub(super) fn no_answer(limit: &Duration) -> Error {
    Error::new(
        ErrorKind::Unavailable,
        format!("Redis did not answer within {limit:?}"),
    )
}

#[cfg(all(test, feature = "properties"))]
mod properties;

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::collections::HashSet;

    use uuid::Uuid;

    use super::super::{Address, Settings};
    use super::*;
    use crate::store::Notice;

    pub(super) const MINUTE: Duration = Duration::from_secs(60);

    pub(super) fn store(command_timeout: Duration) -> RedisStore {
        let settings = Settings {
            manager: Uuid::new_v4(),
            prefix: "lock:".to_owned(),
            ttl: MINUTE,
            grant_ttl: MINUTE,
            command_timeout,
            quarantine: false,
        };
        let address = Address::parse("redis://127.0.0.1:1", None).unwrap();
        RedisStore::new(settings, address)
    }

    fn key(number: usize) -> LockKey {
        LockKey::new(format!("{number}")).unwrap()
    }

    fn acquire(token: u64) -> Command {
        Command::Acquire {
            token,
            queue: false,
            watch: false,
            again: false,
        }
    }

    fn release(token: u64) -> Command {
        let wanted = false;
        Command::Release { token, wanted }
    }

    impl RedisStore {
        pub(super) fn put(&self, key_number: usize, command: Command) {
            let farewell = Farewell::default();
            assert!(
                self.submit(Time::now(), &key(key_number), command, farewell)
                    .is_none()
            );
        }

        /// Where each queued command lies.
        fn places(&self) -> HashSet<*const Pending> {
            let queue = self.queue();
            let all = queue.ends.iter().chain(&queue.others);
            all.map(std::ptr::from_ref).collect()
        }
    }

    /// Counts the answers.
    #[derive(Default)]
    pub(super) struct Answers(Cell<usize>);

    impl Events for Answers {
        fn answered(&self, _: &LockKey, _: Command, outcome: Outcome) {
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
        let (store, answers) = (store(Duration::ZERO), Answers::default());
        let (releases, fresh) = (1000, 10);
        for number in 0..releases {
            store.put(number, release(number as u64));
        }
        let mut left = store.places();
        for number in releases..releases + fresh {
            store.put(number, acquire(number as u64));
        }
        // All of them are overdue. Those that fail are found without a look at the others.
        let looks = Cell::new(0);
        let fails = |_: &Pending| {
            looks.set(looks.get() + 1);
            looks.get() <= fresh / 2
        };
        let failing = store.take_failing(fails, &answers);
        assert_eq!((failing.len(), looks.get()), (fresh / 2, fresh / 2 + 1));
        store.fail_overdue(&answers);
        assert_eq!(answers.0.get(), fresh / 2);
        assert_eq!(store.places(), left, "none was moved");
        // The same holds if a call has to be sent again.
        while let Some(commands) = store.take_commands(0) {
            let rest = store.places();
            assert!(rest.is_subset(&left), "none was moved");
            store.put_back(commands);
            assert!(rest.is_subset(&store.places()), "none was moved");
            store.take_commands(0).unwrap();
            store.fail_overdue(&answers);
            left = store.places();
            assert_eq!(left, rest, "none was moved");
        }
        assert_eq!(answers.0.get(), fresh / 2);
    }

    #[test]
    fn what_was_never_sent_fails_with_its_release_and_what_was_sent_without() {
        let (store, answers) = (store(MINUTE), Answers::default());
        store.put(1, acquire(1));
        store.put(1, release(1));
        let sent = store.take_commands(0).unwrap();
        assert_eq!(sent.len(), 2);
        store.put_back(sent);
        store.put(2, acquire(2));
        store.put(3, release(3));
        store.put(2, release(2));
        store.fail_first(|_| true, &closed(), &answers);
        assert_eq!(answers.0.get(), 3);
        let left = store.take_commands(0).unwrap();
        let left: Vec<Command> = left.iter().map(|pending| pending.command).collect();
        assert_eq!(left, [release(1), release(3)]);
    }

    pub(super) fn closed() -> Error {
        Error::of(ErrorKind::Unavailable)
    }

    #[test]
    fn a_look_for_acquires_goes_no_further_back_than_the_last_one() {
        let (store, mut seen) = (store(MINUTE), 0);
        let mut look = || store.queue().has_new_acquire(&mut seen);
        assert!(!look());
        store.put(1, acquire(1));
        assert!(look());
        assert!(!look());
        store.put(2, Command::Renew { token: 2 });
        store.put(3, release(3));
        assert!(!look());
        store.put(4, acquire(4));
        store.put(5, Command::Renew { token: 5 });
        assert!(look());
    }

    #[test]
    fn more_calls_are_on_their_way_only_while_each_is_full() {
        let store = store(MINUTE);
        let commands = MAX_CALLS * MAX_COMMANDS + MAX_COMMANDS / 2;
        for number in 0..commands {
            store.put(number, Command::Renew { token: 1 });
        }
        let lengths: Vec<usize> = (0..)
            .map_while(|calls| Some(store.take_commands(calls)?.len()))
            .collect();
        assert_eq!(lengths, [MAX_COMMANDS; MAX_CALLS]);
        assert_eq!(store.queue().len(), MAX_COMMANDS / 2);
        // The rest waits for the calls before it, as long as two are on their way.
        assert!(store.take_commands(FEW_CALLS).is_none());
        assert!(store.take_commands(FEW_CALLS - 1).is_some());
    }

    #[test]
    fn records_are_on_their_way_in_few_calls_however_many_are_queued() {
        let store = store(MINUTE);
        for number in 0..4 * MAX_COMMANDS {
            store.put(number, Command::Renew { token: 1 });
        }
        let record = LockKey::record(["a"]).unwrap();
        store.submit(Time::now(), &record, acquire(1), Farewell::default());
        for number in 0..MAX_COMMANDS {
            store.put(number, Command::Renew { token: 1 });
        }
        assert!(store.take_commands(MAX_CALLS - 1).is_some());
        for _ in 0..3 {
            assert!(store.take_commands(FEW_CALLS).is_some());
        }
        assert!(store.take_commands(FEW_CALLS).is_none());
        assert!(store.take_commands(FEW_CALLS - 1).is_some());
    }
}
