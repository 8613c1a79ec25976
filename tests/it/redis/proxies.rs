//! Proxies that do harm of one kind each.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::Gate;

/// A proxy that closes its client's connection when it sees a command. If `late` says so, what it
/// had read reaches the server later.
pub async fn closing(
    server: u16,
    command: &'static [u8],
    times: usize,
    late: Option<Duration>,
) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let closed = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&closed);
    tokio::spawn(async move {
        loop {
            let (client, _) = listener.accept().await.unwrap();
            let counter = Arc::clone(&counter);
            tokio::spawn(async move {
                let (mut client_read, mut client_write) = client.into_split();
                let server = TcpStream::connect(("127.0.0.1", server)).await.unwrap();
                let (mut server_read, mut server_write) = server.into_split();
                let answers = tokio::spawn(async move {
                    let _ = tokio::io::copy(&mut server_read, &mut client_write).await;
                });
                let mut buffer = vec![0; 1 << 16];
                while let Ok(length @ 1..) = client_read.read(&mut buffer).await {
                    let chunk = &buffer[..length];
                    let is_it = chunk.windows(command.len()).any(|window| window == command);
                    if is_it && counter.fetch_add(1, Ordering::SeqCst) < times {
                        answers.abort();
                        drop(client_read);
                        let Some(late) = late else {
                            return;
                        };
                        tokio::time::sleep(late).await;
                        server_write.write_all(chunk).await.unwrap();
                        // Long enough for the server to read it before it sees the connection end.
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        return;
                    }
                    server_write.write_all(chunk).await.unwrap();
                }
            });
        }
    });
    (port, closed)
}

/// A proxy that hands a command on the first time, keeps the replies from its client, and closes
/// the connection when the gate opens.
pub async fn silencing(server: u16, command: &'static [u8], gate: Gate) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let was_seen = Arc::new(AtomicBool::new(false));
        loop {
            let (client, _) = listener.accept().await.unwrap();
            let server = TcpStream::connect(("127.0.0.1", server)).await.unwrap();
            let (mut client_read, mut client_write) = client.into_split();
            let (mut server_read, mut server_write) = server.into_split();
            let is_silent = Arc::new(AtomicBool::new(false));
            let replies = tokio::spawn({
                let is_silent = Arc::clone(&is_silent);
                async move {
                    let mut buffer = vec![0; 1 << 16];
                    while let Ok(length @ 1..) = server_read.read(&mut buffer).await {
                        if !is_silent.load(Ordering::SeqCst) {
                            client_write.write_all(&buffer[..length]).await.unwrap();
                        }
                    }
                }
            });
            let (was_seen, gate) = (Arc::clone(&was_seen), gate.clone());
            tokio::spawn(async move {
                let mut buffer = vec![0; 1 << 16];
                while let Ok(length @ 1..) = client_read.read(&mut buffer).await {
                    let chunk = &buffer[..length];
                    let is_it = chunk.windows(command.len()).any(|window| window == command);
                    let is_first = is_it && !was_seen.swap(true, Ordering::SeqCst);
                    is_silent.fetch_or(is_first, Ordering::SeqCst);
                    server_write.write_all(chunk).await.unwrap();
                    if is_first {
                        gate.pass().await;
                        replies.abort();
                        return;
                    }
                }
            });
        }
    });
    url
}

/// A proxy that puts another reply in the place of the fence that comes with a lock.
pub async fn garbling(server: u16, reply: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (client, _) = listener.accept().await.unwrap();
            let server = TcpStream::connect(("127.0.0.1", server)).await.unwrap();
            let (mut client_read, mut client_write) = client.into_split();
            let (mut server_read, mut server_write) = server.into_split();
            tokio::spawn(async move { tokio::io::copy(&mut client_read, &mut server_write).await });
            tokio::spawn(async move {
                let mut buffer = vec![0; 1 << 16];
                while let Ok(length @ 1..) = server_read.read(&mut buffer).await {
                    let text = str::from_utf8(&buffer[..length]).unwrap();
                    // It stands behind the reply to the take of a free lock, or, at a second
                    // attempt, in that to the script.
                    let is_taken = |replies: &str| {
                        // The counter of fences may have been raised first.
                        let replies = match replies.split_once("\r\n") {
                            Some((seed, rest)) if seed.len() > 12 => rest,
                            _ => replies,
                        };
                        let with_get = replies == "_\r\n" || replies == "$-1\r\n";
                        with_get || replies.starts_with("+OK\r\n$")
                    };
                    let is_drawn = text.starts_with("*2\r\n:") && text.len() > 20;
                    let taken = text.rsplit_once(':').and_then(|(taken, fence)| {
                        let is_fence = fence.len() > 12 && is_taken(taken);
                        is_fence.then(|| format!("{taken}{reply}"))
                    });
                    let garbled = match is_drawn {
                        true => reply.to_owned(),
                        false => taken.unwrap_or_else(|| text.to_owned()),
                    };
                    client_write.write_all(garbled.as_bytes()).await.unwrap();
                }
            });
        }
    });
    url
}

/// A proxy that delays each direction without holding up what comes behind.
pub async fn slow(server: u16, delay: Duration) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (client, _) = listener.accept().await.unwrap();
            let server = TcpStream::connect(("127.0.0.1", server)).await.unwrap();
            let (client_read, client_write) = client.into_split();
            let (server_read, server_write) = server.into_split();
            for (mut from, mut to) in [(client_read, server_write), (server_read, client_write)] {
                let (sender, mut chunks) = tokio::sync::mpsc::unbounded_channel();
                tokio::spawn(async move {
                    let mut buffer = vec![0; 1 << 16];
                    while let Ok(length @ 1..) = from.read(&mut buffer).await {
                        let due = tokio::time::Instant::now() + delay;
                        let _ = sender.send((due, buffer[..length].to_vec()));
                    }
                });
                tokio::spawn(async move {
                    while let Some((due, chunk)) = chunks.recv().await {
                        tokio::time::sleep_until(due).await;
                        let _ = to.write_all(&chunk).await;
                    }
                });
            }
        }
    });
    url
}

/// A proxy that answers a command, once, by a push of this kind, as if the inbox had lost its
/// subscription, and passes nothing more on over that connection. Counts the connections.
pub async fn unsubscribing(
    server: u16,
    command: &'static [u8],
    kind: &'static str,
) -> (String, Arc<AtomicBool>, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    let (is_armed, connections) = (Arc::new(AtomicBool::new(false)), Arc::default());
    let (armed, counter) = (Arc::clone(&is_armed), Arc::clone(&connections));
    tokio::spawn(async move {
        loop {
            let (client, _) = listener.accept().await.unwrap();
            AtomicUsize::fetch_add(&counter, 1, Ordering::SeqCst);
            let server = TcpStream::connect(("127.0.0.1", server)).await.unwrap();
            let (mut client_read, mut client_write) = client.into_split();
            let (mut server_read, mut server_write) = server.into_split();
            let armed = Arc::clone(&armed);
            tokio::spawn(async move {
                let (mut up, mut down) = (vec![0; 1 << 16], vec![0; 1 << 16]);
                loop {
                    tokio::select! {
                        Ok(length @ 1..) = client_read.read(&mut up) => {
                            let chunk = &up[..length];
                            let is_it = chunk.windows(command.len()).any(|some| some == command);
                            if is_it && armed.swap(false, Ordering::SeqCst) {
                                let push = format!(
                                    ">3\r\n${}\r\n{kind}\r\n$5\r\ninbox\r\n:0\r\n",
                                    kind.len()
                                );
                                client_write.write_all(push.as_bytes()).await.unwrap();
                                // Until the client closes it.
                                while let Ok(1..) = client_read.read(&mut up).await {}
                                return;
                            }
                            server_write.write_all(chunk).await.unwrap();
                        }
                        Ok(length @ 1..) = server_read.read(&mut down) => {
                            client_write.write_all(&down[..length]).await.unwrap();
                        }
                        else => return,
                    }
                }
            });
        }
    });
    (url, is_armed, connections)
}
