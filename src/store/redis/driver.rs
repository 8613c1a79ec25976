//! Sends the queued commands, and takes the replies and messages of Redis.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::stream::FuturesOrdered;
use redis::{Cmd, ErrorKind as RedisKind, RedisError, ServerErrorKind, Value};
use tokio::time::{MissedTickBehavior, timeout};

use super::RedisStore;
use super::batch::{self, Call};
use super::connection::Link;
use super::in_flight::InFlight;
use super::passed_on::PassedOn;
use super::pending::Pending;
use super::pushes::Push;
use super::queue::no_reply;
use crate::clock::Time;
use crate::error::{Error, ErrorKind};
use crate::key::LockKey;
use crate::store::{Command, Connected, Events, Failure, Notice, Reply};

/// How long until a release, or a completion, that Redis refused is tried again.
const RETRY: Duration = Duration::from_millis(100);
/// Time to read what is in the socket already.
const A_MOMENT: Duration = Duration::from_millis(1);
/// How often to acquire a lock that a client of another kind has, where Redis does not tell when it
/// is released.
const FOREIGN: Duration = Duration::from_millis(100);
/// How long after a failure until the next attempt to connect, unless an acquire is submitted: at
/// first…
const MIN_BACKOFF: Duration = Duration::from_millis(20);
/// …and at most.
const MAX_BACKOFF: Duration = Duration::from_secs(1);

/// The reply to a call.
struct Returned {
    /// What the script returned.
    values: Value,
    /// What was [read](batch::track) behind the script.
    seen: Result<Vec<Value>, RedisError>,
}

/// Why a connection is no longer used.
#[derive(Debug)]
enum End {
    Finished,
    Closed(Error),
    /// No reply came in time. Redis may still carry out what was sent.
    Silent,
}

/// Marks the store as connected until it is dropped, which a panic and the end of the runtime do,
/// too.
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
    /// See [`Store::run`](crate::store::Store::run).
    pub(crate) async fn run(
        &self,
        mut connected: Option<Connected>,
        events: &impl Events,
        is_finished: impl Fn() -> bool,
    ) {
        let mut backoff = MIN_BACKOFF;
        let mut passed_on = PassedOn::default();
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
                        .serve(link, events, &is_finished, &mut passed_on, &mut backoff)
                        .await;
                    drop(up);
                    match end {
                        End::Finished => return,
                        End::Closed(error) => {
                            // Gives up on a command after two attempts.
                            self.fail_first(|pending| pending.attempts >= 2, &error, events);
                            error
                        }
                        End::Silent => no_reply(&self.settings.command_timeout),
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
            // Opens only if this is not the first failure since the last reply of Redis, and if it
            // took as long as a timeout: a refusal costs no request any time.
            if backoff > MIN_BACKOFF && Time::now().since(began) >= self.settings.command_timeout {
                self.breaker.open(error);
            }
            self.back_off(backoff).await;
            backoff = (backoff * 2).min(MAX_BACKOFF);
        }
    }

    /// Waits before the next attempt to connect. An acquire that is submitted ends the wait.
    async fn back_off(&self, backoff: Duration) {
        let backed_off = tokio::time::sleep(backoff);
        tokio::pin!(backed_off);
        let mut seen = 0;
        loop {
            let has_acquire = || self.queue().has_new_acquire(&mut seen);
            if self.submitted.drain(has_acquire) {
                return;
            }
            tokio::select! {
                () = &mut backed_off => return,
                () = self.submitted.notified() => {}
            }
        }
    }

    async fn serve(
        &self,
        mut link: Link,
        events: &impl Events,
        is_finished: &impl Fn() -> bool,
        passed_on: &mut PassedOn,
        backoff: &mut Duration,
    ) -> End {
        let mut in_flight = InFlight::new(self);
        let mut replies = FuturesOrdered::new();
        let mut heartbeat = interval(self.settings.grant_ttl / 4);
        let mut last_sent = Time::now();
        let overdue = tokio::time::sleep(self.settings.command_timeout);
        tokio::pin!(overdue);
        let mut was_late = false;
        let next_grant_expiry = tokio::time::sleep(Duration::ZERO);
        tokio::pin!(next_grant_expiry);
        let mut retry = interval(RETRY);
        let mut how = Call::ByHash;
        if self.settings.quarantine {
            // An empty call. If there is to be a quarantine, it begins now, and not with the first
            // acquire.
            replies.push_back(self.send(&link, &[], how));
            in_flight.push(last_sent, Vec::new());
        }
        loop {
            self.fail_overdue(events);
            let take = |calls| self.submitted.drain(|| self.take_commands(calls));
            while let Some(commands) = take(replies.len()) {
                last_sent = Time::now();
                replies.push_back(self.send(&link, &commands, how));
                in_flight.push(last_sent, commands);
                how = Call::ByHash;
                if self.has_releases_waiting() {
                    break;
                }
            }
            if replies.is_empty() && is_finished() {
                return End::Finished;
            }
            if let Some(at) = passed_on.next().map(Time::instant)
                && at != next_grant_expiry.deadline()
            {
                next_grant_expiry.as_mut().reset(at);
            }
            tokio::select! {
                biased;
                reply = link.connection.next_reply(&mut replies) => match reply {
                    None => return End::Closed(closed()),
                    Some(Err(error)) if error.kind() == ServerErrorKind::NoScript.into() => {
                        // The scripts were flushed. All calls are sent again, in order. The second
                        // one may have been carried out, if another process has loaded the script
                        // meanwhile.
                        replies = FuturesOrdered::new();
                        in_flight.recall();
                        how = Call::BySource;
                    }
                    Some(Err(error)) if is_refusal(&error) => {
                        let error = refused(error);
                        self.fail(in_flight.pop(), &error, false, events);
                        return End::Closed(error);
                    }
                    Some(Err(error)) => return End::Closed(refused(error)),
                    Some(Ok(returned)) => {
                        if let Some((sent_at, _)) = in_flight.calls.front() {
                            link.observed.reply_to(*sent_at);
                        }
                        if let Err(error) = &returned.seen {
                            crate::trace::no_tracking(error);
                            link.watches = false;
                        }
                        if let Err(error) = deliver(returned, &mut in_flight, link.watches, passed_on, events) {
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
                    let oldest = in_flight.calls.front().map_or(now, |(sent_at, _)| *sent_at);
                    let due = oldest + self.settings.command_timeout;
                    let is_late = due <= now;
                    if is_late && was_late {
                        self.give_up(link, &mut in_flight, events);
                        return End::Silent;
                    }
                    // A process that was stopped sees that the time is over before it sees the
                    // replies that have come meanwhile.
                    was_late = is_late;
                    let next = if is_late { now + A_MOMENT } else { due };
                    overdue.as_mut().reset(next.instant());
                }
                () = self.submitted.notified() => {}
                _ = retry.tick(), if !in_flight.refused.is_empty() => in_flight.retry(),
                () = &mut next_grant_expiry, if passed_on.next().is_some() => {
                    let now = Time::now();
                    while let Some((key, token)) = passed_on.expired(now) {
                        let _ = self.submit(now, &key, release(token, true));
                    }
                }
                _ = heartbeat.tick() => {
                    let silent = Time::now().since(last_sent);
                    if replies.is_empty() && silent > self.longest_silence(&link, events) {
                        last_sent = Time::now();
                        replies.push_back(self.send(&link, &[], Call::ByHash));
                        in_flight.push(last_sent, Vec::new());
                    }
                }
            }
        }
    }

    /// Returns for how long nothing need be sent. A dead connection should be found before the next
    /// request needs it, and an idle one used before a middlebox takes it for dead. And the newer
    /// the last reply before a grant, the longer that grant is valid.
    fn longest_silence(&self, link: &Link, events: &impl Events) -> Duration {
        if link.dates_grants && events.awaits_grants() {
            return self.settings.grant_ttl / 8;
        }
        let (second, most) = (Duration::from_secs(1), Duration::from_secs(15));
        (self.settings.ttl / 3).clamp(second, most)
    }

    /// Sends one call. The future resolves to its reply.
    fn send(
        &self,
        link: &Link,
        pending: &[Pending],
        how: Call,
    ) -> impl Future<Output = Result<Returned, RedisError>> + use<> {
        let commands = pending
            .iter()
            .map(|pending| (&pending.key, &pending.command));
        let call = batch::call(&self.settings, commands.clone(), how);
        let reads: Vec<Cmd> = match link.watches {
            true => batch::track(&self.settings, commands.clone()).collect(),
            false => Vec::new(),
        };
        // A leading PING changes the order in which Redis flushes its clients, so that the new
        // holder hears of the grant before this process gets its reply, for which no request waits
        // (measured: a fifth less hand-off latency).
        let gives_way = commands.clone().any(|(_, command)| {
            matches!(
                command,
                Command::Release {
                    contended: true,
                    ..
                }
            )
        });
        let mut connection = link.commands.clone();
        async move {
            if reads.is_empty() && !gives_way {
                let reply = connection.send_packed_command(&call).await?;
                return Ok(Returned {
                    values: reply.extract_error()?,
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
            let count = 1 + 2 * reads.len();
            for read in reads {
                let caching = pipeline.cmd("CLIENT").arg("CACHING").arg("YES");
                caching.add_command(read);
            }
            let replies = connection.send_packed_commands(&pipeline, before, count);
            let mut replies = replies.await?.into_iter().map(Value::extract_error);
            let values = replies.next().unwrap_or(Ok(Value::Nil))?;
            let mut seen = Vec::new();
            while let (Some(caching), Some(read)) = (replies.next(), replies.next()) {
                // A value of another type is an error of the read, and is not what this process
                // left.
                seen.push(caching.map(|_| read.unwrap_or(Value::Nil)));
            }
            Ok(Returned {
                values,
                seen: seen.into_iter().collect(),
            })
        }
    }

    /// Fails the calls that had no reply in time. Redis may still carry out their acquires:
    /// releases follow on the same connection, and so cannot be carried out before them.
    fn give_up(&self, mut link: Link, in_flight: &mut InFlight<'_>, events: &impl Events) {
        let releases: Vec<(LockKey, Command)> = in_flight
            .calls
            .iter()
            .flat_map(|(_, commands)| commands)
            .filter_map(|pending| match pending.command {
                Command::Acquire { token, .. } => {
                    Some((pending.key.clone(), release(token, false)))
                }
                _ => None,
            })
            .collect();
        let error = no_reply(&self.settings.command_timeout);
        while !in_flight.calls.is_empty() {
            self.fail(in_flight.pop(), &error, true, events);
        }
        if !releases.is_empty() {
            let commands = releases.iter().map(|(key, command)| (key, command));
            let call = batch::call(&self.settings, commands, Call::BySource);
            // Whatever Redis carries out later than that expires by itself.
            let patience = Duration::from_secs(30);
            tokio::spawn(async move {
                let releasing = timeout(patience, link.commands.send_packed_command(&call));
                link.connection.run_until(releasing).await;
            });
        }
    }

    /// Tells the manager what the server has sent of its own accord. An error says that the
    /// connection is closed.
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
                for key in names.filter_map(|name| batch::key_of(prefix, name)) {
                    events.notice(&key, Notice::Changed);
                }
            }
            Push::AllChanged => events.all_changed(),
            Push::Closed => return Err(()),
        }
        Ok(())
    }
}

/// Ends the commands of the oldest call with their replies. An error says that the connection is of
/// no use.
fn deliver(
    returned: Returned,
    in_flight: &mut InFlight<'_>,
    watches: bool,
    passed_on: &mut PassedOn,
    events: &impl Events,
) -> Result<(), Error> {
    let commands = in_flight
        .calls
        .front()
        .map_or(&[][..], |(_, commands)| commands);
    let commands = commands
        .iter()
        .map(|pending| (&pending.key, &pending.command));
    let replies = batch::replies(commands, returned.values).map_err(refused)?;
    let (sent_at, commands) = in_flight.pop();
    let settings = &in_flight.store.settings;
    let mut seen = returned.seen.unwrap_or_default().into_iter();
    let mut of_no_use = Ok(());
    let now = Time::now();
    for (pending, reply) in commands.into_iter().zip(replies) {
        let command = &pending.command;
        let seen = batch::is_tracked(command).then(|| seen.next()).flatten();
        match reply {
            Ok(reply) => {
                if let Command::Release { token, .. } = *command
                    && matches!(reply, Reply::Released { granted: true, .. })
                {
                    let expires = now + settings.grant_ttl + Duration::from_millis(1);
                    passed_on.insert(pending.key.clone(), token, expires);
                }
                let changed = seen
                    .filter(|seen| !batch::is_as_left(settings, command, &reply, seen))
                    .map(|_| pending.key.clone());
                let reply = if watches { reply } else { unwatched(reply) };
                pending.finish(sent_at, Ok(reply), events);
                if let Some(key) = changed {
                    events.notice(&key, Notice::Changed);
                }
            }
            Err(Failure { error, unknown }) => {
                // This server stays a replica, but the address may lead to a primary by now.
                if error.to_string().contains("READONLY") {
                    of_no_use = Err(error.clone());
                }
                if pending.ends_hold() && !in_flight.store.is_over(&pending, now, events) {
                    in_flight.keep(pending);
                    continue;
                }
                // An earlier attempt may have got the token something.
                let unknown = unknown || pending.may_have_been_carried_out_before();
                pending.finish(sent_at, Err(Failure { error, unknown }), events);
            }
        }
    }
    of_no_use
}

/// Returns a release that no caller waits for.
fn release(token: u64, contended: bool) -> Command {
    Command::Release {
        token,
        contended,
        reply: None,
    }
}

/// Shortens the remaining time of a lock that a client of another kind has, so that the manager
/// acquires again often: Redis does not tell when that client releases it.
fn unwatched(reply: Reply) -> Reply {
    match reply {
        Reply::HeldElsewhere {
            remaining,
            foreign: true,
        } => Reply::HeldElsewhere {
            remaining: Some(remaining.unwrap_or(FOREIGN).min(FOREIGN)),
            foreign: true,
        },
        reply => reply,
    }
}

/// Returns whether the server replied with an error, and carried out nothing.
pub(super) fn is_refusal(error: &RedisError) -> bool {
    matches!(error.kind(), RedisKind::Server(_) | RedisKind::Extension)
}

/// Returns an interval that does not make up for ticks that were missed.
fn interval(period: Duration) -> tokio::time::Interval {
    let mut interval = tokio::time::interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

fn closed() -> Error {
    Error::new(ErrorKind::Unavailable, "the connection to Redis was closed")
}

fn refused(error: RedisError) -> Error {
    Error::caused_by(
        ErrorKind::Unavailable,
        format!("Redis refused: {error}"),
        error,
    )
}
