//! Events that are to be handled once, through the idempotency layer.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use http_body_util::Full;
use tokio::sync::Mutex;
use tower::util::BoxCloneService;
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_distributed_lock::idempotency::IdempotencyBody;
use tower_distributed_lock::{IdempotencyLayer, Lease, LockManager};

use crate::clock::{MS, nanos};
use crate::history::{Log, What};
use crate::holding::look;
use crate::random::Random;
use crate::worker::{COMMAND_TIMEOUT, Me};

type Body = Full<bytes::Bytes>;
type Once = BoxCloneService<Request<Body>, Response<IdempotencyBody<Body>>, Infallible>;

const WAIT: Duration = Duration::from_millis(700);
/// The longest that a handler takes.
const WORK_MS: u64 = 400;

#[derive(Clone)]
pub struct Handling(Arc<Mutex<Once>>);

/// What a request's handler is to do.
#[derive(Clone)]
struct Task {
    id: u64,
    event: String,
    random: Random,
}

impl Handling {
    pub fn new(me: &Me, locks: &LockManager) -> Self {
        let layer = IdempotencyLayer::webhook(locks.clone(), "event-id")
            .scope(|_| "events")
            .remember(|status| status.is_success())
            .wait(WAIT);
        let log = me.log.clone();
        let handler = service_fn(move |request: Request<IdempotencyBody<Body>>| {
            let task = request.extensions().get::<Task>().unwrap().clone();
            let lease = request.extensions().get::<Lease>().unwrap().clone();
            let log = log.clone();
            async move { Ok::<_, Infallible>(handle(log, task, lease).await) }
        });
        Self(Arc::new(Mutex::new(layer.layer(handler).boxed_clone())))
    }

    /// One delivery of one of the last events: all workers get the same ones at about the same time.
    pub async fn deliver(&self, me: &Me, random: &mut Random) {
        let id = me.next_id();
        let event = nanos() / (250 * MS) - random.below(4);
        let event = format!("event:{event}");
        let within = WAIT + Duration::from_millis(WORK_MS) + 2 * COMMAND_TIMEOUT;
        me.log
            .note(What::Delivered, id, within.as_nanos() as u64, &event);
        let mut request = Request::post("/");
        request = request.header("event-id", &event);
        let random_of_task = random.fork();
        let task = Task {
            id,
            event,
            random: random_of_task,
        };
        let request = request.extension(task).body(Body::default()).unwrap();
        let mut service = self.0.lock().await.clone();
        let answer = service.ready().await.unwrap().call(request);
        let give_up = if random.chance(20) {
            random.ms(0, 200)
        } else {
            Duration::from_secs(60)
        };
        let Ok(answer) = tokio::time::timeout(give_up, answer).await else {
            me.log.note(What::Cancelled, id, 0, "");
            return;
        };
        let answer = answer.unwrap();
        let text = match answer.headers().contains_key("idempotent-replayed") {
            true => "replayed".to_owned(),
            false => answer.status().as_u16().to_string(),
        };
        me.log.note(What::Answered, id, 0, &text);
    }
}

async fn handle(log: Log, task: Task, lease: Lease) -> Response<Body> {
    let Task {
        id,
        event,
        mut random,
    } = task;
    log.note(What::Began, id, lease.fencing_token(), &event);
    let time = if random.chance(80) {
        random.ms(0, 60)
    } else {
        random.ms(60, WORK_MS)
    };
    let until = nanos() + time.as_nanos() as u64;
    let mut is_held = look(&log, id, || lease.is_held());
    while is_held && nanos() < until {
        tokio::time::sleep(random.ms(0, 8)).await;
        is_held = look(&log, id, || lease.is_held());
    }
    let status = if random.chance(85) { 200 } else { 500 };
    log.note(What::Done, id, status, &event);
    Response::builder()
        .status(status as u16)
        .body(Body::default())
        .unwrap()
}
