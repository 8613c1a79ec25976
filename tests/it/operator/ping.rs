//! Whether locks can be taken.

use std::time::Duration;

use tower_distributed_lock::{ErrorKind, LockManager};

use crate::nodes::Store;
use crate::support::{
    ClosedPort, Cluster, Mode, Proxy, RedisServer, eventually, minute, short_lived, soon,
};

on_every_store!(Store:
    a_store_that_replies_is_ready_until_the_manager_is_closed
);

async fn a_store_that_replies_is_ready_until_the_manager_is_closed(store: Store) {
    let locks = store.locks().await;
    let took = soon("a reply", locks.ping()).await.unwrap();
    assert!(took < Duration::from_secs(1));
    locks.close().await;
    assert_eq!(locks.ping().await.unwrap_err().kind(), ErrorKind::Closed);
}

#[tokio::test]
async fn a_store_that_is_silent_or_away_is_not_ready_and_is_when_it_is_back() {
    let server = RedisServer::start().await;
    let proxy = Proxy::start(server.port).await;
    let timeout = Duration::from_millis(200);
    let locks = minute().command_timeout(timeout);
    let locks = locks.connect(&proxy.url()).await.unwrap();
    locks.ping().await.unwrap();
    for mode in [Mode::Hold, Mode::Close] {
        proxy.set(mode);
        let error = soon("an answer", locks.ping()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        proxy.set(Mode::Forward);
        eventually("it is ready", || async { locks.ping().await.is_ok() }).await;
    }
}

#[tokio::test]
async fn a_manager_that_no_request_has_used_yet_connects() {
    let server = RedisServer::start().await;
    let locks = LockManager::builder().connect_lazy(server.url()).unwrap();
    soon("a reply", locks.ping()).await.unwrap();
    let nowhere = short_lived(200)
        .connect_lazy(ClosedPort::new().url())
        .unwrap();
    let error = soon("an answer", nowhere.ping()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_ready_while_all_its_primaries_are() {
    let cluster = Cluster::start(3, 0).await;
    let timeout = Duration::from_millis(500);
    let locks = minute().quarantine(false).command_timeout(timeout);
    let locks = locks.connect_cluster_lazy(cluster.urls()).unwrap();
    eventually("it is ready", || async { locks.ping().await.is_ok() }).await;
    cluster.servers[1].signal("-STOP");
    let error = soon("an answer", locks.ping()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    cluster.servers[1].signal("-CONT");
    eventually("it is ready", || async { locks.ping().await.is_ok() }).await;
}

#[tokio::test]
async fn a_server_in_quarantine_is_not_ready() {
    let server = RedisServer::start().await;
    let locks = short_lived(500).quarantine(true);
    let locks = locks.connect(&server.url()).await.unwrap();
    let error = soon("an answer", locks.ping()).await.unwrap_err();
    assert!(error.to_string().contains("lost data"), "{error}");
    eventually("it is over", || async { locks.ping().await.is_ok() }).await;
}
