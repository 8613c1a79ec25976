//! The page when its node is gone.

use crate::stage::Stage;
use crate::support::soon;

pub async fn the_page_says_when_its_node_is_gone_and_goes_on_when_it_is_back() {
    let stage = Stage::set().await;
    stage.open(&stage.one).await;
    // It says nothing, and its connections stay open.
    stage.one.signal("-STOP");
    stage.status_becomes("Connection lost").await;
    stage.one.signal("-CONT");
    stage.status_becomes("Live").await;
    let holding = stage.one.post("/orders/7");
    stage
        .row_becomes("orders:7", "is held", |row| row.now.starts_with("held"))
        .await;
    stage.one.finish_one().await;
    soon("the holder", holding).await.unwrap();
    stage.browser.complaints().await;
    stage.end().await;
}
