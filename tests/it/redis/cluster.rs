//! A Redis Cluster: keys in all slots, slots that move, and primaries that are replaced.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use tower_distributed_lock::{ErrorKind, LockGuard, LockKey, LockManager, LockManagerBuilder};

use super::accounts::Accounts;
use crate::support::random::Random;
use crate::support::{
    Cluster, Mode, Proxy, RedisServer, eventually, minute, names, run, short_lived, soon, value,
};

/// A manager that uses a new cluster at once.
pub async fn connect(cluster: &Cluster) -> LockManager {
    connect_with(cluster, minute().quarantine(false)).await
}

pub async fn connect_with(cluster: &Cluster, builder: LockManagerBuilder) -> LockManager {
    builder.connect_cluster(cluster.urls()).await.unwrap()
}

/// Takes a lock, however often that needs to be tried.
pub async fn eventually_acquired(locks: &LockManager, key: &str) -> LockGuard {
    let key = LockKey::new(key).unwrap();
    let guard = Mutex::new(None);
    eventually("the lock can be taken", || async {
        let taken = locks.try_acquire(key.clone()).await;
        let is_taken = taken.is_ok();
        *guard.lock().unwrap() = taken.ok();
        is_taken
    })
    .await;
    guard.into_inner().unwrap().unwrap()
}

pub async fn exclude_each_other(locks: &LockManager, others: &LockManager, key: LockKey) {
    let guard = locks.try_acquire(key.clone()).await.unwrap();
    let refused = others.try_acquire(key.clone()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Held);
    let waiting = tokio::spawn({
        let (others, key) = (others.clone(), key.clone());
        async move { others.acquire(key, Duration::from_secs(20)).await }
    });
    let first = guard.fencing_token();
    guard.release().await.unwrap();
    let second = soon("the lock is handed on", waiting)
        .await
        .unwrap()
        .unwrap();
    assert!(second.fencing_token() > first);
    second.release().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn locks_in_all_slots_exclude_each_other_and_are_handed_on() {
    let cluster = Cluster::start(3, 0).await;
    let (locks, others) = (connect(&cluster).await, connect(&cluster).await);
    for number in 0..60 {
        exclude_each_other(&locks, &others, LockKey::new(number.to_string()).unwrap()).await;
    }
    // Hash tags, and braces that are none.
    for key in [
        "{a}:1", "x{b}y{c}", "{}", "a{}b", "{", "}", "a}b{c", "{{a}}", "{a",
    ] {
        exclude_each_other(&locks, &others, LockKey::new(key).unwrap()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_process_gets_a_lock_when_it_is_released_and_not_when_time_is_over() {
    let cluster = Cluster::start(3, 0).await;
    let (locks, others) = (connect(&cluster).await, connect(&cluster).await);
    for number in 0..20 {
        let key = LockKey::new(number.to_string()).unwrap();
        let guard = locks.try_acquire(key.clone()).await.unwrap();
        let waiting = tokio::spawn({
            let (others, key) = (others.clone(), key.clone());
            async move { others.acquire(key, Duration::from_secs(50)).await }
        });
        let name = format!("lock:{number}");
        let slot = cluster.slot(&name).await;
        let redis = cluster.client(cluster.owner(slot)).await;
        eventually("the process is in the queue", || async {
            let waiting: usize = {
                let mut length = redis::cmd("LLEN");
                let length = length.arg(format!("{{{name}}}:queue"));
                length.query_async(&mut redis.clone()).await.unwrap()
            };
            waiting == 1
        })
        .await;
        guard.release().await.unwrap();
        soon("the lock is handed on", waiting)
            .await
            .unwrap()
            .unwrap()
            .release()
            .await
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn several_keys_are_taken_together_whatever_their_servers() {
    let cluster = Cluster::start(3, 0).await;
    let (locks, others) = (connect(&cluster).await, connect(&cluster).await);
    let keys = 0..12;
    let guards = locks.try_acquire_all(keys.clone()).await.unwrap();
    for key in keys.clone() {
        let refused = others.try_acquire_all([100, key]).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Held);
        assert_eq!(refused.key().unwrap().as_str(), key.to_string());
    }
    let waiting = tokio::spawn(async move {
        let all = others.acquire_all(keys.rev(), Duration::from_secs(20));
        all.await.unwrap().release().await
    });
    let first = locks.acquire_all([100, 200], Duration::from_secs(20));
    drop(first.await.unwrap());
    guards.release().await.unwrap();
    soon("they are handed on", waiting).await.unwrap().unwrap();
    for server in 0..3 {
        let redis = cluster.client(server).await;
        eventually("no lock is left", || async {
            crate::support::names(&redis, "lock:*").await.is_empty()
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_moves_takes_its_locks_its_queue_and_its_fences_along() {
    let cluster = Cluster::start(3, 0).await;
    let (locks, others) = (connect(&cluster).await, connect(&cluster).await);
    let slot = cluster.slot("lock:moved").await;
    let from = cluster.owner(slot);
    let to = (from + 1) % 3;
    let guard = locks.try_acquire("moved").await.unwrap();
    let waiting = tokio::spawn({
        let others = others.clone();
        async move { others.acquire("moved", Duration::from_secs(50)).await }
    });
    let redis = cluster.client(from).await;
    eventually("the lock is marked as wanted", || async {
        value(&redis, "lock:moved")
            .await
            .is_some_and(|token| token.ends_with('!'))
    })
    .await;
    cluster.move_slot(slot, from, to).await;
    let refused = locks.try_acquire("moved").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Held);
    let fence = guard.fencing_token();
    assert!(guard.lease().is_held());
    guard.release().await.unwrap();
    let next = soon("the lock is handed on", waiting)
        .await
        .unwrap()
        .unwrap();
    assert!(next.fencing_token() > fence);
    next.release().await.unwrap();
    // And back, with nothing in it.
    cluster.move_slot(slot, to, from).await;
    exclude_each_other(&locks, &others, LockKey::new("moved").unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_planned_failover_keeps_what_is_held() {
    let cluster = Cluster::start(3, 1).await;
    let (locks, others) = (connect(&cluster).await, connect(&cluster).await);
    let held: Vec<_> =
        futures_util::future::try_join_all((0..12).map(|key| locks.try_acquire(key.to_string())))
            .await
            .unwrap();
    cluster.fail_over_to(3).await;
    for (key, guard) in held.into_iter().enumerate() {
        let kind = |error: tower_distributed_lock::Error| error.kind();
        let refused = others
            .acquire(key.to_string(), Duration::from_secs(1))
            .await
            .map_err(kind);
        assert_eq!(refused.map(|_| ()).unwrap_err(), ErrorKind::TimedOut);
        let fence = guard.fencing_token();
        guard.release().await.unwrap();
        let next = eventually_acquired(&others, &key.to_string()).await;
        assert!(next.fencing_token() > fence);
        next.release().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn locks_are_there_again_when_a_replica_has_taken_over_from_a_primary_that_died() {
    let mut cluster = Cluster::start(3, 1).await;
    let locks = connect_with(&cluster, short_lived(2000).quarantine(false)).await;
    let mut fences = Vec::new();
    for key in 0..12 {
        let guard = locks.try_acquire(key.to_string()).await.unwrap();
        fences.push(guard.fencing_token());
        guard.release().await.unwrap();
    }
    cluster.servers[0].kill();
    for (key, fence) in fences.iter().enumerate() {
        let guard = eventually_acquired(&locks, &key.to_string()).await;
        assert!(guard.fencing_token() > *fence);
        guard.release().await.unwrap();
    }
}

/// A lock of each primary, by their places.
async fn keys_of(cluster: &Cluster) -> [String; 2] {
    let mut keys = [const { None }; 2];
    for number in 0.. {
        let key = format!("{number}");
        let slot = cluster.slot(&format!("lock:{key}")).await;
        keys[cluster.owner(slot)].get_or_insert(key);
        if keys.iter().all(Option::is_some) {
            break;
        }
    }
    keys.map(Option::unwrap)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_was_restarted_empty_gives_nothing_that_may_still_be_trusted() {
    for is_careful in [true, false] {
        // Longer than a server of a cluster waits until it takes writes.
        let builder = || short_lived(6000).quarantine(is_careful);
        let mut cluster = Cluster::start(2, 0).await;
        let keys = keys_of(&cluster).await;
        let locks = connect_with(&cluster, builder()).await;
        let others = connect_with(&cluster, builder()).await;
        let guard = eventually_acquired(&locks, &keys[0]).await;
        let on_other = eventually_acquired(&others, &keys[1]).await;
        on_other.release().await.unwrap();
        // From here on it renews nothing.
        cluster.servers[0].signal("-STOP");
        let trusted_until = Instant::now() + guard.lease().remaining();
        cluster.servers[0].kill();
        cluster.servers[0].restart().await;
        cluster.eventually_agreed().await;
        // The other primary has lost nothing.
        drop(others.try_acquire(keys[1].as_str()).await.unwrap());
        let next = eventually_acquired(&others, &keys[0]).await;
        let is_early = Instant::now() < trusted_until;
        assert_eq!(is_early, !is_careful, "two hold it");
        assert!(next.fencing_token() > guard.fencing_token());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_that_move_start_no_quarantine() {
    let careful = || short_lived(1000).quarantine(true);
    let cluster = Cluster::start(2, 0).await;
    let keys = keys_of(&cluster).await;
    let locks = connect_with(&cluster, careful()).await;
    for key in &keys {
        let guard = eventually_acquired(&locks, key).await;
        guard.release().await.unwrap();
    }
    let redis = cluster.client(0).await;
    let epochs = names(&redis, "*epoch*").await;
    assert_eq!(epochs.len(), 1, "{epochs:?}");
    let slot = cluster.slot(&epochs[0]).await;
    cluster.move_slot(slot, 0, 1).await;
    assert!(names(&redis, "*epoch*").await.is_empty());
    eventually("the epoch is in another slot of its primary", || async {
        let guard = locks.try_acquire(keys[0].as_str()).await.unwrap();
        guard.release().await.unwrap();
        !names(&redis, "*epoch*").await.is_empty()
    })
    .await;
    let others = connect_with(&cluster, careful()).await;
    for key in &keys {
        drop(others.try_acquire(key.as_str()).await.unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_of_a_cluster_is_on_a_replica_before_it_is_given() {
    let cluster = Cluster::start(1, 1).await;
    let builder = minute().quarantine(false).min_replicas(1);
    let builder = builder.command_timeout(Duration::from_secs(1));
    let locks = connect_with(&cluster, builder).await;
    // A replica shows its data only to those who ask for it.
    let replica = cluster.client(1).await;
    run(&replica, "READONLY").await;
    for number in 0..20 {
        let guard = locks.try_acquire(number).await.unwrap();
        let name = format!("lock:{number}");
        assert!(value(&replica, &name).await.is_some());
        guard.release().await.unwrap();
    }
    cluster.servers[1].signal("-STOP");
    let refused = locks.try_acquire("a").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unavailable);
    let primary = cluster.client(0).await;
    eventually("the lock is free again", || async {
        value(&primary, "lock:a").await.is_none()
    })
    .await;
    cluster.servers[1].signal("-CONT");
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_are_used_at_the_addresses_of_the_map() {
    let cluster = Cluster::start(2, 0).await;
    let keys = keys_of(&cluster).await;
    let proxies = [0, 1].map(|place| Proxy::start(cluster.servers[place].port));
    let [first, second] = futures_util::future::join_all(proxies)
        .await
        .try_into()
        .unwrap_or_else(|_| unreachable!());
    let ports = [0, 1].map(|place| cluster.servers[place].port);
    let mapped = [first.port, second.port];
    let locks = minute()
        .quarantine(false)
        .command_timeout(Duration::from_millis(500))
        .address_map(move |host, port| {
            let place = ports.iter().position(|known| *known == port)?;
            Some((host.to_owned(), mapped[place]))
        })
        .connect_cluster([first.url()])
        .await
        .unwrap();
    for key in &keys {
        let guard = locks.try_acquire(key.as_str()).await.unwrap();
        guard.release().await.unwrap();
    }
    second.set(Mode::Hold);
    let refused = locks.try_acquire(keys[1].as_str()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unavailable);
    drop(locks.try_acquire(keys[0].as_str()).await.unwrap());
}

#[tokio::test]
async fn a_server_that_is_none_of_a_cluster_is_refused_with_a_reason() {
    let server = RedisServer::start().await;
    let error = LockManager::connect_cluster([server.url()])
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(
        error.to_string().contains("cluster support disabled"),
        "{error}"
    );
    let none: [String; 0] = [];
    let error = LockManager::connect_cluster(none).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_two_hold_a_lock_while_slots_move_and_replicas_take_over() {
    const KEYS: usize = 12;
    let cluster = Cluster::start(2, 1).await;
    let mut accounts = Accounts::new(KEYS);
    for node in 0..2 {
        let locks = connect(&cluster).await;
        for number in 0..6 {
            let wait = |random: &mut Random| Some(Duration::from_millis(random.below(2000)));
            accounts.add_client(&locks, node * 100 + number, |key| key.to_string(), wait);
        }
    }
    // Server 2 is the replica of the first primary.
    let mut first = 0;
    let mut owners: Vec<usize> = Vec::new();
    let mut slots = Vec::new();
    for key in 0..KEYS {
        let slot = cluster.slot(&format!("lock:{key}")).await;
        slots.push(slot);
        owners.push(cluster.owner(slot));
    }
    for round in 0..8 {
        let key = round % KEYS;
        let place = |owner: usize| if owner == 0 { first } else { 1 };
        let (from, to) = (place(owners[key]), place(1 - owners[key]));
        cluster.move_slot(slots[key], from, to).await;
        owners[key] = 1 - owners[key];
        if round % 3 == 2 {
            let replica = if first == 0 { 2 } else { 0 };
            cluster.fail_over_to(replica).await;
            first = replica;
        }
    }
    accounts.end().await;
}
