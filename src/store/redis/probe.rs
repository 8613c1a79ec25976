//! Takes, hands on and releases a lock of no meaning, to find out whether locks can be had here.

use std::error::Error as _;
use std::sync::Arc;

use redis::{ErrorKind as RedisKind, RedisError, ServerErrorKind};
use tokio::time::timeout;

use super::commands::{self, Ahead, Scripts, Seed, Sent, Unusable, code};
use super::connection::Link;
use super::messages::message;
use super::pushes::Push;
use super::{RedisStore, Settings};
use crate::error::{Error, ErrorKind};
use crate::key::LockKey;
use crate::mode::Mode;
use crate::store::{Command, Notice, Reply};

/// The numbers of the probe's tokens. The manager's own begin at 1.
const HOLDER: u64 = 0;
const WAITER: u64 = u64::MAX;
const READER: u64 = u64::MAX - 1;

impl RedisStore {
    /// Does all that a contended lock needs, and one that is shared, under a random key of the
    /// prefix, until the grant has come to this process's inbox. Returns what is missing.
    pub(super) async fn probe(&self, link: &mut Link) -> Result<(), Error> {
        if let Some(error) = &link.unready {
            return Err(self.cannot_lock(error.clone(), None));
        }
        let limit = self.settings.command_timeout;
        let no_reply = |_| {
            Err(self
                .address
                .unavailable(&format!("no reply within {limit:?}")))
        };
        let locking = timeout(limit, self.hand_on(link)).await;
        let key = locking.unwrap_or_else(no_reply)?;
        let told = timeout(limit, self.is_told(link, &key)).await;
        told.unwrap_or_else(|_| Err(self.no_message()))
    }

    /// Takes a lock and waits for it, so that its release grants it once more. Returns its key.
    async fn hand_on(&self, link: &mut Link) -> Result<LockKey, Error> {
        // Another client may flush the scripts at this moment.
        for scripts in [Scripts::ByHash, Scripts::BySource] {
            let key = self.settings.names.probe()?;
            let steps = steps();
            let sent = steps.iter().map(|command| Sent {
                key: &key,
                command,
                is_repeated: false,
                moving: None,
            });
            let mut server = (*link.server).clone();
            // Also in quarantine: no other process knows this key.
            server.may_give = true;
            let server = Arc::new(server);
            let seed = Seed {
                slot: self.settings.names.slot(&key),
                is_asking: false,
            };
            let ahead = Ahead {
                seeds: [seed].into_iter().collect(),
                ..Ahead::default()
            };
            let call = commands::call(&self.settings, &server, sent.clone(), scripts, &ahead);
            let mut redis = link.commands.clone();
            let sending = redis.send_packed_commands(&call.pipeline, call.skipped, call.replies);
            let values = match link.connection.run_until(sending).await {
                Some(Ok(values)) => values,
                Some(Err(error)) => return Err(self.address.failed(error, &self.settings)),
                None => return Err(self.address.unavailable("the connection was closed")),
            };
            let replies = match commands::replies(&self.settings, &server, sent, values) {
                Ok(replies) => replies,
                Err(Unusable::NoScript) => continue,
                Err(Unusable::LostData | Unusable::Unexpected) => {
                    return Err(self.address.unavailable("it replied in an unexpected form"));
                }
            };
            let mut was_granted = false;
            for (step, said) in steps.iter().zip(replies.said) {
                match said.result {
                    Ok(Reply::Released { granted, .. }) => was_granted |= granted,
                    Ok(_) => {}
                    Err(failure) => return Err(self.cannot_lock(failure.error, Some(step))),
                }
            }
            return match was_granted {
                true => Ok(key),
                false => Err(self.no_message()),
            };
        }
        Err(self.address.unavailable("it does not keep scripts"))
    }

    /// Waits for the message that says that the lock was granted.
    async fn is_told(&self, link: &mut Link, key: &LockKey) -> Result<(), Error> {
        loop {
            let Some(Some(push)) = link.connection.run_until(link.pushes.recv()).await else {
                return Err(self.no_message());
            };
            if let Push::Message { payload, .. } = push
                && let Some((of, Notice::Granted(granted))) =
                    message(&self.settings.names.prefix, &payload, None)
                && of == *key
                && granted.token == WAITER
            {
                return Ok(());
            }
        }
    }

    fn no_message(&self) -> Error {
        self.address.unavailable(
            "a message that this process published did not come back to it: connect to the server itself, or \
             through a proxy that passes on SUBSCRIBE and PUBLISH",
        )
    }

    /// Says what is missing, where the cause is an error of Redis, at this step.
    fn cannot_lock(&self, error: Error, step: Option<&Command>) -> Error {
        let cause = error.source().and_then(|cause| cause.downcast_ref());
        let why = match cause {
            // The steps before have shown that it may use all other commands.
            Some(cause) if step.is_some_and(shares) && lacks(cause) == Some(Rights::Commands) => {
                format!("{LACKS_SORTED_SETS} ({cause})")
            }
            Some(cause) => explain(cause, &self.settings),
            None => error.to_string(),
        };
        let why = self.address.cannot_use(&why);
        Error::caused_by(ErrorKind::Unavailable, why, error)
    }
}

const LACKS_SORTED_SETS: &str = "its user may not use sorted sets, in which those are that share a \
                                 lock: add +@sortedset to the user's ACL";

/// What is done to the lock, in this order and in one write.
fn steps() -> [Command; 7] {
    let acquire = |token, mode, queue| Command::Acquire {
        token,
        mode,
        queue,
        watch: false,
        again: false,
    };
    let grant = |token| Command::Release {
        token,
        contended: true,
        queued: true,
        reply: None,
    };
    let (renew, release) = (
        Command::Renew {
            token: HOLDER,
            mode: Mode::Exclusive,
        },
        |token| Command::Release {
            token,
            contended: false,
            queued: false,
            reply: None,
        },
    );
    [
        acquire(HOLDER, Mode::Exclusive, false),
        renew,
        acquire(WAITER, Mode::Exclusive, true),
        grant(HOLDER),
        release(WAITER),
        acquire(READER, Mode::Shared, false),
        grant(READER),
    ]
}

/// Returns whether it is a step of one that shares the lock.
fn shares(step: &Command) -> bool {
    matches!(step, Command::Acquire { mode, .. } if mode.is_shared())
}

/// Describes the cause, and what to do about it where the server's own words do not say.
pub(super) fn explain(error: &RedisError, settings: &Settings) -> String {
    let what_to_do = match code(error) {
        Some("READONLY") => {
            "it is a replica, which gives no locks: connect to its primary".to_owned()
        }
        Some("MOVED" | "ASK" | "TRYAGAIN") if settings.names.home().is_some() => {
            "a slot of it is being moved: try again when it has arrived".to_owned()
        }
        Some("MOVED" | "ASK" | "CROSSSLOT" | "CLUSTERDOWN") => {
            "it is a node of a Redis Cluster: connect by connect_cluster".to_owned()
        }
        Some("OOM") => "it has no memory left for locks: raise its maxmemory".to_owned(),
        _ if error.kind() == RedisKind::AuthenticationFailed => {
            "check the user and the password in the URL".to_owned()
        }
        _ => match lacks(error) {
            Some(rights) => rights.explain(&settings.names.prefix),
            None => return error.to_string(),
        },
    };
    format!("{what_to_do} ({error})")
}

/// What a user of Redis may not use.
#[derive(PartialEq, Eq)]
enum Rights {
    Channels,
    Keys,
    Commands,
}

/// Returns what the user lacks the rights for, if that is the error. Within a script, Redis says so
/// in an error without a code of its own.
fn lacks(error: &RedisError) -> Option<Rights> {
    let detail = error.detail().unwrap_or_default();
    let is_refused = error.kind() == RedisKind::Server(ServerErrorKind::NoPerm)
        || code(error) == Some("NOPERM")
        || detail.contains("ACL failure in script")
        || detail.contains("The user executing the script can't");
    let about = |word: &str| is_refused && detail.contains(word);
    if about("channel") {
        Some(Rights::Channels)
    } else if about("access") {
        Some(Rights::Keys)
    } else {
        is_refused.then_some(Rights::Commands)
    }
}

impl Rights {
    fn explain(&self, prefix: &str) -> String {
        match self {
            Self::Channels => format!(
                "its user may not use the inbox channels: add &{prefix}inbox:* to the user's ACL"
            ),
            Self::Keys => format!(
                "its user may not use the keys of the prefix: add ~{prefix}* and ~{{* to the user's ACL"
            ),
            Self::Commands => {
                "its user may not run a command that locks need: add those that the operations \
                               guide lists to the user's ACL"
                    .to_owned()
            }
        }
    }
}
