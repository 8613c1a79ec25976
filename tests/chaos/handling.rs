//! Requests through the layers: events that are to be handled once, and requests under a lock.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::Full;
use tokio::sync::Mutex;
use tower::util::BoxCloneService;
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_distributed_lock::{DistributedLockLayer, IdempotencyLayer, Lease, LockManager, Mode};

use crate::clock::{MS, nanos};
use crate::history::{Log, What};
use crate::holding::look;
use crate::requests::keys;
use crate::support::random::Random;
use crate::variety::Variety;
use crate::worker::Me;

type Body = Full<Bytes>;
/// Answers with the outcome, as the history has it.
type Handler = BoxCloneService<Request<Body>, String, Infallible>;

const WAIT: Duration = Duration::from_millis(700);
/// The longest that a handler takes, unless it blocks.
const WORK_MS: u64 = 400;
/// For how long a handler blocks its thread at the most: longer than most leases.
const BLOCK_MS: u64 = 900;
/// The length of a long response.
const LONG: usize = 8 << 20;

#[derive(Clone)]
pub struct Handling {
    events: Arc<Mutex<Handler>>,
    locked: Arc<Mutex<Handler>>,
}

/// What a request's handler is to do.
#[derive(Clone)]
struct Task {
    me: Me,
    id: u64,
    key: String,
    time: Duration,
    blocks: bool,
    status: u16,
    length: usize,
    random: Random,
}

impl Handling {
    pub fn new(locks: &LockManager) -> Self {
        let events = IdempotencyLayer::webhook(locks.clone(), "event-id")
            .scope(|_| "events")
            .remember(|status| status.is_success())
            .max_response_body(LONG)
            .wait(WAIT);
        let key =
            |request: &http::request::Parts| request.headers["key"].to_str().unwrap().to_owned();
        let mode = |request: &http::request::Parts| match request.method {
            Method::GET => Mode::Shared,
            _ => Mode::Exclusive,
        };
        let locked = DistributedLockLayer::new(locks.clone(), key)
            .mode(mode)
            .wait(WAIT);
        let events = events
            .layer(service_fn(handle))
            .map_response(|answer| text(&answer));
        let locked = locked
            .layer(service_fn(handle))
            .map_response(|answer| text(&answer));
        Self {
            events: Arc::new(Mutex::new(events.boxed_clone())),
            locked: Arc::new(Mutex::new(locked.boxed_clone())),
        }
    }

    /// One delivery of one of the last events: all workers get the same ones at about the same
    /// time.
    pub async fn deliver(&self, me: &Me, random: &mut Random) {
        let one_in_ms = match me.worker.orders.has(Variety::Events) {
            true => 60,
            false => 250,
        };
        let event = format!("event:{}", nanos() / (one_in_ms * MS) - random.below(4));
        let request = Request::post("/").header("event-id", &event);
        self.send(&self.events, request, me.name(&event), me, random)
            .await;
    }

    /// A request under one of the locks that are taken without a layer as well.
    pub async fn serve(&self, me: &Me, random: &mut Random) {
        let key = random.pick(keys(&me.worker.orders));
        let method = match random.chance(40) {
            true => Method::GET,
            false => Method::POST,
        };
        let request = Request::builder().method(method).header("key", key);
        self.send(&self.locked, request, me.name(key), me, random)
            .await;
    }

    async fn send(
        &self,
        handler: &Mutex<Handler>,
        request: http::request::Builder,
        key: String,
        me: &Me,
        random: &mut Random,
    ) {
        let id = me.next_id();
        let task = Task::new(me, id, &key, random);
        let orders = &me.worker.orders;
        let within = WAIT + task.time + orders.answers_within() + orders.kept_within();
        me.log
            .note(What::Delivered, id, within.as_nanos() as u64, &key);
        let request = request.extension(task).body(Body::default()).unwrap();
        let mut service = handler.lock().await.clone();
        let answer = service.ready().await.unwrap().call(request);
        let give_up = if random.chance(20) {
            random.millis(0, 200)
        } else {
            Duration::from_secs(60)
        };
        match tokio::time::timeout(give_up, answer).await {
            Ok(answer) => me.log.note(What::Answered, id, 0, &answer.unwrap()),
            Err(_) => me.log.note(What::Cancelled, id, 0, ""),
        }
    }
}

impl Task {
    fn new(me: &Me, id: u64, key: &str, random: &mut Random) -> Self {
        let orders = &me.worker.orders;
        let blocks = orders.has(Variety::Blocking) && random.chance(10);
        let time = match random.below(100) {
            _ if blocks => random.millis(0, BLOCK_MS),
            0..80 => random.millis(0, 60),
            _ => random.millis(60, WORK_MS),
        };
        let status = if random.chance(85) { 200 } else { 500 };
        let length = match orders.has(Variety::LongAnswers) && random.chance(20) {
            true => LONG,
            false => 0,
        };
        Self {
            me: me.clone(),
            id,
            key: key.to_owned(),
            time,
            blocks,
            status,
            length,
            random: random.fork(),
        }
    }

    async fn work(&mut self, lease: &Lease) {
        let log = &self.me.log;
        let until = nanos() + self.time.as_nanos() as u64;
        let is_held = || look(log, self.id, || lease.is_held());
        while is_held() && nanos() < until {
            if self.blocks {
                self.me.block(self.time);
            } else {
                tokio::time::sleep(self.random.millis(0, 8)).await;
            }
        }
    }
}

async fn handle<B>(request: Request<B>) -> Result<Response<Body>, Infallible> {
    let mut task = request.extensions().get::<Task>().unwrap().clone();
    let lease = request.extensions().get::<Lease>().unwrap().clone();
    let (log, id) = (task.me.log.clone(), task.id);
    let how = match lease.mode() {
        Mode::Shared => "shared",
        _ => "",
    };
    log.note(What::Began, id, lease.fencing_token(), how);
    let _ended = Ended(&log, id);
    task.work(&lease).await;
    let good_until = nanos() + lease.remaining().as_nanos() as u64;
    log.write(
        nanos(),
        What::Done,
        id,
        task.status.into(),
        good_until,
        &task.key,
    );
    let answer = Response::builder().status(task.status);
    Ok(answer.body(Body::from(vec![b'x'; task.length])).unwrap())
}

/// Notes when a handler is over, which may have been stopped before it was done.
struct Ended<'a>(&'a Log, u64);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.note(What::Ended, self.1, 0, "");
    }
}

fn text<B>(answer: &Response<B>) -> String {
    match answer.headers().contains_key("idempotent-replayed") {
        true => "replayed".to_owned(),
        false => answer.status().as_u16().to_string(),
    }
}
