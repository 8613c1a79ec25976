//! The idempotency layer in the servers that it is made for, over real sockets.

mod on_axum;
mod on_hyper;
mod on_tonic;

use std::net::SocketAddr;

use bytes::Bytes;
use http::Request;
use http::header::CONTENT_TYPE;
use http_body_util::Full;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;

use crate::once::{Answer, whole};
use crate::support::soon;

async fn ask(
    client: &Client<HttpConnector, Full<Bytes>>,
    address: SocketAddr,
    path: &str,
    key: &str,
    content: impl Into<Bytes>,
) -> Answer {
    let request = Request::post(format!("http://{address}{path}"))
        .header("idempotency-key", key)
        .header("te", "trailers")
        .header(CONTENT_TYPE, "application/json");
    let request = request.body(Full::new(content.into())).unwrap();
    let response = soon("a response", client.request(request)).await.unwrap();
    Answer::of(response.map(whole)).await
}
