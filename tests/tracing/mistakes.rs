//! What is told of services that are put together wrongly. Strangers can send any number of
//! requests that find it out.

use std::convert::Infallible;

use http::{Request, Response, StatusCode};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_distributed_lock::{DistributedLockLayer, LockManager, Mode, key};
use tracing::Level;

use crate::capture::{Record, assert_untold, listen, records};

const REFUSED: StatusCode = StatusCode::INTERNAL_SERVER_ERROR;
const NO_KEY: &str = "no key can be made for a request";
const UPGRADE: &str = "a layer wants a lock alone that a layer outside of it shares";

async fn handler(_: Request<()>) -> Result<Response<String>, Infallible> {
    Ok(Response::default())
}

/// How often a layer has told of a mistake, on this level.
fn told(name: &str, message: &str, level: Level) -> usize {
    let name = format!("{name:?}");
    let is_one = |record: &&Record| {
        record.is_ours()
            && record.fields.get("name") == Some(&*name)
            && record.message().starts_with(message)
            && record.level == level
    };
    records().iter().filter(is_one).count()
}

async fn status<S, B>(service: &mut S, path: &str) -> StatusCode
where
    S: Service<Request<()>, Response = Response<B>, Error = Infallible>,
{
    let request = Request::get(path).body(()).unwrap();
    let service = service.ready().await.unwrap();
    service.call(request).await.unwrap().status()
}

#[tokio::test]
async fn strangers_that_ask_for_unknown_paths_do_not_fill_the_log() {
    listen();
    for name in ["unknown paths 1", "unknown paths 2"] {
        let locks = LockManager::in_memory();
        let layer = DistributedLockLayer::new(locks, key::path("/accounts/{id}")).name(name);
        let service = layer.layer(service_fn(handler));
        for number in 0..100 {
            // As a server does it, with a clone for each connection.
            let mut service = service.clone();
            for path in [&*format!("/stranger/{number}"), "/accounts/7/"] {
                assert_eq!(status(&mut service, path).await, REFUSED);
            }
        }
        // Each layer tells once, for the operator. The others are for those that look for more.
        assert_eq!(told(name, NO_KEY, Level::ERROR), 1);
        assert_eq!(told(name, NO_KEY, Level::DEBUG), 199);
    }
    assert_untold(&["/stranger/"]);
}

#[tokio::test]
async fn one_mistake_does_not_hide_another() {
    const NAME: &str = "two mistakes";
    listen();
    let locks = LockManager::in_memory();
    let alone = DistributedLockLayer::new(locks.clone(), key::path("/accounts/{id}")).name(NAME);
    let shares = DistributedLockLayer::new(locks, |_| ("accounts", 7)).mode(|_| Mode::Shared);
    let mut service = shares.layer(alone.layer(service_fn(handler)));
    for _ in 0..3 {
        for path in ["/unknown", "/accounts/7"] {
            assert_eq!(status(&mut service, path).await, REFUSED);
        }
    }
    for mistake in [NO_KEY, UPGRADE] {
        assert_eq!(told(NAME, mistake, Level::ERROR), 1, "{mistake}");
        assert_eq!(told(NAME, mistake, Level::DEBUG), 2, "{mistake}");
    }
}
