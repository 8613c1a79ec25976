//! [`Confirming`]: locks that Redis gave, until enough replicas have them.
//!
//! `WAIT` counts the replicas that have what the *asking connection* wrote last, and blocks that
//! connection. So it is asked on a connection of its own, behind a write there, which comes after
//! the replies to the acquires: a replica that has that write has the locks before it. Those that
//! are given meanwhile are asked for together, next.

use std::pin::Pin;
use std::sync::atomic::Ordering;

use redis::Value;
use redis::aio::MultiplexedConnection;
use tokio::time::timeout;

use super::RedisStore;
use super::names::{lock_name, readers_name};
use super::pending::Pending;
use crate::clock::Time;
use crate::error::{Error, ErrorKind};
use crate::mode::Mode;
use crate::store::{Command, Events, Failure, Reply};

/// A lock that this process has in the primary.
struct Unconfirmed {
    sent_at: Time,
    pending: Pending,
    reply: Reply,
}

/// What a server must have, to have a lock for a token.
struct Sought {
    /// The lock, or the set of those that share it.
    name: String,
    token: String,
    mode: Mode,
}

/// What came of one asking: for each lock whether the server of that connection has it, and how
/// many replicas do.
struct Confirmed {
    has: Vec<bool>,
    replicas: usize,
}

type Asking<'a> =
    Pin<Box<dyn Future<Output = Result<(MultiplexedConnection, Confirmed), Error>> + Send + 'a>>;

/// When this is dropped, the acquires go back into the queue: to carry one out twice does no harm.
pub(super) struct Confirming<'a> {
    store: &'a RedisStore,
    connection: Option<MultiplexedConnection>,
    next: Vec<Unconfirmed>,
    asked: Vec<Unconfirmed>,
    asking: Option<Asking<'a>>,
}

impl<'a> Confirming<'a> {
    pub(super) fn new(store: &'a RedisStore) -> Self {
        Self {
            store,
            connection: None,
            next: Vec::new(),
            asked: Vec::new(),
            asking: None,
        }
    }

    /// Keeps the outcome of an acquire back.
    pub(super) fn add(&mut self, sent_at: Time, pending: Pending, reply: Reply) {
        self.store.in_flight.fetch_add(1, Ordering::AcqRel);
        self.next.push(Unconfirmed {
            sent_at,
            pending,
            reply,
        });
    }

    /// Asks, if there is something to ask. Returns whether an answer is to come.
    pub(super) fn ask(&mut self) -> bool {
        if self.asking.is_none() && !self.next.is_empty() {
            self.asked = std::mem::take(&mut self.next);
            let locks = self
                .asked
                .iter()
                .map(|asked| self.store.lock_of(&asked.pending));
            let asking = self.store.confirm(self.connection.take(), locks.collect());
            self.asking = Some(Box::pin(asking));
        }
        self.asking.is_some()
    }

    /// Waits for the answer, and ends the acquires with it.
    pub(super) async fn answered(&mut self, events: &impl Events) {
        let Some(asking) = &mut self.asking else {
            return std::future::pending().await;
        };
        let answer = asking.await;
        self.asking = None;
        let needed = self.store.settings.min_replicas;
        let (has, failed) = match answer {
            Ok((connection, Confirmed { has, replicas })) => {
                self.connection = Some(connection);
                let found = format!("{replicas} of {needed} replicas have the lock");
                let failed = Error::new(ErrorKind::Unavailable, found);
                (has, (replicas < needed as usize).then_some(failed))
            }
            Err(error) => (Vec::new(), Some(error)),
        };
        let gone = || {
            Error::new(
                ErrorKind::Unavailable,
                "the lock is not in the primary any more",
            )
        };
        for (number, asked) in self.asked.drain(..).enumerate() {
            self.store.in_flight.fetch_sub(1, Ordering::AcqRel);
            let error = match has.get(number) {
                Some(true) | None => failed.clone(),
                Some(false) => Some(gone()),
            };
            // The manager releases what is not known to be lost.
            let unknown = true;
            let result = match error {
                Some(error) => Err(Failure { error, unknown }),
                None => Ok(asked.reply),
            };
            asked.pending.finish(asked.sent_at, result, events);
        }
    }
}

impl Drop for Confirming<'_> {
    fn drop(&mut self) {
        let unconfirmed = self.asked.drain(..).chain(self.next.drain(..));
        let acquires: Vec<Pending> = unconfirmed.map(|acquired| acquired.pending).collect();
        let count = acquires.len();
        self.store.in_flight.fetch_sub(count, Ordering::AcqRel);
        self.store.put_back(acquires);
    }
}

impl RedisStore {
    fn lock_of(&self, pending: &Pending) -> Sought {
        let names = &self.settings.names;
        let name = lock_name(&names.prefix, &pending.key);
        let (token, mode) = match pending.command {
            Command::Acquire { token, mode, .. } => (names.token(token).to_string(), mode),
            _ => (String::new(), Mode::Exclusive),
        };
        let name = match mode {
            Mode::Exclusive => name,
            Mode::Shared => readers_name(&name),
        };
        Sought { name, token, mode }
    }

    /// Asks how many replicas have these locks. The server of the connection may be another one
    /// than that which gave them: it must have them itself.
    async fn confirm(
        &self,
        connection: Option<MultiplexedConnection>,
        locks: Vec<Sought>,
    ) -> Result<(MultiplexedConnection, Confirmed), Error> {
        let limit = self.settings.command_timeout;
        let asking = async {
            let mut connection = match (connection, self.address.current()) {
                (Some(connection), _) => connection,
                (None, Some(server)) => {
                    let connecting = self.address.connect_for_long(&server, &self.settings);
                    connecting.await?
                }
                (None, None) => return Err(Error::of(ErrorKind::Unavailable)),
            };
            let mut pipeline = redis::pipe();
            for Sought { name, token, mode } in &locks {
                match mode {
                    // One more byte: the mark of those who wait.
                    Mode::Exclusive => {
                        let read = pipeline.cmd("GETRANGE").arg(name).arg(0);
                        read.arg(token.len());
                    }
                    Mode::Shared => {
                        pipeline.cmd("ZSCORE").arg(name).arg(token);
                    }
                }
            }
            let barrier = self.settings.names.barrier(&locks[0].name);
            let barrier = pipeline.cmd("SET").arg(barrier);
            barrier.arg(1).arg("PX").arg(1000).ignore();
            let wait = pipeline.cmd("WAIT").arg(self.settings.min_replicas);
            wait.arg(limit.as_millis() as u64);
            let replies: Vec<Value> = pipeline
                .query_async(&mut connection)
                .await
                .map_err(|error| self.address.failed(error, &self.settings))?;
            let confirmed = read_confirmed(&locks, &replies);
            let confirmed = confirmed
                .ok_or_else(|| self.address.unavailable("a reply has an unexpected form"))?;
            Ok((connection, confirmed))
        };
        let late = |_| {
            Err(self
                .address
                .unavailable("replicas were not counted in time"))
        };
        timeout(2 * limit, asking).await.unwrap_or_else(late)
    }
}

fn read_confirmed(locks: &[Sought], replies: &[Value]) -> Option<Confirmed> {
    let (count, values) = replies.split_last()?;
    let Value::Int(replicas) = count else {
        return None;
    };
    let has = |(sought, value): (&Sought, &Value)| match (sought.mode, value) {
        (Mode::Exclusive, Value::BulkString(value)) => {
            value.strip_suffix(b"!").unwrap_or(value) == sought.token.as_bytes()
        }
        (Mode::Exclusive, _) => false,
        (Mode::Shared, value) => *value != Value::Nil,
    };
    (values.len() == locks.len()).then(|| Confirmed {
        has: locks.iter().zip(values).map(has).collect(),
        replicas: usize::try_from(*replicas).unwrap_or(0),
    })
}
