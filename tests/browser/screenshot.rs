//! The picture of the page in the README, if it is asked for.

use std::time::Duration;

use serde_json::{Value, json};

use crate::node::Node;
use crate::support::RedisServer;
use crate::webdriver::Browser;

pub async fn the_picture_of_the_readme() {
    if std::env::var_os("INSPECTOR_SCREENSHOT").is_none() {
        println!("  not made: set INSPECTOR_SCREENSHOT to make it");
        return;
    }
    let server = RedisServer::start().await;
    let nodes = [
        Node::start(&server, "node-a", true).await,
        Node::start(&server, "node-b", true).await,
    ];
    let browser = Browser::start().await;
    browser.is_wide(1600, 940).await;
    browser.open(&nodes[0].page()).await;
    // As long as it takes to fill the timeline.
    tokio::time::sleep(Duration::from_secs(75)).await;
    browser
        .run("document.querySelector('#locks .link').click()", json!([]))
        .await;
    let facts = "return document.getElementById('facts').textContent";
    let is_there = |facts: &Value| facts.as_str().unwrap().contains("node-");
    browser
        .eventually("Redis is asked", facts, json!([]), is_there)
        .await;
    browser
        .run("document.activeElement.blur(); scrollTo(0, 0)", json!([]))
        .await;
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/inspector.png");
    std::fs::write(path, browser.picture().await).unwrap();
    println!("  written: docs/inspector.png");
}
