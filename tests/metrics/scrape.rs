//! What a real Prometheus exporter shows of this process.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

use crate::support::eventually;

/// Installs the recorder, once for the process. It must be there before a manager is made.
fn exporter() -> &'static PrometheusHandle {
    static EXPORTER: OnceLock<PrometheusHandle> = OnceLock::new();
    EXPORTER.get_or_init(|| {
        PrometheusBuilder::new()
            .with_recommended_naming(true)
            .set_buckets(&[0.001, 0.01, 0.1, 1.0, 10.0])
            .unwrap()
            .install_recorder()
            .unwrap()
    })
}

pub fn install() {
    exporter();
}

/// The text that Prometheus would get.
pub fn text() -> String {
    exporter().render()
}

/// One line of it.
#[derive(Debug)]
pub struct Sample {
    pub metric: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

pub fn samples() -> Vec<Sample> {
    let text = text();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .filter(|line| !line.is_empty())
        .map(|line| {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let (metric, labels) = series.split_once('{').unwrap_or((series, "}"));
            let labels = labels.trim_end_matches('}').split("\",");
            let labels = labels.filter_map(|label| {
                let (name, value) = label.split_once("=\"")?;
                Some((name.to_owned(), value.trim_end_matches('"').to_owned()))
            });
            Sample {
                metric: metric.to_owned(),
                labels: labels.collect(),
                value: value.parse().unwrap(),
            }
        })
        .collect()
}

/// The sum of all samples of a metric that have these labels. `None`: there is no such sample.
pub fn find(metric: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let has = |sample: &Sample| {
        labels
            .iter()
            .all(|(name, value)| sample.labels.get(*name).is_some_and(|has| has == value))
    };
    let samples = samples();
    let values = samples
        .iter()
        .filter(|sample| sample.metric == metric && has(sample));
    values
        .map(|sample| sample.value)
        .reduce(|one, other| one + other)
}

/// Like [`find`], where no sample means zero.
pub fn sum(metric: &str, labels: &[(&str, &str)]) -> f64 {
    find(metric, labels).unwrap_or(0.0)
}

/// How many requests for a lock of that name ended so.
pub fn attempts(name: &str, outcome: &str, path: &str) -> f64 {
    sum(
        "lock_acquire_duration_seconds_count",
        &[("name", name), ("outcome", outcome), ("path", path)],
    )
}

/// All attempts of that name.
pub fn all_attempts(name: &str) -> f64 {
    sum("lock_acquire_duration_seconds_count", &[("name", name)])
}

/// Waits until a metric has a value. It is noted behind what a caller waits for.
pub async fn becomes(metric: &str, labels: &[(&str, &str)], value: f64) {
    let what = format!("{metric} {labels:?} is {value}");
    eventually(&what, || async { sum(metric, labels) == value }).await;
}
