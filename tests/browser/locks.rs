//! What becomes of a lock, as both nodes show it.

use serde_json::{Value, json};

use crate::stage::Stage;
use crate::support::{run, soon};

pub async fn a_lock_is_seen_being_taken_waited_for_handed_over_and_lost() {
    let stage = Stage::set().await;
    let Stage { one, two, .. } = &stage;
    let redis = stage.server.client().await;
    stage.open(one).await;
    let first = one.post("/orders/7");
    stage
        .row_becomes("orders:7", "is held", |row| {
            row.now.starts_with("held for") && row.has_bar("held", "holds it now")
        })
        .await;
    let second = two.post("/orders/7");
    stage
        .row_becomes("orders:7", "is wanted by the other node", |row| {
            row.now.contains("another process waits") && row.waiting == "0"
        })
        .await;
    stage.open(two).await;
    stage
        .row_becomes("orders:7", "is waited for", |row| {
            row.now.starts_with("held elsewhere")
                && row.waiting == "1"
                && row.has_bar("queue", "1 request waited")
        })
        .await;

    one.finish_one().await;
    assert_eq!(soon("the first", first).await.unwrap(), "200");
    stage
        .row_becomes("orders:7", "has come from the other node", |row| {
            row.now.starts_with("held for") && row.waiting == "0"
        })
        .await;
    stage.open(one).await;
    stage
        .row_becomes("orders:7", "was handed over", |row| {
            row.now.starts_with("free") && row.has_bar("held", "handed to another process")
        })
        .await;

    run(&redis, "DEL lock:orders:7").await;
    assert_eq!(soon("the second", second).await.unwrap(), "503");
    stage.open(two).await;
    stage
        .row_becomes("orders:7", "is lost", |row| {
            row.lost == "1"
                && row.has_bar("lost", "it was taken away")
                && row.told.contains("lost 1 time")
        })
        .await;
    let losses = "return document.querySelector('#losses tbody').textContent";
    let is_told = |losses: &Value| {
        let losses = losses.as_str().unwrap();
        losses.contains("orders:7") && losses.contains("taken away")
    };
    stage
        .browser
        .eventually("the loss is told", losses, json!([]), is_told)
        .await;
    stage.end().await;
}
