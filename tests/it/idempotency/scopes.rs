//! Within which scope a key is the same, and keys from elsewhere than the header.

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::BodyExt;
use tower_distributed_lock::{
    IdempotencyLayer, LockManager, key,
    lock::{Rejection, RejectionKind},
};

use super::untouchable;
use crate::nodes::Nodes;
use crate::once::{App, Body, InnerRequest, Runs, body, post, post_to, text, whole};
use crate::support::{Gate, names, soon};

on_every_store! {
    Nodes:
    the_same_key_with_another_method_or_path_is_another
    the_same_key_of_another_caller_is_another
    scopes_and_keys_do_not_run_together
    a_lock_and_a_record_are_never_the_same
    webhooks_have_their_own_rules
    the_key_can_be_in_the_body
}

async fn the_same_key_with_another_method_or_path_is_another(nodes: Nodes) {
    let runs = Runs::default();
    let app = App::new(&nodes.layer(), runs.handler());
    app.send(post_to("/a", "k")).await.is_run(1);
    app.send(post_to("/b", "k")).await.is_run(2);
    app.send(post_to("/a/", "k")).await.is_run(3);
    let mut patch = post_to("/a", "k");
    *patch.method_mut() = Method::PATCH;
    app.send(patch).await.is_run(4);
    app.send(post_to("/a", "k")).await.is_replay_of(1);
    app.send(post_to("/%61", "k")).await.is_replay_of(1);
    app.send(post_to("/b", "k")).await.is_replay_of(2);
}

fn from_user(user: Option<&str>, key: &str) -> Request<Body> {
    let mut request = post(key);
    if let Some(user) = user {
        request
            .headers_mut()
            .insert("x-user", user.parse().unwrap());
    }
    request
}

async fn the_same_key_of_another_caller_is_another(nodes: Nodes) {
    let runs = Runs::default();
    let scope = key::join(key::header("x-user"), key::method_and_path());
    let app = App::new(&nodes.layer().scope(scope), runs.handler());
    app.send(from_user(Some("ann"), "k")).await.is_run(1);
    app.send(from_user(Some("bob"), "k")).await.is_run(2);
    app.send(from_user(Some("ann"), "k")).await.is_replay_of(1);
    app.send(from_user(Some("bob"), "k")).await.is_replay_of(2);
    for nobody in [from_user(None, "k"), from_user(Some(""), "k")] {
        let nobody = nobody.map(|_| untouchable());
        app.send(nobody).await.is_refused(400);
    }
    // A scope that no request can have is a mistake of the service.
    let wrong = nodes.layer().scope(key::path("/users/{id}/**"));
    let app = App::new(&wrong, runs.handler());
    let request = from_user(Some("ann"), "k").map(|_| untouchable());
    app.send(request).await.is_refused(500);
    assert_eq!(runs.count(), 2);
}

async fn scopes_and_keys_do_not_run_together(nodes: Nodes) {
    let runs = Runs::default();
    let app = App::new(&nodes.layer().scope(key::header("x-user")), runs.handler());
    let long = "s".repeat(600);
    let pairs = [
        ("a:b", "c"),
        ("a", "b:c"),
        ("a%3Ab", "c"),
        ("a", "b%3Ac"),
        ("a", "bc"),
        ("ab", "c"),
        ("sha256", "c"),
        ("sha256:a", "c"),
        (&long, "c"),
        (&long, "d"),
        ("a", "c}:queue"),
        ("a}:queue:{lock:a", "c"),
    ];
    for (number, (scope, key)) in pairs.into_iter().enumerate() {
        app.send(from_user(Some(scope), key))
            .await
            .is_run(number + 1);
    }
    for (number, (scope, key)) in pairs.into_iter().enumerate() {
        let again = app.send(from_user(Some(scope), key)).await;
        again.is_replay_of(number + 1);
    }
}

async fn a_lock_and_a_record_are_never_the_same(nodes: Nodes) {
    let (runs, gate) = (Runs::default(), Gate::new());
    let app = App::new(&nodes.layer(), runs.gated(&gate));
    // The key's name in Redis, and names that might be mistaken for it.
    let record = "{lock:POST%3A/a:k}:record";
    let alike = [
        record,
        "POST%3A/a:k",
        "POST:/a:k",
        "lock:POST%3A/a:k",
        "{lock:POST%3A/a:k}",
        "{POST%3A/a:k}:record",
        "}:record",
        ":record",
    ];
    let locks_are_free = async || {
        for name in alike {
            for locks in [&nodes.one, &nodes.two] {
                let guard = locks.try_acquire(name).await.unwrap();
                guard.release().await.unwrap();
            }
        }
    };
    // If others hold locks of these names, the request runs all the same.
    let mut guards = Vec::new();
    for name in alike {
        guards.push(nodes.two.try_acquire(name).await.unwrap());
    }
    let first = app.begin(post("k")).await;
    gate.arrived().await;
    if let Some(server) = nodes.server() {
        let redis = server.client().await;
        assert!(names(&redis, "*").await.contains(&record.to_owned()));
    }
    for guard in guards {
        guard.release().await.unwrap();
    }
    locks_are_free().await;
    app.send(post("k")).await.is_refused(409);
    gate.open();
    soon("a response", first).await.unwrap().is_run(1);
    locks_are_free().await;
    app.send(post("k")).await.is_replay_of(1);
    nodes.nothing_but_records_is_left().await;
}

// Other keys.

async fn webhooks_have_their_own_rules(nodes: Nodes) {
    let runs = Runs::default();
    let layer = IdempotencyLayer::webhook(nodes.one.clone(), "Webhook-Id");
    let app = App::new(&layer, runs.handler());
    let event = |method: Method, id: Option<&str>, payload: &'static str| {
        let mut request = Request::builder().method(method).uri("/hook");
        if let Some(id) = id {
            request = request.header("webhook-id", id);
        }
        request.body(body(payload)).unwrap()
    };
    app.send(event(Method::POST, Some("e1"), "one"))
        .await
        .is_run(1);
    // When an event is sent again, its timestamp differs.
    app.send(event(Method::POST, Some("e1"), "two"))
        .await
        .is_replay_of(1);
    app.send(event(Method::PUT, Some("e2"), "")).await.is_run(2);
    app.send(event(Method::PUT, Some("e2"), ""))
        .await
        .is_replay_of(2);
    app.send(event(Method::POST, None, ""))
        .await
        .is_refused(400);
    app.send(event(Method::GET, None, "")).await.is_refused(400);
    app.send(event(Method::POST, Some(""), ""))
        .await
        .is_refused(400);
    assert_eq!(runs.count(), 2);
}

async fn the_key_can_be_in_the_body(nodes: Nodes) {
    let runs = Runs::default();
    let by_body = |layer: IdempotencyLayer| {
        layer.key(|_, body: &Bytes| {
            let text = std::str::from_utf8(body).ok()?;
            Some(text.strip_prefix("id=")?.split(';').next()?.to_owned())
        })
    };
    let event = |payload: &'static str| Request::post("/hook").body(body(payload)).unwrap();
    let hook = IdempotencyLayer::webhook(nodes.one.clone(), "x");
    let app = App::new(&by_body(hook), runs.handler());
    app.send(event("id=1;x")).await.is_run(1);
    app.send(event("id=1;y")).await.is_replay_of(1);
    app.send(event("id=2;x")).await.is_run(2);
    app.send(event("none")).await.is_refused(400);
    app.send(event("id=")).await.is_refused(400);
    // Where no key is required, a request without one runs, with the body that was read.
    let optional = App::new(
        &by_body(nodes.layer()),
        runs.then(|run, request: InnerRequest| async move {
            let payload = whole(request.into_body()).collect().await.unwrap();
            let payload = payload.to_bytes();
            assert_eq!(payload, "none");
            Ok(text(format!("run {run}")))
        }),
    );
    optional.send(event("none")).await.is_run(3);
    optional.send(event("none")).await.is_run(4);
}

#[tokio::test]
async fn a_webhook_without_a_header_is_known_by_what_the_closure_finds() {
    let locks = LockManager::in_memory();
    let runs = Runs::default();
    let layer = IdempotencyLayer::webhook_by(locks.clone(), |_, body: &Bytes| {
        let id = std::str::from_utf8(body).ok()?.split(' ').next()?;
        (!id.is_empty()).then(|| id.to_owned())
    });
    let app = App::new(&layer, runs.handler());
    let event = |method, content: &'static str| {
        let request = Request::builder().method(method).uri("/a");
        request.body(body(content)).unwrap()
    };
    for method in ["POST", "PUT"] {
        let run = runs.count() + 1;
        app.send(event(method, "evt_1 first")).await.is_run(run);
        // The payload is not compared.
        app.send(event(method, "evt_1 again"))
            .await
            .is_replay_of(run);
        app.send(event(method, "")).await.is_refused(400);
    }
    // The key of a rejection is the one that is forgotten.
    let answer = app.send(event("POST", "")).await;
    let rejection = answer.head.extensions.get::<Rejection>().unwrap();
    assert!(rejection.key().is_none() && rejection.error().is_none());
    let changed = App::new(&layer.clone().fingerprint(|_, _| "1"), runs.handler());
    changed.send(event("POST", "evt_2")).await.is_run(3);
    let other = App::new(&layer.fingerprint(|_, _| "2"), runs.handler());
    let answer = other.send(event("POST", "evt_2")).await;
    let rejection = answer.head.extensions.get::<Rejection>().unwrap();
    assert_eq!(rejection.kind(), RejectionKind::Mismatch);
    assert!(
        locks
            .forget(rejection.key().unwrap().clone())
            .await
            .unwrap()
    );
    other.send(event("POST", "evt_2")).await.is_run(4);
}
