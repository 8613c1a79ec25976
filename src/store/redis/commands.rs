//! How commands are put to Redis, and what its replies mean.
//!
//! A take of a lock, and a check, are commands of Redis. The others are [scripts] for one lock
//! each. All that is queued goes out in one write, and each command has replies of its own.
//!
//! # Fences
//!
//! A take gets its fence from an `INCRBY` behind all takes of its write, which is one for all that
//! are about the same slot. A script draws a fence by itself, when it gives the lock to its own
//! token or to the next in the queue. So a token that only queues draws none, and whoever is
//! granted the lock has its fence without another command.
//!
//! A fence is larger than all before it, and follows the clock of its server (see
//! [`Ahead`]): a seed raises the counter ahead of takes, and a script raises it when it draws. In
//! either case, a fence that is not above what the counter had when the connection was made says
//! that the server lost its data. A script lets a counter that was lost go on from the clock, as
//! a seed does.

use std::time::Duration;

use redis::{Cmd, Pipeline, RedisError, RedisWrite, Value};
use smallvec::SmallVec;

use super::Settings;
use super::moving::{Moving, Redirect, ToldAddress};
use super::names::{Names, lock_name, queue_name, readers_name};
use super::scripts::{self, Script};
use crate::error::{Error, ErrorKind};
use crate::key::{Kind, LockKey};
use crate::mode::Mode;
use crate::store::{Command, Failure, Reply};

/// More bytes than the longest token has, with its mark.
pub(super) const MAX_TOKEN: usize = 64;
/// No record that stands in a lock's place has more bytes.
const MAX_VALUE: usize = 16 << 10;
/// Lua's numbers are exact up to here.
pub(super) const MAX_FENCE: u64 = 1 << 53;
/// Stands behind the token of a lock that processes wait for.
pub(super) const MARK: u8 = b'!';
/// What a lock says that several share.
const SHARED: &[u8] = b"shared";

/// What a connection has found out about its server.
#[derive(Clone, Debug)]
pub(super) struct Server {
    /// Whether to take with `SET … NX GET`: if the server knows that, as it does from Redis 7.0 on,
    /// and until a lock's name has turned out to hold more than any of this crate's values, which
    /// is not to come as a whole every time.
    pub(super) takes_with_get: bool,
    /// Whether the server tells when another client changes what was read.
    pub(super) watches: bool,
    /// A number that the counter of fences has had. A lower one says that the server lost its data.
    pub(super) seed: u64,
    /// The epoch, where quarantine is on. Another one says the same.
    pub(super) epoch: Option<Epoch>,
    /// Whether locks may be given.
    pub(super) may_give: bool,
}

impl Server {
    /// Reads the last of so many fences.
    fn fence(&self, last: i64, count: u64) -> Result<u64, Unusable> {
        match u64::try_from(last) {
            Ok(last) if last > MAX_FENCE => Err(Unusable::Unexpected),
            Ok(last) if last >= self.seed + count => Ok(last),
            _ => Err(Unusable::LostData),
        }
    }
}

/// Which server has the data, and since when it may give locks, as it stands in Redis.
#[derive(Clone, Debug)]
pub(super) struct Epoch {
    /// Where the server's [`Home`](super::names::Home) was when the epoch was named.
    pub(super) home: u16,
    pub(super) name: String,
    pub(super) value: Vec<u8>,
}

/// A command that is put to Redis.
#[derive(Clone, Copy)]
pub(super) struct Sent<'a> {
    pub(super) key: &'a LockKey,
    pub(super) command: &'a Command,
    /// Whether it was sent before.
    pub(super) is_repeated: bool,
    /// Where it stands, if its slot is on its way to another server of a cluster.
    pub(super) moving: Option<&'a Moving>,
}

/// How it is put to Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Take,
    Acquire,
    Share,
    Release,
    Grant,
    Renew,
    RenewShared,
    Complete,
    Check,
    /// The lock is the token's: only a fence is drawn.
    Fence,
}

impl Sent<'_> {
    fn way(&self) -> Way {
        match self.command {
            Command::Acquire { .. } if self.moving.is_some_and(|moving| moving.taken.is_some()) => {
                Way::Fence
            }
            Command::Acquire {
                mode: Mode::Shared, ..
            } => Way::Share,
            // A token that Redis has not seen, and that does not wait.
            Command::Acquire {
                queue: false,
                again: false,
                watch: false,
                ..
            } if !self.is_repeated => Way::Take,
            Command::Acquire { .. } => Way::Acquire,
            Command::Release {
                contended: false,
                queued: false,
                ..
            } => Way::Release,
            Command::Release { .. } => Way::Grant,
            Command::Renew {
                mode: Mode::Shared, ..
            } => Way::RenewShared,
            Command::Renew { .. } => Way::Renew,
            Command::Complete { .. } => Way::Complete,
            Command::Check { .. } => Way::Check,
        }
    }

    /// Returns whether it may get the token its lock.
    fn takes(&self) -> bool {
        matches!(
            self.way(),
            Way::Take | Way::Acquire | Way::Share | Way::Fence
        )
    }

    /// Returns whether it goes to the server to which its slot is on its way.
    pub(super) fn is_asking(&self) -> bool {
        self.moving.is_some_and(|moving| moving.to.is_some())
    }

    /// Returns whether a fence is drawn behind it: for a take, unless the lock is at the server to
    /// which the slot is on its way, and the counter of fences is not.
    pub(super) fn draws_fence(&self) -> bool {
        let is_there = || self.moving.is_some_and(|moving| moving.fence_left);
        matches!(self.way(), Way::Take | Way::Fence) && (!self.is_asking() || is_there())
    }

    /// Returns whether its script may draw a fence, for this token or for the next in the queue.
    pub(super) fn may_draw_fence(&self) -> bool {
        matches!(self.way(), Way::Acquire | Way::Share | Way::Grant)
    }

    /// Returns whether another process is known to wait for the lock that it releases.
    fn gives_way(&self) -> bool {
        matches!(
            self.command,
            Command::Release {
                contended: true,
                ..
            }
        )
    }

    /// Returns whether it may go to the server to which its slot is on its way.
    fn may_ask(&self, settings: &Settings) -> bool {
        match self.way() {
            // Replicas are counted at the slot's primary.
            Way::Take | Way::Fence => settings.min_replicas == 0,
            Way::Release | Way::Renew | Way::RenewShared | Way::Check => true,
            Way::Acquire | Way::Share | Way::Grant | Way::Complete => false,
        }
    }

    /// Returns whether Redis tracks what is read behind it. Redis forgets between two commands
    /// that the next one is `ASKING` if that is not the next one.
    fn is_watched(&self, server: &Server) -> bool {
        server.watches && !self.is_asking()
    }

    fn may_queue(&self) -> bool {
        matches!(self.command, Command::Acquire { queue: true, .. })
    }

    fn token(&self) -> u64 {
        let (Command::Acquire { token, .. }
        | Command::Release { token, .. }
        | Command::Complete { token, .. }
        | Command::Renew { token, .. }
        | Command::Check { token }) = self.command;
        *token
    }

    /// What Redis is to track, to tell when another client changes it.
    fn tracked_read(&self, lock: &str) -> Option<Cmd> {
        match self.command {
            // Empty is not absent.
            Command::Acquire { watch: true, .. } => Some(words(&["EXISTS", lock])),
            Command::Renew {
                mode: Mode::Exclusive,
                ..
            }
            | Command::Check { .. } => {
                let mut read = words(&["GETRANGE", lock]);
                read.arg(0).arg(MAX_TOKEN);
                Some(read)
            }
            _ => None,
        }
    }
}

/// Whether Redis is to find scripts by their hashes, or gets them again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scripts {
    ByHash,
    BySource,
}

/// Raises the counter of fences of a slot to the clock, for takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seed {
    pub(super) slot: u16,
    /// See [`Sent::is_asking`].
    pub(super) is_asking: bool,
}

/// What goes ahead of the commands of a call, and along with them.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    pub(super) seeds: SmallVec<[Seed; 4]>,
    /// The slots whose counters are to be raised to the clock by scripts that draw a fence.
    pub(super) behind: SmallVec<[u16; 4]>,
    /// Whether the epoch is written under its name, which is a new one.
    pub(super) moves_epoch: bool,
}

/// One write.
pub(super) struct Call {
    pub(super) pipeline: Pipeline,
    /// How many of its replies, at the front, say nothing.
    pub(super) skipped: usize,
    /// How many come behind those.
    pub(super) replies: usize,
}

impl Call {
    fn skip(&mut self, command: Cmd) {
        self.pipeline.add_command(command);
        self.skipped += 1;
    }

    fn add(&mut self, command: Cmd) {
        self.pipeline.add_command(command);
        self.replies += 1;
    }

    /// Adds a command, behind `ASKING` if it goes to a server to which its slot is on its way.
    fn ask(&mut self, is_asking: bool, command: Cmd) {
        if is_asking {
            self.add(words(&["ASKING"]));
        }
        self.add(command);
    }
}

/// Puts commands to Redis, in order. Without any, it looks whether the server is there.
pub(super) fn call<'a>(
    settings: &Settings,
    server: &Server,
    commands: impl Iterator<Item = Sent<'a>> + Clone,
    how: Scripts,
    ahead: &Ahead,
) -> Call {
    let names = &settings.names;
    let blocks = blocks(names, commands.clone());
    let takes = commands.clone().any(|sent| sent.takes());
    let count = commands.size_hint().0 + ahead.seeds.len() + blocks.len();
    let mut call = Call {
        pipeline: Pipeline::with_capacity(count),
        skipped: 0,
        replies: 0,
    };
    // Redis writes first to the client to which it had something to say last. A PING, or any other
    // command, ahead of a grant lets the new holder hear of it before this process gets its reply,
    // for which no request waits (measured: a fifth less hand-off latency).
    let leads = ahead.seeds.is_empty() && !ahead.moves_epoch;
    let first = commands.clone().next();
    if leads && first.is_some_and(|sent| sent.gives_way()) {
        call.pipeline.cmd("PING");
        call.skipped = 1;
    }
    // A fence follows the clock, so that it is lower than those of another server that takes over.
    for seed in &ahead.seeds {
        if seed.is_asking {
            call.skip(words(&["ASKING"]));
        }
        let seed = ["EVAL", scripts::SEED.source, "1", &names.fence(seed.slot)];
        call.skip(words(&seed));
    }
    if let Some(epoch) = server.epoch.as_ref().filter(|_| ahead.moves_epoch) {
        let mut write = words(&["SET", epoch.name.as_str()]);
        write.arg(&epoch.value).arg("NX");
        call.skip(write);
    }
    for sent in commands {
        let lock = lock_name(&names.prefix, sent.key);
        let read = sent.tracked_read(&lock);
        add(&mut call, settings, server, sent, &lock, how, ahead);
        if let Some(read) = read.filter(|_| sent.is_watched(server)) {
            call.add(words(&["CLIENT", "CACHING", "YES"]));
            call.add(read);
        }
    }
    for block in &blocks {
        let mut fence = words(&["INCRBY", &names.fence(block.slot)]);
        fence.arg(block.takes);
        call.ask(block.is_asking, fence);
    }
    match &server.epoch {
        Some(epoch) if takes || call.replies == 0 => {
            call.add(words(&["GET", epoch.name.as_str()]));
        }
        _ if call.replies == 0 => call.add(words(&["PING"])),
        _ => {}
    }
    call
}

/// Fences for the takes of one call that are about one slot. A script draws its own.
struct Block {
    slot: u16,
    /// See [`Sent::is_asking`].
    is_asking: bool,
    takes: u64,
    /// How many of these got their lock.
    given: u64,
    /// The last fence of the block.
    last: Result<u64, RedisError>,
}

/// Returns the blocks of fences that a call takes: most often one.
fn blocks<'a>(names: &Names, commands: impl Iterator<Item = Sent<'a>>) -> SmallVec<[Block; 1]> {
    let mut blocks = SmallVec::<[Block; 1]>::new();
    for sent in commands.filter(Sent::draws_fence) {
        let slot = names.slot(sent.key);
        match blocks.iter_mut().find(|block| block.slot == slot) {
            Some(block) => {
                block.takes += 1;
                block.is_asking |= sent.is_asking();
            }
            None => blocks.push(Block {
                slot,
                is_asking: sent.is_asking(),
                takes: 1,
                given: 0,
                last: Ok(0),
            }),
        }
    }
    blocks
}

/// Has room for most commands, so that they are written without allocating on the way.
fn command() -> Cmd {
    Cmd::with_capacity(12, 256)
}

fn words(words: &[&str]) -> Cmd {
    let mut command = command();
    command.arg(words);
    command
}

fn add(
    call: &mut Call,
    settings: &Settings,
    server: &Server,
    sent: Sent<'_>,
    lock: &str,
    scripts: Scripts,
    ahead: &Ahead,
) {
    let token = settings.names.token(sent.token());
    let ttl = settings.ttl.as_millis() as u64;
    // The counter of fences, and the floor: a script that draws a fence which is not above that
    // lets the counter go on from the clock.
    let counter = || {
        let slot = settings.names.slot(sent.key);
        let floor = match ahead.behind.contains(&slot) {
            true => MAX_FENCE,
            false => server.seed,
        };
        (settings.names.fence(slot), floor)
    };
    let script = |script: &Script, keys: &[&str]| {
        let mut command = command();
        match scripts {
            Scripts::ByHash => command.arg("EVALSHA").arg(script.hash()),
            Scripts::BySource => command.arg("EVAL").arg(script.source),
        };
        command.arg(keys.len()).arg(keys).write_arg_fmt(&token);
        command
    };
    let command = match sent.way() {
        Way::Take => {
            let mut take = words(&["SET", lock]);
            take.write_arg_fmt(&token);
            take.arg("NX");
            if server.takes_with_get {
                take.arg("GET").arg("PX").arg(ttl);
                take
            } else {
                take.arg("PX").arg(ttl);
                call.ask(sent.is_asking(), take);
                let mut read = words(&["GETRANGE", lock]);
                read.arg(0).arg(MAX_VALUE);
                read
            }
        }
        Way::Acquire => {
            let may_be_record = sent.key.kind() == Kind::Record;
            let (fence, floor) = counter();
            let keys = [lock, &queue_name(lock), &readers_name(lock), &fence];
            let mut acquire = script(&scripts::ACQUIRE, &keys);
            acquire.arg(ttl).arg(&settings.names.inboxes).arg(floor);
            acquire
                .arg(u8::from(sent.may_queue()))
                .arg(u8::from(may_be_record));
            acquire
        }
        Way::Share => {
            let (fence, floor) = counter();
            let keys = [lock, &queue_name(lock), &readers_name(lock), &fence];
            let mut share = script(&scripts::SHARE, &keys);
            share.arg(ttl).arg(&settings.names.inboxes).arg(floor);
            share.arg(u8::from(sent.may_queue()));
            share
        }
        Way::Release => script(&scripts::RELEASE, &[lock]),
        Way::Grant => {
            let (fence, floor) = counter();
            let keys = [lock, &queue_name(lock), &fence, &readers_name(lock)];
            let mut grant = script(&scripts::GRANT, &keys);
            grant.arg(settings.grant_ttl.as_millis() as u64);
            grant.arg(&settings.names.inboxes);
            grant.arg(floor).arg(u8::from(server.may_give));
            grant
        }
        Way::Renew => {
            let mut renew = script(&scripts::RENEW, &[lock]);
            renew.arg(ttl);
            renew
        }
        Way::RenewShared => {
            let mut renew = script(&scripts::RENEW_SHARED, &[lock, &readers_name(lock)]);
            renew.arg(ttl);
            renew
        }
        Way::Complete => {
            let mut complete = script(&scripts::COMPLETE, &[lock, &queue_name(lock)]);
            if let Command::Complete { record, .. } = sent.command {
                complete.arg(&record.content[..]);
                complete.arg(record.retention.as_millis() as u64);
            }
            complete.arg(&settings.names.inboxes);
            complete
        }
        // The fence is drawn behind all commands.
        Way::Fence => return,
        // Its read is the reply.
        Way::Check if sent.is_watched(server) => return,
        Way::Check => {
            let mut read = words(&["GETRANGE", lock]);
            read.arg(0).arg(MAX_TOKEN);
            read
        }
    };
    call.ask(sent.is_asking(), command);
}

/// What Redis says to one command.
pub(super) struct Said {
    pub(super) result: Result<Reply, Failure>,
    /// The lock that was to be released is the token's still: processes wait for it.
    pub(super) is_to_be_granted: bool,
    /// Another client has changed the lock behind the command.
    pub(super) is_changed: bool,
    /// The connection is of no use for what the server says.
    pub(super) is_of_no_use: bool,
    /// What this server of a cluster does not do, as it does not have the slot, or not now.
    pub(super) redirect: Option<Redirect>,
}

/// What Redis says to a call.
pub(super) struct Replies {
    /// Whether a take has found more than any of this crate's values.
    pub(super) found_too_much: bool,
    /// To each of the commands, in order.
    pub(super) said: Vec<Said>,
    /// Whether a slot of this server of a cluster, that of the epoch, was found to be elsewhere.
    pub(super) slots_moved: bool,
    /// Why the server does not track what is read.
    pub(super) no_tracking: Option<RedisError>,
}

/// Why replies cannot be used.
#[derive(Debug)]
pub(super) enum Unusable {
    /// Redis does not know a script. All commands may be sent again.
    NoScript,
    /// The server has lost its data, or another one has taken its place. Nothing that it gave
    /// counts.
    LostData,
    /// They are none that Redis documents.
    Unexpected,
}

/// Reads the replies to a call.
pub(super) fn replies<'a>(
    settings: &Settings,
    server: &Server,
    commands: impl Iterator<Item = Sent<'a>> + Clone,
    values: Vec<Value>,
) -> Result<Replies, Unusable> {
    let values: Vec<_> = values.into_iter().map(Value::extract_error).collect();
    let is_unknown = |error: &RedisError| error.code() == Some("NOSCRIPT");
    if values
        .iter()
        .any(|value| value.as_ref().is_err_and(is_unknown))
    {
        return Err(Unusable::NoScript);
    }
    let mut reader = Reader {
        values: values.into_iter(),
        no_tracking: None,
        found_too_much: false,
    };
    let mut slots_moved = false;
    let mut said = Vec::with_capacity(commands.size_hint().0);
    for sent in commands.clone() {
        said.push(reader.read(settings, server, sent)?);
    }
    let mut blocks = blocks(&settings.names, commands.clone());
    for block in &mut blocks {
        block.last = match reader.next_of(block.is_asking)? {
            Ok(Value::Int(last)) => Ok(server.fence(last, block.takes)?),
            Ok(_) => return Err(Unusable::Unexpected),
            Err(error) => Err(error),
        };
    }
    let takes = commands.clone().any(|sent| sent.takes());
    if server.epoch.is_some() && (takes || said.is_empty()) {
        match (reader.next()?, &server.epoch) {
            (Ok(Value::BulkString(epoch)), Some(known)) if epoch == known.value => {}
            // Its slot is another server's now. This one has its data still.
            (Err(error), _) if matches!(code(&error), Some("MOVED" | "ASK")) => slots_moved = true,
            _ => return Err(Unusable::LostData),
        }
    } else if said.is_empty() {
        let _ = reader.next()?;
    }
    // A block of fences is shared out among those takes that got their lock, in order.
    for (sent, taken) in commands.zip(&mut said) {
        if sent.may_draw_fence() {
            continue;
        }
        let slot = settings.names.slot(sent.key);
        let block = blocks.iter_mut().find(|block| block.slot == slot);
        match (&mut taken.result, &mut taken.redirect, block) {
            (Ok(Reply::Acquired { contended, .. }), ..) if !sent.draws_fence() => {
                *taken = without_fence(*contended, None);
            }
            (Ok(Reply::Acquired { fence, contended }), _, Some(block)) => {
                match &block.last {
                    Ok(last) => *fence = last - block.takes + 1 + block.given,
                    Err(error) => *taken = fence_failed(settings, sent, *contended, error),
                }
                block.given += 1;
            }
            (Ok(Reply::Acquired { .. }), _, None) => return Err(Unusable::Unexpected),
            (_, Some(Redirect::Ask { fence_left, .. }), Some(block)) => {
                let error = block.last.as_ref().err();
                *fence_left = error.is_some_and(|error| code(error) == Some("ASK"));
            }
            _ => {}
        }
    }
    match reader.values.next() {
        None => Ok(Replies {
            said,
            slots_moved,
            no_tracking: reader.no_tracking,
            found_too_much: reader.found_too_much,
        }),
        Some(_) => Err(Unusable::Unexpected),
    }
}

struct Reader {
    values: std::vec::IntoIter<Result<Value, RedisError>>,
    no_tracking: Option<RedisError>,
    found_too_much: bool,
}

impl Reader {
    fn next(&mut self) -> Result<Result<Value, RedisError>, Unusable> {
        self.values.next().ok_or(Unusable::Unexpected)
    }

    /// Reads the reply to a command that was [asked](Call::ask).
    fn next_of(&mut self, is_asking: bool) -> Result<Result<Value, RedisError>, Unusable> {
        if is_asking {
            // If that was refused, so is what is behind it.
            let _ = self.next()?;
        }
        self.next()
    }

    fn read(
        &mut self,
        settings: &Settings,
        server: &Server,
        sent: Sent<'_>,
    ) -> Result<Said, Unusable> {
        let mut said = match sent.way() {
            Way::Check if sent.is_watched(server) => said(Reply::Intact),
            Way::Fence => said(acquired(
                sent.moving
                    .and_then(|moving| moving.taken)
                    .is_some_and(|taken| taken.contended),
            )),
            Way::Take => self.take(server, sent)?,
            way => match self.next_of(sent.is_asking())? {
                Ok(Value::Array(drawn)) if sent.takes() => match drawn[..] {
                    [Value::Int(fence), Value::Int(waiting @ (0 | 1))] => said(Reply::Acquired {
                        fence: server.fence(fence, 1)?,
                        contended: waiting == 1,
                    }),
                    _ => return Err(Unusable::Unexpected),
                },
                Ok(value) => read(settings, way, sent, value).ok_or(Unusable::Unexpected)?,
                // Something may have been done before the error.
                Err(error) => {
                    let takes = matches!(way, Way::Acquire | Way::Share);
                    let unknown = takes && !is_refused_whole(&error);
                    failed(error, unknown)
                }
            },
        };
        if sent.is_watched(server) && sent.tracked_read("").is_some() {
            self.tracked(settings, sent, &mut said)?;
        }
        if !sent.may_ask(settings)
            && let Some(redirect @ Redirect::Ask { .. }) = &mut said.redirect
        {
            *redirect = Redirect::Later;
        }
        Ok(said)
    }

    fn take(&mut self, server: &Server, sent: Sent<'_>) -> Result<Said, Unusable> {
        let is_asking = sent.is_asking();
        let taken = self.next_of(is_asking)?;
        let found = match server.takes_with_get {
            true => taken,
            false => match (taken, self.next_of(is_asking)?) {
                (Ok(Value::Okay), _) => Ok(Value::Nil),
                // The holder released the lock in between.
                (Ok(Value::Nil), Ok(Value::BulkString(value))) if value.is_empty() => {
                    return Ok(said(Reply::HeldElsewhere {
                        remaining: None,
                        foreign: false,
                    }));
                }
                (Ok(Value::Nil), found) => found,
                (Ok(_), _) => return Err(Unusable::Unexpected),
                (Err(error), _) => Err(error),
            },
        };
        Ok(match found {
            Ok(Value::Nil) => said(acquired(false)),
            Ok(Value::BulkString(value)) => {
                self.found_too_much |= value.len() > MAX_VALUE;
                said(found_held(sent.key, value))
            }
            Ok(_) => return Err(Unusable::Unexpected),
            Err(error) => failed(error, false),
        })
    }

    /// Reads what was read behind a command, for Redis to track it.
    fn tracked(
        &mut self,
        settings: &Settings,
        sent: Sent<'_>,
        said: &mut Said,
    ) -> Result<(), Unusable> {
        let (caching, read) = (self.next()?, self.next()?);
        if let Err(error) = caching {
            self.no_tracking.get_or_insert(error);
        }
        let is_check = matches!(sent.command, Command::Check { .. });
        let read = match read {
            Ok(read) => read,
            // Nothing was read: that the lock is gone is not known.
            Err(error) if is_check && error.code() != Some("WRONGTYPE") => {
                *said = failed(error, false);
                return Ok(());
            }
            // A value of another type is none that was left there.
            Err(_) => Value::Nil,
        };
        let is_ours = || matches!(&read, Value::BulkString(value) if is_token(value, &settings.names.token(sent.token()).to_string()));
        match (sent.command, &said.result) {
            (Command::Check { .. }, _) if !is_ours() => said.result = Ok(Reply::Gone),
            (Command::Renew { .. }, Ok(Reply::Renewed { .. })) => said.is_changed = !is_ours(),
            (Command::Acquire { .. }, Ok(Reply::HeldElsewhere { .. })) => {
                said.is_changed = read == Value::Int(0);
            }
            _ => {}
        }
        Ok(())
    }
}

/// Whether a lock's value is this token, with its mark or without.
fn is_token(value: &[u8], token: &str) -> bool {
    value.strip_suffix(&[MARK]).unwrap_or(value) == token.as_bytes()
}

fn read(settings: &Settings, way: Way, sent: Sent<'_>, value: Value) -> Option<Said> {
    let number = match value {
        Value::Int(number) => number,
        Value::BulkString(value) if way == Way::Check => {
            let is_ours = is_token(&value, &settings.names.token(sent.token()).to_string());
            return Some(said(if is_ours { Reply::Intact } else { Reply::Gone }));
        }
        Value::BulkString(record) if way == Way::Acquire && sent.key.kind() == Kind::Record => {
            return Some(said(Reply::Recorded(record.into())));
        }
        _ => return None,
    };
    Some(said(match (way, number) {
        (Way::Acquire | Way::Share, ..=-3) => {
            let number = number.unsigned_abs();
            Reply::HeldElsewhere {
                remaining: ((number - 1) / 2).checked_sub(2).map(Duration::from_millis),
                foreign: number.is_multiple_of(2),
            }
        }
        (Way::Release, 3) => {
            let mut said = said(released(true, false));
            said.is_to_be_granted = true;
            return Some(said);
        }
        (Way::Release, 1 | 2) => released(number == 2, false),
        (Way::Grant, 1..=4) => released(number % 2 == 0, number > 2),
        (Way::Renew | Way::RenewShared | Way::Complete, 1) => Reply::Gone,
        (Way::Renew | Way::RenewShared, 2 | 3) => Reply::Renewed {
            contended: number == 3,
        },
        (Way::Complete, 2) => Reply::Completed,
        _ => return None,
    }))
}

/// What a take is told. Its fence comes at the end of the call.
fn acquired(contended: bool) -> Reply {
    Reply::Acquired {
        fence: 0,
        contended,
    }
}

fn released(had_it: bool, granted: bool) -> Reply {
    Reply::Released { had_it, granted }
}

/// What a take found in the lock's place.
fn found_held(key: &LockKey, value: Vec<u8>) -> Reply {
    let foreign = !is_shared(key, &value) && token_of(&value).is_none();
    match key.kind() {
        Kind::Record if foreign => Reply::Recorded(value.into()),
        _ => Reply::HeldElsewhere {
            remaining: None,
            foreign,
        },
    }
}

/// A token of this crate: a process's id, a colon, and a number.
#[derive(Clone, Copy)]
pub(super) struct Token<'a> {
    pub(super) process: &'a str,
    pub(super) number: &'a str,
    /// All of it, without the mark.
    pub(super) unmarked: &'a str,
    pub(super) is_marked: bool,
}

/// Reads a lock's value as a token of this crate. `None`: it is none.
pub(super) fn token_of(value: &[u8]) -> Option<Token<'_>> {
    let value = std::str::from_utf8(value).ok()?;
    let unmarked = value.strip_suffix(char::from(MARK)).unwrap_or(value);
    let (process, rest) = unmarked.split_at_checked(32)?;
    let number = rest.strip_prefix(':')?;
    let is_token = process.bytes().all(|byte| byte.is_ascii_hexdigit())
        && !number.is_empty()
        && number.bytes().all(|byte| byte.is_ascii_digit());
    is_token.then_some(Token {
        process,
        number,
        unmarked,
        is_marked: unmarked.len() < value.len(),
    })
}

/// Returns whether this value of a lock says that several share it.
pub(super) fn is_shared(key: &LockKey, value: &[u8]) -> bool {
    let unmarked = value.strip_suffix(&[MARK]).unwrap_or(value);
    key.kind() == Kind::Lock && unmarked == SHARED
}

fn said(reply: Reply) -> Said {
    Said {
        result: Ok(reply),
        is_to_be_granted: false,
        is_changed: false,
        is_of_no_use: false,
        redirect: None,
    }
}

/// What is said to a take that got its lock, and is to draw its fence at that server, or at the
/// slot's primary.
fn without_fence(contended: bool, at: Option<ToldAddress>) -> Said {
    let (error, unknown) = (Error::of(ErrorKind::Unavailable), true);
    Said {
        result: Err(Failure { error, unknown }),
        redirect: Some(Redirect::Fence { contended, at }),
        ..said(acquired(contended))
    }
}

/// What is said to a take that got its lock, and whose fence failed.
fn fence_failed(settings: &Settings, sent: Sent<'_>, contended: bool, error: &RedisError) -> Said {
    let asked = ToldAddress::asked(error).filter(|_| settings.min_replicas == 0);
    match asked {
        Some(at) if !sent.is_asking() => without_fence(contended, Some(at)),
        // The lock was taken elsewhere, or before: nothing is known against it.
        _ if sent.way() == Way::Fence => Said {
            redirect: is_elsewhere(error).then_some(Redirect::Later),
            ..failed(error.clone(), true)
        },
        _ => failed(error.clone(), true),
    }
}

/// Returns whether a script did nothing before its error.
fn is_refused_whole(error: &RedisError) -> bool {
    matches!(
        code(error),
        Some("READONLY" | "MOVED" | "ASK" | "TRYAGAIN" | "CLUSTERDOWN")
    )
}

fn failed(error: RedisError, unknown: bool) -> Said {
    // What holds for the connection, or for the server behind it, and not for a command.
    let is_of_no_use = matches!(
        code(&error),
        Some("READONLY" | "LOADING" | "MASTERDOWN" | "NOAUTH" | "NOPERM" | "CLUSTERDOWN" | "MOVED")
    );
    let redirect = match ToldAddress::asked(&error) {
        Some(to) => Some(Redirect::Ask {
            to,
            fence_left: false,
        }),
        None => is_elsewhere(&error).then_some(Redirect::Later),
    };
    let error = refused(error);
    Said {
        result: Err(Failure { error, unknown }),
        is_to_be_granted: false,
        is_changed: false,
        is_of_no_use,
        redirect: redirect.filter(|_| !unknown),
    }
}

/// Returns whether this server of a cluster does not have the slot, or not now.
fn is_elsewhere(error: &RedisError) -> bool {
    matches!(
        code(error),
        Some("MOVED" | "ASK" | "TRYAGAIN" | "CLUSTERDOWN")
    )
}

/// Returns the code of an error. Redis 6 puts an error within a script into the text of another
/// one: `ERR Error running script (…): @user_script:1: @user_script: 1: -READONLY You can't …`.
pub(super) fn code(error: &RedisError) -> Option<&str> {
    let within_script = error.detail().and_then(|detail| {
        let (_, within) = detail
            .strip_prefix("Error running script ")?
            .split_once(": -")?;
        within.split(' ').next()
    });
    within_script.or(error.code())
}

pub(super) fn refused(error: RedisError) -> Error {
    let message = match (error.code(), error.detail()) {
        (Some(code), Some(detail)) => format!("Redis refused: {code} {detail}"),
        _ => format!("Redis refused: {error}"),
    };
    Error::caused_by(ErrorKind::Unavailable, message, error)
}

#[cfg(any(fuzzing, all(test, feature = "properties")))]
pub(super) mod fits;

#[cfg(all(test, feature = "properties"))]
mod properties;

#[cfg(test)]
pub(super) mod tests;
