//! Redis Sentinel: failovers, planned or not, while locks are held, waited for and taken.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tower_distributed_lock::{ErrorKind, Lease, LockManager, LockManagerBuilder};

use super::recovers;
use crate::support::{
    ClosedPort, PRIMARY, RedisServer, SentinelSet, clients, eventually, names, sentinel_cut_off,
    soon, text, value,
};

const TTL: Duration = Duration::from_millis(1500);

const EPOCH: &str = "{lock:}:epoch";

/// So that an old primary accepts no writes.
const STRICT: [&str; 4] = [
    "--min-replicas-to-write",
    "1",
    "--min-replicas-max-lag",
    "2",
];

fn builder() -> LockManagerBuilder {
    LockManager::builder()
        .ttl(TTL)
        .command_timeout(Duration::from_secs(1))
}

async fn connect(set: &SentinelSet, builder: LockManagerBuilder) -> LockManager {
    builder.connect_sentinel(set.urls(), PRIMARY).await.unwrap()
}

/// Requests of several processes that take one lock, hold it for a moment, and take it again. Each
/// holder looks whether the one before it still trusts the lock, and had a lower fence.
struct Crew {
    taken: Arc<AtomicUsize>,
    ends: Arc<AtomicBool>,
    tasks: JoinSet<()>,
}

impl Crew {
    fn of(processes: &[LockManager]) -> Self {
        let mut crew = Self {
            taken: Arc::default(),
            ends: Arc::default(),
            tasks: JoinSet::new(),
        };
        let last: Arc<Mutex<Option<Lease>>> = Arc::default();
        // Of each process one that waits, and one that only tries.
        for (locks, waits) in processes
            .iter()
            .flat_map(|locks| [(locks, true), (locks, false)])
        {
            let (locks, last) = (locks.clone(), last.clone());
            let (taken, ends) = (crew.taken.clone(), crew.ends.clone());
            crew.tasks.spawn(async move {
                while !ends.load(Ordering::Relaxed) {
                    let guard = match waits {
                        true => locks.acquire("a", Duration::from_secs(1)).await,
                        false => locks.try_acquire("a").await,
                    };
                    let Ok(guard) = guard else {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                        continue;
                    };
                    let before = last.lock().unwrap().replace(guard.lease().clone());
                    if let Some(before) = before {
                        assert!(!before.is_held(), "two hold it");
                        assert!(before.fencing_token() < guard.fencing_token());
                    }
                    taken.fetch_add(1, Ordering::Relaxed);
                    tokio::select! {
                        () = tokio::time::sleep(Duration::from_millis(20)) => {}
                        _ = guard.lost() => {}
                    }
                    let _ = guard.release().await;
                }
            });
        }
        crew
    }

    async fn goes_on(&self) {
        let before = self.taken.load(Ordering::Relaxed);
        eventually("the lock is given again and again", || async {
            self.taken.load(Ordering::Relaxed) > before + 20
        })
        .await;
    }

    async fn end(mut self) {
        self.ends.store(true, Ordering::Relaxed);
        while let Some(ended) = soon("they end", self.tasks.join_next()).await {
            ended.unwrap();
        }
    }
}

#[tokio::test]
async fn through_a_planned_failover_there_are_no_two_holders_and_fences_rise() {
    let set = SentinelSet::start(&STRICT).await;
    let locks = connect(&set, builder()).await;
    let other = connect(&set, builder()).await;
    let crew = Crew::of(&[locks.clone(), other]);
    crew.goes_on().await;
    // Held before, and after, or told to be lost.
    let held = locks.try_acquire("held").await.unwrap();
    let primary = set.fail_over().await;
    crew.goes_on().await;
    crew.end().await;
    let redis = set.servers[primary].client().await;
    match held.lease().is_held() {
        true => {
            assert!(value(&redis, "lock:held").await.is_some());
            held.release().await.unwrap();
        }
        false => assert!(held.release().await.is_err()),
    }
    recovers(&locks).await;
    assert!(
        names(&redis, "{lock:}:fence").await.len() == 1,
        "they are in the new primary"
    );
}

#[tokio::test]
async fn when_the_primary_is_killed_there_are_no_two_holders_and_locks_are_given_again() {
    let mut set = SentinelSet::start(&STRICT).await;
    let locks = connect(&set, builder()).await;
    let other = connect(&set, builder()).await;
    let crew = Crew::of(&[locks.clone(), other.clone()]);
    crew.goes_on().await;
    set.servers[0].kill();
    set.replaced(0).await;
    crew.goes_on().await;
    crew.end().await;
    recovers(&locks).await;
    recovers(&other).await;
}

/// An old primary without `min-replicas-to-write` gives locks for ten seconds more. The sentinels
/// tell earlier, and whoever it gave one to keeps the others waiting in the new primary.
#[tokio::test]
async fn an_old_primary_is_left_as_soon_as_the_sentinels_say_so_and_is_outlasted() {
    let set = SentinelSet::start(&[]).await;
    let locks = connect(&set, builder()).await;
    recovers(&locks).await;
    let held = locks.try_acquire("held").await.unwrap();
    for replica in &set.servers[1..] {
        let redis = replica.client().await;
        eventually("the replica has the lock", || async {
            value(&redis, "lock:held").await.is_some()
        })
        .await;
    }
    let old = set.servers[0].client().await;
    let primary = set.fail_over().await;
    let promoted = Instant::now();
    let redis = set.servers[primary].client().await;
    let known = value(&redis, EPOCH).await;
    eventually("the manager has left the old primary", || async {
        value(&redis, EPOCH).await != known
    })
    .await;
    assert!(
        text(&old, "INFO replication").await.contains("role:master"),
        "it was demoted"
    );
    assert!(held.lease().is_held());
    held.release().await.unwrap();
    let error = locks.try_acquire("a").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    recovers(&locks).await;
    assert!(
        promoted.elapsed() > Duration::from_secs(12),
        "{:?}",
        promoted.elapsed()
    );
}

#[tokio::test]
async fn one_sentinel_that_can_be_reached_is_enough() {
    let mut set = SentinelSet::start(&STRICT).await;
    set.sentinels[0].kill();
    set.sentinels[1].kill();
    let locks = connect(&set, builder().quarantine(false)).await;
    locks
        .try_acquire("a")
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    set.sentinels[2].kill();
    // Those that are connected do not need them.
    locks
        .try_acquire("a")
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    let started = builder().connect_sentinel(set.urls(), PRIMARY).await;
    let error = started.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    let text = error.to_string();
    assert!(
        text.contains(PRIMARY) && text.contains(&set.sentinels[2].port.to_string()),
        "{text}"
    );
}

#[tokio::test]
async fn a_server_that_says_it_is_a_replica_is_not_used() {
    let primary = RedisServer::start().await;
    let port = primary.port.to_string();
    let replica = RedisServer::start_with(&["--replicaof", "127.0.0.1", &port]).await;
    let (stale, _) = sentinel_cut_off(replica.port).await;
    let error = builder()
        .connect_sentinel([&stale], PRIMARY)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let text = error.to_string();
    assert!(
        text.contains(&replica.port.to_string()) && text.contains("a replica"),
        "{text}"
    );
    // Another sentinel knows better.
    let (right, _) = sentinel_cut_off(primary.port).await;
    let locks = builder()
        .connect_sentinel([stale, right], PRIMARY)
        .await
        .unwrap();
    recovers(&locks).await;
}

#[tokio::test]
async fn one_sentinel_that_was_cut_off_and_names_an_old_primary_does_no_harm() {
    let set = SentinelSet::start(&STRICT).await;
    let old = RedisServer::start().await;
    let (stale, asked) = sentinel_cut_off(old.port).await;
    let mut urls = vec![stale];
    urls.extend(set.urls());
    let locks = builder()
        .quarantine(false)
        .connect_sentinel(urls, PRIMARY)
        .await
        .unwrap();
    let redis = set.servers[0].client().await;
    // The numbers of the connections that the locks are taken over.
    let of_the_manager = async || {
        let clients = clients(&redis).await;
        let ours = clients
            .into_iter()
            .filter(|line| line.contains(" name=tower"));
        ours.map(|line| line.split(' ').next().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let before = of_the_manager().await;
    assert_eq!(before.len(), 1);
    // It is one of the two that are watched.
    let first = asked.load(Ordering::Relaxed);
    eventually("it was asked again and again", || async {
        asked.load(Ordering::Relaxed) > first + 4
    })
    .await;
    locks
        .try_acquire("a")
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    assert_eq!(of_the_manager().await, before, "it had to connect again");
}

#[tokio::test]
async fn the_quarantine_is_on_unless_it_is_turned_off() {
    let set = SentinelSet::start(&STRICT).await;
    let redis = set.servers[0].client().await;
    let locks = connect(&set, builder().quarantine(false)).await;
    drop(locks.try_acquire("a").await.unwrap());
    assert_eq!(value(&redis, EPOCH).await, None);
    let locks = connect(&set, builder()).await;
    let error = locks.try_acquire("b").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(value(&redis, EPOCH).await.is_some());
    recovers(&locks).await;
}

#[tokio::test]
async fn a_wrong_name_is_an_error_of_the_configuration_that_says_so() {
    let set = SentinelSet::start(&[]).await;
    let error = builder()
        .connect_sentinel(set.urls(), "yourmaster")
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    assert!(error.to_string().contains("yourmaster"), "{error}");
    // A request is not told of it as its own fault.
    let locks = builder()
        .connect_sentinel_lazy(set.urls(), "yourmaster")
        .unwrap();
    let error = locks.try_acquire("a").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("yourmaster"), "{error}");
}

#[tokio::test]
async fn what_is_no_name_and_no_sentinel_is_refused_when_it_is_set() {
    let lazy = |sentinels: &[&str], primary: &str| {
        let locks = builder().connect_sentinel_lazy(sentinels.iter().copied(), primary);
        let error = locks.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config, "{error}");
        assert!(!error.to_string().contains("secret"), "{error}");
        error.to_string()
    };
    let sentinel = "redis://:secret@127.0.0.1:26379";
    assert!(lazy(&[], PRIMARY).contains("at least one sentinel"));
    for name in ["", "my master", "redis+unix:///secret"] {
        assert!(lazy(&[sentinel], name).contains("name"), "{name}");
    }
    lazy(&[sentinel], "redis://:secret@");
    assert!(lazy(&["secret"], PRIMARY).contains("URL"));
    // A Redis server in a sentinel's place, and nothing at all.
    let server = RedisServer::start().await;
    let nothing = ClosedPort::new();
    let urls = [server.url(), nothing.url()];
    let error = builder().connect_sentinel(urls, PRIMARY).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    let text = error.to_string();
    assert!(text.contains("26379"), "{text}");
    assert!(text.to_lowercase().contains("refused"), "{text}");
}

#[tokio::test]
async fn the_primary_may_want_a_login_and_another_database() {
    let user = "worker on >secret ~lock:* ~{* resetchannels &lock:inbox:* +@connection +@scripting +@string +@list +@sortedset +@keyspace \
                +subscribe +publish +pubsub +time +client -@dangerous +info";
    let mut args = STRICT.to_vec();
    args.extend(super::acl(user));
    let set = SentinelSet::start(&args).await;
    let primary = format!("redis://worker:secret@{PRIMARY}/3");
    let locks = builder()
        .connect_sentinel(set.urls(), primary)
        .await
        .unwrap();
    recovers(&locks).await;
    let guard = locks.try_acquire("a").await.unwrap();
    let redis = set.servers[0].client().await;
    crate::support::run(&redis, "SELECT 3").await;
    assert!(value(&redis, "lock:a").await.is_some());
    drop(guard);
}
