//! Who has a lock, and who waits for it.

use std::time::Duration;

use tower_distributed_lock::inspect::{LockCursor, LockPage, Occupant};
use tower_distributed_lock::{ErrorKind, IdempotencyLayer, LockKey, LockManager};

use super::holder;
use crate::nodes::Store;
use crate::once::{App, Runs, post};
use crate::support::{
    Cluster, Gate, PATIENCE, RedisServer, clients, eventually, eventually_queued, minute, run, soon,
};

on_every_store!(Store:
    a_held_lock_shows_its_holder_and_how_long_it_lasts
    requests_that_share_a_lock_are_shown_as_one_process
    what_this_process_has_is_counted
    locks_are_listed_apart_from_records
    many_locks_are_listed_page_by_page
);

async fn a_held_lock_shows_its_holder_and_how_long_it_lasts(store: Store) {
    let locks = store.manager(minute().instance_name("api 7: ü")).await;
    assert!(matches!(
        locks.inspect("k").await.unwrap().occupant,
        Occupant::None
    ));
    let guard = locks.try_acquire("k").await.unwrap();
    let report = locks.inspect("k").await.unwrap();
    assert_eq!(report.key, LockKey::new("k").unwrap());
    let holder = holder(&report);
    assert_eq!(holder.process.name.as_deref(), Some("api 7: ü"));
    assert_eq!(holder.process.to_string(), "api 7: ü");
    assert!(holder.process.is_alive && holder.process.is_this);
    assert_eq!(holder.fencing_token, Some(guard.fencing_token()));
    assert!(holder.held_for.unwrap() < PATIENCE);
    let remaining = report.remaining.unwrap();
    assert!(remaining > Duration::from_secs(30) && remaining <= Duration::from_secs(60));
    assert!(report.waiting.is_empty() && !report.is_contended);
    guard.release().await.unwrap();
    assert!(matches!(
        locks.inspect("k").await.unwrap().occupant,
        Occupant::None
    ));
    let error = locks.inspect("").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidKey);
}

async fn requests_that_share_a_lock_are_shown_as_one_process(store: Store) {
    let locks = store.manager(minute()).await;
    let one = locks.try_acquire_shared("k").await.unwrap();
    let _two = locks.try_acquire_shared("k").await.unwrap();
    let report = locks.inspect("k").await.unwrap();
    let Occupant::Shared(holders) = &report.occupant else {
        panic!("not shared: {report:?}");
    };
    assert_eq!(holders.len(), 1);
    assert!(holders[0].process.is_this && holders[0].process.is_alive);
    assert_eq!(holders[0].fencing_token, Some(one.fencing_token()));
    assert!(report.remaining.is_some() && !report.is_contended);
}

#[tokio::test]
async fn processes_that_share_a_lock_are_shown_and_those_that_wait_behind_them() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let mut managers = Vec::new();
    for name in ["reader", "another", "writer", "late"] {
        let named = minute().instance_name(name);
        managers.push(named.connect(server.url()).await.unwrap());
    }
    let (mut guards, mut waiting) = (Vec::new(), Vec::new());
    for locks in &managers[..2] {
        guards.push(locks.try_acquire_shared("k").await.unwrap());
    }
    for (place, is_shared) in [(2, false), (3, true)] {
        let locks = managers[place].clone();
        waiting.push(tokio::spawn(async move {
            match is_shared {
                true => locks.acquire_shared("k", PATIENCE).await,
                false => locks.acquire("k", PATIENCE).await,
            }
        }));
        eventually_queued(&redis, "k", place - 1).await;
    }
    let report = managers[0].inspect("k").await.unwrap();
    assert!(report.is_contended);
    let Occupant::Shared(holders) = &report.occupant else {
        panic!("not shared: {report:?}");
    };
    let mut sharing: Vec<_> = holders.iter().map(|holder| &holder.process).collect();
    sharing.sort_by_key(|process| process.name.clone());
    let names: Vec<_> = sharing.iter().map(ToString::to_string).collect();
    assert_eq!(names, ["another", "reader"]);
    let names: Vec<_> = report.waiting.iter().map(ToString::to_string).collect();
    assert_eq!(names, ["writer", "late"]);
}

async fn what_this_process_has_is_counted(store: Store) {
    let locks = store.manager(minute()).await;
    let stats = locks.stats();
    assert_eq!((stats.held, stats.waiting, stats.queued), (0, 0, 0));
    assert!(stats.is_store_up && !stats.is_draining);
    let guard = locks.try_acquire("k").await.unwrap();
    let _other = locks.try_acquire("other").await.unwrap();
    let waiting = tokio::spawn({
        let locks = locks.clone();
        async move { locks.acquire("k", PATIENCE).await.map(drop) }
    });
    eventually("it waits", || async { locks.stats().waiting == 1 }).await;
    assert_eq!(locks.stats().held, 2);
    drop(guard);
    soon("its turn", waiting).await.unwrap().unwrap();
    eventually("one is held", || async { locks.stats().held == 1 }).await;
    assert_eq!(locks.stats().waiting, 0);
}

async fn all(locks: &LockManager, begin: LockCursor) -> Vec<LockPage> {
    let (mut pages, mut cursor) = (Vec::new(), Some(begin));
    while let Some(here) = cursor {
        let page = locks.list(here).await.unwrap();
        cursor = page.next;
        pages.push(page);
    }
    pages
}

async fn locks_are_listed_apart_from_records(store: Store) {
    let locks = store.manager(minute()).await;
    let app = App::new(
        &IdempotencyLayer::new(locks.clone()),
        Runs::default().handler(),
    );
    app.send(post("done")).await.is_run(1);
    let gate = Gate::new();
    let app = App::new(
        &IdempotencyLayer::new(locks.clone()),
        Runs::default().gated(&gate),
    );
    let running = app.begin(post("running")).await;
    gate.arrived().await;
    let _guard = locks.try_acquire("a:lock").await.unwrap();

    let listed = |pages: Vec<LockPage>| {
        let reports = pages.into_iter().flat_map(|page| page.locks);
        let mut listed: Vec<(String, bool)> = reports
            .map(|report| {
                let is_record = matches!(report.occupant, Occupant::Record);
                assert!(report.remaining.is_some());
                (report.key.as_str().to_owned(), is_record)
            })
            .collect();
        listed.sort();
        listed.dedup();
        listed
    };
    let here = listed(all(&locks, LockCursor::locks()).await);
    assert_eq!(here, [("a:lock".to_owned(), false)]);
    let here = listed(all(&locks, LockCursor::records()).await);
    let record = |key: &str| format!("POST%3A/a:{key}");
    assert_eq!(here, [(record("done"), true), (record("running"), false)]);
    gate.open();
    running.await.unwrap().is_run(1);
}

async fn many_locks_are_listed_page_by_page(store: Store) {
    let locks = store.manager(minute().prefix("a*[b]:")).await;
    let mut guards = Vec::new();
    for number in 0..250 {
        guards.push(locks.try_acquire(format!("k:{number}")).await.unwrap());
    }
    let pages = all(&locks, LockCursor::locks()).await;
    assert!(pages.len() >= 3, "{} pages", pages.len());
    let reports = pages.iter().flat_map(|page| &page.locks);
    let mut keys: Vec<&str> = reports.map(|report| report.key.as_str()).collect();
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(keys.len(), 250);
}

#[tokio::test]
async fn the_queue_shows_who_waits_in_order_and_who_is_gone() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let named = |name: &str| {
        minute()
            .instance_name(name)
            .connect_lazy(server.url())
            .unwrap()
    };
    let (holding, second, third) = (named("holder"), named("second"), named("third"));
    let guard = holding.try_acquire("k").await.unwrap();
    let report = second.inspect("k").await.unwrap();
    // What only the holder's process knows.
    assert_eq!(holder(&report).fencing_token, None);
    assert!(!holder(&report).process.is_this && !report.is_contended);
    for (place, locks) in [&second, &third].into_iter().enumerate() {
        let locks = locks.clone();
        tokio::spawn(async move { locks.acquire("k", PATIENCE).await.map(drop) });
        eventually_queued(&redis, "k", place + 1).await;
    }
    // A process that died without a word.
    let dead = "0123456789abcdef0123456789abcdef:7";
    run(&redis, &format!("RPUSH {{lock:k}}:queue {dead}")).await;

    let report = second.inspect("k").await.unwrap();
    assert!(report.is_contended);
    assert_eq!(holder(&report).process.name.as_deref(), Some("holder"));
    let waiting: Vec<(Option<&str>, bool, bool)> = report
        .waiting
        .iter()
        .map(|process| (process.name.as_deref(), process.is_alive, process.is_this))
        .collect();
    let expected = [
        (Some("second"), true, true),
        (Some("third"), true, false),
        (None, false, false),
    ];
    assert_eq!(waiting, expected);
    assert!(
        report.waiting[0]
            .address
            .as_ref()
            .unwrap()
            .starts_with("127.0.0.1:")
    );
    assert_eq!(report.waiting[2].to_string(), dead[..32]);
    drop(guard);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_cluster_every_primary_is_asked() {
    const LOCKS: usize = 40;
    let cluster = Cluster::start(3, 0).await;
    let named = minute().quarantine(false).instance_name("api");
    let locks = named.connect_cluster(cluster.urls()).await.unwrap();
    let other = minute().quarantine(false);
    let other = other.connect_cluster_lazy(cluster.urls()).unwrap();
    // It has to find out first where the slots are.
    let free = other.inspect("k:0").await.unwrap();
    assert!(matches!(free.occupant, Occupant::None));
    let mut guards = Vec::new();
    for number in 0..LOCKS {
        guards.push(locks.try_acquire(format!("k:{number}")).await.unwrap());
    }
    let pages = all(&other, LockCursor::locks()).await;
    assert!(pages.len() >= 3, "{} pages", pages.len());
    let mut keys = Vec::new();
    for report in pages.iter().flat_map(|page| &page.locks) {
        let process = &holder(report).process;
        assert_eq!(process.name.as_deref(), Some("api"));
        assert!(process.is_alive && !process.is_this);
        keys.push(report.key.as_str());
    }
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(keys.len(), LOCKS);
    for guard in &guards {
        let report = locks.inspect(guard.key().clone()).await.unwrap();
        let token = Some(guard.fencing_token());
        assert_eq!(holder(&report).fencing_token, token);
    }
}

#[tokio::test]
async fn what_another_client_has_put_there_is_shown_as_such() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let locks = minute().connect(&server.url()).await.unwrap();
    run(&redis, "SET lock:foreign of-redis-py PX 30000").await;
    run(&redis, "SET lock:endless for-ever").await;
    run(&redis, "RPUSH lock:list 1").await;
    run(&redis, "SET {lock:list}:queue 1").await;
    // What a lock says that processes share, but none does.
    run(&redis, "SET lock:alone shared").await;
    for (key, expires) in [
        ("foreign", true),
        ("endless", false),
        ("list", false),
        ("alone", false),
    ] {
        let report = locks.inspect(key).await.unwrap();
        assert!(
            matches!(report.occupant, Occupant::OtherClient),
            "{report:?}"
        );
        assert_eq!(report.remaining.is_some(), expires);
    }
}

#[tokio::test]
async fn processes_keep_their_names_when_redis_was_restarted_empty() {
    let mut server = RedisServer::start().await;
    let locks = minute()
        .instance_name("api")
        .connect(&server.url())
        .await
        .unwrap();
    server.kill();
    server.restart().await;
    let guard = soon("Redis is back", locks.acquire("k", PATIENCE))
        .await
        .unwrap();
    let report = locks.inspect("k").await.unwrap();
    assert_eq!(holder(&report).process.name.as_deref(), Some("api"));
    drop(guard);
}

#[tokio::test]
async fn without_a_name_a_process_is_called_by_host_and_process_id() {
    let server = RedisServer::start().await;
    let locks = minute().connect(&server.url()).await.unwrap();
    let guard = locks.try_acquire("k").await.unwrap();
    let report = locks.inspect("k").await.unwrap();
    let name = holder(&report).process.name.clone().unwrap();
    let pid = format!(":{}", std::process::id());
    assert!(name.ends_with(&pid) && name.len() > pid.len(), "{name}");
    drop(guard);
    let refused = LockManager::builder().instance_name("").in_memory();
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Config);
}

#[tokio::test]
async fn a_user_that_may_not_list_clients_sees_no_names_but_all_else() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    run(
        &redis,
        "ACL SETUSER limited on >secret ~* &* +@all -client +client|setname +client|tracking +client|caching",
    )
    .await;
    let url = format!("redis://limited:secret@127.0.0.1:{}", server.port);
    let locks = minute().connect(&url).await.unwrap();
    let guard = locks.try_acquire("k").await.unwrap();
    let report = locks.inspect("k").await.unwrap();
    let process = &holder(&report).process;
    assert!(process.is_alive && process.is_this && process.name.is_none());
    drop(guard);
}

#[tokio::test]
async fn to_ask_costs_no_lock_any_command_and_a_connection_only_when_it_is_first_asked() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let locks = minute().connect(&server.url()).await.unwrap();
    drop(locks.try_acquire("k").await.unwrap());
    let before = clients(&redis).await.len();
    locks.inspect("k").await.unwrap();
    locks.inspect("k").await.unwrap();
    assert_eq!(clients(&redis).await.len(), before + 1);
}
