//! The inspector: what it shows, to whom, and what it refuses. What a browser makes of its page is
//! in `tests/browser`.

mod events;
mod force_release;
mod requests;
mod views;

use axum::body::Body;
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use serde_json::Value;
use tower::ServiceExt;
use tower_distributed_lock::inspector::{Inspector, InspectorBody};

use crate::support::soon;

/// Sends a request with these headers.
async fn send(
    inspector: &Inspector,
    method: Method,
    uri: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Response<InspectorBody> {
    let mut request = Request::builder().method(method).uri(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Body::from(body.to_owned())).unwrap();
    let Ok(response) = soon("a response", inspector.clone().oneshot(request)).await;
    response
}

async fn get(inspector: &Inspector, uri: &str) -> Response<InspectorBody> {
    send(inspector, Method::GET, uri, &[], "").await
}

async fn text(response: Response<InspectorBody>) -> String {
    let body = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(body.into()).unwrap()
}

async fn json(response: Response<InspectorBody>) -> Value {
    let status = response.status();
    let text = text(response).await;
    assert_eq!(status, StatusCode::OK, "{text}");
    serde_json::from_str(&text).unwrap()
}

async fn view(inspector: &Inspector, query: &str) -> Value {
    json(get(inspector, &format!("/locks?view={query}")).await).await
}

/// What the process knows now: a snapshot is kept for almost a second, and another inspector has
/// one of its own.
async fn snapshot(inspector: &Inspector) -> Value {
    view(&inspector.clone().show_keys(true), "snapshot").await
}

/// The rows of this lock in a snapshot.
fn row<'a>(snapshot: &'a Value, key: &str) -> &'a Value {
    let rows = snapshot["locks"].as_array().unwrap();
    let row = rows.iter().find(|row| row["key"] == key);
    row.unwrap_or_else(|| panic!("{key} is not in {snapshot:#}"))
}
