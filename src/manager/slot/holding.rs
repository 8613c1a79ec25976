//! [`Holding`]: the lock is this process's.

use std::time::Duration;

use super::Env;
use crate::clock::Time;
use crate::lease::Grant;

/// How many fencing tokens one fence of the store stands for: one for each hand-off in this
/// process.
const HANDOFFS_PER_FENCE: u64 = 1 << 10;

/// A lock that the store has given to a token of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Holding {
    pub(super) token: u64,
    pub(super) lease: u64,
    fencing_token: u64,
    /// The last fencing token before the store has to give a new fence.
    last_fencing_token: u64,
    /// Until then, the store will certainly not give the lock away.
    pub(super) valid_until: Time,
    /// Its holder knows from the clock that it is lost then.
    pub(super) limit: Time,
    /// The lock is let go then: the holder has had the time to stop.
    pub(super) over_at: Time,
    pub(super) renew_at: Time,
    pub(super) renewing: bool,
    pub(super) checking: bool,
    /// Check once more after the renewal or check in flight: something changed in the meantime.
    pub(super) recheck: bool,
    /// The holder is done, and its record is in flight to the lock's place. Until the store has
    /// said what became of that, the lock stays this token's: released, it would let another run
    /// begin.
    pub(super) completing: bool,
    /// Set while another process waits.
    pub(super) contended: Option<Burst>,
}

/// The hand-offs that still go before another process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Burst {
    left: u32,
    ends: Time,
}

impl Burst {
    pub(super) fn begin(env: &Env<'_>) -> Self {
        Self {
            left: env.rules.burst,
            ends: env.now + env.rules.burst_time,
        }
    }
}

impl Holding {
    pub(super) fn new(
        env: &Env<'_>,
        token: u64,
        fence: u64,
        valid_until: Time,
        renew_at: Time,
        contended: bool,
    ) -> Self {
        let fencing_token = fence * HANDOFFS_PER_FENCE;
        let (limit, over_at) = env.rules.ends_of_hold(env.now + env.rules.max_hold);
        Self {
            token,
            lease: env.next_id(),
            fencing_token,
            last_fencing_token: fencing_token + HANDOFFS_PER_FENCE - 1,
            valid_until,
            limit,
            over_at,
            renew_at,
            renewing: false,
            checking: false,
            recheck: false,
            completing: false,
            contended: contended.then(|| Burst::begin(env)),
        }
    }

    pub(super) fn may_hand_on(&self, env: &Env<'_>) -> bool {
        self.fencing_token < self.last_fencing_token
            && self.valid_until > env.now + env.rules.worth_handing_on()
            && self
                .contended
                .is_none_or(|burst| burst.left > 0 && env.now < burst.ends)
    }

    /// Begins the lease of the next request.
    pub(super) fn hand_on(&mut self, env: &Env<'_>) {
        self.lease = env.next_id();
        self.fencing_token += 1;
        (self.limit, self.over_at) = env.rules.ends_of_hold(env.now + env.rules.max_hold);
        if let Some(burst) = &mut self.contended {
            burst.left -= 1;
        }
    }

    /// Lets the holder hold for so much longer from now, if that is more than it has left.
    pub(super) fn prolong(&mut self, env: &Env<'_>, time: Duration) {
        let limit = self.limit.max(env.now + time);
        (self.limit, self.over_at) = env.rules.ends_of_hold(limit);
    }

    /// Another process waits.
    pub(super) fn contend(&mut self, env: &Env<'_>) {
        self.contended.get_or_insert_with(|| Burst::begin(env));
    }

    pub(super) fn grant(&self) -> Grant {
        Grant {
            lease: self.lease,
            token: self.token,
            fencing_token: self.fencing_token,
            until: self.until(),
            limit: self.limit,
        }
    }

    /// Until when the holder's lease is valid.
    pub(super) fn until(&self) -> Time {
        self.valid_until.min(self.limit)
    }

    pub(super) fn next_tick(&self) -> Time {
        let end = self.over_at.min(self.valid_until);
        match self.renewing {
            true => end,
            false => end.min(self.renew_at),
        }
    }
}
