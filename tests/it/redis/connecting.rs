//! What a manager can be told to connect to, who it says that it is, and logins that change.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use redis::{Client, IntoConnectionInfo};
use tower_distributed_lock::{Credentials, ErrorKind, LockManager};

use super::recovers;
use crate::support::{
    RedisServer, clients, connections_per_manager, eventually, has_resp3, run, value,
};

#[tokio::test]
async fn a_unix_socket_works() {
    let server = RedisServer::start_with(&["--unixsocket", "redis.sock"]).await;
    let redis = server.client().await;
    let path = server.file("redis.sock");
    let url = format!("redis+unix://{}?db=2", path.display());
    let locks = LockManager::connect(url).await.unwrap();
    let guard = locks.try_acquire("a").await.unwrap();
    run(&redis, "SELECT 2").await;
    assert!(value(&redis, "lock:a").await.is_some());
    let lines = clients(&redis).await;
    let by_socket = lines.iter().filter(|line| line.contains("redis.sock:0"));
    assert_eq!(by_socket.count(), connections_per_manager());
    guard.release().await.unwrap();
    let nowhere = "redis+unix:///nowhere/redis.sock?pass=secret";
    let error = LockManager::connect(nowhere).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let text = error.to_string();
    assert!(
        text.contains("/nowhere/redis.sock") && !text.contains("secret"),
        "{text}"
    );
}

#[tokio::test]
async fn a_client_that_the_service_has_is_as_good_as_a_url() {
    let user = "worker on >secret ~* &* +@all";
    let server = RedisServer::start_with(&super::acl(user)).await;
    let redis = server.client().await;
    run(&redis, "SELECT 5").await;
    let url = format!("redis://worker:secret@127.0.0.1:{}/5", server.port);
    let client = Client::open(url.as_str()).unwrap();
    let info = url.as_str().into_connection_info().unwrap();
    for locks in [
        LockManager::connect(&client).await.unwrap(),
        LockManager::connect(client).await.unwrap(),
        LockManager::connect(info).await.unwrap(),
    ] {
        let guard = locks.try_acquire("a").await.unwrap();
        assert!(value(&redis, "lock:a").await.is_some());
        guard.release().await.unwrap();
    }
}

#[tokio::test]
async fn the_holder_of_a_lock_is_found_among_the_clients() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let locks = LockManager::builder().instance_name("api-7");
    let locks = locks.connect(server.url()).await.unwrap();
    let _other = LockManager::connect(server.url()).await.unwrap();
    let _guard = locks.try_acquire("a").await.unwrap();
    let token = value(&redis, "lock:a").await.unwrap();
    let (manager, _) = token.split_once(':').unwrap();
    let name = format!(" name=tower-distributed-lock:{manager}:api%2D7 ");
    let lines = clients(&redis).await;
    assert_eq!(lines.iter().filter(|line| line.contains(&name)).count(), 1);
}

#[tokio::test]
async fn the_callback_is_asked_at_every_connect() {
    let user = "worker on >one ~* &* +@all";
    let server = RedisServer::start_with(&super::acl(user)).await;
    let redis = server.client().await;
    // As a file that the service reads.
    let password = Arc::new(Mutex::new("one"));
    let read = password.clone();
    let locks = LockManager::builder()
        .credentials(move || {
            let password = *read.lock().unwrap();
            async move {
                match password {
                    "" => Err("there is no password"),
                    password => Ok(Credentials::new("worker", password)),
                }
            }
        })
        .connect(server.url())
        .await
        .unwrap();
    locks
        .try_acquire("a")
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    // The connection that lives is not affected.
    run(&redis, "ACL SETUSER worker >two <one").await;
    locks
        .try_acquire("a")
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    *password.lock().unwrap() = "";
    run(&redis, "CLIENT KILL USER worker").await;
    eventually("requests are told of the callback", || async {
        match locks.try_acquire("a").await {
            Ok(_) => false,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
                error.to_string().contains("there is no password")
            }
        }
    })
    .await;
    *password.lock().unwrap() = "two";
    recovers(&locks).await;
}

#[tokio::test]
async fn a_connection_is_logged_in_anew_before_its_credentials_expire() {
    let mut args = super::acl("first on >one ~* &* +@all");
    args.extend(super::acl("second on >two ~* &* +@all"));
    let server = RedisServer::start_with(&args).await;
    let redis = server.client().await;
    let logins = Arc::new(Mutex::new(0));
    let locks = LockManager::builder()
        .credentials(move || {
            let login = {
                let mut logins = logins.lock().unwrap();
                *logins += 1;
                *logins
            };
            async move {
                match login {
                    1 => Ok(Credentials::new("first", "one").valid_for(Duration::from_millis(200))),
                    // One that fails is tried again.
                    2 => Err("not now"),
                    3 => Ok(Credentials::new("second", "wrong")),
                    _ => Ok(Credentials::new("second", "two")),
                }
            }
        })
        .connect(server.url())
        .await
        .unwrap();
    let guard = locks.try_acquire("a").await.unwrap();
    let id_of = async |user: &str| {
        let user = format!(" user={user} ");
        let lines = clients(&redis).await;
        let line = lines.iter().find(|line| {
            // In RESP2, the inbox stays as it is.
            line.contains(&user) && (has_resp3() || line.contains(" sub=0 "))
        })?;
        Some(line.split(' ').next()?.to_owned())
    };
    let before = id_of("first").await.unwrap();
    eventually("it is logged in anew", || async {
        id_of("second").await.is_some_and(|after| after == before)
    })
    .await;
    guard.release().await.unwrap();
}
