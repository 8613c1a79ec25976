//! The layer in a real server, under the load of wrk.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use tower_distributed_lock::{DistributedLockLayer, LockManager};

use super::{Figures, Goal, cpu_time, median};
use crate::test_support::{self, RedisServer};

const WRK_SECONDS: u32 = 2;

/// Compares an axum server that has the layer with one that does not, under wrk with 64
/// connections. Each request locks a key of its own.
pub async fn compare(server: &RedisServer, figures: &mut Figures, goal: &Goal) {
    if Command::new("wrk").arg("--version").output().is_err() {
        println!("over HTTP: not measured, wrk is not installed (Debian: apt-get install wrk)");
        figures.add("http_64_connections_vs_no_layer", f64::NAN, goal);
        return;
    }
    let locks = LockManager::connect(&server.url()).await.unwrap();
    // Every request locks a key that no other does.
    let next = AtomicU64::new(0);
    let layer = DistributedLockLayer::new(locks.clone(), move |_| {
        next.fetch_add(1, Ordering::Relaxed).to_string()
    });
    let app = || axum::Router::new().route("/", axum::routing::get(|| async { "hello" }));
    let bare = serve(app()).await;
    let locked = serve(app().route_layer(layer)).await;
    let redis = server.client().await;
    let (mut bare_rates, mut locked_rates) = (Vec::new(), Vec::new());
    let (mut costs, mut commands) = (vec![f64::NAN], Vec::new());
    for _ in 0..5 {
        bare_rates.push(wrk(bare).await);
        let (cpu, calls) = (cpu_time(), test_support::script_calls(&redis).await);
        let rate = wrk(locked).await;
        let requests = rate * f64::from(WRK_SECONDS);
        if let (Some(before), Some(after)) = (cpu, cpu_time()) {
            costs.push((after - before).as_secs_f64() * 1e6 / requests);
        }
        commands.push((test_support::script_calls(&redis).await - calls) as f64 / requests);
        locked_rates.push(rate);
    }
    let (bare, locked) = (median(&mut bare_rates), median(&mut locked_rates));
    println!(
        "over HTTP, 64 connections: {bare:.0} requests/s without the layer, {locked:.0} with it ({:.1} µs of CPU each, \
         {:.3} commands a request)",
        median(&mut costs),
        median(&mut commands),
    );
    figures.add("http_64_connections_vs_no_layer", locked / bare, goal);
}

async fn serve(app: axum::Router) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

/// Returns the requests per second.
async fn wrk(address: SocketAddr) -> f64 {
    let mut wrk = tokio::process::Command::new("wrk");
    let output = wrk
        .args([
            "-t1",
            "-c64",
            &format!("-d{WRK_SECONDS}s"),
            &format!("http://{address}/"),
        ])
        .output()
        .await
        .unwrap();
    let report = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!report.contains("Non-2xx"), "{report}");
    let rate = report
        .lines()
        .find_map(|line| line.strip_prefix("Requests/sec:"));
    rate.and_then(|rate| rate.trim().parse().ok())
        .unwrap_or_else(|| panic!("{report}"))
}
