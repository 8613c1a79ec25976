//! `rediss://`, to a real server with a certificate made for it.
#![cfg(feature = "tls")]

#[allow(unreachable_pub)]
#[path = "../../tests/support/certificates.rs"]
mod certificates;
#[path = "../../tests/support/mod.rs"]
mod support;

use std::time::{Duration, Instant};

use certificates::{Certificates, authority};
use support::{
    PATIENCE, RedisServer, eventually, eventually_no_trace, minute, queue_length, run,
    script_calls, soon, value,
};
use tower_distributed_lock::{Error, ErrorKind, LockManager, LockManagerBuilder, LostReason};

/// A server that speaks TLS on one port, and plainly on another, for the test's own look at it.
struct TlsServer {
    plain: RedisServer,
    certificates: Certificates,
}

impl TlsServer {
    async fn start() -> Self {
        Self::start_as(&["localhost", "127.0.0.1"]).await
    }

    async fn start_as(names: &[&str]) -> Self {
        Self::start_with(names, "no").await
    }

    async fn start_with(names: &[&str], clients_need_certificates: &str) -> Self {
        let certificates = Certificates::of(names);
        let args = certificates.args(clients_need_certificates);
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        Self {
            plain: RedisServer::start_with(&args).await,
            certificates,
        }
    }

    fn port(&self) -> &str {
        self.plain.argument("--tls-port")
    }

    fn url(&self) -> String {
        format!("rediss://127.0.0.1:{}", self.port())
    }

    async fn locks(&self) -> LockManager {
        let builder = minute().tls_root_certificate(self.certificates.authority.as_str());
        builder.connect(&self.url()).await.unwrap()
    }
}

/// Asserts that the error says that the server at this address cannot be used. Returns its text.
fn unavailable(result: Result<LockManager, Error>, address: &str) -> String {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    let text = error.to_string();
    assert!(text.contains(address), "{text}");
    text
}

#[tokio::test]
async fn a_lock_goes_from_process_to_process_over_tls() {
    let server = TlsServer::start().await;
    let redis = server.plain.client().await;
    let (one, two) = (server.locks().await, server.locks().await);
    let guard = one.try_acquire("a").await.unwrap();
    assert!(value(&redis, "lock:a").await.is_some());
    let refused = two.try_acquire("a").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Held);
    let first = guard.fencing_token();
    let waiting = tokio::spawn({
        let two = two.clone();
        async move { two.acquire("a", PATIENCE).await }
    });
    eventually("the other waits", || async {
        queue_length(&redis, "a").await == 1
    })
    .await;
    guard.release().await.unwrap();
    // The lease would have lasted a minute: this process was told.
    let guard = soon("it is handed over", waiting).await.unwrap().unwrap();
    assert!(guard.fencing_token() > first);
    drop(guard);
    two.close().await;
    assert_eq!(value(&redis, "lock:a").await, None);
    eventually_no_trace(&redis).await;
}

#[tokio::test]
async fn the_servers_certificate_is_good_for_its_name_as_well() {
    let server = TlsServer::start().await;
    let builder = minute().tls_root_certificate(server.certificates.authority.as_str());
    let url = format!("rediss://localhost:{}", server.port());
    let locks = builder.connect(&url).await.unwrap();
    let guard = locks.try_acquire("a").await.unwrap();
    guard.release().await.unwrap();
}

#[tokio::test]
async fn a_lock_that_somebody_deletes_is_lost_at_once_over_tls() {
    let server = TlsServer::start().await;
    let redis = server.plain.client().await;
    let locks = server.locks().await;
    let guard = locks.try_acquire("a").await.unwrap();
    let before = script_calls(&redis).await;
    eventually("the lease has been looked at", || async {
        script_calls(&redis).await > before
    })
    .await;
    run(&redis, "DEL lock:a").await;
    assert_eq!(soon("we are told", guard.lost()).await, LostReason::Taken);
}

#[tokio::test]
async fn after_a_break_it_connects_again_over_tls() {
    let mut server = TlsServer::start().await;
    let locks = server.locks().await;
    locks
        .try_acquire("a")
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    server.plain.kill();
    let error = soon("an answer", locks.try_acquire("a")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    server.plain.restart().await;
    eventually("it works again", || async {
        match locks.try_acquire("a").await {
            Ok(guard) => guard.release().await.is_ok(),
            Err(_) => false,
        }
    })
    .await;
}

#[tokio::test]
async fn a_server_whose_authority_is_unknown_is_refused_and_the_error_says_why() {
    let server = TlsServer::start().await;
    let address = format!("127.0.0.1:{} (TLS)", server.port());
    // First with the authorities that the operating system trusts, then with another one.
    let text = unavailable(minute().connect(&server.url()).await, &address);
    assert!(text.contains("certificate"), "{text}");
    let another = minute().tls_root_certificate(authority().pem());
    let text = unavailable(another.connect(&server.url()).await, &address);
    assert!(text.contains("certificate"), "{text}");
    println!("{text}");
}

#[tokio::test]
async fn a_certificate_for_another_name_is_refused_and_the_error_says_why() {
    let server = TlsServer::start_as(&["redis.example.org"]).await;
    let builder = minute().tls_root_certificate(server.certificates.authority.as_str());
    let address = format!("127.0.0.1:{} (TLS)", server.port());
    let text = unavailable(builder.connect(&server.url()).await, &address);
    assert!(text.contains("certificate"), "{text}");
    println!("{text}");
}

#[tokio::test]
async fn a_certificate_for_another_name_is_good_if_that_name_is_expected() {
    let server = TlsServer::start_as(&["redis.example.org"]).await;
    let builder = minute().tls_root_certificate(server.certificates.authority.as_str());
    let right = builder.clone().tls_server_name("redis.example.org");
    let locks = right.connect(server.url()).await.unwrap();
    locks
        .try_acquire("a")
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    let address = format!("127.0.0.1:{} (TLS)", server.port());
    let wrong = builder.tls_server_name("redis.example.com");
    let text = unavailable(wrong.connect(server.url()).await, &address);
    assert!(text.contains("certificate"), "{text}");
}

#[tokio::test]
async fn a_server_that_wants_a_certificate_gets_one() {
    let server = TlsServer::start_with(&["127.0.0.1"], "yes").await;
    let (certificate, key) = server.certificates.client.clone();
    let builder = minute().tls_root_certificate(server.certificates.authority.as_str());
    let known = builder.clone().tls_client_certificate(certificate, key);
    let locks = known.connect(server.url()).await.unwrap();
    locks
        .try_acquire("a")
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    let address = format!("127.0.0.1:{} (TLS)", server.port());
    unavailable(builder.connect(server.url()).await, &address);
}

/// A client that the service has made for itself brings its certificates along.
#[tokio::test]
async fn the_certificates_of_a_client_are_used() {
    let server = TlsServer::start_with(&["127.0.0.1"], "yes").await;
    let (client_cert, client_key) = server.certificates.client.clone();
    let certificates = redis::TlsCertificates {
        client_tls: Some(redis::ClientTlsConfig {
            client_cert: client_cert.into(),
            client_key: client_key.into(),
        }),
        root_cert: Some(server.certificates.authority.clone().into()),
    };
    let client = redis::Client::build_with_tls(server.url(), certificates).unwrap();
    let locks = minute().connect(client).await.unwrap();
    locks
        .try_acquire("a")
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
}

#[tokio::test]
async fn what_is_no_certificate_and_no_name_is_refused_as_a_setting() {
    let refused = async |builder: LockManagerBuilder, url| {
        let error = builder.connect(url).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config, "{error}");
        println!("{error}");
    };
    let url = "rediss://127.0.0.1:1";
    let nonsense = "-----BEGIN NONSENSE-----";
    refused(minute().tls_root_certificate(nonsense), url).await;
    refused(minute().tls_client_certificate(nonsense, nonsense), url).await;
    refused(minute().tls_server_name("no name"), url).await;
    refused(
        minute().tls_server_name("redis.example.org"),
        "redis://127.0.0.1:1",
    )
    .await;
}

#[tokio::test]
async fn without_tls_to_a_tls_port_and_the_other_way_round_the_answer_comes_in_time() {
    const TIMEOUT: Duration = Duration::from_millis(500);
    let server = TlsServer::start().await;
    let plain_to_tls = format!("127.0.0.1:{}", server.port());
    let tls_to_plain = format!("127.0.0.1:{}", server.plain.port);
    for (scheme, address) in [("redis", plain_to_tls), ("rediss", tls_to_plain)] {
        let builder = minute().tls_root_certificate(server.certificates.authority.as_str());
        let builder = builder.command_timeout(TIMEOUT);
        let started = Instant::now();
        let url = format!("{scheme}://{address}");
        let text = unavailable(soon("an answer", builder.connect(&url)).await, &address);
        let took = started.elapsed();
        assert!(took < TIMEOUT + Duration::from_secs(1), "{took:?}");
        println!("{scheme}, after {took:?}: {text}");
    }
}
