//! The CPU time of Redis, and how often processes were woken up.

use redis::aio::MultiplexedConnection;

use crate::test_support;

/// What Redis and the processes that use it have used so far.
#[derive(Clone, Copy)]
pub struct Usage {
    /// In µs.
    pub redis_cpu: f64,
    pub redis_reads: f64,
    pub redis_wake_ups: f64,
    pub service_wake_ups: f64,
}

impl Usage {
    pub async fn read(redis: &MultiplexedConnection, processes: &[u32]) -> Self {
        let info = test_support::text(redis, "INFO everything").await;
        let number = |name: &str| number(&info, name);
        Self {
            redis_cpu: (number("used_cpu_user") + number("used_cpu_sys")) * 1e6,
            redis_reads: number("total_reads_processed"),
            redis_wake_ups: wake_ups(number("process_id") as u32),
            service_wake_ups: processes.iter().copied().map(wake_ups).sum(),
        }
    }

    /// Returns what each of so many requests has used since an earlier reading.
    pub fn per_request(self, before: Self, requests: f64) -> Self {
        let each = |of: fn(&Self) -> f64| (of(&self) - of(&before)) / requests;
        Self {
            redis_cpu: each(|usage| usage.redis_cpu),
            redis_reads: each(|usage| usage.redis_reads),
            redis_wake_ups: each(|usage| usage.redis_wake_ups),
            service_wake_ups: each(|usage| usage.service_wake_ups),
        }
    }
}

fn number(info: &str, name: &str) -> f64 {
    let mut lines = info.lines();
    let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    value
        .and_then(|value| value.trim().parse().ok())
        .unwrap_or(f64::NAN)
}

/// Returns how often the threads of a process gave up their core to wait: each time, something had
/// to wake them up. Only Linux tells.
fn wake_ups(process: u32) -> f64 {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{process}/task")) else {
        return f64::NAN;
    };
    let switches = threads.flatten().filter_map(|thread| {
        let status = std::fs::read_to_string(thread.path().join("status")).ok()?;
        let mut lines = status.lines();
        let value = lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
        value.trim().parse::<f64>().ok()
    });
    switches.sum()
}
