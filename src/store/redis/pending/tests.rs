//! What becomes of a release that finds that processes wait.

use std::sync::Mutex;

use super::*;
use crate::mode::Mode;
use crate::store::Notice;

fn release(contended: bool, queued: bool, attempts: u32) -> Pending {
    let (reply, _) = tokio::sync::oneshot::channel();
    Pending {
        number: 5,
        key: LockKey::new("a").unwrap(),
        command: Command::Release {
            token: 7,
            contended,
            queued,
            reply: Some(reply),
        },
        submitted: Time::from_nanos(9),
        attempts,
        had_it: false,
        may_be_overtaken: false,
        moving: None,
    }
}

#[test]
fn a_release_that_is_to_grant_the_lock_is_as_if_it_had_been_submitted_so() {
    for attempts in 1..3 {
        let mut pending = release(false, false, attempts);
        pending.grant_next();
        // Its caller waits still, and a reply that it had nothing is true.
        let Command::Release {
            token: 7,
            contended: true,
            queued: false,
            reply: Some(_),
        } = pending.command
        else {
            panic!("{pending:?}");
        };
        assert_eq!((pending.number, pending.attempts), (5, 0));
        assert_eq!(pending.submitted, Time::from_nanos(9));
        assert!(!pending.may_have_been_carried_out_before());
        assert!(!pending.can_wait());
    }
}

#[test]
fn a_release_that_no_process_and_no_caller_waits_for_can_wait_until_it_is_to_grant() {
    let mut pending = release(false, false, 0);
    assert!(!pending.can_wait());
    if let Command::Release { reply, .. } = &mut pending.command {
        *reply = None;
    }
    assert!(pending.can_wait());
    pending.grant_next();
    assert!(!pending.can_wait());
}

fn take() -> Pending {
    let command = Command::Acquire {
        token: 7,
        mode: Mode::Exclusive,
        queue: false,
        watch: false,
        again: false,
    };
    let mut pending = Pending::new(LockKey::new("a").unwrap(), command, Time::from_nanos(9));
    pending.attempts = 1;
    pending
}

fn server(port: u16) -> ToldAddress {
    let host = "b".to_owned();
    ToldAddress { host, port }
}

fn ask(fence_left: bool) -> Redirect {
    let to = server(7);
    Redirect::Ask { to, fence_left }
}

#[test]
fn a_command_asks_one_server_and_then_starts_again() {
    let at = Time::from_nanos(10);
    let mut pending = take();
    assert!(pending.redirect(at, ask(true)));
    assert_eq!(pending.asks(), Some(&server(7)));
    assert!(pending.moving.as_ref().unwrap().fence_left);
    // No server has carried it out.
    assert!(!pending.is_known_there());
    for redirect in [ask(false), Redirect::Later] {
        pending.attempts += 1;
        assert!(!pending.redirect(at, redirect));
        assert_eq!(pending.asks(), None);
        assert!(!pending.moving.as_ref().unwrap().fence_left);
        assert!(!pending.is_known_there());
        pending.attempts += 1;
        assert!(pending.redirect(at, ask(false)));
    }
}

/// Events that keep the last outcome.
#[derive(Default)]
struct Last(Mutex<Option<Outcome>>);

impl Events for Last {
    fn replied(&self, _: &LockKey, _: Command<(), ()>, outcome: Outcome) {
        *self.0.lock().unwrap() = Some(outcome);
    }
    fn notice(&self, _: &LockKey, _: Notice) {}
    fn reconnected(&self) {}
    fn all_changed(&self) {}
    fn is_held(&self, _: &LockKey, _: u64) -> bool {
        false
    }
    fn awaits_grants(&self) -> bool {
        false
    }
}

#[test]
fn a_lease_counts_from_the_write_that_took_the_lock_and_not_from_its_fence() {
    let [first, second, third] = [10, 20, 30].map(Time::from_nanos);
    let mut pending = take();
    assert!(pending.redirect(first, ask(false)));
    pending.attempts += 1;
    let fence = |at| Redirect::Fence {
        contended: false,
        at,
    };
    assert!(pending.redirect(second, fence(None)));
    // It is to be released, whatever becomes of the fence.
    assert!(pending.asks().is_none() && pending.is_known_there());
    assert!(pending.may_have_been_carried_out_before());
    pending.attempts += 1;
    assert!(pending.redirect(third, fence(Some(server(7)))));
    assert_eq!(pending.asks(), Some(&server(7)));
    pending.attempts += 1;
    assert!(!pending.redirect(third, Redirect::Later));
    assert!(pending.may_have_been_carried_out_before());
    let last = Last::default();
    let acquired = Reply::Acquired {
        fence: 1,
        contended: false,
    };
    pending.finish(third, Ok(acquired), &last);
    let outcome = last.0.into_inner().unwrap().unwrap();
    assert_eq!(outcome.sent_at, second);
}

#[test]
fn a_release_that_waited_for_its_slot_may_find_that_another_went_first() {
    let (reply, mut settled) = tokio::sync::oneshot::channel();
    let command = Command::Release {
        token: 7,
        contended: false,
        queued: false,
        reply: Some(reply),
    };
    let mut pending = Pending::new(LockKey::new("a").unwrap(), command, Time::from_nanos(9));
    let at = Time::from_nanos(10);
    (pending.attempts, pending.may_be_overtaken) = (1, true);
    let released = Reply::Released {
        had_it: false,
        granted: false,
    };
    pending.finish(at, Ok(released), &Last::default());
    let error = settled.try_recv().unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
}

#[test]
fn an_acquire_that_was_given_up_is_released_at_the_server_that_was_asked() {
    let mut pending = take();
    let at = Time::from_nanos(10);
    let contended = |release: &Pending| match release.command {
        Command::Release {
            token: 7,
            contended,
            ..
        } => contended,
        _ => panic!("{release:?}"),
    };
    let release = pending.given_up().unwrap();
    assert!(release.asks().is_none() && contended(&release));
    pending.redirect(at, ask(true));
    let release = pending.given_up().unwrap();
    assert_eq!(release.asks(), Some(&server(7)));
    assert!(!contended(&release));
    assert!(release.given_up().is_none());
}
