//! The layer in a real server, under the load of wrk: `http`.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use tower_distributed_lock::LockManager;

use crate::support::figures::{Figures, Goal, Spread, Turns};
use crate::support::options::{rounds, time};
use crate::support::recipe::Recipe;
use crate::test_support::RedisServer;
use crate::ways::{Way, layer};

const ROUND: Duration = Duration::from_secs(2);

/// No layer (`None`), the recipe with its release in the background, and the layer.
const APPS: [Option<Way>; 4] = [
    None,
    Some(Way::Background),
    Some(Way::Layer),
    Some(Way::WaitingLayer),
];

/// Compares axum servers, under wrk with 1 and 64 connections. Each request locks a key of its own.
pub async fn compare(server: &RedisServer, figures: &mut Figures) {
    let has_wrk = Command::new("wrk").arg("--version").output().is_ok();
    if !has_wrk {
        println!("over HTTP: not measured, wrk is not installed (Debian: apt-get install wrk)");
    }
    let mut apps = Vec::new();
    for app in APPS {
        apps.push((app, serve(make(app, server).await).await));
    }
    for connections in [1, 64] {
        let mut rates = Turns::default();
        for _ in 0..rounds(9) {
            for (app, address) in apps.iter().filter(|_| has_wrk) {
                rates.add(*app, wrk(*address, connections).await);
            }
        }
        if has_wrk {
            println!("over HTTP, connections: {connections}");
            for app in APPS {
                let name = app.map_or("no layer", Way::word);
                println!("  {name:13} {:8.0} requests/s", rates.median(app));
            }
        }
        add(figures, &rates, connections);
    }
}

fn add(figures: &mut Figures, rates: &Turns<Option<Way>>, connections: usize) {
    for way in Way::LAYERS {
        let name = format!("http_{connections}_connections_{}", way.word());
        let ratio = |to| -> Spread { rates.ratio(Some(way), to) };
        let (bare, by_hand) = (ratio(None), ratio(Some(Way::Background)));
        let (bare_name, hand_name) = (
            format!("{name}_vs_no_layer"),
            format!("{name}_vs_background"),
        );
        if connections == 1 {
            figures.note(&bare_name, bare);
            figures.add(&hand_name, by_hand, &Goal::AtLeast(1.0));
        } else {
            figures.add(&bare_name, bare, &Goal::AtLeast(0.65));
            figures.add(&hand_name, by_hand, &Goal::AtLeast(1.5));
        }
    }
}

async fn make(app: Option<Way>, server: &RedisServer) -> Router {
    let hello = || async { "hello" };
    let next = Arc::new(AtomicU64::new(0));
    let name = move || next.fetch_add(1, Ordering::Relaxed).to_string();
    match app {
        None => Router::new().route("/", get(hello)),
        Some(way @ (Way::Layer | Way::WaitingLayer)) => {
            let locks = LockManager::connect(&server.url()).await.unwrap();
            let layer = layer(way, &locks, move |_| Some(name()));
            Router::new().route("/", get(hello)).route_layer(layer)
        }
        // In the handler itself, which costs less than a middleware.
        Some(_) => {
            let recipe = Recipe::new(server).await;
            let handler = move || {
                let (mut recipe, name) = (recipe.clone(), format!("hand:{}", name()));
                async move {
                    let token = recipe.try_acquire(&name).await.unwrap().unwrap();
                    let response = hello().await;
                    recipe.release_in_background(name, token);
                    response
                }
            };
            Router::new().route("/", get(handler))
        }
    }
}

async fn serve(app: Router) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

/// Returns the requests per second.
async fn wrk(address: SocketAddr, connections: usize) -> f64 {
    let mut wrk = tokio::process::Command::new("wrk");
    let output = wrk
        .args([
            "-t1",
            &format!("-c{connections}"),
            &format!("-d{}s", time(ROUND).as_secs().max(1)),
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
