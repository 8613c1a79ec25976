//! The scripts, one for each operation that no command of Redis does.
//!
//! The long ones are in parts, which see the variables of those before.
//!
//! They give Redis numbers as strings where they can, as Lua is slow at writing out numbers.
//!
//! # The value of a lock
//!
//! | Value | Meaning |
//! |---|---|
//! | none | free |
//! | a token | that process holds the lock alone |
//! | `shared` | the processes in the set of readers share it |
//! | either with `!` behind it | processes wait in the queue |
//! | anything else | a record, or the lock of a client of another kind: never touched |
//!
//! # Shared holds
//!
//! A reader is a process, whatever the number of its requests. The set of readers has their tokens,
//! each with the time at which its lease expires. The lock's key expires with the last of them, so
//! that it alone says whether the lock is free, to clients of any kind. The queue has tokens of
//! writers, and tokens of readers with an `s` behind them.
//!
//! - *Share* joins the readers of a lock that is free, or shared without a mark. Behind a mark, it
//!   queues, so that no reader gets past a writer that waits.
//! - A writer that queues (*acquire*) marks the lock, and tells every reader that it is wanted.
//!   These let no further request in, and leave when the last one that is inside is done.
//! - A reader leaves by *grant*. The last one gives the lock to the next: to a writer, or to all
//!   readers at the head of the queue, whose grants go out together.
//! - The fence of a reader is counted while it shares the lock, or with its grant: behind those of
//!   all writers before it, and before those of all writers behind it.
//!
//! What can go wrong:
//!
//! - *A reader's process dies.* The renewals of others do not prolong its lease. A writer that
//!   waits asks again when the first of the leases expires that there are.
//! - *A message is lost.* A reader that was not told that it is wanted learns it with its next
//!   renewal. One that was not told of its grant asks again, and finds itself among the readers;
//!   if it is dead, its grant expires.
//! - *A share is carried out twice.* It prolongs the lease. Behind its own release, it leaves a
//!   lease that no request has: it expires, or is released when a message says that it is wanted.
//! - *A writer gives up waiting.* Its release lets the readers join that are then at the head of
//!   the queue.
//! - *The first in the queue is gone.* The next share drops it, and the mark if no queue is left. A
//!   renewal does not: where a slot of a cluster is on its way, a queue that is not there would
//!   hold it up.
//! - *One of the readers at the head is gone.* It is passed over, or its grant expires, as a
//!   writer's would.
//! - *The lock is deleted, or all data is lost.* The next renewal finds it: a share of a lock that
//!   is free begins with an empty set, and *grant* gives readers one, too. Shares are not tracked
//!   (each renewal changes the lock, and would be told to all others).
//! - *Another client's value is `shared`.* It has no set of readers, and is left alone.

use std::sync::OnceLock;

/// A script, with the SHA-1 that Redis knows it by.
pub(super) struct Script {
    pub(super) source: &'static str,
    hash: OnceLock<String>,
}

pub(super) static ACQUIRE: Script = Script::new(concat!(
    include_str!("scripts/parts/fence.lua"),
    include_str!("scripts/acquire.lua"),
    include_str!("scripts/parts/queue.lua"),
));
pub(super) static SHARE: Script = Script::new(concat!(
    include_str!("scripts/parts/fence.lua"),
    include_str!("scripts/share.lua"),
    include_str!("scripts/parts/queue.lua"),
));
pub(super) static RELEASE: Script = Script::new(include_str!("scripts/release.lua"));
pub(super) static GRANT: Script = Script::new(concat!(
    include_str!("scripts/parts/fence.lua"),
    include_str!("scripts/grant.lua"),
    include_str!("scripts/parts/to_a_writer.lua"),
    include_str!("scripts/parts/to_readers.lua"),
));
pub(super) static RENEW: Script = Script::new(include_str!("scripts/renew.lua"));
pub(super) static RENEW_SHARED: Script = Script::new(include_str!("scripts/renew_shared.lua"));
pub(super) static COMPLETE: Script = Script::new(include_str!("scripts/complete.lua"));
/// These run once for each connection, and need not be kept by Redis.
pub(super) static SEED: Script = Script::new(include_str!("scripts/seed.lua"));
pub(super) static QUARANTINE: Script = Script::new(include_str!("scripts/quarantine.lua"));
/// For questions, which are rare.
pub(super) static INSPECT: Script = Script::new(include_str!("scripts/inspect.lua"));

/// This one is rare, and may go out over another connection.
pub(super) static FORGET: Script = Script::new(include_str!("scripts/forget.lua"));

/// Those that Redis is to know by their hashes.
pub(super) static LOADED: [&Script; 7] = [
    &ACQUIRE,
    &SHARE,
    &RELEASE,
    &GRANT,
    &RENEW,
    &RENEW_SHARED,
    &COMPLETE,
];

impl Script {
    const fn new(source: &'static str) -> Self {
        let hash = OnceLock::new();
        Self { source, hash }
    }

    pub(super) fn hash(&self) -> &str {
        self.hash
            .get_or_init(|| redis::Script::new(self.source).get_hash().to_owned())
    }
}
