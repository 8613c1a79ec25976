//! A proxy between one worker and Redis, that passes on, delays, swallows, cuts up and cuts off.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, tcp};
use tokio::sync::{broadcast, watch};
use tokio::task::JoinHandle;

/// What happens to the bytes of one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Clear,
    /// Each piece comes later.
    Late(Duration),
    /// A black hole. What it has taken comes out when it ends, unless the connection is cut before.
    Hold,
    /// A few bytes at a time, with pauses.
    Drip,
    /// In packets of a few bytes.
    Split,
    /// No faster than [`BANDWIDTH`].
    Narrow,
}

/// In bytes per second: 100 Mbit/s.
const BANDWIDTH: f64 = 12.5e6;

/// What takes no time worth telling.
const SMALL: usize = 4096;

/// What happens to the connections that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    Close,
    Reset,
    /// One side is told, the other is not: its connection stays open, and silent, until the weather
    /// changes.
    TellOnlyClient,
    TellOnlyServer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weather {
    pub up: Way,
    pub down: Way,
    /// Connections are not accepted.
    pub refuses: bool,
}

impl Weather {
    pub const FINE: Self = Self {
        up: Way::Clear,
        down: Way::Clear,
        refuses: false,
    };
}

pub struct Proxy {
    pub port: u16,
    pub weather: watch::Sender<Weather>,
    pub target: watch::Sender<u16>,
    cuts: broadcast::Sender<Cut>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    pub async fn start(target: u16) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (weather, watch) = watch::channel(Weather::FINE);
        let (target, to) = watch::channel(target);
        let (cuts, _) = broadcast::channel(4);
        let accepting = tokio::spawn(accept(listener, to, watch, cuts.clone()));
        Arc::new(Self {
            port,
            weather,
            target,
            cuts,
            accepting,
        })
    }

    pub fn cut(&self, cut: Cut) {
        // There is no receiver if there are no connections.
        let _ = self.cuts.send(cut);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(
    listener: TcpListener,
    target: watch::Receiver<u16>,
    weather: watch::Receiver<Weather>,
    cuts: broadcast::Sender<Cut>,
) {
    loop {
        let (client, _) = listener.accept().await.unwrap();
        if weather.borrow().refuses {
            continue;
        }
        // Subscribed first: a connection to the target of before is cut.
        let (cuts, weather) = (cuts.subscribe(), weather.clone());
        let target = *target.borrow();
        tokio::spawn(async move {
            let target = SocketAddr::from(([127, 0, 0, 1], target));
            if let Ok(server) = TcpStream::connect(target).await {
                connection(client, server, weather, cuts).await;
            }
        });
    }
}

async fn connection(
    client: TcpStream,
    server: TcpStream,
    mut weather: watch::Receiver<Weather>,
    mut cuts: broadcast::Receiver<Cut>,
) {
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let cut = tokio::select! {
        () = pump(&mut from_client, &mut to_server, weather.clone(), |weather| weather.up) => Cut::Close,
        () = pump(&mut from_server, &mut to_client, weather.clone(), |weather| weather.down) => Cut::Close,
        cut = cuts.recv() => cut.unwrap_or(Cut::Close),
    };
    let client = from_client.reunite(to_client).unwrap();
    let server = from_server.reunite(to_server).unwrap();
    match cut {
        Cut::Close => {}
        Cut::Reset => {
            let _ = (client.set_zero_linger(), server.set_zero_linger());
        }
        Cut::TellOnlyClient | Cut::TellOnlyServer => {
            let (told, other) = match cut {
                Cut::TellOnlyClient => (client, server),
                _ => (server, client),
            };
            drop(told);
            weather.mark_unchanged();
            let _ = weather.changed().await;
            drop(other);
        }
    }
}

/// Passes bytes on until one end has closed.
async fn pump(
    from: &mut tcp::OwnedReadHalf,
    to: &mut tcp::OwnedWriteHalf,
    mut weather: watch::Receiver<Weather>,
    way: impl Fn(&Weather) -> Way,
) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        let mut bytes = &buffer[..length];
        while !bytes.is_empty() {
            let clears = weather.wait_for(|weather| way(weather) != Way::Hold).await;
            let Ok(now) = clears.map(|weather| way(&weather)) else {
                return;
            };
            let some = match now {
                Way::Late(_) | Way::Clear | Way::Hold | Way::Narrow => bytes.len(),
                Way::Drip | Way::Split => bytes.len().min(1 + length % 13),
            };
            match now {
                Way::Late(time) => tokio::time::sleep(time).await,
                Way::Narrow if some > SMALL => {
                    tokio::time::sleep(Duration::from_secs_f64(some as f64 / BANDWIDTH)).await;
                }
                Way::Drip => tokio::time::sleep(Duration::from_millis(1)).await,
                _ => {}
            }
            let (first, rest) = bytes.split_at(some);
            if to.write_all(first).await.is_err() {
                return;
            }
            bytes = rest;
        }
    }
}
