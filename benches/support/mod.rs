//! Shared by the benchmarks: figures with goals, and the measuring of CPU time.

#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    missing_debug_implementations
)]

pub mod over_http;
pub mod recipe;

use std::time::{Duration, Instant};

/// The figures of a run, printed at its end, one line each.
#[derive(Default)]
pub struct Figures(Vec<String>);

pub enum Goal {
    AtMost(f64),
    AtLeast(f64),
}

impl Figures {
    pub fn add(&mut self, name: &str, value: f64, goal: &Goal) {
        let (sign, target, met) = match *goal {
            Goal::AtMost(target) => ("≤", target, value <= target),
            Goal::AtLeast(target) => ("≥", target, value >= target),
        };
        let verdict = if met { "met" } else { "missed" };
        self.0.push(format!(
            "figure {name} {value:.3} goal {sign} {target} {verdict}"
        ));
    }

    pub fn print(&self) {
        println!();
        for line in &self.0 {
            println!("{line}");
        }
    }
}

pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Returns the value that 99 of 100 do not exceed.
pub fn p99(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        length => values[(length * 99).div_ceil(100) - 1],
    }
}

/// Returns the CPU time that all threads of this process have used. Only Linux tells.
pub fn cpu_time() -> Option<Duration> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name, in brackets, may hold blanks.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks: u64 = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    // Linux reports in hundredths of a second, whatever its own clock rate.
    Some(Duration::from_millis(ticks * 10))
}

/// Runs `clients` copies of an endless loop of requests for a while. Returns the requests per
/// second, and the CPU µs per request.
pub async fn load<F, R>(clients: usize, time: Duration, request: F) -> (f64, f64)
where
    F: Fn(usize, u64) -> R + Clone + Send + 'static,
    R: Future<Output = ()> + Send,
{
    let (started, cpu) = (Instant::now(), cpu_time());
    let tasks: Vec<_> = (0..clients)
        .map(|client| {
            let request = request.clone();
            tokio::spawn(async move {
                let mut count = 0;
                while started.elapsed() < time {
                    request(client, count).await;
                    count += 1;
                }
                count
            })
        })
        .collect();
    let mut count = 0;
    for task in tasks {
        count += task.await.expect("a client panicked");
    }
    let elapsed = started.elapsed();
    let used = match (cpu, cpu_time()) {
        (Some(before), Some(after)) => (after - before).as_secs_f64() * 1e6 / count as f64,
        _ => f64::NAN,
    };
    (count as f64 / elapsed.as_secs_f64(), used)
}
