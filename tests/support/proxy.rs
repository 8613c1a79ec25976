//! A TCP proxy in front of a server, that can stop to forward, or close everything.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, tcp};
use tokio::sync::watch;

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
    /// Requests get through, replies are kept back.
    HoldAnswers,
    /// Replies get through, requests are kept back.
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
