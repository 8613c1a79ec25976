//! Sends the queued commands, and takes what Redis says.

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::stream::FuturesOrdered;
use redis::aio::MultiplexedConnection;
use redis::{ErrorKind as RedisKind, PushInfo, PushKind, RedisError, ServerErrorKind, Value};
use tokio::time::error::Elapsed;
use tokio::time::timeout;

use super::batch::{self, Call};
use super::connection::Link;
use super::{Pending, RedisStore};
use crate::clock::Time;
use crate::error::{Error, ErrorKind};
use crate::key::LockKey;
use crate::store::{Answer, Command, Events, Failure, Notice, Outcome, settled};

/// Script calls on their way at once. What is submitted meanwhile goes out together, in the next.
const MAX_CALLS: usize = 2;
/// Commands in one call: bounds how long the script keeps Redis from its other clients.
const MAX_COMMANDS: usize = 128;
/// With more commands queued than this, all go out together.
const FEW: usize = 8;
/// How long Redis is left alone after a failure, unless a request wants it…
const MIN_BACKOFF: Duration = Duration::from_millis(20);
/// …and after several.
const MAX_BACKOFF: Duration = Duration::from_secs(1);

/// Why a connection is no longer used.
#[derive(Debug)]
enum End {
    Finished,
    Closed(Error),
    /// No answer came in time. What was sent may still arrive there.
    Silent,
}

/// The calls that have no reply yet, in the order in which they were sent and will be answered.
///
/// Dropped, it puts them back into the queue: whatever they did, they may do again.
struct OnTheWay<'a> {
    store: &'a RedisStore,
    calls: VecDeque<(Time, Vec<Pending>)>,
}

impl OnTheWay<'_> {
    fn pop(&mut self) -> (Time, Vec<Pending>) {
        let call = self.calls.pop_front().expect("a reply belongs to a call");
        self.store
            .on_the_way
            .fetch_sub(call.1.len(), Ordering::AcqRel);
        call
    }

    fn push(&mut self, sent_at: Time, commands: Vec<Pending>) {
        self.store
            .on_the_way
            .fetch_add(commands.len(), Ordering::AcqRel);
        self.calls.push_back((sent_at, commands));
    }
}

impl Drop for OnTheWay<'_> {
    fn drop(&mut self) {
        let mut commands = Vec::new();
        while !self.calls.is_empty() {
            commands.extend(self.pop().1);
        }
        self.store.put_back(commands);
    }
}

impl RedisStore {
    /// Runs until `is_finished`. If it is dropped before, it can be run again.
    pub(crate) async fn run(
        &self,
        mut link: Option<Link>,
        events: &impl Events,
        is_finished: impl Fn() -> bool,
    ) {
        let mut backoff = MIN_BACKOFF;
        loop {
            let ready = match link.take() {
                Some(link) => Ok(link),
                None => self.connect().await,
            };
            match ready {
                Ok(link) => {
                    events.reconnected();
                    match self.serve(link, events, &is_finished, &mut backoff).await {
                        End::Finished => return,
                        End::Closed(error) => crate::trace::disconnected(&error),
                        End::Silent => {
                            crate::trace::disconnected(&no_answer(&self.settings.command_timeout));
                        }
                    }
                }
                Err(error) => {
                    crate::trace::disconnected(&error);
                    self.fail_all(&error, events);
                }
            }
            if is_finished() {
                return;
            }
            self.rest(backoff).await;
            backoff = (backoff * 2).min(MAX_BACKOFF);
        }
    }

    /// Waits before the next attempt to connect, unless a request wants the connection now.
    async fn rest(&self, backoff: Duration) {
        let rested = tokio::time::sleep(backoff);
        tokio::pin!(rested);
        loop {
            self.awake.store(false, Ordering::SeqCst);
            let wanted = self
                .queue()
                .commands
                .iter()
                .any(|pending| matches!(pending.command, Command::Acquire { .. }));
            if wanted {
                return;
            }
            tokio::select! {
                () = &mut rested => return,
                () = self.submitted.notified() => {}
            }
        }
    }

    /// No connection can be had: everything in the queue fails, but for the releases, which
    /// stay for as long as there may be something to release.
    fn fail_all(&self, error: &Error, events: &impl Events) {
        let now = Time::now();
        let queued = std::mem::take(&mut self.queue().commands);
        // What was never sent needs no release.
        let unsent: HashSet<u64> = queued
            .iter()
            .filter_map(|pending| match pending.command {
                Command::Acquire { token, .. } if !pending.sent => Some(token),
                _ => None,
            })
            .collect();
        let (keep, fail) = queued
            .into_iter()
            .partition(|pending| match pending.command {
                Command::Release { token, .. } => {
                    !unsent.contains(&token) && now.since(pending.submitted) <= self.settings.ttl
                }
                _ => false,
            });
        self.put_back(keep);
        for pending in fail {
            let unknown = pending.sent;
            pending.finish(
                now,
                Err(Failure {
                    error: error.clone(),
                    unknown,
                }),
                events,
            );
        }
    }

    async fn serve(
        &self,
        mut link: Link,
        events: &impl Events,
        is_finished: &impl Fn() -> bool,
        backoff: &mut Duration,
    ) -> End {
        let mut on_the_way = OnTheWay {
            store: self,
            calls: VecDeque::new(),
        };
        let mut replies = FuturesOrdered::new();
        let mut heartbeat =
            tokio::time::interval((self.settings.ttl / 3).max(Duration::from_secs(1)));
        let mut used = true;
        loop {
            while replies.len() < MAX_CALLS {
                self.awake.store(false, Ordering::SeqCst);
                let Some(commands) = self.take_commands(replies.len()) else {
                    break;
                };
                let sent_at = Time::now();
                replies.push_back(self.send(&link.commands, &commands, Call::ByHash));
                on_the_way.push(sent_at, commands);
                used = true;
            }
            if replies.is_empty() && is_finished() {
                return End::Finished;
            }
            tokio::select! {
                biased;
                reply = link.wire.next_reply(&mut replies) => match reply {
                    None => return End::Closed(closed()),
                    Some(Ok(Err(error))) if error.kind() == ServerErrorKind::NoScript.into() => {
                        // Nothing was carried out: somebody flushed the scripts.
                        let (_, commands) = on_the_way.pop();
                        let sent_at = Time::now();
                        replies.push_back(self.send(&link.commands, &commands, Call::Whole));
                        on_the_way.push(sent_at, commands);
                    }
                    Some(Ok(Err(error))) if is_refusal(&error) => {
                        let error = refused(&error);
                        let failure = Failure { error: error.clone(), unknown: false };
                        self.fail(on_the_way.pop(), &failure, events);
                        return End::Closed(error);
                    }
                    Some(Ok(Err(error))) => return End::Closed(refused(&error)),
                    Some(Ok(Ok(reply))) => {
                        *backoff = MIN_BACKOFF;
                        if let Err(error) = deliver(reply, &mut on_the_way, events) {
                            return End::Closed(error);
                        }
                    }
                    Some(Err(Elapsed { .. })) => {
                        self.give_up(link, &mut on_the_way, events);
                        return End::Silent;
                    }
                },
                push = link.pushes.recv() => match push {
                    Some(push) if push.kind != PushKind::Disconnection => self.pushed(&push, events),
                    _ => return End::Closed(closed()),
                },
                () = self.submitted.notified() => {}
                _ = heartbeat.tick() => {
                    // A dead connection is to be found before the next request needs it.
                    if replies.is_empty() && !std::mem::take(&mut used) {
                        replies.push_back(self.send(&link.commands, &[], Call::ByHash));
                        on_the_way.push(Time::now(), Vec::new());
                    }
                }
            }
        }
    }

    /// What goes out with the next call: all that is queued, in order. While that is little, releases that nobody is
    /// known to wait for keep no request from its answer: they go when no other of the `calls` is on its way.
    fn take_commands(&self, calls: usize) -> Option<Vec<Pending>> {
        let mut queue = self.queue();
        // Shared out among the calls that may go now, so that Redis works on one while we do on another.
        let length = queue.commands.len();
        let count = length
            .div_ceil(MAX_CALLS - calls)
            .max(FEW)
            .min(length)
            .min(MAX_COMMANDS);
        let mut taken: Vec<Pending> = queue.commands.drain(..count).collect();
        if length <= FEW {
            let urgent: Vec<LockKey> = taken
                .iter()
                .filter(|pending| !pending.can_wait())
                .map(|pending| pending.key.clone())
                .collect();
            if !urgent.is_empty() || calls > 0 {
                // By key: two commands for one stay in order.
                taken = taken
                    .into_iter()
                    .filter_map(|pending| match urgent.contains(&pending.key) {
                        true => Some(pending),
                        false => {
                            queue.commands.push_back(pending);
                            None
                        }
                    })
                    .collect();
            }
        }
        drop(queue);
        for pending in &mut taken {
            pending.sent = true;
        }
        (!taken.is_empty()).then_some(taken)
    }

    /// Sends one call, and resolves to its reply.
    fn send(
        &self,
        connection: &MultiplexedConnection,
        commands: &[Pending],
        how: Call,
    ) -> impl Future<Output = Result<Result<Value, RedisError>, Elapsed>> + use<> {
        let call = batch::call(
            &self.settings,
            commands
                .iter()
                .map(|pending| (&pending.key, pending.command)),
            how,
        );
        let watch = commands.iter().any(|pending| {
            matches!(
                pending.command,
                Command::Renew { .. } | Command::Acquire { watch: true, .. }
            )
        });
        let mut connection = connection.clone();
        timeout(self.settings.command_timeout, async move {
            if !watch {
                return connection.send_packed_command(&call).await?.extract_error();
            }
            // What the call reads, Redis watches for us.
            let mut pipeline = redis::pipe();
            pipeline
                .cmd("CLIENT")
                .arg("CACHING")
                .arg("YES")
                .add_command(call);
            let mut replies = connection.send_packed_commands(&pipeline, 0, 2).await?;
            replies.pop().unwrap_or(Value::Nil).extract_error()
        })
    }

    /// The commands of a call fail, but for the releases: those are put back.
    fn fail(
        &self,
        (sent_at, commands): (Time, Vec<Pending>),
        failure: &Failure,
        events: &impl Events,
    ) {
        let (releases, others) = commands
            .into_iter()
            .partition(|pending| matches!(pending.command, Command::Release { .. }));
        self.put_back(releases);
        for pending in others {
            pending.finish(sent_at, Err(failure.clone()), events);
        }
    }

    /// No answer came in time. Nobody waits for one any longer, but what was sent may arrive yet: a release follows it
    /// on the same connection, and so cannot be carried out before it.
    fn give_up(&self, mut link: Link, on_the_way: &mut OnTheWay<'_>, events: &impl Events) {
        let releases: Vec<(LockKey, Command)> = on_the_way
            .calls
            .iter()
            .flat_map(|(_, commands)| commands)
            .filter_map(|pending| match pending.command {
                Command::Acquire { token, .. } => {
                    let wanted = false;
                    Some((pending.key.clone(), Command::Release { token, wanted }))
                }
                _ => None,
            })
            .collect();
        let failure = Failure {
            error: no_answer(&self.settings.command_timeout),
            unknown: true,
        };
        while !on_the_way.calls.is_empty() {
            self.fail(on_the_way.pop(), &failure, events);
        }
        if !releases.is_empty() {
            let commands = releases.iter().map(|(key, command)| (key, *command));
            let call = batch::call(&self.settings, commands, Call::Whole);
            // By then, whatever it could still release has expired, or never will arrive.
            let patience = self.settings.ttl.max(Duration::from_secs(30));
            tokio::spawn(async move {
                let releasing = timeout(patience, link.commands.send_packed_command(&call));
                link.wire.run_until(releasing).await;
            });
        }
    }

    fn pushed(&self, push: &PushInfo, events: &impl Events) {
        match (&push.kind, push.data.as_slice()) {
            (PushKind::Message, [_, Value::BulkString(payload)]) => {
                if let Some((key, notice)) = batch::message(&self.settings.prefix, payload) {
                    events.notice(&key, notice);
                }
            }
            (PushKind::Invalidate, [Value::Array(names)]) => {
                for name in names {
                    let Value::BulkString(name) = name else {
                        continue;
                    };
                    let key = std::str::from_utf8(name)
                        .ok()
                        .and_then(|owner| batch::key_of(&self.settings.prefix, owner));
                    if let Some(key) = key {
                        events.notice(&key, Notice::Changed);
                    }
                }
            }
            // The whole database was flushed, or Redis forgets what it watched: look at everything.
            (PushKind::Invalidate, _) => events.reconnected(),
            _ => {}
        }
    }
}

/// Hands out the answers of the oldest call. An error says that the connection is of no use.
fn deliver(reply: Value, on_the_way: &mut OnTheWay<'_>, events: &impl Events) -> Result<(), Error> {
    let commands = on_the_way
        .calls
        .front()
        .map_or(&[][..], |(_, commands)| commands);
    let answers = batch::answers(commands.iter().map(|pending| pending.command), reply)
        .map_err(|error| refused(&error))?;
    let (sent_at, commands) = on_the_way.pop();
    let mut of_no_use = Ok(());
    for (pending, answer) in commands.into_iter().zip(answers) {
        let result = answer.map_err(|error| {
            // A replica stays one, but behind the same address there may be a primary now.
            if error.to_string().contains("READONLY") {
                of_no_use = Err(error.clone());
            }
            Failure {
                error,
                unknown: false,
            }
        });
        pending.finish(sent_at, result, events);
    }
    of_no_use
}

/// Whether the server answered, and carried out nothing.
fn is_refusal(error: &RedisError) -> bool {
    matches!(error.kind(), RedisKind::Server(_) | RedisKind::Extension)
}

fn closed() -> Error {
    Error::new(ErrorKind::Unavailable, "the connection to Redis was closed")
}

fn refused(error: &RedisError) -> Error {
    Error::new(ErrorKind::Unavailable, format!("Redis refused: {error}"))
}

fn no_answer(limit: &Duration) -> Error {
    Error::new(
        ErrorKind::Unavailable,
        format!("Redis did not answer within {limit:?}"),
    )
}

impl Pending {
    /// Whether nobody waits for what this does.
    fn can_wait(&self) -> bool {
        matches!(self.command, Command::Release { wanted: false, .. }) && self.receipt.is_none()
    }

    fn finish(self, sent_at: Time, result: Result<Answer, Failure>, events: &impl Events) {
        if let Some(receipt) = self.receipt {
            let _ = receipt.send(settled(&result));
        }
        events.answered(&self.key, self.command, Outcome { sent_at, result });
    }
}
