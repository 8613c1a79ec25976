//! One Redis server as the crate's commands and scripts see it, for one key: a plain value, without
//! I/O and without a clock.
//!
//! Each operation is one command of Redis, or one of the scripts in `src/store/redis/scripts`. It
//! takes the steps of the script in the same order, so that it also stops at the same place when a
//! key has a wrong type.

#![allow(
    dead_code,
    unreachable_pub,
    missing_debug_implementations,
    missing_docs
)]

/// A process that is the store's client, by its number.
pub type Process = u8;

/// A record that may take the place of a lock, by its number.
pub type Record = u8;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Token {
    Ours {
        process: Process,
        number: u64,
    },
    /// One of ours that waits to share the lock: it is in the queue like this.
    Reader {
        process: Process,
        number: u64,
    },
    /// What a lock says that several share.
    Shared,
    /// Any value that a client of another kind writes.
    Foreign,
    Record(Record),
}

/// The reply to an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reply {
    Acquired {
        /// The fence, if a script has drawn one. That of a take is [counted](Redis::count) later.
        fence: Option<u64>,
        contended: bool,
    },
    Held {
        /// A take is not told.
        remaining_ms: Option<u64>,
        foreign: bool,
    },
    Released {
        had_it: bool,
        granted: bool,
    },
    /// The lock that was to be released is the token's, and has a mark. Nothing was done.
    Marked,
    Renewed {
        contended: bool,
    },
    /// The lock is this token's.
    Intact,
    /// This record is in the lock's place, and no token of ours.
    Recorded(Token),
    Completed,
    /// The lock is not this token's.
    Gone,
    /// An error. The steps before it stay done.
    Failed,
}

/// A message that is published to a process's inbox, whether the process listens or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Message {
    Granted {
        process: Process,
        number: u64,
        fence: u64,
        /// How long it lasts.
        ttl_ms: u64,
        contended: bool,
    },
    Contended {
        process: Process,
        number: u64,
    },
    /// A record has taken the place of the lock that the token waits for.
    Completed {
        process: Process,
        number: u64,
    },
}

impl Token {
    fn is_ours(self) -> bool {
        matches!(self, Self::Ours { .. })
    }

    /// How one of ours waits to share the lock.
    fn as_reader(self) -> Self {
        match self {
            Self::Ours { process, number } => Self::Reader { process, number },
            other => other,
        }
    }
}

impl Message {
    pub fn process(self) -> Process {
        match self {
            Self::Granted { process, .. }
            | Self::Contended { process, .. }
            | Self::Completed { process, .. } => process,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Outcome {
    pub reply: Reply,
    /// In the order in which they are published.
    pub messages: Vec<Message>,
}

/// A mistake put in on purpose, to show that it is noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mutation {
    /// A release deletes a held lock, whatever its token.
    ReleaseWithoutTokenCheck,
    /// A release that may grant frees a held lock, whatever its token.
    GrantWithoutTokenCheck,
    /// A release deletes the token's lock though it has a mark.
    ReleaseOfMarked,
    /// A renewal writes the lock, whatever its token.
    RenewalRecreates,
    /// The counter of fences is not raised to the clock.
    FencesByIncrement,
    /// A script goes on with a counter that was lost, or is behind the clock.
    FencesFromLostCounter,
    /// A repeated acquire puts the token into the queue once more.
    NoQueueOnce,
    /// The first in the queue gets the lock, whether its process is alive or not.
    GrantsToTheGone,
    /// A completion puts its record in the place of a held lock, whatever its token.
    CompletionWithoutTokenCheck,
    /// The waiters in the queue are not told of a record.
    CompletionInSilence,
    /// The last acquire decides how long the queue lives.
    QueueIsShortened,
    /// A lock gets no mark when a process begins to wait for it. Its holder is told.
    NoMark,
    /// A renewal removes the mark.
    RenewalRemovesMark,
    /// A repeated acquire of a lock that is the token's removes the mark.
    RepeatRemovesMark,
    /// A lock that is granted has no mark, though others wait.
    GrantWithoutMark,
    /// A repeated acquire of a lock that is the token's does not let it last for longer.
    RepeatDoesNotRenew,
    /// A completion tells those in the queue, and removes it, only if the lock has a mark.
    CompletionTrustsTheMark,
    /// A reader joins the others though a process waits.
    ReaderPastWriter,
    /// A lock goes to a writer though readers are left.
    WriterAmongReaders,
    /// A renewal of one reader prolongs the leases of all.
    RenewalProlongsAll,
    /// Readers at the head of the queue get the lock one by one.
    ReadersOneByOne,
    /// A server that took over from another goes on with that one's epoch.
    EpochOfAnotherServer,
    /// The quarantine begins anew with every connection.
    QuarantineStartsAgain,
}

/// The settings of the process that calls. Another's may differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Times {
    /// Time to live of a lease.
    pub ttl_ms: u64,
    /// Time to live of a grant that was not taken up yet.
    pub grant_ttl_ms: u64,
}

/// What a connection knows of its server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Server {
    /// A script lets the counter of fences go on from the clock if it is not above this number: one
    /// that it has had, or a larger one, if it is to follow the clock.
    pub floor: u64,
    /// Whether locks may be given.
    pub may_give: bool,
}

/// Which server has the data, and since when it may give locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Epoch {
    pub server: u8,
    pub ends_ms: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Owner {
    pub token: Token,
    /// Whether processes wait, as the value says.
    pub is_marked: bool,
    /// `None`: never.
    pub expires_ms: Option<u64>,
}

/// Which of the keys hold something that no script can read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct WrongType {
    pub owner: bool,
    pub queue: bool,
    pub fence: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Redis {
    pub mutation: Option<Mutation>,
    pub owner: Option<Owner>,
    pub queue: Vec<Token>,
    /// Those that share the lock, and when their leases expire.
    pub readers: Vec<(Token, u64)>,
    /// When the set of readers expires as a whole. `None`: there is none.
    pub readers_expire_ms: Option<u64>,
    /// `None`: never, or there is no queue.
    pub queue_expires_ms: Option<u64>,
    /// The counter, which begins with the clock, in µs. 0: there is none.
    pub last_fence: u64,
    /// The number of this server. One that takes over has another.
    pub server: u8,
    pub epoch: Option<Epoch>,
    pub wrong_type: WrongType,
}

/// An error that ends an operation.
struct Failure;

impl Redis {
    pub fn new(mutation: Option<Mutation>) -> Self {
        Self {
            mutation,
            owner: None,
            queue: Vec::new(),
            readers: Vec::new(),
            readers_expire_ms: None,
            queue_expires_ms: None,
            last_fence: 0,
            server: 0,
            epoch: None,
            wrong_type: WrongType::default(),
        }
    }

    /// `SET NX GET PX`: takes the lock if it is free, and says otherwise who has it.
    pub fn take(
        &mut self,
        now_ms: u64,
        times: Times,
        token: Token,
        may_be_record: bool,
    ) -> Outcome {
        self.carry_out(now_ms, |redis, _| {
            let Some(owner) = redis.read_owner()? else {
                redis.set_owner(lease(token, false, now_ms + times.ttl_ms));
                return Ok(Reply::Acquired {
                    fence: None,
                    contended: false,
                });
            };
            Ok(match owner.token {
                there if may_be_record && !there.is_ours() => Reply::Recorded(there),
                Token::Ours { .. } | Token::Shared => Reply::Held {
                    remaining_ms: None,
                    foreign: false,
                },
                _ => Reply::Held {
                    remaining_ms: None,
                    foreign: true,
                },
            })
        })
    }

    /// `SET NX PX`. Returns whether it took the lock.
    pub fn take_unread(&mut self, now_ms: u64, times: Times, token: Token) -> bool {
        self.expire(now_ms);
        let is_free = self.is_free();
        if is_free {
            self.set_owner(lease(token, false, now_ms + times.ttl_ms));
        }
        is_free
    }

    /// `GETRANGE`. An error is `None`.
    pub fn read(&mut self, now_ms: u64) -> Option<Option<Owner>> {
        self.expire(now_ms);
        self.read_owner().ok()
    }

    /// Takes the lock if it is free or this token's. If it is held and the token `may_queue`, the
    /// token goes into the queue, once, and the lock gets a mark.
    pub fn acquire(
        &mut self,
        now_us: u64,
        times: Times,
        token: Token,
        server: Server,
        may_queue: bool,
        may_be_record: bool,
    ) -> Outcome {
        self.carry_out(now_us / 1000, |redis, messages| match redis.owner {
            Some(owner) if may_be_record && !owner.token.is_ours() => {
                Ok(Reply::Recorded(owner.token))
            }
            _ => redis.try_acquire(now_us, times, token, server, may_queue, messages),
        })
    }

    /// Joins those that share the lock if it is free, or shared and no process waits. Otherwise, if
    /// the token `may_queue`, it goes into the queue, once.
    pub fn share(
        &mut self,
        now_us: u64,
        times: Times,
        token: Token,
        server: Server,
        may_queue: bool,
        is_there: impl Fn(Process) -> bool,
    ) -> Outcome {
        self.carry_out(now_us / 1000, |redis, messages| {
            if redis.is_shared_and_marked() {
                redis.drop_the_gone(is_there)?;
            }
            redis.try_share(now_us, times, token, server, may_queue, messages)
        })
    }

    /// Lets a reader's lease last for a whole time to live again if it still shares the lock.
    pub fn renew_shared(&mut self, now_ms: u64, times: Times, token: Token) -> Outcome {
        self.carry_out(now_ms, |redis, _| {
            redis.try_renew_shared(now_ms, times, token)
        })
    }

    /// Deletes the lock if it is the token's and has no mark.
    pub fn release(&mut self, now_ms: u64, token: Token) -> Outcome {
        self.carry_out(now_ms, |redis, _| redis.try_release(token))
    }

    /// Gives up the lock, or the token's place in the queue. A free lock goes to the first whose
    /// process listens, if locks may be given.
    pub fn grant(
        &mut self,
        now_us: u64,
        times: Times,
        token: Token,
        server: Server,
        is_there: impl Fn(Process) -> bool,
    ) -> Outcome {
        self.carry_out(now_us / 1000, |redis, messages| {
            redis.try_grant(now_us, times, token, server, is_there, messages)
        })
    }

    /// Puts a record in the place of the lock if that is this token's, tells all in the queue, and
    /// removes the queue. A lock without a mark may have a queue, too: a take does not see those
    /// who waited for a lease that has expired.
    pub fn complete(
        &mut self,
        now_ms: u64,
        token: Token,
        record: Record,
        retention_ms: u64,
    ) -> Outcome {
        self.carry_out(now_ms, |redis, messages| {
            let record = lease(Token::Record(record), false, now_ms + retention_ms);
            redis.try_complete(token, record, messages)
        })
    }

    /// Lets the lease last for a whole time to live again if it is this token's.
    pub fn renew(&mut self, now_ms: u64, times: Times, token: Token) -> Outcome {
        self.carry_out(now_ms, |redis, _| redis.try_renew(now_ms, times, token))
    }

    /// Says whether the lock is this token's, and changes nothing.
    pub fn check(&mut self, now_ms: u64, token: Token) -> Outcome {
        self.carry_out(now_ms, |redis, _| {
            let holder = redis.read_owner()?.map(|owner| owner.token);
            Ok(match holder == Some(token) {
                true => Reply::Intact,
                false => Reply::Gone,
            })
        })
    }

    /// Raises the counter of fences to the clock. Returns what it has then. An error is `None`.
    pub fn seed(&mut self, now_us: u64) -> Option<u64> {
        if self.wrong_type.fence {
            return None;
        }
        if !self.has(Mutation::FencesByIncrement) {
            self.last_fence = self.last_fence.max(now_us);
        }
        Some(self.last_fence)
    }

    /// `INCRBY`: counts so many acquires. Returns the last of their fences. An error is `None`.
    pub fn count(&mut self, acquires: u64) -> Option<u64> {
        if self.wrong_type.fence {
            return None;
        }
        self.last_fence += acquires;
        Some(self.last_fence)
    }

    /// Says since when this server may give locks. If the epoch is another server's, or there is
    /// none, that is after a whole time to live.
    pub fn quarantine(&mut self, now_ms: u64, ttl_ms: u64) -> Epoch {
        let begins = Epoch {
            server: self.server,
            ends_ms: now_ms + ttl_ms,
        };
        let known = self.epoch.filter(|epoch| {
            let is_its_own =
                epoch.server == self.server || self.has(Mutation::EpochOfAnotherServer);
            is_its_own && !self.has(Mutation::QuarantineStartsAgain)
        });
        *self.epoch.insert(known.unwrap_or(begins))
    }

    /// Drops what has expired. Every operation begins with it. Returns whether anything has.
    pub fn expire(&mut self, now_ms: u64) -> bool {
        let is_over = |expires: Option<u64>| expires.is_some_and(|expires| expires <= now_ms);
        let is_owner_over = is_over(self.owner.and_then(|owner| owner.expires_ms));
        let is_queue_over = is_over(self.queue_expires_ms);
        if is_owner_over {
            self.owner = None;
        }
        if is_queue_over {
            self.delete_queue();
        }
        if is_over(self.readers_expire_ms) {
            self.delete_readers();
        }
        is_owner_over || is_queue_over
    }

    /// `SET NX`, with an expiry, by a client of another kind. Returns whether it got the lock.
    pub fn foreign_takes(&mut self, now_ms: u64, ttl_ms: u64) -> bool {
        self.expire(now_ms);
        let is_free = self.is_free();
        if is_free {
            self.foreign_sets(Some(now_ms + ttl_ms));
        }
        is_free
    }

    /// `SET` by a client of another kind.
    pub fn foreign_sets(&mut self, expires_ms: Option<u64>) {
        self.set_owner(Owner {
            token: Token::Foreign,
            is_marked: false,
            expires_ms,
        });
    }

    /// `RPUSH` of something that is no token of ours.
    pub fn foreign_queues(&mut self) {
        if let Ok(queue) = self.queue() {
            queue.push(Token::Foreign);
        }
    }

    /// `DEL` of the owner, or its expiry.
    pub fn delete_owner(&mut self) {
        self.owner = None;
        self.wrong_type.owner = false;
    }

    /// `DEL` of the queue, or its expiry.
    pub fn delete_queue(&mut self) {
        self.queue.clear();
        self.queue_expires_ms = None;
        self.wrong_type.queue = false;
    }

    /// `DEL` of the readers.
    pub fn delete_readers(&mut self) {
        self.readers.clear();
        self.readers_expire_ms = None;
    }

    /// The lease of a reader expires: of the first by its name.
    pub fn reader_overdue(&mut self, name: impl Fn(Token) -> String) {
        if let Some(first) = self
            .readers
            .iter_mut()
            .min_by_key(|(token, _)| name(*token))
        {
            first.1 = 1;
        }
    }

    /// `PERSIST` of the owner.
    pub fn persist_owner(&mut self) {
        if let Some(owner) = &mut self.owner {
            owner.expires_ms = None;
        }
    }

    /// `FLUSHALL`: all is lost, the counter of fences too.
    pub fn flush_all(&mut self) {
        *self = Self {
            server: self.server,
            ..Self::new(self.mutation)
        };
    }

    /// Another server takes over, or this one is started again, with its data.
    pub fn take_over(&mut self) {
        self.server += 1;
    }

    fn carry_out(
        &mut self,
        now_ms: u64,
        operation: impl FnOnce(&mut Self, &mut Vec<Message>) -> Result<Reply, Failure>,
    ) -> Outcome {
        self.expire(now_ms);
        let mut messages = Vec::new();
        let reply = operation(self, &mut messages).unwrap_or(Reply::Failed);
        Outcome { reply, messages }
    }

    fn try_acquire(
        &mut self,
        now_us: u64,
        times: Times,
        token: Token,
        server: Server,
        may_queue: bool,
        messages: &mut Vec<Message>,
    ) -> Result<Reply, Failure> {
        let now_ms = now_us / 1000;
        let Some(holder) = self.read_owner()? else {
            let fence = Some(self.draw_fence(now_us, server.floor)?);
            self.queue()?.retain(|waiting| *waiting != token);
            self.forget_empty_queue();
            let contended = !self.queue.is_empty();
            self.set_owner(lease(token, contended, now_ms + times.ttl_ms));
            return Ok(Reply::Acquired { fence, contended });
        };
        if holder.token == token {
            let fence = Some(self.draw_fence(now_us, server.floor)?);
            if !self.has(Mutation::RepeatDoesNotRenew) {
                let is_marked = holder.is_marked && !self.has(Mutation::RepeatRemovesMark);
                self.set_owner(lease(token, is_marked, now_ms + times.ttl_ms));
            }
            let contended = holder.is_marked;
            return Ok(Reply::Acquired { fence, contended });
        }
        let mut remaining_ms = holder.expires_ms.map(|expires| expires - now_ms);
        let mut is_shared = false;
        if holder.token == Token::Shared {
            self.drop_overdue(now_ms);
            if let Some(first) = self.readers.iter().map(|(_, expires)| *expires).min() {
                is_shared = true;
                remaining_ms = Some(first - now_ms);
            }
        }
        if may_queue {
            self.enqueue(token)?;
            let lives_on = remaining_ms.unwrap_or(0) + 3 * times.ttl_ms;
            let known = match self.has(Mutation::QueueIsShortened) {
                true => None,
                false => self.queue_expires_ms,
            };
            self.queue_expires_ms = known.max(Some(now_ms + lives_on));
            if let Token::Ours { process, number } = holder.token
                && !holder.is_marked
            {
                let is_marked = !self.has(Mutation::NoMark);
                self.set_owner(Owner {
                    is_marked,
                    ..holder
                });
                messages.push(Message::Contended { process, number });
            }
            if is_shared && !holder.is_marked {
                self.set_owner(Owner {
                    is_marked: true,
                    ..holder
                });
                for (reader, _) in &self.readers {
                    if let Token::Ours { process, number } = *reader {
                        messages.push(Message::Contended { process, number });
                    }
                }
            }
        }
        let foreign = !holder.token.is_ours() && !is_shared;
        Ok(Reply::Held {
            remaining_ms,
            foreign,
        })
    }

    fn try_release(&mut self, token: Token) -> Result<Reply, Failure> {
        let had_it = match self.read_owner()? {
            Some(_) if self.has(Mutation::ReleaseWithoutTokenCheck) => true,
            Some(owner) if owner.token == token => {
                if owner.is_marked && !self.has(Mutation::ReleaseOfMarked) {
                    return Ok(Reply::Marked);
                }
                true
            }
            _ => false,
        };
        if had_it {
            self.owner = None;
        }
        let granted = false;
        Ok(Reply::Released { had_it, granted })
    }

    fn try_grant(
        &mut self,
        now_us: u64,
        times: Times,
        token: Token,
        server: Server,
        is_there: impl Fn(Process) -> bool,
        messages: &mut Vec<Message>,
    ) -> Result<Reply, Failure> {
        let holder = self.read_owner()?.map(|owner| owner.token);
        let (mut had_it, mut is_shared) = match holder {
            Some(Token::Shared) => (false, true),
            Some(_) if self.has(Mutation::GrantWithoutTokenCheck) => (true, false),
            holder => (holder == Some(token), false),
        };
        if is_shared {
            had_it = self.leave_readers(token);
            self.drop_overdue(now_us / 1000);
            is_shared = !self.readers.is_empty() && !self.has(Mutation::WriterAmongReaders);
        }
        if !had_it {
            self.leave_queue(token)?;
            if holder.is_some() && !is_shared {
                let granted = false;
                return Ok(Reply::Released { had_it, granted });
            }
        }
        let mut given = Vec::new();
        if server.may_give {
            given = self.give(&mut is_shared, is_there)?;
        }
        let contended = self.wrong_type.queue || !self.queue.is_empty();
        for token in &given {
            let fence = self.draw_fence(now_us, server.floor)?;
            if is_shared {
                self.join_readers(*token, now_us / 1000 + times.grant_ttl_ms);
            }
            if let Token::Ours { process, number } = *token {
                messages.push(Message::Granted {
                    process,
                    number,
                    fence,
                    ttl_ms: times.grant_ttl_ms,
                    contended,
                });
            }
        }
        let is_marked = contended && !self.has(Mutation::GrantWithoutMark);
        match given[..] {
            _ if is_shared => {
                let last = self.readers.iter().map(|(_, expires)| *expires).max();
                self.readers_expire_ms = last;
                self.set_owner(Owner {
                    token: Token::Shared,
                    is_marked: contended,
                    expires_ms: last,
                });
            }
            [token, ..] => {
                self.set_owner(lease(token, is_marked, now_us / 1000 + times.grant_ttl_ms));
            }
            _ => self.owner = None,
        }
        let granted = !given.is_empty();
        Ok(Reply::Released { had_it, granted })
    }

    /// Takes those from the head of the queue that get the lock, and whose processes are alive: one
    /// alone, or all that share it.
    fn give(
        &mut self,
        is_shared: &mut bool,
        is_there: impl Fn(Process) -> bool,
    ) -> Result<Vec<Token>, Failure> {
        let mut given = Vec::new();
        while let Some(next) = self.queue()?.first().copied() {
            let shares = matches!(next, Token::Reader { .. });
            if *is_shared && !shares {
                break;
            }
            self.pop_queue()?;
            let (Token::Ours { process, number } | Token::Reader { process, number }) = next else {
                continue;
            };
            if !is_there(process) && !self.has(Mutation::GrantsToTheGone) {
                continue;
            }
            let token = Token::Ours { process, number };
            given.push(token);
            if !shares {
                break;
            }
            if !*is_shared {
                self.delete_readers();
            }
            *is_shared = true;
            if self.has(Mutation::ReadersOneByOne) {
                break;
            }
        }
        Ok(given)
    }

    fn try_share(
        &mut self,
        now_us: u64,
        times: Times,
        token: Token,
        server: Server,
        may_queue: bool,
        messages: &mut Vec<Message>,
    ) -> Result<Reply, Failure> {
        let now_ms = now_us / 1000;
        let holder = self.read_owner()?;
        let is_shared =
            !self.readers.is_empty() && holder.is_some_and(|holder| holder.token == Token::Shared);
        let is_marked = holder.is_some_and(|holder| holder.is_marked);
        let first = match is_shared && is_marked {
            true => self.queue()?.first().copied(),
            false => None,
        };
        if holder.is_none() {
            self.delete_readers();
        }
        let is_in = self.readers.iter().any(|(reader, _)| *reader == token);
        let is_let_in = first.is_none_or(|first| first == token.as_reader())
            || is_in
            || self.has(Mutation::ReaderPastWriter);
        if holder.is_none() || is_shared && is_let_in {
            let fence = Some(self.draw_fence(now_us, server.floor)?);
            self.queue()?
                .retain(|waiting| *waiting != token.as_reader());
            self.forget_empty_queue();
            let contended = !self.queue.is_empty();
            let lasts = self.lasts(now_ms, times);
            self.join_readers(token, now_ms + times.ttl_ms);
            self.readers_expire_ms = Some(lasts);
            self.set_owner(lease(Token::Shared, contended, lasts));
            return Ok(Reply::Acquired { fence, contended });
        }
        let Some(holder) = holder else {
            return Err(Failure);
        };
        let remaining_ms = holder.expires_ms.map(|expires| expires - now_ms);
        if may_queue {
            self.enqueue(token.as_reader())?;
            let lives_on = now_ms + remaining_ms.unwrap_or(0) + 3 * times.ttl_ms;
            self.queue_expires_ms = self.queue_expires_ms.max(Some(lives_on));
            if let Token::Ours { process, number } = holder.token
                && !holder.is_marked
            {
                self.set_owner(Owner {
                    is_marked: true,
                    ..holder
                });
                messages.push(Message::Contended { process, number });
            }
        }
        let foreign = !holder.token.is_ours() && !is_shared;
        Ok(Reply::Held {
            remaining_ms,
            foreign,
        })
    }

    fn try_renew_shared(
        &mut self,
        now_ms: u64,
        times: Times,
        token: Token,
    ) -> Result<Reply, Failure> {
        let holder = self.read_owner()?;
        let shared = holder.filter(|holder| holder.token == Token::Shared);
        let is_in = self.readers.iter().any(|(reader, _)| *reader == token);
        let Some(shared) = shared.filter(|_| is_in) else {
            return Ok(Reply::Gone);
        };
        let lasts = self.lasts(now_ms, times);
        self.join_readers(token, now_ms + times.ttl_ms);
        if self.has(Mutation::RenewalProlongsAll) {
            for reader in &mut self.readers {
                reader.1 = now_ms + times.ttl_ms;
            }
        }
        self.readers_expire_ms = Some(lasts);
        let contended = shared.is_marked;
        self.set_owner(lease(Token::Shared, contended, lasts));
        Ok(Reply::Renewed { contended })
    }

    fn is_shared_and_marked(&self) -> bool {
        let is_so = |owner: Owner| owner.token == Token::Shared && owner.is_marked;
        !self.wrong_type.owner && self.owner.is_some_and(is_so) && !self.readers.is_empty()
    }

    /// Drops those from the head of the queue whose processes are gone.
    fn drop_the_gone(&mut self, is_there: impl Fn(Process) -> bool) -> Result<(), Failure> {
        while let Some(first) = self.queue()?.first().copied() {
            match first {
                Token::Ours { process, .. } | Token::Reader { process, .. }
                    if is_there(process) =>
                {
                    break;
                }
                _ => drop(self.pop_queue()?),
            }
        }
        Ok(())
    }

    /// Returns until when a shared lock lasts with one more lease.
    fn lasts(&self, now_ms: u64, times: Times) -> u64 {
        let lasts = self.owner.and_then(|owner| owner.expires_ms);
        lasts.unwrap_or(0).max(now_ms + times.ttl_ms)
    }

    fn join_readers(&mut self, token: Token, expires_ms: u64) {
        self.leave_readers(token);
        self.readers.push((token, expires_ms));
    }

    /// Returns whether it was there.
    fn leave_readers(&mut self, token: Token) -> bool {
        let before = self.readers.len();
        self.readers.retain(|(reader, _)| *reader != token);
        self.forget_empty_readers();
        self.readers.len() < before
    }

    fn drop_overdue(&mut self, now_ms: u64) {
        self.readers.retain(|(_, expires)| *expires > now_ms);
        self.forget_empty_readers();
    }

    /// Redis keeps no empty sets, and no expiry of one.
    fn forget_empty_readers(&mut self) {
        if self.readers.is_empty() {
            self.readers_expire_ms = None;
        }
    }

    fn try_complete(
        &mut self,
        token: Token,
        record: Owner,
        messages: &mut Vec<Message>,
    ) -> Result<Reply, Failure> {
        let is_marked = match self.read_owner()? {
            Some(there) if there.token == record.token => return Ok(Reply::Completed),
            Some(holder) if holder.token == token => holder.is_marked,
            Some(_) if self.has(Mutation::CompletionWithoutTokenCheck) => true,
            _ => return Ok(Reply::Gone),
        };
        self.set_owner(record);
        if !is_marked && self.has(Mutation::CompletionTrustsTheMark) {
            return Ok(Reply::Completed);
        }
        let told = !self.has(Mutation::CompletionInSilence);
        for waiting in self.queue()?.iter().filter(|_| told) {
            if let Token::Ours { process, number } = *waiting {
                messages.push(Message::Completed { process, number });
            }
        }
        self.delete_queue();
        Ok(Reply::Completed)
    }

    fn try_renew(&mut self, now_ms: u64, times: Times, token: Token) -> Result<Reply, Failure> {
        let holder = self.read_owner()?;
        let is_ours = holder.is_some_and(|owner| owner.token == token);
        if !is_ours && !self.has(Mutation::RenewalRecreates) {
            return Ok(Reply::Gone);
        }
        let contended = is_ours && holder.is_some_and(|owner| owner.is_marked);
        let is_marked = contended && !self.has(Mutation::RenewalRemovesMark);
        self.set_owner(lease(token, is_marked, now_ms + times.ttl_ms));
        Ok(Reply::Renewed { contended })
    }

    /// Counts on. If the counter is not above the floor, it goes on from the clock.
    fn draw_fence(&mut self, now_us: u64, floor: u64) -> Result<u64, Failure> {
        let mut fence = self.count(1).ok_or(Failure)?;
        if fence <= floor && !self.has(Mutation::FencesFromLostCounter) {
            fence = fence.max(now_us);
        }
        self.last_fence = fence;
        Ok(fence)
    }

    fn has(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }

    fn is_free(&self) -> bool {
        self.owner.is_none() && !self.wrong_type.owner
    }

    fn set_owner(&mut self, owner: Owner) {
        self.owner = Some(owner);
        self.wrong_type.owner = false;
    }

    fn read_owner(&self) -> Result<Option<Owner>, Failure> {
        match self.wrong_type.owner {
            true => Err(Failure),
            false => Ok(self.owner),
        }
    }

    fn queue(&mut self) -> Result<&mut Vec<Token>, Failure> {
        match self.wrong_type.queue {
            true => Err(Failure),
            false => Ok(&mut self.queue),
        }
    }

    fn enqueue(&mut self, token: Token) -> Result<(), Failure> {
        let once = !(self.has(Mutation::NoQueueOnce) && token.is_ours());
        let queue = self.queue()?;
        if !(once && queue.contains(&token)) {
            queue.push(token);
        }
        Ok(())
    }

    fn leave_queue(&mut self, token: Token) -> Result<(), Failure> {
        let before = self.queue()?.len();
        self.queue.retain(|waiting| *waiting != token);
        if self.queue.len() == before {
            self.queue.retain(|waiting| *waiting != token.as_reader());
        }
        self.forget_empty_queue();
        Ok(())
    }

    fn pop_queue(&mut self) -> Result<Option<Token>, Failure> {
        let queue = self.queue()?;
        let first = (!queue.is_empty()).then(|| queue.remove(0));
        self.forget_empty_queue();
        Ok(first)
    }

    /// Redis keeps no empty lists, and no expiry of one.
    fn forget_empty_queue(&mut self) {
        if self.queue.is_empty() {
            self.queue_expires_ms = None;
        }
    }
}

fn lease(token: Token, is_marked: bool, expires_ms: u64) -> Owner {
    Owner {
        token,
        is_marked,
        expires_ms: Some(expires_ms),
    }
}
