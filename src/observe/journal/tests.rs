use std::time::Duration;

use super::*;
use crate::manager::LockManager;

fn report(locks: &LockManager) -> JournalReport {
    locks.journal().report(&[], usize::MAX)
}

/// Returns what is told of the only lock.
fn history(locks: &LockManager) -> LockHistory {
    let mut report = report(locks);
    assert_eq!(report.locks.len(), 1);
    report.locks.remove(0)
}

#[tokio::test]
async fn nothing_is_kept_before_an_inspector_is_made() {
    let locks = LockManager::in_memory();
    drop(locks.try_acquire("before").await.unwrap());
    locks.journal();
    assert_eq!(report(&locks).locks.len(), 0);
    drop(locks.try_acquire("after").await.unwrap());
    assert_eq!(history(&locks).key.as_str(), "after");
}

#[tokio::test(start_paused = true)]
async fn a_holder_and_those_who_wait_for_it_are_told_with_their_times() {
    let locks = LockManager::in_memory();
    locks.journal();
    let first = locks.try_acquire("k").await.unwrap();
    let waiting = tokio::spawn({
        let locks = locks.clone();
        async move { locks.acquire("k", Duration::from_secs(60)).await.unwrap() }
    });
    tokio::time::sleep(Duration::from_secs(2)).await;
    drop(first);
    let second = waiting.await.unwrap();
    let told = history(&locks);
    let [one, two] = &told.runs[..] else {
        panic!("{} holders", told.runs.len())
    };
    assert_eq!(one.ended.unwrap().since(one.began), Duration::from_secs(2));
    assert!(one.end == RunEnd::Released && one.path == GrantPath::Uncontended);
    assert!(two.end == RunEnd::Not && two.path == GrantPath::Local);
    assert_eq!(two.fencing_token, second.fencing_token());
    assert_eq!(told.queues.len(), 1);
    assert_eq!(told.queues[0].ended, Some(two.began));
    assert_eq!(told.tally.waits.count(), 2);
    assert_eq!(told.tally.waits.longest(), Duration::from_secs(2));
    drop(second);
}

#[tokio::test]
async fn a_lock_that_went_to_another_process_may_be_told_of_before_its_release() {
    let locks = LockManager::in_memory();
    let journal = locks.journal();
    let guard = locks.try_acquire("k").await.unwrap();
    journal.granted_away(guard.key());
    drop(guard);
    let told = history(&locks);
    assert!(told.runs[0].end == RunEnd::GrantedAway && told.runs[0].ended.is_some());

    drop(locks.try_acquire("k").await.unwrap());
    assert!(history(&locks).runs[1].end == RunEnd::Released);
    journal.granted_away(&told.key);
    assert!(history(&locks).runs[1].end == RunEnd::GrantedAway);
}

#[tokio::test]
async fn brief_holders_in_a_row_are_told_as_one_and_a_loss_is_not() {
    let locks = LockManager::in_memory();
    locks.journal();
    for _ in 0..1000 {
        drop(locks.try_acquire("k").await.unwrap());
    }
    let lost = locks.try_acquire("k").await.unwrap();
    locks.force_release("k").await.unwrap();
    drop(lost);
    let told = history(&locks);
    assert_eq!(told.runs.len(), 2);
    assert_eq!(told.runs[0].holders, 1000);
    assert!(told.runs[1].end == RunEnd::Lost(LostReason::Taken));
    assert_eq!(told.tally.lost, 1);
    assert_eq!(report(&locks).losses.len(), 1);
}

#[tokio::test]
async fn a_lock_that_is_waited_for_takes_the_place_of_a_quiet_one() {
    let locks = LockManager::in_memory();
    locks.journal();
    for number in 0..LOCKS + 1 {
        drop(locks.try_acquire(("quiet", number)).await.unwrap());
    }
    let told = report(&locks);
    assert_eq!(told.locks.len(), LOCKS);
    assert_eq!(
        told.all.waits.count() as usize,
        LOCKS + 1,
        "all are counted"
    );
    let held = locks.try_acquire("wanted").await.unwrap();
    let refused = locks.try_acquire("wanted").await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Held);
    drop(held);
    let told = report(&locks);
    assert_eq!(told.locks.len(), LOCKS);
    let wanted = told.locks.iter().find(|lock| lock.key.as_str() == "wanted");
    let refused = wanted.expect("it is followed").tally.refused;
    assert_eq!(refused[ErrorKind::Held as usize], 1);
}

#[tokio::test]
async fn the_number_of_losses_is_bounded() {
    let locks = LockManager::in_memory();
    locks.journal();
    for _ in 0..LOSSES + 10 {
        let lost = locks.try_acquire("k").await.unwrap();
        locks.force_release("k").await.unwrap();
        drop(lost);
    }
    let told = report(&locks);
    assert_eq!(told.losses.len(), LOSSES);
    assert!(told.losses[0].at >= told.losses[1].at);
    assert_eq!(told.all.lost as usize, LOSSES + 10);
}

#[tokio::test]
async fn those_who_share_a_lock_are_told_as_one_from_the_first_to_the_last() {
    let locks = LockManager::in_memory();
    locks.journal();
    let share = || locks.acquire_shared("k", Duration::from_secs(9));
    let first = share().await.unwrap();
    let second = share().await.unwrap();
    drop(first);
    assert!(history(&locks).runs[0].end == RunEnd::Not);
    let third = share().await.unwrap();
    drop((second, third));
    drop(locks.acquire("k", Duration::from_secs(9)).await.unwrap());
    let told = history(&locks);
    assert_eq!(told.runs.len(), 2);
    assert!(told.runs[0].is_shared && told.runs[0].ended.is_some());
    assert_eq!(told.runs[0].holders, 3);
    assert!(!told.runs[1].is_shared);
}

/// A holder's beginning and its end may be told by two threads, and a queue's as well.
#[tokio::test]
async fn what_was_told_in_the_wrong_order_is_corrected() {
    let (locks, other) = (LockManager::in_memory(), LockManager::in_memory());
    let journal = locks.journal();
    let guard = other.try_acquire("k").await.unwrap();
    journal.lost(guard.lease(), LostReason::Taken);
    journal.held(guard.lease());
    assert_eq!(history(&locks).runs.len(), 1);
    assert!(history(&locks).runs[0].end == RunEnd::Lost(LostReason::Taken));

    journal.waiting(guard.key(), 0);
    journal.waiting(guard.key(), 1);
    assert_eq!(history(&locks).queues[0].ended, None);
    journal.settle(guard.key(), false, false, Time::now());
    assert!(history(&locks).queues[0].ended.is_some());
}
