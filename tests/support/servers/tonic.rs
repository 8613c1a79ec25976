//! A gRPC service of tonic's, without generated code, and a client of it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::uri::PathAndQuery;
use http::{Request, Response};
use tonic::Status;
use tonic::codegen::Service;
use tonic::server::NamedService;
use tonic::transport::Channel;
use tonic_prost::ProstCodec;
use tower::{BoxError, service_fn};
use tower_distributed_lock::Lease;

use crate::support::{Gate, soon};

/// Which of them the layer is applied to.
#[derive(Clone, Copy)]
pub enum Around {
    Server,
    Service,
}

/// Serves an [`Echo`] under a layer, [`Around`] one or the other. Evaluates to its address.
macro_rules! serve_tonic {
    ($layer:expr, $echo:expr, $around:expr) => {{
        use tonic::service::LayerExt;
        use tonic::transport::Server;

        let (listener, address) = $crate::servers::listen().await;
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        match $around {
            $crate::servers::tonic::Around::Server => {
                let server = Server::builder().layer($layer).add_service($echo);
                tokio::spawn(server.serve_with_incoming(incoming));
            }
            $crate::servers::tonic::Around::Service => {
                let server = Server::builder().add_service($layer.named_layer($echo));
                tokio::spawn(server.serve_with_incoming(incoming));
            }
        }
        address
    }};
}
pub(crate) use serve_tonic;

#[derive(Clone, PartialEq, prost::Message)]
pub struct Text {
    #[prost(string, tag = "1")]
    pub text: String,
}

/// What `Unary` answers once it has passed the gate: it is told of the lease, if there is one,
/// and of the text.
type Respond = dyn Fn(Option<Lease>, String) -> Result<String, Status> + Send + Sync;

/// A service as tonic's code generator would make it, with two methods, `Unary` and `Streaming`.
#[derive(Clone)]
pub struct Echo {
    gate: Gate,
    respond: Arc<Respond>,
}

impl Echo {
    pub fn new<F>(gate: &Gate, respond: F) -> Self
    where
        F: Fn(Option<Lease>, String) -> Result<String, Status> + Send + Sync + 'static,
    {
        Self {
            gate: gate.clone(),
            respond: Arc::new(respond),
        }
    }
}

impl NamedService for Echo {
    const NAME: &'static str = "test.Echo";
}

type Body = tonic::body::Body;

impl<B> Service<Request<B>> for Echo
where
    B: http_body::Body<Data = Bytes, Error: Into<BoxError> + Send> + Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let Self { gate, respond } = self.clone();
        let lease = request.extensions().get::<Lease>().cloned();
        let request = request.map(Body::new);
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(ProstCodec::<Text, Text>::default());
            Ok(match request.uri().path() {
                "/test.Echo/Unary" => {
                    let method = service_fn(move |request: tonic::Request<Text>| {
                        let (gate, respond) = (gate.clone(), Arc::clone(&respond));
                        let lease = lease.clone();
                        async move {
                            gate.pass().await;
                            let text = respond(lease, request.into_inner().text)?;
                            Ok(tonic::Response::new(Text { text }))
                        }
                    });
                    grpc.unary(method, request).await
                }
                "/test.Echo/Streaming" => {
                    let method = service_fn(move |request: tonic::Request<Text>| {
                        let gate = gate.clone();
                        let echo = request.into_inner();
                        // One message at once, the other through the gate.
                        let first = stream::iter([Ok::<_, Status>(echo.clone())]);
                        let second = stream::once(async move {
                            gate.pass().await;
                            Ok(echo)
                        });
                        let messages = first.chain(second).boxed();
                        async move { Ok::<_, Status>(tonic::Response::new(messages)) }
                    });
                    grpc.server_streaming(method, request).await
                }
                _ => Status::unimplemented("").into_http(),
            })
        })
    }
}

pub struct EchoClient(tonic::client::Grpc<Channel>);

impl EchoClient {
    pub async fn connect(address: SocketAddr) -> Self {
        let channel = Channel::from_shared(format!("http://{address}")).unwrap();
        Self(tonic::client::Grpc::new(channel.connect().await.unwrap()))
    }

    pub async fn unary(&self, text: &str) -> Result<String, Status> {
        self.call(request(text)).await.0
    }

    /// Calls `Unary` with an idempotency key. Returns the outcome, and whether it is a replay.
    pub async fn unary_once(
        &self,
        key: &'static str,
        text: &str,
    ) -> (Result<String, Status>, bool) {
        let mut request = request(text);
        let metadata = request.metadata_mut();
        metadata.insert("idempotency-key", key.parse().unwrap());
        self.call(request).await
    }

    async fn call(&self, request: tonic::Request<Text>) -> (Result<String, Status>, bool) {
        let mut grpc = self.0.clone();
        grpc.ready().await.unwrap();
        let path = PathAndQuery::from_static("/test.Echo/Unary");
        let call = grpc.unary(request, path, ProstCodec::<Text, Text>::default());
        let answer = soon("a response", call).await;
        let metadata = match &answer {
            Ok(response) => response.metadata(),
            Err(status) => status.metadata(),
        };
        let is_replay = metadata.contains_key("idempotent-replayed");
        (answer.map(|response| response.into_inner().text), is_replay)
    }

    pub async fn streaming(&self, text: &str) -> Result<tonic::Streaming<Text>, Status> {
        let mut grpc = self.0.clone();
        grpc.ready().await.unwrap();
        let path = PathAndQuery::from_static("/test.Echo/Streaming");
        let call = grpc.server_streaming(request(text), path, ProstCodec::<Text, Text>::default());
        Ok(soon("a response", call).await?.into_inner())
    }
}

fn request(text: &str) -> tonic::Request<Text> {
    tonic::Request::new(Text {
        text: text.to_owned(),
    })
}
