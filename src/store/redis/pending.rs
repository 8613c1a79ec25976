//! [`Pending`]: a command from its submission to its end.

use std::time::Duration;

use super::commands::Sent;
use super::driver::regrant;
use super::moving::{Moving, Redirect, Taken, ToldAddress};
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
    /// Whether it waited until its slot was found. A release that follows a notice about the same
    /// token may have gone first.
    pub(super) may_be_overtaken: bool,
    /// Where it stands, if its slot is on its way to another server of a cluster.
    pub(super) moving: Option<Box<Moving>>,
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
            may_be_overtaken: false,
            moving: None,
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
            moving: self.moving.as_deref(),
        }
    }

    /// Notes that the command, which was sent then, is to go elsewhere. Returns whether it can go
    /// on at once.
    pub(super) fn redirect(&mut self, sent_at: Time, redirect: Redirect) -> bool {
        match redirect {
            Redirect::Fence { contended, at } => {
                let moving = self.moving.get_or_insert_default();
                moving.taken.get_or_insert(Taken { sent_at, contended });
                (moving.fence_left, moving.to) = (at.is_some(), at);
                // No fence has been asked for so far, at that server.
                self.attempts = 0;
                true
            }
            Redirect::Ask { to, fence_left } if self.asks().is_none() => {
                self.attempts -= 1;
                let moving = self.moving.get_or_insert_default();
                (moving.fence_left, moving.to) = (fence_left, Some(to));
                true
            }
            // Two servers that send commands to each other agree later.
            Redirect::Ask { .. } | Redirect::Later => {
                self.attempts -= 1;
                self.start_again();
                false
            }
        }
    }

    /// Returns the server to which the command goes in place of its slot's primary.
    pub(super) fn asks(&self) -> Option<&ToldAddress> {
        self.moving.as_ref()?.to.as_ref()
    }

    /// Has the command go to its slot's primary again.
    pub(super) fn start_again(&mut self) {
        if let Some(moving) = &mut self.moving {
            (moving.fence_left, moving.to) = (false, None);
        }
    }

    /// Returns the lock that was taken, and lacks its fence.
    fn taken(&self) -> Option<Taken> {
        self.moving.as_ref()?.taken
    }

    /// Returns a release of whatever an acquire gets, for the connection on which that was sent:
    /// Redis may still carry it out.
    pub(super) fn given_up(&self) -> Option<Self> {
        let Command::Acquire { token, .. } = self.command else {
            return None;
        };
        let mut release = Self::new(self.key.clone(), regrant(token), self.submitted);
        if let Some(to) = self.asks() {
            // Only a release that grants the lock to none can be asked for.
            release.command = Command::Release {
                token,
                contended: false,
                queued: false,
                reply: None,
            };
            release.moving.get_or_insert_default().to = Some(to.clone());
        }
        Some(release)
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
        self.attempts > 0 || self.is_repeated() || self.taken().is_some()
    }

    /// Returns whether an attempt before the one that failed may have been carried out.
    pub(super) fn may_have_been_carried_out_before(&self) -> bool {
        self.attempts > 1 || self.is_repeated() || self.taken().is_some()
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
            // An earlier attempt, whose reply was lost, may have released it, or another release.
            Ok(Reply::Released { had_it: false, .. })
                if self.attempts > 1 || self.may_be_overtaken =>
            {
                Err(Error::of(ErrorKind::Unavailable))
            }
            _ => settled(&result),
        };
        let sent_at = self.taken().map_or(sent_at, |taken| taken.sent_at);
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
