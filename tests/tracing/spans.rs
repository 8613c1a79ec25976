//! Waiting and holding in a request's trace, as OpenTelemetry exports it.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider, SpanData};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_distributed_lock::{DistributedLockLayer, IdempotencyLayer, LockManager};
use tracing::Instrument;
use tracing::subscriber::DefaultGuard;
use tracing_subscriber::layer::SubscriberExt;

use crate::capture::{fingerprint, listen};
use crate::once::{App, Runs, post};
use crate::support::{Gate, PATIENCE, soon};

/// Exports what this thread does, as long as the guard lives.
fn export() -> (InMemorySpanExporter, DefaultGuard) {
    listen();
    let exporter = InMemorySpanExporter::default();
    let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone());
    let tracer = provider.build().tracer("test");
    let layer = tracing_opentelemetry::layer().with_tracer(tracer);
    let subscriber = tracing_subscriber::registry().with(layer);
    (exporter, tracing::subscriber::set_default(subscriber))
}

/// The one finished span with this name below another one.
fn below(exporter: &InMemorySpanExporter, parent: &SpanData, name: &str) -> SpanData {
    let spans = exporter.get_finished_spans().unwrap();
    let mut children = spans
        .into_iter()
        .filter(|span| span.name == name && span.parent_span_id == parent.span_context.span_id());
    let child = children.next();
    let child = child.unwrap_or_else(|| panic!("no span {name:?} below {:?}", parent.name));
    assert!(children.next().is_none(), "two spans {name:?}");
    child
}

fn root(exporter: &InMemorySpanExporter, name: &str) -> SpanData {
    let spans = exporter.get_finished_spans().unwrap();
    spans.into_iter().find(|span| span.name == name).unwrap()
}

fn attribute(span: &SpanData, name: &str) -> String {
    let mut attributes = span.attributes.iter();
    let attribute = attributes.find(|attribute| attribute.key.as_str() == name);
    attribute
        .unwrap_or_else(|| panic!("no {name:?}: {span:?}"))
        .value
        .to_string()
}

fn duration(span: &SpanData) -> Duration {
    span.end_time.duration_since(span.start_time).unwrap()
}

#[tokio::test]
async fn a_request_that_waited_shows_how_long_it_waited_and_held() {
    const TIME: Duration = Duration::from_millis(30);
    let (exporter, _guard) = export();
    let gate = Gate::new();
    let layer = DistributedLockLayer::new(LockManager::in_memory(), |_| "k").name("transfer");
    let service = layer.wait(PATIENCE).layer(service_fn({
        let gate = gate.clone();
        move |_: Request<Full<Bytes>>| {
            let gate = gate.clone();
            async move {
                gate.pass().await;
                Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
            }
        }
    }));
    let send = |span: tracing::Span| {
        let mut service = service.clone();
        let request = async move {
            let response = service
                .ready()
                .await
                .unwrap()
                .call(Request::default())
                .await;
            response.unwrap().into_body().collect().await.unwrap();
        };
        tokio::spawn(request.instrument(span))
    };
    let first = send(tracing::info_span!("first"));
    gate.arrived().await;
    let second = send(tracing::info_span!("second"));
    // So that it waits, and holds, for a time of some length.
    tokio::time::sleep(TIME).await;
    gate.open();
    gate.arrived().await;
    tokio::time::sleep(TIME).await;
    gate.open();
    soon("the first", first).await.unwrap();
    soon("the second", second).await.unwrap();

    for (request, path, waited) in [("first", "uncontended", false), ("second", "local", true)] {
        let request = root(&exporter, request);
        let acquiring = below(&exporter, &request, "lock.acquire");
        let holding = below(&exporter, &request, "lock");
        assert_eq!(attribute(&acquiring, "outcome"), "acquired");
        assert_eq!(attribute(&acquiring, "path"), path);
        assert_eq!(duration(&acquiring) >= TIME, waited, "{path}");
        assert!(acquiring.end_time <= holding.start_time);
        assert!(duration(&holding) >= TIME);
        let token = attribute(&holding, "fencing_token");
        assert_eq!(attribute(&acquiring, "fencing_token"), token);
        for span in [&acquiring, &holding] {
            assert_eq!(attribute(span, "name"), "transfer");
            assert_eq!(attribute(span, "key"), fingerprint("k"));
        }
    }
}

#[tokio::test]
async fn a_request_that_gets_no_lock_shows_why() {
    let (exporter, _guard) = export();
    let locks = LockManager::in_memory();
    let _held = locks.try_acquire("k").await.unwrap();
    let refused = locks
        .try_acquire("k")
        .instrument(tracing::info_span!("refused"));
    refused.await.unwrap_err();
    let acquiring = below(&exporter, &root(&exporter, "refused"), "lock.acquire");
    assert_eq!(attribute(&acquiring, "outcome"), "held");
}

#[tokio::test]
async fn a_run_shows_that_it_holds_its_key_and_a_duplicate_that_it_found_the_record() {
    let (exporter, _guard) = export();
    let layer = IdempotencyLayer::new(LockManager::in_memory()).name("payments");
    let app = App::new(&layer, Runs::default().handler());
    let send = async |span: tracing::Span| app.send(post("k")).instrument(span).await;
    send(tracing::info_span!("run")).await.is_run(1);
    send(tracing::info_span!("duplicate")).await.is_replay_of(1);

    let run = root(&exporter, "run");
    let acquiring = below(&exporter, &run, "lock.acquire");
    assert_eq!(attribute(&acquiring, "outcome"), "acquired");
    let holding = below(&exporter, &run, "lock");
    assert_eq!(attribute(&holding, "name"), "payments");
    let acquiring = below(&exporter, &root(&exporter, "duplicate"), "lock.acquire");
    assert_eq!(attribute(&acquiring, "outcome"), "recorded");
}
