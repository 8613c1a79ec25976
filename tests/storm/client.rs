//! Deliveries of events, over sockets of their own.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::node::{ID, PADDING};
use crate::support::random::Random;

pub struct Answer {
    pub status: u16,
    pub is_replay: bool,
    /// A replay whose body was not kept.
    pub lacks_body: bool,
    pub body: String,
}

pub enum Outcome {
    Answered(Answer),
    /// The connection was refused, or closed before there was a whole response.
    NoAnswer,
    /// The client closed the connection before there was a response.
    Disconnected,
}

/// When a client leaves.
#[derive(Clone, Copy)]
pub enum Leaves {
    Never,
    WithinHead,
    WithinBody,
    After(Duration),
}

impl Leaves {
    pub fn at_random(random: &mut Random) -> Self {
        match random.below(100) {
            0..3 => Self::WithinHead,
            3..6 => Self::WithinBody,
            6..30 => Self::After(random.millis(0, 250)),
            _ => Self::Never,
        }
    }
}

pub async fn deliver(port: u16, path: &str, event: u64, leaves: Leaves) -> Outcome {
    exchange(port, path, event, leaves)
        .await
        .unwrap_or(Outcome::NoAnswer)
}

async fn exchange(port: u16, path: &str, event: u64, leaves: Leaves) -> std::io::Result<Outcome> {
    let mut connection = TcpStream::connect(("127.0.0.1", port)).await?;
    let body = format!(r#"{{"event":{event}}}"#);
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{ID}: {event}\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let request = format!("{head}{body}");
    let (sent, patience) = match leaves {
        Leaves::Never => (request.len(), Duration::MAX),
        Leaves::WithinHead => (head.len() / 2, Duration::ZERO),
        Leaves::WithinBody => (head.len() + body.len() / 2, Duration::ZERO),
        Leaves::After(patience) => (request.len(), patience),
    };
    connection.write_all(&request.as_bytes()[..sent]).await?;
    let mut answer = Vec::new();
    Ok(
        match timeout(patience, connection.read_to_end(&mut answer)).await {
            Ok(read) => {
                read?;
                parse(&answer).map_or(Outcome::NoAnswer, Outcome::Answered)
            }
            Err(_) => Outcome::Disconnected,
        },
    )
}

/// `None` if it is not whole.
fn parse(answer: &[u8]) -> Option<Answer> {
    let answer = std::str::from_utf8(answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let header = |name: &str| {
        let fields = head.split("\r\n").filter_map(|line| line.split_once(": "));
        let mut values = fields.filter(|(other, _)| *other == name);
        values.next().map(|(_, value)| value)
    };
    let length: usize = header("content-length")?.parse().ok()?;
    (body.len() == length).then(|| Answer {
        status,
        is_replay: header("idempotent-replayed") == Some("true"),
        lacks_body: header("idempotent-body") == Some("not-kept"),
        // Some are long.
        body: body.trim_end_matches(PADDING).to_owned(),
    })
}
