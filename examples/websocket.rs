//! A document that one WebSocket edits at a time, on all nodes: the lock is held until the socket
//! is closed.
//!
//! ```text
//! cargo run --example websocket      # on 127.0.0.1:3000, or the port in PORT
//!
//! websocat ws://127.0.0.1:3000/documents/7/edit         # any WebSocket client
//! curl -i -X DELETE http://127.0.0.1:3000/documents/7   # 409 while it is open, 200 afterwards
//! ```
//!
//! The locks are in Redis if `REDIS_URL` is set (`redis://127.0.0.1:6379`), in this process if not.

mod locks;

use std::error::Error;
use std::time::Duration;

use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{any, delete};
use axum::{Extension, Router};
use tokio::net::TcpListener;
use tower_distributed_lock::{
    DistributedLockLayer, Lease, LockGuard, LockManager, LockManagerBuilder, key,
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let locks = locks::connect([settings()]).await?.remove(0);
    let port = std::env::var("PORT").unwrap_or_else(|_| "3000".to_owned());
    let listener = TcpListener::bind(("127.0.0.1", port.parse()?)).await?;
    println!("Listening on http://{}", listener.local_addr()?);
    axum::serve(listener, app(&locks)).await?;
    Ok(())
}

/// A socket that is open for longer than `max_hold` loses its lock, and is closed.
fn settings() -> LockManagerBuilder {
    LockManager::builder().max_hold(Duration::from_secs(8 * 3600))
}

/// Makes the service.
pub fn app(locks: &LockManager) -> Router {
    // Whatever is done to a document takes its lock; who does not get it at once is refused (409).
    let document = DistributedLockLayer::new(locks.clone(), key::path("/documents/{id}/**"));
    Router::new()
        .route("/documents/{id}", delete(|| async { "deleted\n" }))
        .route("/documents/{id}/edit", any(edit))
        .route_layer(document)
}

async fn edit(Extension(lease): Extension<Lease>, upgrade: WebSocketUpgrade) -> Response {
    // Without this, the lock would end with the response, which only says that the protocol
    // changes.
    let Some(guard) = lease.take_over() else {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    };
    upgrade.on_upgrade(move |socket| edit_under_lock(socket, guard))
}

/// The lock is released when the guard is dropped: the client has closed the socket, its connection
/// has failed, or the lock was lost.
async fn edit_under_lock(mut socket: WebSocket, guard: LockGuard) {
    tokio::select! {
        () = serve(&mut socket) => {}
        // The next editor may begin now: this one must not go on.
        reason = guard.lost() => eprintln!("the lock was lost: {reason:?}"),
    }
}

/// Stands for the work: sends back what comes.
async fn serve(socket: &mut WebSocket) {
    while let Some(Ok(message)) = socket.recv().await {
        if let Message::Text(_) = message
            && socket.send(message).await.is_err()
        {
            return;
        }
    }
}
