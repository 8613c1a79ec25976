//! What a manager keeps in Redis, and how little it asks of it.

use tower_distributed_lock::{ErrorKind, LockManager};

use super::WAIT;
use crate::support::{
    RedisServer, clients, connections_per_manager, eventually, run, script_calls, sets, value,
};

#[tokio::test]
async fn the_owner_is_a_plain_string_with_an_expiry() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let locks = LockManager::connect(&server.url()).await.unwrap();
    let _guard = locks.try_acquire("account:7").await.unwrap();
    let owner = value(&redis, "lock:account:7").await.unwrap();
    let (manager, number) = owner.split_once(':').unwrap();
    assert_eq!(manager.len(), 32, "a UUID");
    assert!(number.parse::<u64>().is_ok());
    let redis::Value::Int(left) = run(&redis, "PTTL lock:account:7").await else {
        panic!("no number");
    };
    assert!((1..=10_000).contains(&left));
}

#[tokio::test]
async fn five_hundred_duplicates_cost_one_command() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let locks = LockManager::connect(&server.url()).await.unwrap();
    let takes = async || (sets(&redis).await, script_calls(&redis).await);
    let (before, scripts) = takes().await;
    let mut results =
        futures_util::future::join_all((0..500).map(|_| locks.try_acquire("a"))).await;
    assert_eq!(takes().await, (before + 1, scripts));
    let won: Vec<_> = results.extract_if(.., |result| result.is_ok()).collect();
    assert_eq!(won.len(), 1);
    assert!(results.iter().all(|result| {
        result
            .as_ref()
            .is_err_and(|error| error.kind() == ErrorKind::Held)
    }));
    // A manager knows which locks it holds, without Redis.
    let before = script_calls(&redis).await;
    assert!(locks.try_acquire("a").await.is_err());
    assert_eq!(script_calls(&redis).await - before, 0);
}

#[tokio::test]
async fn a_manager_has_the_same_connections_for_any_number_of_requests() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let before = clients(&redis).await.len();
    let locks = LockManager::connect(&server.url()).await.unwrap();
    let tasks = (0..500).map(|key| {
        let locks = locks.clone();
        async move {
            let _guard = locks.acquire(format!("{}", key % 50), WAIT).await.unwrap();
            tokio::task::yield_now().await;
        }
    });
    futures_util::future::join_all(tasks).await;
    assert_eq!(
        clients(&redis).await.len(),
        before + connections_per_manager()
    );
    drop(locks);
    eventually("the connection is closed with the last handle", || async {
        clients(&redis).await.len() == before
    })
    .await;
}
