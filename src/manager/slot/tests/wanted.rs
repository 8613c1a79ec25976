//! For a moment, a slot remembers that another process wanted the lock.

use super::*;

/// How long it does: a fiftieth of the time to live.
const MEMORY: Duration = Duration::from_millis(100);

#[test]
fn a_lock_that_another_process_gave_is_released_to_the_next_and_acquired_in_the_queue() {
    let mut table = Table::queued();
    table.granted(1, Duration::ZERO);
    assert_eq!(table.finish(), ["release 1 to the next"]);
    assert_eq!(table.request('b', true), ["acquire 3 queue"]);
    assert_eq!(
        table.acquire_replied(3, Duration::ZERO, ACQUIRED),
        ["grant b 7168"]
    );
    assert_eq!(table.finish(), ["release 3 to the next"]);
}

#[test]
fn a_lock_that_was_free_after_all_is_released_to_the_next() {
    let mut table = Table::new();
    table.request('a', true);
    assert_eq!(
        table.acquire_replied(1, Duration::ZERO, HELD),
        ["acquire 1 queue"]
    );
    table.acquire_replied(1, Duration::ZERO, ACQUIRED);
    assert_eq!(table.finish(), ["release 1 to the next"]);
}

#[test]
fn the_memory_of_a_lock_that_another_process_got_is_short() {
    let mut table = Table::held();
    table.notice(Notice::Contended { token: 1 });
    assert_eq!(table.finish(), ["release 1 to the next"]);
    assert!(table.slot.is_idle() && !table.slot.is_empty());
    assert_eq!(table.slot.next_tick(), Some(table.now + MEMORY));

    assert!(table.pass(MEMORY - Duration::from_millis(1)).is_empty());
    assert!(!table.slot.is_empty());
    assert!(table.pass(Duration::from_millis(1)).is_empty());
    assert!(table.slot.is_empty());
    assert_eq!(table.request('b', true), ["acquire 3"]);
    table.acquire_replied(3, Duration::ZERO, ACQUIRED);
    assert_eq!(table.finish(), ["release 3"]);
    assert!(table.slot.is_empty());
}

#[test]
fn a_request_that_does_not_wait_is_put_into_no_queue() {
    let mut table = Table::queued();
    table.granted(1, Duration::ZERO);
    table.finish();
    assert_eq!(table.request('b', false), ["acquire 3"]);
}

#[test]
fn a_request_in_the_queue_for_which_there_is_no_room_leaves_it() {
    let mut table = Table::queued();
    table.granted(1, Duration::ZERO);
    table.finish();
    table.request('b', true);
    table.has_room = false;
    assert_eq!(
        table.acquire_replied(3, Duration::ZERO, HELD),
        ["reject b QueueFull", "release 3"]
    );
    assert!(table.slot.is_idle());
}
