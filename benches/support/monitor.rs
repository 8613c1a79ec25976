//! The number of commands that clients send, as Redis itself sees it.

use redis::aio::MultiplexedConnection;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::task::JoinHandle;

use crate::test_support::RedisServer;

const END: &str = "the-end-of-the-count";

/// Counts commands from its start to its end, by `MONITOR`. Unlike the counters of `INFO`, that
/// tells the commands of clients from those of scripts, which are part of the script's call.
pub struct Monitor {
    counting: JoinHandle<u64>,
    redis: MultiplexedConnection,
    _open: OwnedWriteHalf,
}

impl Monitor {
    /// Leaves out commands about keys that begin with `count`: they are the workload's own.
    pub async fn start(server: &RedisServer) -> Self {
        let redis = server.client().await;
        let stream = TcpStream::connect(("127.0.0.1", server.port))
            .await
            .unwrap();
        let (read, mut write) = stream.into_split();
        write.write_all(b"MONITOR\r\n").await.unwrap();
        let mut lines = BufReader::new(read).lines();
        let started = lines.next_line().await.unwrap();
        assert_eq!(started.as_deref(), Some("+OK"));
        Self {
            counting: tokio::spawn(count(lines)),
            redis,
            _open: write,
        }
    }

    pub async fn stop(mut self) -> u64 {
        let mut end = redis::cmd("ECHO");
        let end = end.arg(END);
        let _: String = end.query_async(&mut self.redis).await.unwrap();
        self.counting.await.unwrap()
    }
}

async fn count(mut lines: Lines<BufReader<OwnedReadHalf>>) -> u64 {
    let mut commands = 0;
    // +1700000000.123456 [0 127.0.0.1:40000] "SET" "lock:a" …, and [0 lua] for what a script calls.
    while let Some(line) = lines.next_line().await.unwrap() {
        if line.contains(END) {
            return commands;
        }
        let mut words = line.split(' ').skip(2);
        let from = words.next().unwrap_or("");
        let command = words.next().unwrap_or("").to_uppercase();
        let key = words.next().unwrap_or("");
        let is_own =
            matches!(command.as_str(), "\"INFO\"" | "\"LLEN\"") || key.starts_with("\"count");
        if from != "lua]" && !is_own {
            commands += 1;
        }
    }
    panic!("Redis closed the connection of MONITOR");
}
