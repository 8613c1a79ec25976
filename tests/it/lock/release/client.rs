//! A client that is exact about when it sends, reads and leaves.

use std::net::SocketAddr;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, Method, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::soon;

pub enum Http {
    One {
        stream: TcpStream,
        head: String,
    },
    Two {
        sender: SendRequest<Full<Bytes>>,
        response: BoxFuture<'static, hyper::Result<Response<Incoming>>>,
        body: Option<Incoming>,
    },
}

/// What the client received of a body, and whether that was the whole.
pub struct Received {
    pub text: String,
    pub is_whole: bool,
    pub trailers: Option<HeaderMap>,
}

impl Http {
    pub async fn start(address: SocketAddr, version: Version, method: Method) -> Self {
        let mut stream = TcpStream::connect(address).await.unwrap();
        if version == Version::HTTP_2 {
            let io = TokioIo::new(stream);
            let (mut sender, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), io)
                    .await
                    .unwrap();
            tokio::spawn(connection);
            let mut request = Request::new(Full::default());
            *request.method_mut() = method;
            *request.uri_mut() = format!("http://{address}/").parse().unwrap();
            let response = Box::pin(sender.send_request(request));
            return Self::Two {
                sender,
                response,
                body: None,
            };
        }
        let request = format!(
            "{method} / HTTP/1.1\r\nhost: test\r\nte: trailers\r\nconnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let head = String::new();
        Self::One { stream, head }
    }

    /// Returns the status, or `None` if there is no response.
    pub async fn status(&mut self) -> Option<StatusCode> {
        soon("the head", async {
            match self {
                Self::One { stream, head } => {
                    while !head.ends_with("\r\n\r\n") {
                        let byte = stream.read_u8().await.ok()?;
                        head.push(byte.into());
                    }
                    head.split(' ').nth(1)?.parse().ok()
                }
                Self::Two { response, body, .. } => {
                    let response = response.await.ok()?;
                    let status = response.status();
                    *body = Some(response.into_body());
                    Some(status)
                }
            }
        })
        .await
    }

    /// Reads one frame's worth of the body.
    pub async fn first(&mut self) {
        soon("the first frame", async {
            match self {
                Self::One { stream, .. } => {
                    let mut text = [0; 6];
                    while !text.starts_with(b"first ") {
                        text.rotate_left(1);
                        text[5] = stream.read_u8().await.unwrap();
                    }
                }
                Self::Two { body, .. } => {
                    let frame = body.as_mut().unwrap().frame().await;
                    let data = frame.unwrap().unwrap().into_data().unwrap();
                    assert_eq!(data, "first ");
                }
            }
        })
        .await;
    }

    pub async fn rest(self) -> Received {
        soon("the body", async {
            match self {
                Self::One { mut stream, head } => {
                    let mut bytes = Vec::new();
                    let read = stream.read_to_end(&mut bytes).await;
                    let text = String::from_utf8(bytes).unwrap();
                    let length = head.lines().find_map(|line| {
                        line.to_ascii_lowercase()
                            .strip_prefix("content-length: ")?
                            .parse::<usize>()
                            .ok()
                    });
                    let is_whole = match length {
                        Some(length) => text.len() == length,
                        None => {
                            text.ends_with("0\r\n\r\n") || text.contains("0\r\nx-sum: 42\r\n\r\n")
                        }
                    };
                    let trailers = text.contains("0\r\nx-sum: 42\r\n\r\n").then(|| {
                        HeaderMap::from_iter([("x-sum".parse().unwrap(), "42".parse().unwrap())])
                    });
                    Received {
                        text,
                        is_whole: is_whole && read.is_ok(),
                        trailers,
                    }
                }
                Self::Two {
                    mut body, sender, ..
                } => {
                    let mut body = body.take().unwrap();
                    let mut received = Received {
                        text: String::new(),
                        is_whole: false,
                        trailers: None,
                    };
                    received.is_whole = loop {
                        match body.frame().await {
                            None => break true,
                            Some(Err(_)) => break false,
                            Some(Ok(frame)) => match frame.into_data() {
                                Ok(data) => {
                                    received.text += std::str::from_utf8(&data).unwrap();
                                }
                                Err(frame) => received.trailers = frame.into_trailers().ok(),
                            },
                        }
                    };
                    drop(sender);
                    received
                }
            }
        })
        .await
    }

    /// Over HTTP/1 this closes the connection. Over HTTP/2 it resets the stream, and the connection
    /// lives as long as what is returned.
    pub fn leave(self) -> Option<SendRequest<Full<Bytes>>> {
        match self {
            Self::One { .. } => None,
            Self::Two { sender, .. } => Some(sender),
        }
    }
}

pub async fn get(address: SocketAddr, version: Version) -> Http {
    Http::start(address, version, Method::GET).await
}
