//! The inspector, with traffic that this program makes up: transfers between a few accounts, some
//! of which are in demand, and reports, which now and then take longer than a lock may be held.
//!
//! ```text
//! cargo run --example inspector      # on 127.0.0.1:3000, or the port in PORT
//! ```
//!
//! With `REDIS_URL` (`redis://127.0.0.1:6379`), there are two nodes, each with a page of its own,
//! on that port and the next one. Without, there is one, whose locks are in its memory.

use std::convert::Infallible;
use std::error::Error;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{StatusCode, header::HOST};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Router, serve};
use http_body_util::BodyExt;
use tokio::net::TcpListener;
use tokio::time::sleep;
use tower::ServiceExt;
use tower_distributed_lock::{
    DistributedLockLayer, LockManager, LockManagerBuilder, inspector, key,
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let port: u16 = std::env::var("PORT").map_or(Ok(3000), |port| port.parse())?;
    let mut nodes = Vec::new();
    match std::env::var("REDIS_URL") {
        Ok(url) => {
            for (name, port) in [("node-a", port), ("node-b", port + 1)] {
                nodes.push((settings(name).connect(&url).await?, port));
            }
        }
        Err(_) => nodes.push((settings("node-a").in_memory()?, port)),
    }
    let mut servers = Vec::new();
    for (locks, port) in nodes {
        let listener = TcpListener::bind(("127.0.0.1", port)).await?;
        println!("Open http://{}/locks", listener.local_addr()?);
        make_up_traffic(&app(&locks));
        servers.push(tokio::spawn(async move {
            serve(listener, internal(locks)).await
        }));
    }
    for server in servers {
        server.await??;
    }
    Ok(())
}

pub(crate) fn settings(name: &str) -> LockManagerBuilder {
    LockManager::builder()
        .instance_name(name)
        .max_hold(Duration::from_secs(8))
}

/// The page, for operators alone. These keys are made up, and may be shown.
pub(crate) fn internal(locks: LockManager) -> Router {
    let page = inspector(locks).show_keys(true).allow_force_release(true);
    Router::new()
        .nest_service("/locks", page)
        .layer(from_fn(this_machine_only))
}

/// Stands for a login. The server listens on this machine alone, but a page on the internet could
/// have a browser send requests here under a name of its own.
async fn this_machine_only(request: Request, next: Next) -> Response {
    let host = request.headers().get(HOST);
    let host = host.and_then(|host| host.to_str().ok()).unwrap_or_default();
    match host.split(':').next() {
        Some("127.0.0.1" | "localhost") => next.run(request).await,
        _ => StatusCode::FORBIDDEN.into_response(),
    }
}

/// The service whose locks are shown.
pub(crate) fn app(locks: &LockManager) -> Router {
    let layer =
        |pattern, name| DistributedLockLayer::new(locks.clone(), key::path(pattern)).name(name);
    let transfers = layer("/accounts/{id}/transfer", "transfers").wait(Duration::from_secs(3));
    let reports = layer("/reports/{id}", "reports");
    Router::new()
        .route(
            "/accounts/{id}/transfer",
            post(transfer).route_layer(transfers),
        )
        .route("/reports/{id}", post(report).route_layer(reports))
}

async fn transfer() {
    sleep(Duration::from_millis(40 + below(360))).await;
}

async fn report() {
    let takes_too_long = below(4) == 0;
    sleep(Duration::from_secs(if takes_too_long {
        60
    } else {
        1 + below(4)
    }))
    .await;
}

/// Sends requests for as long as the program runs.
pub(crate) fn make_up_traffic(app: &Router) {
    for _ in 0..14 {
        let app = app.clone();
        tokio::spawn(async move {
            loop {
                // Low numbers are in demand.
                let account = below(1 + below(1 + below(24)));
                request(&app, format!("/accounts/{account}/transfer")).await;
                sleep(Duration::from_millis(below(1500))).await;
            }
        });
    }
    let app = app.clone();
    tokio::spawn(async move {
        loop {
            request(&app, format!("/reports/2025-{:02}", 1 + below(12))).await;
            sleep(Duration::from_millis(below(4000))).await;
        }
    });
}

async fn request(app: &Router, path: String) {
    let request = Request::post(path).body(Body::empty()).expect("a request");
    let response: Result<_, Infallible> = app.clone().oneshot(request).await;
    // The lock is held until the response has been read.
    let Ok(response) = response;
    let _ = response.into_body().collect().await;
}

/// A number below this one, or zero.
fn below(end: u64) -> u64 {
    let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0);
    random % end.max(1)
}
