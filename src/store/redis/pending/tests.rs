//! What becomes of a release that finds that processes wait.

use super::*;

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
