//! The ways to run a request under a lock, behind one interface.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::hint::black_box;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use tower::{Layer, Service, ServiceExt};
use tower_distributed_lock::{DistributedLockLayer, LockManager};

use crate::support::figures::{Figures, Goal, Turns};
use crate::support::orders::text;
use crate::support::recipe::Recipe;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// By hand, with both commands awaited: the reference.
    Awaited,
    /// By hand, with the release in the background.
    Background,
    /// The layer as it is made by `new`.
    Layer,
    /// The layer with `.wait(…)`.
    WaitingLayer,
}

impl Way {
    pub const ALL: [Self; 4] = [
        Self::Awaited,
        Self::Background,
        Self::Layer,
        Self::WaitingLayer,
    ];
    pub const LAYERS: [Self; 2] = [Self::Layer, Self::WaitingLayer];

    pub fn word(self) -> &'static str {
        match self {
            Self::Awaited => "awaited",
            Self::Background => "background",
            Self::Layer => "layer",
            Self::WaitingLayer => "waiting_layer",
        }
    }

    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|way| way.word() == word)
    }
}

/// Adds how each way compares with both commands awaited. The goal is the layer's.
pub fn compare(figures: &mut Figures, name: &str, turns: &Turns<Way>, goal: &Goal) {
    for way in Way::LAYERS {
        let name = format!("{name}_{}_vs_awaited", way.word());
        figures.add(&name, turns.ratio(way, Way::Awaited), goal);
    }
    let ratio = turns.ratio(Way::Background, Way::Awaited);
    figures.note(&format!("{name}_background_vs_awaited"), ratio);
}

/// Sends requests in one of the ways.
#[derive(Clone)]
pub enum Client {
    Recipe(Recipe, Release),
    Layer(LockManager, Locked),
}

#[derive(Clone, Copy)]
pub enum Release {
    Awaited,
    Background,
}

pub type Locked = <DistributedLockLayer as Layer<Hello>>::Service;

impl Client {
    pub async fn connect(way: Way, url: &str) -> Result<Self, String> {
        let release = match way {
            Way::Awaited => Release::Awaited,
            Way::Background => Release::Background,
            Way::Layer | Way::WaitingLayer => {
                let locks = LockManager::connect(url).await.map_err(text)?;
                let locked = locked(way, &locks);
                return Ok(Self::Layer(locks, locked));
            }
        };
        let recipe = Recipe::connect(url).await.map_err(text)?;
        Ok(Self::Recipe(recipe, release))
    }

    /// Sends a request for this key, which no other may want, and reads the response to its end.
    pub async fn request(&self, key: String) {
        match self {
            Self::Layer(_, locked) => through(locked.clone(), key).await,
            Self::Recipe(recipe, release) => {
                let (mut recipe, name) = (recipe.clone(), format!("hand:{key}"));
                let token = recipe.try_acquire(&name).await.unwrap().unwrap();
                through(Hello, key).await;
                match release {
                    Release::Awaited => assert!(recipe.release(&name, &token).await.unwrap()),
                    Release::Background => recipe.release_in_background(name, token),
                }
            }
        }
    }

    pub async fn close(self) {
        // What is released in the background is released by then.
        tokio::time::sleep(Duration::from_millis(20)).await;
        if let Self::Layer(locks, _) = self {
            locks.close().await;
        }
    }
}

/// Puts a layer in front of the service. Each path has a lock of its own.
pub fn locked(way: Way, locks: &LockManager) -> Locked {
    layer(way, locks, |req| Some(req.uri.path().to_owned())).layer(Hello)
}

pub fn layer<K>(way: Way, locks: &LockManager, key: K) -> DistributedLockLayer
where
    K: Fn(&http::request::Parts) -> Option<String> + Send + Sync + 'static,
{
    let layer = DistributedLockLayer::new(locks.clone(), key);
    match way {
        Way::WaitingLayer => layer.wait(Duration::from_secs(60)),
        _ => layer,
    }
}

/// Sends a request to a service, and reads the response to its end.
pub async fn through<S, B>(mut service: S, path: String)
where
    S: Service<Request<()>, Response = Response<B>, Error = Infallible>,
    B: http_body::Body<Data = Bytes, Error: std::fmt::Debug>,
{
    let request = Request::builder().uri(path).body(()).unwrap();
    let response = service.ready().await.unwrap().call(request).await.unwrap();
    assert_eq!(response.status(), 200);
    black_box(response.into_body().collect().await.unwrap());
}

/// A service that does nothing but answer.
#[derive(Clone)]
pub struct Hello;

impl Service<Request<()>> for Hello {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<()>) -> Self::Future {
        ready(Ok(Response::new(Full::new(Bytes::from_static(b"hello")))))
    }
}
