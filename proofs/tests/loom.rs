//! The files of `src/sync`, which synchronise by hand, through every order of events: on loom's
//! primitives.
//!
//! Each scenario also runs with something broken, to show that it would notice.
#![allow(dead_code, unreachable_pub, clippy::duplicate_mod)]

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use loom::sync::{Condvar, Mutex};
use loom::thread;

/// Stands in for the primitives that the crate uses.
mod primitives {
    use std::future::poll_fn;
    use std::task::{Poll, Waker};

    use loom::sync::atomic::AtomicUsize;
    pub use loom::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

    #[derive(Debug, Default)]
    pub struct AtomicWaker(loom::future::AtomicWaker);

    impl AtomicWaker {
        pub fn register(&self, waker: &Waker) {
            self.0.register_by_ref(waker);
        }

        pub fn wake(&self) {
            self.0.wake();
        }
    }

    /// Promises a waiter what tokio's `Notify` does.
    #[derive(Debug, Default)]
    pub struct Notify {
        permit: AtomicBool,
        calls: AtomicUsize,
        task: AtomicWaker,
    }

    impl Notify {
        pub fn new() -> Self {
            Self::default()
        }

        pub fn notify_one(&self) {
            self.permit.swap(true, Ordering::AcqRel);
            self.task.wake();
        }

        pub fn notify_waiters(&self) {
            self.calls.fetch_add(1, Ordering::AcqRel);
            self.task.wake();
        }

        pub fn notified(&self) -> impl Future<Output = ()> {
            let calls = || self.calls.fetch_add(0, Ordering::AcqRel);
            let before = calls();
            poll_fn(move |cx| {
                self.task.register(cx.waker());
                match self.permit.swap(false, Ordering::AcqRel) || calls() != before {
                    true => Poll::Ready(()),
                    false => Poll::Pending,
                }
            })
        }
    }
}

#[path = "../../src/sync"]
mod real {
    pub mod doorbell;
    pub mod lease_expiry;
    pub mod nested_waker;
    pub mod wake_at;

    use super::primitives;
}

/// One task, and threads that may wake it.
#[derive(Default)]
struct World {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    is_woken: bool,
    threads: usize,
}

impl World {
    fn new() -> Arc<Self> {
        Arc::default()
    }

    fn spawn(self: &Arc<Self>, run: impl FnOnce() + 'static) {
        self.state.lock().unwrap().threads += 1;
        let world = Arc::clone(self);
        thread::spawn(move || {
            run();
            world.state.lock().unwrap().threads -= 1;
            world.changed.notify_one();
        });
    }

    /// Runs the task. Panics if it sleeps and no thread is left to wake it.
    fn run<T>(self: &Arc<Self>, task: impl Future<Output = T>) -> T {
        let mut task = pin!(task);
        let waker = Waker::from(Arc::clone(self));
        loop {
            if let Poll::Ready(result) = task.as_mut().poll(&mut Context::from_waker(&waker)) {
                return result;
            }
            let mut state = self.state.lock().unwrap();
            while !state.is_woken && state.threads > 0 {
                state = self.changed.wait(state).unwrap();
            }
            let is_woken = std::mem::take(&mut state.is_woken);
            drop(state);
            assert!(is_woken, "asleep for ever");
        }
    }
}

impl Wake for World {
    fn wake(self: Arc<Self>) {
        self.state.lock().unwrap().is_woken = true;
        self.changed.notify_one();
    }
}

/// Explores as many interruptions as a bug may reasonably need. All that can be would take minutes.
fn check(scenario: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(2);
    model.check(scenario);
}

/// A number of which one operation is broken.
macro_rules! broken {
    ($atomic:ident($number:ty) { $($operations:tt)* }) => {
        #[derive(Debug, Default)]
        pub struct $atomic(crate::primitives::$atomic);

        impl std::ops::Deref for $atomic {
            type Target = crate::primitives::$atomic;

            fn deref(&self) -> &Self::Target {
                &self.0
            }
        }

        impl $atomic {
            pub fn new(number: $number) -> Self {
                Self(crate::primitives::$atomic::new(number))
            }

            $($operations)*
        }
    };
}

// A waker that keeps wake-ups within its task.

/// Two threads each wake a task that waits for both, at any time, each once.
macro_rules! a_task_is_woken {
    ($version:ident) => {
        check(|| {
            let world = World::new();
            let done = Arc::new([AtomicBool::new(false), AtomicBool::new(false)]);
            let nested = $version::nested_waker::NestedWaker::new();
            let wakers = RefCell::new(None);
            world.run(poll_fn(|cx| {
                nested.poll(cx, |cx| {
                    wakers.borrow_mut().get_or_insert_with(|| {
                        for i in 0..2 {
                            let (done, waker) = (Arc::clone(&done), cx.waker().clone());
                            world.spawn(move || {
                                done[i].store(true, Ordering::Relaxed);
                                waker.wake();
                            });
                        }
                    });
                    match done.iter().all(|done| done.load(Ordering::Relaxed)) {
                        true => Poll::Ready(()),
                        false => Poll::Pending,
                    }
                })
            }));
        })
    };
}

#[test]
fn no_wake_up_is_lost() {
    a_task_is_woken!(real);
}

#[path = "../../src/sync"]
mod forgets_wake_ups {
    pub mod nested_waker;

    mod primitives {
        pub use crate::primitives::*;

        broken!(AtomicU8(u8) {
            pub fn fetch_or(&self, _: u8, order: Ordering) -> u8 {
                self.load(order)
            }
        });
    }
}

#[test]
#[should_panic = "asleep for ever"]
fn a_wake_up_that_is_forgotten_is_noticed() {
    a_task_is_woken!(forgets_wake_ups);
}

#[path = "../../src/sync"]
mod leaves_it_to_the_first {
    pub mod nested_waker;

    mod primitives {
        pub use crate::primitives::*;

        broken!(AtomicU8(u8) {
            pub fn fetch_or(&self, bits: u8, order: Ordering) -> u8 {
                let before = self.load(Ordering::Acquire);
                match before & bits {
                    0 => self.0.fetch_or(bits, order),
                    _ => before,
                }
            }
        });
    }
}

#[test]
#[should_panic = "asleep for ever"]
fn a_second_wake_up_that_hands_nothing_over_is_noticed() {
    a_task_is_woken!(leaves_it_to_the_first);
}

#[path = "../../src/sync"]
mod relaxed {
    pub mod nested_waker;

    mod primitives {
        pub use crate::primitives::*;

        broken!(AtomicU8(u8) {
            pub fn fetch_or(&self, bits: u8, _: Ordering) -> u8 {
                self.0.fetch_or(bits, Ordering::Relaxed)
            }
        });
    }
}

#[test]
#[should_panic = "asleep for ever"]
fn a_relaxed_wake_up_is_noticed() {
    a_task_is_woken!(relaxed);
}

// A bell at a queue.

/// Two threads each put something into a queue. A task takes things out until it has both.
fn a_queue_is_emptied<B: Bell>(
    submit: impl Fn(&B, &dyn Fn()) + Copy + Sync + Send + 'static,
    take: impl Fn(&B, &dyn Fn() -> usize) -> usize + Copy + Sync + Send + 'static,
) {
    check(move || {
        let world = World::new();
        let bell = Arc::new(B::default());
        let queue = Arc::new(Mutex::new(0));
        for _ in 0..2 {
            let (bell, queue) = (Arc::clone(&bell), Arc::clone(&queue));
            world.spawn(move || submit(&bell, &|| *queue.lock().unwrap() += 1));
        }
        let mut taken = 0;
        loop {
            taken += take(&bell, &|| std::mem::take(&mut *queue.lock().unwrap()));
            if taken == 2 {
                return;
            }
            world.run(bell.notified());
        }
    });
}

trait Bell: Default + Sync + Send + 'static {
    fn notify(&self);
    fn drain(&self, take: &dyn Fn() -> usize) -> usize;
    fn notified(&self) -> impl Future<Output = ()>;
}

macro_rules! impl_bell {
    ($version:ident) => {
        impl Bell for $version::doorbell::Doorbell {
            fn notify(&self) {
                self.notify();
            }

            fn drain(&self, take: &dyn Fn() -> usize) -> usize {
                self.drain(take)
            }

            fn notified(&self) -> impl Future<Output = ()> {
                self.notified()
            }
        }
    };
}

impl_bell!(real);
impl_bell!(never_listens_again);

fn put_and_notify(bell: &impl Bell, put: &dyn Fn()) {
    put();
    bell.notify();
}

fn drain(bell: &impl Bell, take: &dyn Fn() -> usize) -> usize {
    bell.drain(take)
}

type Doorbell = real::doorbell::Doorbell;

#[test]
fn nothing_stays_in_the_queue() {
    a_queue_is_emptied::<Doorbell>(put_and_notify, drain);
}

#[test]
#[should_panic = "asleep for ever"]
fn a_bell_that_is_rung_too_early_is_noticed() {
    let notify_and_put = |bell: &Doorbell, put: &dyn Fn()| {
        bell.notify();
        put();
    };
    a_queue_is_emptied(notify_and_put, drain);
}

#[test]
#[should_panic = "asleep for ever"]
fn a_look_before_the_bell_can_ring_again_is_noticed() {
    let take_and_drain = |bell: &Doorbell, take: &dyn Fn() -> usize| {
        let taken = take();
        bell.drain(|| ());
        taken
    };
    a_queue_is_emptied(put_and_notify, take_and_drain);
}

#[path = "../../src/sync"]
mod never_listens_again {
    pub mod doorbell;

    mod primitives {
        pub use crate::primitives::*;

        broken!(AtomicBool(bool) {
            pub fn store(&self, _: bool, _: Ordering) {}
        });
    }
}

#[test]
#[should_panic = "asleep for ever"]
fn a_bell_that_rings_only_once_is_noticed() {
    a_queue_is_emptied::<never_listens_again::doorbell::Doorbell>(put_and_notify, drain);
}

// An alarm at the earliest of many times.

type Times = [Mutex<u64>; 2];

/// Mistakes in the order of two steps.
#[derive(Clone, Copy, PartialEq)]
enum Slip {
    None,
    /// The alarm is set before the time is changed.
    EarlyWake,
    /// The alarm is cleared after the times were looked at.
    LateClear,
}

/// A task means to sleep until 100. One thread asks for a look at 30, which is now, another for one
/// at 50. The task serves the first and sleeps until the second.
macro_rules! the_task_is_woken_in_time {
    ($version:ident, $slip:expr) => {
        check(|| {
            let world = World::new();
            let wake_at = Arc::new($version::wake_at::WakeAt::new());
            let times: Arc<Times> = Arc::new([Mutex::new(100), Mutex::new(100)]);
            let change = |place: usize, at: u64| {
                let (wake_at, times) = (Arc::clone(&wake_at), Arc::clone(&times));
                world.spawn(move || {
                    if $slip == Slip::EarlyWake {
                        wake_at.wake_by(at);
                    }
                    let mut time = times[place].lock().unwrap();
                    *time = at;
                    if $slip != Slip::EarlyWake {
                        wake_at.wake_by(at);
                    }
                });
            };
            change(0, 50);
            change(1, 30);
            loop {
                if $slip != Slip::LateClear {
                    wake_at.clear();
                }
                let now = 30;
                for time in times.iter() {
                    let mut time = time.lock().unwrap();
                    if *time <= now {
                        *time = 100;
                    }
                }
                let next = times
                    .iter()
                    .map(|time| *time.lock().unwrap())
                    .min()
                    .unwrap();
                if $slip == Slip::LateClear {
                    wake_at.clear();
                }
                wake_at.set(next);
                match next {
                    50 => return,
                    100 => world.run(wake_at.notified()),
                    _ => {}
                }
            }
        })
    };
}

#[test]
fn a_task_sleeps_until_the_earliest_time() {
    the_task_is_woken_in_time!(real, Slip::None);
}

#[test]
#[should_panic = "asleep for ever"]
fn an_alarm_that_is_set_too_early_is_noticed() {
    the_task_is_woken_in_time!(real, Slip::EarlyWake);
}

#[test]
#[should_panic = "asleep for ever"]
fn an_alarm_that_is_cleared_too_late_is_noticed() {
    the_task_is_woken_in_time!(real, Slip::LateClear);
}

#[path = "../../src/sync"]
mod never_clears {
    pub mod wake_at;

    mod primitives {
        pub use crate::primitives::*;

        broken!(AtomicU64(u64) {
            pub fn store(&self, _: u64, _: Ordering) {}
        });
    }
}

#[test]
#[should_panic = "asleep for ever"]
fn an_alarm_that_is_never_cleared_is_noticed() {
    the_task_is_woken_in_time!(never_clears, Slip::None);
}

// The term of a lease.

type LeaseExpiry = real::lease_expiry::LeaseExpiry;

const EXPIRED: u8 = 1;
const RELEASED: u8 = 4;

fn late(clock: &AtomicU64) -> impl Fn(u64) -> Option<u8> {
    // An operation that sees the last change: a clock has one time for all.
    |until| (clock.fetch_add(0, Ordering::AcqRel) >= until).then_some(EXPIRED)
}

/// A lease runs out at 10 while one thread prolongs it until 20, and another looks twice.
fn a_lease_runs_out(
    look: impl Fn(&LeaseExpiry, &dyn Fn(u64) -> Option<u8>) -> u8 + Sync + Send + 'static,
) {
    check(move || {
        let expiry = Arc::new(LeaseExpiry::new(10));
        let clock = Arc::new(AtomicU64::new(9));
        let renewal = {
            let (expiry, clock) = (Arc::clone(&expiry), Arc::clone(&clock));
            thread::spawn(move || expiry.extend(20, late(&clock)))
        };
        clock.fetch_add(1, Ordering::AcqRel);
        let ended = look(&expiry, &late(&clock));
        renewal.join().unwrap();
        let still = look(&expiry, &late(&clock));
        assert!(ended == 0 || ended == still, "revived");
    });
}

#[test]
fn a_lease_that_was_seen_to_run_out_does_not_come_back() {
    a_lease_runs_out(|expiry, late| expiry.ended(late));
}

#[test]
#[should_panic = "revived"]
fn a_lease_that_comes_back_is_noticed() {
    // The end that was seen is not written down.
    a_lease_runs_out(|expiry, late| late(expiry.valid_until()).unwrap_or(0));
}

/// A lease runs out at 10 while one thread prolongs it until 20, and another sees it run out, or
/// else ends it. A third waits for its end, which is at 20 if no other thread tells of one.
macro_rules! a_lease_is_waited_for {
    ($version:ident) => {
        check(|| {
            let world = World::new();
            let expiry = Arc::new($version::lease_expiry::LeaseExpiry::new(10));
            let clock = Arc::new(AtomicU64::new(9));
            world.spawn({
                let (expiry, clock) = (Arc::clone(&expiry), Arc::clone(&clock));
                move || expiry.extend(20, late(&clock))
            });
            world.spawn({
                let (expiry, clock) = (Arc::clone(&expiry), Arc::clone(&clock));
                move || {
                    clock.fetch_add(1, Ordering::AcqRel);
                    if expiry.ended(late(&clock)) == 0 {
                        expiry.end(RELEASED);
                    }
                }
            });
            loop {
                let ended = expiry.notified();
                if expiry.ended(late(&clock)) != 0 {
                    return;
                }
                // Until 10, it may sleep: it will look again.
                if expiry.valid_until() == 20 {
                    world.run(ended);
                } else {
                    thread::yield_now();
                }
            }
        })
    };
}

#[test]
fn who_waits_for_the_end_of_a_lease_is_told() {
    a_lease_is_waited_for!(real);
}

#[path = "../../src/sync"]
mod tells_nobody {
    pub mod lease_expiry;

    mod primitives {
        pub use crate::primitives::{AtomicU8, AtomicU64, Ordering};

        #[derive(Default)]
        pub struct Notify(crate::primitives::Notify);

        impl Notify {
            pub fn new() -> Self {
                Self::default()
            }

            pub fn notify_waiters(&self) {}

            pub fn notified(&self) -> impl Future<Output = ()> {
                self.0.notified()
            }
        }
    }
}

#[test]
#[should_panic = "asleep for ever"]
fn an_end_that_nobody_is_told_of_is_noticed() {
    a_lease_is_waited_for!(tells_nobody);
}

/// Two threads end a lease, for different reasons. A third waits for that.
macro_rules! a_lease_ends {
    ($version:ident) => {
        check(|| {
            let world = World::new();
            let expiry = Arc::new($version::lease_expiry::LeaseExpiry::new(10));
            let clock = AtomicU64::new(9);
            for why in [2, RELEASED] {
                let expiry = Arc::clone(&expiry);
                world.spawn(move || expiry.end(why));
            }
            loop {
                let notified = expiry.notified();
                let ended = expiry.ended(late(&clock));
                if ended != 0 {
                    expiry.end(3);
                    expiry.extend(20, late(&clock));
                    assert_eq!(expiry.ended(late(&clock)), ended, "another reason");
                    return;
                }
                world.run(notified);
            }
        })
    };
}

#[test]
fn a_lease_ends_once_and_that_is_told() {
    a_lease_ends!(real);
}
