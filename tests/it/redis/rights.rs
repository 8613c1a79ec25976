//! Passwords, and what a user of Redis may do.

use tower_distributed_lock::{ErrorKind, LockManager};

use super::{acl, recovers, unavailable};
use crate::support::{PATIENCE, RedisServer, eventually, eventually_queued, run, soon, value};

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
    let user = "worker on >secret ~lock:* ~{* resetchannels &lock:inbox:* +@connection +@scripting +@string +@list +@keyspace \
                +subscribe +publish +pubsub +time +client -@dangerous";
    let server = RedisServer::start_with(&acl(user)).await;
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
