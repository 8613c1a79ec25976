//! The lock in a plain hyper server, without a framework: HTTP/1 and HTTP/2 on one port.
//!
//! ```text
//! cargo run --example hyper      # on 127.0.0.1:3000, or the port in PORT
//!
//! curl -i -X POST http://127.0.0.1:3000/jobs/report &
//! curl -i -X POST http://127.0.0.1:3000/jobs/report; wait
//! curl -i -X POST --http2-prior-knowledge http://127.0.0.1:3000/jobs/report
//! ```
//!
//! The locks are in Redis if `REDIS_URL` is set (`redis://127.0.0.1:6379`), in this process if not.
//! `examples/locks` says how to use Sentinel or a cluster.

mod locks;

use std::convert::Infallible;
use std::error::Error;
use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::time::{sleep, timeout};
use tower::ServiceBuilder;
use tower_distributed_lock::{DistributedLockLayer, Lease, LockManager, key};

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), Box<dyn Error>> {
    let port = port()?;
    let locks = locks::connect([LockManager::builder()]).await?.remove(0);
    let listener = TcpListener::bind(("127.0.0.1", port))
        .await
        .map_err(|error| format!("cannot listen on 127.0.0.1:{port}: {error}"))?;
    println!("Listening on http://{}", listener.local_addr()?);

    // There is no router here that knows which requests need a lock. The closure that finds the key
    // decides: a job that is to be run is locked. All else has no key, and passes without a lock.
    let job = key::path("/jobs/{name}");
    let lock = DistributedLockLayer::new(locks.clone(), move |request: &Parts| {
        (request.method == Method::POST).then(|| job(request))
    })
    .optional_key();
    // hyper has a `Service` trait of its own: this adapts tower's to it.
    let service = TowerToHyperService::new(ServiceBuilder::new().layer(lock).service_fn(handle));

    let server = auto::Builder::new(TokioExecutor::new());
    let connections = GracefulShutdown::new();
    let mut ctrl_c = pin!(tokio::signal::ctrl_c());
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Too many open files, perhaps: others will be closed.
                    eprintln!("cannot accept a connection: {error}");
                    sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
            pressed = &mut ctrl_c => {
                pressed?;
                break;
            }
        };
        // The connections share the locks: a clone of the service has the same layer.
        let connection = server
            .serve_connection(TokioIo::new(stream), service.clone())
            .into_owned();
        let connection = connections.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                eprintln!("a connection ended early: {error}");
            }
        });
    }

    // No new connections, and no new requests on those that are open. The requests that are there
    // run to their end.
    drop(listener);
    if timeout(Duration::from_secs(10), connections.shutdown())
        .await
        .is_err()
    {
        eprintln!("some connections are still open after 10 s: leaving them");
    }
    // Waits until what is held is released, also in Redis. Requests that are still there hold their
    // locks for as long as they run, hence the limit.
    if timeout(Duration::from_secs(10), locks.close())
        .await
        .is_err()
    {
        eprintln!("some locks are still held after 10 s: they expire");
    }
    Ok(())
}

/// Runs under the lock of the job, if the request names one.
async fn handle(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (status, text) = match request.extensions().get::<Lease>() {
        Some(lease) => {
            sleep(Duration::from_secs(1)).await; // the job
            let token = lease.fencing_token();
            let text = format!(
                "{} has run, with fencing token {token}\n",
                request.uri().path()
            );
            (StatusCode::OK, text)
        }
        // Not a job to be run: the closure above returned no key.
        None => (
            StatusCode::NOT_FOUND,
            "there is only POST /jobs/{name} here\n".to_owned(),
        ),
    };
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    Ok(response)
}

fn port() -> Result<u16, String> {
    let Ok(port) = std::env::var("PORT") else {
        return Ok(3000);
    };
    port.parse()
        .map_err(|_| format!("PORT is {port:?}, which is not the number of a port"))
}
