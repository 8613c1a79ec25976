//! A slot of a Redis Cluster that moves key by key: what nobody waits for goes on meanwhile.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tower_distributed_lock::{ErrorKind, LockGuard, LockKey, LockManager, LostReason, Once};

use super::accounts::Accounts;
use super::cluster::{connect, connect_with, eventually_acquired, exclude_each_other};
use crate::support::random::Random;
use crate::support::{Cluster, Gate, Mode, Proxy, eventually, minute, names, short_lived, soon};

/// A slot that has begun to move.
struct Open {
    cluster: Cluster,
    slot: u16,
    from: usize,
    to: usize,
}

impl Open {
    /// Begins to move the slot of the keys `{t}…`.
    async fn slot_of(cluster: Cluster, name: &str) -> Self {
        let slot = cluster.slot(name).await;
        let from = cluster.owner(slot);
        let to = 1 - from;
        cluster.open_slot(slot, from, to).await;
        Self {
            cluster,
            slot,
            from,
            to,
        }
    }

    /// Moves those of the slot's keys that are chosen by their names.
    async fn move_those(&self, is_one: impl Fn(&str) -> bool) {
        let keys = self.cluster.keys_in(self.slot, self.from).await;
        let keys: Vec<String> = keys.into_iter().filter(|key| is_one(key)).collect();
        assert!(!keys.is_empty(), "nothing to move");
        self.cluster.move_some(&keys, self.from, self.to).await;
    }

    async fn close(&self) {
        let Self { slot, from, to, .. } = *self;
        self.assert_no_key_is_at_both().await;
        self.cluster.move_keys(slot, from, to).await;
        self.cluster.close_slot(slot, from, to).await;
    }

    async fn assert_no_key_is_at_both(&self) {
        let there = self.cluster.keys_in(self.slot, self.to).await;
        for key in self.cluster.keys_in(self.slot, self.from).await {
            assert!(!there.contains(&key), "{key} is at both");
        }
    }

    async fn is_at(&self, place: usize, name: &str) -> bool {
        let keys = self.cluster.keys_in(self.slot, place).await;
        keys.iter().any(|key| key == name)
    }
}

fn is_fence(name: &str) -> bool {
    name.ends_with(":lock:fence")
}

fn is_lock(name: &str) -> bool {
    name.starts_with("lock:")
}

/// Chooses keys by their names.
type Choice = fn(&str) -> bool;

/// Which keys have left when the move stops for a while.
const STAGES: [(&str, Choice); 4] = [
    ("nothing", |_| false),
    ("the fence", is_fence),
    ("the locks", is_lock),
    ("all", |_| true),
];

async fn is_held_by_another(locks: &LockManager, key: &str) {
    let refused = locks.try_acquire(key).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Held, "{refused}");
}

/// Waits until the lease has been renewed, and its first time to live is long over.
async fn outlives_its_first_lease(guard: &LockGuard, ttl: Duration) {
    let first = Instant::now() + guard.lease().remaining() + ttl / 2;
    eventually("the lease was renewed", || async {
        let lost: Option<LostReason> = guard.lease().lost_reason();
        assert_eq!(lost, None);
        Instant::now() > first
    })
    .await;
    assert!(guard.lease().is_held());
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_slot_moves_its_locks_are_taken_renewed_and_released() {
    let ttl = Duration::from_millis(2400);
    let stages = STAGES.map(|(what, has_left)| async move {
        let cluster = Cluster::start(2, 0).await;
        let builder = || short_lived(2400).quarantine(false);
        let locks = connect_with(&cluster, builder()).await;
        let others = connect_with(&cluster, builder()).await;
        let before = locks.try_acquire("{t}:before").await.unwrap();
        let released = locks.try_acquire("{t}:released").await.unwrap();
        let shared = locks.try_acquire_shared("{t}:shared").await.unwrap();
        let mut last = released.fencing_token().max(before.fencing_token());
        let open = Open::slot_of(cluster, "{t}").await;
        if what != "nothing" {
            open.move_those(has_left).await;
        }
        // What was held is held, and can be released.
        is_held_by_another(&others, "{t}:before").await;
        released.release().await.unwrap();
        // What is free can be had, by one.
        for number in 0..10 {
            for locks in [&locks, &others] {
                let key = format!("{{t}}:{}", number % 4);
                let guard = locks.try_acquire(key.as_str()).await.expect(what);
                assert!(guard.fencing_token() > last, "{what}: a fence did not rise");
                last = guard.fencing_token();
                assert!(open.is_at(open.to, &format!("lock:{key}")).await);
                is_held_by_another(&others, &key).await;
                guard.release().await.expect(what);
            }
        }
        let guard = others.try_acquire("{t}:released").await.unwrap();
        let during = locks.try_acquire("{t}:during").await.unwrap();
        let dropped = locks.try_acquire("{t}:dropped").await.unwrap();
        drop(dropped);
        eventually("a lock that was dropped is free", || async {
            !open.is_at(open.to, "lock:{t}:dropped").await
        })
        .await;
        open.assert_no_key_is_at_both().await;
        for guard in [&before, &during, &guard] {
            outlives_its_first_lease(guard, ttl).await;
        }
        // Its lock and its readers are at one server.
        if what != "the locks" {
            outlives_its_first_lease(&shared, ttl).await;
        }
        is_held_by_another(&others, "{t}:before").await;
        is_held_by_another(&others, "{t}:during").await;
        // Those that wait go on when the slot has arrived.
        let waiting = ["{t}:before", "{t}:during"].map(|key| {
            let others = others.clone();
            tokio::spawn(async move { others.acquire(key, Duration::from_secs(50)).await })
        });
        open.close().await;
        let mut fences = vec![last];
        fences.extend([before.fencing_token(), during.fencing_token()]);
        fences.push(guard.fencing_token());
        for guard in [before, during, guard] {
            guard.release().await.unwrap();
        }
        for waiting in waiting {
            let next = soon("the lock is handed on", waiting).await.unwrap();
            let next = next.expect(what);
            assert!(fences.iter().all(|fence| *fence < next.fencing_token()));
            next.release().await.unwrap();
        }
        for key in ["{t}:before", "{t}:during", "{t}:0", "{t}:new"] {
            exclude_each_other(&locks, &others, LockKey::new(key).unwrap()).await;
        }
    });
    join_all(stages).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_whose_fence_was_never_used_gets_its_first_one_at_its_new_primary() {
    let open = Open::slot_of(Cluster::start(2, 0).await, "{t}").await;
    let (locks, others) = (connect(&open.cluster).await, connect(&open.cluster).await);
    let first = locks.try_acquire("{t}:1").await.unwrap();
    let second = others.try_acquire("{t}:2").await.unwrap();
    assert!(second.fencing_token() > first.fencing_token());
    assert!(open.cluster.keys_in(open.slot, open.from).await.is_empty());
    // It follows the clock, as any other.
    let clock = first.fencing_token() >> 10;
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
    let apart = (now.as_micros() as u64).abs_diff(clock);
    assert!(apart < 60_000_000, "{apart} µs");
    open.close().await;
    first.release().await.unwrap();
    second.release().await.unwrap();
    exclude_each_other(&locks, &others, LockKey::new("{t}:1").unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn work_that_is_done_once_begins_while_its_slot_moves_and_is_remembered_at_its_end() {
    let cluster = Cluster::start(2, 0).await;
    let (locks, others) = (connect(&cluster).await, connect(&cluster).await);
    // Its record has a slot of its own.
    let name = record_of(&cluster, &locks).await;
    let open = Open::slot_of(cluster, &name).await;
    let gate = Gate::new();
    let running = tokio::spawn({
        let (locks, gate) = (locks.clone(), gate.clone());
        async move {
            let day = Duration::from_secs(24 * 3600);
            let once = locks.once("report", day, |_| async {
                gate.pass().await;
                Ok::<_, ()>(7)
            });
            once.await
        }
    });
    gate.arrived().await;
    let day = Duration::from_secs(24 * 3600);
    let again = |locks: LockManager| async move {
        let once = locks.once("report", day, |_| async { Ok::<_, ()>(8) });
        once.await.unwrap()
    };
    assert_eq!(again(others.clone()).await, Once::Running);
    gate.open();
    open.close().await;
    let ran = soon("the work is remembered", running).await.unwrap();
    assert_eq!(ran.unwrap(), Once::Ran(7));
    for locks in [others, locks] {
        assert_eq!(again(locks).await, Once::AlreadyDone);
    }
}

/// Returns the name of the record of `report`, which is not there yet.
async fn record_of(cluster: &Cluster, locks: &LockManager) -> String {
    let second = Duration::from_secs(1);
    let done = locks.once("report", second, |_| async { Ok::<_, ()>(()) });
    assert_eq!(done.await.unwrap(), Once::Ran(()));
    let mut name = None;
    for place in 0..2 {
        let redis = cluster.client(place).await;
        let names = names(&redis, "*:record").await;
        name = name.or(names.into_iter().next());
    }
    assert!(locks.forget("report").await.unwrap());
    name.expect("there is a record")
}

/// The new primary gets the command, and does not answer.
#[tokio::test(flavor = "multi_thread")]
async fn a_take_that_the_new_primary_does_not_answer_leaves_no_lock_behind() {
    let cluster = Cluster::start(2, 0).await;
    let slot = cluster.slot("{t}").await;
    let to = 1 - cluster.owner(slot);
    let proxy = Proxy::start(cluster.servers[to].port).await;
    let (port, mapped) = (cluster.servers[to].port, proxy.port);
    let builder = minute()
        .quarantine(false)
        .command_timeout(Duration::from_millis(500))
        .address_map(move |host, told| {
            let port = if told == port { mapped } else { told };
            Some((host.to_owned(), port))
        });
    let locks = connect_with(&cluster, builder).await;
    let others = connect(&cluster).await;
    let guard = others.try_acquire("{t}:x").await.unwrap();
    guard.release().await.unwrap();
    let open = Open::slot_of(cluster, "{t}").await;
    proxy.set(Mode::HoldAnswers);
    let refused = locks.try_acquire("{t}:a").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unavailable);
    eventually("the lock is free", || async {
        !open.is_at(to, "lock:{t}:a").await
    })
    .await;
    drop(others.try_acquire("{t}:a").await.unwrap());
    proxy.set(Mode::Forward);
    let guard = eventually_acquired(&locks, "{t}:b").await;
    guard.release().await.unwrap();
    open.close().await;
    exclude_each_other(&locks, &others, LockKey::new("{t}:a").unwrap()).await;
}

/// Where replicas are counted, they are counted at the slot's primary.
#[tokio::test(flavor = "multi_thread")]
async fn a_lock_that_needs_replicas_is_late_while_its_slot_moves() {
    let cluster = Cluster::start(2, 1).await;
    let builder = minute().quarantine(false).min_replicas(1);
    let locks = connect_with(&cluster, builder).await;
    let slot = cluster.slot("{t}").await;
    let (from, to) = (cluster.owner(slot), 1 - cluster.owner(slot));
    cluster.open_slot(slot, from, to).await;
    let waiting = tokio::spawn(async move {
        let taken = locks.acquire("{t}", Duration::from_secs(50)).await;
        (locks, taken)
    });
    cluster.close_slot(slot, from, to).await;
    let (_, taken) = soon("the lock is taken", waiting).await.unwrap();
    taken.unwrap().release().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_slot_of_the_epoch_moves_those_that_are_connected_go_on() {
    let careful = || short_lived(1000).quarantine(true);
    let cluster = Cluster::start(2, 0).await;
    let locks = connect_with(&cluster, careful()).await;
    let mut key = String::from("0");
    for number in 1.. {
        if cluster.owner(cluster.slot(&format!("lock:{key}")).await) == 0 {
            break;
        }
        key = number.to_string();
    }
    drop(eventually_acquired(&locks, &key).await);
    let epochs = names(&cluster.client(0).await, "*epoch*").await;
    let open = Open::slot_of(cluster, &epochs[0]).await;
    open.move_those(|name| name == epochs[0]).await;
    let guard = locks.try_acquire(key.as_str()).await.unwrap();
    guard.release().await.unwrap();
    let connecting = careful().connect_cluster(open.cluster.urls());
    let error = connecting.await.unwrap_err().to_string();
    assert!(error.contains("a slot of it is being moved"), "{error}");
    open.close().await;
    eventually("a manager that connects gets locks", || async {
        drop(locks.try_acquire(key.as_str()).await);
        let connected = careful().connect_cluster(open.cluster.urls()).await;
        match connected {
            Ok(others) => others.try_acquire(key.as_str()).await.is_ok(),
            Err(_) => false,
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_two_hold_a_lock_of_a_slot_whose_keys_move_one_by_one_and_back() {
    let cluster = Cluster::start(2, 0).await;
    let slot = cluster.slot("{t}").await;
    let mut accounts = Accounts::new(8);
    for node in 0..2 {
        let locks = connect(&cluster).await;
        for number in 0..4 {
            let name = |account| format!("{{t}}:{account}");
            // Those that wait need several keys at one server, and mark the lock.
            let wait = |random: &mut Random| match random.below(40) {
                0 => Some(Duration::from_millis(300)),
                _ => None,
            };
            accounts.add_client(&locks, node * 100 + number, name, wait);
        }
    }
    let mut random = Random::new(7);
    let mut from = cluster.owner(slot);
    for _ in 0..6 {
        let to = 1 - from;
        cluster.open_slot(slot, from, to).await;
        accounts.some_are_taken().await;
        loop {
            let mut keys = cluster.keys_in(slot, from).await;
            if keys.is_empty() {
                break;
            }
            let one = keys.swap_remove(random.below(keys.len() as u64) as usize);
            cluster.move_some(&[one], from, to).await;
            if random.below(2) == 0 {
                accounts.some_are_taken().await;
            }
        }
        cluster.close_slot(slot, from, to).await;
        accounts.some_are_taken().await;
        from = to;
    }
    accounts.end().await;
}
