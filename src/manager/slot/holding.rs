//! [`Holding`]: a lock that this process has.

use std::time::Duration;

use super::Env;
use crate::clock::Time;
use crate::lease::Grant;

/// How many fencing tokens come out of one fence of the store: the first for the acquire or the
/// grant, one more for each hand-off in this process.
const HANDOFFS_PER_FENCE: u64 = 1 << 10;

/// A lock that the store has given to a token of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Holding {
    pub(super) token: u64,
    pub(super) lease: u64,
    fencing_token: u64,
    /// The last fencing token that comes out of this fence. After it, the store must give another
    /// one.
    last_fencing_token: u64,
    /// Until then, the store certainly does not give the lock to another token.
    pub(super) valid_until: Time,
    /// From then on, the holder knows from the clock that it has lost the lock.
    pub(super) limit: Time,
    /// Then the slot releases the lock: the holder has had the time to stop.
    pub(super) over_at: Time,
    pub(super) renew_at: Time,
    pub(super) renewing: bool,
    pub(super) checking: bool,
    /// Check once more after the renewal or check that is in flight: the lock may have changed in
    /// the meantime.
    pub(super) recheck: bool,
    /// The holder is done, and the completion with its record is in flight. Until that has ended,
    /// this token keeps the lock: a release would let another run begin.
    pub(super) completing: bool,
    /// Set while another process waits.
    pub(super) contended: Option<Burst>,
}

/// The hand-offs in this process that may still go before another process that waits.
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

    /// Begins the lease of the next request in this process.
    pub(super) fn hand_on(&mut self, env: &Env<'_>) {
        self.lease = env.next_id();
        self.fencing_token += 1;
        (self.limit, self.over_at) = env.rules.ends_of_hold(env.now + env.rules.max_hold);
        if let Some(burst) = &mut self.contended {
            burst.left -= 1;
        }
    }

    /// Lets the holder hold for `time` from now, if it has less left.
    pub(super) fn prolong(&mut self, env: &Env<'_>, time: Duration) {
        let limit = self.limit.max(env.now + time);
        (self.limit, self.over_at) = env.rules.ends_of_hold(limit);
    }

    /// Begins the burst, now that another process waits, unless one has begun.
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

    /// Returns until when the holder's lease is valid.
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
