//! Questions about locks. They go over the connection for long records, so that no request for a
//! lock waits behind them.

use std::collections::HashMap;
use std::time::Duration;

use redis::{FromRedisValue, Pipeline, from_redis_value};

use super::commands::{MARK, is_shared, token_of};
use super::names::{key_of, lock_name, queue_name, read_client, readers_name};
use super::{RedisStore, scripts};
use crate::error::Error;
use crate::inspect::{LockCursor, LockPage, LockReport, Occupant, Process};
use crate::key::{Kind, LockKey};

/// How often a question is asked, if no reply comes.
const ATTEMPTS: u32 = 2;
/// What `inspect.lua` returns.
type Found = (Vec<u8>, bool, i64, Vec<Vec<u8>>, Vec<Vec<u8>>);

/// How many names Redis looks at for one page.
const PAGE: u32 = 100;

impl RedisStore {
    /// See [`Store::instance`](crate::store::Store::instance).
    #[cfg(feature = "inspector")]
    pub(crate) fn instance(&self) -> &str {
        &self.settings.instance
    }

    /// See [`Store::inspect`](crate::store::Store::inspect).
    pub(crate) async fn inspect(&self, key: &LockKey) -> Result<LockReport, Error> {
        let mut reports = self.inspect_all(std::slice::from_ref(key)).await?;
        let unexpected = || self.address.unavailable("a reply has an unexpected form");
        reports.pop().ok_or_else(unexpected)
    }

    /// See [`Store::list`](crate::store::Store::list).
    pub(crate) async fn list(&self, cursor: LockCursor) -> Result<LockPage, Error> {
        let (keys, next) = self.scan(cursor).await?;
        let locks = match keys.is_empty() {
            true => Vec::new(),
            false => self.inspect_all(&keys).await?,
        };
        Ok(LockPage { locks, next })
    }

    /// Returns what Redis knows of these locks, in the same order.
    async fn inspect_all(&self, keys: &[LockKey]) -> Result<Vec<LockReport>, Error> {
        let mut pipeline = redis::pipe();
        for key in keys {
            let lock = lock_name(&self.settings.names.prefix, key);
            let inspect = pipeline.cmd("EVAL").arg(scripts::INSPECT.source);
            let keys = inspect.arg(3).arg(&lock).arg(queue_name(&lock));
            keys.arg(readers_name(&lock));
        }
        let replies: Vec<Found> = self.ask(pipeline).await?;
        let mut reports: Vec<LockReport> = keys
            .iter()
            .zip(replies)
            .map(|(key, (value, exists, remaining, queue, readers))| {
                let mut report = LockReport::free(key.clone());
                let process = |token: &[u8]| Some(Process::of(token_of(token)?.process));
                let waiting = queue.iter().map(|token| read_waiting(token));
                report.waiting = waiting.filter_map(process).collect();
                if exists {
                    report.occupant = match token_of(&value) {
                        Some(token) => {
                            report.is_contended = token.is_marked;
                            Occupant::Process(Process::of(token.process).holding())
                        }
                        // Without readers, another client has written it.
                        None if is_shared(key, &value) && !readers.is_empty() => {
                            report.is_contended = value.ends_with(&[MARK]);
                            let readers = readers.iter().filter_map(|token| process(token));
                            Occupant::Shared(readers.map(Process::holding).collect())
                        }
                        None if key.kind() == Kind::Record => Occupant::Record,
                        None => Occupant::OtherClient,
                    };
                    report.remaining = u64::try_from(remaining).ok().map(Duration::from_millis);
                }
                report
            })
            .collect();
        self.identify(&mut reports).await?;
        Ok(reports)
    }

    /// Completes what is known of the processes in the reports.
    async fn identify(&self, reports: &mut [LockReport]) -> Result<(), Error> {
        let mut processes: HashMap<String, Process> = HashMap::new();
        for process in reports.iter_mut().flat_map(LockReport::processes) {
            processes.insert(process.id.clone(), process.clone());
        }
        if processes.is_empty() {
            return Ok(());
        }
        let names = &self.settings.names;
        let mut pipeline = redis::pipe();
        let listeners = pipeline.cmd("PUBSUB").arg("NUMSUB");
        for id in processes.keys() {
            listeners.arg(format!("{}{id}", names.inboxes));
        }
        let listeners: Vec<HashMap<String, u64>> = self.ask(pipeline).await?;
        for (inbox, count) in listeners.into_iter().flatten() {
            let id = inbox.strip_prefix(&names.inboxes).unwrap_or_default();
            if let Some(process) = processes.get_mut(id) {
                process.is_alive = count > 0;
                process.is_this = id == names.id();
            }
        }
        // An ACL may forbid it: then the processes have no names.
        let mut pipeline = redis::pipe();
        pipeline.cmd("CLIENT").arg("LIST");
        let clients: Vec<String> = self.ask(pipeline).await.unwrap_or_default();
        for client in clients.iter().flat_map(|list| list.lines()) {
            let field = |name| client.split(' ').find_map(|field| field.strip_prefix(name));
            let Some((id, instance)) = field("name=").and_then(read_client) else {
                continue;
            };
            if let Some(process) = processes.get_mut(id) {
                process.name = Some(instance);
                process.address = field("addr=").map(str::to_owned);
            }
        }
        for process in reports.iter_mut().flat_map(LockReport::processes) {
            process.clone_from(&processes[&process.id]);
        }
        Ok(())
    }

    /// Returns some keys that have a lock or a record, and where the next ones are.
    async fn scan(&self, cursor: LockCursor) -> Result<(Vec<LockKey>, Option<LockCursor>), Error> {
        let prefix = &self.settings.names.prefix;
        let pattern = match cursor.kind {
            Kind::Lock => format!("{}*", escape(prefix)),
            Kind::Record => format!("{{{}*}}:record", escape(prefix)),
        };
        let mut pipeline = redis::pipe();
        let scan = pipeline.cmd("SCAN").arg(cursor.position);
        scan.arg("MATCH").arg(pattern).arg("COUNT").arg(PAGE);
        let mut replies: Vec<(u64, Vec<Vec<u8>>)> = self.ask(pipeline).await?;
        let (position, names) = replies.pop().unwrap_or_default();
        let keys = names
            .iter()
            .filter_map(|name| key_of(prefix, std::str::from_utf8(name).ok()?))
            .filter(|key| key.kind() == cursor.kind)
            .collect();
        let next = (position != 0).then_some(LockCursor { position, ..cursor });
        Ok((keys, next))
    }

    /// Sends commands that may be carried out twice, and reads their replies.
    pub(super) async fn ask<T: FromRedisValue>(&self, commands: Pipeline) -> Result<Vec<T>, Error> {
        let replies = self.execute(commands, 0, ATTEMPTS).await;
        if let (Err(_), Some(redirected)) = (&replies, &self.redirected) {
            // The slot may have moved.
            redirected.notify();
        }
        let replies = replies?.into_iter().map(from_redis_value);
        replies
            .collect::<Result<_, _>>()
            .map_err(|_| self.address.unavailable("a reply has an unexpected form"))
    }
}

/// Returns the token that waits in this place of a queue: behind that of a reader stands an `s`.
fn read_waiting(place: &[u8]) -> &[u8] {
    place.strip_suffix(b"s").unwrap_or(place)
}

/// Escapes what has a meaning in a pattern.
fn escape(prefix: &str) -> String {
    let mut escaped = String::with_capacity(prefix.len());
    for character in prefix.chars() {
        if matches!(character, '*' | '?' | '[' | ']' | '^' | '\\') {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_no_pattern() {
        assert_eq!(escape(r"a*[b]?\:"), r"a\*\[b\]\?\\:");
    }
}
