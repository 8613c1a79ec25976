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
/// How long until a release that Redis refused is tried again.
const RETRY: Duration = Duration::from_millis(100);
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
    /// Releases that Redis refused. They are tried again.
    refused: Vec<Pending>,
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

impl OnTheWay<'_> {
    /// Keeps a release to try it again.
    fn keep(&mut self, release: Pending) {
        self.store.on_the_way.fetch_add(1, Ordering::AcqRel);
        self.refused.push(release);
    }

    fn retry(&mut self) {
        let refused = std::mem::take(&mut self.refused);
        self.store
            .on_the_way
            .fetch_sub(refused.len(), Ordering::AcqRel);
        self.store.put_back(refused);
    }
}

impl Drop for OnTheWay<'_> {
    fn drop(&mut self) {
        while !self.calls.is_empty() {
            let commands = self.pop().1;
            self.store.put_back(commands);
        }
        self.retry();
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
                        End::Closed(error) => {
                            crate::trace::disconnected(&error);
                            // Twice is no accident.
                            self.fail_if(|pending| pending.attempts >= 2, &error, events);
                        }
                        End::Silent => {
                            crate::trace::disconnected(&no_answer(&self.settings.command_timeout));
                        }
                    }
                }
                Err(error) => {
                    crate::trace::disconnected(&error);
                    self.fail_if(|_| true, &error, events);
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

    /// Fails commands in the queue, but for the releases: those stay for as long as there may be something to release.
    fn fail_if(&self, fails: impl Fn(&Pending) -> bool, error: &Error, events: &impl Events) {
        let now = Time::now();
        let queued = std::mem::take(&mut self.queue().commands);
        let (failed, kept): (Vec<Pending>, Vec<Pending>) =
            queued
                .into_iter()
                .partition(|pending| match pending.command {
                    Command::Release { .. } => self.has_expired(pending, now),
                    _ => fails(pending),
                });
        // What was never sent needs no release.
        let unsent: HashSet<u64> = failed
            .iter()
            .filter_map(|pending| match pending.command {
                Command::Acquire { token, .. } if !pending.is_known_there() => Some(token),
                _ => None,
            })
            .collect();
        let (needless, kept) = kept.into_iter().partition(|pending| match pending.command {
            Command::Release { token, .. } => unsent.contains(&token),
            _ => false,
        });
        self.put_back(kept);
        for pending in failed.into_iter().chain(needless) {
            let unknown = pending.is_known_there();
            let error = error.clone();
            pending.finish(now, Err(Failure { error, unknown }), events);
        }
    }

    /// Whether there is nothing left to release.
    fn has_expired(&self, release: &Pending, now: Time) -> bool {
        now.since(release.submitted) > self.settings.ttl
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
            refused: Vec::new(),
        };
        let mut replies = FuturesOrdered::new();
        let mut heartbeat =
            tokio::time::interval((self.settings.ttl / 3).max(Duration::from_secs(1)));
        let mut used = true;
        let mut retry = tokio::time::interval(RETRY);
        let mut how = Call::ByHash;
        loop {
            self.fail_overdue(events);
            while replies.len() < MAX_CALLS {
                self.awake.store(false, Ordering::SeqCst);
                let Some(commands) = self.take_commands(replies.len()) else {
                    break;
                };
                let sent_at = Time::now();
                replies.push_back(self.send(&link.commands, &commands, how));
                on_the_way.push(sent_at, commands);
                (used, how) = (true, Call::ByHash);
                if self.has_releases_waiting() {
                    break;
                }
            }
            if replies.is_empty() && is_finished() {
                return End::Finished;
            }
            tokio::select! {
                biased;
                reply = link.wire.next_reply(&mut replies) => match reply {
                    None => return End::Closed(closed()),
                    Some(Ok(Err(error))) if error.kind() == ServerErrorKind::NoScript.into() => {
                        // Somebody flushed the scripts. All is sent again, in order: somebody may have loaded ours
                        // in the meantime, and the second call been carried out.
                        replies = FuturesOrdered::new();
                        while !on_the_way.calls.is_empty() {
                            let (_, commands) = on_the_way.pop();
                            self.put_back(commands);
                        }
                        how = Call::Whole;
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
                _ = retry.tick(), if !on_the_way.refused.is_empty() => on_the_way.retry(),
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

    /// Fails what has been in the queue for too long, if anything has.
    fn fail_overdue(&self, events: &impl Events) {
        let limit = self.settings.command_timeout;
        let now = Time::now();
        let overdue = |pending: &Pending| now.since(pending.submitted) > limit;
        if self.queue().commands.front().is_some_and(overdue) {
            self.fail_if(overdue, &no_answer(&limit), events);
        }
    }

    /// Whether releases were held back just now.
    fn has_releases_waiting(&self) -> bool {
        self.queue()
            .commands
            .front()
            .is_some_and(|pending| pending.has_waited)
    }

    /// What goes out with the next call: all that is queued, in order. While that is little, releases that nobody is
    /// known to wait for let others go first, once, and while one of the `calls` is on its way.
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
                            let has_waited = true;
                            queue.commands.push_back(Pending {
                                has_waited,
                                ..pending
                            });
                            None
                        }
                    })
                    .collect();
            }
        }
        drop(queue);
        for pending in &mut taken {
            pending.attempts += 1;
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
            // What arrives later than that, if anything does, expires by itself.
            let patience = Duration::from_secs(30);
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
    let now = Time::now();
    for (pending, answer) in commands.into_iter().zip(answers) {
        let is_release = matches!(pending.command, Command::Release { .. });
        let result = match answer {
            Ok(answer) => Ok(answer),
            Err(_) if is_release && !on_the_way.store.has_expired(&pending, now) => {
                on_the_way.keep(pending);
                continue;
            }
            Err(error) => {
                // A replica stays one, but behind the same address there may be a primary now.
                if error.to_string().contains("READONLY") {
                    of_no_use = Err(error.clone());
                }
                // It may have failed half-way.
                Err(Failure {
                    error,
                    unknown: true,
                })
            }
        };
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
        matches!(self.command, Command::Release { wanted: false, .. })
            && self.receipt.is_none()
            && !self.has_waited
    }

    /// Whether the token of an acquire may be known to Redis.
    fn is_known_there(&self) -> bool {
        self.attempts > 0 || matches!(self.command, Command::Acquire { again: true, .. })
    }

    fn finish(self, sent_at: Time, result: Result<Answer, Failure>, events: &impl Events) {
        if let Some(receipt) = self.receipt {
            let _ = receipt.send(match result {
                // Perhaps by an earlier attempt, whose answer was lost.
                Ok(Answer::Gone) if self.attempts > 1 => Err(Error::of(ErrorKind::Unavailable)),
                _ => settled(&result),
            });
        }
        events.answered(&self.key, self.command, Outcome { sent_at, result });
    }
}
