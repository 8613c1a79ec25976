//! Keys of any text: they go through scripts, messages, patterns and the names of what belongs to a
//! lock.

use std::time::Duration;

use tokio::task::JoinHandle;
use tower_distributed_lock::inspect::{LockCursor, Occupant};
use tower_distributed_lock::{Error, LockGuard, LockKey, LockManager, LostReason, Once};

use super::WAIT;
use crate::nodes::Nodes;
use crate::support::{eventually, minute, soon};

const KEYS: [&str; 24] = [
    "\0",
    "nul\0in the middle",
    "\r\n",
    "a\nb",
    " ",
    "{",
    "}",
    "{}",
    "}{",
    "{a}b{c}",
    "{lock:a}:record",
    "*",
    "?[x]^",
    "\\",
    "%s%00%n",
    "'; DROP TABLE locks; --",
    "<script>",
    "ü🔒\u{202e}",
    "shared",
    "shared!",
    "inbox:x",
    "lock:",
    ":",
    "sha256:ab",
];

on_every_store! {
    Nodes:
    a_lock_of_any_key_is_handed_on
    a_lock_of_any_key_is_shared
    a_lock_of_any_key_is_found_and_taken_away
    work_of_any_key_is_done_once
    locks_of_any_keys_are_taken_together
}

fn keys() -> impl Iterator<Item = String> {
    let long = "k".repeat(1 << 20);
    KEYS.into_iter().map(str::to_owned).chain([long])
}

/// Begins to wait for a lock that is held. Returns when the store knows that it does.
async fn begin_to_wait(
    nodes: &Nodes,
    locks: &LockManager,
    key: &str,
) -> JoinHandle<Result<LockGuard, Error>> {
    let waiting = tokio::spawn({
        let (locks, key) = (locks.clone(), key.to_owned());
        async move { locks.acquire(key, WAIT).await }
    });
    let is_known = || match nodes.server() {
        Some(_) => locks.stats().queued == 1,
        None => locks.stats().waiting == 1,
    };
    eventually("it waits", || async { is_known() }).await;
    waiting
}

async fn a_lock_of_any_key_is_handed_on(nodes: Nodes) {
    for key in keys() {
        let first = nodes.one.try_acquire(&key).await.unwrap();
        let waiting = begin_to_wait(&nodes, &nodes.two, &key).await;
        drop(first);
        let second = soon("its turn", waiting).await.unwrap().unwrap();
        assert_eq!(*second.key(), LockKey::new(&key).unwrap());
        second.release().await.unwrap();
        nodes.are_at_rest().await;
    }
}

async fn a_lock_of_any_key_is_shared(nodes: Nodes) {
    for key in keys() {
        let one = nodes.one.acquire_shared(&key, WAIT).await.unwrap();
        let two = nodes.two.acquire_shared(&key, WAIT).await.unwrap();
        let third = nodes.third().await;
        let waiting = begin_to_wait(&nodes, &third, &key).await;
        drop((one, two));
        let writer = soon("its turn", waiting).await.unwrap().unwrap();
        let reading = nodes.one.acquire_shared(&key, WAIT);
        let (read, ()) = tokio::join!(soon("its turn", reading), async { drop(writer) });
        read.unwrap().release().await.unwrap();
        nodes.are_at_rest().await;
    }
}

async fn a_lock_of_any_key_is_found_and_taken_away(nodes: Nodes) {
    for key in keys() {
        let guard = nodes.one.try_acquire(&key).await.unwrap();
        let report = nodes.two.inspect(&key).await.unwrap();
        assert!(matches!(report.occupant, Occupant::Process(_)), "{key:?}");
        let mut cursor = Some(LockCursor::locks());
        let mut is_listed = false;
        while let Some(here) = cursor {
            let page = nodes.two.list(here).await.unwrap();
            is_listed |= page.locks.iter().any(|lock| lock.key == *guard.key());
            cursor = page.next;
        }
        assert!(is_listed, "{key:?}");
        assert!(nodes.two.force_release(&key).await.unwrap(), "{key:?}");
        let reason = soon("it is told", guard.lost()).await;
        assert_eq!(reason, LostReason::Taken, "{key:?}");
        drop(guard);
        nodes.are_at_rest().await;
    }
}

async fn work_of_any_key_is_done_once(nodes: Nodes) {
    let retention = Duration::from_secs(60);
    let work = async |_| Ok::<_, ()>(());
    for key in keys() {
        let first = nodes.one.once(&key, retention, work).await.unwrap();
        assert!(matches!(first, Once::Ran(())), "{key:?}");
        let second = nodes.two.once(&key, retention, work).await.unwrap();
        assert!(matches!(second, Once::AlreadyDone), "{key:?}");
        assert!(nodes.two.forget(&key).await.unwrap(), "{key:?}");
    }
}

async fn locks_of_any_keys_are_taken_together(nodes: Nodes) {
    let one = nodes.manager(minute().max_keys(100)).await;
    let two = match nodes.server() {
        Some(_) => nodes.manager(minute().max_keys(100)).await,
        None => one.clone(),
    };
    let all = |locks: LockManager| async move {
        for _ in 0..5 {
            let guards = locks.acquire_all(keys(), WAIT).await.unwrap();
            assert_eq!(guards.leases().as_slice().len(), KEYS.len() + 1);
        }
    };
    let (all_of_one, all_of_two) = (tokio::spawn(all(one)), tokio::spawn(all(two)));
    soon("all are served", all_of_one).await.unwrap();
    soon("all are served", all_of_two).await.unwrap();
    nodes.are_at_rest().await;
}
