//! What is shown of locks.

use http::Method;
use serde_json::json;
use tower_distributed_lock::{ErrorKind, IdempotencyLayer, LockKey, LockManager, inspector};

use super::{get, row, send, snapshot, text, view};
use crate::nodes::Store;
use crate::once::{App, Runs, post};
use crate::support::{
    PATIENCE, RedisServer, eventually, eventually_queued, has_resp3, knows_what_was_said, minute,
    run, soon,
};

on_every_store!(Store:
    a_lock_is_shown_while_it_is_held_and_waited_for_and_when_it_is_lost
    one_lock_and_some_of_all_are_looked_up
    idempotency_keys_are_listed
);

async fn a_lock_is_shown_while_it_is_held_and_waited_for_and_when_it_is_lost(store: Store) {
    let locks = store.manager(minute().instance_name("node 1")).await;
    let page = inspector(locks.clone());
    let first = locks.try_acquire("k").await.unwrap();
    let shown = snapshot(&page).await;
    assert_eq!(shown["process"], "node 1");
    assert_eq!((&shown["held"], &shown["waiting"]), (&json!(1), &json!(0)));
    let held = &row(&shown, "k")["held"];
    assert_eq!(held["fencing_token"], first.fencing_token().to_string());
    assert!(held["for"].as_f64().unwrap() < 20_000.0);
    assert_eq!(row(&shown, "k")["holders"][0]["end"], "holds");

    let waiting = tokio::spawn({
        let locks = locks.clone();
        async move { locks.acquire("k", PATIENCE).await }
    });
    eventually("it waits", || async { locks.stats().waiting == 1 }).await;
    eventually("it is shown", || async {
        let shown = snapshot(&page).await;
        row(&shown, "k")["waiting"] == 1 && row(&shown, "k")["queues"][0]["to"] == 0
    })
    .await;
    let refused = locks.try_acquire("k").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Held);

    assert!(locks.force_release("k").await.unwrap());
    let second = soon("its turn", waiting).await.unwrap().unwrap();
    eventually("the loss is told, and the next holder", || async {
        let shown = snapshot(&page).await;
        let row = row(&shown, "k");
        let holders = row["holders"].as_array().unwrap();
        let ends: Vec<_> = holders.iter().map(|holder| &holder["end"]).collect();
        ends == ["taken", "holds"] && row["waiting"] == 0 && row["minute"]["acquired"] == 2
    })
    .await;
    let shown = snapshot(&page).await;
    assert_eq!(shown["minute"]["refused"]["held"], 1);
    assert_eq!(shown["minute"]["lost"], 1);
    let [loss] = &shown["losses"].as_array().unwrap()[..] else {
        panic!("one loss: {shown:#}")
    };
    assert_eq!(
        (&loss["key"], &loss["reason"]),
        (&json!("k"), &json!("taken"))
    );
    assert_eq!(loss["fencing_token"], first.fencing_token().to_string());
    drop(first);
    second.release().await.unwrap();
    let shown = snapshot(&page).await;
    assert!(row(&shown, "k")["held"].is_null());
    assert_eq!(row(&shown, "k")["holders"][1]["end"], "released");
}

async fn one_lock_and_some_of_all_are_looked_up(store: Store) {
    let locks = store.manager(minute().instance_name("node 1")).await;
    let page = inspector(locks.clone());
    let guard = locks.try_acquire("k").await.unwrap();
    let found = send(&page, Method::POST, "/?view=lock", &[], "k").await;
    let found = super::json(found).await;
    assert_eq!(found["occupant"], "process");
    assert_eq!(found["holders"][0]["name"], "node 1");
    assert_eq!(found["holders"][0]["is_this"], true);
    let token = guard.fencing_token().to_string();
    assert_eq!(found["holders"][0]["fencing_token"], token);
    assert!(found["remaining"].as_f64().unwrap() > 0.0);
    let id = found["id"].as_str().unwrap();
    assert_eq!(view(&page, &format!("lock&id={id}")).await["id"], id);

    let (mut from, mut all) = (String::new(), Vec::new());
    loop {
        let some = view(&page, &format!("locks&from={from}")).await;
        all.extend(some["locks"].as_array().unwrap().clone());
        match some["next"].as_str() {
            Some(next) => from = next.to_owned(),
            None => break,
        }
    }
    assert_eq!(all.len(), 1);
    assert_eq!(all[0]["id"], id);
    guard.release().await.unwrap();
    assert_eq!(
        view(&page, &format!("lock&id={id}")).await["occupant"],
        "free"
    );
}

async fn idempotency_keys_are_listed(store: Store) {
    let locks = store.locks().await;
    let app = App::new(
        &IdempotencyLayer::new(locks.clone()),
        Runs::default().handler(),
    );
    app.send(post("k")).await.is_run(1);
    let page = inspector(locks);
    let mut some = view(&page, "locks&from=records.0.0").await;
    while some["locks"] == json!([]) {
        let next = some["next"].as_str().expect("there is one");
        some = view(&page, &format!("locks&from={next}")).await;
    }
    assert_eq!(some["locks"][0]["occupant"], "record");
    assert_eq!(some["locks"][0]["is_record"], true);
}

#[tokio::test]
async fn a_lock_that_another_process_has_and_gives_is_shown_on_both_sides() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let node = |name| minute().instance_name(name).connect(server.url());
    let (one, two) = (node("one").await.unwrap(), node("two").await.unwrap());
    let (page_of_one, page_of_two) = (inspector(one.clone()), inspector(two.clone()));
    let guard = one.try_acquire("k").await.unwrap();
    let waiting = tokio::spawn({
        let two = two.clone();
        async move { two.acquire("k", PATIENCE).await }
    });
    eventually_queued(&redis, "k", 1).await;
    knows_what_was_said(&one).await;
    knows_what_was_said(&two).await;
    let shown = snapshot(&page_of_two).await;
    assert_eq!(row(&shown, "k")["is_queued"], true);
    assert_eq!(row(&shown, "k")["waiting"], 1);
    assert!(row(&shown, "k")["held"].is_null());
    let id = row(&shown, "k")["id"].as_str().unwrap();
    let page = page_of_two.clone().show_keys(true);
    view(&page, "snapshot").await;
    let asked = view(&page, &format!("lock&id={id}")).await;
    assert_eq!(asked["holders"][0]["name"], "one");
    assert_eq!(asked["waiting"][0]["name"], "two");
    assert_eq!(asked["waiting"][0]["is_this"], true);
    assert_eq!(
        row(&snapshot(&page_of_one).await, "k")["is_contended"],
        true
    );

    guard.release().await.unwrap();
    let guard = soon("its turn", waiting).await.unwrap().unwrap();
    eventually("the first has given it away", || async {
        let shown = snapshot(&page_of_one).await;
        row(&shown, "k")["holders"][0]["end"] == "granted_away"
    })
    .await;
    let shown = snapshot(&page_of_two).await;
    let path = if has_resp3() { "granted" } else { "polled" };
    assert_eq!(row(&shown, "k")["held"]["path"], path);
    drop(guard);
}

/// A key from strangers: it must not be read as HTML, nor end the JSON, nor turn what follows.
const STRANGE: &str = "</script><script>alert('1')</script>\"\\\r\n\u{202e}&lt;";

#[tokio::test]
async fn a_key_from_a_stranger_is_text_and_shown_only_if_asked_for() {
    let server = RedisServer::start().await;
    let redis = server.client().await;
    let locks = minute().connect(server.url()).await.unwrap();
    let guard = locks.try_acquire(STRANGE).await.unwrap();
    locks.force_release(STRANGE).await.unwrap();
    drop(guard);
    let _guard = locks.try_acquire(STRANGE).await.unwrap();
    let page = inspector(locks);
    // The name of another process is a text of strangers as well.
    run(&redis, "SET lock:other not-of-ours").await;
    let fingerprint = LockKey::new(STRANGE).unwrap().fingerprint();
    for query in ["snapshot", "locks"] {
        let hidden = text(get(&page, &format!("/?view={query}")).await).await;
        assert!(hidden.contains(&fingerprint), "{hidden}");
        assert!(!hidden.contains("alert"), "{hidden}");
        let page = page.clone().show_keys(true);
        let shown = text(get(&page, &format!("/?view={query}")).await).await;
        assert!(shown.contains("alert('1')"), "{shown}");
        for raw in ["<", "\r", "\n", "\u{202e}"] {
            assert!(!shown.contains(raw), "{raw:?} in {shown}");
        }
        serde_json::from_str::<serde_json::Value>(&shown).unwrap();
    }
    // What was shown with keys does not come out without.
    let hidden = text(get(&page.show_keys(true).show_keys(false), "/?view=snapshot").await).await;
    assert!(hidden.contains(&fingerprint) && !hidden.contains("alert"));
}

#[tokio::test]
async fn however_many_locks_there_are_a_snapshot_is_short() {
    let locks = LockManager::in_memory();
    let page = inspector(locks.clone());
    let key = |number: usize| format!("{number}:{}", "k".repeat(400));
    let mut guards = Vec::new();
    for number in 0..1000 {
        guards.push(locks.try_acquire(key(number)).await.unwrap());
    }
    let waiting = tokio::spawn({
        let locks = locks.clone();
        async move { drop(locks.acquire(key(999), PATIENCE).await) }
    });
    eventually("it waits", || async { locks.stats().waiting == 1 }).await;
    let shown = snapshot(&page).await;
    let rows = shown["locks"].as_array().unwrap();
    assert_eq!(rows.len(), 40);
    assert_eq!(shown["has_more_locks"], true);
    assert_eq!(rows[0]["waiting"], 1, "what is waited for comes first");
    assert!(shown.to_string().len() < 100_000);
    drop(guards);
    waiting.await.unwrap();
}
