//! [`Holding`]: a lock that this process has.

use std::time::Duration;

use smallvec::SmallVec;

use super::Env;
use crate::clock::Time;
use crate::lease::Grant;
use crate::mode::Mode;

/// How many fencing tokens come out of one fence of the store: the first for the acquire or the
/// grant, one more for each hand-off in this process. All that share a hold have the first.
const HANDOFFS_PER_FENCE: u64 = 1 << 10;

/// A lock that the store has given to a token of this process.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Holding {
    pub(super) token: u64,
    /// Whether other processes may have the lock, too.
    pub(super) mode: Mode,
    /// The requests of this process that hold it: one, or any number that share it, in order of
    /// arrival. If none is left of these, the hold lingers.
    pub(super) holders: SmallVec<[Holder; 1]>,
    /// Until when a hold without holders is kept, for the next request that shares it.
    pub(super) lingers_until: Time,
    fencing_token: u64,
    /// The last fencing token that comes out of this fence. After it, the store must give another
    /// one.
    last_fencing_token: u64,
    /// Until then, the store certainly does not give the lock to another token.
    pub(super) valid_until: Time,
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

/// A request that holds the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Holder {
    pub(super) lease: u64,
    /// From then on, the holder knows from the clock that it has lost the lock.
    pub(super) limit: Time,
    /// Then the slot releases the lock: the holder has had the time to stop.
    pub(super) over_at: Time,
}

/// The hand-offs in this process that may still go before another process that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Burst {
    /// When another process was last heard to wait.
    heard_at: Time,
    left: u32,
    ends: Time,
}

impl Burst {
    pub(super) fn begin(env: &Env<'_>) -> Self {
        Self {
            heard_at: env.now,
            left: env.rules.burst,
            ends: env.now + env.rules.burst_time,
        }
    }
}

impl Holding {
    pub(super) fn new(
        env: &Env<'_>,
        token: u64,
        mode: Mode,
        fence: u64,
        valid_until: Time,
        renew_at: Time,
        contended: bool,
    ) -> Self {
        let fencing_token = fence * HANDOFFS_PER_FENCE;
        Self {
            token,
            mode,
            holders: SmallVec::new(),
            lingers_until: env.now,
            fencing_token,
            last_fencing_token: fencing_token + HANDOFFS_PER_FENCE - 1,
            valid_until,
            renew_at,
            renewing: false,
            checking: false,
            recheck: false,
            completing: false,
            contended: contended.then(|| Burst::begin(env)),
        }
    }

    /// Returns whether the next request in this process may hold it alone when the holder is done.
    pub(super) fn may_hand_on(&self, env: &Env<'_>) -> bool {
        !self.mode.is_shared()
            && self.fencing_token < self.last_fencing_token
            && self.is_worth_handing_on(env)
            && self
                .contended
                .is_none_or(|burst| burst.left > 0 && env.now < burst.ends)
    }

    /// Returns whether one more request may share it. There is no burst while another process
    /// waits: one that holds for long would make all those wait that come with it.
    pub(super) fn may_admit(&self, env: &Env<'_>) -> bool {
        self.mode.is_shared() && self.contended.is_none() && self.is_worth_handing_on(env)
    }

    fn is_worth_handing_on(&self, env: &Env<'_>) -> bool {
        self.valid_until > env.now + env.rules.worth_handing_on()
    }

    /// Ends the holder's lease, so that the next request can get one.
    pub(super) fn hand_on(&mut self) {
        self.holders.clear();
        self.fencing_token += 1;
        if let Some(burst) = &mut self.contended {
            burst.left -= 1;
        }
    }

    /// Begins the lease of a request.
    pub(super) fn grant(&mut self, env: &Env<'_>) -> Grant {
        let (limit, over_at) = env.rules.ends_of_hold(env.now + env.rules.max_hold);
        let lease = env.next_id();
        self.holders.push(Holder {
            lease,
            limit,
            over_at,
        });
        Grant {
            lease,
            token: self.token,
            mode: self.mode,
            fencing_token: self.fencing_token,
            until: self.valid_until.min(limit),
            limit,
        }
    }

    /// Returns where a holder is.
    pub(super) fn place_of(&self, lease: u64) -> Option<usize> {
        let place = self
            .holders
            .binary_search_by_key(&lease, |holder| holder.lease);
        place.ok()
    }

    /// Keeps the hold, which the last request has left, for a moment.
    pub(super) fn linger(&mut self, env: &Env<'_>) {
        self.lingers_until = env.now + env.rules.linger();
    }

    /// Returns whether no request holds it: it is kept for the next.
    pub(super) fn lingers(&self) -> bool {
        self.holders.is_empty()
    }

    /// Lets the holder hold for `time` from now, if it has less left.
    pub(super) fn prolong(&mut self, env: &Env<'_>, time: Duration) {
        for holder in &mut self.holders {
            let limit = holder.limit.max(env.now + time);
            (holder.limit, holder.over_at) = env.rules.ends_of_hold(limit);
        }
    }

    /// Leaves the slot time until the store has taken the holder's record.
    pub(super) fn complete(&mut self, env: &Env<'_>) {
        self.completing = true;
        for holder in &mut self.holders {
            holder.over_at = holder.over_at.max(env.now + env.rules.ttl);
        }
    }

    /// Begins the burst, now that another process waits, unless one has begun.
    pub(super) fn contend(&mut self, env: &Env<'_>) {
        let burst = self.contended.get_or_insert_with(|| Burst::begin(env));
        burst.heard_at = env.now;
    }

    /// Ends the burst, as no process waited any longer when a command of that time was carried out.
    pub(super) fn calm(&mut self, sent_at: Time) {
        // Of one that was heard of since, that command may not have known.
        self.contended = self.contended.filter(|burst| burst.heard_at >= sent_at);
    }

    /// Returns the leases of the holders, and until when each is valid.
    pub(super) fn leases(&self) -> impl Iterator<Item = (u64, Time)> {
        let holders = self.holders.iter();
        holders.map(|holder| (holder.lease, self.valid_until.min(holder.limit)))
    }

    pub(super) fn next_tick(&self) -> Time {
        // All may hold for the same time: the first is the first to be over.
        let Some(first) = self.holders.first() else {
            return self.lingers_until.min(self.valid_until);
        };
        let end = first.over_at.min(self.valid_until);
        match self.renewing {
            true => end,
            false => end.min(self.renew_at),
        }
    }
}
