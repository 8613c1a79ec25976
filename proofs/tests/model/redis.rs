//! One Redis server as the lock's script sees it, for one key: a plain value, without I/O and
//! without a clock.
//!
//! Each operation takes the steps of `src/store/redis/scripts/lock.lua` in the same order, so that
//! it also stops at the same place when a key has a wrong type. A batch is a row of calls with the
//! same `now`.

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
    /// Any value that a client of another kind writes.
    Foreign,
    Record(Record),
}

/// The reply to an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reply {
    Acquired {
        fence: u64,
        contended: bool,
    },
    Held {
        remaining_ms: Option<u64>,
        foreign: bool,
    },
    Released {
        had_it: bool,
        granted: bool,
    },
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
    Failed {
        /// Whether the token of an acquire has the lock all the same.
        got: bool,
    },
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
    /// A release frees a held lock, whatever its token.
    ReleaseWithoutTokenCheck,
    /// A renewal writes the lock, whatever its token.
    RenewalRecreates,
    /// A fence is the last one + 1, whatever the clock says.
    FencesByIncrement,
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
}

/// The settings of the process that calls. Another's may differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Times {
    /// Time to live of a lease.
    pub ttl_ms: u64,
    /// Time to live of a grant that was not taken up yet.
    pub grant_ttl_ms: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Owner {
    pub token: Token,
    /// `None`: never.
    pub expires_ms: Option<u64>,
}

/// Which of the keys hold something that the script cannot read.
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
    /// `None`: never, or there is no queue.
    pub queue_expires_ms: Option<u64>,
    /// In µs since the clock's beginning. 0: none is known.
    pub last_fence: u64,
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
            queue_expires_ms: None,
            last_fence: 0,
            wrong_type: WrongType::default(),
        }
    }

    /// Takes the lock if it is free or this token's. If it is held and the token `may_queue`, the
    /// token goes into the queue, once.
    pub fn acquire(&mut self, now_ms: u64, times: Times, token: Token, may_queue: bool) -> Outcome {
        self.carry_out(now_ms, |redis, messages| {
            redis.acquire_or_fail(now_ms, times, token, may_queue, messages)
        })
    }

    /// Acquires where a record may be in the lock's place. If there is one, the reply says so.
    pub fn claim(&mut self, now_ms: u64, times: Times, token: Token, may_queue: bool) -> Outcome {
        self.carry_out(now_ms, |redis, messages| match redis.owner {
            Some(owner) if !owner.token.is_ours() => Ok(Reply::Recorded(owner.token)),
            _ => redis.acquire_or_fail(now_ms, times, token, may_queue, messages),
        })
    }

    /// Gives up the lock, or the token's place in the queue. A free lock goes to the first whose
    /// process listens.
    pub fn release(
        &mut self,
        now_ms: u64,
        times: Times,
        token: Token,
        is_there: impl Fn(Process) -> bool,
    ) -> Outcome {
        self.carry_out(now_ms, |redis, messages| {
            redis.try_release(now_ms, times, token, is_there, messages)
        })
    }

    /// Puts a record in the place of the lock if that is this token's, tells all in the queue, and
    /// removes the queue.
    pub fn complete(
        &mut self,
        now_ms: u64,
        token: Token,
        record: Record,
        retention_ms: u64,
    ) -> Outcome {
        self.carry_out(now_ms, |redis, messages| {
            let record = lease(Token::Record(record), now_ms + retention_ms);
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

    /// Drops what has expired. Every operation begins with it.
    pub fn expire(&mut self, now_ms: u64) {
        let is_over = |expires: Option<u64>| expires.is_some_and(|expires| expires <= now_ms);
        if is_over(self.owner.and_then(|owner| owner.expires_ms)) {
            self.owner = None;
        }
        if is_over(self.queue_expires_ms) {
            self.delete_queue();
        }
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
        let token = Token::Foreign;
        self.set_owner(Owner { token, expires_ms });
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

    /// `PERSIST` of the owner.
    pub fn persist_owner(&mut self) {
        if let Some(owner) = &mut self.owner {
            owner.expires_ms = None;
        }
    }

    /// `FLUSHALL`, or a restart: all is lost, the memory of fences too.
    pub fn flush_all(&mut self) {
        *self = Self::new(self.mutation);
    }

    fn carry_out(
        &mut self,
        now_ms: u64,
        operation: impl FnOnce(&mut Self, &mut Vec<Message>) -> Result<Reply, Failure>,
    ) -> Outcome {
        self.expire(now_ms);
        let mut messages = Vec::new();
        let failed = Reply::Failed { got: false };
        let reply = operation(self, &mut messages).unwrap_or(failed);
        Outcome { reply, messages }
    }

    fn acquire_or_fail(
        &mut self,
        now_ms: u64,
        times: Times,
        token: Token,
        may_queue: bool,
        messages: &mut Vec<Message>,
    ) -> Result<Reply, Failure> {
        let reply = self.try_acquire(now_ms, times, token, may_queue, messages);
        let got = self.owner.is_some_and(|owner| owner.token == token);
        reply.or(Ok(Reply::Failed { got }))
    }

    fn try_acquire(
        &mut self,
        now_ms: u64,
        times: Times,
        token: Token,
        may_queue: bool,
        messages: &mut Vec<Message>,
    ) -> Result<Reply, Failure> {
        if self.is_free() {
            self.set_owner(lease(token, now_ms + times.ttl_ms));
            if may_queue {
                self.leave_queue(token)?;
            }
            let fence = self.next_fence(now_ms)?;
            let contended = may_queue && self.is_contended()?;
            return Ok(Reply::Acquired { fence, contended });
        }
        let Some(holder) = self.read_owner()? else {
            return Err(Failure);
        };
        if holder.token == token {
            self.set_owner(lease(token, now_ms + times.ttl_ms));
            let fence = self.next_fence(now_ms)?;
            let contended = self.is_contended()?;
            return Ok(Reply::Acquired { fence, contended });
        }
        let remaining_ms = holder.expires_ms.map(|expires| expires - now_ms);
        if may_queue {
            self.enqueue(token, holder.token, messages)?;
            let lives_on = remaining_ms.unwrap_or(0) + 3 * times.ttl_ms;
            let known = match self.has(Mutation::QueueIsShortened) {
                true => None,
                false => self.queue_expires_ms,
            };
            self.queue_expires_ms = known.max(Some(now_ms + lives_on));
        }
        let foreign = !holder.token.is_ours();
        Ok(Reply::Held {
            remaining_ms,
            foreign,
        })
    }

    fn try_release(
        &mut self,
        now_ms: u64,
        times: Times,
        token: Token,
        is_there: impl Fn(Process) -> bool,
        messages: &mut Vec<Message>,
    ) -> Result<Reply, Failure> {
        let holder = self.read_owner()?.map(|owner| owner.token);
        let had_it = match holder {
            Some(_) if self.has(Mutation::ReleaseWithoutTokenCheck) => true,
            holder => holder == Some(token),
        };
        if !had_it {
            self.leave_queue(token)?;
            if holder.is_some() {
                let granted = false;
                return Ok(Reply::Released { had_it, granted });
            }
        }
        let granted = self.grant(now_ms, times, is_there, messages)?;
        if !granted {
            self.owner = None;
        }
        Ok(Reply::Released { had_it, granted })
    }

    fn try_complete(
        &mut self,
        token: Token,
        record: Owner,
        messages: &mut Vec<Message>,
    ) -> Result<Reply, Failure> {
        match self.read_owner()?.map(|owner| owner.token) {
            Some(there) if there == record.token => return Ok(Reply::Completed),
            Some(_) if self.has(Mutation::CompletionWithoutTokenCheck) => {}
            holder if holder == Some(token) => {}
            _ => return Ok(Reply::Gone),
        }
        self.set_owner(record);
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
        if !self.has(Mutation::RenewalRecreates)
            && self.read_owner()?.map(|owner| owner.token) != Some(token)
        {
            return Ok(Reply::Gone);
        }
        self.set_owner(lease(token, now_ms + times.ttl_ms));
        let contended = self.is_contended()?;
        Ok(Reply::Renewed { contended })
    }

    /// Gives the lock to the first in the queue whose process is alive. Returns whether there was
    /// one.
    fn grant(
        &mut self,
        now_ms: u64,
        times: Times,
        is_there: impl Fn(Process) -> bool,
        messages: &mut Vec<Message>,
    ) -> Result<bool, Failure> {
        while let Some(token) = self.pop_queue()? {
            let Token::Ours { process, number } = token else {
                continue;
            };
            if !is_there(process) && !self.has(Mutation::GrantsToTheGone) {
                continue;
            }
            let fence = self.next_fence(now_ms)?;
            self.set_owner(lease(token, now_ms + times.grant_ttl_ms));
            messages.push(Message::Granted {
                process,
                number,
                fence,
                ttl_ms: times.grant_ttl_ms,
                contended: self.is_contended()?,
            });
            return Ok(true);
        }
        Ok(false)
    }

    /// Returns a fence that follows the clock, and rises in any case.
    fn next_fence(&mut self, now_ms: u64) -> Result<u64, Failure> {
        if self.wrong_type.fence {
            return Err(Failure);
        }
        let clock = match self.has(Mutation::FencesByIncrement) {
            true => 0,
            false => now_ms * 1000,
        };
        self.last_fence = clock.max(self.last_fence + 1);
        Ok(self.last_fence)
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

    fn is_contended(&mut self) -> Result<bool, Failure> {
        Ok(!self.queue()?.is_empty())
    }

    /// Publishes to the holder that the lock is contended, for the first waiter only: from then on,
    /// replies and grants say so.
    fn enqueue(
        &mut self,
        token: Token,
        holder: Token,
        messages: &mut Vec<Message>,
    ) -> Result<(), Failure> {
        let once = !self.has(Mutation::NoQueueOnce);
        let queue = self.queue()?;
        if once && queue.contains(&token) {
            return Ok(());
        }
        queue.push(token);
        match holder {
            Token::Ours { process, number } if queue.len() == 1 => {
                messages.push(Message::Contended { process, number });
            }
            _ => {}
        }
        Ok(())
    }

    fn leave_queue(&mut self, token: Token) -> Result<(), Failure> {
        self.queue()?.retain(|waiting| *waiting != token);
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

fn lease(token: Token, expires_ms: u64) -> Owner {
    let expires_ms = Some(expires_ms);
    Owner { token, expires_ms }
}
