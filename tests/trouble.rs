//! Redis in trouble: a clear answer, never a hang, never two holders, and back to work without a restart.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{
    Mode, PATIENCE, Proxy, RedisServer, eventually, eventually_no_trace, free_port, has_resp3,
    minute, queue_length, run, script_calls, short_lived, soon, value,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tower_distributed_lock::{
    DistributedLockLayer, Error, ErrorKind, LockManager, LostReason,
    lock::{OnUnavailable, Unlocked},
};

const TIMEOUT: Duration = Duration::from_millis(300);

/// A command timeout that a test can wait for.
fn impatient() -> tower_distributed_lock::LockManagerBuilder {
    LockManager::builder().command_timeout(TIMEOUT)
}

async fn unavailable(locks: &LockManager) -> Error {
    let error = soon("an answer", locks.try_acquire("a")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    error
}

/// The first request that works, though every earlier one was answered as well.
async fn recovers(locks: &LockManager) {
    eventually("locks are to be had again", || async {
        match locks.try_acquire("recovered").await {
            Ok(guard) => guard.release().await.is_ok(),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
                false
            }
        }
    })
    .await;
}

#[tokio::test]
async fn not_running_at_start_connect_says_where_and_why() {
    let port = free_port();
    let url = format!("redis://user:secret@127.0.0.1:{port}");
    let error = LockManager::connect(&url).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let text = error.to_string();
    assert!(text.contains(&format!("127.0.0.1:{port}")), "{text}");
    assert!(text.to_lowercase().contains("connection refused"), "{text}");
    assert!(!error.to_string().contains("secret") && !format!("{error:?}").contains("secret"));
}

#[tokio::test]
async fn started_lazily_it_works_as_soon_as_redis_does() {
    let mut server = RedisServer::start().await;
    let url = server.url();
    server.kill();
    let locks = impatient().connect_lazy(&url).unwrap();
    let text = unavailable(&locks).await.to_string();
    assert!(text.to_lowercase().contains("connection refused"), "{text}");
    let error = locks.acquire("a", PATIENCE).await.unwrap_err();
    assert_eq!(
        error.kind(),
        ErrorKind::Unavailable,
        "a refusal is told at once"
    );
    server.restart().await;
    // The very next request: it does not wait for a pause between attempts to end.
    soon("an answer", locks.try_acquire("a"))
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
}

#[tokio::test]
async fn a_server_that_never_answers_is_told_within_the_command_timeout() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    let started = Instant::now();
    let error = impatient().connect(&url).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(
        error.to_string().contains("no answer within 300ms"),
        "{error}"
    );
    let locks = impatient().connect_lazy(&url).unwrap();
    unavailable(&locks).await;
    let error = locks.acquire("a", PATIENCE).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    // Three times the timeout would do. This says only that none of them waited for something else.
    assert!(started.elapsed() < PATIENCE);
    drop(listener);
}

#[tokio::test]
async fn after_repeated_failures_requests_are_answered_at_once_until_redis_is_back() {
    let server = RedisServer::start().await;
    let proxy = Proxy::start(server.port).await;
    let locks = impatient().connect(&proxy.url()).await.unwrap();
    proxy.set(Mode::Hold);
    let all = async {
        // If each waited for the timeout, it would take two minutes.
        for _ in 0..400 {
            unavailable(&locks).await;
        }
    };
    soon("they are answered", all).await;
    proxy.set(Mode::Forward);
    recovers(&locks).await;
}

#[tokio::test]
async fn answers_that_stop_are_noticed_and_what_arrives_late_leaves_no_lock() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    for mode in [Mode::Hold, Mode::HoldAnswers] {
        let proxy = Proxy::start(server.port).await;
        let locks = impatient()
            .ttl(Duration::from_secs(60))
            .connect(&proxy.url())
            .await
            .unwrap();
        proxy.set(mode);
        unavailable(&locks).await;
        let error = locks.acquire("a", PATIENCE).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        // What was kept back gets through now: commands that nobody waits for any more.
        proxy.set(Mode::Forward);
        recovers(&locks).await;
        eventually_no_trace(&redis).await;
    }
}

#[tokio::test]
async fn a_wait_ends_on_time_though_redis_does_not_answer_and_says_so() {
    let server = RedisServer::start().await;
    let proxy = Proxy::start(server.port).await;
    let locks = LockManager::builder()
        .command_timeout(Duration::from_secs(9))
        .connect(&proxy.url())
        .await
        .unwrap();
    proxy.set(Mode::Hold);
    let started = Instant::now();
    let error = locks
        .acquire("a", Duration::from_millis(100))
        .await
        .unwrap_err();
    // The lock may well be free.
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(started.elapsed() < Duration::from_secs(8));
}

#[tokio::test]
async fn a_layer_whose_wait_ends_before_redis_answers_takes_it_for_unavailable() {
    use tower::{Layer, ServiceExt};
    let server = RedisServer::start().await;
    let proxy = Proxy::start(server.port).await;
    let locks = LockManager::builder().command_timeout(Duration::from_secs(9));
    let locks = locks.connect(&proxy.url()).await.unwrap();
    proxy.set(Mode::Hold);
    let layer = DistributedLockLayer::new(locks, |_: &http::request::Parts| "a")
        .wait(Duration::from_millis(100));
    let answer = async |layer: &DistributedLockLayer, content_type: &str| {
        let handler = tower::service_fn(async |request: http::Request<String>| {
            assert!(request.extensions().get::<Unlocked>().is_some());
            Ok::<_, std::convert::Infallible>(http::Response::new(String::new()))
        });
        let request = http::Request::post("/").header("content-type", content_type);
        let request = request.body(String::new()).unwrap();
        let answer = layer.layer(handler).oneshot(request);
        soon("an answer", answer).await.unwrap()
    };
    assert_eq!(answer(&layer, "text/plain").await.status(), 503);
    let grpc = answer(&layer, "application/grpc").await;
    assert_eq!(grpc.headers()["grpc-status"], "14");
    let proceeds = layer.on_unavailable(OnUnavailable::Proceed);
    assert_eq!(answer(&proceeds, "text/plain").await.status(), 200);
}

#[tokio::test]
async fn a_wait_that_ends_while_redis_is_away_says_so_and_one_that_does_not_goes_on() {
    let mut server = RedisServer::start().await;
    let redis = server.client().await;
    let (one, two) = (
        LockManager::connect(&server.url()).await.unwrap(),
        LockManager::connect(&server.url()).await.unwrap(),
    );
    let guard = one.try_acquire("a").await.unwrap();
    let (short, long) = (two.clone(), two.clone());
    let short = tokio::spawn(async move { short.acquire("a", Duration::from_millis(500)).await });
    let long = tokio::spawn(async move { long.acquire("a", PATIENCE).await });
    eventually("they wait", || async {
        queue_length(&redis, "a").await == 1
    })
    .await;
    server.kill();
    let error = soon("an answer", short).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    server.restart().await;
    drop(guard);
    soon("the other goes on", long)
        .await
        .unwrap()
        .unwrap()
        .release()
        .await
        .unwrap();
}

#[tokio::test]
async fn a_wait_outlasts_an_outage_that_is_longer_than_the_time_to_live() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let proxy = Proxy::start(server.port).await;
    let one = short_lived(1000).connect(&server.url()).await.unwrap();
    let two = short_lived(1000).connect(&proxy.url()).await.unwrap();
    let guard = one.try_acquire("a").await.unwrap();
    let waiting = tokio::spawn(async move { two.acquire("a", PATIENCE).await });
    eventually("it waits", || async {
        queue_length(&redis, "a").await == 1
    })
    .await;
    proxy.set(Mode::Close);
    // The outage itself.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert!(!waiting.is_finished());
    proxy.set(Mode::Forward);
    drop(guard);
    let guard = soon("it is served", waiting).await.unwrap().unwrap();
    guard.release().await.unwrap();
    eventually_no_trace(&redis).await;
}

#[tokio::test]
async fn a_foreign_holder_is_looked_at_where_redis_may_not_tell() {
    for rule in ["-client|caching", "-mget", "-client|tracking"] {
        let user = format!("worker on >secret ~* &* +@all {rule}");
        let server = RedisServer::start_with(&acl(&user)).await;
        let redis = server.client().await;
        let url = format!("redis://worker:secret@127.0.0.1:{}", server.port);
        let locks = LockManager::connect(&url).await.unwrap();
        run(&redis, "SET lock:a somebody PX 60000").await;
        let waiting = tokio::spawn(async move { locks.acquire("a", PATIENCE).await });
        eventually("it waits", || async {
            queue_length(&redis, "a").await == 1
        })
        .await;
        run(&redis, "DEL lock:a").await;
        let guard = soon(rule, waiting).await.unwrap().unwrap();
        guard.release().await.unwrap();
    }
}

#[tokio::test]
async fn a_server_that_is_stopped_for_a_while_is_used_again() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let locks = impatient()
        .ttl(Duration::from_secs(60))
        .connect(&server.url())
        .await
        .unwrap();
    let guard = locks.try_acquire("held").await.unwrap();
    server.signal("-STOP");
    for _ in 0..3 {
        unavailable(&locks).await;
    }
    server.signal("-CONT");
    recovers(&locks).await;
    // The lease did not run out, and is still ours.
    guard.release().await.unwrap();
    // None of the requests that were refused has left a lock, though the server has read them all by now.
    eventually_no_trace(&redis).await;
}

#[tokio::test]
async fn a_loss_is_told_before_the_server_can_have_expired_the_lease() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let proxy = Proxy::start(server.port).await;
    for mode in [Mode::Hold, Mode::HoldAnswers, Mode::Close] {
        let locks = short_lived(1500)
            .command_timeout(TIMEOUT)
            .connect(&proxy.url())
            .await
            .unwrap();
        let guard = locks.try_acquire("a").await.unwrap();
        let lease = guard.lease().clone();
        let before = script_calls(&redis).await;
        eventually("it has been renewed", || async {
            script_calls(&redis).await > before
        })
        .await;
        proxy.set(mode);
        assert_eq!(
            soon("the loss is told", guard.lost()).await,
            LostReason::Expired
        );
        assert!(!lease.is_held());
        assert!(
            value(&redis, "lock:a").await.is_some(),
            "{mode:?}: the server had expired it before"
        );
        drop(guard);
        proxy.set(Mode::Forward);
        recovers(&locks).await;
        eventually_no_trace(&redis).await;
    }
}

#[tokio::test]
async fn one_failed_renewal_is_not_a_loss() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let proxy = Proxy::start(server.port).await;
    let locks = short_lived(3000)
        .command_timeout(TIMEOUT)
        .connect(&proxy.url())
        .await
        .unwrap();
    let guard = locks.try_acquire("a").await.unwrap();
    let clients = async || {
        let list: String = redis::cmd("CLIENT")
            .arg("LIST")
            .query_async(&mut redis.clone())
            .await
            .unwrap();
        list.matches(" sub=1 ").count()
    };
    for _ in 0..4 {
        eventually("it is connected", async || clients().await == 1).await;
        proxy.set(Mode::Close);
        eventually("it is cut off", async || clients().await == 0).await;
        proxy.set(Mode::Forward);
    }
    let held_since = Instant::now();
    while held_since.elapsed() < Duration::from_secs(4) {
        assert!(guard.lease().is_held());
        assert!(value(&redis, "lock:a").await.is_some());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    guard.release().await.unwrap();
}

#[tokio::test]
async fn a_connection_that_is_killed_costs_no_request() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let one = LockManager::builder().ttl(Duration::from_secs(60));
    let (one, two) = (
        one.clone().connect(&server.url()).await.unwrap(),
        one.connect(&server.url()).await.unwrap(),
    );
    let guard = one.try_acquire("held").await.unwrap();
    let waiting = tokio::spawn(async move { two.acquire("held", PATIENCE).await });
    eventually("the other waits", || async {
        queue_length(&redis, "held").await == 1
    })
    .await;
    for round in 0..20 {
        run(&redis, "CLIENT KILL TYPE normal SKIPME yes").await;
        run(&redis, "CLIENT KILL TYPE pubsub SKIPME yes").await;
        one.try_acquire(format!("{round}"))
            .await
            .unwrap()
            .release()
            .await
            .unwrap();
    }
    guard.release().await.unwrap();
    // Its inbox was gone for a moment: the grant may have been missed, but not for long.
    soon("the waiter is served", waiting)
        .await
        .unwrap()
        .unwrap()
        .release()
        .await
        .unwrap();
    eventually_no_trace(&redis).await;
}

#[tokio::test]
async fn restarted_empty_the_lock_is_lost_and_the_next_request_works() {
    let mut server = RedisServer::start().await;
    let locks = LockManager::builder()
        .ttl(Duration::from_secs(60))
        .connect(&server.url())
        .await
        .unwrap();
    let guard = locks.try_acquire("a").await.unwrap();
    server.kill();
    server.restart().await;
    // The next renewal would be in twenty seconds: it is looked at as soon as the server is back.
    assert_eq!(
        soon("the loss is told", guard.lost()).await,
        LostReason::Taken
    );
    let again = locks.try_acquire("a").await.unwrap();
    assert!(again.fencing_token() > guard.fencing_token());
    drop(guard);
    again.release().await.unwrap();
}

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

fn acl(user: &str) -> Vec<&str> {
    std::iter::once("--user")
        .chain(user.split_whitespace())
        .collect()
}

#[tokio::test]
async fn an_acl_user_with_just_these_rights_and_a_database_number_work() {
    let user = "worker on >secret ~lock:* ~{* &lock:inbox:* +@connection +@scripting +@string +@list +@keyspace \
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
    // Whatever a stranger's key looks like.
    for key in ["{a}b", "a}b", "{}b", "a{b", "b:queue", "\r\n", "inbox:"] {
        let guard = locks.acquire(key, PATIENCE).await.unwrap();
        guard.release().await.unwrap();
    }
    // A user who may not: told, not hung.
    let user = "guest on >secret ~lock:* &lock:inbox:* +@connection +subscribe +script";
    let server = RedisServer::start_with(&acl(user)).await;
    let url = format!("redis://guest:secret@127.0.0.1:{}", server.port);
    let locks = LockManager::builder().connect_lazy(&url).unwrap();
    let error = unavailable(&locks).await;
    assert!(
        error.to_string().contains("NoPerm"),
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
    // Without an inbox, nobody would be told of a grant. Redis also ends connections that have what they may not.
    run(&redis, "ACL SETUSER default resetchannels").await;
    // With RESP2 the inbox has a connection of its own. Until the driver has seen that one end, the
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
async fn a_read_only_replica_gives_no_locks_until_it_is_promoted() {
    let primary = RedisServer::start().await;
    let port = primary.port.to_string();
    let replica = RedisServer::start_with(&["--replicaof", "127.0.0.1", &port]).await;
    let redis = replica.client().await;
    let locks = LockManager::connect(&replica.url()).await.unwrap();
    let error = unavailable(&locks).await;
    assert!(
        error.to_string().contains("READONLY"),
        "{}",
        error.to_string()
    );
    run(&redis, "REPLICAOF NO ONE").await;
    recovers(&locks).await;
}

#[tokio::test]
async fn a_release_that_a_replica_refuses_looks_for_the_primary_and_not_all_the_time() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let locks = minute().connect(&server.url()).await.unwrap();
    let guard = locks.try_acquire("a").await.unwrap();
    // Another server took over. Behind the same address, there may be the new primary.
    run(&redis, "REPLICAOF 127.0.0.1 1").await;
    let connections = || async {
        let stats: String = redis::from_redis_value(run(&redis, "INFO stats").await).unwrap();
        let total = stats
            .lines()
            .find_map(|line| line.strip_prefix("total_connections_received:"));
        total.unwrap().trim().parse::<usize>().unwrap()
    };
    let (before, calls) = (connections().await, script_calls(&redis).await);
    let started = Instant::now();
    drop(guard);
    eventually("it connects anew", || async {
        connections().await > before
    })
    .await;
    eventually("it tries again and again", || async {
        script_calls(&redis).await >= calls + 4
    })
    .await;
    assert!(started.elapsed() > Duration::from_millis(20 + 40 + 80));
    run(&redis, "REPLICAOF NO ONE").await;
    eventually_no_trace(&redis).await;
}

#[tokio::test]
async fn out_of_memory_refuses_new_locks_and_releases_old_ones() {
    let server = RedisServer::start_with(&["--maxmemory-policy", "noeviction"]).await;
    let redis = server.client().await;
    let locks = LockManager::connect(&server.url()).await.unwrap();
    let other = LockManager::connect(&server.url()).await.unwrap();
    let guard = locks.try_acquire("a").await.unwrap();
    let waited_for = locks.try_acquire("b").await.unwrap();
    let waiting = tokio::spawn(async move { other.acquire("b", PATIENCE).await });
    eventually("the other waits", || async {
        queue_length(&redis, "b").await == 1
    })
    .await;
    run(&redis, "CONFIG SET maxmemory 1").await;
    let error = soon("an answer", locks.try_acquire("c")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("OOM"), "{}", error.to_string());
    guard.release().await.unwrap();
    assert_eq!(value(&redis, "lock:a").await, None);
    waited_for.release().await.unwrap();
    run(&redis, "CONFIG SET maxmemory 0").await;
    recovers(&locks).await;
    let waited = soon("an answer", waiting).await.unwrap();
    assert!(waited.is_ok() || waited.is_err_and(|error| error.kind() == ErrorKind::Unavailable));
}

#[tokio::test]
async fn a_server_that_is_loading_its_data_is_waited_for() {
    let mut server = RedisServer::start_with(&["--dbfilename", "dump.rdb"]).await;
    let redis = server.client().await;
    run(&redis, "DEBUG POPULATE 20000").await;
    run(&redis, "SAVE").await;
    let locks = LockManager::connect(&server.url()).await.unwrap();
    locks
        .try_acquire("a")
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    server.kill();
    // A hundred µs a key: two seconds.
    server
        .restart_with(&[
            "--key-load-delay",
            "100",
            "--loading-process-events-interval-bytes",
            "1024",
        ])
        .await;
    let error = unavailable(&locks).await;
    assert!(
        error.to_string().to_lowercase().contains("loading"),
        "{}",
        error.to_string()
    );
    recovers(&locks).await;
}

#[tokio::test]
async fn a_key_that_holds_something_else_is_an_error_and_stays_as_it_is() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    run(&redis, "HSET lock:a field value").await;
    let locks = LockManager::connect(&server.url()).await.unwrap();
    // Beside it, in the same batch, a lock that is fine.
    let (wrong, right) = tokio::join!(locks.try_acquire("a"), locks.try_acquire("b"));
    let error = wrong.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(
        error.to_string().contains("WRONGTYPE"),
        "{}",
        error.to_string()
    );
    right.unwrap().release().await.unwrap();
    assert_eq!(run(&redis, "HLEN lock:a").await, redis::Value::Int(1));
}

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
    ] {
        let error = builder.in_memory().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains(name), "{error}");
    }
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

/// A proxy that closes its client's connection when it sees a command. What it had read reaches the server later, if
/// `late` says so.
async fn closing_proxy(
    server: u16,
    command: &'static [u8],
    times: usize,
    late: Option<Duration>,
) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let closed = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&closed);
    tokio::spawn(async move {
        loop {
            let (client, _) = listener.accept().await.unwrap();
            let counter = Arc::clone(&counter);
            tokio::spawn(async move {
                let (mut client_read, mut client_write) = client.into_split();
                let server = TcpStream::connect(("127.0.0.1", server)).await.unwrap();
                let (mut server_read, mut server_write) = server.into_split();
                let answers = tokio::spawn(async move {
                    let _ = tokio::io::copy(&mut server_read, &mut client_write).await;
                });
                let mut buffer = vec![0; 1 << 16];
                while let Ok(length @ 1..) = client_read.read(&mut buffer).await {
                    let chunk = &buffer[..length];
                    let is_it = chunk.windows(command.len()).any(|window| window == command);
                    if is_it && counter.fetch_add(1, Ordering::SeqCst) < times {
                        answers.abort();
                        drop(client_read);
                        let Some(late) = late else {
                            return;
                        };
                        tokio::time::sleep(late).await;
                        server_write.write_all(chunk).await.unwrap();
                        // Long enough for the server to have read it before it sees the end.
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        return;
                    }
                    server_write.write_all(chunk).await.unwrap();
                }
            });
        }
    });
    (port, closed)
}

#[tokio::test]
async fn a_connection_that_dies_at_every_command_is_told_after_two_attempts() {
    let server = RedisServer::start().await;
    let (port, closed) = closing_proxy(server.port, b"EVALSHA", usize::MAX, None).await;
    let locks = LockManager::connect(&format!("redis://127.0.0.1:{port}"))
        .await
        .unwrap();
    unavailable(&locks).await;
    // The release that follows may have been tried as well.
    assert!(closed.load(Ordering::SeqCst) <= 10);
}

#[tokio::test]
async fn a_copy_of_a_command_that_arrives_after_the_release_is_undone_as_soon_as_somebody_waits() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let late = Some(Duration::from_millis(200));
    let (port, _) = closing_proxy(server.port, b"EVALSHA", 1, late).await;
    let minute = LockManager::builder().ttl(Duration::from_secs(60));
    let locks = minute
        .clone()
        .connect(&format!("redis://127.0.0.1:{port}"))
        .await
        .unwrap();
    let other = minute.connect(&server.url()).await.unwrap();
    // The first attempt is cut off, the second one gets the lock, and the first arrives when it has been released.
    let guard = locks.try_acquire("a").await.unwrap();
    drop(guard);
    eventually("the late copy has taken the lock", || async {
        value(&redis, "lock:a").await.is_some()
    })
    .await;
    let guard = soon("the other is served", other.acquire("a", PATIENCE))
        .await
        .unwrap();
    drop(guard);
    eventually_no_trace(&redis).await;
}

#[tokio::test]
async fn a_release_that_redis_refuses_for_a_while_is_tried_again() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let locks = LockManager::builder()
        .ttl(Duration::from_secs(60))
        .connect(&server.url())
        .await
        .unwrap();
    let guard = locks.try_acquire("a").await.unwrap();
    run(&redis, "CONFIG SET min-replicas-to-write 1").await;
    assert_eq!(
        guard.release().await.unwrap_err().kind(),
        ErrorKind::Unavailable
    );
    run(&redis, "CONFIG SET min-replicas-to-write 0").await;
    eventually_no_trace(&redis).await;

    // Every so often, however long there was nothing to try again.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let guard = locks.try_acquire("a").await.unwrap();
    run(&redis, "CONFIG SET min-replicas-to-write 1").await;
    let (before, started) = (script_calls(&redis).await, Instant::now());
    drop(guard);
    eventually("it is tried again", || async {
        script_calls(&redis).await >= before + 4
    })
    .await;
    let calls = script_calls(&redis).await - before;
    let expected = 3 + started.elapsed().as_millis() as u64 / 100;
    assert!(calls <= expected, "{calls} instead of {expected}");
    run(&redis, "CONFIG SET min-replicas-to-write 0").await;
    eventually_no_trace(&redis).await;
}

#[tokio::test]
async fn an_acquire_that_fails_half_way_leaves_no_lock() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    run(&redis, "ACL SETUSER u on >p ~* &* +@all -time").await;
    let minute = LockManager::builder().ttl(Duration::from_secs(60));
    let url = format!("redis://u:p@127.0.0.1:{}", server.port);
    let locks = minute.clone().connect(&url).await.unwrap();
    unavailable(&locks).await;
    eventually_no_trace(&redis).await;
    // A fence, or a queue, that is something else.
    let locks = minute.connect(&server.url()).await.unwrap();
    run(&redis, "LPUSH {lock:}:fence x").await;
    unavailable(&locks).await;
    eventually("the lock is free again", || async {
        value(&redis, "lock:a").await.is_none()
    })
    .await;
    run(&redis, "DEL {lock:}:fence").await;
    run(&redis, "SET {lock:a}:queue x").await;
    let error = locks.acquire("a", PATIENCE).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    run(&redis, "DEL {lock:a}:queue").await;
    eventually_no_trace(&redis).await;
    // The holder cannot be told that another waits, who waits all the same.
    let guard = locks.try_acquire("a").await.unwrap();
    run(&redis, "ACL SETUSER u +time -publish").await;
    let other = LockManager::connect(&url).await.unwrap();
    let error = other.acquire("a", PATIENCE).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    eventually("it left the queue", || async {
        queue_length(&redis, "a").await == 0
    })
    .await;
    drop(guard);
    eventually_no_trace(&redis).await;
}

#[tokio::test]
async fn after_an_acquire_that_redis_refused_there_is_nothing_to_release() {
    let primary = RedisServer::start().await;
    let port = primary.port.to_string();
    let replica = RedisServer::start_with(&["--replicaof", "127.0.0.1", &port]).await;
    let scarce = "CONFIG SET min-replicas-to-write";
    let (none, nine) = (format!("{scarce} 0"), format!("{scarce} 9"));
    for (reason, server, commands, user) in [
        ("READONLY", &replica, ["PING"; 2], ""),
        ("OOM", &primary, ["PING", "CONFIG SET maxmemory 1"], ""),
        (
            "NOREPLICAS",
            &primary,
            ["CONFIG SET maxmemory 0", &nine],
            "",
        ),
        (
            "WRONGTYPE",
            &primary,
            [&none, "HSET lock:a field value"],
            "",
        ),
        (
            "Redis refused",
            &primary,
            ["DEL lock:a", "ACL SETUSER u on >p ~* &* +@all -set"],
            "u:p@",
        ),
    ] {
        let redis = server.client().await;
        for command in commands {
            run(&redis, command).await;
        }
        let url = format!("redis://{user}127.0.0.1:{}", server.port);
        let minute = LockManager::builder().ttl(Duration::from_secs(60));
        let locks = minute.connect(&url).await.unwrap();
        let before = script_calls(&redis).await;
        let error = unavailable(&locks).await.to_string();
        assert!(error.contains(reason), "{reason}: {error}");
        // A release would be refused as well, and be tried again for a minute.
        soon(reason, locks.close()).await;
        assert_eq!(script_calls(&redis).await, before + 1, "{reason}");
    }
}

#[tokio::test]
async fn a_reply_of_a_wrong_form_is_refused_and_what_it_hides_is_released() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    for reply in [
        "$1\r\nx\r\n",
        ":1\r\n",
        ":18014398509481986\r\n",
        "+OK\r\n",
        "*0\r\n",
    ] {
        let locks = LockManager::builder().ttl(Duration::from_secs(60));
        let url = garbling_proxy(server.port, reply).await;
        let locks = locks.connect(&url).await.unwrap();
        let asked = tokio::spawn({
            let locks = locks.clone();
            async move { locks.try_acquire("a").await.map(drop) }
        });
        let error = soon("an answer", asked)
            .await
            .expect("no panic")
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{reply:?}");
        assert!(error.to_string().contains("form"), "{error}");
        eventually_no_trace(&redis).await;
    }
}

/// Puts another reply in the place of the fence that comes with a lock.
async fn garbling_proxy(server: u16, reply: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (client, _) = listener.accept().await.unwrap();
            let server = TcpStream::connect(("127.0.0.1", server)).await.unwrap();
            let (mut client_read, mut client_write) = client.into_split();
            let (mut server_read, mut server_write) = server.into_split();
            tokio::spawn(async move { tokio::io::copy(&mut client_read, &mut server_write).await });
            tokio::spawn(async move {
                let mut buffer = vec![0; 1 << 16];
                while let Ok(length @ 1..) = server_read.read(&mut buffer).await {
                    let text = str::from_utf8(&buffer[..length]).unwrap();
                    let garbled = match text.strip_prefix("*1\r\n:") {
                        Some(fence) if fence.len() > 12 => format!("*1\r\n{reply}"),
                        _ => text.to_owned(),
                    };
                    client_write.write_all(garbled.as_bytes()).await.unwrap();
                }
            });
        }
    });
    url
}

/// How many keys Redis watches for its clients.
async fn watched_keys(redis: &redis::aio::MultiplexedConnection) -> u64 {
    let info: String = redis::cmd("INFO")
        .arg("stats")
        .query_async(&mut redis.clone())
        .await
        .unwrap();
    let keys = info
        .lines()
        .find_map(|line| line.strip_prefix("tracking_total_keys:"));
    keys.unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_lock_that_redis_evicts_is_told_at_once_if_redis_watches_it_and_else_at_the_first_check()
{
    let server = RedisServer::start_with(&["--maxmemory-policy", "allkeys-random"]).await;
    let redis = server.client().await;
    // No renewal can be the explanation: the first one comes after eight hours.
    let day = LockManager::builder().ttl(Duration::from_secs(24 * 3600));
    let locks = day.connect(&server.url()).await.unwrap();
    for is_watched in [false, true] {
        let guard = locks.try_acquire("a").await.unwrap();
        if is_watched && common::has_resp3() {
            eventually("it is watched", || async { watched_keys(&redis).await > 0 }).await;
        } else {
            assert_eq!(watched_keys(&redis).await, 0);
        }
        // Everything goes.
        run(&redis, "CONFIG SET maxmemory 1").await;
        let full: Result<(), _> = redis::cmd("SET")
            .arg(&["x", "x"])
            .query_async(&mut redis.clone())
            .await;
        assert!(full.is_err());
        run(&redis, "CONFIG SET maxmemory 0").await;
        assert_eq!(value(&redis, "lock:a").await, None);
        assert_eq!(soon("it is told", guard.lost()).await, LostReason::Taken);
    }
}

#[tokio::test]
async fn a_release_is_not_kept_back_by_requests_that_are_refused() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let minute = LockManager::builder().ttl(Duration::from_secs(60));
    let other = minute.clone().connect(&server.url()).await.unwrap();
    // Answers take a while: there is always one on the way.
    let ours = minute
        .connect(&slow_proxy(server.port, Duration::from_millis(2)).await)
        .await
        .unwrap();
    let mut popular = Vec::new();
    for number in 0..7 {
        popular.push(
            other
                .try_acquire(format!("popular {number}"))
                .await
                .unwrap(),
        );
    }
    let refused: Vec<_> = (0..7)
        .map(|number| {
            let ours = ours.clone();
            tokio::spawn(async move {
                loop {
                    let error = ours
                        .try_acquire(format!("popular {number}"))
                        .await
                        .unwrap_err();
                    assert_eq!(error.kind(), ErrorKind::Held);
                    tokio::time::sleep(Duration::from_millis(1 + number % 3)).await;
                }
            })
        })
        .collect();
    for number in 0..10 {
        let key = format!("{number}");
        drop(ours.try_acquire(key.as_str()).await.unwrap());
        soon("the release gets through", async {
            while value(&redis, &format!("lock:{key}")).await.is_some() {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
    for task in refused {
        assert!(!task.is_finished());
        task.abort();
    }
}

/// Adds a delay to each direction, without holding up what comes behind.
async fn slow_proxy(server: u16, delay: Duration) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (client, _) = listener.accept().await.unwrap();
            let server = TcpStream::connect(("127.0.0.1", server)).await.unwrap();
            let (client_read, client_write) = client.into_split();
            let (server_read, server_write) = server.into_split();
            for (mut from, mut to) in [(client_read, server_write), (server_read, client_write)] {
                let (sender, mut chunks) = tokio::sync::mpsc::unbounded_channel();
                tokio::spawn(async move {
                    let mut buffer = vec![0; 1 << 16];
                    while let Ok(length @ 1..) = from.read(&mut buffer).await {
                        let due = tokio::time::Instant::now() + delay;
                        let _ = sender.send((due, buffer[..length].to_vec()));
                    }
                });
                tokio::spawn(async move {
                    while let Some((due, chunk)) = chunks.recv().await {
                        tokio::time::sleep_until(due).await;
                        let _ = to.write_all(&chunk).await;
                    }
                });
            }
        }
    });
    url
}

/// The answer to a question that only a request without patience still waits for, and no answer comes.
#[tokio::test]
async fn requests_that_join_and_leave_while_redis_is_silent_leave_nothing_behind() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let proxy = Proxy::start(server.port).await;
    let other = short_lived(1000).connect(&server.url()).await.unwrap();
    let locks = short_lived(1000).command_timeout(TIMEOUT);
    let locks = locks.connect(&proxy.url()).await.unwrap();
    let held = other.try_acquire("a").await.unwrap();
    let mut patient = Box::pin(locks.acquire("a", PATIENCE));
    assert!(futures_util::poll!(&mut patient).is_pending());
    // Others, whose answers are to come with those for the first.
    let mut guards = Vec::new();
    let mut waiting = Vec::new();
    for number in 0..40 {
        let key = format!("other {number}");
        guards.push(other.try_acquire(&key).await.unwrap());
        let locks = locks.clone();
        waiting.push(tokio::spawn(async move {
            locks.acquire(key, PATIENCE).await.map(drop)
        }));
    }
    eventually("all wait in Redis", || async {
        queue_length(&redis, "a").await == 1 && queue_length(&redis, "other 39").await == 1
    })
    .await;

    // It asks again, as it is told of a change, and its question does not arrive.
    proxy.set(Mode::HoldRequests);
    let token = run(&redis, "LRANGE {lock:a}:queue 0 0").await;
    let token: Vec<String> = redis::from_redis_value(token).unwrap();
    let (process, number) = token[0].split_once(':').unwrap();
    let message = format!("PUBLISH lock:inbox:{process} c{number}:lock:a");
    run(&redis, &message).await;
    // While the slot asks, a request that does not wait is not answered at once.
    let mut impatient = loop {
        let mut impatient = Box::pin(locks.try_acquire("a"));
        if futures_util::poll!(&mut impatient).is_pending() {
            break impatient;
        }
        tokio::task::yield_now().await;
    };
    drop(patient);
    let error = soon("an answer", &mut impatient).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    drop((held, guards));
    eventually("the locks are free", || async {
        value(&redis, "lock:a").await.is_none() && value(&redis, "lock:other 39").await.is_none()
    })
    .await;

    proxy.set(Mode::Forward);
    for waiting in waiting {
        soon("its turn", waiting).await.unwrap().unwrap();
    }
    eventually_no_trace(&redis).await;
    recovers(&locks).await;
}

/// Redis tells a client of changes to what it watches in whatever database they are made.
#[tokio::test]
async fn holders_of_one_name_in_two_databases_leave_each_other_in_peace() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let databases = ["0", "1"].map(|database| format!("{}/{database}", server.url()));
    let mut guards = Vec::new();
    for url in &databases {
        let locks = minute().connect(url).await.unwrap();
        guards.push(locks.try_acquire("a").await.unwrap());
    }
    let is_watched = || async {
        let stats = run(&redis, "INFO stats").await;
        let stats: String = redis::from_redis_value(stats).unwrap();
        stats.contains("tracking_total_keys:1") || !has_resp3()
    };
    eventually("Redis watches the lock", is_watched).await;
    // Whatever is provoked by that comes to an end.
    eventually("there are no more calls", || async {
        let before = script_calls(&redis).await;
        for _ in 0..300 {
            run(&redis, "PING").await;
        }
        script_calls(&redis).await == before
    })
    .await;

    // What is looked at for nothing is not written to.
    let renewals = async || {
        let stats = run(&redis, "INFO commandstats").await;
        let stats: String = redis::from_redis_value(stats).unwrap();
        let line = stats
            .lines()
            .find(|line| line.starts_with("cmdstat_pexpire:"));
        line.map(|line| line.split(',').next().unwrap().to_owned())
    };
    let (before, calls) = (renewals().await, script_calls(&redis).await);
    if has_resp3() {
        let other = redis::Client::open(format!("{}/5", server.url())).unwrap();
        let mut other = other.get_multiplexed_async_connection().await.unwrap();
        let _: () = redis::cmd("FLUSHDB").query_async(&mut other).await.unwrap();
        eventually("both have looked", || async {
            script_calls(&redis).await >= calls + 2
        })
        .await;
        assert_eq!(renewals().await, before);
    }
    assert!(guards.iter().all(|guard| guard.lease().is_held()));
}

#[tokio::test]
async fn a_grant_is_trusted_for_no_longer_than_the_process_that_gave_it_has_set() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let proxy = Proxy::start(server.port).await;
    let short = short_lived(300).connect(&server.url()).await.unwrap();
    let long = minute().connect(&proxy.url()).await.unwrap();
    let guard = short.try_acquire("a").await.unwrap();
    let waiting = tokio::spawn(async move { long.acquire("a", PATIENCE).await.unwrap() });
    eventually("it waits", || async {
        queue_length(&redis, "a").await == 1
    })
    .await;
    // The grant gets there, and nothing that would renew it.
    proxy.set(Mode::HoldRequests);
    drop(guard);
    let begun = Instant::now();
    if !has_resp3() {
        // A grant that cannot be dated is confirmed first, which does not get through.
        drop(eventually_acquired(&short).await);
        assert!(!waiting.is_finished());
        return;
    }
    let granted = soon("the grant", waiting).await.unwrap();
    let third = eventually_acquired(&short).await;
    assert!(!granted.lease().is_held(), "after {:?}", begun.elapsed());
    assert!(third.fencing_token() > granted.fencing_token());
}

async fn eventually_acquired(locks: &LockManager) -> tower_distributed_lock::LockGuard {
    soon("the lock", async {
        loop {
            if let Ok(guard) = locks.try_acquire("a").await {
                return guard;
            }
        }
    })
    .await
}

/// Its settings have the queue expire sooner. The lock's holder tells nobody when it will be free.
#[tokio::test]
async fn a_process_with_a_short_time_to_live_does_not_end_the_wait_of_others() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let long = minute().connect(&server.url()).await.unwrap();
    let short = short_lived(100).connect(&server.url()).await.unwrap();
    run(&redis, "SET lock:a somebody").await;
    let waiting = tokio::spawn(async move { long.acquire("a", PATIENCE).await.map(drop) });
    eventually("it waits", || async {
        queue_length(&redis, "a").await == 1
    })
    .await;
    let error = short.acquire("a", TIMEOUT).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    let lasts: i64 = redis::from_redis_value(run(&redis, "PTTL {lock:a}:queue").await).unwrap();
    assert!(lasts > 60_000, "{lasts}");
    run(&redis, "DEL lock:a").await;
    soon("its turn", waiting).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_lock_that_is_lost_by_max_hold_is_free_at_once() {
    let server = RedisServer::start().await;
    let holder = minute()
        .max_hold(TIMEOUT)
        .connect(&server.url())
        .await
        .unwrap();
    let other = minute().connect(&server.url()).await.unwrap();
    let guard = holder.try_acquire("a").await.unwrap();
    let next = soon("its turn", other.acquire("a", PATIENCE))
        .await
        .unwrap();
    assert_eq!(guard.lease().lost_reason(), Some(LostReason::MaxHold));
    assert!(next.fencing_token() > guard.fencing_token());
    drop(guard);
    assert!(next.lease().is_held());
    next.release().await.unwrap();
}

fn runtime(threads: usize) -> tokio::runtime::Runtime {
    let mut runtime = match threads {
        0 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = runtime.worker_threads(threads.max(1));
    runtime.enable_all().build().unwrap()
}

#[test]
fn a_manager_works_where_its_own_runtime_is_not_driven() {
    let (idle, driven) = (runtime(0), runtime(2));
    let server = driven.block_on(RedisServer::start());
    let locks = idle.block_on(impatient().connect(&server.url())).unwrap();
    driven.block_on(async {
        let guard = locks.try_acquire("a").await.unwrap();
        let waiting = locks.clone();
        let waiting = tokio::spawn(async move { waiting.acquire("a", PATIENCE).await });
        guard.release().await.unwrap();
        let guard = soon("its turn", waiting).await.unwrap().unwrap();
        drop(guard);
        soon("an end", locks.close()).await;
    });
}

/// A handler that blocks the only thread of its runtime holds its lock meanwhile.
#[test]
fn a_lock_is_renewed_while_its_thread_is_blocked() {
    let (blocked, driven) = (runtime(0), runtime(1));
    let server = driven.block_on(RedisServer::start());
    let renewals = driven.block_on(server.client());
    blocked.block_on(async {
        let locks = short_lived(300).connect(&server.url()).await.unwrap();
        let guard = locks.try_acquire("a").await.unwrap();
        // Until it would have expired, had nobody renewed it.
        let (done, wait) = std::sync::mpsc::channel();
        driven.spawn(async move {
            let owner = value(&renewals, "lock:a").await;
            let begun = Instant::now();
            eventually("its time to live is over", || async {
                begun.elapsed() > Duration::from_millis(600)
            })
            .await;
            done.send((owner, value(&renewals, "lock:a").await))
                .unwrap();
        });
        let (before, after) = wait.recv().unwrap();
        assert_eq!(before, after);
        assert!(before.is_some() && guard.lease().is_held());
    });
}

/// All threads of the runtime that the manager runs on are blocked.
#[test]
fn a_request_is_answered_though_nothing_drives_its_manager() {
    let (blocked, driven) = (runtime(1), runtime(2));
    let server = driven.block_on(RedisServer::start());
    let locks = blocked
        .block_on(impatient().connect(&server.url()))
        .unwrap();
    let (unblock, wait) = std::sync::mpsc::channel::<()>();
    let (tell, is_blocked) = std::sync::mpsc::channel();
    let blocking = blocked.spawn(async move {
        tell.send(()).unwrap();
        let _ = wait.recv();
    });
    is_blocked.recv().unwrap();
    driven.block_on(async {
        unavailable(&locks).await;
        let waiting = locks.acquire("b", TIMEOUT).await.unwrap_err();
        assert_eq!(waiting.kind(), ErrorKind::Unavailable);
        unblock.send(()).unwrap();
        soon("the end", blocking).await.unwrap();
        recovers(&locks).await;
        let redis = server.client().await;
        soon("an end", locks.close()).await;
        eventually_no_trace(&redis).await;
    });
}

/// A waker that panics, as that of a future of somebody else may.
#[tokio::test]
async fn a_waker_that_panics_takes_no_other_request_along() {
    struct Panics;
    impl std::task::Wake for Panics {
        fn wake(self: Arc<Self>) {
            panic!("a waker of the service");
        }
    }
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let proxy = Proxy::start(server.port).await;
    let locks = minute().connect(&proxy.url()).await.unwrap();
    proxy.set(Mode::HoldAnswers);
    // As many calls as may be on their way: what comes now goes out in one call, and is answered together.
    let mut first = Vec::new();
    for key in ["first", "second"] {
        let mut request = Box::pin(locks.try_acquire(key));
        assert!(futures_util::poll!(&mut request).is_pending());
        first.push(request);
        let name = format!("lock:{key}");
        eventually("it is there", || async {
            value(&redis, &name).await.is_some()
        })
        .await;
    }
    let waker = std::task::Waker::from(Arc::new(Panics));
    let mut context = std::task::Context::from_waker(&waker);
    let mut panicking = Box::pin(locks.try_acquire("a"));
    assert!(panicking.as_mut().poll(&mut context).is_pending());
    let others: Vec<_> = (0..20)
        .map(|number| {
            let locks = locks.clone();
            tokio::spawn(async move { locks.try_acquire(format!("other {number}")).await })
        })
        .collect();
    proxy.set(Mode::Forward);
    for request in first {
        drop(soon("an answer", request).await.unwrap());
    }
    for other in others {
        drop(soon("an answer", other).await.unwrap().unwrap());
    }
    eventually("its answer is there", || async {
        value(&redis, "lock:a").await.is_some()
    })
    .await;
    drop(panicking);
    eventually_no_trace(&redis).await;
    recovers(&locks).await;
}
