//! Under tonic.

use tonic::{Code, Status};

use crate::nodes::Nodes;
use crate::once::Runs;
use crate::servers::tonic::{Around, Echo, EchoClient, serve_tonic};
use crate::support::Gate;

on_every_store! {
    Nodes:
    tonic_server_layer
    tonic_service_layer
}

async fn tonic_unary(nodes: Nodes, around: Around) {
    let (runs, gate) = (Runs::default(), Gate::new());
    let [one, two] = nodes.layers().map(|layer| async {
        let runs = runs.clone();
        let echo = Echo::new(&gate, move |_, text| {
            let run = runs.one_more();
            match text.as_str() {
                "fail" => Err(Status::not_found(format!("run {run}"))),
                "busy" => Err(Status::unavailable(format!("run {run}"))),
                _ => Ok(format!("{text}, run {run}")),
            }
        });
        let address = serve_tonic!(layer, echo, around);
        EchoClient::connect(address).await
    });
    let (one, two) = (one.await, two.await);
    let first = one.unary_once("k", "text");
    let duplicates = async {
        gate.arrived().await;
        for client in [&one, &two] {
            let (answer, is_replay) = client.unary_once("k", "text").await;
            let status = answer.unwrap_err();
            assert_eq!((status.code(), is_replay), (Code::Aborted, false));
            assert_eq!(
                status.message(),
                "a request with this idempotency key is still running"
            );
        }
        gate.open();
    };
    let ((answer, is_replay), ()) = tokio::join!(first, duplicates);
    assert_eq!((&*answer.unwrap(), is_replay), ("text, run 1", false));
    for client in [&one, &two] {
        // The replay has its trailers; without them, it would be no gRPC response.
        let (answer, is_replay) = client.unary_once("k", "text").await;
        assert_eq!((&*answer.unwrap(), is_replay), ("text, run 1", true));
        let (answer, _) = client.unary_once("k", "other").await;
        assert_eq!(answer.unwrap_err().code(), Code::InvalidArgument);
    }
    // NOT_FOUND is final, UNAVAILABLE is not.
    for _ in 0..3 {
        gate.open();
    }
    for (number, client) in [&one, &one, &two].into_iter().enumerate() {
        let (answer, is_replay) = client.unary_once("f", "fail").await;
        let status = answer.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::NotFound, "run 2"));
        assert_eq!(is_replay, number > 0);
    }
    for (client, message) in [(&one, "run 3"), (&two, "run 4")] {
        let (answer, is_replay) = client.unary_once("b", "busy").await;
        let status = answer.unwrap_err();
        let said = (status.code(), status.message());
        assert_eq!(said, (Code::Unavailable, message));
        assert!(!is_replay);
    }
    assert_eq!(runs.count(), 4);
}

async fn tonic_server_layer(nodes: Nodes) {
    tonic_unary(nodes, Around::Server).await;
}

async fn tonic_service_layer(nodes: Nodes) {
    tonic_unary(nodes, Around::Service).await;
}
