//! The dashboard, the alert rules and the guide, against what is exported.

use std::collections::BTreeSet;

use serde_json::Value;
use tower_distributed_lock::{IdempotencyLayer, LockManager};

use crate::once::{App, Runs, post};
use crate::scrape::{Sample, samples};
use crate::support::Gate;
use crate::support::{RedisServer, minute};
use crate::{alone, gated, status};
use tower_distributed_lock::DistributedLockLayer;

const BOARD: &str = include_str!("../../examples/grafana/locks.json");
const ALERTS: &str = include_str!("../../examples/grafana/alerts.yml");
const OPERATIONS: &str = include_str!("../../src/_guide/operations.rs");
const RUNBOOK: &str = include_str!("../../src/_guide/runbook.rs");
const CATALOGUE: &str = include_str!("../../src/observe/catalogue.rs");

/// Labels that Prometheus adds.
const OF_PROMETHEUS: [&str; 3] = ["le", "instance", "job"];

/// Makes every metric appear at least once.
async fn a_little_of_everything() -> (RedisServer, LockManager) {
    let server = RedisServer::start().await;
    let locks = minute().connect(&server.url()).await.unwrap();
    let layer = DistributedLockLayer::new(locks.clone(), |_| "k").name("boards");
    let gate = Gate::new();
    gate.open();
    status(&gated(&layer, &gate)).await;
    let layer = IdempotencyLayer::new(locks.clone()).name("boards");
    let app = App::new(&layer, Runs::default().handler());
    app.send(post("k")).await.is_run(1);
    (server, locks)
}

/// All expressions of the dashboard.
fn board_queries() -> Vec<String> {
    let board: Value = serde_json::from_str(BOARD).unwrap();
    let panels = board["panels"].as_array().unwrap();
    let targets = panels
        .iter()
        .flat_map(|panel| panel["targets"].as_array().unwrap());
    targets
        .map(|target| target["expr"].as_str().unwrap().to_owned())
        .collect()
}

/// All expressions of the alert rules: on one line, or folded over the next ones.
fn alert_queries() -> Vec<String> {
    let mut queries = Vec::new();
    let mut lines = ALERTS.lines().peekable();
    while let Some(line) = lines.next() {
        let Some(query) = line.trim_start().strip_prefix("expr: ") else {
            continue;
        };
        let mut query = query.trim_start_matches(">-").to_owned();
        while let Some(next) = lines.next_if(|next| next.starts_with("          ")) {
            query.push_str(next.trim());
            query.push(' ');
        }
        queries.push(query);
    }
    queries
}

/// The words of a query that are not in quotes.
fn words(query: &str) -> impl Iterator<Item = &str> {
    let unquoted = query.split('"').step_by(2);
    unquoted.flat_map(|text| text.split(|c: char| !c.is_alphanumeric() && c != '_'))
}

/// The metric of a query, the labels that it names, and the values that it compares them to.
struct Asked<'a> {
    metric: &'a str,
    labels: BTreeSet<&'a str>,
    values: Vec<(&'a str, &'a str)>,
}

fn asked(query: &str) -> Asked<'_> {
    let metric = words(query)
        .find(|word| word.starts_with("lock_") || word.starts_with("idempotency_"))
        .unwrap_or_else(|| panic!("no metric of ours: {query}"));
    let mut labels = BTreeSet::new();
    if let Some((_, by)) = query.split_once("by (") {
        labels.extend(by.split(')').next().unwrap().split(", "));
    }
    let mut values = Vec::new();
    if let Some((_, selector)) = query.split_once('{') {
        for part in selector.split('}').next().unwrap().split(", ") {
            let (label, value) = part.split_once('=').unwrap();
            let label = label.trim_end_matches('!');
            labels.insert(label);
            let value = value.trim_start_matches('~').trim_matches('"');
            if !value.starts_with('$') {
                values.push((label, value));
            }
        }
    }
    Asked {
        metric,
        labels,
        values,
    }
}

#[tokio::test]
async fn every_query_of_the_dashboard_and_the_alerts_asks_for_what_is_exported() {
    let _alone = alone().await;
    let (_server, locks) = a_little_of_everything().await;
    let samples = samples();
    let (board, alerts) = (board_queries(), alert_queries());
    assert!(board.len() > 15 && alerts.len() == 8);
    for query in board.iter().chain(&alerts) {
        let asked = asked(query);
        let of_metric: Vec<&Sample> = samples
            .iter()
            .filter(|sample| sample.metric == asked.metric)
            .collect();
        assert!(!of_metric.is_empty(), "not exported: {query}");
        for label in asked.labels {
            let is_there = of_metric
                .iter()
                .any(|sample| sample.labels.contains_key(label));
            assert!(
                is_there || OF_PROMETHEUS.contains(&label),
                "{label}: {query}"
            );
        }
        // Of a histogram, only what has occurred is there.
        if !asked.metric.contains("_duration_") {
            for (label, value) in asked.values {
                let is_there = of_metric
                    .iter()
                    .any(|sample| sample.labels.get(label).is_some_and(|has| has == value));
                assert!(is_there, "{label}={value}: {query}");
            }
        }
    }
    drop(locks);
}

/// The names of the metrics, as the crate has them.
fn catalogue() -> Vec<&'static str> {
    let lines = CATALOGUE.lines().filter(|line| line.contains(": &str = "));
    lines.map(|line| line.split('"').nth(1).unwrap()).collect()
}

#[tokio::test]
async fn every_metric_is_exported_documented_and_on_the_dashboard() {
    let _alone = alone().await;
    let (_server, _locks) = a_little_of_everything().await;
    let samples = samples();
    let names = catalogue();
    assert_eq!(names.len(), 12);
    let queries = board_queries().join("\n");
    for name in names {
        let exported = name.replace('.', "_");
        let is_there = samples
            .iter()
            .any(|sample| sample.metric.starts_with(&exported));
        assert!(is_there, "{name} is not exported");
        assert!(queries.contains(&exported), "{name} is not on the board");
        let row = format!("//! | `{name}` |");
        assert!(OPERATIONS.contains(&row), "{name} is not in the table");
    }
}

#[test]
fn every_alert_has_a_reason_and_a_section_in_the_runbook() {
    let count = |field: &str| ALERTS.matches(field).count();
    let alerts = count("- alert: ");
    assert_eq!(alerts, count("          reason: "));
    let headings: Vec<&str> = ALERTS
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("runbook: "))
        .collect();
    assert_eq!(alerts, headings.len());
    for heading in headings {
        let heading = format!("//! # {heading}\n");
        assert!(RUNBOOK.contains(&heading), "{heading}");
    }
}
