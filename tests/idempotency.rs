//! The rules of the idempotency layer, over every store.

mod common;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use common::{RedisServer, minute};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
use tower_distributed_lock::IdempotencyLayer;

#[tokio::test]
async fn a_duplicate_gets_the_answer_of_the_first() {
    let server = RedisServer::start().await;
    let locks = minute().connect(&server.url()).await.unwrap();
    for locks in [locks, minute().in_memory().unwrap()] {
        let runs = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&runs);
        let mut service = ServiceBuilder::new()
            .layer(IdempotencyLayer::new(locks))
            .service(service_fn(move |_request| {
                let run = counted.fetch_add(1, Ordering::Relaxed) + 1;
                async move { Ok::<_, Infallible>(Response::new(Full::from(format!("run {run}")))) }
            }));
        let mut send = async |body: &'static str| {
            let request = Request::post("/a").header("idempotency-key", "k");
            let request = request.body(Full::from(body)).unwrap();
            let response = service.ready().await.unwrap().call(request).await.unwrap();
            let (head, body) = response.into_parts();
            (head, body.collect().await.unwrap().to_bytes())
        };
        let (head, body) = send("one").await;
        assert_eq!(body, "run 1");
        assert_eq!(head.headers.get("idempotent-replayed"), None);
        let (head, body) = send("one").await;
        assert_eq!(body, "run 1");
        assert_eq!(head.headers["idempotent-replayed"], "true");
        let (head, _) = send("other").await;
        assert_eq!(head.status, StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!(runs.load(Ordering::Relaxed), 1);
        let _ = Bytes::new();
    }
}
