//! Two nodes, their Redis, and a browser.

use serde_json::{Value, json};

use crate::node::Node;
use crate::support::RedisServer;
use crate::webdriver::Browser;

pub struct Stage {
    pub server: RedisServer,
    pub one: Node,
    pub two: Node,
    pub browser: Browser,
}

impl Stage {
    pub async fn set() -> Self {
        let server = RedisServer::start().await;
        Self {
            one: Node::start(&server, "node-1", false).await,
            two: Node::start(&server, "node-2", false).await,
            server,
            browser: Browser::start().await,
        }
    }

    /// Opens the page of a node, and waits until it is live.
    pub async fn open(&self, node: &Node) {
        self.browser.open(&node.page()).await;
        self.status_becomes("Live").await;
    }

    pub async fn status_becomes(&self, begin: &str) {
        let script = "return document.getElementById('status').textContent";
        let what = format!("the status is {begin:?}");
        let is_so = |status: &Value| status.as_str().unwrap().starts_with(begin);
        self.browser
            .eventually(&what, script, json!([]), is_so)
            .await;
    }

    /// Waits until the row of a lock is as expected: what its cells say, and the bars in its lane,
    /// each with what it is and what it says.
    pub async fn row_becomes(&self, lock: &str, what: &str, expected: impl Fn(&Row) -> bool) {
        let is_so = |found: &Value| Row::read(found).is_some_and(|row| expected(&row));
        let what = format!("{lock} {what}");
        self.browser
            .eventually(&what, ROW, json!([lock]), is_so)
            .await;
    }

    /// Ends the test: the browser must have had nothing to complain about.
    pub async fn end(self) {
        let complaints = self.browser.complaints().await;
        assert!(complaints.is_empty(), "{complaints:#?}");
    }
}

const ROW: &str = "
    const rows = [...document.querySelectorAll('#locks tbody tr')];
    const row = rows.find((row) => row.querySelector('bdi').textContent === arguments[0]);
    return row && {
        now: row.children[1].textContent,
        waiting: row.children[2].textContent,
        lost: row.children[6].textContent,
        bars: [...row.querySelectorAll('.lane rect')].map((bar) =>
            `${bar.getAttribute('class')}: ${bar.querySelector('title').textContent}`),
        told: row.querySelector('.lane').getAttribute('aria-label'),
    }";

pub struct Row {
    pub now: String,
    pub waiting: String,
    pub lost: String,
    pub bars: Vec<String>,
    pub told: String,
}

impl Row {
    fn read(row: &Value) -> Option<Self> {
        let text = |name: &str| Some(row[name].as_str()?.to_owned());
        let bars = row["bars"].as_array()?.iter();
        Some(Self {
            now: text("now")?,
            waiting: text("waiting")?,
            lost: text("lost")?,
            bars: bars.map(|bar| bar.as_str().unwrap().to_owned()).collect(),
            told: text("told")?,
        })
    }

    /// Whether there is a bar of that kind which says so.
    pub fn has_bar(&self, kind: &str, says: &str) -> bool {
        let kind = format!("{kind}: ");
        self.bars
            .iter()
            .any(|bar| bar.starts_with(&kind) && bar.contains(says))
    }
}
