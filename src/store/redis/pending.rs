//! [`Pending`]: a command from its submission to its end.

use std::time::Duration;

use super::commands::Sent;
use crate::clock::Time;
use crate::error::{Error, ErrorKind};
use crate::key::{Kind, LockKey};
use crate::shield::shielded;
use crate::store::{Command, Events, Failure, Outcome, Reply, settled};

/// A command that has no reply yet.
#[derive(Debug)]
pub(super) struct Pending {
    /// Counts up in order of submission.
    pub(super) number: u64,
    pub(super) key: LockKey,
    pub(super) command: Command,
    pub(super) submitted: Time,
    /// How often the command has been sent. It may have been carried out as often.
    pub(super) attempts: u32,
    /// Whether it is a release, and Redis has said that the token had the lock.
    pub(super) had_it: bool,
}

impl Pending {
    pub(super) fn new(key: LockKey, command: Command, submitted: Time) -> Self {
        Self {
            number: 0,
            key,
            command,
            submitted,
            attempts: 0,
            had_it: false,
        }
    }

    pub(super) fn ends_hold(&self) -> bool {
        self.command.ends_hold()
    }

    pub(super) fn is_about_record(&self) -> bool {
        self.key.kind() == Kind::Record
    }

    /// Returns whether no lock is left to release or to complete. For a completion, the slot is
    /// asked: it renews the lease, which then lasts for longer than a time to live.
    pub(super) fn is_over(&self, now: Time, ttl: Duration, events: &impl Events) -> bool {
        let is_held = || match self.command {
            Command::Complete { token, .. } => events.is_held(&self.key, token),
            _ => false,
        };
        self.has_expired(now, ttl) && !is_held()
    }

    pub(super) fn has_expired(&self, now: Time, ttl: Duration) -> bool {
        now.since(self.submitted) > ttl
    }

    /// Returns whether it is a release for which no process and no caller is known to wait.
    pub(super) fn can_wait(&self) -> bool {
        matches!(
            self.command,
            Command::Release {
                contended: false,
                reply: None,
                ..
            }
        )
    }

    pub(super) fn sent(&self) -> Sent<'_> {
        Sent {
            key: &self.key,
            command: &self.command,
            is_repeated: self.attempts > 1,
        }
    }

    /// Has a release grant the lock, which is the token's, to a process that waits. Nothing has
    /// been done for it so far.
    pub(super) fn grant_next(&mut self) {
        self.had_it = true;
        if let Command::Release { contended, .. } = &mut self.command {
            *contended = true;
        }
        self.attempts = 0;
    }

    /// Returns whether Redis may know the token of an acquire.
    pub(super) fn is_known_there(&self) -> bool {
        self.attempts > 0 || self.is_repeated()
    }

    /// Returns whether an attempt before the one that failed may have been carried out.
    pub(super) fn may_have_been_carried_out_before(&self) -> bool {
        self.attempts > 1 || self.is_repeated()
    }

    pub(super) fn is_repeated(&self) -> bool {
        matches!(self.command, Command::Acquire { again: true, .. })
    }

    pub(super) fn finish(
        self,
        sent_at: Time,
        result: Result<Reply, Failure>,
        events: &impl Events,
    ) {
        let result = match result {
            // Another release of this token may have granted the lock meanwhile: one that follows a
            // notice for a holder that was done.
            Ok(Reply::Released { had_it, granted }) => Ok(Reply::Released {
                had_it: had_it || self.had_it,
                granted,
            }),
            result => result,
        };
        let settled = match result {
            // An earlier attempt, whose reply was lost, may have released it.
            Ok(Reply::Released { had_it: false, .. }) if self.attempts > 1 => {
                Err(Error::of(ErrorKind::Unavailable))
            }
            _ => settled(&result),
        };
        let outcome = Outcome { sent_at, result };
        events.replied(&self.key, self.command.bare(), outcome);
        // Behind the slot's event: the next request of the caller must find the slot as it now is.
        if let Command::Release { reply, .. } | Command::Complete { reply, .. } = self.command
            && let Some(reply) = reply
        {
            shielded(|| reply.send(settled));
        }
    }
}

#[cfg(test)]
mod tests;
