//! Real parts to test against: Redis servers, and a proxy that can misbehave.

#![allow(
    dead_code,
    unreachable_pub,
    missing_debug_implementations,
    missing_docs
)]

use std::future::Future;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, tcp};
use tokio::sync::{Semaphore, watch};
use tower_distributed_lock::{LockManager, LockManagerBuilder};

/// Long enough for a slow machine, and never waited for if all is well.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Stands for a free port in the arguments of [`RedisServer::start_with`].
pub const FREE_PORT: &str = "<a free port>";

/// Set in the environment, it has every server of the tests refuse RESP3.
const RESP2: &str = "TOWER_DISTRIBUTED_LOCK_TEST_RESP2";

/// Whether servers push what concerns a connection between its replies.
pub fn has_resp3() -> bool {
    std::env::var_os(RESP2).is_none()
}

/// How many connections a manager has.
pub fn connections_per_manager() -> usize {
    if has_resp3() { 1 } else { 2 }
}

/// A redis-server of its own, on a free port, that ends with this value, or with the test's process.
pub struct RedisServer {
    child: Child,
    pid: u32,
    pub port: u16,
    dir: PathBuf,
    args: Vec<String>,
    env: Vec<(String, String)>,
}

impl RedisServer {
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    pub async fn start_with(args: &[&str]) -> Self {
        Self::start_in(&[], args).await
    }

    /// With these variables in its environment.
    pub async fn start_in(env: &[(String, String)], args: &[&str]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("tower-distributed-lock-{}-{number}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&dir).unwrap();
        // Another process may take a port between our look and the server's start: then it ends, and we try again.
        for _ in 0..10 {
            let port = free_port();
            let resp2: &[&str] = match has_resp3() {
                true => &[],
                false => &["--rename-command", "HELLO", "NO-HELLO"],
            };
            let args: Vec<String> = args
                .iter()
                .chain(resp2)
                .map(|arg| match *arg {
                    FREE_PORT => free_port().to_string(),
                    arg => arg.to_owned(),
                })
                .collect();
            if let Some((child, pid)) = launch(port, &dir, env, &args).await {
                return Self {
                    child,
                    pid,
                    port,
                    dir,
                    args,
                    env: env.to_vec(),
                };
            }
        }
        panic!(
            "redis-server did not start: run `redis-server --version`, or see {}",
            dir.display()
        );
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// What stands behind `name` in the server's arguments.
    pub fn argument(&self, name: &str) -> &str {
        let mut args = self.args.iter().skip_while(|arg| *arg != name);
        args.nth(1).unwrap()
    }

    /// A connection beside the crate's own.
    pub async fn client(&self) -> MultiplexedConnection {
        let client = redis::Client::open(self.url()).unwrap();
        client.get_multiplexed_async_connection().await.unwrap()
    }

    pub fn signal(&self, signal: &str) {
        let pid = self.pid.to_string();
        let status = Command::new("kill").args([signal, &pid]).status().unwrap();
        assert!(status.success());
    }

    /// Ends the server without warning. What it had not saved is gone.
    pub fn kill(&mut self) {
        self.signal("-KILL");
        let _ = self.child.wait();
    }

    /// Starts it again on the same port, after [`kill`](Self::kill).
    pub async fn restart(&mut self) {
        self.restart_with(&[]).await;
    }

    pub async fn restart_with(&mut self, more: &[&str]) {
        let mut args = self.args.clone();
        args.extend(more.iter().map(ToString::to_string));
        let started = Instant::now();
        loop {
            if let Some((child, pid)) = launch(self.port, &self.dir, &self.env, &args).await {
                (self.child, self.pid) = (child, pid);
                return;
            }
            assert!(
                started.elapsed() < PATIENCE,
                "redis-server did not start again"
            );
        }
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        let _ = Command::new("kill")
            .args(["-KILL", &self.pid.to_string()])
            .stderr(Stdio::null())
            .status();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

pub fn free_port() -> u16 {
    StdListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

async fn launch(
    port: u16,
    dir: &PathBuf,
    env: &[(String, String)],
    args: &[String],
) -> Option<(Child, u32)> {
    // The shell ends the server when this process ends, however it ends: then its standard input is closed.
    let script = "exec 3<&0; redis-server \"$@\" >redis.log 2>&1 3<&- & redis=$!; echo $redis >pid; \
                  (read -r _ <&3; kill -9 $redis) 2>/dev/null & watch=$!; exec 3<&-; wait $redis; kill $watch; wait $watch";
    let _ = std::fs::remove_file(dir.join("pid"));
    let found = Command::new("redis-server").arg("--version").output();
    assert!(
        found.is_ok(),
        "these tests need redis-server, which is not installed: run tests/run, which installs it, or install it \
         (Debian: apt-get install redis-server)"
    );
    let mut child = Command::new("sh")
        .args(["-c", script, "redis-server"])
        .args([
            "--port",
            &port.to_string(),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "no",
        ])
        .args(["--enable-debug-command", "yes"])
        .args(args)
        .envs(env.iter().map(|(name, value)| (name, value)))
        .current_dir(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let started = Instant::now();
    while started.elapsed() < PATIENCE {
        let pid = std::fs::read_to_string(dir.join("pid"))
            .ok()
            .and_then(|pid| pid.trim().parse().ok());
        let is_up = TcpStream::connect(("127.0.0.1", port)).await.is_ok()
            || args.iter().any(|arg| arg == "--tls-port");
        match pid {
            Some(pid) if is_up && is_redis(dir) => return Some((child, pid)),
            _ if child.try_wait().unwrap().is_some() => return None,
            _ => tokio::time::sleep(Duration::from_millis(2)).await,
        }
    }
    let _ = child.kill();
    let _ = child.wait();
    None
}

/// Whether the server that answers is ours: its log says that it has the port.
fn is_redis(dir: &std::path::Path) -> bool {
    std::fs::read_to_string(dir.join("redis.log"))
        .is_ok_and(|log| log.contains("Ready to accept connections") || log.contains("Loading"))
}

/// Waits until a condition holds. Fails the test if it never does.
pub async fn eventually<F, R>(what: &str, mut condition: F)
where
    F: FnMut() -> R,
    R: Future<Output = bool>,
{
    let started = Instant::now();
    while !condition().await {
        assert!(started.elapsed() < PATIENCE, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Waits for something that must come.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .unwrap_or_else(|_| panic!("waited in vain: {what}"))
}

/// Waits until nothing of ours is left in Redis but the fence: no owner, no queue.
pub async fn eventually_no_trace(redis: &MultiplexedConnection) {
    eventually("no lock and no queue is left in Redis", || async {
        let keys: Vec<String> = redis::cmd("KEYS")
            .arg("*")
            .query_async(&mut redis.clone())
            .await
            .unwrap();
        keys.iter().all(|key| key == "{lock:}:fence")
    })
    .await;
}

pub async fn value(redis: &MultiplexedConnection, key: &str) -> Option<String> {
    redis::cmd("GET")
        .arg(key)
        .query_async(&mut redis.clone())
        .await
        .unwrap()
}

pub async fn run(redis: &MultiplexedConnection, command: &str) -> redis::Value {
    let mut words = command.split(' ');
    let mut cmd = redis::cmd(words.next().unwrap());
    for word in words {
        cmd.arg(word);
    }
    cmd.query_async(&mut redis.clone()).await.unwrap()
}

/// How many script calls the server has carried out.
pub async fn script_calls(redis: &MultiplexedConnection) -> u64 {
    let info: String = redis::cmd("INFO")
        .arg("commandstats")
        .query_async(&mut redis.clone())
        .await
        .unwrap();
    let calls = |command: &str| {
        info.lines()
            .find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")))
            .and_then(|line| line.split(',').next()?.parse::<u64>().ok())
            .unwrap_or(0)
    };
    calls("eval") + calls("evalsha")
}

/// How many processes wait in Redis for a key.
pub async fn queue_length(redis: &MultiplexedConnection, key: &str) -> usize {
    redis::cmd("LLEN")
        .arg(format!("{{lock:{key}}}:queue"))
        .query_async(&mut redis.clone())
        .await
        .unwrap()
}

pub fn short_lived(ttl_ms: u64) -> LockManagerBuilder {
    LockManager::builder()
        .ttl(Duration::from_millis(ttl_ms))
        .command_timeout(Duration::from_millis(ttl_ms.min(1000)))
}

/// No expiry can be the explanation: it would take a minute.
pub fn minute() -> LockManagerBuilder {
    LockManager::builder().ttl(Duration::from_secs(60))
}

/// Where a handler stops until the test lets it go on.
#[derive(Clone)]
pub struct Gate {
    arrived: Arc<Semaphore>,
    open: Arc<Semaphore>,
}

impl Gate {
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        Self {
            arrived: Arc::new(Semaphore::new(0)),
            open: Arc::new(Semaphore::new(0)),
        }
    }

    /// The handler's side.
    pub async fn pass(&self) {
        self.arrived.add_permits(1);
        self.open.acquire().await.unwrap().forget();
    }

    /// Returns when one more has arrived.
    pub async fn arrived(&self) {
        soon("the handler is reached", self.arrived.acquire())
            .await
            .unwrap()
            .forget();
    }

    /// Whether nobody has arrived but those that [`arrived`](Self::arrived) told of.
    pub fn nobody_else(&self) -> bool {
        self.arrived.available_permits() == 0
    }

    /// Lets one go on.
    pub fn open(&self) {
        self.open.add_permits(1);
    }
}

/// Says that it was dropped.
pub struct OnDrop(Arc<AtomicBool>);

impl OnDrop {
    pub fn new() -> (Self, Arc<AtomicBool>) {
        let dropped = Arc::new(AtomicBool::new(false));
        (Self(Arc::clone(&dropped)), dropped)
    }
}

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// A TCP proxy in front of a server, that can stop to forward, or close everything.
pub struct Proxy {
    pub port: u16,
    mode: watch::Sender<Mode>,
    accepting: tokio::task::JoinHandle<()>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    Forward,
    /// Bytes are taken and kept back, in both directions, until the mode changes.
    Hold,
    /// Requests get through, answers are kept back.
    HoldAnswers,
    /// Answers get through, requests are kept back.
    HoldRequests,
    /// Of each connection, a little more than so many bytes get through in each direction.
    First(u64),
    /// Each connection is as slow as that, in bytes per second and direction.
    Throttle(u32),
    Close,
}

impl Proxy {
    pub async fn start(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (mode, watch) = watch::channel(Mode::Forward);
        let accepting = tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                if *watch.borrow() == Mode::Close {
                    continue;
                }
                let target = SocketAddr::from(([127, 0, 0, 1], target));
                let Ok(server) = TcpStream::connect(target).await else {
                    continue;
                };
                let _ = (client.set_nodelay(true), server.set_nodelay(true));
                let (client_read, client_write) = client.into_split();
                let (server_read, server_write) = server.into_split();
                tokio::spawn(forward(client_read, server_write, watch.clone(), false));
                tokio::spawn(forward(server_read, client_write, watch.clone(), true));
            }
        });
        Self {
            port,
            mode,
            accepting,
        }
    }

    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn forward(
    mut from: tcp::OwnedReadHalf,
    mut to: tcp::OwnedWriteHalf,
    mut mode: watch::Receiver<Mode>,
    answers: bool,
) {
    let mut buffer = vec![0; 64 * 1024];
    let mut forwarded = 0;
    let mut is_free = tokio::time::Instant::now();
    loop {
        let read = tokio::select! {
            read = from.read(&mut buffer) => read,
            closed = mode.wait_for(|mode| *mode == Mode::Close) => {
                drop(closed);
                return;
            }
        };
        let Ok(length @ 1..) = read else {
            return;
        };
        let held = |mode: &Mode| match mode {
            Mode::Hold => true,
            Mode::HoldAnswers => answers,
            Mode::HoldRequests => !answers,
            Mode::First(bytes) => forwarded > *bytes,
            Mode::Forward | Mode::Throttle(_) | Mode::Close => false,
        };
        let now = match mode.wait_for(|mode| !held(mode)).await {
            Ok(mode) => *mode,
            Err(_) => return,
        };
        match now {
            Mode::Close => return,
            Mode::Throttle(rate) => {
                let now = tokio::time::Instant::now();
                is_free = is_free.max(now) + Duration::from_secs(1) * length as u32 / rate;
                // Timers are not as fine as bytes.
                if is_free > now + Duration::from_millis(10) {
                    tokio::time::sleep_until(is_free).await;
                }
            }
            _ => {}
        }
        forwarded += length as u64;
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}

/// A service under an idempotency layer, and what it answers.
pub mod once {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use bytes::Bytes;
    use futures_util::future::BoxFuture;
    use futures_util::{FutureExt, poll};
    use http::{HeaderMap, Request, Response, response};
    use http_body_util::combinators::UnsyncBoxBody;
    use http_body_util::{BodyExt, Full};
    use tokio::task::JoinHandle;
    use tower::util::BoxCloneSyncService;
    use tower::{BoxError, Layer, Service, ServiceExt, service_fn};
    use tower_distributed_lock::idempotency::{IdempotencyBody, IdempotencyLayer};

    use super::{Gate, soon};

    pub type Body = UnsyncBoxBody<Bytes, BoxError>;
    /// What a handler gets.
    pub type Inside = Request<IdempotencyBody<Body>>;
    pub type Result = std::result::Result<Response<Body>, Failed>;

    /// The error of a handler, which is none in the sense of the standard library.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Failed(pub u32);

    pub fn body(content: impl Into<Bytes>) -> Body {
        whole(Full::new(content.into()))
    }

    pub fn whole<B>(body: B) -> Body
    where
        B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        body.map_err(Into::into).boxed_unsync()
    }

    pub fn text(content: impl Into<Bytes>) -> Response<Body> {
        Response::new(body(content))
    }

    /// A request with a key, and always the same payload.
    pub fn post(key: &str) -> Request<Body> {
        post_to("/a", key)
    }

    pub fn post_to(path: &str, key: &str) -> Request<Body> {
        let request = Request::post(path).header("idempotency-key", key);
        request.body(body("payload")).unwrap()
    }

    #[derive(Clone)]
    pub struct App(BoxCloneSyncService<Request<Body>, Response<Body>, Failed>);

    impl App {
        pub fn new<F, R>(layer: &IdempotencyLayer, handler: F) -> Self
        where
            F: Fn(Inside) -> R + Clone + Send + Sync + 'static,
            R: Future<Output = Result> + Send + 'static,
        {
            Self::of(layer.layer(service_fn(handler)))
        }

        pub fn of<S, B>(service: S) -> Self
        where
            S: Service<Request<Body>, Response = Response<B>, Error = Failed, Future: Send>
                + Clone
                + Send
                + Sync
                + 'static,
            B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
        {
            let service = service.map_response(|response| response.map(whole));
            Self(BoxCloneSyncService::new(service))
        }

        pub fn call(
            &self,
            request: Request<Body>,
        ) -> impl Future<Output = Result> + Send + Unpin + use<> {
            self.0.clone().oneshot(request)
        }

        pub async fn send(&self, request: Request<Body>) -> Answer {
            let response = soon("an answer", self.call(request)).await;
            Answer::of(response.unwrap()).await
        }

        /// Sends a request that is not answered at once: it has arrived at where it waits in this process.
        pub async fn begin(&self, request: Request<Body>) -> JoinHandle<Answer> {
            let mut call = self.call(request);
            assert!(poll!(&mut call).is_pending());
            tokio::spawn(async move { Answer::of(call.await.unwrap()).await })
        }
    }

    #[derive(Debug)]
    pub struct Answer {
        pub head: response::Parts,
        pub body: Bytes,
        pub trailers: Option<HeaderMap>,
    }

    impl Answer {
        pub async fn of(response: Response<Body>) -> Self {
            let (head, body) = response.into_parts();
            let collected = soon("the whole body", body.collect()).await.unwrap();
            let trailers = collected.trailers().cloned();
            let body = collected.to_bytes();
            Self {
                head,
                body,
                trailers,
            }
        }

        pub fn status(&self) -> u16 {
            self.head.status.as_u16()
        }

        pub fn is_replay(&self) -> bool {
            match self.head.headers.get("idempotent-replayed") {
                Some(value) => {
                    assert_eq!(value, "true");
                    true
                }
                None => false,
            }
        }

        /// That is what the handler answered in this run, given for the first time.
        #[track_caller]
        pub fn is_run(&self, run: usize) {
            assert_eq!(self.status(), 200, "{self:?}");
            assert_eq!(self.body, format!("run {run}"));
            assert!(!self.is_replay());
        }

        #[track_caller]
        pub fn is_replay_of(&self, run: usize) {
            assert_eq!(self.status(), 200, "{self:?}");
            assert_eq!(self.body, format!("run {run}"));
            assert!(self.is_replay());
        }

        #[track_caller]
        pub fn is_refused(&self, status: u16) {
            assert_eq!(self.status(), status, "{self:?}");
            assert!(!self.is_replay());
            let headers = &self.head.headers;
            assert_eq!(headers["content-type"], "application/problem+json");
        }
    }

    /// Counts how often a handler runs.
    #[derive(Clone, Default)]
    pub struct Runs(Arc<AtomicUsize>);

    impl Runs {
        pub fn count(&self) -> usize {
            self.0.load(Ordering::SeqCst)
        }

        /// The number of a run that begins.
        pub fn one_more(&self) -> usize {
            self.0.fetch_add(1, Ordering::SeqCst) + 1
        }

        /// A handler that is told which run it is.
        pub fn then<F, R>(
            &self,
            handler: F,
        ) -> impl Fn(Inside) -> R + Clone + Send + Sync + 'static + use<F, R>
        where
            F: Fn(usize, Inside) -> R + Clone + Send + Sync + 'static,
        {
            let runs = self.clone();
            move |request| handler(runs.one_more(), request)
        }

        /// A handler that answers which run it was.
        pub fn handler(
            &self,
        ) -> impl Fn(Inside) -> std::future::Ready<Result> + Clone + Send + Sync + 'static + use<>
        {
            self.then(|run, _| std::future::ready(Ok(text(format!("run {run}")))))
        }

        /// The same, through a gate.
        pub fn gated(
            &self,
            gate: &Gate,
        ) -> impl Fn(Inside) -> BoxFuture<'static, Result> + Clone + Send + Sync + 'static + use<>
        {
            let gate = gate.clone();
            self.then(move |run, _| {
                let gate = gate.clone();
                async move {
                    gate.pass().await;
                    Ok(text(format!("run {run}")))
                }
                .boxed()
            })
        }
    }
}
