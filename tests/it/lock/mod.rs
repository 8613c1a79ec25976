//! The rules of the lock layer, around services that are functions.
//!
//! Over real sockets: in `stacks`, as a client sees it, and in `release`, as Redis sees it.

mod access;
mod detach;
mod hold;
mod keys_later;
mod lost;
mod refusals;
mod release;
mod release_first;
mod rules;
mod scripted;
mod several;
mod several_keys;
mod shared;
mod stacks;
mod taken_over;
mod waiting;

use std::convert::Infallible;
use std::future::ready;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http::header::CONTENT_TYPE;
use http_body::Body;
use http_body_util::{BodyExt, Full};
use tower::{Service, service_fn};
use tower_distributed_lock::{
    DistributedLockLayer, ErrorKind, Lease, LockManager,
    lock::{Rejection, ResponseBody},
};

use crate::support::{Gate, PATIENCE};

pub const WAIT: Duration = PATIENCE;

type Request = http::Request<Full<Bytes>>;

type Answer<B = Full<Bytes>> = Result<Response<B>, Infallible>;

fn request() -> Request {
    Request::default()
}

fn request_for(key: &str) -> Request {
    let mut request = request();
    request.headers_mut().insert("x-key", key.parse().unwrap());
    request
}

fn grpc_request(content_type: &'static str) -> Request {
    let mut request = request();
    let headers = request.headers_mut();
    headers.insert(CONTENT_TYPE, content_type.parse().unwrap());
    request
}

fn done() -> Answer {
    Ok(Response::new(Full::from("done")))
}

fn on(locks: &LockManager, key: &'static str) -> DistributedLockLayer {
    DistributedLockLayer::new(locks.clone(), move |_| key)
}

fn by_header(locks: &LockManager) -> DistributedLockLayer {
    DistributedLockLayer::new(locks.clone(), |req| {
        let key = req.headers.get("x-key")?;
        Some(key.to_str().unwrap().to_owned())
    })
}

pub trait LayerOn {
    fn layer_on<S>(&self, service: S) -> tower_distributed_lock::lock::DistributedLock<S>;
}

impl LayerOn for DistributedLockLayer {
    fn layer_on<S>(&self, service: S) -> tower_distributed_lock::lock::DistributedLock<S> {
        tower::Layer::layer(self, service)
    }
}

async fn is_free(locks: &LockManager, key: &str) -> bool {
    match locks.try_acquire(key).await {
        Ok(_) => true,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Held);
            false
        }
    }
}

async fn text<B>(response: Response<ResponseBody<B>>) -> String
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<tower::BoxError>,
{
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[track_caller]
fn rejection<B>(response: &Response<B>) -> &Rejection {
    let rejection = response.extensions().get();
    rejection.expect("the request did not run")
}

/// A service whose requests pass the gate, and then get this response.
fn gated<B, F>(
    gate: &Gate,
    respond: F,
) -> impl Service<Request, Response = Response<B>, Error = Infallible, Future: Send>
+ Clone
+ Send
+ use<B, F>
where
    F: Fn() -> Answer<B> + Clone + Send + 'static,
{
    let gate = gate.clone();
    service_fn(move |_: Request| {
        let (gate, respond) = (gate.clone(), respond.clone());
        async move {
            gate.pass().await;
            respond()
        }
    })
}

/// The leases that requests found in their extensions.
type Leases = Arc<Mutex<Vec<Option<Lease>>>>;

fn noting(
    leases: &Leases,
) -> impl Service<Request, Response = Response<Full<Bytes>>, Error = Infallible, Future: Send + Unpin>
+ Clone
+ Send
+ use<> {
    let leases = Arc::clone(leases);
    service_fn(move |req: Request| {
        let lease = req.extensions().get::<Lease>().cloned();
        leases.lock().unwrap().push(lease);
        ready(done())
    })
}

#[derive(Debug, PartialEq)]
struct NotAnError(u32);

fn brief() -> LockManager {
    LockManager::builder()
        .max_hold(Duration::from_millis(50))
        .in_memory()
        .unwrap()
}
