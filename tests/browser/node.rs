//! A node: a process with a service, its locks in Redis, and their inspector.

use std::convert::Infallible;
use std::process::{ExitCode, Stdio};
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::response::Html;
use axum::routing::{get, post};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Child;
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tower_distributed_lock::{DistributedLockLayer, LockManager, inspector, key};

use crate::support::{PATIENCE, RedisServer, minute, signal, soon};
use crate::{example, harness};

pub const URL: &str = "BROWSER_TEST_NODE_URL";
const NAME: &str = "BROWSER_TEST_NODE_NAME";
/// Whether the node makes up traffic of its own, and shows no other.
const TRAFFIC: &str = "BROWSER_TEST_NODE_TRAFFIC";

/// The test's side of a node, which ends with this value.
pub struct Node {
    pub port: u16,
    pid: u32,
    _process: Child,
}

impl Node {
    pub async fn start(server: &RedisServer, name: &str, traffic: bool) -> Self {
        let mut command = harness::worker();
        command.env(URL, server.url()).env(NAME, name);
        if traffic {
            command.env(TRAFFIC, "1");
        }
        let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let port = soon("the node starts", lines.next_line()).await.unwrap();
        Self {
            port: port.expect("it says its port").parse().unwrap(),
            pid: process.id().unwrap(),
            _process: process,
        }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Where its page is.
    pub fn page(&self) -> String {
        format!("{}/locks", self.url())
    }

    /// Sends a request, and returns the status of its response.
    pub fn post(&self, path: &str) -> JoinHandle<String> {
        let (port, path) = (self.port, path.to_owned());
        tokio::spawn(async move {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            let head = format!("POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n");
            let request = format!("{head}content-length: 0\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut response = String::new();
            stream.read_to_string(&mut response).await.unwrap();
            response.split(' ').nth(1).unwrap_or_default().to_owned()
        })
    }

    /// Lets one request that holds its lock go on to its end.
    pub async fn finish_one(&self) {
        assert_eq!(
            soon("it is told", self.post("/finish")).await.unwrap(),
            "200"
        );
    }

    pub fn signal(&self, name: &str) {
        signal(self.pid, name);
    }
}

/// The node's side.
pub fn run(url: &str) -> ExitCode {
    harness::obey_input(|_| {});
    Runtime::new().unwrap().block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let name = std::env::var(NAME).unwrap();
        let app = match std::env::var(TRAFFIC) {
            Ok(_) => {
                let locks = example::settings(&name).connect(url).await.unwrap();
                example::make_up_traffic(&example::app(&locks));
                example::internal(locks)
            }
            Err(_) => app(minute().instance_name(name).connect(url).await.unwrap()),
        };
        println!("{port}");
        axum::serve(listener, app).await.unwrap();
    });
    ExitCode::SUCCESS
}

fn app(locks: LockManager) -> Router {
    let may_finish = Arc::new(Semaphore::new(0));
    let orders = DistributedLockLayer::new(locks.clone(), key::path("/orders/{id}"))
        .wait(PATIENCE)
        .name("orders");
    let work = |State(may_finish): State<Arc<Semaphore>>| async move {
        may_finish.acquire().await.unwrap().forget();
    };
    let finish = |State(may_finish): State<Arc<Semaphore>>| async move {
        may_finish.add_permits(1);
    };
    let page = inspector(locks).show_keys(true).allow_force_release(true);
    Router::new()
        .route("/orders/{id}", post(work).route_layer(orders))
        .route("/finish", post(finish))
        // A page without a policy: that of a stranger.
        .route(
            "/stranger",
            get(|| async { Ok::<_, Infallible>(Html("<p>a stranger</p>")) }),
        )
        .with_state(may_finish)
        .nest_service("/locks", page)
}
