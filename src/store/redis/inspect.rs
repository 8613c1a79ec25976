//! Questions about locks. They go over the connection for long records, so that no request for a
//! lock waits behind them.

use std::collections::HashMap;
use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use redis::{FromRedisValue, Pipeline, from_redis_value};

use super::commands::token_of;
use super::names::{key_of, lock_name, queue_name};
use super::{RedisStore, Settings, scripts};
use crate::error::Error;
use crate::inspect::{LockCursor, LockReport, Occupant, Process};
use crate::key::{Kind, LockKey};

/// How often a question is asked, if no reply comes.
const ATTEMPTS: u32 = 2;
/// What `inspect.lua` returns.
type Found = (Vec<u8>, bool, i64, Vec<Vec<u8>>);

/// How many names Redis looks at for one page.
const PAGE: u32 = 100;
/// What the name of a connection begins with.
const CLIENT: &str = "tdl:";

impl Settings {
    /// The name of this process's connection. Redis forgets it with the connection, so that nothing
    /// has to be renewed.
    pub(super) fn client_name(&self) -> String {
        // Redis takes neither spaces nor line breaks.
        let instance = utf8_percent_encode(&self.instance, NON_ALPHANUMERIC);
        format!("{CLIENT}{}:{instance}", self.manager.simple())
    }
}

/// Reads the id and the name of a process from the name of its connection.
fn read_client_name(name: &str) -> Option<(&str, String)> {
    let (id, instance) = name.strip_prefix(CLIENT)?.split_once(':')?;
    let instance = percent_decode_str(instance).decode_utf8_lossy();
    Some((id, instance.into_owned()))
}

impl RedisStore {
    /// See [`Store::inspect`](crate::store::Store::inspect).
    pub(crate) async fn inspect(&self, keys: &[LockKey]) -> Result<Vec<LockReport>, Error> {
        let mut pipeline = redis::pipe();
        for key in keys {
            let lock = lock_name(&self.settings.prefix, key);
            let inspect = pipeline.cmd("EVAL").arg(scripts::INSPECT.source);
            inspect.arg(2).arg(&lock).arg(queue_name(&lock));
        }
        let replies: Vec<Found> = self.ask(pipeline).await?;
        let mut reports: Vec<LockReport> = keys
            .iter()
            .zip(replies)
            .map(|(key, (value, exists, remaining, queue))| {
                let mut report = LockReport::free(key.clone());
                report.waiting = queue
                    .iter()
                    .filter_map(|token| Some(Process::of(token_of(token)?.process)))
                    .collect();
                if exists {
                    report.occupant = match token_of(&value) {
                        Some(token) => {
                            report.is_contended = token.is_marked;
                            Process::of(token.process).holding()
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
        let inboxes = self.settings.inbox_prefix();
        let mut pipeline = redis::pipe();
        let listeners = pipeline.cmd("PUBSUB").arg("NUMSUB");
        for id in processes.keys() {
            listeners.arg(format!("{inboxes}{id}"));
        }
        let listeners: Vec<HashMap<String, u64>> = self.ask(pipeline).await?;
        for (inbox, count) in listeners.into_iter().flatten() {
            let id = inbox.strip_prefix(&inboxes).unwrap_or_default();
            if let Some(process) = processes.get_mut(id) {
                process.is_alive = count > 0;
                process.is_this = id == self.settings.manager.simple().to_string();
            }
        }
        // An ACL may forbid it: then the processes have no names.
        let mut pipeline = redis::pipe();
        pipeline.cmd("CLIENT").arg("LIST");
        let clients: Vec<String> = self.ask(pipeline).await.unwrap_or_default();
        for client in clients.iter().flat_map(|list| list.lines()) {
            let field = |name| client.split(' ').find_map(|field| field.strip_prefix(name));
            let Some((id, instance)) = field("name=").and_then(read_client_name) else {
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
    pub(crate) async fn scan(
        &self,
        cursor: LockCursor,
    ) -> Result<(Vec<LockKey>, Option<LockCursor>), Error> {
        let prefix = &self.settings.prefix;
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
        let replies = self.execute(commands, 0, ATTEMPTS).await?;
        let replies = replies.into_iter().map(from_redis_value);
        replies
            .collect::<Result<_, _>>()
            .map_err(|_| self.address.unavailable("a reply has an unexpected form"))
    }
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
    use super::super::commands::tests::settings;
    use super::*;

    #[test]
    fn a_connections_name_tells_the_process_whatever_it_is_called() {
        let mut settings = settings();
        settings.instance = "api 7: \r\n «ü»".to_owned();
        let name = settings.client_name();
        assert!(name.bytes().all(|byte| (b'!'..=b'~').contains(&byte)));
        let id = settings.manager.simple().to_string();
        assert_eq!(read_client_name(&name), Some((&*id, settings.instance)));
        assert_eq!(read_client_name("redis-py"), None);
    }

    #[test]
    fn a_prefix_is_no_pattern() {
        assert_eq!(escape(r"a*[b]?\:"), r"a\*\[b\]\?\\:");
    }
}
