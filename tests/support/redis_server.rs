//! Redis servers.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, RedisResult};
use tokio::net::{TcpSocket, TcpStream};

use super::PATIENCE;

/// Stands for a free port in the arguments of [`RedisServer::start_with`].
pub const FREE_PORT: &str = "<a free port>";

/// If this variable is set, every server of the tests refuses RESP3.
const RESP2: &str = "TOWER_DISTRIBUTED_LOCK_TEST_RESP2";

/// The variable that names the program of the tests' servers, by its path, instead of the
/// `redis-server` that is installed.
const SERVER: &str = "TOWER_DISTRIBUTED_LOCK_TEST_SERVER";

/// The program of the tests' servers. Panics if the variable names one that is not there: the tests
/// must not go on with another server than the one that they were asked to run on.
pub fn server_program() -> PathBuf {
    let Some(path) = std::env::var_os(SERVER) else {
        return "redis-server".into();
    };
    // Servers are started in folders of their own.
    let path = std::path::absolute(&path).unwrap_or(path.into());
    assert!(
        path.is_file(),
        "{SERVER} is {}, where there is no redis-server: set it to the path of one, or unset it",
        path.display()
    );
    path
}

/// What the program says about its version, such as `Redis server v=7.0.15 …`.
fn version(program: &Path) -> String {
    let output = Command::new(program).arg("--version").output();
    let Ok(output) = output else {
        panic!(
            "these tests need {}, which cannot be run: run tests/run, which installs it, or install it \
             (Debian: apt-get install redis-server)",
            program.display()
        );
    };
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Whether the server is older than Redis 7.0. It has fewer settings and coarser rights, and its
/// `SET` does not take `NX` and `GET` together.
pub fn is_before_redis_7() -> bool {
    version(&server_program()).contains("v=6.")
}

/// Whether servers may push messages between the replies of a connection.
pub fn has_resp3() -> bool {
    std::env::var_os(RESP2).is_none()
}

/// A redis-server of its own, on a free port. It ends with this value, or with the test's process.
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

    /// Like [`start_with`](Self::start_with), with these variables in the server's environment.
    pub async fn start_in(env: &[(String, String)], args: &[&str]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = folder(&format!("{number}"));
        // Another process may take the port before the server does. Then the server ends, and we
        // try again.
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
            if let Some((child, pid)) = launch_redis(port, &dir, env, &args).await {
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
            "the server did not start: run `{} --version`, or see {}",
            server_program().display(),
            dir.display()
        );
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// The path of a file that the server makes under this name.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Returns the value of `name` in the server's arguments.
    pub fn argument(&self, name: &str) -> &str {
        let mut args = self.args.iter().skip_while(|arg| *arg != name);
        args.nth(1).unwrap()
    }

    /// A connection besides the crate's own.
    pub async fn client(&self) -> MultiplexedConnection {
        connect_patiently(&self.url()).await.unwrap()
    }

    /// Sends it a signal: see [`signal`].
    pub fn signal(&self, signal: &str) {
        self::signal(self.pid, signal);
    }

    /// Ends the server without warning. What it had not saved is gone.
    pub fn kill(&mut self) {
        self.signal("-KILL");
        let _ = self.child.wait();
    }

    /// Ends the server as an operator does, who has it save all its data.
    pub async fn shut_down(&mut self) {
        let mut redis = self.client().await;
        let mut shutdown = redis::cmd("SHUTDOWN");
        // It closes the connection in place of a reply.
        let _: RedisResult<()> = shutdown.arg("SAVE").query_async(&mut redis).await;
        let _ = self.child.wait();
    }

    /// Starts it again on the same port, after [`kill`](Self::kill) or
    /// [`shut_down`](Self::shut_down).
    pub async fn restart(&mut self) {
        self.restart_with(&[]).await;
    }

    pub async fn restart_with(&mut self, more: &[&str]) {
        let mut args = self.args.clone();
        args.extend(more.iter().map(ToString::to_string));
        let started = Instant::now();
        loop {
            if let Some((child, pid)) = launch_redis(self.port, &self.dir, &self.env, &args).await {
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

/// A folder for the files of one server.
pub(super) fn folder(name: &str) -> PathBuf {
    let name = format!("tower-distributed-lock-{}-{name}", std::process::id());
    let dir = std::env::temp_dir().join(name);
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

pub(super) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

async fn launch_redis(
    port: u16,
    dir: &Path,
    env: &[(String, String)],
    args: &[String],
) -> Option<(Child, u32)> {
    // Before Redis 7, DEBUG needed no permission, and this setting was an error.
    let may_debug: &[&str] = match is_before_redis_7() {
        true => &[],
        false => &["--enable-debug-command", "yes"],
    };
    let port_text = port.to_string();
    let always = ["--port", &port_text, "--bind", "127.0.0.1"];
    let nothing_saved = ["--save", "", "--appendonly", "no"];
    let always = always.iter().chain(&nothing_saved).chain(may_debug);
    let args: Vec<&str> = always
        .copied()
        .chain(args.iter().map(String::as_str))
        .collect();
    let ready = ["Ready to accept connections", "Loading"];
    launch(port, dir, env, &args, &ready).await
}

/// Starts the server's program. Waits until it listens on the port, and its log says that it is
/// ready: so it is ours. `None`: it has ended.
pub(super) async fn launch(
    port: u16,
    dir: &Path,
    env: &[(String, String)],
    args: &[&str],
    ready: &[&str],
) -> Option<(Child, u32)> {
    // The shell ends the server when this process ends, however it ends: the shell's standard input
    // is closed then.
    let script = "exec 3<&0; \"$0\" \"$@\" >redis.log 2>&1 3<&- & redis=$!; echo $redis >pid; \
                  (read -r _ <&3; kill -9 $redis) 2>/dev/null & watch=$!; exec 3<&-; wait $redis; kill $watch; wait $watch";
    let _ = std::fs::remove_file(dir.join("pid"));
    let mut child = Command::new("sh")
        .args(["-c", script])
        .arg(server_program())
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
        let is_up =
            TcpStream::connect(("127.0.0.1", port)).await.is_ok() || args.contains(&"--tls-port");
        let log = || std::fs::read_to_string(dir.join("redis.log")).unwrap_or_default();
        match pid {
            Some(pid) if is_up && ready.iter().any(|ready| log().contains(ready)) => {
                return Some((child, pid));
            }
            _ if child.try_wait().unwrap().is_some() => return None,
            _ => tokio::time::sleep(Duration::from_millis(2)).await,
        }
    }
    let _ = child.kill();
    let _ = child.wait();
    None
}

/// Sends a signal to a process, by its name for `kill`.
pub fn signal(pid: u32, signal: &str) {
    let kill = Command::new("kill")
        .args([signal, &pid.to_string()])
        .status();
    assert!(kill.unwrap().success());
}

/// An address at which nothing listens. It stays bound, so that no other test gets the port.
pub struct ClosedPort(TcpSocket);

impl ClosedPort {
    pub fn new() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
        Self(socket)
    }

    pub fn port(&self) -> u16 {
        self.0.local_addr().unwrap().port()
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port())
    }
}

/// A connection that waits for a reply as long as it takes. A process that was stopped, or that got
/// no core for a while, would find that its replies are late.
pub async fn connect_patiently(url: &str) -> RedisResult<MultiplexedConnection> {
    let patient = AsyncConnectionConfig::new()
        .set_response_timeout(None)
        .set_connection_timeout(None);
    let client = redis::Client::open(url)?;
    client
        .get_multiplexed_async_connection_with_config(&patient)
        .await
}
