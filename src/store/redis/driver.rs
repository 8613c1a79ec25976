//! Sends the queued commands, and takes what Redis says.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::stream::FuturesOrdered;
use redis::{Cmd, ErrorKind as RedisKind, RedisError, ServerErrorKind, Value};
use tokio::sync::oneshot;
use tokio::time::{MissedTickBehavior, timeout};

use super::RedisStore;
use super::batch::{self, Call};
use super::connection::Link;
use super::grants::Grants;
use super::pushes::Push;
use super::queue::{OnTheWay, Pending, no_answer};
use crate::clock::Time;
use crate::error::{Error, ErrorKind};
use crate::key::LockKey;
use crate::store::{Answer, Command, Events, Failure, Farewell, Notice};

/// How long until a release, or a completion, that Redis refused is tried again.
const RETRY: Duration = Duration::from_millis(100);
/// For what lies in the socket already.
const A_MOMENT: Duration = Duration::from_millis(1);
/// How often to look at a lock of a client of another kind, where Redis does not tell that it is released.
const FOREIGN: Duration = Duration::from_millis(100);
/// How long Redis is left alone after a failure, unless a request wants it…
const MIN_BACKOFF: Duration = Duration::from_millis(20);
/// …and after several.
const MAX_BACKOFF: Duration = Duration::from_secs(1);

struct Reply {
    /// What the script returned.
    answers: Value,
    /// What was seen when it was [looked](batch::look) behind it.
    seen: Result<Vec<Value>, RedisError>,
}

/// Why a connection is no longer used.
#[derive(Debug)]
enum End {
    Finished,
    Closed(Error),
    /// No answer came in time. What was sent may still arrive there.
    Silent,
}

/// Says that there is a connection, until it is dropped: by a panic, too, or with its runtime.
struct Up<'a>(&'a AtomicBool);

impl<'a> Up<'a> {
    fn new(connected: &'a AtomicBool) -> Self {
        connected.store(true, Ordering::Relaxed);
        Self(connected)
    }
}

impl Drop for Up<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

impl RedisStore {
    /// Runs until `is_finished`. If it is dropped before, it can be run again. Where somebody waits to be told that it has
    /// `connected`, it ends if it cannot.
    pub(crate) async fn run(
        &self,
        mut connected: Option<oneshot::Sender<Result<(), Error>>>,
        events: &impl Events,
        is_finished: impl Fn() -> bool,
    ) {
        let mut backoff = MIN_BACKOFF;
        let mut grants = Grants::default();
        loop {
            let began = Time::now();
            let ready = self.connect().await;
            if let (Some(connected), Err(error)) = (connected.take_if(|_| ready.is_err()), &ready) {
                let _ = connected.send(Err(error.clone()));
                return;
            }
            let error = match ready {
                Ok(link) => {
                    self.breaker.close();
                    events.reconnected();
                    let up = Up::new(&self.connected);
                    if let Some(connected) = connected.take() {
                        let _ = connected.send(Ok(()));
                    }
                    let end = self
                        .serve(link, events, &is_finished, &mut grants, &mut backoff)
                        .await;
                    drop(up);
                    match end {
                        End::Finished => return,
                        End::Closed(error) => {
                            // Twice is no accident.
                            self.fail_first(|pending| pending.attempts >= 2, &error, events);
                            error
                        }
                        End::Silent => no_answer(&self.settings.command_timeout),
                    }
                }
                Err(error) => {
                    self.fail_first(|_| true, &error, events);
                    error
                }
            };
            crate::trace::disconnected(&error);
            if is_finished() {
                return;
            }
            // Not for the first time since Redis has answered, and not at once: a refusal costs no request any time.
            if backoff > MIN_BACKOFF && Time::now().since(began) >= self.settings.command_timeout {
                self.breaker.open(error);
            }
            self.rest(backoff).await;
            backoff = (backoff * 2).min(MAX_BACKOFF);
        }
    }

    /// Waits before the next attempt to connect, unless a request wants the connection now.
    async fn rest(&self, backoff: Duration) {
        let rested = tokio::time::sleep(backoff);
        tokio::pin!(rested);
        let mut seen = 0;
        loop {
            let look = || self.queue().has_new_acquire(&mut seen);
            let wanted = self.submitted.answer(look);
            if wanted {
                return;
            }
            tokio::select! {
                () = &mut rested => return,
                () = self.submitted.rung() => {}
            }
        }
    }

    async fn serve(
        &self,
        mut link: Link,
        events: &impl Events,
        is_finished: &impl Fn() -> bool,
        grants: &mut Grants,
        backoff: &mut Duration,
    ) -> End {
        let mut on_the_way = OnTheWay::new(self);
        let mut replies = FuturesOrdered::new();
        let mut heartbeat = interval(self.settings.grant_ttl / 4);
        let mut last_sent = Time::now();
        let overdue = tokio::time::sleep(self.settings.command_timeout);
        tokio::pin!(overdue);
        let mut looked_again = false;
        let look_after_grants = tokio::time::sleep(Duration::ZERO);
        tokio::pin!(look_after_grants);
        let mut retry = interval(RETRY);
        let mut how = Call::ByHash;
        if self.settings.quarantine {
            // It begins now, if there is to be one, and not when somebody wants a lock.
            replies.push_back(self.send(&link, &[], how));
            on_the_way.push(last_sent, Vec::new());
        }
        loop {
            self.fail_overdue(events);
            let take = |calls| self.submitted.answer(|| self.take_commands(calls));
            while let Some(commands) = take(replies.len()) {
                last_sent = Time::now();
                replies.push_back(self.send(&link, &commands, how));
                on_the_way.push(last_sent, commands);
                how = Call::ByHash;
                if self.has_releases_waiting() {
                    break;
                }
            }
            if replies.is_empty() && is_finished() {
                return End::Finished;
            }
            if let Some(at) = grants.next().map(Time::instant)
                && at != look_after_grants.deadline()
            {
                look_after_grants.as_mut().reset(at);
            }
            tokio::select! {
                biased;
                reply = link.wire.next_reply(&mut replies) => match reply {
                    None => return End::Closed(closed()),
                    Some(Err(error)) if error.kind() == ServerErrorKind::NoScript.into() => {
                        // Somebody flushed the scripts. All is sent again, in order: somebody may have loaded ours
                        // in the meantime, and the second call been carried out.
                        replies = FuturesOrdered::new();
                        on_the_way.recall();
                        how = Call::Whole;
                    }
                    Some(Err(error)) if is_refusal(&error) => {
                        let error = refused(&error);
                        self.fail(on_the_way.pop(), &error, false, events);
                        return End::Closed(error);
                    }
                    Some(Err(error)) => return End::Closed(refused(&error)),
                    Some(Ok(reply)) => {
                        if let Some((sent_at, _)) = on_the_way.calls.front() {
                            link.observed.reply_to(*sent_at);
                        }
                        if let Err(error) = &reply.seen {
                            crate::trace::no_tracking(error);
                            link.watches = false;
                        }
                        if let Err(error) = deliver(reply, &mut on_the_way, link.watches, grants, events) {
                            return End::Closed(error);
                        }
                        *backoff = MIN_BACKOFF;
                    }
                },
                push = link.pushes.recv() => {
                    if self.pushed(push, events).is_err() {
                        return End::Closed(closed());
                    }
                }
                () = &mut overdue => {
                    let now = Time::now();
                    let oldest = on_the_way.calls.front().map_or(now, |(sent_at, _)| *sent_at);
                    let due = oldest + self.settings.command_timeout;
                    let is_late = due <= now;
                    if is_late && looked_again {
                        self.give_up(link, &mut on_the_way, events);
                        return End::Silent;
                    }
                    // A process that was stopped is told of the time before it is told of what came meanwhile.
                    looked_again = is_late;
                    let next = if is_late { now + A_MOMENT } else { due };
                    overdue.as_mut().reset(next.instant());
                }
                () = self.submitted.rung() => {}
                _ = retry.tick(), if !on_the_way.refused.is_empty() => on_the_way.retry(),
                () = &mut look_after_grants, if grants.next().is_some() => {
                    let (now, wanted) = (Time::now(), true);
                    while let Some((key, token)) = grants.expired(now) {
                        let release = Command::Release { token, wanted };
                        let _ = self.submit(now, &key, release, Farewell::default());
                    }
                }
                _ = heartbeat.tick() => {
                    let silent = Time::now().since(last_sent);
                    if replies.is_empty() && silent > self.longest_silence(&link, events) {
                        last_sent = Time::now();
                        replies.push_back(self.send(&link, &[], Call::ByHash));
                        on_the_way.push(last_sent, Vec::new());
                    }
                }
            }
        }
    }

    /// For how long nothing need be sent. A dead connection is to be found before the next request needs it, and before
    /// somebody on the way takes it for dead; and a grant is worth the more the newer the last reply before it.
    fn longest_silence(&self, link: &Link, events: &impl Events) -> Duration {
        if link.dates_grants && events.awaits_grants() {
            return self.settings.grant_ttl / 8;
        }
        let (second, most) = (Duration::from_secs(1), Duration::from_secs(15));
        (self.settings.ttl / 3).clamp(second, most)
    }

    /// Sends one call, and resolves to its reply.
    fn send(
        &self,
        link: &Link,
        pending: &[Pending],
        how: Call,
    ) -> impl Future<Output = Result<Reply, RedisError>> + use<> {
        let call = batch::call(
            &self.settings,
            pending.iter().map(|pending| {
                let record = pending.farewell.record.as_ref();
                (&pending.key, pending.command, record)
            }),
            how,
        );
        let commands = pending
            .iter()
            .map(|pending| (&pending.key, pending.command));
        let looks: Vec<Cmd> = match link.watches {
            true => batch::look(&self.settings, commands.clone()).collect(),
            false => Vec::new(),
        };
        // Redis writes first to the client to which it had something to say last. A reply that comes before the call's makes
        // that the process that is granted the lock, and not this one, whose reply nobody waits for: a fifth less of a gap.
        let gives_way = commands
            .clone()
            .any(|(_, command)| matches!(command, Command::Release { wanted: true, .. }));
        let mut connection = link.commands.clone();
        async move {
            if looks.is_empty() && !gives_way {
                let reply = connection.send_packed_command(&call).await?;
                return Ok(Reply {
                    answers: reply.extract_error()?,
                    seen: Ok(Vec::new()),
                });
            }
            let mut pipeline = redis::pipe();
            let mut before = 0;
            if gives_way {
                pipeline.cmd("PING");
                before = 1;
            }
            pipeline.add_command(call);
            let count = 1 + 2 * looks.len();
            for look in looks {
                let caching = pipeline.cmd("CLIENT").arg("CACHING").arg("YES");
                caching.add_command(look);
            }
            let replies = connection.send_packed_commands(&pipeline, before, count);
            let mut replies = replies.await?.into_iter().map(Value::extract_error);
            let answers = replies.next().unwrap_or(Ok(Value::Nil))?;
            let mut seen = Vec::new();
            while let (Some(caching), Some(look)) = (replies.next(), replies.next()) {
                // A value of another type is none that was left there.
                seen.push(caching.map(|_| look.unwrap_or(Value::Nil)));
            }
            Ok(Reply {
                answers,
                seen: seen.into_iter().collect(),
            })
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
        let error = no_answer(&self.settings.command_timeout);
        while !on_the_way.calls.is_empty() {
            self.fail(on_the_way.pop(), &error, true, events);
        }
        if !releases.is_empty() {
            let commands = releases.iter().map(|(key, command)| (key, *command, None));
            let call = batch::call(&self.settings, commands, Call::Whole);
            // What arrives later than that, if anything does, expires by itself.
            let patience = Duration::from_secs(30);
            tokio::spawn(async move {
                let releasing = timeout(patience, link.commands.send_packed_command(&call));
                link.wire.run_until(releasing).await;
            });
        }
    }

    /// Takes what the server sent unasked. An error says that there is nothing more to come.
    fn pushed(&self, push: Option<Push>, events: &impl Events) -> Result<(), ()> {
        let prefix = &self.settings.prefix;
        match push.ok_or(())? {
            Push::Message { payload, after } => {
                if let Some((key, notice)) = batch::message(prefix, &payload, after) {
                    events.notice(&key, notice);
                }
            }
            Push::Changed(names) => {
                let names = names.iter().filter_map(|name| match name {
                    Value::BulkString(name) => std::str::from_utf8(name).ok(),
                    _ => None,
                });
                for key in names.filter_map(|owner| batch::key_of(prefix, owner)) {
                    events.notice(&key, Notice::Changed);
                }
            }
            Push::AllChanged => events.all_changed(),
            Push::Closed => return Err(()),
        }
        Ok(())
    }
}

/// Hands out the answers of the oldest call. An error says that the connection is of no use.
fn deliver(
    reply: Reply,
    on_the_way: &mut OnTheWay<'_>,
    watches: bool,
    grants: &mut Grants,
    events: &impl Events,
) -> Result<(), Error> {
    let commands = on_the_way
        .calls
        .front()
        .map_or(&[][..], |(_, commands)| commands);
    let commands = commands
        .iter()
        .map(|pending| (&pending.key, pending.command));
    let answers = batch::answers(commands, reply.answers).map_err(|error| refused(&error))?;
    let (sent_at, commands) = on_the_way.pop();
    let settings = &on_the_way.store.settings;
    let mut seen = reply.seen.unwrap_or_default().into_iter();
    let mut of_no_use = Ok(());
    let now = Time::now();
    for (pending, answer) in commands.into_iter().zip(answers) {
        let command = pending.command;
        let seen = batch::is_watched(command).then(|| seen.next()).flatten();
        match answer {
            Ok(answer) => {
                if let Command::Release { token, .. } = command
                    && matches!(answer, Answer::Released { granted: true, .. })
                {
                    let expires = now + settings.grant_ttl + Duration::from_millis(1);
                    grants.passed_on(pending.key.clone(), token, expires);
                }
                let changed = seen
                    .filter(|seen| !batch::is_as_left(settings, command, &answer, seen))
                    .map(|_| pending.key.clone());
                let answer = if watches { answer } else { unwatched(answer) };
                pending.finish(sent_at, Ok(answer), events);
                if let Some(key) = changed {
                    events.notice(&key, Notice::Changed);
                }
            }
            Err(Failure { error, unknown }) => {
                // A replica stays one, but behind the same address there may be a primary now.
                if error.to_string().contains("READONLY") {
                    of_no_use = Err(error.clone());
                }
                if pending.ends_hold() && !on_the_way.store.is_over(&pending, now, events) {
                    on_the_way.keep(pending);
                    continue;
                }
                // An earlier attempt may have got it something.
                let unknown = unknown || pending.may_have_been_carried_out_before();
                pending.finish(sent_at, Err(Failure { error, unknown }), events);
            }
        }
    }
    of_no_use
}

/// Nobody tells when a client of another kind releases its lock: look every so often.
fn unwatched(answer: Answer) -> Answer {
    match answer {
        Answer::Held {
            remaining,
            foreign: true,
        } => Answer::Held {
            remaining: Some(remaining.unwrap_or(FOREIGN).min(FOREIGN)),
            foreign: true,
        },
        answer => answer,
    }
}

/// Whether the server answered, and carried out nothing.
pub(super) fn is_refusal(error: &RedisError) -> bool {
    matches!(error.kind(), RedisKind::Server(_) | RedisKind::Extension)
}

/// Ticks that were missed are not made up for.
fn interval(period: Duration) -> tokio::time::Interval {
    let mut interval = tokio::time::interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

fn closed() -> Error {
    Error::new(ErrorKind::Unavailable, "the connection to Redis was closed")
}

fn refused(error: &RedisError) -> Error {
    Error::new(ErrorKind::Unavailable, format!("Redis refused: {error}"))
}
