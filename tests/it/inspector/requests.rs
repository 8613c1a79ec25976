//! Which request gets which response.

use http::{Method, StatusCode};
use http_body::Body as _;
use tower_distributed_lock::{LockManager, inspector};

use super::{get, send, text};
use crate::support::{ClosedPort, short_lived};

#[tokio::test]
async fn the_page_loads_nothing_from_elsewhere_and_says_so() {
    let page = inspector(LockManager::in_memory());
    for uri in ["/", "/locks", "/locks/", "/locks?other=1"] {
        let response = get(&page, uri).await;
        assert_eq!(response.status(), StatusCode::OK);
        let header = |name| response.headers()[name].to_str().unwrap().to_owned();
        assert_eq!(header("content-type"), "text/html; charset=utf-8");
        assert_eq!(header("cache-control"), "no-store");
        assert_eq!(header("x-content-type-options"), "nosniff");
        let policy = header("content-security-policy");
        for rule in [
            "default-src 'none'",
            "script-src 'sha256-",
            "connect-src 'self'",
            "frame-ancestors 'none'",
            "form-action 'none'",
        ] {
            assert!(policy.contains(rule), "{policy}");
        }
        assert!(!policy.contains("unsafe"), "{policy}");
        let html = text(response).await;
        // Under whatever prefix, what is asked for is at the same address.
        for attribute in [
            "href=\"",
            "src=\"",
            "fetch(\"",
            "ask(\"",
            "ask(`",
            "EventSource(\"",
        ] {
            for rest in html.split(attribute).skip(1) {
                let is_relative = ["?view=", "?do=", "#", "data:"];
                let is_relative = is_relative.iter().any(|begin| rest.starts_with(begin));
                assert!(is_relative, "{attribute}{}", &rest[..40]);
            }
        }
        assert!(html.contains("<noscript>"));
    }
}

#[tokio::test]
async fn what_is_not_there_is_refused_with_a_reason() {
    let page = inspector(LockManager::in_memory());
    for (method, uri, body, expected) in [
        (Method::GET, "/?view=other", "", 404),
        (Method::GET, "/?view=lock", "", 404),
        (Method::GET, "/?view=lock&id=0000000000000000", "", 404),
        (Method::GET, "/?view=locks&from=nowhere", "", 400),
        (Method::POST, "/?view=lock", "", 400),
        (Method::POST, "/?view=lock", &*"k".repeat(5000), 400),
        (Method::POST, "/", "", 405),
        (Method::DELETE, "/?view=snapshot", "", 405),
        (Method::PUT, "/?view=lock", "k", 405),
        (Method::POST, "/?do=other", "", 404),
    ] {
        let response = send(&page, method.clone(), uri, &[], body).await;
        assert_eq!(response.status(), expected, "{method} {uri}");
        assert_eq!(response.headers().contains_key("allow"), expected == 405);
        let why: serde_json::Value = serde_json::from_str(&text(response).await).unwrap();
        assert!(why["error"].is_string());
    }
    let head = send(&page, Method::HEAD, "/", &[], "").await;
    assert_eq!(head.status(), StatusCode::OK);
    assert!(head.body().size_hint().exact().unwrap() > 10_000);
}

#[tokio::test]
async fn without_redis_what_the_process_knows_is_shown_and_questions_fail() {
    let closed = ClosedPort::new();
    let locks = short_lived(1000).connect_lazy(closed.url()).unwrap();
    let page = inspector(locks);
    let shown = super::view(&page, "snapshot").await;
    assert_eq!(shown["is_store_up"], false);
    let response = send(&page, Method::POST, "/?view=lock", &[], "k").await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
}
