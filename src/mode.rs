//! [`Mode`]: whether a holder has a lock alone.

/// Whether a request holds its lock alone: see
/// [`DistributedLockLayer::mode`](crate::DistributedLockLayer::mode) and
/// [`LockManager::acquire_shared`](crate::LockManager::acquire_shared).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Mode {
    /// It holds the lock alone, on all nodes.
    #[default]
    Exclusive,
    /// It holds the lock together with all others that share it, on all nodes: for work that only
    /// reads what the lock protects.
    Shared,
}

impl Mode {
    pub(crate) fn is_shared(self) -> bool {
        self == Self::Shared
    }
}
