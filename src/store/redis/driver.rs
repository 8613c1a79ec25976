//! Sends the queued commands, and takes the replies and messages of Redis.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::stream::FuturesOrdered;
use redis::{ErrorKind as RedisKind, RedisError, Value};
use tokio::time::{MissedTickBehavior, timeout};

use super::RedisStore;
use super::commands::{self, Ahead, Said, Scripts, Unusable, refused};
use super::confirming::Confirming;
use super::connection::Link;
use super::in_flight::{InFlight, InFlightCall};
use super::messages::message;
use super::names::key_of;
use super::passed_on::PassedOn;
use super::pending::Pending;
use super::pushes::Push;
use super::queue::no_reply;
use crate::clock::Time;
use crate::error::{Error, ErrorKind};
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
        let server = self.address.display();
        loop {
            let began = Time::now();
            let mut ready = self.connect().await;
            if let (Some(_), Ok(link)) = (&connected, &mut ready) {
                match self.probe(link).await {
                    Ok(()) => self.told.up(&server),
                    Err(error) => ready = Err(error),
                }
            }
            if let (Some(connected), Err(error)) = (connected.take_if(|_| ready.is_err()), &ready) {
                let _ = connected.send(Err(error.clone()));
                return;
            }
            let error = match ready {
                Ok(mut link) => {
                    self.breaker.close();
                    if let Some(error) = link.no_tracking.take() {
                        self.told.no_tracking(&server, &error);
                    }
                    if let Some(error) = &link.unready {
                        self.told.down(&server, error);
                    }
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
                    let error = error.met_by_a_request();
                    self.fail_first(|_| true, &error, events);
                    error
                }
            };
            self.told.down(&server, &error);
            if let Some(redirected) = &self.redirected {
                // Another server may take its place.
                redirected.notify();
            }
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
        let mut confirming = Confirming::new(self);
        let mut replies = FuturesOrdered::new();
        let mut heartbeat = interval(self.settings.grant_ttl / 4);
        let mut last_sent = Time::now();
        let overdue = tokio::time::sleep(self.settings.command_timeout);
        tokio::pin!(overdue);
        let mut was_late = false;
        let next_grant_expiry = tokio::time::sleep(Duration::ZERO);
        tokio::pin!(next_grant_expiry);
        let mut retry = interval(RETRY);
        let mut scripts = Scripts::ByHash;
        let server = self.address.display();
        loop {
            self.fail_overdue(events);
            self.told.quarantined(&server, link.is_quarantined());
            let take = |calls| self.submitted.drain(|| self.take_commands(calls));
            while let Some(commands) = take(replies.len()) {
                let commands = refuse_acquires(&mut link, commands, events);
                if commands.is_empty() {
                    continue;
                }
                last_sent = Time::now();
                let (call, ahead) = link.call(last_sent, commands, &self.settings.names);
                replies.push_back(self.send(&link, &call, scripts, &ahead));
                in_flight.push(call);
                scripts = Scripts::ByHash;
            }
            let newest = in_flight.calls.back().map(|call| call.sent_at);
            if self.pings.need_a_command(newest) {
                last_sent = Time::now();
                let (call, ahead) = link.call(last_sent, Vec::new(), &self.settings.names);
                replies.push_back(self.send(&link, &call, scripts, &ahead));
                in_flight.push(call);
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
                    Some(Err(error)) => return End::Closed(refused(error)),
                    Some(Ok(_)) if link.observed.is_out_of_step() => return End::Closed(unasked()),
                    Some(Ok(values)) => match self.deliver(values, &mut link, &mut in_flight, &mut confirming, passed_on, events) {
                        Ok(()) => {
                            *backoff = MIN_BACKOFF;
                            if link.unready.is_none() {
                                self.told.up(&server);
                            }
                        }
                        Err(Undelivered::NoScript) => {
                            // The scripts were flushed. All calls are sent again, in order, though
                            // some of their commands have been carried out.
                            replies = FuturesOrdered::new();
                            in_flight.recall();
                            scripts = Scripts::BySource;
                        }
                        Err(Undelivered::OfNoUse(error)) => return End::Closed(error),
                    },
                },
                push = link.pushes.recv() => {
                    if let Err(error) = self.pushed(push, events) {
                        return End::Closed(error);
                    }
                }
                () = &mut overdue => {
                    let now = Time::now();
                    let oldest = in_flight.calls.front().map_or(now, |call| call.sent_at);
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
                () = confirming.answered(events), if confirming.ask() => {}
                () = self.submitted.notified() => {}
                _ = retry.tick(), if !in_flight.refused.is_empty() || link.unready.is_some() => {
                    in_flight.retry();
                    link.make_ready(&self.settings).await;
                    match (&link.unready, &self.redirected) {
                        (None, _) => self.told.up(&server),
                        // What it needs may be elsewhere.
                        (Some(_), Some(redirected)) => redirected.notify(),
                        (Some(_), None) => {}
                    }
                }
                () = &mut next_grant_expiry, if passed_on.next().is_some() => {
                    let now = Time::now();
                    while let Some((key, token)) = passed_on.expired(now) {
                        let _ = self.submit(now, &key, regrant(token));
                    }
                }
                _ = heartbeat.tick() => {
                    let silent = Time::now().since(last_sent);
                    if replies.is_empty() && silent > self.longest_silence(&link, events) {
                        last_sent = Time::now();
                        let (call, ahead) = link.call(last_sent, Vec::new(), &self.settings.names);
                        replies.push_back(self.send(&link, &call, scripts, &ahead));
                        in_flight.push(call);
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

    /// Sends one call. The future resolves to its replies.
    fn send(
        &self,
        link: &Link,
        call: &InFlightCall,
        scripts: Scripts,
        ahead: &Ahead,
    ) -> impl Future<Output = Result<Vec<Value>, RedisError>> + use<> {
        let commands = call.commands.iter().map(Pending::sent);
        let call = commands::call(&self.settings, &call.server, commands, scripts, ahead);
        let mut connection = link.commands.clone();
        async move {
            connection
                .send_packed_commands(&call.pipeline, call.skipped, call.replies)
                .await
        }
    }

    /// Fails the calls that had no reply in time. Redis may still carry out their acquires:
    /// releases follow on the same connection, and so cannot be carried out before them.
    fn give_up(&self, mut link: Link, in_flight: &mut InFlight<'_>, events: &impl Events) {
        let releases: Vec<Pending> = in_flight
            .calls
            .iter()
            .flat_map(|call| &call.commands)
            .filter_map(Pending::given_up)
            .collect();
        let error = no_reply(&self.settings.command_timeout);
        while !in_flight.calls.is_empty() {
            self.fail(in_flight.pop(), &error, true, events);
        }
        if !releases.is_empty() {
            let commands = releases.iter().map(Pending::sent);
            let scripts = Scripts::BySource;
            let ahead = Ahead::default();
            let call = commands::call(&self.settings, &link.server, commands, scripts, &ahead);
            // Whatever Redis carries out later than that expires by itself.
            let patience = Duration::from_secs(30);
            tokio::spawn(async move {
                let releasing =
                    link.commands
                        .send_packed_commands(&call.pipeline, call.skipped, call.replies);
                let releasing = timeout(patience, releasing);
                link.connection.run_until(releasing).await;
            });
        }
    }

    /// Tells the manager what the server has sent of its own accord. An error says why the
    /// connection is of no use.
    fn pushed(&self, push: Option<Push>, events: &impl Events) -> Result<(), Error> {
        let prefix = &self.settings.names.prefix;
        match push.unwrap_or(Push::Closed) {
            Push::Message { payload, after } => {
                // Without it, the lock is acquired once more, and replicas are counted then.
                let after = after.filter(|_| self.settings.min_replicas == 0);
                if let Some((key, notice)) = message(prefix, &payload, after) {
                    events.notice(&key, notice);
                }
            }
            Push::Changed(names) => {
                let names = names.iter().filter_map(|name| match name {
                    Value::BulkString(name) => std::str::from_utf8(name).ok(),
                    _ => None,
                });
                for key in names.filter_map(|name| key_of(prefix, name)) {
                    events.notice(&key, Notice::Changed);
                }
            }
            Push::AllChanged => events.all_changed(),
            Push::Replaced => {
                return Err(Error::new(
                    ErrorKind::Unavailable,
                    "the sentinels say that another server is the primary",
                ));
            }
            Push::Unasked => return Err(unasked()),
            Push::Closed => return Err(closed()),
        }
        Ok(())
    }

    /// Ends the commands of the oldest call with their replies.
    fn deliver(
        &self,
        values: Vec<Value>,
        link: &mut Link,
        in_flight: &mut InFlight<'_>,
        confirming: &mut Confirming<'_>,
        passed_on: &mut PassedOn,
        events: &impl Events,
    ) -> Result<(), Undelivered> {
        let Some(call) = in_flight.calls.front() else {
            return Err(Undelivered::OfNoUse(unexpected()));
        };
        let commands = call.commands.iter().map(Pending::sent);
        let replies = commands::replies(&self.settings, &call.server, commands, values)?;
        link.observed.reply_to(call.sent_at);
        let ready = || link.refuses().map_or(Ok(()), Err);
        self.pings.answer(call.sent_at, ready);
        if let Some(error) = replies.no_tracking {
            self.told.no_tracking(&self.address.display(), &error);
            Arc::make_mut(&mut link.server).watches = false;
        }
        if replies.found_too_much {
            Arc::make_mut(&mut link.server).takes_with_get = false;
        }
        if let Some(redirected) = self.redirected.as_ref().filter(|_| replies.slots_moved) {
            redirected.notify();
        }
        let InFlightCall {
            sent_at, commands, ..
        } = in_flight.pop();
        let mut of_no_use = Ok(());
        let now = Time::now();
        for (mut pending, said) in commands.into_iter().zip(replies.said) {
            if let Some(redirected) = &self.redirected
                && let Some(redirect) = said.redirect
            {
                match pending.redirect(sent_at, redirect) {
                    true => redirected.go_on(pending),
                    false => redirected.put(pending),
                }
                continue;
            }
            if let Err(Failure { error, .. }) = &said.result
                && said.is_of_no_use
            {
                of_no_use = Err(Undelivered::OfNoUse(error.clone()));
            }
            if said.is_to_be_granted {
                pending.grant_next();
                self.put_back(vec![pending]);
                continue;
            }
            let is_refused_end = said.result.is_err() && pending.ends_hold();
            if is_refused_end && !pending.is_over(now, self.settings.ttl, events) {
                in_flight.keep(pending);
                continue;
            }
            if let Command::Release { token, .. } = pending.command
                && matches!(said.result, Ok(Reply::Released { granted: true, .. }))
            {
                let expires = now + self.settings.grant_ttl + Duration::from_millis(1);
                passed_on.insert(pending.key.clone(), token, expires);
            }
            let Said {
                result, is_changed, ..
            } = said;
            let changed = is_changed.then(|| pending.key.clone());
            let result = match result {
                Ok(reply) if !link.server.watches => Ok(unwatched(reply)),
                Ok(reply) => Ok(reply),
                // An earlier attempt may have got the token something.
                Err(Failure { error, unknown }) => {
                    let unknown = unknown || pending.may_have_been_carried_out_before();
                    Err(Failure { error, unknown })
                }
            };
            match result {
                Ok(reply @ Reply::Acquired { .. }) if self.settings.min_replicas > 0 => {
                    confirming.add(sent_at, pending, reply);
                }
                result => pending.finish(sent_at, result, events),
            }
            if let Some(key) = changed {
                events.notice(&key, Notice::Changed);
            }
        }
        of_no_use
    }
}

/// Why replies have not been handed out.
enum Undelivered {
    /// All is to be sent again, with the scripts.
    NoScript,
    /// The connection is of no use.
    OfNoUse(Error),
}

impl From<Unusable> for Undelivered {
    fn from(unusable: Unusable) -> Self {
        match unusable {
            Unusable::NoScript => Self::NoScript,
            Unusable::LostData => Self::OfNoUse(Error::new(
                ErrorKind::Unavailable,
                "Redis lost data, or another server took over",
            )),
            Unusable::Unexpected => Self::OfNoUse(unexpected()),
        }
    }
}

/// Fails the acquires, if no lock may be given now. Returns what is to be sent.
fn refuse_acquires(link: &mut Link, commands: Vec<Pending>, events: &impl Events) -> Vec<Pending> {
    let now = Time::now();
    let Some(error) = link.refuses() else {
        return commands;
    };
    let is_acquire = |pending: &Pending| matches!(pending.command, Command::Acquire { .. });
    let (acquires, others): (Vec<_>, Vec<_>) = commands.into_iter().partition(is_acquire);
    for pending in acquires {
        let unknown = pending.may_have_been_carried_out_before();
        let error = error.clone();
        pending.finish(now, Err(Failure { error, unknown }), events);
    }
    others
}

/// Returns a release that gives a lock that is free to the next in the queue. No caller waits for
/// it.
pub(super) fn regrant(token: u64) -> Command {
    Command::Release {
        token,
        contended: true,
        queued: true,
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

fn unasked() -> Error {
    Error::new(
        ErrorKind::Unavailable,
        "Redis ended a subscription unasked, so its replies cannot be told apart",
    )
}

fn unexpected() -> Error {
    Error::new(
        ErrorKind::Unavailable,
        "Redis replied in an unexpected form",
    )
}
