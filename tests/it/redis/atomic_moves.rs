//! A slot of a cluster that moves with all its keys at once, as in Valkey from 9.0 on.

use std::time::Duration;

use super::accounts::Accounts;
use super::cluster::{connect, exclude_each_other};
use crate::support::random::Random;
use crate::support::{Cluster, eventually, soon};
use tower_distributed_lock::{LockKey, LostReason, Once};

/// A cluster, if its servers can move a slot at once. Otherwise says so.
async fn cluster() -> Option<Cluster> {
    let cluster = Cluster::start(2, 0).await;
    if !cluster.moves_at_once().await {
        println!("NOT RUN: these servers know no CLUSTER MIGRATESLOTS (Valkey has it from 9.0 on)");
        return None;
    }
    Some(cluster)
}

#[tokio::test(flavor = "multi_thread")]
async fn holders_waiters_and_records_go_along_with_their_slot() {
    let Some(cluster) = cluster().await else {
        return;
    };
    let (locks, others) = (connect(&cluster).await, connect(&cluster).await);
    let slot = cluster.slot("{t}").await;
    let (from, to) = (cluster.owner(slot), 1 - cluster.owner(slot));
    let guard = locks.try_acquire("{t}:held").await.unwrap();
    let shared = locks.try_acquire_shared("{t}:shared").await.unwrap();
    let day = Duration::from_secs(24 * 3600);
    let once = |run| locks.once("{t}:once", day, move |_| async move { Ok::<_, ()>(run) });
    assert_eq!(once(1).await.unwrap(), Once::Ran(1));
    let waiting = tokio::spawn({
        let others = others.clone();
        async move { others.acquire("{t}:held", Duration::from_secs(50)).await }
    });
    eventually("it waits", || async { others.stats().queued == 1 }).await;

    cluster.move_at_once(slot, from, to).await;

    assert_eq!(once(2).await.unwrap(), Once::AlreadyDone);
    let lost: Option<LostReason> = guard.lease().lost_reason();
    assert_eq!(lost, None);
    let token = guard.fencing_token();
    guard.release().await.unwrap();
    let next = soon("the lock is handed on", waiting).await.unwrap();
    let next = next.unwrap();
    assert!(next.fencing_token() > token);
    next.release().await.unwrap();
    assert!(others.try_acquire("{t}:shared").await.is_err());
    shared.release().await.unwrap();
    for key in ["{t}:held", "{t}:shared", "{t}:new"] {
        exclude_each_other(&locks, &others, LockKey::new(key).unwrap()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_two_hold_a_lock_of_a_slot_that_moves_at_once_and_back() {
    let Some(cluster) = cluster().await else {
        return;
    };
    let slot = cluster.slot("{t}").await;
    let mut accounts = Accounts::new(4);
    for node in 0..2 {
        let locks = connect(&cluster).await;
        for number in 0..6 {
            let name = |account| format!("{{t}}:{account}");
            let wait = |random: &mut Random| match random.below(2) {
                0 => Some(Duration::from_millis(random.below(2000))),
                _ => None,
            };
            accounts.add_client(&locks, node * 100 + number, name, wait);
        }
    }
    let mut from = cluster.owner(slot);
    for _ in 0..8 {
        accounts.some_are_taken().await;
        cluster.move_at_once(slot, from, 1 - from).await;
        accounts.some_are_taken().await;
        from = 1 - from;
    }
    accounts.end().await;
}
