//! A primary with replicas, and the sentinels that watch it.

use std::path::PathBuf;
use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use redis::aio::MultiplexedConnection;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;

use super::redis_server::{folder, free_port, launch};
use super::{RedisServer, connect_patiently, eventually, run, text};

/// The name of the primary in the configuration of the sentinels.
pub const PRIMARY: &str = "mymaster";

/// How long a server must be silent until a sentinel takes it for down.
const DOWN_AFTER_MS: u32 = 600;

/// One primary, two replicas and three sentinels. They end with this value.
pub struct SentinelSet {
    pub servers: Vec<RedisServer>,
    pub sentinels: Vec<Sentinel>,
}

/// A sentinel. It ends with this value, or with the test's process.
pub struct Sentinel {
    child: Child,
    pid: u32,
    pub port: u16,
    dir: PathBuf,
}

impl SentinelSet {
    /// Starts them. The arguments are those of each server of data.
    pub async fn start(args: &[&str]) -> Self {
        let mut args = args.to_vec();
        // A replica that has just been attached counts at once.
        args.extend([
            "--repl-diskless-sync-delay",
            "0",
            "--repl-ping-replica-period",
            "1",
        ]);
        let mut servers = vec![RedisServer::start_with(&args).await];
        let port = servers[0].port.to_string();
        args.extend(["--replicaof", "127.0.0.1", &port]);
        for _ in 0..2 {
            servers.push(RedisServer::start_with(&args).await);
        }
        let redis = servers[0].client().await;
        eventually("the replicas are attached", || async {
            let info = text(&redis, "INFO replication").await;
            info.matches("state=online").count() == 2
        })
        .await;
        let mut sentinels = Vec::new();
        for _ in 0..3 {
            sentinels.push(Sentinel::start(servers[0].port).await);
        }
        let this = Self { servers, sentinels };
        for sentinel in &this.sentinels {
            let redis = sentinel.client().await;
            eventually("the sentinels know each other and the replicas", || async {
                let info = text(&redis, "INFO sentinel").await;
                info.contains("slaves=2,sentinels=3")
            })
            .await;
        }
        this
    }

    /// The URLs of the sentinels.
    pub fn urls(&self) -> Vec<String> {
        self.sentinels.iter().map(Sentinel::url).collect()
    }

    /// The server that says that it is the primary, by the account of the sentinel of this number.
    pub async fn primary(&self, sentinel: usize) -> usize {
        let redis = self.sentinels[sentinel].client().await;
        let asked = format!("SENTINEL GET-MASTER-ADDR-BY-NAME {PRIMARY}");
        let (_, port): (String, u16) = redis::from_redis_value(run(&redis, &asked).await).unwrap();
        let position = self.servers.iter().position(|server| server.port == port);
        position.unwrap()
    }

    /// Has the sentinels put another server in the place of the primary, and waits until they have.
    pub async fn fail_over(&self) -> usize {
        let before = self.primary(0).await;
        let redis = self.sentinels[0].client().await;
        run(&redis, &format!("SENTINEL FAILOVER {PRIMARY}")).await;
        self.replaced(before).await
    }

    /// Waits until a sentinel that runs has put another server in the place of this primary.
    pub async fn replaced(&self, before: usize) -> usize {
        eventually("there is another primary", || async {
            self.primary(0).await != before
        })
        .await;
        self.primary(0).await
    }
}

impl Sentinel {
    /// Starts one that watches this server.
    pub async fn start(primary: u16) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = folder(&format!("sentinel-{number}"));
        let config = format!(
            "sentinel monitor {PRIMARY} 127.0.0.1 {primary} 2\n\
             sentinel down-after-milliseconds {PRIMARY} {DOWN_AFTER_MS}\n\
             sentinel failover-timeout {PRIMARY} 5000\n\
             sentinel parallel-syncs {PRIMARY} 2\n"
        );
        for _ in 0..10 {
            std::fs::write(dir.join("sentinel.conf"), &config).unwrap();
            let port = free_port();
            let port_text = port.to_string();
            let args = [
                "sentinel.conf",
                "--sentinel",
                "--port",
                &port_text,
                "--bind",
                "127.0.0.1",
            ];
            if let Some((child, pid)) = launch(port, &dir, &[], &args, &["Sentinel ID is"]).await {
                return Self {
                    child,
                    pid,
                    port,
                    dir,
                };
            }
        }
        panic!("the sentinel did not start: see {}", dir.display());
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub async fn client(&self) -> MultiplexedConnection {
        connect_patiently(&self.url()).await.unwrap()
    }

    /// Has it forget what it knows, and watch this server.
    pub async fn watch(&self, primary: u16) {
        let sentinel = self.client().await;
        for command in [
            format!("REMOVE {PRIMARY}"),
            format!("MONITOR {PRIMARY} 127.0.0.1 {primary} 2"),
            format!("SET {PRIMARY} down-after-milliseconds {DOWN_AFTER_MS} parallel-syncs 2"),
        ] {
            super::run(&sentinel, &format!("SENTINEL {command}")).await;
        }
    }

    /// Sends it a signal: see [`signal`].
    pub fn signal(&self, signal: &str) {
        super::signal(self.pid, signal);
    }

    /// Ends it without warning.
    pub fn kill(&mut self) {
        self.signal("-KILL");
        let _ = self.child.wait();
    }
}

/// A sentinel that was cut off: it names this server for ever, and tells of no failover. Counts how
/// often it was asked.
pub async fn sentinel_cut_off(primary: u16) -> (String, Arc<AtomicU32>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    let asked = Arc::new(AtomicU32::new(0));
    let counter = asked.clone();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let counter = counter.clone();
            tokio::spawn(async move {
                let (read, mut write) = stream.into_split();
                let mut lines = BufReader::new(read).lines();
                while let Ok(Some(count)) = lines.next_line().await {
                    // `*<words>`, and for each word its length and itself.
                    let count: usize = count.trim_start_matches('*').parse().unwrap();
                    let mut words = Vec::new();
                    for _ in 0..count {
                        lines.next_line().await.unwrap();
                        words.push(lines.next_line().await.unwrap().unwrap());
                    }
                    let reply = match words[0].as_str() {
                        "SENTINEL" => {
                            counter.fetch_add(1, Ordering::Relaxed);
                            let port = primary.to_string();
                            let length = port.len();
                            format!("*2\r\n$9\r\n127.0.0.1\r\n${length}\r\n{port}\r\n")
                        }
                        "HELLO" => "-ERR unknown command 'HELLO'\r\n".to_owned(),
                        _ => "+OK\r\n".to_owned(),
                    };
                    if write.write_all(reply.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    (url, asked)
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        let _ = std::process::Command::new("kill")
            .args(["-KILL", &self.pid.to_string()])
            .stderr(std::process::Stdio::null())
            .status();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
