//! Passwords, and what a user of Redis may do.

use std::time::Duration;

use tower_distributed_lock::inspect::{LockCursor, Occupant};
use tower_distributed_lock::{ErrorKind, IdempotencyLayer, LockManager, LostReason, Once};

use super::{acl, recovers, rights_of_the_guide, unavailable, without_dangerous};
use crate::once::{App, Runs, post};
use crate::support::{
    PATIENCE, RedisServer, eventually, eventually_queued, minute, run, soon, value,
};

#[tokio::test]
async fn a_wrong_password_is_told_as_such() {
    let server = RedisServer::start_with(&["--requirepass", "right"]).await;
    let url = |login: &str| format!("redis://{login}127.0.0.1:{}", server.port);
    for login in [":wrong@", ""] {
        let error = LockManager::connect(&url(login)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        let text = error.to_string().to_lowercase();
        assert!(text.contains("auth") || text.contains("password"), "{text}");
        assert!(!text.contains("wrong@"));
    }
    let locks = LockManager::connect(&url(":right@")).await.unwrap();
    locks
        .try_acquire("a")
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
}

#[tokio::test]
async fn an_acl_user_with_just_these_rights_and_a_database_number_work() {
    let (rights, less) = (rights_of_the_guide(), without_dangerous());
    let user = format!("worker on >secret {rights} {less}");
    let server = RedisServer::start_with(&acl(&user)).await;
    let redis = server.client().await;
    let url = format!("redis://worker:secret@127.0.0.1:{}/3", server.port);
    let locks = LockManager::connect(&url).await.unwrap();
    let guard = locks.try_acquire("a").await.unwrap();
    assert_eq!(
        value(&redis, "lock:a").await,
        None,
        "it is in another database"
    );
    run(&redis, "SELECT 3").await;
    assert!(value(&redis, "lock:a").await.is_some());
    guard.release().await.unwrap();
    // Keys that clients choose may look like anything.
    for key in ["{a}b", "a}b", "{}b", "a{b", "b:queue", "\r\n", "inbox:"] {
        let guard = locks.acquire(key, PATIENCE).await.unwrap();
        guard.release().await.unwrap();
    }
    // A user without the rights gets an error, and does not wait.
    let user =
        "guest on >secret ~lock:* resetchannels &lock:inbox:* +@connection +subscribe +script";
    let server = RedisServer::start_with(&acl(user)).await;
    let url = format!("redis://guest:secret@127.0.0.1:{}", server.port);
    let locks = LockManager::builder().connect_lazy(&url).unwrap();
    let error = unavailable(&locks).await;
    assert!(
        error.to_string().to_lowercase().contains("noperm"),
        "{}",
        error.to_string()
    );
}

/// All that the guide lists, in which form it is listed there, is enough.
#[tokio::test]
async fn a_user_with_the_rights_of_the_guide_can_do_all_that_a_manager_does() {
    let less = without_dangerous();
    for (less, sees_names) in [
        (String::new(), true),
        (less.to_owned(), false),
        (format!("{less} +client|list"), true),
    ] {
        let user = format!("worker on >secret {} {less}", rights_of_the_guide());
        let server = RedisServer::start_with(&acl(&user)).await;
        let url = format!("redis://worker:secret@127.0.0.1:{}", server.port);
        let one = minute().connect(url.as_str()).await.unwrap();
        let two = minute().connect(url.as_str()).await.unwrap();
        readers_and_writers_take_turns(&server, &one, &two).await;
        several_keys_are_handed_over(&server, &one, &two).await;
        // Records, short and long, and work that is done once.
        let (runs, layer) = (Runs::default(), IdempotencyLayer::new(one.clone()));
        let app = App::new(&layer, runs.handler());
        app.send(post("k")).await.is_run(1);
        app.send(post("k")).await.is_replay_of(1);
        let retention = Duration::from_secs(60);
        let work = |_| async { Ok::<_, std::convert::Infallible>(7) };
        let done = one.once("night", retention, work).await.unwrap();
        assert!(matches!(done, Once::Ran(7)), "{done:?}");
        let done = two.once("night", retention, work).await.unwrap();
        assert!(matches!(done, Once::AlreadyDone), "{done:?}");
        assert!(two.forget("night").await.unwrap());
        an_operator_sees_and_ends_holds(&one, &two, sees_names).await;
        two.ping().await.unwrap();
    }
}

async fn readers_and_writers_take_turns(
    server: &RedisServer,
    one: &LockManager,
    two: &LockManager,
) {
    let redis = server.client().await;
    let readers = [
        one.try_acquire_shared("a").await.unwrap(),
        two.acquire_shared("a", PATIENCE).await.unwrap(),
    ];
    let writer = {
        let locks = one.clone();
        tokio::spawn(async move { locks.acquire("a", PATIENCE).await })
    };
    // It waits in this process until the reader here has left, and then in Redis.
    let [here, there] = readers;
    drop(here);
    eventually_queued(&redis, "a", 1).await;
    there.release().await.unwrap();
    let writer = soon("the writer", writer).await.unwrap().unwrap();
    let reader = {
        let locks = two.clone();
        tokio::spawn(async move { locks.acquire_shared("a", PATIENCE).await })
    };
    eventually_queued(&redis, "a", 1).await;
    writer.release().await.unwrap();
    let reader = soon("the reader", reader).await.unwrap().unwrap();
    reader.release().await.unwrap();
}

async fn several_keys_are_handed_over(server: &RedisServer, one: &LockManager, two: &LockManager) {
    let redis = server.client().await;
    let guards = one.try_acquire_all(["a", "b"]).await.unwrap();
    let waiting = {
        let locks = two.clone();
        tokio::spawn(async move { locks.acquire_all(["b", "a"], PATIENCE).await })
    };
    eventually_queued(&redis, "a", 1).await;
    guards.release().await.unwrap();
    let guards = soon("both", waiting).await.unwrap().unwrap();
    guards.release().await.unwrap();
}

async fn an_operator_sees_and_ends_holds(one: &LockManager, two: &LockManager, sees_names: bool) {
    let alone = one.try_acquire("alone").await.unwrap();
    let shared = one.try_acquire_shared("shared").await.unwrap();
    let report = two.inspect("alone").await.unwrap();
    let Occupant::Process(holder) = &report.occupant else {
        panic!("not held: {report:?}");
    };
    assert_eq!(holder.process.name.is_some(), sees_names);
    let report = two.inspect("shared").await.unwrap();
    assert!(matches!(&report.occupant, Occupant::Shared(holders) if holders.len() == 1));
    let (mut listed, mut next) = (0, Some(LockCursor::locks()));
    while let Some(cursor) = next {
        let page = two.list(cursor).await.unwrap();
        listed += page.locks.len();
        next = page.next;
    }
    assert_eq!(listed, 2);
    for (key, guard) in [("alone", alone), ("shared", shared)] {
        assert!(two.force_release(key).await.unwrap());
        let reason = soon("it is told", guard.lost()).await;
        assert_eq!(reason, LostReason::Taken, "{key}");
    }
}

#[tokio::test]
async fn an_inbox_that_can_no_longer_be_subscribed_to_is_told() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let locks = LockManager::connect(&server.url()).await.unwrap();
    drop(locks.try_acquire("a").await.unwrap());
    // Without an inbox, no waiter would be told of a grant. Redis also ends connections that are
    // subscribed to what they no longer may.
    run(&redis, "ACL SETUSER default resetchannels").await;
    // With RESP2 the inbox has a connection of its own. Until the driver has seen it end, the
    // connection for commands still takes locks.
    eventually("requests are told of the inbox", || async {
        match locks.try_acquire("a").await {
            Ok(guard) => {
                drop(guard);
                false
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
                assert!(error.to_string().contains("inbox channels"), "{error}");
                true
            }
        }
    })
    .await;
    run(&redis, "ACL SETUSER default allchannels").await;
    recovers(&locks).await;
}

#[tokio::test]
async fn a_foreign_holder_is_looked_at_where_redis_may_not_tell() {
    for rule in [
        "-client +client|tracking",
        "-mget",
        "-client +client|caching",
    ] {
        let user = format!("worker on >secret ~* &* +@all {rule}");
        let server = RedisServer::start_with(&acl(&user)).await;
        let redis = server.client().await;
        let url = format!("redis://worker:secret@127.0.0.1:{}", server.port);
        let locks = LockManager::connect(&url).await.unwrap();
        run(&redis, "SET lock:a somebody PX 60000").await;
        let waiting = tokio::spawn(async move { locks.acquire("a", PATIENCE).await });
        eventually_queued(&redis, "a", 1).await;
        run(&redis, "DEL lock:a").await;
        let guard = soon(rule, waiting).await.unwrap().unwrap();
        guard.release().await.unwrap();
    }
}
