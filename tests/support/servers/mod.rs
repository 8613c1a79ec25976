//! The servers that the layers are made for, on sockets of their own, and clients of HTTP.

pub mod tonic;

use std::net::SocketAddr;

use axum::Router;
use axum::serve::ListenerExt;
use bytes::Bytes;
use http::{Request, Response, Version};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tower::{BoxError, Service};

pub async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

pub async fn axum_on(router: Router) -> SocketAddr {
    let (listener, address) = listen().await;
    // Small frames are sent at once.
    let listener = listener.tap_io(|stream| stream.set_nodelay(true).unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

/// Serves the service itself, with nothing around it.
pub async fn hyper_on<S, B>(service: S, version: Version) -> SocketAddr
where
    S: Service<Request<Incoming>, Response = Response<B>, Future: Send> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    let (listener, address) = listen().await;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let io = TokioIo::new(stream);
            let service = TowerToHyperService::new(service.clone());
            tokio::spawn(async move {
                let _ = match version {
                    Version::HTTP_2 => {
                        let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                        server.serve_connection(io, service).await
                    }
                    _ => {
                        let server = hyper::server::conn::http1::Builder::new();
                        server.serve_connection(io, service).await
                    }
                };
            });
        }
    });
    address
}

/// A client that speaks this version, whatever the server would rather speak.
pub fn client<B>(version: Version) -> Client<HttpConnector, B>
where
    B: http_body::Body<Data: Send> + Send,
{
    Client::builder(TokioExecutor::new())
        .http2_only(version == Version::HTTP_2)
        .build_http()
}
