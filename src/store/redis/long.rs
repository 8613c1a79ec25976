//! [`LongRecords`]: the connection for records that are too long for the connection of the locks.
//!
//! The holder first writes a long record in [`Parts`], one after the other, over a connection that
//! the process has for long records alone. A short [`Manifest`] then takes the lock's place, as a
//! short record would. A duplicate that finds the manifest reads the parts over that same
//! connection. So no lock waits behind megabytes, and Redis is never busy for long with one
//! command.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use redis::aio::MultiplexedConnection;
use redis::{Pipeline, Value};
use sha2::{Digest, Sha256};
use tokio::sync::{Mutex, Semaphore};
use tokio::time::{sleep, timeout};

use super::RedisStore;
use super::driver::is_refusal;
use super::endpoint::Endpoint;
use super::manifest::{Damage, Manifest, Parts};
use super::names::{lock_name, part_name};
use super::scripts;
use crate::error::{Error, ErrorKind};
use crate::key::LockKey;
use crate::store::{LONG_RECORD, Record};

/// Bytes of a part, except the last one.
const PART: usize = 1 << 20;
/// Bytes of parts in flight at once. Readers and writers wait in line for their share, part by
/// part. So all of them make progress, and few bytes are ahead of a part while its timeout runs.
const WINDOW: usize = 2 * PART;
/// How often in a row a command is tried. The first attempt may find a connection that was closed
/// while it was idle, so the second follows at once; the third follows after a pause.
const WRITES: u32 = 3;
const READS: u32 = 2;
const PAUSE: Duration = Duration::from_millis(100);
/// How many times the command timeout it may take to write a record, or to read one.
const TIMEOUTS: u32 = 10;
/// How long Redis keeps the parts of a writer that died, beyond the time that writing may take.
const UNCLAIMED: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct LongRecords {
    /// There is one more reason not to use the locks' connection: Redis closes the connection of a
    /// subscriber for which it has to buffer too much (`client-output-buffer-limit pubsub`).
    connection: Mutex<Kept>,
    window: Arc<Semaphore>,
}

#[derive(Debug, Default)]
struct Kept {
    connection: Option<MultiplexedConnection>,
    /// Where it leads.
    server: Option<Endpoint>,
    /// Tells this connection from those before it.
    number: u64,
}

/// Why commands have failed.
struct Failed {
    error: Error,
    /// Whether another attempt, over a new connection, may succeed.
    again: bool,
}

impl Default for LongRecords {
    fn default() -> Self {
        Self {
            connection: Mutex::default(),
            window: Arc::new(Semaphore::new(WINDOW)),
        }
    }
}

/// Returns how long it may take to write a long record, or to read one.
fn patience(command_timeout: Duration) -> Duration {
    command_timeout * TIMEOUTS
}

/// Returns how long a record keeps its lock, until it stands in its place, or what stands for it
/// does: after an attempt in vain, its parts are discarded first.
pub(super) fn time_to_put_aside(command_timeout: Duration) -> Duration {
    patience(command_timeout) + 2 * command_timeout
}

impl RedisStore {
    /// Writes the parts of a long record. Returns the manifest that is to take the lock's place,
    /// within `hold` and a time to live from now.
    ///
    /// Gives up when the lease is `lost`.
    pub(crate) async fn put_aside(
        &self,
        key: &LockKey,
        record: &Record,
        hold: Duration,
        lost: impl Future,
    ) -> Result<Manifest, Error> {
        let Some(parts) = Parts::of(record.content.len(), PART) else {
            return Err(Error::new(
                ErrorKind::Unavailable,
                "the record is too long for Redis",
            ));
        };
        // The parts outlive the manifest, however late that is put in the lock's place. And a
        // duplicate that has found the manifest at its last moment can read them to the end.
        let margin = hold + self.settings.ttl + self.patience() * 2;
        let written = tokio::select! {
            _ = lost => Err(Error::of(ErrorKind::Lost)),
            written = self.in_time(self.write(key, parts, record, margin)) => written,
        };
        if written.is_err() {
            self.discard(key, parts).await;
        }
        written
    }

    async fn write(
        &self,
        key: &LockKey,
        parts: Parts,
        record: &Record,
        margin: Duration,
    ) -> Result<Manifest, Error> {
        let expiry = self.patience() + UNCLAIMED;
        let mut hash = Sha256::new();
        for (name, range) in self.names(key, parts).zip(parts.ranges()) {
            let part = &record.content[range];
            hash.update(part);
            let mut set = redis::pipe();
            // NX: a command that Redis carries out late, over a connection that was given up, must
            // not shorten the expiry again. If an earlier attempt got through, the same content is
            // there.
            set.cmd("SET").arg(name).arg(part).arg("NX");
            set.arg("PX").arg(expiry.as_millis() as u64);
            self.execute(set, part.len(), WRITES).await?;
        }
        let mut expire = redis::pipe();
        for name in self.names(key, parts) {
            let expire = expire.cmd("PEXPIRE").arg(name);
            expire.arg((record.retention + margin).as_millis() as u64);
        }
        let kept = self.execute(expire, 0, WRITES).await?;
        match kept.iter().all(|kept| *kept == Value::Int(1)) {
            true => Ok(Manifest {
                parts,
                checksum: hash.finalize().into(),
            }),
            false => Err(self
                .address
                .unavailable("it did not keep a part of a long record")),
        }
    }

    /// Deletes parts that no manifest leads to. What cannot be deleted expires.
    pub(crate) async fn discard(&self, key: &LockKey, parts: Parts) {
        let mut unlink = redis::pipe();
        unlink.cmd("UNLINK");
        for name in self.names(key, parts) {
            unlink.arg(name);
        }
        let unlinked = self.execute(unlink, 0, READS);
        let _ = timeout(self.settings.command_timeout, unlinked).await;
    }

    /// Deletes the record that stands in the lock's place, and its parts. Returns whether there was
    /// one.
    pub(crate) async fn forget(&self, key: &LockKey) -> Result<bool, Error> {
        let mut forget = redis::pipe();
        forget.cmd("EVAL").arg(scripts::FORGET.source).arg(1);
        forget.arg(lock_name(&self.settings.names.prefix, key));
        let mut replies = self.execute(forget, 0, READS).await?;
        let Some(Value::BulkString(found)) = replies.pop() else {
            return Err(self.address.unavailable("a reply has an unexpected form"));
        };
        if let Some(Ok(manifest)) = Manifest::decode(&found) {
            self.discard(key, manifest.parts()).await;
        }
        Ok(!found.is_empty())
    }

    /// Returns the record that stands in the lock's place, or that the manifest there leads to.
    pub(crate) async fn fetch(
        &self,
        key: &LockKey,
        found: Bytes,
    ) -> Result<Result<Bytes, Damage>, Error> {
        match Manifest::decode(&found) {
            None => Ok(Ok(found)),
            Some(Err(damage)) => Ok(Err(damage)),
            // Boxed: few records are long, and the future of every request would be by kilobytes
            // larger.
            Some(Ok(manifest)) => Box::pin(self.in_time(self.read(key, &found, manifest))).await,
        }
    }

    async fn read(
        &self,
        key: &LockKey,
        found: &[u8],
        Manifest { parts, checksum }: Manifest,
    ) -> Result<Result<Bytes, Damage>, Error> {
        let mut record = BytesMut::with_capacity(parts.length);
        let mut hash = Sha256::new();
        for (name, range) in self.names(key, parts).zip(parts.ranges()) {
            let part = self.get(&name, range.len()).await?;
            if part.len() != range.len() {
                let lock_name = lock_name(&self.settings.names.prefix, key);
                return match self.get(&lock_name, LONG_RECORD).await? == found {
                    true => Ok(Err(Damage::Missing)),
                    // The record went away while it was read. There may be a new run.
                    false => Err(Error::of(ErrorKind::Unavailable)),
                };
            }
            hash.update(&part);
            record.extend_from_slice(&part);
        }
        Ok(match hash.finalize()[..] == checksum {
            true => Ok(record.freeze()),
            false => Err(Damage::Checksum),
        })
    }

    /// Reads a string, up to one byte more than the `length` that it should have. The result is
    /// empty if there is no string.
    async fn get(&self, name: &str, length: usize) -> Result<Vec<u8>, Error> {
        let mut get = redis::pipe();
        get.cmd("GETRANGE").arg(name).arg(0).arg(length);
        match self.execute(get, length, READS).await?.pop() {
            Some(Value::BulkString(value)) => Ok(value),
            _ => Err(self.address.unavailable("a reply has an unexpected form")),
        }
    }

    fn names(&self, key: &LockKey, parts: Parts) -> impl Iterator<Item = String> {
        (0..parts.count())
            .map(move |number| part_name(&self.settings.names.prefix, key, &parts.id, number))
    }

    pub(crate) fn time_to_put_aside(&self) -> Duration {
        time_to_put_aside(self.settings.command_timeout)
    }

    fn patience(&self) -> Duration {
        patience(self.settings.command_timeout)
    }

    async fn in_time<T>(&self, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let limit = self.patience();
        timeout(limit, work).await.unwrap_or_else(|_| {
            let why = format!("a long record took more than {limit:?}");
            Err(self.address.unavailable(&why))
        })
    }

    /// Sends commands that carry, or read, so many `bytes`. If Redis does not reply, they are sent
    /// again over a new connection.
    pub(super) async fn execute(
        &self,
        commands: Pipeline,
        bytes: usize,
        attempts: u32,
    ) -> Result<Vec<Value>, Error> {
        let commands = Arc::new(commands);
        let mut left = attempts;
        loop {
            left -= 1;
            match self.try_to_execute(&commands, bytes).await {
                Ok(replies) => return Ok(replies),
                Err(failed) if left == 0 || !failed.again => return Err(failed.error),
                Err(_) if left + 1 == attempts => {}
                Err(_) => sleep(PAUSE).await,
            }
        }
    }

    async fn try_to_execute(
        &self,
        commands: &Arc<Pipeline>,
        bytes: usize,
    ) -> Result<Vec<Value>, Failed> {
        let window = Arc::clone(&self.long_records.window);
        let turn = window.acquire_many_owned(bytes.min(WINDOW) as u32).await;
        if let Some(error) = self.breaker.refuses() {
            return Err(Failed {
                error,
                again: false,
            });
        }
        let limit = self.settings.command_timeout;
        let failed = |why: &str, again| {
            let error = self.address.unavailable(why);
            Failed { error, again }
        };
        let no_reply = || failed(&format!("no reply within {limit:?}"), true);
        let connecting = timeout(limit, self.long_connection()).await;
        let (number, mut connection) = connecting.map_err(|_| no_reply())??;
        let commands = Arc::clone(commands);
        // In a task of its own: the bytes in flight keep their share of the window until the reply,
        // even if the request has been given up.
        let executing = tokio::spawn(async move {
            let count = commands.len();
            let replies = connection.send_packed_commands(&commands, 0, count);
            let replies = timeout(limit, replies).await;
            drop(turn);
            replies
        });
        let replies = match executing.await {
            Ok(Ok(replies)) => replies
                .and_then(|replies| {
                    let replies = replies.into_iter().map(Value::extract_error);
                    replies.collect::<Result<_, _>>()
                })
                .map_err(|error| Failed {
                    again: !is_refusal(&error),
                    error: self.address.failed(error, &self.settings),
                }),
            Ok(Err(_)) => Err(no_reply()),
            Err(_) => Err(failed("the runtime ends", false)),
        };
        if replies.is_err() {
            let mut kept = self.long_records.connection.lock().await;
            if kept.number == number {
                kept.connection = None;
            }
        }
        replies
    }

    /// Closes the connection for long records, unless it is being made at this moment. What is in
    /// flight there comes to its end.
    pub(crate) fn disconnect(&self) {
        if let Ok(mut kept) = self.long_records.connection.try_lock() {
            kept.connection = None;
        }
    }

    /// Returns the connection for long records, which is made when it is first needed.
    async fn long_connection(&self) -> Result<(u64, MultiplexedConnection), Failed> {
        let mut kept = self.long_records.connection.lock().await;
        let Some(server) = self.address.current() else {
            return Err(Failed {
                error: self.address.unavailable("there is no connection yet"),
                again: true,
            });
        };
        // Another server may have become the primary.
        let is_there = |kept: &Endpoint| kept.addr() == server.addr();
        if kept.connection.is_none() || !kept.server.as_ref().is_some_and(is_there) {
            let connecting = self.address.connect_for_long(&server, &self.settings);
            let again = true;
            let failed = |error| Failed { error, again };
            let connection = connecting.await.map_err(failed)?;
            kept.server = Some(server);
            kept.number += 1;
            kept.connection = Some(connection);
        }
        let connection = kept.connection.clone().expect("it was made");
        Ok((kept.number, connection))
    }
}
