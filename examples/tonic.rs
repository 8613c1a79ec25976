//! The lock in a gRPC service: calls for one account run one at a time, and a call that would have
//! to wait is `ABORTED`.
//!
//! ```text
//! cargo run --example tonic               # a server and two calls at once, in one process
//! cargo run --example tonic -- server     # a server on 127.0.0.1:50051, or the port in PORT
//! cargo run --example tonic -- client     # one call to that server; run two at the same time
//! ```
//!
//! The locks are in Redis if `REDIS_URL` is set (`redis://127.0.0.1:6379`), in this process if not.
//! `examples/locks` says how to use Sentinel or a cluster.
//!
//! What `tonic-prost-build` generates from a `.proto` file is written by hand here, so that the
//! example needs no `protoc`:
//!
//! ```proto
//! package bank;
//! message Transfer { uint64 amount = 1; }
//! message TransferResponse { uint64 fencing_token = 1; }
//! service Accounts { rpc Transfer(Transfer) returns (TransferResponse); }
//! ```

mod locks;

use std::convert::Infallible;
use std::error::Error;
use std::process::ExitCode;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use http_body::Body;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tonic::codegen::http::{self, uri::PathAndQuery};
use tonic::server::NamedService;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Server};
use tonic::{Code, Request, Response, Status};
use tonic_prost::ProstCodec;
use tower::{BoxError, Service, service_fn};
use tower_distributed_lock::{DistributedLockLayer, Lease, LockManager, key};

/// The metadata that names the account of a call. It is not in the message because the layer sees a
/// call before its message is read. The handler uses the same value: it works on what is locked.
const ACCOUNT: &str = "x-account-id";

const USAGE: &str = "usage: cargo run --example tonic [-- server | client]

  (no argument)   start a server, call it twice at the same time, print both results
  server          keep a server on 127.0.0.1:50051 (another port: PORT)
  client          call that server once

REDIS_URL, for example redis://127.0.0.1:6379: keep the locks in Redis instead of in memory
SENTINELS and SENTINEL_MASTER, or REDIS_CLUSTER: see examples/locks";

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args_os()
        .skip(1)
        .map(|argument| argument.to_string_lossy().into_owned())
        .collect();
    let result = match arguments.join(" ").as_str() {
        "" => demo().await,
        "server" => server().await,
        "client" => client().await,
        "--help" | "-h" => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

// The server.

/// Serves until `stop` is ready and the calls that run are over.
async fn serve(
    locks: &LockManager,
    listener: TcpListener,
    stop: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    let lock = DistributedLockLayer::new(
        locks.clone(),
        // Without the scope, a client could name the locks of other services in this header.
        // A call that does not name its account is answered with INVALID_ARGUMENT.
        key::scope("accounts", key::header(ACCOUNT)),
    );
    // A layer of the server is around all its services. This one knows gRPC calls by their content
    // type, and answers them with a gRPC status.
    Server::builder()
        .layer(lock)
        .add_service(Accounts)
        .serve_with_incoming_shutdown(TcpIncoming::from(listener), stop)
        .await
}

/// The handler.
async fn transfer(request: Request<Transfer>) -> Result<Response<TransferResponse>, Status> {
    // tonic passes the extensions of the HTTP request on to the gRPC request.
    let lease = request
        .extensions()
        .get::<Lease>()
        .cloned()
        .ok_or_else(|| Status::internal("the lock layer is missing"))?;
    let account = request.metadata().get(ACCOUNT);
    let account = account.and_then(|value| value.to_str().ok()).unwrap_or("?");
    let amount = request.get_ref().amount;
    let fencing_token = lease.fencing_token();
    println!("server: transfer of {amount} from account {account}, fencing token {fencing_token}");
    tokio::time::sleep(Duration::from_secs(2)).await; // the work
    Ok(Response::new(TransferResponse { fencing_token }))
}

async fn server() -> Result<(), BoxError> {
    let port = port()?;
    let locks = locks::connect([LockManager::builder()]).await?.remove(0);
    let listener = TcpListener::bind(("127.0.0.1", port))
        .await
        .map_err(|error| format!("cannot listen on 127.0.0.1:{port}: {error}"))?;
    println!("Listening on {}", listener.local_addr()?);
    serve(&locks, listener, async {
        if let Err(error) = tokio::signal::ctrl_c().await {
            eprintln!("cannot listen for ctrl-c: {error}");
            std::future::pending::<()>().await;
        }
    })
    .await
    .map_err(|error| with_cause(&error))?;
    // Waits until Redis has the releases. Otherwise a lock could stay taken until its time to live
    // is over.
    locks.close().await;
    Ok(())
}

fn port() -> Result<u16, String> {
    let Ok(port) = std::env::var("PORT") else {
        return Ok(50051);
    };
    port.parse()
        .map_err(|_| format!("PORT is {port:?}, which is not the number of a port"))
}

// The client.

async fn client() -> Result<(), BoxError> {
    let channel = connect(port()?).await?;
    let transferred = call(channel, Some("7"), 100)
        .await
        .map_err(|status| format!("{:?}, {}", status.code(), status.message()))?;
    println!("done, with fencing token {}", transferred.fencing_token);
    Ok(())
}

async fn connect(port: u16) -> Result<Channel, String> {
    let channel = Channel::from_shared(format!("http://127.0.0.1:{port}"))
        .map_err(|error| error.to_string())?;
    channel.connect().await.map_err(|error| {
        format!(
            "cannot connect to 127.0.0.1:{port}: {} (is the server running?)",
            with_cause(&error)
        )
    })
}

async fn call(
    channel: Channel,
    account: Option<&str>,
    amount: u64,
) -> Result<TransferResponse, Status> {
    let mut client = tonic::client::Grpc::new(channel);
    client
        .ready()
        .await
        .map_err(|error| Status::unavailable(with_cause(&error)))?;
    let mut request = Request::new(Transfer { amount });
    if let Some(account) = account {
        let value = account
            .parse()
            .map_err(|_| Status::invalid_argument("the account is not ASCII"))?;
        request.metadata_mut().insert(ACCOUNT, value);
    }
    let method = PathAndQuery::from_static("/bank.Accounts/Transfer");
    let codec = ProstCodec::<Transfer, TransferResponse>::default();
    let response = client.unary(request, method, codec).await?;
    Ok(response.into_inner())
}

/// Returns an error's message, with those of its causes: tonic's own is "transport error".
fn with_cause(error: &tonic::transport::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

// Both in one process.

async fn demo() -> Result<(), BoxError> {
    let locks = locks::connect([LockManager::builder()]).await?.remove(0);
    let listener = TcpListener::bind(("127.0.0.1", 0))
        .await
        .map_err(|error| format!("cannot listen on 127.0.0.1: {error}"))?;
    let port = listener.local_addr()?.port();
    let (stop, stopped) = oneshot::channel::<()>();
    let server = tokio::spawn({
        let locks = locks.clone();
        async move {
            serve(&locks, listener, async {
                let _ = stopped.await; // told to stop, or forgotten
            })
            .await
        }
    });
    let result = tokio::select! {
        result = calls(port) => result,
        pressed = tokio::signal::ctrl_c() => {
            pressed?;
            Err("interrupted".into())
        }
    };
    let _ = stop.send(());
    server.await?.map_err(|error| with_cause(&error))?;
    locks.close().await;
    result
}

async fn calls(port: u16) -> Result<(), BoxError> {
    let channel = connect(port).await?;

    println!("\nTwo calls at once for one account:");
    let (first, second) = tokio::join!(
        call(channel.clone(), Some("7"), 100),
        call(channel.clone(), Some("7"), 200),
    );
    show("first call", &first);
    show("second call", &second);

    println!("\nOne more, now that the account is free:");
    let third = call(channel.clone(), Some("7"), 300).await;
    show("third call", &third);

    println!("\nA call that does not name an account:");
    let unnamed = call(channel, None, 400).await;
    show("fourth call", &unnamed);

    // Either of the first two may have been the faster one.
    let ((Ok(done), Err(refused)) | (Err(refused), Ok(done))) = (first, second) else {
        return Err("one of the first two calls should have been refused, and only one".into());
    };
    let as_expected = refused.code() == Code::Aborted
        && third.is_ok_and(|third| third.fencing_token > done.fencing_token)
        && unnamed.is_err_and(|status| status.code() == Code::InvalidArgument);
    if !as_expected {
        return Err("these are not the results that the lock should give".into());
    }
    Ok(())
}

fn show(name: &str, result: &Result<TransferResponse, Status>) {
    match result {
        Ok(transferred) => println!("{name}: OK, fencing token {}", transferred.fencing_token),
        Err(status) => println!("{name}: {:?}, {}", status.code(), status.message()),
    }
}

// Otherwise generated from the .proto file.

#[derive(Clone, PartialEq, prost::Message)]
struct Transfer {
    #[prost(uint64, tag = "1")]
    amount: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct TransferResponse {
    #[prost(uint64, tag = "1")]
    fencing_token: u64,
}

#[derive(Clone)]
struct Accounts;

impl NamedService for Accounts {
    const NAME: &'static str = "bank.Accounts";
}

impl<B> Service<http::Request<B>> for Accounts
where
    B: Body + Send + 'static,
    B::Error: Into<BoxError> + Send,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        Box::pin(async move {
            if request.uri().path() != "/bank.Accounts/Transfer" {
                return Ok(Status::unimplemented("there is no such method").into_http());
            }
            let mut grpc =
                tonic::server::Grpc::new(ProstCodec::<TransferResponse, Transfer>::default());
            Ok(grpc.unary(service_fn(transfer), request).await)
        })
    }
}
