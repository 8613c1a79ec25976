//! Many clients in this process, and the CPU time that they take.

use std::time::{Duration, Instant};

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
    let count = requests(clients, started + time, request).await;
    let elapsed = started.elapsed();
    let used = match (cpu, cpu_time()) {
        (Some(before), Some(after)) => (after - before).as_secs_f64() * 1e6 / count as f64,
        _ => f64::NAN,
    };
    (count as f64 / elapsed.as_secs_f64(), used)
}

/// Runs `clients` copies of a loop of requests, and returns how many there were.
pub async fn requests<F, R>(clients: usize, until: Instant, request: F) -> u64
where
    F: Fn(usize, u64) -> R + Clone + Send + 'static,
    R: Future<Output = ()> + Send,
{
    let tasks: Vec<_> = (0..clients)
        .map(|client| {
            let request = request.clone();
            tokio::spawn(async move {
                let mut count = 0;
                while Instant::now() < until {
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
    count
}
