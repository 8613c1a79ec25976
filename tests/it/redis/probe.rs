//! `connect` succeeds only where locks can be had, and says what is missing.

use tower_distributed_lock::{ErrorKind, LockManager};

use super::{acl, recovers};
use crate::support::{RedisServer, eventually, names, run};

async fn refusal(url: &str) -> String {
    let error = LockManager::connect(url).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    error.to_string()
}

#[tokio::test]
async fn a_replica_is_refused_and_the_primary_asked_for() {
    let primary = RedisServer::start().await;
    let port = primary.port.to_string();
    let replica = [
        "--replicaof",
        "127.0.0.1",
        &port,
        "--replica-read-only",
        "yes",
    ];
    let replica = RedisServer::start_with(&replica).await;
    let why = refusal(&replica.url()).await;
    assert!(why.contains("it is a replica"), "{why}");
    assert!(why.contains("connect to its primary"), "{why}");
    // A service that starts without a usable Redis goes on when there is one.
    let lazy = LockManager::builder().connect_lazy(replica.url()).unwrap();
    run(&replica.client().await, "REPLICAOF NO ONE").await;
    recovers(&lazy).await;
}

#[tokio::test]
async fn a_node_of_a_cluster_is_refused() {
    let server = RedisServer::start_with(&["--cluster-enabled", "yes"]).await;
    let redis = server.client().await;
    let without_slots = refusal(&server.url()).await;
    assert!(without_slots.contains("Redis Cluster"), "{without_slots}");
    // A cluster of one node, which has all keys, and takes none together that differ in their
    // slots.
    run(&redis, "CONFIG SET cluster-require-full-coverage no").await;
    let slots: Vec<String> = (0..16384).map(|slot| slot.to_string()).collect();
    run(&redis, &format!("CLUSTER ADDSLOTS {}", slots.join(" "))).await;
    eventually("it has all slots", || async {
        let why = refusal(&server.url()).await;
        assert!(why.contains("Redis Cluster"), "{why}");
        why.contains("CrossSlot") || why.contains("CROSSSLOT")
    })
    .await;
}

#[tokio::test]
async fn rights_that_a_user_lacks_are_named() {
    let all = "worker on >secret ~* &* +@all";
    for (user, missing) in [
        (format!("{all} -eval"), "'eval'"),
        (format!("{all} -evalsha"), "'evalsha'"),
        (format!("{all} -@scripting"), "'script"),
        (format!("{all} -subscribe"), "'subscribe'"),
        (format!("{all} -publish"), "operations guide"),
        (
            format!("{all} -@sortedset"),
            "add +@sortedset to the user's ACL",
        ),
        (format!("{all} -zadd"), "add +@sortedset to the user's ACL"),
        (format!("{all} resetchannels"), "&lock:inbox:*"),
        ("worker on >secret ~other:* &* +@all".to_owned(), "~lock:*"),
        ("worker on >secret ~lock:* &* +@all".to_owned(), "~{*"),
    ] {
        let server = RedisServer::start_with(&acl(&user)).await;
        let why = refusal(&format!("redis://worker:secret@127.0.0.1:{}", server.port)).await;
        assert!(why.contains(missing), "{user}: {why}");
    }
}

#[tokio::test]
async fn what_was_tried_leaves_nothing_behind() {
    let server = RedisServer::start().await;
    let locks = LockManager::connect(&server.url()).await.unwrap();
    assert_eq!(names(&server.client().await, "*").await, ["{lock:}:fence"]);
    drop(locks);
}
