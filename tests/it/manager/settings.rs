//! Settings that are refused when they are set.

use std::time::Duration;

use tower_distributed_lock::{ErrorKind, LockManager};

#[tokio::test]
async fn settings_that_make_no_sense_are_refused_when_they_are_set() {
    let zero = Duration::ZERO;
    let aeon = Duration::MAX;
    let builder = LockManager::builder;
    for (name, builder) in [
        ("ttl", builder().ttl(zero)),
        ("ttl", builder().ttl(Duration::from_millis(99))),
        ("ttl", builder().ttl(aeon)),
        ("renewal", builder().renewal(zero)),
        ("renewal", builder().renewal(Duration::from_secs(6))),
        ("max_hold", builder().max_hold(zero)),
        ("max_hold", builder().max_hold(aeon)),
        ("command_timeout", builder().command_timeout(zero)),
        (
            "command_timeout",
            builder().command_timeout(Duration::from_secs(11)),
        ),
        ("prefix", builder().prefix("")),
        ("prefix", builder().prefix("{lock}:")),
        ("prefix", builder().prefix("p".repeat(129))),
        ("max_waiters", builder().max_waiters(0)),
        ("max_keys", builder().max_keys(0)),
        ("max_keys", builder().max_keys(1001)),
    ] {
        let error = builder.in_memory().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[tokio::test]
async fn a_short_time_to_live_needs_no_other_setting() {
    let ms = Duration::from_millis;
    let short = || LockManager::builder().ttl(ms(100));
    let locks = short().in_memory().unwrap();
    drop(locks.try_acquire("a").await.unwrap());
    // One that is set stands, and is refused.
    let error = short().command_timeout(ms(101)).in_memory().unwrap_err();
    assert!(error.to_string().contains("command_timeout"), "{error}");
}

#[tokio::test]
async fn a_url_that_is_not_of_redis_is_refused_without_being_repeated() {
    for url in [
        "",
        "redis",
        "http://user:secret@localhost",
        "127.0.0.1:6379",
        "redis://",
        "redis://h/x",
        "redis://0.0.0.0",
    ] {
        let error = LockManager::connect(url).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config, "{url}: {error}");
        assert!(!error.to_string().contains("secret"));
    }
    if cfg!(not(feature = "tls")) {
        let error = LockManager::connect("rediss://localhost")
            .await
            .unwrap_err();
        assert!(error.to_string().contains("`tls`"), "{error}");
    }
}
